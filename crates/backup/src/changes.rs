//! The change map between two positions of the log: put together from stored maps, and where there is none from the log
//! itself.

use holdfast_changes::ChangeMap;
use holdfast_format::codec::Compressor;
use holdfast_format::manifest::Summary;
use holdfast_pgformat::{Record, TimelineHistory, WalDecoder};
use holdfast_repository::{Epoch, Keyring, Lineage, LogRange, RepositoryError, SealedLog, StoredChanges};
use holdfast_types::{Lsn, Segment, SegmentSize, Timeline};

use crate::BackupError;
use crate::base::Base;
use crate::joints;

/// Which log to look at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log<'a> {
    pub keyring: &'a Keyring,
    pub source: &'a str,
    pub lineage: Lineage,
    pub major: u32,
}

/// What changed, and the stored maps that told so.
#[derive(Debug, Default)]
pub(crate) struct Between {
    pub map: ChangeMap,
    /// Lie wholly in the stretch of their timeline.
    pub parts: Vec<(Timeline, StoredChanges)>,
    /// Each timeline's stretch.
    pub stretches: Vec<(Timeline, LogRange)>,
    /// Where the timeline of now began; `None` if nobody knows.
    pub timeline_start: Option<Lsn>,
}

/// What changed from the start of `base` to `end` on `timeline`; or why that cannot be known.
pub(crate) async fn between(
    log: &Log<'_>,
    base: &Base,
    timeline: Timeline,
    end: Lsn,
) -> Result<Result<Between, String>, BackupError> {
    let mut between = Between::default();
    let Base { summary: base, is_unfinished, .. } = base;
    let history = match history(log, timeline).await? {
        Ok(history) => history,
        Err(why) => return Ok(Err(why)),
    };
    if let Some(why) = unfit(base, &history, end) {
        return Ok(Err(why));
    }
    let is_first = timeline == Timeline::FIRST;
    between.timeline_start = history.entries().last().map(|entry| entry.switch).or(is_first.then_some(Lsn::ZERO));
    // As far as the timeline of the base is followed.
    let base_end = history.switch_point(base.timeline).unwrap_or(end).min(end);
    // How far the server was when a backup was interrupted need not be where a record ends.
    if !is_unfinished && let Err(why) = joints::check(log, base.timeline, base.stop_lsn, base_end).await? {
        return Ok(Err(why));
    }
    let mut before = None;
    let parents = history.entries().iter().map(|entry| (entry.timeline, entry.switch));
    let mut start = base.start_lsn;
    for (timeline, switch) in parents.chain([(timeline, end)]).skip_while(|(timeline, _)| *timeline != base.timeline) {
        let range = LogRange { start, end: switch.min(end).max(start) };
        if let Some(parent) = before.replace(timeline)
            && let Err(why) = joints::check_switch(log, (parent, timeline), start).await?
        {
            return Ok(Err(why));
        }
        let needed = LogRange { start, end: end_before(range.end, log.lineage.segment_size).max(start) };
        if let Err(why) = cover(log, timeline, needed, &mut between).await? {
            return Ok(Err(why));
        }
        between.stretches.push((timeline, range));
        start = range.end;
    }
    Ok(match between.map.unknown() {
        Some(unknown) => Err(format!("at {}: {}", unknown.lsn, unknown.why)),
        None => Ok(between),
    })
}

/// Where the first record of a segment can begin: behind the long header of its first page (SizeOfXLogLongPHD).
const FIRST_RECORD: u64 = 40;

/// Where the last record before `lsn` ends, if that is the first place of a segment where one can begin. On a primary a
/// backup begins with a switch to another segment, which an archiver does not bring before it is full.
pub(crate) fn end_before(lsn: Lsn, size: SegmentSize) -> Lsn {
    let start = Lsn::new(lsn.get() / size.get() * size.get());
    if lsn.bytes_since(start) <= FIRST_RECORD { start } else { lsn }
}

