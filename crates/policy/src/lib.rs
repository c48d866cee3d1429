//! What is promised, and what follows from it: pure decisions, without a clock, a store or a server.

mod places;
mod retention;

pub use places::{Holding, LogPlaces, Places, Shortfall};
pub use retention::{Decision, LogNeed, Pin, Point, Reason, Retention, RetentionError, decide, log_needs};
