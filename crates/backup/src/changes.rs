//! The change map between two positions of the log: put together from stored maps, and where there is none from the log
//! itself.

use holdfast_changes::ChangeMap;
use holdfast_format::codec::Compressor;
use holdfast_pgformat::{Record, TimelineHistory, WalDecoder};
use holdfast_repository::{Epoch, Keyring, Lineage, LogRange, RepositoryError, SealedLog, StoredChanges};
use holdfast_types::{Lsn, Segment, Timeline};

use crate::BackupError;
use crate::base::Origin;

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
}

/// What changed from the start of `base` to `end` on `timeline`; or why that cannot be known.
pub(crate) async fn between(
    log: &Log<'_>,
    base: &Origin,
    timeline: Timeline,
    end: Lsn,
) -> Result<Result<Between, String>, BackupError> {
    let mut between = Between::default();
    if base.stop_lsn > end {
        return Ok(Err(format!("this backup begins at {end}, before snapshot {} ended", base.id)));
    }
    let history = match log.keyring.history(log.source, log.lineage, timeline).await? {
        Some(bytes) => match TimelineHistory::parse(timeline, &bytes) {
            Ok(history) => history,
            Err(error) => return Ok(Err(format!("the history of timeline {timeline} cannot be read: {error}"))),
        },
        None => TimelineHistory::root(timeline),
    };
    if !history.contains(base.timeline, base.stop_lsn) {
        return Ok(Err(format!("timeline {timeline} does not descend from snapshot {}", base.id)));
    }
    let parents = history.entries().iter().map(|entry| (entry.timeline, entry.switch));
    let mut start = base.start_lsn;
    for (timeline, switch) in parents.chain([(timeline, end)]).skip_while(|(timeline, _)| *timeline != base.timeline) {
        let range = LogRange { start, end: switch.min(end).max(start) };
        if let Err(why) = cover(log, timeline, range, &mut between).await? {
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

/// Takes in all that changed in a stretch of one timeline.
async fn cover(
    log: &Log<'_>,
    timeline: Timeline,
    range: LogRange,
    between: &mut Between,
) -> Result<Result<(), String>, BackupError> {
    let stored = log.keyring.repository().change_maps(log.source, log.lineage, timeline).await?;
    let mut position = range.start;
    while position < range.end {
        let reaching = stored.iter().filter(|stored| stored.range.start <= position && stored.range.end > position);
        let best = reaching.max_by_key(|stored| stored.range.end);
        // A map that begins earlier names pages that changed earlier: where the log itself is quickly read, that is better.
        if let Some(best) = best.filter(|best| best.range.start < range.start) {
            let end = best.range.end.min(range.end);
            if end.bytes_since(position) <= LOG_PER_MAP
                && decode(log, timeline, LogRange { start: position, end }, &mut between.map).await?.is_ok()
            {
                position = end;
                continue;
            }
        }
        if let Some(best) = best
            && let Some(map) = read(log.keyring, best).await?
        {
            between.map.merge(&map);
            position = best.range.end;
            if best.range.start >= range.start && best.range.end <= range.end {
                between.parts.push((timeline, best.clone()));
            }
            continue;
        }
        let next = stored.iter().map(|stored| stored.range.start).filter(|start| *start > position).min();
        let end = next.map_or(range.end, |next| next.min(range.end));
        if let Err(why) = decode(log, timeline, LogRange { start: position, end }, &mut between.map).await? {
            return Ok(Err(why));
        }
        position = end;
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

/// Reads the log itself. All positions are those of records.
async fn decode(
    log: &Log<'_>,
    timeline: Timeline,
    range: LogRange,
    map: &mut ChangeMap,
) -> Result<Result<(), String>, BackupError> {
    let size = log.lineage.segment_size;
    let mut segment = Segment::containing(timeline, range.start, size);
    let mut decoder = match WalDecoder::new(log.major, size, segment.start(size)) {
        Ok(decoder) => decoder.for_system(log.lineage.system_id),
        Err(error) => return Ok(Err(format!("the log cannot be decoded: {error}"))),
    };
    while segment.start(size) < range.end {
        let missing = |at: Lsn| Ok(Err(format!("the log of timeline {timeline} is missing from {at}")));
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
            return Ok(Err(format!("the log of timeline {timeline} cannot be decoded: {error}")));
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