/// Why a backup that begins at a position cannot build on a snapshot; `None` if it can.
///
/// Backups from a standby begin at its last restartpoint, which may lie before snapshots that were taken earlier. Their
/// files hold changes that this backup's log might end before: a state that never was.
pub(crate) fn unfit(base: &Summary, history: &TimelineHistory, begin: Lsn) -> Option<String> {
    let Summary { id, timeline, start_lsn, stop_lsn, .. } = base;
    if *start_lsn > begin {
        return Some(format!("this backup begins at {begin}, before snapshot {id} began"));
    }
    if *stop_lsn > begin {
        return Some(format!("this backup begins at {begin}, before snapshot {id} ended"));
    }
    if !history.contains(*timeline, *stop_lsn) {
        return Some(format!("timeline {} does not descend from snapshot {id}", history.timeline()));
    }
    None
}

/// How a timeline came to be; or why that cannot be known.
pub(crate) async fn history(log: &Log<'_>, timeline: Timeline) -> Result<Result<TimelineHistory, String>, BackupError> {
    let Some(bytes) = log.keyring.history(log.source, log.lineage, timeline).await? else {
        return Ok(Ok(TimelineHistory::root(timeline)));
    };
    let parsed = TimelineHistory::parse(timeline, &bytes);
    Ok(parsed.map_err(|error| format!("the history of timeline {timeline} cannot be read: {error}")))
}

/// Takes in all that changed in a stretch of one timeline.
async fn cover(
    log: &Log<'_>,
    timeline: Timeline,
    range: LogRange,
    between: &mut Between,
) -> Result<Result<(), String>, BackupError> {
    let stored = log.keyring.repository().change_maps(log.source, log.lineage, timeline).await?;
    let mut position = range.start;
    // Where the map that was taken last ended: one that begins there was made in the same go, by one receiver.
    let mut map_end = None;
    while position < range.end {
        let reaching = stored.iter().filter(|stored| stored.range.start <= position && stored.range.end > position);
        let best = reaching.max_by_key(|stored| stored.range.end);
        // A map that begins earlier names pages that changed earlier: where the log itself is quickly read, that is better.
        if let Some(best) = best.filter(|best| best.range.start < range.start) {
            let end = best.range.end.min(range.end);
            if end.bytes_since(position) <= LOG_PER_MAP {
                match decode(log, timeline, LogRange { start: position, end }, &mut between.map).await? {
                    Ok(()) => {
                        (position, map_end) = (end, None);
                        continue;
                    }
                    Err(Undecoded::Missing(_)) => {}
                    // What is there is not one log: the map may be of a part of it, or of none.
                    Err(Undecoded::Broken(why)) => return Ok(Err(why)),
                }
            }
        }
        if let Some(best) = best
            && let Some(map) = read(log.keyring, best).await?
        {
            let is_one_go = best.range.start == position && (map_end == Some(position) || position == range.start);
            if !is_one_go && let Err(why) = joints::check(log, timeline, position, range.end).await? {
                return Ok(Err(why));
            }
            between.map.merge(&map);
            position = best.range.end;
            map_end = Some(position);
            if best.range.start >= range.start && best.range.end <= range.end {
                between.parts.push((timeline, best.clone()));
            }
            continue;
        }
        let next = stored.iter().map(|stored| stored.range.start).filter(|start| *start > position).min();
        let end = next.map_or(range.end, |next| next.min(range.end));
        // Where the base began needs no proof beside that of where it ended.
        if position > range.start
            && let Err(why) = joints::check(log, timeline, position, range.end).await?
        {
            return Ok(Err(why));
        }
        let decoded = decode(log, timeline, LogRange { start: position, end }, &mut between.map).await?;
        if let Err(Undecoded::Missing(why) | Undecoded::Broken(why)) = decoded {
            return Ok(Err(why));
        }
        (position, map_end) = (end, None);
    }
    Ok(Ok(()))
}

