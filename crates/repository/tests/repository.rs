//! A repository as its users see it: made, written, opened with keys, damaged, verified.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_format::ObjectKind;
use holdfast_format::codec::Compressor;
use holdfast_format::manifest::{Manifest, MapRef, Owner, PackSize, SnapshotKind, Summary};
use holdfast_format::map::{Entry, EntryKind, FrameRef, Map, PackRef, Run, RunSource};
use holdfast_format::wal::{LogIndex, LogSummary, digest};
use holdfast_repository::{
    Epoch, Identities, Keyring, Lineage, LogRange, Names, NewIdentity, Repository, RepositoryError, SealedLog,
    VerifyOptions, VerifyReport, copy, repair, verify,
};
use holdfast_runtime::Progress;
use holdfast_store::{Created, Directory};
use holdfast_types::{Lsn, Micros, Segment, SegmentSize, SnapshotId, SystemId, Timeline};

const MIB: u64 = 1 << 20;

struct Fixture {
    folder: tempfile::TempDir,
    repository: Repository,
    identity: NewIdentity,
    lineage: Lineage,
    id: SnapshotId,
}

fn keyring(repository: &Repository, identity: &NewIdentity) -> Keyring {
    let mut identities = Identities::default();
    identities.add_file(&identity.file, || None).unwrap();
    Keyring::new(repository.clone(), Arc::new(identities))
}

fn sealed_log(epoch: &Epoch, lineage: Lineage, segment: Segment, range: LogRange, fill: u8) -> SealedLog {
    let whole = range.end.bytes_since(range.start) == lineage.segment_size.get();
    let (kind, name) = if whole {
        (ObjectKind::WalSegment, Names::segment("chat", lineage, segment))
    } else {
        (ObjectKind::WalPiece, Names::piece("chat", lineage, segment, range.start, range.end))
    };
    let plain = vec![fill; range.end.bytes_since(range.start) as usize];
    let mut compressor = Compressor::new(1).unwrap();
    let mut writer = epoch.log_writer(kind, &name, 0);
    for frame in plain.chunks(256 << 10) {
        writer.push(frame, &mut compressor);
    }
    let digest = digest(epoch.repository().id(), &plain);
    let digest = whole.then_some(digest);
    let summary = LogSummary { start: range.start, end: range.end, digest };
    Epoch::finish_log(writer, name, &LogIndex::default(), &summary, &mut compressor).unwrap()
}

impl Fixture {
    /// One snapshot of one file in one pack, and the log of two segments and a piece.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = NewIdentity::generate(None).unwrap();
        let store = Arc::new(Directory::new(folder.path()));
        let repository = Repository::init(store, vec![identity.recipient.clone()], Micros::new(1)).await.unwrap();
        let lineage = Lineage { system_id: SystemId::new(77), segment_size: SegmentSize::new(MIB).unwrap() };
        let id = SnapshotId::new("20261121T101500Z", [1, 2, 3, 4]).unwrap();
        let fixture = Self { folder, repository, identity, lineage, id };
        fixture.fill().await;
        fixture
    }

    async fn fill(&self) {
        let epoch = self.repository.begin_epoch().await.unwrap();
        let mut pack = epoch.pack(0);
        let frame = pack.push(&vec![42; 100_000], &mut Compressor::new(1).unwrap());
        let pack = pack.finish(b"");
        let pack_bytes = pack.bytes.len() as u64;
        epoch.put_pack(Bytes::from(pack.bytes), pack.id).await.unwrap();
        let run = Run { len: 100_000, source: RunSource::Frame { frame: 0, at: 0 } };
        let kind = EntryKind::File { size: 100_000, runs: vec![run] };
        let map = Map {
            packs: vec![PackRef { id: pack.id, epoch: epoch.id(), salt: pack.salt, hashes: pack.hashes }],
            frames: vec![FrameRef { pack: 0, location: frame }],
            entries: vec![Entry { path: b"pgdata/base/1/2".to_vec(), mode: 0o600, modified: 0, kind }],
        };
        let (map_id, map_bytes) = epoch.put_map(&map).await.unwrap();
        let summary = Summary {
            id: self.id.clone(),
            source: "chat".to_owned(),
            kind: SnapshotKind::Full,
            base: None,
            server_version: 150_000,
            system_id: self.lineage.system_id,
            timeline: Timeline::FIRST,
            start_lsn: Lsn::new(MIB + 40),
            stop_lsn: Lsn::new(2 * MIB + 500),
            segment_size: self.lineage.segment_size,
            started_at: Micros::new(1),
            stopped_at: Micros::new(2),
            from_standby: false,
            bytes: 100_000,
            files: 1,
            read_bytes: None,
            stored_bytes: pack_bytes + map_bytes,
            damaged_pages: 0,
            made_by: "test".to_owned(),
        };
        for number in [1, 2] {
            let segment = Segment::new(Timeline::FIRST, number);
            let size = self.lineage.segment_size;
            let range = LogRange { start: segment.start(size), end: segment.end(size) };
            let sealed = sealed_log(&epoch, self.lineage, segment, range, number as u8);
            assert_eq!(self.repository.put_log(&sealed).await.unwrap(), Created::New);
        }
        let piece = LogRange { start: Lsn::new(3 * MIB), end: Lsn::new(3 * MIB + 8192) };
        let sealed = sealed_log(&epoch, self.lineage, Segment::new(Timeline::FIRST, 3), piece, 3);
        self.repository.put_log(&sealed).await.unwrap();
        let history = Names::history("chat", self.lineage, Timeline::new(2));
        self.repository.put_log(&epoch.seal_history(history, b"1\t0/300000\tno\n").unwrap()).await.unwrap();
        let manifest = Manifest {
            summary,
            maps: vec![MapRef { id: map_id, bytes: map_bytes, entries: 1 }],
            packs: vec![PackSize { id: pack.id, bytes: pack_bytes }],
            backup_label: b"label".to_vec(),
            tablespace_map: Vec::new(),
            pg_control: vec![0; 8192],
            tablespaces: Vec::new(),
            owner: Owner { user: "postgres".to_owned(), group: "postgres".to_owned() },
            data_directory: "/data".to_owned(),
            config_files: Vec::new(),
            parameters: Vec::new(),
            damage: Vec::new(),
        };
        epoch.commit(&manifest).await.unwrap();
    }

    async fn verify(&self) -> VerifyReport {
        let options =
            VerifyOptions { source: None, parallel: 4, inspect_log: None, keeps_log: None, budget: None, by: None };
        verify(&keyring(&self.repository, &self.identity), &options, &Progress::new()).await.unwrap()
    }

    /// The objects of one class.
    fn objects(&self, class: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        collect(&self.folder.path().join(class), &mut found);
        found.sort();
        assert!(!found.is_empty(), "no objects under {class}");
        found
    }
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}

