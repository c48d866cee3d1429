//! What objects are called. `docs/format.md` has the same as a table.

use holdfast_store::ObjectName;
use holdfast_types::{EpochId, Lsn, PackId, RepositoryId, Segment, SnapshotId, Timeline};

use crate::Lineage;

/// Makes and reads the names of objects.
#[derive(Debug, Clone, Copy)]
pub struct Names;

fn name(text: String) -> ObjectName {
    ObjectName::new(text).expect("names are made of ids and of source names, whose letters are checked")
}

impl Names {
    pub const CONFIG: &str = "config";
    pub const KEYS: &str = "keys";
    pub const PACKS: &str = "packs";
    pub const MAPS: &str = "maps";
    pub const SNAPSHOTS: &str = "snapshots";
    pub const WAL: &str = "wal";
    pub const PIECES: &str = "pieces";
    pub const HISTORY: &str = "history";
    pub const PARTIAL: &str = "partial";
    pub const CHANGES: &str = "changes";
    pub const UNFINISHED: &str = "unfinished";
    pub const EXPIRED: &str = "expired";
    pub const PINS: &str = "pins";
    pub const PROVED: &str = "proved";
    pub(crate) const PROBE: &str = "probe";

    /// Whether a source may be called so: its name becomes part of the names of its objects.
    pub fn is_source_name(source: &str) -> bool {
        !source.is_empty()
            && source.len() <= 63
            && !source.starts_with(['.', '-'])
            && source.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    }

    /// What is made and deleted to see what a store does.
    pub(crate) fn probe(id: RepositoryId) -> ObjectName {
        name(format!("{}/{id}", Self::PROBE))
    }

    pub(crate) fn proved(id: RepositoryId) -> ObjectName {
        name(format!("{}/{id}", Self::PROVED))
    }

    pub fn config(generation: u32) -> ObjectName {
        name(format!("{}/{generation:08}.json", Self::CONFIG))
    }

    pub fn key(epoch: EpochId, generation: u32) -> ObjectName {
        name(format!("{}/{epoch}/{generation:08}.age", Self::KEYS))
    }

    pub fn keys_of(epoch: EpochId) -> String {
        format!("{}/{epoch}", Self::KEYS)
    }

    // Two digits of the hash spread the objects over 256 folders.
    fn hashed(folder: &str, id: PackId) -> ObjectName {
        let id = id.to_string();
        let (spread, _) = id.split_at(2);
        name(format!("{folder}/{spread}/{id}"))
    }

    pub fn pack(id: PackId) -> ObjectName {
        Self::hashed(Self::PACKS, id)
    }

    pub fn map(id: PackId) -> ObjectName {
        Self::hashed(Self::MAPS, id)
    }

    pub fn snapshots_of(source: &str) -> String {
        format!("{}/{source}", Self::SNAPSHOTS)
    }

    pub fn snapshot(source: &str, id: &SnapshotId) -> ObjectName {
        name(format!("{}/{source}/{id}", Self::SNAPSHOTS))
    }

    pub fn unfinished_of(source: &str) -> String {
        format!("{}/{source}", Self::UNFINISHED)
    }

    /// Part of a backup that is not done.
    pub fn unfinished(source: &str, id: &SnapshotId, number: u32) -> ObjectName {
        name(format!("{}/{id}/{number:08}", Self::unfinished_of(source)))
    }

    /// What is to be removed.
    pub fn expired(generation: u32) -> ObjectName {
        name(format!("{}/{generation:08}", Self::EXPIRED))
    }

    pub fn pins_of(source: &str) -> String {
        format!("{}/{source}", Self::PINS)
    }

    /// That a snapshot is to be kept.
    pub fn pin(source: &str, id: &SnapshotId, generation: u32) -> ObjectName {
        name(format!("{}/{id}/{generation:08}", Self::pins_of(source)))
    }

    pub fn timeline_segments(source: &str, lineage: Lineage, timeline: Timeline) -> String {
        format!("{}/{source}/{lineage}/{:08X}", Self::WAL, timeline.get())
    }

    /// The second eight digits of the segment's name are a folder, as 256 segments of 16 MiB share them.
    pub fn segment(source: &str, lineage: Lineage, segment: Segment) -> ObjectName {
        let file = segment.file_name(lineage.segment_size);
        let log = file.get(8..16).unwrap_or_default();
        name(format!("{}/{log}/{file}", Self::timeline_segments(source, lineage, segment.timeline())))
    }

    pub fn timeline_pieces(source: &str, lineage: Lineage, timeline: Timeline) -> String {
        format!("{}/{source}/{lineage}/{:08X}", Self::PIECES, timeline.get())
    }

    pub fn segment_pieces(source: &str, lineage: Lineage, segment: Segment) -> String {
        let file = segment.file_name(lineage.segment_size);
        format!("{}/{file}", Self::timeline_pieces(source, lineage, segment.timeline()))
    }

    pub fn piece(source: &str, lineage: Lineage, segment: Segment, start: Lsn, end: Lsn) -> ObjectName {
        let folder = Self::segment_pieces(source, lineage, segment);
        name(format!("{folder}/{:016X}-{:016X}", start.get(), end.get()))
    }

    /// The range that the last part of the name of a piece or change map gives.
    pub fn parse_range(file_name: &str) -> Option<(Lsn, Lsn)> {
        let (start, end) = file_name.split_once('-')?;
        let lsn = |digits: &str| {
            (digits.len() == 16 && !digits.contains(|c: char| c.is_ascii_lowercase()))
                .then(|| u64::from_str_radix(digits, 16).ok())
                .flatten()
                .map(Lsn::new)
        };
        let (start, end) = (lsn(start)?, lsn(end)?);
        (start < end).then_some((start, end))
    }

    pub fn histories(source: &str, lineage: Lineage) -> String {
        format!("{}/{source}/{lineage}", Self::HISTORY)
    }

    pub fn history(source: &str, lineage: Lineage, timeline: Timeline) -> ObjectName {
        name(format!("{}/{}", Self::histories(source, lineage), timeline.history_file()))
    }

    /// The unfinished last segment of a timeline that PostgreSQL archives at promotion.
    pub fn partial(source: &str, lineage: Lineage, segment: Segment) -> ObjectName {
        let file = segment.file_name(lineage.segment_size);
        name(format!("{}/{source}/{lineage}/{file}.partial", Self::PARTIAL))
    }

    pub fn timeline_changes(source: &str, lineage: Lineage, timeline: Timeline) -> String {
        format!("{}/{source}/{lineage}/{:08X}", Self::CHANGES, timeline.get())
    }

    pub fn changes(source: &str, lineage: Lineage, timeline: Timeline, start: Lsn, end: Lsn) -> ObjectName {
        let folder = Self::timeline_changes(source, lineage, timeline);
        name(format!("{folder}/{:016X}-{:016X}", start.get(), end.get()))
    }
}
