//! Identifiers and values that the whole of Holdfast shares.
//!
//! Every type is parsed once, where it enters, and prints the way PostgreSQL or the operator writes it.

mod id;
mod lsn;
mod segment;
mod size;
mod time;

pub use id::{EpochId, PackId, ParseIdError, RepositoryId, SnapshotId};
pub use lsn::{Lsn, ParseLsnError};
pub use segment::{ParseSegmentError, Segment, SegmentSize, SystemId, Timeline};
pub use size::{ByteSize, ParseByteSizeError};
pub use time::Micros;
