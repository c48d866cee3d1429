//! Where log goes while the repository is away: sealed objects under their own names in a local directory.
//!
//! *Crash.* What is in the spool when a receiver dies is moved to the repository by the next one, before it asks the
//! server for anything: also if that server is gone.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_repository::{Names, Repository, RepositoryError, SealedLog};
use holdfast_store::{Directory, Store as _, StoreError};

/// All that a receiver puts into the spool. Whole segments before pieces: the pieces of a segment that is whole need not
/// travel. Change maps last: what no map covers is read from the log.
const FOLDERS: [&str; 4] = [Names::HISTORY, Names::WAL, Names::PIECES, Names::CHANGES];

#[derive(Debug)]
pub(crate) struct Spool {
    directory: Directory,
}

impl Spool {
    pub(crate) fn open(path: &Path) -> std::io::Result<Arc<Self>> {
        std::fs::create_dir_all(path)?;
        Ok(Arc::new(Self { directory: Directory::new(path) }))
    }

    pub(crate) async fn put(&self, sealed: &SealedLog) -> Result<(), StoreError> {
        self.directory.create(&sealed.name, sealed.bytes.clone()).await.map(drop)
    }

    pub(crate) async fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.directory.list("", None, 1).await?.is_empty())
    }

    /// Moves up to `limit` objects to the repository; says whether the spool is empty now.
    pub(crate) async fn drain(&self, repository: &Repository, limit: usize) -> Result<bool, RepositoryError> {
        for folder in FOLDERS {
            let listed = self.directory.list(folder, None, limit).await?;
            let is_partial = listed.len() == limit;
            for object in listed {
                let bytes: Bytes = self.directory.read(&object.name).await?;
                repository.put_log(&SealedLog { name: object.name.clone(), bytes }).await?;
                self.directory.delete(&object.name).await?;
            }
            if is_partial {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_format::codec::Compressor;
    use holdfast_repository::{Epoch, Lineage, LogRange, NewIdentity};
    use holdfast_types::{Micros, Segment, SegmentSize, SystemId, Timeline};

    use super::*;
    use crate::segment::LogSealer;

    /// One object of each kind that a receiver stores.
    fn everything(epoch: &Epoch) -> Vec<SealedLog> {
        let size = SegmentSize::DEFAULT;
        let lineage = Lineage { system_id: SystemId::new(7), segment_size: size };
        let segment = Segment::new(Timeline::FIRST, 1);
        let (start, middle) = (segment.start(size), segment.start(size).advance(8));
        let mut compressor = Compressor::new(1).unwrap();
        let mut whole = LogSealer::segment(epoch, "chat", lineage, segment);
        whole.push(&vec![0; size.get() as usize], &mut compressor);
        let range = LogRange { start, end: middle };
        let mut piece = LogSealer::piece(epoch, "chat", lineage, segment, range);
        piece.push(&[0; 8], &mut compressor);
        let map = holdfast_changes::ChangeMap::default().encode();
        vec![
            epoch.seal_history(Names::history("chat", lineage, Timeline::new(2)), b"1\t0/1000\tx\n").unwrap(),
            whole.finish(&mut compressor).unwrap(),
            piece.finish(&mut compressor).unwrap(),
            epoch.seal_changes("chat", lineage, Timeline::FIRST, range, &map, &mut compressor).unwrap(),
        ]
    }

    #[tokio::test]
    async fn whatever_is_put_in_comes_out() {
        let (root, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let recipients = vec![NewIdentity::generate(None).unwrap().recipient];
        let repository =
            Repository::init(Arc::new(Directory::new(root.path())), recipients, Micros::new(0)).await.unwrap();
        let epoch = repository.begin_epoch().await.unwrap();
        let spool = Spool::open(place.path()).unwrap();
        let sealed = everything(&epoch);
        for sealed in &sealed {
            spool.put(sealed).await.unwrap();
        }
        // A few at a time, as when the repository is back for moments only.
        let mut turns = 0;
        while !spool.drain(&repository, 1).await.unwrap() {
            turns += 1;
            assert!(turns < 20, "the spool never gets empty");
        }
        assert!(spool.is_empty().await.unwrap(), "something stayed in the spool");
        for SealedLog { name, bytes } in &sealed {
            assert_eq!(repository.store().read(name).await.unwrap(), bytes, "{name}");
        }
    }
}
