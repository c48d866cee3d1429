//! The parsers against what PostgreSQL wrote and what its own tools say of it, and against every kind of damage.
//!
//! `tests/fixtures/make.sh` makes the fixtures.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests, which may fail loudly")]

mod by_hand;
mod control;
mod decoder;
mod files;
mod log_writer;
mod oracle;
mod waldump;

use std::path::PathBuf;

fn fixture_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/15").join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(fixture_path(name)).unwrap()
}

fn text_fixture(name: &str) -> String {
    std::fs::read_to_string(fixture_path(name)).unwrap()
}
