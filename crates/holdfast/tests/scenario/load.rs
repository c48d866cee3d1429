//! The lab's writers on a server, and its judge.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_lab::{CheckOptions, Lab, Report, RunOptions, Running};
use holdfast_testkit::{Postgres, TempRoot, wait_until};

const DATABASE: &str = "im";

/// A data set on a server, and the journal of all that was ever written to it.
#[derive(Debug)]
pub(crate) struct Load {
    lab: Lab,
    root: TempRoot,
}

impl Load {
    /// Makes the data set, `size_mib` large.
    pub(crate) fn on(server: &Postgres, size_mib: u64) -> Self {
        let lab = Lab::new(server.conninfo_of(DATABASE));
        lab.create_blocking(size_mib, 42).unwrap_or_else(|error| panic!("{error:?}"));
        Self { lab, root: TempRoot::new() }
    }

    fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// Lets the writers work; returns when the first writes are acknowledged.
    pub(crate) fn start(&self, seed: u64) -> Running {
        self.start_with(|options| options.seed = seed)
    }

    /// The same, slower or otherwise.
    pub(crate) fn start_with(&self, change: impl FnOnce(&mut RunOptions)) -> Running {
        let mut options = RunOptions::new(self.journal());
        change(&mut options);
        let running = self.lab.start(options);
        await_writes(&running, 200);
        running
    }

    /// Judges a server by the journal.
    pub(crate) fn judge(&self, server: &Postgres, options: &CheckOptions) -> Report {
        let lab = Lab::new(server.conninfo_of(DATABASE));
        lab.check_blocking(&[self.journal()], options).unwrap_or_else(|error| panic!("{error:?}"))
    }

    /// Judges a server, and fails unless at most so many seconds are lost, from the end, and all else is whole.
    #[track_caller]
    pub(crate) fn expect_loss_within(&self, server: &Postgres, seconds: f64) -> Report {
        let report = self.judge(server, &CheckOptions { allowed_loss_seconds: seconds, ..CheckOptions::default() });
        assert!(report.well, "more than {seconds} s are lost, or something is broken:\n{report}");
        report
    }
}

/// Waits until this many more writes are acknowledged than now.
#[track_caller]
pub(crate) fn await_writes(running: &Running, count: u64) {
    let goal = running.acknowledged() + count;
    let is_reached = || running.acknowledged() >= goal || running.has_ended();
    wait_until(Duration::from_mins(1), "the writers to write", is_reached);
    assert!(running.acknowledged() >= goal, "the writers have ended");
}
