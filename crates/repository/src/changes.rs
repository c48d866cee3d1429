//! Change maps: which pages changed in a stretch of log. The repository keeps them without understanding them.
//!
//! They save work and prove nothing: a stretch without one is read from the log itself.

use holdfast_format::ObjectKind;
use holdfast_format::codec::{Compressor, Decompressor};
use holdfast_format::wal::LogSummary;
use holdfast_store::ObjectName;
use holdfast_types::Timeline;

use crate::{Epoch, Keyring, Lineage, LogRange, Names, Repository, RepositoryError, SealedLog};

/// A change map in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredChanges {
    pub name: ObjectName,
    /// From the start of one record to the end of another.
    pub range: LogRange,
}

impl Repository {
    /// The change maps of a timeline, in the order of their starts.
    pub async fn change_maps(
        &self,
        source: &str,
        lineage: Lineage,
        timeline: Timeline,
    ) -> Result<Vec<StoredChanges>, RepositoryError> {
        let listed = self.list(&Names::timeline_changes(source, lineage, timeline)).await?;
        let stored = listed.into_iter().filter_map(|listed| {
            let (start, end) = Names::parse_range(listed.name.file_name())?;
            Some(StoredChanges { range: LogRange { start, end }, name: listed.name })
        });
        Ok(stored.collect())
    }

    /// Removes change maps that another one has taken in.
    pub async fn drop_changes(&self, merged: &[StoredChanges]) -> Result<(), RepositoryError> {
        for changes in merged {
            self.store().delete(&changes.name).await?;
        }
        Ok(())
    }
}

impl Epoch {
    /// Seals a change map, to be stored as log is.
    pub fn seal_changes(
        &self,
        source: &str,
        lineage: Lineage,
        timeline: Timeline,
        range: LogRange,
        plain: &[u8],
        compressor: &mut Compressor,
    ) -> Result<SealedLog, RepositoryError> {
        let name = Names::changes(source, lineage, timeline, range.start, range.end);
        let summary = LogSummary { start: range.start, end: range.end, digest: None };
        let public = serde_json::to_vec(&summary).map_err(|error| RepositoryError::content(&name, error))?;
        let mut writer = self.log_writer(ObjectKind::ChangeMap, &name, plain.len());
        for part in plain.chunks(1 << 20) {
            writer.push(part, compressor);
        }
        Ok(SealedLog { bytes: writer.finish(&public).bytes.into(), name })
    }
}

impl Keyring {
    /// The plain bytes of a change map.
    pub async fn changes(&self, stored: &StoredChanges) -> Result<Vec<u8>, RepositoryError> {
        let mut object = self.open(ObjectKind::ChangeMap, &stored.name).await?;
        object.concat(&mut Decompressor::new()).map_err(|source| RepositoryError::object(&stored.name, source))
    }
}
