use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_types::{Lsn, Micros};

/// What a job is doing, in words that the operator knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase(pub &'static str);

/// Counts what a job has done. The job writes, whoever shows it reads; neither waits for the other.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    done: AtomicU64,
    total: AtomicU64,
    phases: Mutex<Vec<(Phase, Instant)>>,
    remark: Mutex<Option<String>>,
    position: Mutex<Option<LogPosition>>,
}

/// How far a job has come along the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    pub lsn: Lsn,
    /// Of the last commit up to there, once it is known.
    pub time: Option<Micros>,
}

/// What [`Progress`] stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub phase: Option<Phase>,
    pub done: u64,
    /// Zero where the job can't know it.
    pub total: u64,
    /// Only of a job that follows the log.
    pub position: Option<LogPosition>,
}

impl Progress {
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a new phase, of `total` bytes if that can be known.
    pub fn begin(&self, phase: Phase, total: u64) {
        let mut phases = self.shared.phases.lock().unwrap_or_else(PoisonError::into_inner);
        phases.push((phase, Instant::now()));
        self.shared.total.store(total, Relaxed);
        self.shared.done.store(0, Relaxed);
        *self.shared.remark.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.position() = None;
    }

    /// Says something of the phase that has begun, such as why it may take long. It goes with the phase.
    pub fn remark(&self, text: String) {
        *self.shared.remark.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// What there is to say of the phase.
    pub fn read_remark(&self) -> Option<String> {
        self.shared.remark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn position(&self) -> MutexGuard<'_, Option<LogPosition>> {
        self.shared.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log was followed up to here; never backwards.
    pub fn reach(&self, lsn: Lsn) {
        let mut position = self.position();
        let before = position.unwrap_or(LogPosition { lsn, time: None });
        *position = Some(LogPosition { lsn: before.lsn.max(lsn), ..before });
    }

    /// The commits up to this moment are done; never backwards. Nothing as long as no position is known.
    pub fn reach_time(&self, time: Micros) {
        if let Some(position) = &mut *self.position() {
            position.time = position.time.max(Some(time));
        }
    }

    pub fn add(&self, bytes: u64) {
        self.shared.done.fetch_add(bytes, Relaxed);
    }

    pub fn set(&self, done: u64) {
        self.shared.done.store(done, Relaxed);
    }

    pub fn read(&self) -> Reading {
        let phases = self.shared.phases.lock().unwrap_or_else(PoisonError::into_inner);
        Reading {
            phase: phases.last().map(|(phase, _)| *phase),
            done: self.shared.done.load(Relaxed),
            total: self.shared.total.load(Relaxed),
            position: *self.position(),
        }
    }

    /// How long each phase took; the last one until now.
    pub fn durations(&self) -> Vec<(Phase, Duration)> {
        let phases = self.shared.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = phases.iter().skip(1).map(|(_, start)| *start).chain([Instant::now()]);
        phases.iter().zip(ends).map(|((phase, start), end)| (*phase, end.saturating_duration_since(*start))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_goes_with_its_phase() {
        let progress = Progress::new();
        progress.begin(Phase("waiting"), 0);
        progress.remark("it may take long".to_owned());
        assert_eq!(progress.read_remark().as_deref(), Some("it may take long"));
        progress.begin(Phase("working"), 0);
        assert_eq!(progress.read_remark(), None);
    }

    #[test]
    fn the_position_never_goes_back_but_for_a_new_phase() {
        let progress = Progress::new();
        progress.begin(Phase("replaying"), 0);
        progress.reach_time(Micros::new(1));
        assert_eq!(progress.read().position, None);
        progress.reach(Lsn::new(20));
        progress.reach_time(Micros::new(7));
        progress.reach(Lsn::new(10));
        progress.reach_time(Micros::new(6));
        assert_eq!(progress.read().position, Some(LogPosition { lsn: Lsn::new(20), time: Some(Micros::new(7)) }));
        progress.begin(Phase("another"), 0);
        assert_eq!(progress.read().position, None);
    }
}
