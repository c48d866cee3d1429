//! Random choices that can be repeated.

use std::time::{Duration, SystemTime};

/// How often to repeat a random story: `default` times, or what was asked for divided by `share`.
pub(crate) fn rounds(default: u64, share: u64) -> u64 {
    asked_for().map_or(default, |rounds| rounds.div_ceil(share))
}

/// Whether this is the long run, in which nothing is left out.
pub(crate) fn is_soak() -> bool {
    asked_for().is_some()
}

fn asked_for() -> Option<u64> {
    let text = std::env::var("HOLDFAST_ROUNDS").ok()?;
    Some(text.parse().expect("HOLDFAST_ROUNDS is a number"))
}

/// A generator of small quality (splitmix64), which is enough to choose moments and victims.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// From HOLDFAST_SEED, or from the clock; prints what it takes.
    pub(crate) fn new(story: &str) -> Self {
        let seed = match std::env::var("HOLDFAST_SEED") {
            Ok(text) => text.parse().expect("HOLDFAST_SEED is a number"),
            Err(_) => SystemTime::UNIX_EPOCH.elapsed().expect("the clock is set").as_nanos() as u64,
        };
        println!("{story}: HOLDFAST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn number(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    /// Lets a random time pass: what happens next happens at a random moment.
    pub(crate) fn pause(&mut self, from: Duration, to: Duration) {
        let span = to.checked_sub(from).unwrap().as_micros() as u64;
        std::thread::sleep(from + Duration::from_micros(self.number(span.max(1))));
    }
}
