//! `restore_command` against a repository of a few small segments.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::sync::Arc;

use holdfast_format::ObjectKind;
use holdfast_format::codec::Compressor;
use holdfast_format::wal::{LogIndex, LogSummary, digest};
use holdfast_recovery::{Follows, GetError, GetOptions, GetOutcome, LatestProgress, get};
use holdfast_repository::{Epoch, Identities, Keyring, Lineage, Names, NewIdentity, Repository};
use holdfast_store::Directory;
use holdfast_types::{Lsn, Micros, Segment, SegmentSize, SystemId, Timeline};

const MIB: u64 = 1 << 20;

struct Fixture {
    folder: tempfile::TempDir,
    keyring: Keyring,
    epoch: Epoch,
    lineage: Lineage,
}

/// A standby that has not turned to any timeline yet.
const STANDBY: Option<u32> = Some(0);

fn latest(turned_to: Option<u32>, is_standby: bool) -> Follows {
    Follows::Latest(LatestProgress { turned_to: turned_to.map(Timeline::new), is_standby })
}

fn follows(timeline: Option<u32>) -> Follows {
    match timeline {
        None => Follows::Unknown,
        STANDBY => latest(None, true),
        Some(number) => Follows::Timeline(Timeline::new(number)),
    }
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = NewIdentity::generate(None).unwrap();
        std::fs::create_dir(folder.path().join("repository")).unwrap();
        let store = Arc::new(Directory::new(folder.path().join("repository")));
        let repository = Repository::init(store, vec![identity.recipient.clone()], Micros::new(1)).await.unwrap();
        let mut identities = Identities::default();
        identities.add_file(&identity.file, || None).unwrap();
        let epoch = repository.begin_epoch().await.unwrap();
        let lineage = Lineage { system_id: SystemId::new(77), segment_size: SegmentSize::new(MIB).unwrap() };
        Self { folder, keyring: Keyring::new(repository, Arc::new(identities)), epoch, lineage }
    }

    fn segment(timeline: u32, number: u64) -> Segment {
        Segment::new(Timeline::new(timeline), number)
    }

    /// Log of ones: a whole segment, or a piece of it from its start.
    async fn log(&self, timeline: u32, number: u64, len: u64) {
        let segment = Self::segment(timeline, number);
        let start = segment.start(self.lineage.segment_size);
        let end = start.advance(len);
        let is_whole = len == MIB;
        let (kind, name) = if is_whole {
            (ObjectKind::WalSegment, Names::segment("chat", self.lineage, segment))
        } else {
            (ObjectKind::WalPiece, Names::piece("chat", self.lineage, segment, start, end))
        };
        let plain = vec![1; len as usize];
        let mut compressor = Compressor::new(1).unwrap();
        let mut writer = self.epoch.log_writer(kind, &name, 0);
        writer.push(&plain, &mut compressor);
        let digest = is_whole.then(|| digest(self.keyring.repository().id(), &plain));
        let summary = LogSummary { start, end, digest };
        let sealed = Epoch::finish_log(writer, name, &LogIndex::default(), &summary, &mut compressor).unwrap();
        self.keyring.repository().put_log(&sealed).await.unwrap();
    }

    async fn history(&self, timeline: u32, text: &str) {
        let name = Names::history("chat", self.lineage, Timeline::new(timeline));
        let sealed = self.epoch.seal_history(name, text.as_bytes()).unwrap();
        self.keyring.repository().put_log(&sealed).await.unwrap();
    }

    fn options(&self, timeline: u32, number: u64) -> GetOptions {
        GetOptions {
            source: "chat".to_owned(),
            lineage: self.lineage,
            name: Self::segment(timeline, number).file_name(self.lineage.segment_size),
            destination: self.folder.path().join("segment"),
            partial: true,
            until: None,
            cut: false,
            follows: Follows::Unknown,
        }
    }

    /// How many bytes of log were served; nothing if there is no such file.
    async fn served(&self, options: &GetOptions) -> Result<Option<u64>, GetError> {
        Ok(match get(&self.keyring, options).await? {
            GetOutcome::NotFound => None,
            GetOutcome::NoSuchSource => panic!("there is log of the source"),
            GetOutcome::Fetched => {
                let bytes = std::fs::read(&options.destination).unwrap();
                assert_eq!(bytes.len() as u64, MIB);
                let log = bytes.iter().take_while(|byte| **byte == 1).count();
                assert!(bytes.iter().skip(log).all(|byte| *byte == 0), "zeros follow the log");
                Some(log as u64)
            }
        })
    }
}

