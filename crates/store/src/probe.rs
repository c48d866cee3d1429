//! Whether a place keeps the contract of [`Store`], as far as one can find out by trying: asked once, before the first object
//! of a repository is made there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::{Created, ObjectName, Store, StoreError};

/// Writers that want the same name at once.
const WRITERS: u8 = 4;
const BYTES: usize = 4096;

/// What was found out beside that the place will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// How far the store's clock is from the one given: ahead or behind, as far as a request takes.
    pub clock_skew: Duration,
}

/// The place will not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{location} overwrites objects: {winners} of {WRITERS} writers who created the same name on the condition that \
         there is none were told that they did"
    )]
    Unconditional { location: String, winners: usize },
    #[error("{location} does not give back what was stored: {what}")]
    Unfaithful { location: String, what: &'static str },
    #[error("a task of the probe ended unexpectedly")]
    Task,
}

/// Makes an object of this name and deletes it again.
pub async fn probe(store: &Arc<dyn Store>, name: &ObjectName, now: SystemTime) -> Result<Probed, ProbeError> {
    let outcome = try_out(store, name, now).await;
    // Also where it failed; what it is for is done then.
    match (outcome, store.delete(name).await) {
        (Ok(probed), deleted) => deleted.map(|()| probed).map_err(ProbeError::from),
        (outcome, _) => outcome,
    }
}

async fn try_out(store: &Arc<dyn Store>, name: &ObjectName, now: SystemTime) -> Result<Probed, ProbeError> {
    let location = store.location();
    let unfaithful = |what| ProbeError::Unfaithful { location: location.clone(), what };
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let (store, name) = (Arc::clone(store), name.clone());
        writers.spawn(async move { (number, store.create(&name, Bytes::from(vec![number; BYTES])).await) });
    }
    let mut winners = Vec::new();
    let mut failed = None;
    while let Some(done) = writers.join_next().await {
        match done.map_err(|_| ProbeError::Task)? {
            (number, Ok(Created::New)) => winners.push(number),
            (_, Ok(Created::Exists)) => {}
            // A service may tell those who come at the same time to try again.
            (_, Err(error)) => failed = Some(error),
        }
    }
    let winner = match (winners.as_slice(), failed) {
        ([winner], _) => *winner,
        ([], Some(error)) => return Err(error.into()),
        (winners, _) => return Err(ProbeError::Unconditional { location, winners: winners.len() }),
    };
    if store.create(name, Bytes::from(vec![WRITERS; BYTES])).await? == Created::New {
        return Err(ProbeError::Unconditional { location, winners: 2 });
    }
    if store.read(name).await? != vec![winner; BYTES] {
        return Err(unfaithful("it is not what the writer stored who was told that it is there"));
    }
    if store.read_range(name, 100..200).await? != vec![winner; 100] {
        return Err(unfaithful("a range of it is something else"));
    }
    let folder = name.as_str().rsplit_once('/').map_or("", |(folder, _)| folder);
    let listed = store.list(folder, None, 10).await?;
    let Some(listed) = listed.into_iter().find(|listed| listed.name == *name) else {
        return Err(unfaithful("it is not listed"));
    };
    if listed.size != BYTES as u64 {
        return Err(unfaithful("it is listed with another size"));
    }
    let skew = listed.modified.duration_since(now).or_else(|_| now.duration_since(listed.modified));
    Ok(Probed { clock_skew: skew.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use async_trait::async_trait;

    use super::*;
    use crate::{Directory, Listed};

    fn name() -> ObjectName {
        "probe/one".parse().unwrap()
    }

    #[tokio::test]
    async fn a_directory_will_do() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Directory::new(folder.path()));
        let probed = probe(&store, &name(), SystemTime::now()).await.unwrap();
        assert!(probed.clock_skew < Duration::from_mins(1), "{probed:?}");
        assert!(store.list("", None, 1).await.unwrap().is_empty());
    }

    /// As services do that do not know the condition.
    #[derive(Debug)]
    struct Overwriting(Directory);

    #[async_trait]
    impl Store for Overwriting {
        fn location(&self) -> String {
            self.0.location()
        }

        async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
            self.0.delete(name).await?;
            self.0.create(name, bytes).await
        }

        async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
            self.0.read(name).await
        }

        async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
            self.0.read_range(name, range).await
        }

        async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
            self.0.size(name).await
        }

        async fn list(
            &self,
            folder: &str,
            after: Option<&ObjectName>,
            limit: usize,
        ) -> Result<Vec<Listed>, StoreError> {
            self.0.list(folder, after, limit).await
        }

        async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
            self.0.folders(folder).await
        }

        async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
            self.0.delete(name).await
        }
    }

    #[tokio::test]
    async fn one_that_overwrites_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Overwriting(Directory::new(folder.path())));
        let error = probe(&store, &name(), SystemTime::now()).await.unwrap_err();
        assert!(matches!(error, ProbeError::Unconditional { .. }), "{error:?}");
        assert!(store.list("", None, 1).await.unwrap().is_empty());
    }
}
