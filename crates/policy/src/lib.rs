//! What is promised, and what follows from it: pure decisions, without a clock, a store or a server.

mod retention;

pub use retention::{Decision, LogNeed, Pin, Point, Reason, Retention, RetentionError, decide, log_needs};
