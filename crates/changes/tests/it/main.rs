//! The map against a model, and against what PostgreSQL says of its own log.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, which may fail loudly and say what they saw"
)]

mod files;
#[path = "../../../pgformat/tests/it/log_writer.rs"]
mod log_writer;
mod note;
mod regress;
mod server;
mod workload;