#[tokio::test]
async fn a_cut_hides_what_came_since() {
    let fixture = Fixture::new().await;
    for number in 3..6 {
        fixture.log(1, number, MIB).await;
    }
    fixture.log(1, 6, 4096).await;
    let until = |position: u64| Some(Lsn::new(position));
    for partial in [true, false] {
        for (number, end, expected) in [
            (3, 4 * MIB + 8, Some(MIB)),
            (4, 4 * MIB + 8, Some(8)),
            (5, 4 * MIB + 8, None),
            (6, 4 * MIB + 8, None),
            (3, 4 * MIB, Some(MIB)),
            (4, 4 * MIB, None),
            (6, 6 * MIB + 100, Some(100)),
        ] {
            let options = GetOptions { partial, until: until(end), cut: true, ..fixture.options(1, number) };
            assert_eq!(fixture.served(&options).await.unwrap(), expected, "{number} until {end:#x}");
        }
    }
    // Without a cut the position only says which gaps do no harm.
    let options = GetOptions { until: until(4 * MIB + 8), ..fixture.options(1, 4) };
    assert_eq!(fixture.served(&options).await.unwrap(), Some(MIB));
}

/// Timeline 1 was left in segment 6 for timeline 2, and that in segment 8 for timeline 3. Of timeline 1 nothing is there
/// from segment 5 on.
#[tokio::test]
async fn what_a_later_timeline_goes_on_from_is_a_gap() {
    let fixture = Fixture::new().await;
    fixture.log(1, 3, MIB).await;
    fixture.log(1, 4, 4096).await;
    let get = async |timeline, number, followed: Option<u32>, until: Option<u64>| {
        let options =
            GetOptions { follows: follows(followed), until: until.map(Lsn::new), ..fixture.options(timeline, number) };
        match fixture.served(&options).await {
            Err(GetError::Gap { at, .. }) => Err(at.get()),
            served => Ok(served.unwrap()),
        }
    };
    // Nothing goes on yet.
    assert_eq!(get(1, 4, None, None).await, Ok(Some(4096)));
    assert_eq!(get(1, 5, None, None).await, Ok(None));
    fixture.history(2, "1\t0/600800\tno recovery target specified\n").await;
    assert_eq!(get(1, 5, None, None).await, Ok(None), "a timeline of which there is no log yet");
    fixture.log(2, 7, 4096).await;
    fixture.history(3, "1\t0/600800\tno recovery target specified\n2\t0/800800\tno recovery target specified\n").await;
    fixture.log(3, 8, 4096).await;
    for followed in [None, Some(2), Some(3)] {
        assert_eq!(get(1, 3, followed, None).await, Ok(Some(MIB)));
        assert_eq!(get(1, 4, followed, None).await, Err(4 * MIB + 4096), "{followed:?}");
        assert_eq!(get(1, 5, followed, None).await, Err(5 * MIB), "{followed:?}");
        // Timeline 2 begins in segment 6, with a copy of what was before.
        assert_eq!(get(1, 6, followed, None).await, Ok(None), "{followed:?}");
        assert_eq!(get(1, 7, followed, None).await, Ok(None), "{followed:?}");
    }
    // Whoever follows the timeline that was left, or wants no more than there is, comes to its end.
    assert_eq!(get(1, 5, Some(1), None).await, Ok(None));
    assert_eq!(get(1, 4, Some(1), None).await, Ok(Some(4096)));
    assert_eq!(get(1, 4, Some(3), Some(4 * MIB + 4096)).await, Ok(Some(4096)));
    // Segment 7 of timeline 2 has not arrived in full, and timeline 3 goes on behind it.
    assert_eq!(get(2, 7, Some(3), None).await, Err(7 * MIB + 4096));
    assert_eq!(get(2, 7, Some(2), None).await, Ok(Some(4096)));
    assert_eq!(get(2, 8, Some(3), None).await, Ok(None));
}

