//! How work runs: cancellation, progress, rate limits, retries.

mod cancel;
mod limit;
mod progress;
mod retry;

pub use cancel::{Cancel, Cancelled};
pub use limit::RateLimit;
pub use progress::{Phase, Progress, Reading};
pub use retry::{Backoff, retry};
