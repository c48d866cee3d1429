//! Whether packs are there, without reading them.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_format::manifest::PackSize;
use holdfast_runtime::{Backoff, retry};
use holdfast_store::{ObjectName, StoreError};
use holdfast_types::PackId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{Names, Repository, RepositoryError};

/// Up to so many packs are asked for one by one, so that few packs cost little in a repository of many sources. For more,
/// listing them all takes fewer requests: a listing brings hundreds at once.
const ONE_BY_ONE: usize = 256;
/// Requests under way at once.
const PARALLEL: usize = 16;

/// A pack that is not what a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingPack {
    pub name: ObjectName,
    /// Its bytes in the store; `None` if it is not there.
    pub found: Option<u64>,
    pub expected: u64,
}

impl std::fmt::Display for MissingPack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, found, expected } = self;
        match found {
            None => write!(f, "`{name}` is missing"),
            Some(found) => write!(f, "`{name}` has {found} bytes, {expected} are expected"),
        }
    }
}

impl Repository {
    /// The packs that are missing or have another size; in the order given.
    pub async fn missing_packs(&self, packs: &[PackSize]) -> Result<Vec<MissingPack>, RepositoryError> {
        let found = if packs.len() <= ONE_BY_ONE { self.sizes(packs).await? } else { self.listed_sizes().await? };
        let missing = packs.iter().filter_map(|PackSize { id, bytes }| {
            let found = found.get(id).copied();
            (found != Some(*bytes)).then(|| MissingPack { name: Names::pack(*id), found, expected: *bytes })
        });
        Ok(missing.collect())
    }

    async fn sizes(&self, packs: &[PackSize]) -> Result<HashMap<PackId, u64>, RepositoryError> {
        let gate = Arc::new(Semaphore::new(PARALLEL));
        let mut tasks = JoinSet::new();
        for PackSize { id, .. } in packs {
            let (repository, gate, id) = (self.clone(), Arc::clone(&gate), *id);
            tasks.spawn(async move {
                let _permit = gate.acquire_owned().await;
                let name = Names::pack(id);
                let size = || repository.store.size(&name);
                (id, retry(Backoff::SHORT, &repository.cancel, StoreError::is_retryable, size).await)
            });
        }
        let mut sizes = HashMap::new();
        while let Some(finished) = tasks.join_next().await {
            // A panic is a pack that nobody has seen.
            let Ok((id, size)) = finished else { continue };
            match size {
                Err(error) if error.is_not_found() => {}
                size => drop(sizes.insert(id, size?)),
            }
        }
        Ok(sizes)
    }

    async fn listed_sizes(&self) -> Result<HashMap<PackId, u64>, RepositoryError> {
        let listed = self.list(Names::PACKS).await?;
        Ok(listed.into_iter().filter_map(|pack| Some((pack.name.file_name().parse().ok()?, pack.size))).collect())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holdfast_store::Directory;
    use holdfast_types::Micros;

    use super::*;
    use crate::NewIdentity;

    #[tokio::test]
    async fn what_is_missing_or_short_is_named_however_it_is_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let identity = NewIdentity::generate(None).unwrap();
        let store = Arc::new(Directory::new(root.path()));
        let repository = Repository::init(store, vec![identity.recipient], Micros::new(0)).await.unwrap();
        let pack = |number: u16| {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&number.to_be_bytes());
            PackSize { id: PackId::new(id), bytes: 10 }
        };
        for packs in [ONE_BY_ONE, ONE_BY_ONE + 1] {
            let packs: Vec<_> = (0..packs as u16).map(pack).collect();
            for PackSize { id, .. } in &packs[..packs.len() - 2] {
                repository.create(&Names::pack(*id), Bytes::from(vec![0; 10])).await.unwrap();
            }
            let [short, gone] = &packs[packs.len() - 2..] else { unreachable!() };
            repository.create(&Names::pack(short.id), Bytes::from(vec![0; 9])).await.unwrap();
            let missing = repository.missing_packs(&packs).await.unwrap();
            let said: Vec<_> = missing.iter().map(ToString::to_string).collect();
            let (short, gone) = (Names::pack(short.id), Names::pack(gone.id));
            assert_eq!(said, [format!("`{short}` has 9 bytes, 10 are expected"), format!("`{gone}` is missing")]);
            for name in [short, gone] {
                repository.store().delete(&name).await.unwrap();
            }
        }
    }
}
