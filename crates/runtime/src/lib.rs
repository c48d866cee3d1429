//! How work runs: cancellation, progress, rate limits, retries, direct I/O.

mod cancel;
mod direct;
mod limit;
mod progress;
mod retry;

pub use cancel::{Cancel, Cancelled};
pub use direct::{ALIGNMENT, AlignedBuffer, leave_direct, open_direct, read_full_at};
pub use limit::RateLimit;
pub use progress::{Phase, Progress, Reading};
pub use retry::{Backoff, retry};