/// PostgreSQL asks for a segment of the timeline that it follows, and where there is none for that of the one before.
#[tokio::test]
async fn what_the_older_server_wrote_after_the_switch_is_not_served() {
    let fixture = Fixture::new().await;
    for number in 3..7 {
        fixture.log(1, number, MIB).await;
    }
    // Archived at once; the first segment of timeline 2 will be so when it is full.
    fixture.history(2, "1\t0/501000\tx\n").await;
    for partial in [true, false] {
        for (followed, number, expected) in [
            (Some(2), 4, Some(MIB)),
            (STANDBY, 5, Some(0x1000)),
            (Some(2), 5, Some(0x1000)),
            (Some(2), 6, None),
            (Some(1), 6, Some(MIB)),
            (None, 4, Some(MIB)),
        ] {
            let options = GetOptions { follows: follows(followed), partial, ..fixture.options(1, number) };
            assert_eq!(fixture.served(&options).await.unwrap(), expected, "{number} on the way to {followed:?}");
        }
    }
    let followed = GetOptions { follows: follows(Some(2)), ..fixture.options(2, 5) };
    assert_eq!(fixture.served(&followed).await.unwrap(), None);
}

/// It may stay on the older timeline, because the newer was given up, or leave it.
#[tokio::test]
async fn nothing_behind_a_switch_is_said_to_one_who_does_not_say_what_it_follows() {
    let fixture = Fixture::new().await;
    for number in 3..6 {
        fixture.log(1, number, MIB).await;
    }
    fixture.history(2, "1\t0/501000\tx\n").await;
    // Left earlier: what lies between is right on the way to timeline 2, and wrong on that to 3.
    fixture.history(3, "1\t0/480000\tx\n").await;
    assert_eq!(fixture.served(&fixture.options(1, 3)).await.unwrap(), Some(MIB));
    let asked = |follows, number| GetOptions { follows, ..fixture.options(1, number) };
    let is_told = |error: GetError| {
        let told =
            matches!(&error, GetError::Undecided { timeline, other, .. } if (timeline.get(), other.get()) == (1, 3));
        assert!(told, "{error:?}");
    };
    for number in 4..6 {
        is_told(fixture.served(&asked(Follows::Unknown, number)).await.unwrap_err());
    }
    // There is none for whoever stays, and none for whoever has left.
    assert_eq!(fixture.served(&asked(Follows::Unknown, 6)).await.unwrap(), None);
    // A standby finds the newer timeline where the log ends for it; one that has passed the place cannot turn to it any more.
    assert_eq!(fixture.served(&asked(latest(None, true), 4)).await.unwrap(), Some(0x80000));
    is_told(fixture.served(&asked(latest(None, true), 5)).await.unwrap_err());
    // It turned to timeline 2, and reads of the first what comes before that.
    for is_standby in [true, false] {
        assert_eq!(fixture.served(&asked(latest(Some(2), is_standby), 5)).await.unwrap(), Some(0x1000));
    }
    // What is no standby stays with what it found when it began.
    assert_eq!(fixture.served(&asked(latest(None, false), 5)).await.unwrap(), Some(MIB));
    assert_eq!(fixture.served(&fixture.options(3, 4)).await.unwrap(), None);
}