#[tokio::test]
async fn what_was_written_is_verified_and_read_back() {
    let fixture = Fixture::new().await;
    let report = fixture.verify().await;
    assert_eq!(report.findings, [], "a sound repository has no findings");
    assert_eq!((report.snapshots, report.packs, report.maps, report.log_objects), (1, 1, 1, 3));

    let keyring = keyring(&fixture.repository, &fixture.identity);
    let segment = |number| Segment::new(Timeline::FIRST, number);
    let read = |number| keyring.segment("chat", fixture.lineage, segment(number));
    assert_eq!(read(2).await.unwrap(), Some(vec![2; MIB as usize]));
    assert_eq!(read(3).await.unwrap(), Some(vec![3; 8192]));
    assert_eq!(read(4).await.unwrap(), None);

    let entries = fixture.repository.snapshots("chat").await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].summary.as_ref().unwrap().id, fixture.id, "summaries are readable without a key");
}

#[tokio::test]
async fn every_kind_of_damage_to_every_class_of_object_is_named() {
    for class in ["packs", "maps", "snapshots", "wal", "pieces", "history", "keys"] {
        for damage in ["flip", "truncate", "delete", "swap"] {
            let fixture = Fixture::new().await;
            let victim = fixture.objects(class).remove(0);
            let bytes = fs::read(&victim).unwrap();
            match damage {
                "flip" => {
                    let mut flipped = bytes.clone();
                    flipped[bytes.len() / 2] ^= 0x10;
                    fs::write(&victim, flipped).unwrap();
                }
                "truncate" => fs::write(&victim, &bytes[..bytes.len() - 1]).unwrap(),
                "delete" => fs::remove_file(&victim).unwrap(),
                // Another sound object of the same repository in its place, of the same class where there are two.
                _ => {
                    let others = fixture.objects(class);
                    let other = others.get(1).cloned().unwrap_or_else(|| fixture.objects("maps").remove(0));
                    let other = if class == "maps" { fixture.objects("packs").remove(0) } else { other };
                    fs::write(&victim, fs::read(other).unwrap()).unwrap();
                }
            }
            // Without its manifest a snapshot does not exist, and without a piece the log just ends earlier; a history
            // that is gone shows only when its timeline is asked for.
            let is_invisible = damage == "delete" && ["snapshots", "pieces", "history"].contains(&class);
            let report = fixture.verify().await;
            assert_eq!(report.has_errors(), !is_invisible, "{damage} of {class}: {:#?}", report.findings);
            if report.has_errors() {
                let name = victim.strip_prefix(fixture.folder.path()).unwrap().display().to_string();
                let is_named = report.findings.iter().any(|finding| {
                    name.starts_with(&finding.object) || finding.object.starts_with("log of") || class == "keys"
                });
                assert!(is_named, "{damage} of {name}: {:#?}", report.findings);
            }
        }
    }
}

