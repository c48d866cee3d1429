//! The snapshot that an incremental or differential backup builds on.

use std::collections::HashMap;

use holdfast_format::manifest::{Manifest, SnapshotKind, Summary};
use holdfast_format::map::{Entry, EntryKind, FrameRef, Map, PackRef, Run};
use holdfast_pgformat::ControlFile;
use holdfast_postgres::server::ServerInfo;
use holdfast_repository::Keyring;
use holdfast_types::PackId;

use crate::BackupError;

/// A frame of the base: which of its maps, and which frame there.
pub(crate) type BaseFrame = (u32, u32);

/// The files of an earlier snapshot, and where their bytes are.
#[derive(Debug)]
pub(crate) struct Base {
    pub manifest: Manifest,
    maps: Vec<Map>,
    /// Map and entry by path.
    entries: HashMap<Vec<u8>, (u32, u32)>,
    packs: HashMap<PackId, u64>,
}

impl Base {
    /// The newest snapshot that one of this kind can build on; or why there is none.
    pub(crate) async fn find(
        keyring: &Keyring,
        source: &str,
        kind: SnapshotKind,
        info: &ServerInfo,
    ) -> Result<Result<Self, String>, BackupError> {
        let mut refusal = None;
        for entry in keyring.repository().snapshots(source).await?.into_iter().rev() {
            // A damaged one is for `verify` to report; what is built on an older one is none the worse.
            let Ok(summary) = entry.summary else { continue };
            if kind == SnapshotKind::Differential && summary.kind != SnapshotKind::Full {
                continue;
            }
            match Self::unfit(&summary, info) {
                Some(why) => drop(refusal.get_or_insert(why)),
                None => return Self::load(keyring, &summary, info).await,
            }
        }
        let wanted = if kind == SnapshotKind::Differential { "full snapshot" } else { "snapshot" };
        Ok(Err(refusal.unwrap_or_else(|| format!("there is no {wanted} of `{source}` yet"))))
    }

    fn unfit(summary: &Summary, info: &ServerInfo) -> Option<String> {
        let id = &summary.id;
        if summary.system_id != info.system_id {
            return Some(format!("snapshot {id} is of another cluster"));
        }
        if summary.server_version / 10_000 != info.version.0 / 10_000 {
            return Some(format!("snapshot {id} is of another major version"));
        }
        None
    }

    async fn load(
        keyring: &Keyring,
        summary: &Summary,
        info: &ServerInfo,
    ) -> Result<Result<Self, String>, BackupError> {
        let manifest = keyring.snapshot(&summary.source, &summary.id).await?.manifest;
        let had_checksums =
            ControlFile::parse(&manifest.pg_control).is_ok_and(|control| control.data_checksum_version != 0);
        if had_checksums != info.data_checksums {
            // `pg_checksums` writes every page, and the log says nothing of it.
            return Ok(Err(format!("checksums were switched since snapshot {}", summary.id)));
        }
        let mut maps = Vec::new();
        let mut entries = HashMap::new();
        for reference in &manifest.maps {
            let map = keyring.map(reference.id).await?;
            for (number, entry) in map.entries.iter().enumerate() {
                entries.insert(entry.path.clone(), (maps.len() as u32, number as u32));
            }
            maps.push(map);
        }
        let packs = manifest.packs.iter().map(|pack| (pack.id, pack.bytes)).collect();
        Ok(Ok(Self { manifest, maps, entries, packs }))
    }

    /// A file's size and runs, and the number of the map whose frames they count.
    pub(crate) fn file(&self, path: &[u8]) -> Option<(u64, &[Run], u32)> {
        let (map, entry) = *self.entries.get(path)?;
        let Entry { kind: EntryKind::File { size, runs }, .. } =
            self.maps.get(map as usize)?.entries.get(entry as usize)?
        else {
            return None;
        };
        Some((*size, runs, map))
    }

    pub(crate) fn frame(&self, (map, frame): BaseFrame) -> Option<(PackRef, FrameRef)> {
        let map = self.maps.get(map as usize)?;
        let frame = *map.frames.get(frame as usize)?;
        Some((*map.packs.get(frame.pack as usize)?, frame))
    }

    pub(crate) fn pack_bytes(&self, pack: PackId) -> Option<u64> {
        self.packs.get(&pack).copied()
    }
}
