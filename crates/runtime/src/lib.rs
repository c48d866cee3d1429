//! How work runs: cancellation, time, progress, rate limits, pace and priority, retries, direct I/O.

mod cancel;
mod clock;
mod direct;
mod limit;
mod pace;
mod priority;
mod progress;
mod retry;

pub use cancel::{Cancel, Cancelled};
pub use clock::Clock;
pub use direct::{ALIGNMENT, AlignedBuffer, leave_direct, open_direct, read_full_at};
pub use limit::RateLimit;
pub use pace::Pace;
pub use priority::{IoClass, lower_thread};
pub use progress::{LogPosition, Phase, Progress, Reading};
pub use retry::{Backoff, retry};