/// A damaged header of a key object looks like that of a key for somebody else: age tells the two apart no more than we can.
#[tokio::test]
async fn a_key_that_is_opened_by_nobody_is_damage_where_others_are_opened() {
    let fixture = Fixture::new().await;
    let harm = |key: &Path| {
        let mut bytes = fs::read(key).unwrap();
        let at = bytes.windows(6).position(|text| text == b"X25519").unwrap();
        bytes[at + 5] ^= 1;
        fs::write(key, bytes).unwrap();
    };
    let first = fixture.objects("keys").remove(0);
    let sound = fs::read(&first).unwrap();
    harm(&first);
    let options =
        VerifyOptions { source: None, parallel: 4, inspect_log: None, keeps_log: None, budget: None, by: None };
    let keys = keyring(&fixture.repository, &fixture.identity);
    let refused = verify(&keys, &options, &Progress::new()).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::WrongKey { .. }), "the only one: {refused:?}");

    fs::write(&first, sound).unwrap();
    fixture.repository.begin_epoch().await.unwrap();
    assert!(!fixture.verify().await.has_errors());
    harm(&first);
    let report = fixture.verify().await;
    let name = first.strip_prefix(fixture.folder.path()).unwrap().display().to_string();
    let of = |prefix: &str| report.findings.iter().filter(|finding| finding.object.starts_with(prefix)).count();
    assert!(report.findings.iter().any(|finding| name.starts_with(&finding.object)), "{:#?}", report.findings);
    // What it sealed cannot be read, and that is told as well.
    assert_eq!((of("snapshots/"), of("wal/")), (1, 2), "{:#?}", report.findings);
}

#[tokio::test]
async fn a_segment_that_exists_is_the_same_or_a_conflict() {
    let fixture = Fixture::new().await;
    // Another writer, with another key: the same content seals to other bytes.
    let epoch = fixture.repository.begin_epoch().await.unwrap();
    let segment = Segment::new(Timeline::FIRST, 2);
    let size = fixture.lineage.segment_size;
    let range = LogRange { start: segment.start(size), end: segment.end(size) };
    let same = sealed_log(&epoch, fixture.lineage, segment, range, 2);
    assert_eq!(fixture.repository.put_log(&same).await.unwrap(), Created::Exists);
    let other = sealed_log(&epoch, fixture.lineage, segment, range, 9);
    let refused = fixture.repository.put_log(&other).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::Conflict { .. }), "{refused:?}");
}

#[tokio::test]
async fn pieces_stand_in_for_a_whole_segment_that_is_damaged() {
    let fixture = Fixture::new().await;
    let size = fixture.lineage.segment_size;
    let segment = Segment::new(Timeline::FIRST, 3);
    let epoch = fixture.repository.begin_epoch().await.unwrap();
    let keyring = keyring(&fixture.repository, &fixture.identity);
    // Somebody who can create objects, and nothing else, puts garbage where the whole segment will be.
    let name = Names::segment("chat", fixture.lineage, segment);
    fixture.repository.store().create(&name, Bytes::from_static(b"garbage")).await.unwrap();
    assert!(keyring.segment("chat", fixture.lineage, segment).await.is_err(), "a part must not pass for the whole");
    let rest = LogRange { start: Lsn::new(3 * MIB + 8192), end: segment.end(size) };
    fixture.repository.put_log(&sealed_log(&epoch, fixture.lineage, segment, rest, 3)).await.unwrap();
    let read = keyring.segment("chat", fixture.lineage, segment).await.unwrap();
    assert_eq!(read, Some(vec![3; MIB as usize]));
}

#[tokio::test]
async fn recipients_come_and_go_without_touching_data() {
    let fixture = Fixture::new().await;
    let (alice, bob) = (&fixture.identity, NewIdentity::generate(None).unwrap());
    let refused = keyring(&fixture.repository, &bob).snapshot("chat", &fixture.id).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::WrongKey { .. }), "{refused:?}");

    let with_both = fixture.repository.add_recipient(&keyring(&fixture.repository, alice), bob.recipient.clone()).await;
    let with_both = with_both.unwrap();
    keyring(&with_both, &bob).snapshot("chat", &fixture.id).await.unwrap();
    keyring(&with_both, alice).snapshot("chat", &fixture.id).await.unwrap();

    let only_bob = with_both.remove_recipient(&keyring(&with_both, &bob), &alice.recipient).await.unwrap();
    keyring(&only_bob, &bob).snapshot("chat", &fixture.id).await.unwrap();
    let refused = keyring(&only_bob, alice).snapshot("chat", &fixture.id).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::WrongKey { .. }), "{refused:?}");
    let refused = only_bob.remove_recipient(&keyring(&only_bob, &bob), &bob.recipient).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::NoRecipients));
    assert!(only_bob.require_recipients(&[bob.recipient]).is_ok());
    assert!(only_bob.require_recipients(&[]).is_err());
}

