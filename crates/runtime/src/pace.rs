use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use crate::{Cancel, Cancelled};

/// The share of their time that threads may work, set by somebody who watches what their work does to others.
#[derive(Debug)]
pub struct Pace {
    /// In [`Pace::WHOLE`]ths.
    share: AtomicU32,
    is_paused: AtomicBool,
}

impl Pace {
    const WHOLE: u32 = 1 << 16;

    pub fn full() -> Self {
        Self { share: AtomicU32::new(Self::WHOLE), is_paused: AtomicBool::new(false) }
    }

    /// From now on whoever comes to rest does so until [`resume()`](Self::resume).
    pub fn pause(&self) {
        self.is_paused.store(true, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        self.is_paused.store(false, Ordering::Relaxed);
    }

    /// `share` is above 0, and at most 1.
    pub fn set(&self, share: f64) {
        let share = (share * f64::from(Self::WHOLE)) as u32;
        self.share.store(share.clamp(1, Self::WHOLE), Ordering::Relaxed);
    }

    pub fn get(&self) -> f64 {
        f64::from(self.share.load(Ordering::Relaxed)) / f64::from(Self::WHOLE)
    }

    /// Blocks the thread for as long as it owes after `work`. A higher pace, or a cancellation, ends it early.
    pub fn rest(&self, work: Duration, cancel: &Cancel) -> Result<(), Cancelled> {
        const STEP: Duration = Duration::from_millis(20);
        let mut rested = Duration::ZERO;
        while self.is_paused.load(Ordering::Relaxed) {
            cancel.check()?;
            std::thread::sleep(STEP / 4);
        }
        loop {
            let share = self.get();
            let owed = work.mul_f64((1.0 - share) / share);
            let left = owed.saturating_sub(rested);
            if left.is_zero() {
                return Ok(());
            }
            let step = left.min(STEP);
            std::thread::sleep(step);
            rested += step;
            cancel.check()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn rests_as_the_share_says() {
        let pace = Pace::full();
        let cancel = Cancel::new();
        let begun = Instant::now();
        pace.rest(Duration::from_hours(1), &cancel).unwrap();
        assert!(begun.elapsed() < Duration::from_mins(1), "at full pace nothing is owed");
        pace.set(0.25);
        let begun = Instant::now();
        pace.rest(Duration::from_millis(10), &cancel).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn a_pause_lasts_until_it_ends() {
        let pace = Pace::full();
        pace.pause();
        std::thread::scope(|scope| {
            let rest = scope.spawn(|| pace.rest(Duration::ZERO, &Cancel::new()));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!rest.is_finished(), "it does not stand still");
            pace.resume();
            assert_eq!(rest.join().unwrap(), Ok(()));
        });
        pace.pause();
        let cancel = Cancel::new();
        cancel.cancel();
        assert_eq!(pace.rest(Duration::ZERO, &cancel), Err(Cancelled));
    }

    #[test]
    fn a_cancellation_ends_the_rest() {
        let pace = Pace::full();
        pace.set(0.0);
        let cancel = Cancel::new();
        cancel.cancel();
        assert_eq!(pace.rest(Duration::from_hours(1), &cancel), Err(Cancelled));
    }
}