/// The usual failover: the older timeline has nothing of its own behind the switch.
#[tokio::test]
async fn a_timeline_that_ends_where_it_was_left_is_served_to_anybody() {
    let fixture = Fixture::new().await;
    fixture.log(1, 4, MIB).await;
    fixture.log(1, 5, 0x1000).await;
    fixture.history(2, "1\t0/501000\tx\n").await;
    fixture.log(2, 5, MIB).await;
    assert_eq!(fixture.served(&fixture.options(1, 4)).await.unwrap(), Some(MIB));
    assert_eq!(fixture.served(&fixture.options(1, 5)).await.unwrap(), Some(0x1000));
    assert_eq!(fixture.served(&fixture.options(1, 6)).await.unwrap(), None);
}

/// A history that was lost, or has not arrived yet.
#[tokio::test]
async fn a_timeline_is_not_said_to_be_unknown_while_it_has_log() {
    let fixture = Fixture::new().await;
    fixture.log(1, 4, MIB).await;
    fixture.log(1, 5, MIB).await;
    let history = |timeline: u32, follows| GetOptions {
        name: Timeline::new(timeline).history_file(),
        follows,
        ..fixture.options(timeline, 5)
    };
    let asked = |timeline, follows| {
        let (keyring, options) = (&fixture.keyring, history(timeline, follows));
        async move { get(keyring, &options).await }
    };
    assert_eq!(asked(2, latest(None, true)).await.unwrap(), GetOutcome::NotFound);
    fixture.log(2, 5, 4096).await;
    for follows in [Follows::Unknown, latest(None, true), follows(Some(1))] {
        let error = asked(2, follows).await.unwrap_err();
        assert!(matches!(error, GetError::NoHistory { timeline } if timeline.get() == 2), "{error:?}");
    }
    assert_eq!(asked(2, follows(Some(2))).await.unwrap(), GetOutcome::NotFound, "it may begin there");
    assert_eq!(asked(3, latest(None, true)).await.unwrap(), GetOutcome::NotFound);
    // Where timeline 1 was left is not known, so neither is what of it may be served.
    let error = fixture.served(&GetOptions { follows: follows(Some(2)), ..fixture.options(1, 5) }).await.unwrap_err();
    assert!(matches!(error, GetError::NoHistory { .. }), "{error:?}");
}

/// The way may lead over any of them: the newest may have left before.
#[tokio::test]
async fn a_gap_on_the_way_to_any_timeline_is_one() {
    let fixture = Fixture::new().await;
    for number in 0..5 {
        fixture.log(1, number, MIB).await;
    }
    fixture.history(2, "1\t0/701000\tx\n").await;
    fixture.log(2, 7, MIB).await;
    fixture.history(3, "1\t0/380000\tx\n").await;
    let error = fixture.served(&fixture.options(1, 5)).await.unwrap_err();
    assert!(matches!(error, GetError::Gap { .. }), "{error:?}");
    let waits = GetOptions { follows: latest(None, true), ..fixture.options(1, 5) };
    assert!(matches!(fixture.served(&waits).await, Err(GetError::Undecided { .. }) | Ok(None)));
}

#[test]
fn a_data_directory_tells_where_latest_has_led() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(LatestProgress::of(folder.path()).unwrap(), None);
    std::fs::create_dir(folder.path().join("pg_wal")).unwrap();
    let of = || LatestProgress::of(folder.path()).unwrap().unwrap();
    assert_eq!(of(), LatestProgress { turned_to: None, is_standby: false });
    for name in ["00000002.history", "0000000A.history", "00000001000000000000000B", "standby.signal"] {
        std::fs::write(folder.path().join("pg_wal").join(name), "").unwrap();
    }
    std::fs::write(folder.path().join("standby.signal"), "").unwrap();
    assert_eq!(of(), LatestProgress { turned_to: Some(Timeline::new(10)), is_standby: true });
}
