//! Which snapshots there are.

use std::time::SystemTime;

use holdfast_format::ObjectKind;
use holdfast_format::codec::Decompressor;
use holdfast_format::manifest::{Manifest, Summary};
use holdfast_format::object::{TAIL_BYTES, Tail, public_part};
use holdfast_store::ObjectName;
use holdfast_types::SnapshotId;

use crate::{Keyring, Names, Repository, RepositoryError};

/// A snapshot as a listing shows it; its summary is not authenticated.
#[derive(Debug)]
pub struct SnapshotEntry {
    pub name: ObjectName,
    /// When its manifest was made, by the store's clock.
    pub stored_at: SystemTime,
    /// An error where the manifest is damaged: it must show in lists, not vanish from them.
    pub summary: Result<Summary, RepositoryError>,
}

/// A snapshot whose manifest was opened.
#[derive(Clone, Debug)]
pub struct StoredSnapshot {
    pub manifest: Manifest,
}

impl Repository {
    /// The sources that have snapshots.
    pub async fn sources(&self) -> Result<Vec<String>, RepositoryError> {
        let (snapshots, wal, pieces) =
            (self.folders(Names::SNAPSHOTS), self.folders(Names::WAL), self.folders(Names::PIECES));
        let (mut sources, wal, pieces) = tokio::try_join!(snapshots, wal, pieces)?;
        sources.extend(wal.into_iter().chain(pieces));
        sources.sort();
        sources.dedup();
        Ok(sources)
    }

    /// The snapshots of a source, oldest first, by their public parts: no key is needed.
    pub async fn snapshots(&self, source: &str) -> Result<Vec<SnapshotEntry>, RepositoryError> {
        let mut entries = Vec::new();
        for listed in self.list(&Names::snapshots_of(source)).await? {
            let summary = self.public::<Summary>(&listed.name, listed.size).await.and_then(|summary| {
                if Names::snapshot(source, &summary.id) == listed.name && summary.source == source {
                    Ok(summary)
                } else {
                    Err(RepositoryError::content(&listed.name, "it describes another snapshot than its name"))
                }
            });
            entries.push(SnapshotEntry { name: listed.name, stored_at: listed.modified, summary });
        }
        // Names tell the second only. What cannot be read stays where its name puts it.
        entries.sort_by_cached_key(|entry| {
            let stamp = entry.name.file_name().split('-').next().unwrap_or_default().to_owned();
            (stamp, entry.summary.as_ref().map_or(0, |summary| summary.started_at.get()))
        });
        Ok(entries)
    }

    /// The public part of an object, read from its end.
    pub(crate) async fn public<T: serde::de::DeserializeOwned>(
        &self,
        name: &ObjectName,
        size: u64,
    ) -> Result<T, RepositoryError> {
        // One read mostly brings it all: public parts are short.
        const GUESS: u64 = 4096;
        let broken = |source| RepositoryError::object(name, source);
        if size < TAIL_BYTES as u64 {
            return Err(broken(holdfast_format::object::OpenError::Damaged));
        }
        let mut end = self.read_range(name, size.saturating_sub(GUESS)..size).await?;
        let needed = u64::from(Tail::decode(&end).map_err(broken)?.public_len) + TAIL_BYTES as u64;
        if needed > end.len() as u64 && needed <= size {
            end = self.read_range(name, size - needed..size).await?;
        }
        let public = public_part(&end).map_err(broken)?;
        serde_json::from_slice(public).map_err(|error| RepositoryError::content(name, error))
    }
}

impl Keyring {
    /// Opens a manifest. What it says is authentic.
    pub async fn snapshot(&self, source: &str, id: &SnapshotId) -> Result<StoredSnapshot, RepositoryError> {
        let name = Names::snapshot(source, id);
        let mut object = self.open(ObjectKind::Manifest, &name).await?;
        let plain = object.concat(&mut Decompressor::new()).map_err(|source| RepositoryError::object(&name, source))?;
        let manifest: Manifest =
            serde_json::from_slice(&plain).map_err(|error| RepositoryError::content(&name, error))?;
        let public: Summary =
            serde_json::from_slice(object.public()).map_err(|error| RepositoryError::content(&name, error))?;
        if public != manifest.summary || public.id != *id || public.source != source {
            return Err(RepositoryError::content(&name, "its public part does not match its sealed part"));
        }
        Ok(StoredSnapshot { manifest })
    }
}
