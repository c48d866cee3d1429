use std::fmt;

use holdfast_types::{Lsn, SystemId, Timeline};

/// Why reading the log stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// Not a release whose log is known.
    #[error("the log of PostgreSQL {0} is not known, that of 13 to 18 is")]
    UnknownVersion(u32),
    /// Reading cannot begin there.
    #[error("the log cannot be read from {0}, where no record or page can begin")]
    Start(Lsn),
    /// No valid record begins at `lsn`.
    ///
    /// PostgreSQL takes that for the end of the log, and in the segment a server is writing to, or left when it
    /// crashed, it is. In a segment that is known to be complete it is damage.
    #[error("the log has no valid record at {lsn}: {why}")]
    EndOfLog {
        /// Where the record would begin.
        lsn: Lsn,
        /// What is there instead.
        why: RecordFault,
    },
    /// A page of the log is not the one that belongs there.
    #[error("the page of the log at {lsn} does not belong there: {why}")]
    Page {
        /// Where the page begins.
        lsn: Lsn,
        /// What its header says.
        why: PageFault,
    },
}

impl WalError {
    /// Whether a server that stopped here without damage could have left these bytes: zeros, a torn record, or a
    /// page of an older segment whose file is being used again.
    pub fn may_be_end(&self) -> bool {
        match self {
            Self::EndOfLog { .. } => true,
            Self::Page { lsn, why: PageFault::Address(address) } => address < lsn,
            Self::UnknownVersion(_) | Self::Start(_) | Self::Page { .. } => false,
        }
    }
}

/// What is wrong with a record (xlogreader.c, `ValidXLogRecordHeader`, `ValidXLogRecord`, `DecodeXLogRecord`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// Nothing has been written there.
    Zero,
    /// Its length is below that of a header or above 1 GiB.
    Length(u32),
    /// No part of PostgreSQL has this number.
    ResourceManager(u8),
    /// It does not follow the record before it but one at this position.
    Previous(Lsn),
    /// Its CRC is wrong.
    Checksum,
    /// The page at this position does not go on with it.
    NotContinued(Lsn),
    /// A page begins with the rest of a record that was not begun.
    NotBegun,
    /// Its CRC is right, yet it does not hold together.
    Content(&'static str),
}

impl fmt::Display for RecordFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "nothing is written there"),
            Self::Length(length) => write!(f, "its length is {length}"),
            Self::ResourceManager(number) => write!(f, "there is no resource manager {number}"),
            Self::Previous(lsn) => write!(f, "it follows a record at {lsn}"),
            Self::Checksum => write!(f, "its checksum is wrong"),
            Self::NotContinued(lsn) => write!(f, "it is not continued at {lsn}"),
            Self::NotBegun => write!(f, "it is the rest of a record that was not begun"),
            Self::Content(what) => write!(f, "{what}"),
        }
    }
}

/// What is wrong with a page header (xlogreader.c, `XLogReaderValidatePageHeader`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFault {
    /// Too few bytes for a header.
    TooShort,
    /// Another release's log, or none at all.
    Magic(u16),
    /// Flags that mean nothing, or a segment's first page without the long header.
    Flags(u16),
    /// Another cluster's log.
    SystemId(SystemId),
    /// A log with segments of another size.
    SegmentSize(u32),
    /// A log with pages of another size.
    PageSize(u32),
    /// A page of another place in the log.
    Address(Lsn),
    /// A page of a timeline that cannot come here.
    Timeline(Timeline),
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort => write!(f, "it is cut off"),
            Self::Magic(magic) => write!(f, "its magic number is {magic:04X}"),
            Self::Flags(flags) => write!(f, "its flags are {flags:04X}"),
            Self::SystemId(id) => write!(f, "it is of the cluster with system identifier {id}"),
            Self::SegmentSize(bytes) => write!(f, "its segments have {bytes} bytes"),
            Self::PageSize(bytes) => write!(f, "its pages have {bytes} bytes"),
            Self::Address(lsn) => write!(f, "it is the page at {lsn}"),
            Self::Timeline(timeline) => write!(f, "it is of timeline {timeline}"),
        }
    }
}

impl std::error::Error for PageFault {}
