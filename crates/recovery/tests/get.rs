//! `restore_command` against a repository of a few small segments.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::sync::Arc;

use holdfast_format::ObjectKind;
use holdfast_format::codec::Compressor;
use holdfast_format::wal::{LogIndex, LogSummary, digest};
use holdfast_recovery::{GetError, GetOptions, GetOutcome, get};
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

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = NewIdentity::generate(None).unwrap();
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

    fn options(&self, timeline: u32, number: u64) -> GetOptions {
        GetOptions {
            source: "chat".to_owned(),
            lineage: self.lineage,
            name: Self::segment(timeline, number).file_name(self.lineage.segment_size),
            destination: self.folder.path().join("segment"),
            prefetch_directory: None,
            partial: true,
            until: None,
            cut: false,
        }
    }

    /// How many bytes of log were served; nothing if there is no such file.
    async fn served(&self, options: &GetOptions) -> Result<Option<u64>, GetError> {
        Ok(match get(&self.keyring, options).await? {
            GetOutcome::NotFound => None,
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
    let ahead = fixture.folder.path().join("ahead");
    std::fs::create_dir(&ahead).unwrap();
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
            // What was fetched ahead knows of no cut.
            let mut options = GetOptions { partial, until: until(end), cut: true, ..fixture.options(1, number) };
            std::fs::write(ahead.join(&options.name), vec![1; MIB as usize]).unwrap();
            for prefetch_directory in [None, Some(ahead.clone())] {
                options.prefetch_directory = prefetch_directory;
                assert_eq!(fixture.served(&options).await.unwrap(), expected, "{number} until {end:#x}");
            }
        }
    }
    // Without a cut the position only says which gaps do no harm.
    let options = GetOptions { until: until(4 * MIB + 8), ..fixture.options(1, 4) };
    assert_eq!(fixture.served(&options).await.unwrap(), Some(MIB));
}
