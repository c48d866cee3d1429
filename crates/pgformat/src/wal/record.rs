//! One record of the log (xlogrecord.h, `XLogRecord`; xlogreader.c, `DecodeXLogRecord`).

use holdfast_types::{Lsn, Timeline};

use super::{Format, RecordFault, rmgr};
use crate::bytes::Reader;
use crate::relation::{Fork, Relation};

pub(super) const RECORD_HEADER: usize = 24;
/// PostgreSQL cannot read longer ones back (`XLogRecordMaxSize`, and the limit of an allocation before 16).
const LONGEST_RECORD: u32 = 1 << 30;

const LAST_BLOCK_ID: u8 = 32;
const MAIN_SHORT: u8 = 255;
const MAIN_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL_XID: u8 = 252;

const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;
const IMAGE_HAS_HOLE: u8 = 0x01;

const SWITCH: u8 = 0x40;

/// A complete record whose CRC is right.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where it begins.
    pub lsn: Lsn,
    /// Where the next one can begin, PostgreSQL's end position of the record: what a commit waits for.
    pub end: Lsn,
    /// Where the record before it begins.
    pub previous: Lsn,
    /// The timeline of the page it begins on.
    pub timeline: Timeline,
    /// The transaction that wrote it; zero for none.
    pub xid: u32,
    /// Which part of PostgreSQL wrote it, see [`rmgr`](mod@super::rmgr).
    pub rmgr: u8,
    /// What kind of record it is to that part; the low four bits mean the same to all parts.
    pub info: u8,
    /// What belongs to no block.
    pub main: &'a [u8],
    /// Length with its header.
    pub length: u32,
    headers: &'a [u8],
    pub(super) format: Format,
}

/// A page that a record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// The record's own number for the page.
    pub id: u8,
    /// Object id of the tablespace.
    pub tablespace: u32,
    /// Object id of the database; zero for what all databases share.
    pub database: u32,
    /// The relation's number.
    pub relfilenode: u32,
    /// Which part of the relation.
    pub fork: Fork,
    /// Which page of the fork.
    pub block: u32,
    /// Whether the record holds the whole page.
    pub has_image: bool,
    /// Whether replay puts that image in place, rather than only comparing it.
    pub applies_image: bool,
    /// Whether replay builds the page anew without reading it.
    pub will_init: bool,
}

impl BlockRef {
    /// The relation the page is of.
    pub const fn relation(&self) -> Relation {
        Relation { tablespace: self.tablespace, database: self.database, relfilenode: self.relfilenode }
    }
}

/// The fixed part of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    length: u32,
    xid: u32,
    pub previous: Lsn,
    info: u8,
    pub rmgr: u8,
    checksum: u32,
}

impl RecordHeader {
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let length = reader.u32()?;
        let xid = reader.u32()?;
        let previous = reader.lsn()?;
        let (info, rmgr) = (reader.u8()?, reader.u8()?);
        reader.u16()?;
        Some(Self { length, xid, previous, info, rmgr, checksum: reader.u32()? })
    }

    pub const fn is_switch(&self) -> bool {
        self.rmgr == rmgr::XLOG && self.info & 0xF0 == SWITCH
    }
}

/// The length of the record that begins with these bytes; `None` if they are fewer than four.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, RecordFault> {
    match Reader(bytes).u32() {
        None => Ok(None),
        Some(0) => Err(RecordFault::Zero),
        Some(length) if (length as usize) < RECORD_HEADER || length > LONGEST_RECORD => {
            Err(RecordFault::Length(length))
        }
        Some(length) => Ok(Some(length as usize)),
    }
}

/// Where a record lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Location {
    pub lsn: Lsn,
    pub end: Lsn,
    pub timeline: Timeline,
}

impl<'a> Record<'a> {
    /// Checks the CRC and that the parts add up.
    pub(super) fn decode(
        bytes: &'a [u8],
        header: &RecordHeader,
        location: Location,
        format: Format,
    ) -> Result<Self, RecordFault> {
        let (Some(fixed), Some(body)) = (bytes.get(..20), bytes.get(RECORD_HEADER..)) else {
            return Err(RecordFault::Content("it is shorter than its header"));
        };
        // The header comes last, so that the server can compute the rest before it knows the position.
        if crc32c::crc32c_append(crc32c::crc32c(body), fixed) != header.checksum {
            return Err(RecordFault::Checksum);
        }
        let (headers, main) = split(body, format).map_err(RecordFault::Content)?;
        Ok(Self {
            lsn: location.lsn,
            end: location.end,
            previous: header.previous,
            timeline: location.timeline,
            xid: header.xid,
            rmgr: header.rmgr,
            info: header.info,
            main,
            length: header.length,
            headers,
            format,
        })
    }

