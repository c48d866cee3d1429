//! The crate against a real PostgreSQL.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on is to fail there")]

mod backup;
mod cluster;
mod fake;
mod fixture;
mod login;
mod replication;
mod session;
