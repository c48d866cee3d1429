//! Protecting a PostgreSQL cluster: backups and the continuous log.
//!
//! [`backup()`] copies a running cluster through the backup API, whole or what changed since an earlier snapshot;
//! [`receive()`] streams its log from a replication slot; [`push()`] archives single segments for `archive_command`.

mod assemble;
mod audit;
mod base;
mod changes;
mod copy;
mod error;
mod feed;
mod fragmentation;
mod identity;
mod impact;
mod joints;
mod packs;
mod pages;
mod push;
mod receive;
mod relation_names;
mod replay;
mod scan;
mod segment;
mod select;
mod server;
mod snapshot;
mod spool;
mod upstream;
mod vanished;
mod window;
mod worker;

pub use error::BackupError;
pub use identity::prove_local;
pub use impact::{Impact, LatencyLimit, Limit, LimitError};
pub use push::{PushError, PushOutcome, push};
pub use receive::{ReceiveError, ReceiveOptions, ReceiveStatus, receive};
pub use replay::{Due, Newest, Positions, Replay, ReplayBound, due, log_behind, log_since, newest_on};
pub use server::lineage;
pub use snapshot::{BackupOptions, BackupReport, backup};
pub use window::{Window, WindowError, Windows};
