//! The log of a source: which of it is there, and reading it.
//!
//! A whole segment is one object. What a segment that is still being written has so far is in pieces; they stay until
//! some time after the segment is whole.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use holdfast_format::ObjectKind;
use holdfast_format::codec::Decompressor;
use holdfast_format::object::{Expected, HEADER_BYTES, Header, ObjectReader, TAIL_BYTES, Tail};
use holdfast_format::wal::{LogIndex, LogSummary, Moment};
use holdfast_store::{Created, ObjectName};
use holdfast_types::{Lsn, Segment, SegmentSize, SystemId, Timeline};

use crate::write::{HistorySummary, SealedLog};
use crate::{Keyring, Names, Repository, RepositoryError};

/// The log of one cluster: a source that was made anew with `initdb` begins another lineage.
///
/// Printed as the system identifier and the segment size in MiB, `7412345678901234567-16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lineage {
    pub system_id: SystemId,
    pub segment_size: SegmentSize,
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.system_id, self.segment_size.get() >> 20)
    }
}

impl FromStr for Lineage {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (system_id, mib) = text.split_once('-').ok_or(())?;
        let mib: u64 = mib.parse().map_err(|_| ())?;
        let segment_size = mib.checked_shl(20).and_then(SegmentSize::new).ok_or(())?;
        Ok(Self { system_id: system_id.parse().map_err(|_| ())?, segment_size })
    }
}

/// A stretch of log without a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LogRange {
    pub start: Lsn,
    pub end: Lsn,
}

/// Log that is missing between two stretches of one timeline.
pub type Gap = LogRange;

/// One object that holds log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogObject {
    pub name: ObjectName,
    pub kind: ObjectKind,
    pub segment: Segment,
    pub range: LogRange,
    pub size: u64,
}

impl LogObject {
    /// A segment as it is once it is whole, whether or not it is there.
    fn whole(source: &str, lineage: Lineage, segment: Segment) -> Self {
        let size = lineage.segment_size;
        Self {
            name: Names::segment(source, lineage, segment),
            kind: ObjectKind::WalSegment,
            segment,
            range: LogRange { start: segment.start(size), end: segment.end(size) },
            size: 0,
        }
    }
}

/// How many pieces of a segment are asked for at once: they are small, and each costs a request.
const PIECES_AT_ONCE: usize = 16;

/// What was in the repository of the log of one lineage when it was listed.
#[derive(Clone, Debug)]
pub struct LogView {
    pub source: String,
    pub lineage: Lineage,
    /// By timeline; in the order of the log, pieces of whole segments left out.
    objects: BTreeMap<Timeline, Vec<LogObject>>,
    pub histories: BTreeSet<Timeline>,
}

/// The recoverable stretches of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    pub ranges: Vec<LogRange>,
}

impl Coverage {
    /// Joins what touches or overlaps.
    fn of(objects: &[LogObject]) -> Self {
        let mut ranges: Vec<LogRange> = Vec::new();
        for object in objects {
            match ranges.last_mut() {
                Some(last) if object.range.start <= last.end => last.end = last.end.max(object.range.end),
                _ => ranges.push(object.range),
            }
        }
        Self { ranges }
    }

    pub fn gaps(&self) -> Vec<Gap> {
        let between = |pair: &[LogRange]| match pair {
            [before, after] => Some(Gap { start: before.end, end: after.start }),
            _ => None,
        };
        self.ranges.windows(2).filter_map(between).collect()
    }

    pub fn covers(&self, start: Lsn, end: Lsn) -> bool {
        self.ranges.iter().any(|range| range.start <= start && end <= range.end)
    }

    /// How far the log goes without a hole from `start`.
    pub fn reach(&self, start: Lsn) -> Option<Lsn> {
        self.ranges.iter().find(|range| range.start <= start && start <= range.end).map(|range| range.end)
    }
}

impl LogView {
    pub fn timelines(&self) -> impl Iterator<Item = Timeline> {
        self.objects.keys().copied()
    }

    pub fn objects(&self, timeline: Timeline) -> &[LogObject] {
        self.objects.get(&timeline).map_or(&[], Vec::as_slice)
    }

    pub fn coverage(&self, timeline: Timeline) -> Coverage {
        Coverage::of(self.objects(timeline))
    }

    /// The end of the newest log of a timeline.
    pub fn end(&self, timeline: Timeline) -> Option<Lsn> {
        self.objects(timeline).iter().map(|object| object.range.end).max()
    }
}

/// The earliest and latest moments that a stretch of log can be recovered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    pub first: Option<Moment>,
    pub last: Option<Moment>,
}

