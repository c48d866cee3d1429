use holdfast_types::{Lsn, SegmentSize, SystemId, Timeline};

use super::page::{LONG_HEADER, PageHeader, SHORT_HEADER, WAL_PAGE_SIZE, is_long};
use super::record::{self, Location, RECORD_HEADER, RecordHeader};
use super::{Format, PageFault, Record, RecordFault, WalError};

/// Positions beyond this are refused as a start, so that no sum of position and length can overflow.
const LAST_START: u64 = 1 << 62;
/// A buffer that one long record has grown beyond this is given back.
const BUFFER_KEPT: usize = 1 << 20;

/// Reads the log from a position on, in pieces of any size.
///
/// Memory grows with the bytes of a record that have arrived, never with the length that a record claims. After an
/// error the decoder answers every further piece with the same error; [`position`](Self::position) is where a new
/// one may go on.
#[derive(Clone, Debug)]
pub struct WalDecoder {
    format: Format,
    size: SegmentSize,
    /// The cluster whose log this must be; learned from the first segment if not told.
    system_id: Option<SystemId>,
    /// The position of the next byte that is fed.
    at: u64,
    /// Everything before this position is no record: padding, the rest of a record that began before the start, or
    /// what follows a segment switch.
    skip_to: u64,
    header: [u8; LONG_HEADER],
    header_have: usize,
    timeline: Timeline,
    owed: Owed,
    /// What has arrived of the record that begins at `begin`, if it did not come in one piece.
    partial: Vec<u8>,
    begin: Location,
    previous: Option<Lsn>,
    position: Lsn,
    failed: Option<WalError>,
}

/// What the next page must begin with.
#[derive(Clone, Copy, Debug)]
enum Owed {
    /// A record, or the rest of `partial`.
    Record,
    /// Whatever it does: it is the first one seen.
    Anything,
    /// So many bytes of a record that began before the start.
    Rest(u32),
}

impl WalDecoder {
    /// Begins at `start`: a page, with or without the rest of an earlier record on it, or a record.
    ///
    /// `version` is the major version of the server, 13 to 18.
    pub fn new(version: u32, segment_size: SegmentSize, start: Lsn) -> Result<Self, WalError> {
        let format = Format::of(version)?;
        let in_page = start.get() % WAL_PAGE_SIZE;
        let header = if start.get() % segment_size.get() < WAL_PAGE_SIZE { LONG_HEADER } else { SHORT_HEADER } as u64;
        if start.get() > LAST_START || !start.get().is_multiple_of(8) || (in_page > 0 && in_page < header) {
            return Err(WalError::Start(start));
        }
        let timeline = Timeline::new(0);
        Ok(Self {
            format,
            size: segment_size,
            system_id: None,
            at: start.get(),
            skip_to: start.get(),
            header: [0; LONG_HEADER],
            header_have: 0,
            timeline,
            owed: if in_page == 0 { Owed::Anything } else { Owed::Record },
            partial: Vec::new(),
            begin: Location { lsn: start, end: start, timeline },
            previous: None,
            position: start,
            failed: None,
        })
    }

    /// Refuses the log of any other cluster. Without this, the first segment decides which cluster's log it is.
    #[must_use]
    pub const fn for_system(mut self, system_id: SystemId) -> Self {
        self.system_id = Some(system_id);
        self
    }

    /// Refuses pages of timelines before this one; also what records before the first page header are said to be of.
    #[must_use]
    pub const fn on_timeline(mut self, timeline: Timeline) -> Self {
        self.timeline = timeline;
        self
    }

    /// The end of the last complete record, or the start if there was none.
    pub const fn position(&self) -> Lsn {
        self.position
    }

    /// The position of the next byte to be fed.
    pub const fn next_byte(&self) -> Lsn {
        Lsn::new(self.at)
    }

