//! Where log goes while the repository is away: sealed objects under their own names in a local directory.
//!
//! *Crash.* What is in the spool when a receiver dies is moved to the repository by the next one, before it asks the
//! server for anything: also if that server is gone.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_repository::{Names, Repository, RepositoryError, SealedLog};
use holdfast_store::{Directory, Store as _, StoreError};

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
        // Whole segments before pieces: the pieces of a segment that is whole need not travel.
        for folder in [Names::HISTORY, Names::WAL, Names::PIECES] {
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