    /// The pages it changes, in the order of their numbers.
    pub const fn blocks(&self) -> Blocks<'a> {
        Blocks { headers: Reader(self.headers), relation: None, format: self.format }
    }

    /// The kind of record: `info` without what is common to all parts of PostgreSQL.
    pub(super) const fn kind(&self) -> u8 {
        self.info & 0xF0
    }
}

/// Checks all fragment headers and divides a record's body into those headers and the main data.
fn split(body: &[u8], format: Format) -> Result<(&[u8], &[u8]), &'static str> {
    let mut reader = Reader(body);
    let (mut relation, mut last_id) = (None, None);
    let (mut payload, mut main) = (0, 0);
    while reader.0.len() > payload {
        match Fragment::read(&mut reader, relation, format)? {
            Fragment::Block(block, length) => {
                if last_id.is_some_and(|last| block.id <= last) {
                    return Err("its block numbers are out of order");
                }
                last_id = Some(block.id);
                relation = Some(block.relation());
                payload += length;
            }
            Fragment::Other => {}
            // By convention the main data comes last.
            Fragment::Main(length) => {
                main = length;
                payload += length;
                break;
            }
        }
    }
    if reader.0.len() != payload {
        return Err("its parts do not add up to its length");
    }
    let headers = body.len() - reader.0.len();
    let parts = body.get(..headers).zip(body.get(body.len() - main..));
    parts.ok_or("its parts do not add up to its length")
}

enum Fragment {
    /// A block reference and how many bytes of image and data belong to it.
    Block(BlockRef, usize),
    Main(usize),
    Other,
}

const CUT_OFF: &str = "a header in it is cut off";

impl Fragment {
    fn read(reader: &mut Reader<'_>, relation: Option<Relation>, format: Format) -> Result<Self, &'static str> {
        match reader.u8().ok_or(CUT_OFF)? {
            MAIN_SHORT => Ok(Self::Main(reader.u8().ok_or(CUT_OFF)?.into())),
            MAIN_LONG => Ok(Self::Main(reader.u32().ok_or(CUT_OFF)? as usize)),
            ORIGIN => reader.u16().map(|_| Self::Other).ok_or(CUT_OFF),
            TOP_LEVEL_XID if format.has_top_level_xid() => reader.u32().map(|_| Self::Other).ok_or(CUT_OFF),
            id @ 0..=LAST_BLOCK_ID => Self::block(id, reader, relation, format),
            _ => Err("it has a part of an unknown kind"),
        }
    }

    fn block(
        id: u8,
        reader: &mut Reader<'_>,
        relation: Option<Relation>,
        format: Format,
    ) -> Result<Self, &'static str> {
        let flags = reader.u8().ok_or(CUT_OFF)?;
        let data = reader.u16().ok_or(CUT_OFF)?;
        let fork = Fork::from_number(u32::from(flags & 0x0F)).ok_or("it changes a fork that does not exist")?;
        if (flags & HAS_DATA != 0) != (data > 0) {
            return Err("a block's flags and data contradict each other");
        }
        let has_image = flags & HAS_IMAGE != 0;
        let (mut image, mut applies_image) = (0, false);
        if has_image {
            image = reader.u16().ok_or(CUT_OFF)?;
            reader.u16().ok_or(CUT_OFF)?;
            let info = reader.u8().ok_or(CUT_OFF)?;
            if info & IMAGE_HAS_HOLE != 0 && format.image_is_compressed(info) {
                reader.u16().ok_or(CUT_OFF)?;
            }
            applies_image = format.image_is_applied(info);
        }
        let relation = if flags & SAME_RELATION == 0 {
            read_relation(reader).ok_or(CUT_OFF)?
        } else {
            relation.ok_or("its first block is of the same relation as the one before")?
        };
        let Relation { tablespace, database, relfilenode } = relation;
        let block = reader.u32().ok_or(CUT_OFF)?;
        let will_init = flags & WILL_INIT != 0;
        let block =
            BlockRef { id, tablespace, database, relfilenode, fork, block, has_image, applies_image, will_init };
        Ok(Self::Block(block, usize::from(data) + usize::from(image)))
    }
}

pub(super) fn read_relation(reader: &mut Reader<'_>) -> Option<Relation> {
    Some(Relation { tablespace: reader.u32()?, database: reader.u32()?, relfilenode: reader.u32()? })
}

/// The pages that a record changes.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    headers: Reader<'a>,
    relation: Option<Relation>,
    format: Format,
}

impl Iterator for Blocks<'_> {
    type Item = BlockRef;

    fn next(&mut self) -> Option<BlockRef> {
        loop {
            // The headers were checked when the record was read.
            match Fragment::read(&mut self.headers, self.relation, self.format).ok()? {
                Fragment::Block(block, _) => {
                    self.relation = Some(block.relation());
                    return Some(block);
                }
                Fragment::Main(_) => return None,
                Fragment::Other => {}
            }
        }
    }
}