    /// The timeline of the newest page seen; zero before the first.
    pub const fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The cluster whose log this is, once known.
    pub const fn system_id(&self) -> Option<SystemId> {
        self.system_id
    }

    /// Takes the next bytes of the log and hands every record that they complete to `sink`.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl FnMut(Record<'_>)) -> Result<(), WalError> {
        let result = self.failed.map_or(Ok(()), Err).and_then(|()| self.consume(bytes, sink));
        self.failed = result.err();
        result
    }

    fn consume(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(Record<'_>)) -> Result<(), WalError> {
        while !bytes.is_empty() {
            let used = if self.at < self.skip_to {
                bytes.len().min(usize::try_from(self.skip_to - self.at).unwrap_or(usize::MAX))
            } else if self.header_have > 0 || self.at.is_multiple_of(WAL_PAGE_SIZE) {
                self.take_page_header(bytes)?
            } else {
                self.take_record(bytes, sink)?
            };
            self.at += used as u64;
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Answers how many bytes were used, as do all that follow.
    fn take_page_header(&mut self, bytes: &[u8]) -> Result<usize, WalError> {
        let needed = if self.header_have < SHORT_HEADER { SHORT_HEADER } else { LONG_HEADER };
        let mut used = 0;
        for (place, byte) in self.header.iter_mut().take(needed).skip(self.header_have).zip(bytes) {
            *place = *byte;
            used += 1;
        }
        self.header_have += used;
        let complete = self.header_have == LONG_HEADER
            || self.header_have == SHORT_HEADER && !is_long(self.header.get(..SHORT_HEADER).unwrap_or_default());
        if complete {
            let content = self.at + used as u64;
            self.enter_page(Lsn::new(content - self.header_have as u64), content)?;
            self.header_have = 0;
        }
        Ok(used)
    }

    fn enter_page(&mut self, page: Lsn, content: u64) -> Result<(), WalError> {
        let bytes = self.header.get(..self.header_have).unwrap_or_default();
        // Nothing was ever written here: the log ends, it is not damaged.
        if bytes.iter().all(|byte| *byte == 0) {
            let lsn = if self.partial.is_empty() { page } else { self.begin.lsn };
            return Err(WalError::EndOfLog { lsn, why: RecordFault::Zero });
        }
        let fault = |why| WalError::Page { lsn: page, why };
        let header = PageHeader::read(bytes).ok_or(fault(PageFault::TooShort))?;
        header.check(page, self.format, self.size, self.system_id).map_err(fault)?;
        // A child's timeline always has a greater number than its parent's.
        if header.timeline < self.timeline || header.timeline.get() == 0 {
            return Err(fault(PageFault::Timeline(header.timeline)));
        }
        self.timeline = header.timeline;
        self.system_id = self.system_id.or(header.system_id());
        self.enter_continuation(page, content, &header)
    }

    /// Settles what the page begins with against what is owed.
    fn enter_continuation(&mut self, page: Lsn, content: u64, header: &PageHeader) -> Result<(), WalError> {
        if header.replaces_continuation() {
            self.partial.clear();
            self.owed = Owed::Record;
        }
        let owed = match self.owed {
            Owed::Anything => header.is_continuation().then_some(header.remaining as usize),
            Owed::Rest(remaining) => Some(remaining as usize),
            Owed::Record if self.partial.is_empty() => None,
            Owed::Record => record::length(&self.partial)
                .map_err(|why| WalError::EndOfLog { lsn: self.begin.lsn, why })?
                .map(|length| length - self.partial.len()),
        };
        let Some(owed) = owed else {
            self.owed = Owed::Record;
            return if header.is_continuation() {
                Err(WalError::EndOfLog { lsn: page, why: RecordFault::NotBegun })
            } else {
                Ok(())
            };
        };
        if !header.is_continuation() || header.remaining as usize != owed || owed == 0 {
            let lsn = if self.partial.is_empty() { self.position } else { self.begin.lsn };
            return Err(WalError::EndOfLog { lsn, why: RecordFault::NotContinued(page) });
        }
        if self.partial.is_empty() {
            let space = WAL_PAGE_SIZE - content % WAL_PAGE_SIZE;
            self.skip_to = content + (owed as u64).next_multiple_of(8).min(space);
            self.owed = match (owed as u64).checked_sub(space) {
                Some(rest) if rest > 0 => Owed::Rest(rest as u32),
                _ => Owed::Record,
            };
        }
        Ok(())
    }

    fn take_record(&mut self, bytes: &[u8], sink: &mut impl FnMut(Record<'_>)) -> Result<usize, WalError> {
        let space = (WAL_PAGE_SIZE - self.at % WAL_PAGE_SIZE) as usize;
        let here = bytes.get(..bytes.len().min(space)).unwrap_or_default();
        if !self.partial.is_empty() {
            return self.take_more(here, sink);
        }
        let lsn = Lsn::new(self.at);
        self.begin = Location { lsn, end: lsn, timeline: self.timeline };
        // Most records lie whole on one page: those are read where they are.
        match self.examine(here)? {
            Some(length) if length <= here.len() => {
                self.deliver(here.get(..length).unwrap_or_default(), self.at + length as u64, sink)?;
                Ok(length)
            }
            _ => {
                self.partial.extend_from_slice(here);
                Ok(here.len())
            }
        }
    }

    /// Adds to a record that did not come in one piece.
    fn take_more(&mut self, here: &[u8], sink: &mut impl FnMut(Record<'_>)) -> Result<usize, WalError> {
        let have = self.partial.len();
        let target = match self.examine(&self.partial)? {
            None => 4,
            Some(_) if have < RECORD_HEADER => RECORD_HEADER,
            Some(length) => length,
        };
        let used = here.len().min(target - have);
        self.partial.extend_from_slice(here.get(..used).unwrap_or_default());
        if self.examine(&self.partial)? == Some(self.partial.len()) {
            let mut whole = std::mem::take(&mut self.partial);
            self.deliver(&whole, self.at + used as u64, sink)?;
            if whole.capacity() <= BUFFER_KEPT {
                whole.clear();
                self.partial = whole;
            }
        }
        Ok(used)
    }

    /// Checks what can be checked of a record that begins with these bytes; answers its length once it is known.
    fn examine(&self, bytes: &[u8]) -> Result<Option<usize>, WalError> {
        let fault = |why| WalError::EndOfLog { lsn: self.begin.lsn, why };
        let length = record::length(bytes).map_err(fault)?;
        let Some(header) = RecordHeader::read(bytes) else { return Ok(length) };
        if !self.format.knows_rmgr(header.rmgr) {
            return Err(fault(RecordFault::ResourceManager(header.rmgr)));
        }
        // Guards against a record that was valid once and shows up again in a file that is used anew.
        let follows = match self.previous {
            Some(previous) => header.previous == previous,
            None => header.previous < self.begin.lsn,
        };
        if follows { Ok(length) } else { Err(fault(RecordFault::Previous(header.previous))) }
    }

    fn deliver(&mut self, bytes: &[u8], end: u64, sink: &mut impl FnMut(Record<'_>)) -> Result<(), WalError> {
        let fault = |why| WalError::EndOfLog { lsn: self.begin.lsn, why };
        let header = RecordHeader::read(bytes).ok_or(fault(RecordFault::Length(bytes.len() as u32)))?;
        let aligned = end.next_multiple_of(8);
        // The rest of the segment means nothing after a switch.
        let end = Lsn::new(if header.is_switch() { aligned.next_multiple_of(self.size.get()) } else { aligned });
        let location = Location { end, ..self.begin };
        let record = Record::decode(bytes, &header, location, self.format).map_err(fault)?;
        sink(record);
        self.skip_to = end.get();
        self.position = end;
        self.previous = Some(self.begin.lsn);
        Ok(())
    }
}
