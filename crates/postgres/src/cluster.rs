//! A local data directory: whose it is, whether a server runs on it, starting and stopping one.
//!
//! PostgreSQL refuses to run as root. When this process is root, every program is run as the owner of the data
//! directory instead, with that user's groups (the key of a Debian server's certificate belongs to a group).
//!
//! *Consistency*: whether a server runs has three answers. [`Running::Unknown`] is not "no": nothing may be
//! overwritten on its strength.
//!
//! *Cancellation*: a dropped [`PgCtl::start`] or [`PgCtl::stop`] may leave the server starting or stopping.
//! [`is_running`] and [`PgCtl::wait_ready`] tell what became of it.

mod binaries;
pub mod config;
mod control;
mod running;

pub use binaries::{Binaries, FindBinariesError};
pub use control::{ClusterError, PgCtl, Readiness, StopMode};
pub use running::{Running, is_running, prove_stopped};
