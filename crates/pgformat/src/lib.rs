//! The bytes PostgreSQL writes: data pages, `pg_control`, `backup_label`, timeline histories, the names in a data
//! directory and the write-ahead log, for PostgreSQL 13 to 18.
//!
//! Everything here is pure: it is given bytes and answers with values, opens no file and reads no clock. Input is
//! never trusted: no bytes make these parsers panic or reserve more memory than they were given.
//!
//! All numbers are little endian, as on every machine Holdfast runs on; data from another kind of machine is refused
//! where a version or magic number is read.

#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

mod bytes;
pub mod control;
pub mod history;
pub mod label;
pub mod page;
pub mod path;
mod relation;
pub mod wal;

pub use control::{ClusterState, ControlError, ControlFile, WalLevel};
pub use history::{HistoryError, TimelineHistory};
pub use label::{BackupLabel, LabelError, TablespaceMap};
pub use page::{PAGE_SIZE, PageVerdict};
pub use path::{Inclusion, RelationFile};
pub use relation::{DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Relation};
pub use wal::{Event, Record, WalDecoder, WalError};
