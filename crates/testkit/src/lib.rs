//! Real servers for tests: PostgreSQL, Ceph's object gateway, which speaks S3, Azurite, which speaks Azure Blob, and OpenSSH.
//!
//! A test asks for a version, gets a private server in a temporary directory, and loses it when the value is dropped:
//!
//! ```no_run
//! use holdfast_testkit::{Postgres, require};
//!
//! let mut server = Postgres::build(&require(15)).setting("max_wal_size", "64MB").start();
//! server.sql("create table t (id int)");
//! server.kill_9();
//! server.start();
//! assert_eq!(server.sql("select count(*) from t"), "0");
//! ```
//!
//! Whatever cannot be expected to fail panics with the server's own words; what a test may want to see fail has a
//! `try_` sibling. PostgreSQL refuses to run as root: when the tests do, the servers run as user `postgres`, see
//! [`command_as_server_user`].

mod azurite;
mod ceph;
mod daemon;
mod delay_proxy;
mod fault_proxy;
mod postgres;
mod process;
mod ssh;
mod temp_root;
mod tools;
mod user;
mod version;
mod wait;

pub use azurite::Azurite;
pub use ceph::Ceph;
pub use delay_proxy::DelayProxy;
pub use fault_proxy::{Fault, FaultProxy, Request};
pub use postgres::{Postgres, PostgresBuilder, StartError, StopMode};
pub use ssh::SshServer;
pub use temp_root::TempRoot;
pub use tools::{ControlData, pg_amcheck, pg_checksums_check, pg_controldata, run};
pub use user::{command_as_server_user, own};
pub use version::{PgVersion, default_version, require, versions};
pub use wait::wait_until;
