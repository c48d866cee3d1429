//! Bringing a PostgreSQL cluster back: choosing a snapshot and a way along the log, restoring, replaying, proving.
//!
//! [`plan()`] decides and touches nothing; [`restore()`] carries a plan out, and [`compare()`] says how much that would
//! move where much of it is there already; [`start()`] brings the result up and says which
//! point was reached; [`get()`] serves segments to `restore_command`, and [`prefetch()`] fetches them ahead of it.

mod ahead;
mod compare;
mod delta;
mod error;
mod get;
mod inspect;
mod lay;
mod plan;
mod points;
mod ready;
mod replay;
mod restore;
mod settings;
mod start;

pub use ahead::{Asked, Handover, PrefetchOptions, ask, is_needed, is_served, prefetch};
pub use error::RestoreError;
pub use get::{Follows, GetError, GetOptions, GetOutcome, LatestProgress, get};
pub use inspect::inspect_log;
pub use plan::{Plan, Target, plan};
pub use points::{RecoverablePoints, RecoverableRange, TimelinePoints, recoverable};
pub use restore::{ArchiveMode, Comparison, RestoreOptions, RestoreReport, Reused, compare, restore};
pub use start::{Reached, log_file, start};
