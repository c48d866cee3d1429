//! What a backup builds on: an earlier snapshot, or full backups that were interrupted.

use std::collections::HashMap;

use holdfast_format::manifest::{DamagedPage, PackSize, SnapshotKind, Summary};
use holdfast_format::map::{Entry, EntryKind, FrameRef, Map, PackRef, Run};
use holdfast_format::unfinished::Part;
use holdfast_pgformat::{ControlFile, TimelineHistory};
use holdfast_postgres::server::ServerInfo;
use holdfast_repository::Keyring;
use holdfast_types::{Lsn, Micros, PackId};

use crate::BackupError;
use crate::changes;

/// A frame of the base: which of its maps, and which frame there.
pub(crate) type BaseFrame = (u32, u32);

/// The files of an earlier snapshot, and where their bytes are.
#[derive(Debug)]
pub(crate) struct Base {
    /// Of the snapshot; or of what the newest of the interrupted backups would have been.
    pub summary: Summary,
    /// Whether the files are those of backups that were interrupted.
    pub is_unfinished: bool,
    pub damage: Vec<DamagedPage>,
    maps: Vec<Map>,
    /// Map and entry by path.
    entries: HashMap<Vec<u8>, (u32, u32)>,
    packs: HashMap<PackId, u64>,
}

impl Base {
    /// The snapshot that begins last among those that one of this kind can build on; or why there is none. Before the
    /// backup has begun, where it begins is not known.
    pub(crate) async fn find(
        keyring: &Keyring,
        source: &str,
        kind: SnapshotKind,
        info: &ServerInfo,
        begin: Option<(&TimelineHistory, Lsn)>,
    ) -> Result<Result<Self, String>, BackupError> {
        let mut refusal = None;
        // What is about to be removed will not be there when this backup is done.
        let doomed = keyring.repository().doomed().await?;
        let entries = keyring.repository().snapshots(source).await?;
        // A damaged one is for `verify` to report; what is built on an older one is none the worse.
        let mut summaries: Vec<_> = entries.into_iter().filter_map(|entry| entry.summary.ok()).collect();
        // Not in the order in which they were taken: one from a standby that lags begins early.
        summaries.sort_by_key(|summary| (summary.timeline, summary.start_lsn, summary.stopped_at));
        for summary in summaries.into_iter().rev() {
            if kind == SnapshotKind::Differential && summary.kind != SnapshotKind::Full {
                continue;
            }
            let unfit = doomed
                .has_snapshot(source, &summary.id)
                .then(|| format!("snapshot {} is about to be removed", summary.id))
                .or_else(|| Self::unfit(&summary, info))
                .or_else(|| begin.and_then(|(history, begin)| changes::unfit(&summary, history, begin)));
            match unfit {
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
        let mut base = Self::new(manifest.summary, false);
        base.damage = manifest.damage;
        for reference in &manifest.maps {
            base.add(keyring.map(reference.id).await?, &manifest.packs);
        }
        Ok(Ok(base))
    }

    /// What full backups that were interrupted have stored since the last one that was not; `None` if there is nothing.
    pub(crate) async fn unfinished(
        keyring: &Keyring,
        source: &str,
        info: &ServerInfo,
    ) -> Result<Option<Self>, BackupError> {
        let parts = keyring.unfinished(source).await?;
        if parts.is_empty() {
            return Ok(None);
        }
        let snapshots = keyring.repository().snapshots(source).await?;
        let fulls = snapshots.into_iter().filter_map(|entry| entry.summary.ok());
        let last = fulls.filter(|full| full.kind == SnapshotKind::Full).map(|full| full.started_at).max();
        let same = |part: &Part| {
            part.system_id == info.system_id
                && part.server_version / 10_000 == info.version.0 / 10_000
                && part.checksums == info.data_checksums
        };
        let usable = usable(parts.into_iter().filter(same), last);
        let Some(summary) = united(&usable) else { return Ok(None) };
        let mut base = Self::new(summary, true);
        for part in &usable {
            match keyring.map(part.map.id).await {
                Ok(map) => base.add(map, &part.packs),
                // Its files are read again.
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "part of an interrupted backup is not used");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(base))
    }

    fn new(summary: Summary, is_unfinished: bool) -> Self {
        Self {
            summary,
            is_unfinished,
            damage: Vec::new(),
            maps: Vec::new(),
            entries: HashMap::new(),
            packs: HashMap::new(),
        }
    }

    /// Of a file that is there twice the one that is added last counts.
    fn add(&mut self, map: Map, packs: &[PackSize]) {
        for (number, entry) in map.entries.iter().enumerate() {
            self.entries.insert(entry.path.clone(), (self.maps.len() as u32, number as u32));
        }
        self.maps.push(map);
        self.packs.extend(packs.iter().map(|pack| (pack.id, pack.bytes)));
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

    /// Every file with its size, in no order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.entries.keys().filter_map(|path| Some((path.as_slice(), self.file(path)?.0)))
    }

    pub(crate) fn frame(&self, (map, frame): BaseFrame) -> Option<(PackRef, FrameRef)> {
        let map = self.maps.get(map as usize)?;
        let frame = *map.frames.get(frame as usize)?;
        Some((*map.packs.get(frame.pack as usize)?, frame))
    }

    /// Every pack that its maps refer to.
    pub(crate) fn packs(&self) -> Vec<PackSize> {
        self.packs.iter().map(|(id, bytes)| PackSize { id: *id, bytes: *bytes }).collect()
    }

    pub(crate) fn pack_bytes(&self, pack: PackId) -> Option<u64> {
        self.packs.get(&pack).copied()
    }
}

/// Those of the newest timeline that there are any of, begun after the last full backup; the oldest first.
fn usable(parts: impl Iterator<Item = Part>, last_full: Option<Micros>) -> Vec<Part> {
    let mut usable: Vec<Part> = parts.filter(|part| last_full.is_none_or(|last| part.started_at > last)).collect();
    usable.sort_by_key(|part| (part.timeline, part.started_at));
    let newest = usable.last().map(|part| part.timeline);
    usable.retain(|part| Some(part.timeline) == newest);
    usable
}

/// What several interrupted backups would have been as one: all of their log counts.
fn united(parts: &[Part]) -> Option<Summary> {
    let newest = parts.last()?;
    Some(Summary {
        id: newest.id.clone(),
        source: newest.source.clone(),
        kind: SnapshotKind::Full,
        base: None,
        server_version: newest.server_version,
        system_id: newest.system_id,
        timeline: newest.timeline,
        start_lsn: parts.iter().map(|part| part.start_lsn).min()?,
        stop_lsn: parts.iter().map(|part| part.read_lsn).max()?,
        segment_size: newest.segment_size,
        started_at: newest.started_at,
        stopped_at: newest.started_at,
        from_standby: parts.iter().any(|part| part.from_standby),
        bytes: 0,
        files: 0,
        read_bytes: None,
        stored_bytes: 0,
        damaged_pages: 0,
        made_by: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use holdfast_format::manifest::MapRef;
    use holdfast_types::{SegmentSize, SnapshotId, SystemId, Timeline};

    use super::*;

    fn part(timeline: u32, started_at: i64) -> Part {
        Part {
            id: SnapshotId::new("20261121T120000Z", [7; 4]).unwrap(),
            source: "chat".to_owned(),
            server_version: 180_001,
            system_id: SystemId::new(7),
            timeline: Timeline::new(timeline),
            segment_size: SegmentSize::DEFAULT,
            start_lsn: Lsn::new(100),
            read_lsn: Lsn::new(200),
            started_at: Micros::new(started_at),
            from_standby: false,
            checksums: true,
            map: MapRef { id: PackId::new([0; 32]), bytes: 0, entries: 0 },
            packs: Vec::new(),
        }
    }

    fn chosen(parts: &[(u32, i64)], last_full: Option<i64>) -> Vec<(u32, i64)> {
        let parts = parts.iter().map(|(timeline, at)| part(*timeline, *at));
        let usable = usable(parts, last_full.map(Micros::new));
        usable.iter().map(|part| (part.timeline.get(), part.started_at.get())).collect()
    }

    #[test]
    fn the_files_of_the_newest_attempt_count() {
        assert_eq!(chosen(&[(1, 30), (1, 10), (1, 20)], None), [(1, 10), (1, 20), (1, 30)]);
    }

    #[test]
    fn what_a_full_backup_has_overtaken_is_not_used() {
        assert_eq!(chosen(&[(1, 10), (1, 20), (1, 30)], Some(20)), [(1, 30)]);
        assert_eq!(chosen(&[(1, 10)], Some(20)), []);
    }

    #[test]
    fn timelines_are_not_mixed() {
        assert_eq!(chosen(&[(1, 10), (2, 20), (1, 30)], None), [(2, 20)]);
    }
}