#[tokio::test]
async fn places_without_a_repository_and_newer_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Directory::new(folder.path()));
    let refused = Repository::open(Arc::clone(&store) as _).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::NotARepository { .. }), "{refused:?}");

    let fixture = Fixture::new().await;
    let recipients = vec![fixture.identity.recipient.clone()];
    let store = Arc::new(Directory::new(fixture.folder.path()));
    let refused = Repository::init(store.clone(), recipients.clone(), Micros::new(1)).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::AlreadyARepository { .. }), "{refused:?}");

    let config = fixture.objects("config").remove(0);
    let newer = fs::read_to_string(&config).unwrap().replace("\"format\": 1", "\"format\": 2");
    fs::write(&config, newer).unwrap();
    let refused = Repository::open(store).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::NewerFormat { found: 2, .. }), "{refused:?}");

    fs::write(folder.path().join("letter.txt"), "not ours").unwrap();
    let store = Arc::new(Directory::new(folder.path()));
    let refused = Repository::init(store, recipients, Micros::new(1)).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::NotEmpty { .. }), "{refused:?}");
}

/// Names below a folder, with what they hold.
fn tree(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().is_some_and(|name| name != ".tmp") {
            collect(&path, &mut found);
        }
    }
    found.into_iter().map(|path| (path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

#[tokio::test]
async fn whatever_is_damaged_is_taken_from_a_copy() {
    let fixture = Fixture::new().await;
    let folder = tempfile::tempdir().unwrap();
    let sibling = Repository::init_like(Arc::new(Directory::new(folder.path())), &fixture.repository).await.unwrap();
    let (here, there) = (keyring(&sibling, &fixture.identity), keyring(&fixture.repository, &fixture.identity));
    let copied = copy(&there, &sibling, None, &Progress::new()).await.unwrap();
    assert_eq!((copied.snapshots, copied.left.len()), (1, 0), "{copied:?}");
    let whole = tree(fixture.folder.path());
    assert!(tree(folder.path()) == whole, "a copy has the same objects, byte for byte");
    let again = copy(&there, &sibling, None, &Progress::new()).await.unwrap();
    assert_eq!((again.snapshots, again.objects), (0, 0), "{again:?}");

    for class in ["keys", "packs", "maps", "snapshots", "wal", "pieces", "history"] {
        let path = whole.keys().find(|path| path.starts_with(class)).unwrap_or_else(|| panic!("no object of {class}"));
        let (file, bytes) = (folder.path().join(path), &whole[path]);
        let (mut flipped, short) = (bytes.clone(), bytes[..bytes.len() / 2].to_vec());
        flipped[bytes.len() * 2 / 3] ^= 0x10;
        // Of another name, as if two had been swapped.
        let other = whole.iter().find(|(name, content)| *name != path && content != &bytes).unwrap().1.clone();
        for (how, damaged) in
            [("flipped", Some(flipped)), ("cut", Some(short)), ("gone", None), ("swapped", Some(other))]
        {
            match &damaged {
                Some(damaged) => {
                    fs::remove_file(&file).unwrap();
                    fs::write(&file, damaged).unwrap();
                }
                None => fs::remove_file(&file).unwrap(),
            }
            let planned = repair(&here, &there, true, &Progress::new()).await.unwrap();
            assert_eq!(planned.replaced.len(), usize::from(damaged.is_some()), "{class} {how}: {planned:?}");
            let repaired = repair(&here, &there, false, &Progress::new()).await.unwrap();
            assert!(repaired.left.is_empty() && repaired.brought.left.is_empty(), "{class} {how}: {repaired:?}");
            assert!(tree(folder.path()) == whole, "{class} {how}");
        }
    }
    // What both have lost is said.
    let pack = whole.keys().find(|path| path.starts_with("packs")).unwrap();
    for root in [folder.path(), fixture.folder.path()] {
        fs::write(root.join(pack), b"nothing").unwrap();
    }
    let repaired = repair(&here, &there, false, &Progress::new()).await.unwrap();
    assert_eq!(repaired.left.len(), 1, "{repaired:?}");
    let stranger = tempfile::tempdir().unwrap();
    let stranger = Repository::init(
        Arc::new(Directory::new(stranger.path())),
        vec![fixture.identity.recipient.clone()],
        Micros::new(1),
    );
    let error = copy(&there, &stranger.await.unwrap(), None, &Progress::new()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::NotSiblings { .. }), "{error:?}");
}
