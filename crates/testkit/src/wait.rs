//! Waiting for a condition instead of sleeping and hoping.

use std::time::{Duration, Instant};

/// How long to wait between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds; panics, naming `what`, when it does not within `bound`.
#[track_caller]
pub fn wait_until(bound: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(bound, condition), "waited {bound:?} in vain until {what}");
}

/// Whether `condition` comes to hold within `bound`. It is looked at once more after the bound has passed, so that
/// a machine that stalls for a moment does not turn a success into a failure.
pub(crate) fn holds_within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        let last_look = start.elapsed() >= bound;
        if condition() {
            return true;
        }
        if last_look {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
