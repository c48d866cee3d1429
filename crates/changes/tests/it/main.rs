//! The map against a model, and against what PostgreSQL says of its own log.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which may fail loudly")]

mod files;
#[path = "../../../pgformat/tests/it/log_writer.rs"]
mod log_writer;
mod note;
mod server;
mod workload;
