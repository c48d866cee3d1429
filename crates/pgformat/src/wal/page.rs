//! Page headers of the log (xlog_internal.h, `XLogPageHeaderData`).

use holdfast_types::{Lsn, Segment, SegmentSize, SystemId, Timeline};

use super::{Format, PageFault};
use crate::bytes::Reader;

/// The size of a page of the log. PostgreSQL can be compiled with another one; a long header tells, and we refuse it.
pub const WAL_PAGE_SIZE: u64 = 8192;

pub(super) const SHORT_HEADER: usize = 24;
pub(super) const LONG_HEADER: usize = 40;

const FIRST_IS_CONTINUATION: u16 = 0x0001;
const IS_LONG: u16 = 0x0002;
const FIRST_REPLACES_CONTINUATION: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// The header of one page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    magic: u16,
    flags: u16,
    pub timeline: Timeline,
    address: Lsn,
    /// How much of the record that began on an earlier page is still to come, this page's part included.
    pub remaining: u32,
    long: Option<LongHeader>,
}

/// What the first page of each segment says in addition.
#[derive(Clone, Copy, Debug)]
struct LongHeader {
    system_id: SystemId,
    segment_size: u32,
    page_size: u32,
}

/// Whether more than the short header must be read.
pub(super) fn is_long(header: &[u8]) -> bool {
    Reader::at(header, 2).u16().is_some_and(|flags| flags & IS_LONG != 0)
}

impl PageHeader {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let magic = reader.u16()?;
        let flags = reader.u16()?;
        let timeline = Timeline::new(reader.u32()?);
        let address = reader.lsn()?;
        let remaining = reader.u32()?;
        reader.u32()?;
        let long = if flags & IS_LONG == 0 {
            None
        } else {
            Some(LongHeader {
                system_id: SystemId::new(reader.u64()?),
                segment_size: reader.u32()?,
                page_size: reader.u32()?,
            })
        };
        Some(Self { magic, flags, timeline, address, remaining, long })
    }

    pub const fn is_continuation(&self) -> bool {
        self.flags & FIRST_IS_CONTINUATION != 0
    }

    /// Whether a record cut off by a crash is given up here (PostgreSQL 14, and minor releases of 13).
    pub const fn replaces_continuation(&self) -> bool {
        self.flags & FIRST_REPLACES_CONTINUATION != 0
    }

    pub fn format(&self) -> Option<Format> {
        Format::with_magic(self.magic)
    }

    pub fn system_id(&self) -> Option<SystemId> {
        self.long.map(|long| long.system_id)
    }

    /// Checks that this is the header of the page at `lsn`.
    pub fn check(
        &self,
        lsn: Lsn,
        format: Format,
        size: SegmentSize,
        system_id: Option<SystemId>,
    ) -> Result<(), PageFault> {
        if self.magic != format.magic() {
            return Err(PageFault::Magic(self.magic));
        }
        let begins_segment = lsn.get().is_multiple_of(size.get());
        if self.flags & !ALL_FLAGS != 0 || begins_segment && self.long.is_none() {
            return Err(PageFault::Flags(self.flags));
        }
        if let Some(long) = self.long {
            if system_id.is_some_and(|expected| expected != long.system_id) {
                return Err(PageFault::SystemId(long.system_id));
            }
            if u64::from(long.segment_size) != size.get() {
                return Err(PageFault::SegmentSize(long.segment_size));
            }
            if u64::from(long.page_size) != WAL_PAGE_SIZE {
                return Err(PageFault::PageSize(long.page_size));
            }
        }
        if self.address == lsn { Ok(()) } else { Err(PageFault::Address(self.address)) }
    }
}

/// The cluster that a segment belongs to, from its first 40 bytes.
pub fn segment_system_id(bytes: &[u8]) -> Option<SystemId> {
    PageHeader::read(bytes).and_then(|header| header.system_id())
}

/// Checks that `bytes`, of which the first 40 are looked at, begin the segment they are said to be; answers which
/// release wrote them. Keeps the log of another cluster, or of another place, out of an archive.
///
/// After a promotion the first pages of a segment can still be of an earlier timeline than its name: the promoted
/// server copies the part before the switch.
pub fn check_segment_start(
    bytes: &[u8],
    system_id: SystemId,
    segment: Segment,
    size: SegmentSize,
) -> Result<u32, PageFault> {
    let header = PageHeader::read(bytes).ok_or(PageFault::TooShort)?;
    let format = header.format().ok_or(PageFault::Magic(header.magic))?;
    let start = segment.number().checked_mul(size.get()).map(Lsn::new).ok_or(PageFault::Address(header.address))?;
    header.check(start, format, size, Some(system_id))?;
    if header.timeline > segment.timeline() || header.timeline.get() == 0 {
        return Err(PageFault::Timeline(header.timeline));
    }
    Ok(format.major())
}
