use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The time since some moment, which goes on while the machine sleeps and does not jump when somebody sets its clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The kernel's (`CLOCK_BOOTTIME`).
    pub fn boot() -> Self {
        // It can fail only where the kernel has no such clock, and Linux has had it since 2.6.39.
        Self(Arc::new(|| clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()))
    }

    /// Another one, where time is simulated.
    pub fn simulated(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let clock = Clock::boot();
        let before = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.now() >= before + Duration::from_millis(2) && !before.is_zero());
    }
}
