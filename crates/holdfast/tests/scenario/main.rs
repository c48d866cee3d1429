//! Whole stories: a loaded server, the program as its users run it, an accident, and the judge.
//!
//! `HOLDFAST_ROUNDS` says how often the random stories are repeated; without it they are repeated just a few times.
//! `HOLDFAST_SEED` repeats the choices of a run, which prints its seed. Stories load the machine and promise seconds:
//! run them one at a time, as `make test` does.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::unused_self,
    reason = "a test says its seed and its rounds, and may fail by panic"
)]

mod chance;
mod changes;
mod damage;
mod delta;
mod expiry;
mod histories;
mod impact;
mod incremental;
mod kills;
mod kills_incremental;
mod leftovers;
mod load;
mod loss;
mod moments;
mod mount;
mod pages;
mod places;
mod process;
mod replay;
mod resume;
#[path = "../shared/run.rs"]
mod run;
mod site;
mod standby;
mod store;
mod vanished;
