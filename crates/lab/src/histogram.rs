//! Latencies in a fixed amount of memory.

use std::time::Duration;

/// Each power of two is divided into this many buckets, so a percentile is right to about 3 %.
const DIVISIONS: u64 = 32;
const BUCKETS: usize = 64 * DIVISIONS as usize;

/// How often each latency occurred, in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    longest_us: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], longest_us: 0 }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = latency.as_micros() as u64;
        self.longest_us = self.longest_us.max(micros);
        self.counts[bucket(micros)] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.longest_us = self.longest_us.max(other.longest_us);
    }

    pub(crate) fn longest_us(&self) -> u64 {
        self.longest_us
    }

    /// The latency that this share of all did not exceed; 0 if there are none.
    pub(crate) fn percentile_us(&self, percent: f64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let rank = ((total as f64) * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && *count > 0 {
                return top(index).min(self.longest_us);
            }
        }
        0
    }
}

fn bucket(micros: u64) -> usize {
    if micros < DIVISIONS {
        return micros as usize;
    }
    let shift = micros.ilog2() - DIVISIONS.ilog2();
    (u64::from(shift + 1) * DIVISIONS + ((micros >> shift) - DIVISIONS)) as usize
}

/// The largest value of a bucket.
fn top(index: usize) -> u64 {
    let index = index as u64;
    if index < DIVISIONS {
        return index;
    }
    let shift = index / DIVISIONS - 1;
    ((index % DIVISIONS + DIVISIONS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        let mut previous = 0;
        for micros in 0..100_000 {
            let index = bucket(micros);
            assert!(index == previous || index == previous + 1, "{micros}");
            assert!(top(index) >= micros && top(index) as f64 <= micros as f64 * 1.04 + 1.0, "{micros}");
            previous = index;
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_close() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentile_us(50.0), 0);
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        assert!((500..=515).contains(&histogram.percentile_us(50.0)));
        assert!((990..=1000).contains(&histogram.percentile_us(99.0)));
        assert_eq!(histogram.percentile_us(100.0), 1000);
    }
}