impl Repository {
    /// The lineages that a source has log of.
    pub async fn lineages(&self, source: &str) -> Result<Vec<Lineage>, RepositoryError> {
        let mut lineages = Vec::new();
        for folder in [Names::WAL, Names::PIECES] {
            for name in self.folders(&format!("{folder}/{source}")).await? {
                if let Ok(lineage) = name.parse()
                    && !lineages.contains(&lineage)
                {
                    lineages.push(lineage);
                }
            }
        }
        Ok(lineages)
    }

    /// Lists the log of a lineage.
    pub async fn log(&self, source: &str, lineage: Lineage) -> Result<LogView, RepositoryError> {
        let mut objects: BTreeMap<Timeline, Vec<LogObject>> = BTreeMap::new();
        let log = async {
            // Pieces first: a segment that becomes whole meanwhile is then seen twice rather than not at all.
            let pieces = self.list(&format!("{}/{source}/{lineage}", Names::PIECES)).await?;
            Ok::<_, RepositoryError>((pieces, self.list(&format!("{}/{source}/{lineage}", Names::WAL)).await?))
        };
        let ((pieces, segments), histories) = tokio::try_join!(log, self.histories(source, lineage))?;
        let mut whole = BTreeSet::new();
        for listed in segments {
            if let Ok(segment) = Segment::parse(listed.name.file_name(), lineage.segment_size) {
                whole.insert(segment);
                let range =
                    LogRange { start: segment.start(lineage.segment_size), end: segment.end(lineage.segment_size) };
                objects.entry(segment.timeline()).or_default().push(LogObject {
                    name: listed.name,
                    kind: ObjectKind::WalSegment,
                    segment,
                    range,
                    size: listed.size,
                });
            }
        }
        for listed in pieces {
            let segment = listed.name.as_str().rsplit('/').nth(1).unwrap_or_default();
            let parsed = Segment::parse(segment, lineage.segment_size).ok();
            if let (Some(segment), Some((start, end))) = (parsed, Names::parse_range(listed.name.file_name()))
                && !whole.contains(&segment)
            {
                objects.entry(segment.timeline()).or_default().push(LogObject {
                    name: listed.name,
                    kind: ObjectKind::WalPiece,
                    segment,
                    range: LogRange { start, end },
                    size: listed.size,
                });
            }
        }
        for objects in objects.values_mut() {
            objects.sort_by_key(|object| (object.range.start, object.range.end));
        }
        Ok(LogView { source: source.to_owned(), lineage, objects, histories })
    }

    /// Whether there is anything of a timeline's log.
    pub async fn has_log(&self, source: &str, lineage: Lineage, timeline: Timeline) -> Result<bool, RepositoryError> {
        let (whole, pieces) = tokio::try_join!(
            self.has_any(Names::timeline_segments(source, lineage, timeline)),
            self.has_any(Names::timeline_pieces(source, lineage, timeline))
        )?;
        Ok(whole || pieces)
    }

    /// The timelines whose histories are there, in order.
    pub async fn histories(&self, source: &str, lineage: Lineage) -> Result<BTreeSet<Timeline>, RepositoryError> {
        let listed = self.list(&Names::histories(source, lineage)).await?;
        let number = |name: &str| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok();
        Ok(listed.iter().filter_map(|listed| number(listed.name.file_name())).map(Timeline::new).collect())
    }

    /// Stores sealed log. What exists under the name must have the same plain content.
    ///
    /// Not tried again here: whoever receives log has other work meanwhile, and its own ways to wait.
    pub async fn put_log(&self, sealed: &SealedLog) -> Result<Created, RepositoryError> {
        let created = self.store.create(&sealed.name, sealed.bytes.clone()).await?;
        if created == Created::Exists {
            let size = self.store.size(&sealed.name).await?;
            let ours = holdfast_format::object::public_part(&sealed.bytes)
                .map_err(|source| RepositoryError::object(&sealed.name, source))?;
            let same = if sealed.name.as_str().starts_with(Names::HISTORY) {
                let theirs: HistorySummary = self.public(&sealed.name, size).await?;
                serde_json::from_slice::<HistorySummary>(ours).is_ok_and(|ours| ours.digest == theirs.digest)
            } else {
                let theirs: LogSummary = self.public(&sealed.name, size).await?;
                // A piece has no digest: its name is its range, and the log of a range is one.
                serde_json::from_slice::<LogSummary>(ours).is_ok_and(|ours| ours == theirs)
            };
            if !same {
                return Err(RepositoryError::Conflict { name: sealed.name.to_string() });
            }
        }
        Ok(created)
    }

