//! The lab: an instant-messaging platform as workload against a real PostgreSQL, and the judge of what is left of it.
//!
//! - [`Lab::create`] loads a data set: users, devices, conversations, members, messages with a sequence number per
//!   conversation, read markers, attachments and orders, tied by foreign keys.
//! - [`Lab::run`] lets many writers work on it. Every write is one transaction and is written down in a [`Journal`] on
//!   the client's side: that it is attempted before it is sent, and that it is acknowledged after the commit returned.
//! - [`Lab::check`] compares a database with the journal and returns a [`Report`]: what was acknowledged and is lost,
//!   what was never written and is there, what is altered, out of order, or points to nothing.
//!
//! Each has a blocking form for tests and programs without a runtime of their own.

mod check;
mod connection;
mod error;
mod histogram;
mod journal;
mod load;
mod operation;
mod report;
mod run;
mod text;
mod writer;

use std::path::PathBuf;

pub use check::{CheckOptions, Depth};
pub use error::LabError;
pub use journal::{Acknowledgement, Entry, Journal, Kind, Outcome};
pub use load::LoadSummary;
pub use report::{Finding, Problem, Report};
pub use run::{Control, OnLoss, RunOptions, Running, Totals};

/// The platform in one database.
#[derive(Clone, Debug)]
pub struct Lab {
    conninfo: String,
}

impl Lab {
    /// The platform in the database that a libpq connection string names.
    pub fn new(conninfo: impl Into<String>) -> Self {
        Self { conninfo: conninfo.into() }
    }

    /// Makes the tables and loads about `size_mib` of data; makes the database too if it is missing. The same seed
    /// gives the same data.
    pub async fn create(&self, size_mib: u64, seed: u64) -> Result<LoadSummary, LabError> {
        load::create(&self.conninfo, size_mib, seed).await
    }

    /// Lets the writers work until their time is over, `control` stops them, or the server is lost.
    pub async fn run(&self, options: &RunOptions, control: &Control) -> Result<Totals, LabError> {
        run::run(&self.conninfo, options, control).await
    }

    /// Judges the database by the journals.
    pub async fn check(&self, journals: &[PathBuf], options: &CheckOptions) -> Result<Report, LabError> {
        check::check(&self.conninfo, journals, options).await
    }

    /// [`Lab::create`] for callers without a runtime.
    pub fn create_blocking(&self, size_mib: u64, seed: u64) -> Result<LoadSummary, LabError> {
        run::runtime().block_on(self.create(size_mib, seed))
    }

    /// [`Lab::run`] on a thread of its own.
    pub fn start(&self, options: RunOptions) -> Running {
        Running::start(self.clone(), options)
    }

    /// [`Lab::check`] for callers without a runtime.
    pub fn check_blocking(&self, journals: &[PathBuf], options: &CheckOptions) -> Result<Report, LabError> {
        run::runtime().block_on(self.check(journals, options))
    }
}
