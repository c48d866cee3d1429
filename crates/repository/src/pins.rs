//! Pins: that a snapshot is to be kept, whatever the retention says. A legal hold is one without an end.

use std::collections::HashMap;

use bytes::Bytes;
use holdfast_store::Created;
use holdfast_types::{Micros, SnapshotId};
use serde::{Deserialize, Serialize};

use crate::{Names, Repository, RepositoryError};

/// Why a snapshot is kept, and until when. Not sealed, so that it can be read wherever expiry runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub why: String,
    /// `None`: until it is taken away.
    pub until: Option<Micros>,
    pub at: Micros,
}

impl Repository {
    /// Keeps a snapshot. A later pin replaces an earlier one. Says whether it was named for removal before: then a run of expiry that
    /// goes on at this moment may have decided already.
    pub async fn pin(&self, source: &str, id: &SnapshotId, pin: &Pin) -> Result<bool, RepositoryError> {
        // It must be there, and is not while somebody removes it.
        let manifest = Names::snapshot(source, id);
        self.store.size(&manifest).await?;
        let newest = self.generations(source, id).await?.into_iter().max().unwrap_or(0);
        let name = Names::pin(source, id, newest + 1);
        let bytes = serde_json::to_vec(pin).map_err(|error| RepositoryError::content(&name, error))?;
        if self.create(&name, Bytes::from(bytes)).await? == Created::Exists {
            return Err(RepositoryError::Conflict { name: name.to_string() });
        }
        self.store.size(&manifest).await?;
        Ok(self.doomed().await?.has_snapshot(source, id))
    }

    /// Takes all pins of a snapshot away. Says whether there were any.
    pub async fn unpin(&self, source: &str, id: &SnapshotId) -> Result<bool, RepositoryError> {
        let generations = self.generations(source, id).await?;
        for generation in &generations {
            self.delete(&Names::pin(source, id, *generation)).await?;
        }
        Ok(!generations.is_empty())
    }

    /// The pins of a source's snapshots. One that cannot be read holds for ever: somebody wanted something to be kept.
    pub async fn pins(&self, source: &str) -> Result<HashMap<SnapshotId, Pin>, RepositoryError> {
        let mut pins = HashMap::new();
        for listed in self.list(&Names::pins_of(source)).await? {
            let Some(Ok(id)) = listed.name.as_str().rsplit('/').nth(1).map(str::parse) else { continue };
            let bytes = match self.read(&listed.name).await {
                // Taken away since it was listed.
                Err(error) if error.is_not_found() => continue,
                bytes => bytes?,
            };
            let pin = serde_json::from_slice(&bytes).unwrap_or_else(|error| Pin {
                why: format!("its pin cannot be read: {error}"),
                until: None,
                at: Micros::new(0),
            });
            // In the order of generations: the newest holds.
            pins.insert(id, pin);
        }
        Ok(pins)
    }

    async fn generations(&self, source: &str, id: &SnapshotId) -> Result<Vec<u32>, RepositoryError> {
        let listed = self.list(&format!("{}/{id}", Names::pins_of(source))).await?;
        Ok(listed.iter().filter_map(|listed| listed.name.file_name().parse().ok()).collect())
    }
}
