//! The edge to PostgreSQL: SQL, physical replication, the backup functions, and local data directories.
//!
//! One thin client over `postgres-protocol` serves both SQL ([`Client::query`], simple protocol, text results) and
//! physical replication ([`Client::start_physical`]). PostgreSQL refuses SQL on a physical replication connection, so
//! a caller that needs both holds two connections.
//!
//! * [`conninfo`]: where the server is and how to prove who we are.
//! * [`client`]: connecting, queries, rows, quoting.
//! * [`replication`]: slots and the stream of WAL.
//! * [`backup_api`]: one online backup, from start to stop, on one held session.
//! * [`server`]: what a server is and what our role may do there.
//! * [`control`]: what a server reads in its own `pg_control`.
//! * [`cluster`]: starting, stopping and configuring a local data directory.
//!
//! *Retries*: nothing here retries. Every error answers `is_retryable()`, and the caller, who knows what is at stake,
//! decides how often and how long.

pub mod backup_api;
pub mod client;
pub mod cluster;
pub mod conninfo;
pub mod control;
pub mod replication;
pub mod server;

pub use backup_api::{BackupError, BackupSession, BackupStart, BackupStop};
pub use client::{Client, ConnectError, Purpose, QueryError, Row, ServerError, ServerVersion};
pub use conninfo::{ConnInfo, ParseConnInfoError};
pub use replication::{Event, ReplicationError, ReplicationStream, SlotState, SystemIdentity};
pub use server::{Finding, Right, ServerInfo, check_rights};
