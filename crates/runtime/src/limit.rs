use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bounds how many bytes (or reads, or whatever is counted) a second pass, over all threads that share it.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u64,
    /// When what was let through so far will have been paid for.
    paid_until: Mutex<Instant>,
}

/// How much may pass at once after a pause.
const BURST: Duration = Duration::from_millis(100);

impl RateLimit {
    pub fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), paid_until: Mutex::new(Instant::now()) }
    }

    /// Blocks the thread until `amount` may pass.
    pub fn wait(&self, amount: u64) {
        std::thread::sleep(self.debit(amount, Instant::now()));
    }

    /// Books `amount` and says how long the caller has to wait for them.
    fn debit(&self, amount: u64, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(amount as f64 / self.per_second as f64);
        let mut paid_until = self.paid_until.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = (*paid_until).max(now.checked_sub(BURST).unwrap_or(now));
        *paid_until = start + cost;
        paid_until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_what_was_agreed_and_no_more() {
        let limit = RateLimit::new(1_000_000);
        let start = Instant::now();
        let waits: Vec<_> = (0..10).map(|_| limit.debit(100_000, start)).collect();
        // A second's worth of bytes at one instant: the last of them waits for a second less the burst.
        assert!(waits.windows(2).all(|w| w[0] <= w[1]));
        assert!(waits[9] <= Duration::from_secs(1) && waits[9] >= Duration::from_millis(890), "{:?}", waits[9]);
        // After a long pause nothing is owed, and the pause gives no more than the burst.
        let later = start + Duration::from_mins(1);
        assert_eq!(limit.debit(100_000, later), Duration::ZERO);
        assert!(limit.debit(1_000_000, later) >= Duration::from_millis(999));
    }
}