    pub async fn has_segment(&self, source: &str, lineage: Lineage, segment: Segment) -> Result<bool, RepositoryError> {
        match self.store.size(&Names::segment(source, lineage, segment)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the pieces of a segment that the caller itself made whole: that an object of its name exists would prove
    /// nothing to somebody who cannot open it.
    pub async fn drop_pieces(&self, source: &str, lineage: Lineage, segment: Segment) -> Result<(), RepositoryError> {
        for piece in self.list(&Names::segment_pieces(source, lineage, segment)).await? {
            self.store.delete(&piece.name).await?;
        }
        Ok(())
    }
}

impl Keyring {
    /// The plain bytes of a log object and its index.
    pub async fn read_log(&self, object: &LogObject) -> Result<(Vec<u8>, LogIndex), RepositoryError> {
        let bytes = self.repository().read(&object.name).await?;
        self.decode_log(object, bytes).await
    }

    pub(crate) async fn decode_log(
        &self,
        object: &LogObject,
        bytes: Bytes,
    ) -> Result<(Vec<u8>, LogIndex), RepositoryError> {
        let name = &object.name;
        let broken = |source| RepositoryError::object(name, source);
        let mut opened = self.open_bytes(object.kind, name, bytes).await?;
        let summary: LogSummary =
            serde_json::from_slice(opened.public()).map_err(|error| RepositoryError::content(name, error))?;
        let mut decompressor = Decompressor::new();
        let last = opened.frames.len().saturating_sub(1);
        let mut plain = Vec::with_capacity(object.range.end.bytes_since(object.range.start) as usize);
        for index in 0..last {
            opened.frame(index, &mut decompressor, &mut plain).map_err(broken)?;
        }
        let mut index = Vec::new();
        opened.frame(last, &mut decompressor, &mut index).map_err(broken)?;
        let index = serde_json::from_slice(&index).map_err(|error| RepositoryError::content(name, error))?;
        let range = LogRange { start: summary.start, end: summary.end };
        if range != object.range || plain.len() as u64 != range.end.bytes_since(range.start) {
            return Err(RepositoryError::content(name, "it holds another stretch of log than its name says"));
        }
        let digest = || holdfast_format::wal::digest(self.repository().id(), &plain);
        let is_digest_right = match summary.digest {
            Some(expected) => expected == digest(),
            // Only pieces have none.
            None => object.kind == ObjectKind::WalPiece,
        };
        if !is_digest_right {
            return Err(RepositoryError::content(name, "its digest does not match its content"));
        }
        Ok((plain, index))
    }

    /// The index of a log object, read from its ends without its content.
    pub async fn log_index(&self, object: &LogObject) -> Result<LogIndex, RepositoryError> {
        const GUESS: u64 = 64 << 10;
        let (name, size) = (&object.name, object.size);
        let broken = |source| RepositoryError::object(name, source);
        if size < (HEADER_BYTES + TAIL_BYTES) as u64 {
            return Err(broken(holdfast_format::object::OpenError::Damaged));
        }
        let head = self.repository().read_range(name, 0..HEADER_BYTES as u64).await?;
        let mut start = size.saturating_sub(GUESS);
        let mut end = self.repository().read_range(name, start..size).await?;
        let tail = Tail::decode(&end).map_err(broken)?.len();
        if tail > size {
            return Err(broken(holdfast_format::object::OpenError::Damaged));
        }
        if tail > end.len() as u64 {
            start = size - tail;
            end = self.repository().read_range(name, start..size).await?;
        }
        let header = Header::decode(&head).map_err(broken)?;
        let expected = Expected { kind: object.kind, repository: self.repository().id(), name: name.as_str() };
        expected.check(&header).map_err(broken)?;
        let key = self.epoch_key(header.epoch).await?;
        let reader = ObjectReader::new(&header, &key, name.as_str()).map_err(broken)?;
        let frames = reader.table(&end, size).map_err(broken)?;
        let last = *frames.last().ok_or_else(|| RepositoryError::content(name, "it has no index"))?;
        let mut sealed = if last.offset >= start {
            let at = (last.offset - start) as usize;
            end.get(at..at + last.sealed_len as usize).unwrap_or_default().to_vec()
        } else {
            let range = last.offset..last.offset + u64::from(last.sealed_len);
            self.repository().read_range(name, range).await?.to_vec()
        };
        let mut plain = Vec::new();
        reader.frame(last, &mut sealed, &mut Decompressor::new(), &mut plain).map_err(broken)?;
        serde_json::from_slice(&plain).map_err(|error| RepositoryError::content(name, error))
    }

    /// The plain bytes of a segment, if it is there as one object. Asks for nothing else.
    pub async fn whole_segment(
        &self,
        source: &str,
        lineage: Lineage,
        segment: Segment,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        match self.read_log(&LogObject::whole(source, lineage, segment)).await {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The plain bytes of a segment from its start, as far as they are in the repository without a hole: all of them, or
    /// what its pieces hold, or `None` if there is nothing.
    pub async fn segment(
        &self,
        source: &str,
        lineage: Lineage,
        segment: Segment,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let whole = LogObject::whole(source, lineage, segment);
        let damaged = match self.read_log(&whole).await {
            Ok((bytes, _)) => return Ok(Some(bytes)),
            Err(error) if error.is_not_found() => None,
            // Its pieces may still be there, and serve as well.
            Err(error @ (RepositoryError::Object { .. } | RepositoryError::Content { .. })) => Some(error),
            Err(error) => return Err(error),
        };
        let mut pieces = Vec::new();
        let mut position = whole.range.start;
        for listed in self.repository().list(&Names::segment_pieces(source, lineage, segment)).await? {
            let Some((start, end)) = Names::parse_range(listed.name.file_name()) else { continue };
            if start > position {
                break;
            }
            if end <= position {
                continue;
            }
            let range = LogRange { start, end };
            pieces.push(LogObject { name: listed.name, kind: ObjectKind::WalPiece, segment, range, size: listed.size });
            position = end;
        }
        let mut bytes = Vec::new();
        let mut position = whole.range.start;
        let mut waiting = pieces.into_iter();
        let mut reading = VecDeque::new();
        loop {
            reading.extend(waiting.by_ref().take(PIECES_AT_ONCE - reading.len()).map(|piece| {
                let keyring = self.clone();
                tokio::spawn(async move { (piece.range, keyring.read_log(&piece).await) })
            }));
            let Some(read) = reading.pop_front() else { break };
            let (range, outcome) = read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            match outcome {
                // Pieces go only once the segment is whole.
                Err(error) if error.is_not_found() => {
                    return self.read_log(&whole).await.map(|(bytes, _)| Some(bytes));
                }
                outcome => {
                    let (plain, _) = outcome?;
                    bytes
                        .extend_from_slice(plain.get(position.bytes_since(range.start) as usize..).unwrap_or_default());
                    position = range.end;
                }
            }
        }
        match damaged {
            Some(error) if position < whole.range.end => Err(error),
            _ => Ok((!bytes.is_empty()).then_some(bytes)),
        }
    }

    pub async fn history(
        &self,
        source: &str,
        lineage: Lineage,
        timeline: Timeline,
    ) -> Result<Option<Vec<u8>>, RepositoryError> {
        let name = Names::history(source, lineage, timeline);
        match self.open(ObjectKind::TimelineHistory, &name).await {
            Ok(mut object) => object
                .concat(&mut Decompressor::new())
                .map(Some)
                .map_err(|source| RepositoryError::object(&name, source)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first and last commit between two positions of a timeline, as far as the index shows.
    pub async fn moments(&self, objects: &[LogObject]) -> Result<Moments, RepositoryError> {
        let mut moments = Moments { first: None, last: None };
        for object in objects {
            if let Some(first) = self.log_index(object).await?.moments.first() {
                moments.first = Some(*first);
                break;
            }
        }
        for object in objects.iter().rev() {
            if let Some(last) = self.log_index(object).await?.moments.last() {
                moments.last = Some(*last);
                break;
            }
        }
        Ok(moments)
    }

    /// The indexes of the given objects as one, without their moments.
    pub async fn marks(&self, objects: &[LogObject]) -> Result<LogIndex, RepositoryError> {
        let mut marks = LogIndex::default();
        for object in objects {
            let index = self.log_index(object).await?;
            marks.commits += index.commits;
            marks.aborts += index.aborts;
            marks.restore_points.extend(index.restore_points);
            marks.tablespaces.extend(index.tablespaces);
        }
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(start: u64, end: u64) -> LogObject {
        LogObject {
            name: ObjectName::new("x").unwrap(),
            kind: ObjectKind::WalPiece,
            segment: Segment::new(Timeline::FIRST, 0),
            range: LogRange { start: Lsn::new(start), end: Lsn::new(end) },
            size: 0,
        }
    }

    #[test]
    fn coverage_joins_what_touches_and_names_what_is_missing() {
        let coverage = Coverage::of(&[object(0, 10), object(10, 20), object(15, 18), object(30, 40)]);
        assert_eq!(coverage.gaps(), [Gap { start: Lsn::new(20), end: Lsn::new(30) }]);
        assert!(coverage.covers(Lsn::new(5), Lsn::new(20)));
        assert!(!coverage.covers(Lsn::new(5), Lsn::new(21)));
        assert!(!coverage.covers(Lsn::new(19), Lsn::new(31)));
        assert_eq!(coverage.reach(Lsn::new(12)), Some(Lsn::new(20)));
        assert_eq!(coverage.reach(Lsn::new(25)), None);
    }

    #[test]
    fn lineages_round_trip() {
        let lineage = Lineage { system_id: SystemId::new(u64::MAX), segment_size: SegmentSize::DEFAULT };
        assert_eq!(lineage.to_string().parse(), Ok(lineage));
        for text in ["", "1", "1-0", "1-3", "x-16", "1-99999999999999999999"] {
            assert!(text.parse::<Lineage>().is_err(), "{text}");
        }
    }
}