/// A stored map; `None` if it cannot be used, which only means more work.
async fn read(keyring: &Keyring, stored: &StoredChanges) -> Result<Option<ChangeMap>, BackupError> {
    let problem = match keyring.changes(stored).await {
        Ok(plain) => match ChangeMap::decode(&plain) {
            Ok(map) => return Ok(Some(map)),
            Err(error) => error.to_string(),
        },
        // Merged into another since it was listed.
        Err(error) if error.is_not_found() => "it has gone".to_owned(),
        Err(error @ (RepositoryError::Object { .. } | RepositoryError::Content { .. })) => error.to_string(),
        Err(error) => return Err(error.into()),
    };
    tracing::warn!(map = %stored.name, problem, "a change map is not used; the log is read instead");
    Ok(None)
}

/// What changed in a stretch of log for which no change map can be there yet; or why that cannot be known.
pub(crate) async fn since(
    log: &Log<'_>,
    timeline: Timeline,
    range: LogRange,
) -> Result<Result<ChangeMap, String>, BackupError> {
    let mut map = ChangeMap::default();
    Ok(match decode(log, timeline, range, &mut map).await? {
        Ok(()) => Ok(map),
        Err(Undecoded::Missing(why) | Undecoded::Broken(why)) => Err(why),
    })
}

/// Why log could not be read as far as was wanted.
enum Undecoded {
    Missing(String),
    Broken(String),
}

/// Reads the log itself. All positions are those of records.
async fn decode(
    log: &Log<'_>,
    timeline: Timeline,
    range: LogRange,
    map: &mut ChangeMap,
) -> Result<Result<(), Undecoded>, BackupError> {
    let size = log.lineage.segment_size;
    let mut segment = Segment::containing(timeline, range.start, size);
    let mut decoder = match WalDecoder::new(log.major, size, segment.start(size)) {
        Ok(decoder) => decoder.for_system(log.lineage.system_id),
        Err(error) => return Ok(Err(Undecoded::Broken(format!("the log cannot be decoded: {error}")))),
    };
    while segment.start(size) < range.end {
        let missing =
            |at: Lsn| Ok(Err(Undecoded::Missing(format!("the log of timeline {timeline} is missing from {at}"))));
        let Some(bytes) = log.keyring.segment(log.source, log.lineage, segment).await? else {
            return missing(segment.start(size).max(range.start));
        };
        let decoded = decoder.feed(&bytes, &mut |record| {
            if record.lsn >= range.start && record.lsn < range.end {
                map.note(&record);
            }
        });
        let held = segment.start(size).advance(bytes.len() as u64);
        if let Err(error) = decoded {
            let why = format!("the log of timeline {timeline} cannot be decoded: {error}");
            return Ok(Err(Undecoded::Broken(why)));
        }
        if held < segment.end(size) && held < range.end {
            return missing(held);
        }
        segment = segment.next();
    }
    Ok(Ok(()))
}

/// Change maps being made from the log as it arrives.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    map: ChangeMap,
    /// From the first record to the end of the last one; `None` before the first.
    range: Option<LogRange>,
}

/// So much log shares a map: little enough to decode again after a crash, enough for few objects.
const LOG_PER_MAP: u64 = 64 << 20;

impl Recorder {
    pub(crate) fn note(&mut self, record: &Record<'_>) {
        self.map.note(record);
        let range = self.range.get_or_insert(LogRange { start: record.lsn, end: record.end });
        range.end = record.end;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.range.is_some_and(|range| range.end.bytes_since(range.start) >= LOG_PER_MAP)
    }

