//! Proving that what a backup will take from its base is there.
//!
//! A snapshot that names a pack which is not in the repository cannot be restored, and nothing but `verify` would tell.
//! So every pack of the base is looked for while the server makes its checkpoint, which takes longer.

use holdfast_repository::{MissingPack, Repository, RepositoryError};
use holdfast_types::SnapshotId;
use tokio::task::JoinHandle;

use crate::BackupError;
use crate::base::Base;

/// More are counted, not named.
const NAMED: usize = 10;

/// Looks for the packs of a base in the background.
#[derive(Debug)]
pub(crate) struct PackCheck {
    base: SnapshotId,
    task: JoinHandle<Result<Vec<MissingPack>, RepositoryError>>,
}

impl PackCheck {
    pub(crate) fn begin(repository: &Repository, base: &Base) -> Self {
        let (repository, packs) = (repository.clone(), base.packs());
        let task = tokio::spawn(async move { repository.missing_packs(&packs).await });
        Self { base: base.summary.id.clone(), task }
    }

    pub(crate) fn is_of(&self, base: &Base) -> bool {
        self.base == base.summary.id
    }

    /// What is not there, one sentence each.
    pub(crate) async fn incidents(mut self) -> Result<Vec<String>, BackupError> {
        let missing = (&mut self.task).await.map_err(|_| BackupError::Worker)??;
        Ok(incidents(&self.base, &missing))
    }
}

impl Drop for PackCheck {
    /// Of no use to a backup that has ended, or that builds on nothing after all.
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn incidents(base: &SnapshotId, missing: &[MissingPack]) -> Vec<String> {
    let mut incidents: Vec<String> =
        missing.iter().take(NAMED).map(|pack| format!("what snapshot {base} needs is damaged: {pack}")).collect();
    if missing.len() > NAMED {
        incidents.push(format!("and {} more packs that snapshot {base} needs", missing.len() - NAMED));
    }
    incidents
}

#[cfg(test)]
mod tests {
    use holdfast_repository::Names;
    use holdfast_types::PackId;

    use super::*;

    #[test]
    fn not_everything_is_named() {
        let base = SnapshotId::new("20260101T000000Z", [0; 4]).unwrap();
        let pack = |number| MissingPack { name: Names::pack(PackId::new([number; 32])), found: None, expected: 1 };
        let missing: Vec<_> = (0..12).map(pack).collect();
        assert_eq!(incidents(&base, &missing[..10]).len(), 10);
        let said = incidents(&base, &missing);
        assert_eq!((said.len(), said[10].starts_with("and 2 more packs")), (11, true), "{said:?}");
    }
}
