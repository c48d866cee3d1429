//! Protecting a PostgreSQL cluster: full backups and the continuous log.
//!
//! [`full()`] copies a running cluster through the backup API; [`receive()`] streams its log from a replication slot;
//! [`push()`] archives single segments for `archive_command`.

mod assemble;
mod error;
mod full;
mod pages;
mod push;
mod receive;
mod scan;
mod segment;
mod spool;
mod worker;

pub use error::BackupError;
pub use full::{BackupOptions, BackupReport, full};
pub use push::{PushError, PushOutcome, push};
pub use receive::{ReceiveError, ReceiveOptions, ReceiveStatus, receive};