    /// Seals what there is, and goes on behind it.
    pub(crate) fn take(
        &mut self,
        epoch: &Epoch,
        source: &str,
        lineage: Lineage,
        timeline: Timeline,
        compressor: &mut Compressor,
    ) -> Result<Option<SealedLog>, RepositoryError> {
        let Some(range) = self.range.filter(|range| range.start < range.end) else { return Ok(None) };
        let map = std::mem::take(&mut self.map);
        self.range = Some(LogRange { start: range.end, end: range.end });
        epoch.seal_changes(source, lineage, timeline, range, &map.encode(), compressor).map(Some)
    }
}

/// Stores one map for each stretch in place of those that it was put together from.
pub(crate) async fn merge(epoch: &Epoch, log: &Log<'_>, between: &Between) -> Result<(), BackupError> {
    // Over several timelines the union would be right and yet wider than any of them: not worth an object.
    let [(timeline, range)] = between.stretches.as_slice() else { return Ok(()) };
    if between.parts.len() < 2 {
        return Ok(());
    }
    let mut compressor = Compressor::new(3)?;
    let plain = between.map.encode();
    let sealed = epoch.seal_changes(log.source, log.lineage, *timeline, *range, &plain, &mut compressor)?;
    epoch.repository().put_log(&sealed).await?;
    let parts: Vec<StoredChanges> = between.parts.iter().map(|(_, part)| part.clone()).collect();
    Ok(epoch.repository().drop_changes(&parts).await?)
}

#[cfg(test)]
pub(crate) mod tests {
    use holdfast_format::manifest::SnapshotKind;
    use holdfast_types::{Micros, SegmentSize, SystemId};

    use super::*;

    #[test]
    fn a_segment_that_has_only_begun_is_not_waited_for() {
        let needed = |lsn| end_before(Lsn::new(lsn), SegmentSize::DEFAULT).get();
        assert_eq!(needed(0x500_0028), 0x500_0000);
        assert_eq!(needed(0x500_0000), 0x500_0000);
        assert_eq!(needed(0x500_0030), 0x500_0030);
        assert_eq!(needed(0x4ff_fff8), 0x4ff_fff8);
    }

    /// A full one of a primary.
    pub(crate) fn summary(timeline: u32, start: u64, stop: u64) -> Summary {
        Summary {
            id: "20261121T101500Z-5f0c2a9b".parse().unwrap(),
            source: "chat".to_owned(),
            kind: SnapshotKind::Full,
            base: None,
            server_version: 180_000,
            system_id: SystemId::new(7),
            timeline: Timeline::new(timeline),
            start_lsn: Lsn::new(start),
            stop_lsn: Lsn::new(stop),
            segment_size: SegmentSize::DEFAULT,
            started_at: Micros::new(0),
            stopped_at: Micros::new(1),
            from_standby: false,
            bytes: 0,
            files: 0,
            read_bytes: None,
            stored_bytes: 0,
            damaged_pages: 0,
            made_by: String::new(),
        }
    }

    #[test]
    fn only_what_ended_before_this_backup_begins_is_built_on() {
        let first = TimelineHistory::root(Timeline::FIRST);
        let why = |base: &Summary, begin| unfit(base, &first, Lsn::new(begin)).unwrap_or_default();
        let base = summary(1, 0x100, 0x200);
        assert_eq!(why(&base, 0x200), "");
        assert_eq!(why(&base, 0x1000), "");
        // A restartpoint from before the snapshot, and one from while it was taken.
        assert!(why(&base, 0xFF).contains("begins at 0/FF, before snapshot 20261121T101500Z-5f0c2a9b began"));
        assert!(why(&base, 0x1FF).contains("before snapshot 20261121T101500Z-5f0c2a9b ended"));
        let second = TimelineHistory::parse(Timeline::new(2), b"1\t0/180\tpromoted\n").unwrap();
        let why = unfit(&base, &second, Lsn::new(0x1000)).unwrap_or_default();
        assert!(why.contains("timeline 2 does not descend"), "{why}");
        assert_eq!(unfit(&summary(1, 0x100, 0x180), &second, Lsn::new(0x1000)), None);
    }
}
