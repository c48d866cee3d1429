//! What a full backup has stored before it is done, so that another one can go on with it if it is interrupted.
//!
//! A help for writers only: no snapshot depends on these objects, but one may use the packs that they name.

use holdfast_format::ObjectKind;
use holdfast_format::codec::{Compressor, Decompressor};
use holdfast_format::unfinished::Part;
use holdfast_types::SnapshotId;

use crate::{Epoch, Keyring, Names, Repository, RepositoryError};

impl Epoch {
    /// Stores a part under its number, after all that it names is durable.
    pub async fn put_unfinished(&self, part: &Part, number: u32) -> Result<(), RepositoryError> {
        let name = Names::unfinished(&part.source, &part.id, number);
        let plain = serde_json::to_vec(part).map_err(|error| RepositoryError::content(&name, error))?;
        let mut writer = self.log_writer(ObjectKind::Unfinished, &name, plain.len());
        let mut compressor = Compressor::new(3).map_err(|error| RepositoryError::content(&name, error))?;
        writer.push(&plain, &mut compressor);
        self.repository().create(&name, writer.finish(b"{}").bytes.into()).await.map(drop)
    }
}

impl Keyring {
    /// The parts of the unfinished backups of a source, oldest first. What cannot be read is left out.
    pub async fn unfinished(&self, source: &str) -> Result<Vec<Part>, RepositoryError> {
        let mut parts = Vec::new();
        for listed in self.repository().list(&Names::unfinished_of(source)).await? {
            let part = match self.open(ObjectKind::Unfinished, &listed.name).await {
                Ok(mut object) => object.concat(&mut Decompressor::new()).map_err(|error| error.to_string()),
                Err(error) if error.is_not_found() => continue,
                Err(error) if error.is_damage() => Err(error.to_string()),
                Err(error) => return Err(error),
            };
            match part.and_then(|plain| serde_json::from_slice::<Part>(&plain).map_err(|error| error.to_string())) {
                Ok(part) if part.source == source => parts.push(part),
                Ok(_) => {
                    tracing::warn!(name = %listed.name, "an unfinished backup is not of the source that its name says");
                }
                Err(problem) => {
                    tracing::warn!(name = %listed.name, problem, "part of an unfinished backup is not used");
                }
            }
        }
        Ok(parts)
    }
}

impl Repository {
    /// Removes what a finished backup has made useless: its own parts, and those of earlier ones.
    pub async fn drop_unfinished(&self, source: &str, finished: &SnapshotId) -> Result<(), RepositoryError> {
        for listed in self.list(&Names::unfinished_of(source)).await? {
            let snapshot = listed.name.as_str().rsplit('/').nth(1).unwrap_or_default();
            // Names begin with the second in which the backup began.
            if snapshot <= finished.as_str() {
                self.store().delete(&listed.name).await?;
            }
        }
        Ok(())
    }
}
