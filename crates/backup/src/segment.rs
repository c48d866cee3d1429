//! Sealing the log: whole segments frame by frame as they arrive, pieces at once.

use holdfast_format::ObjectKind;
use holdfast_format::codec::Compressor;
use holdfast_format::object::ObjectWriter;
use holdfast_format::wal::{CreatedTablespace, LogIndex, LogSummary, digester};
use holdfast_pgformat::wal::{Event, Record};
use holdfast_repository::{Epoch, Lineage, LogRange, Names, RepositoryError, SealedLog};
use holdfast_store::ObjectName;
use holdfast_types::Segment;

use crate::worker::FRAME_BYTES;

/// A stretch of log on its way into one object.
#[derive(Debug)]
pub(crate) struct LogSealer {
    name: ObjectName,
    writer: ObjectWriter,
    /// Less than a frame, still plain.
    open_frame: Vec<u8>,
    /// Of whole segments only.
    digest: Option<Box<blake3::Hasher>>,
    pub index: LogIndex,
    range: LogRange,
}

/// The log is compressed beside a database that needs the processor itself: as fast as possible.
pub(crate) const LOG_LEVEL: i32 = 1;

impl LogSealer {
    fn new(epoch: &Epoch, kind: ObjectKind, name: ObjectName, range: LogRange) -> Self {
        let capacity = range.end.bytes_since(range.start) as usize / 2;
        Self {
            writer: epoch.log_writer(kind, &name, capacity),
            name,
            open_frame: Vec::new(),
            digest: (kind == ObjectKind::WalSegment).then(|| Box::new(digester(epoch.repository().id()))),
            index: LogIndex::default(),
            range,
        }
    }

    pub(crate) fn segment(epoch: &Epoch, source: &str, lineage: Lineage, segment: Segment) -> Self {
        let size = lineage.segment_size;
        let range = LogRange { start: segment.start(size), end: segment.end(size) };
        Self::new(epoch, ObjectKind::WalSegment, Names::segment(source, lineage, segment), range)
    }

    /// The unfinished segment that a promoted server archives.
    pub(crate) fn partial(epoch: &Epoch, source: &str, lineage: Lineage, segment: Segment) -> Self {
        let size = lineage.segment_size;
        let range = LogRange { start: segment.start(size), end: segment.end(size) };
        Self::new(epoch, ObjectKind::WalSegment, Names::partial(source, lineage, segment), range)
    }

    pub(crate) fn piece(epoch: &Epoch, source: &str, lineage: Lineage, segment: Segment, range: LogRange) -> Self {
        let name = Names::piece(source, lineage, segment, range.start, range.end);
        Self::new(epoch, ObjectKind::WalPiece, name, range)
    }

    pub(crate) fn push(&mut self, mut bytes: &[u8], compressor: &mut Compressor) {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(FRAME_BYTES - self.open_frame.len()));
            self.open_frame.extend_from_slice(now);
            if self.open_frame.len() == FRAME_BYTES {
                self.writer.push(&self.open_frame, compressor);
                self.open_frame.clear();
            }
            bytes = later;
        }
    }

    pub(crate) fn finish(mut self, compressor: &mut Compressor) -> Result<SealedLog, RepositoryError> {
        if !self.open_frame.is_empty() {
            self.writer.push(&self.open_frame, compressor);
        }
        let digest = self.digest.map(|digest| digest.finalize().to_string());
        let summary = LogSummary { start: self.range.start, end: self.range.end, digest };
        Epoch::finish_log(self.writer, self.name, &self.index, &summary, compressor)
    }
}

/// Notes what a record means to recovery.
pub(crate) fn note(index: &mut LogIndex, record: &Record<'_>) {
    match record.event() {
        Some(Event::Commit { time, .. } | Event::CommitPrepared { time, .. }) => {
            index.transaction(time, record.end, true);
        }
        Some(Event::Abort { time, .. } | Event::AbortPrepared { time, .. }) => {
            index.transaction(time, record.end, false);
        }
        Some(Event::RestorePoint { name, time }) => index.restore_point(name, time, record.end),
        _ => index.tablespaces.extend(created_tablespace(record)),
    }
}

/// `RM_TBLSPC_ID` and `XLOG_TBLSPC_CREATE` (rmgrlist.h, tablespace.h): the object id, then the path as a C string.
fn created_tablespace(record: &Record<'_>) -> Option<CreatedTablespace> {
    const TABLESPACE: u8 = 5;
    if record.rmgr != TABLESPACE || record.info & 0xF0 != 0 {
        return None;
    }
    let (oid, path) = record.main.split_first_chunk::<4>()?;
    let path = path.split(|byte| *byte == 0).next()?;
    // An empty path is a tablespace in place, inside the data directory.
    (!path.is_empty()).then(|| CreatedTablespace {
        oid: u32::from_le_bytes(*oid),
        location: String::from_utf8_lossy(path).into_owned(),
        lsn: record.end,
    })
}
