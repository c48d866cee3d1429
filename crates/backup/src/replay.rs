//! How long the log behind a snapshot would take to replay, and whether that calls for another backup.

use std::time::Duration;

use holdfast_format::manifest::Summary;
use holdfast_repository::{Lineage, Repository, RepositoryError};
use holdfast_types::{ByteSize, Lsn, Segment, Timeline};

/// Log that a recovery would replay, and about how long it would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    pub bytes: u64,
    pub time: Duration,
}

impl Replay {
    /// `rate` is what the machine that would take over replays in a second.
    pub fn of(bytes: u64, rate: ByteSize) -> Self {
        let seconds = bytes as f64 / rate.get().max(1) as f64;
        Self { bytes, time: Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX) }
    }

    pub fn keeps(&self, target: Duration) -> bool {
        self.time <= target
    }
}

/// What the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayBound {
    pub target: Duration,
    pub rate: ByteSize,
}

/// Whether a backup is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// There is no snapshot on this timeline behind which the log is whole.
    NoSnapshot,
    /// The server is before the newest snapshot's end: it was set back, and what it writes now is in no snapshot.
    SetBack,
    Yes(Replay),
    No(Replay),
    /// It would be, and could not begin later than the newest one: the primary has made no checkpoint since.
    InVain(Replay),
    /// The same, though the primary has: the standby that backups are taken from lags.
    Lags(Replay),
}

/// The newest snapshot, as far as it counts here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    pub start: Lsn,
    pub stop: Lsn,
    /// Log since its start that takes time to replay.
    pub bytes: u64,
}

/// Where the servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The source's server.
    pub now: Lsn,
    /// Where a backup would begin.
    pub begin: Lsn,
    /// Whether that is a standby itself.
    pub in_recovery: bool,
    /// Where the primary's last checkpoint begins, if backups are taken from a standby of it.
    pub checkpoint: Option<Lsn>,
}

/// Decides by the newest snapshot's start and the log since then, and by where a backup would begin.
///
/// Half of the target is left for the log that is written until the backup exists.
pub fn due(bound: &ReplayBound, newest: Option<Newest>, at: Positions) -> Due {
    let Some(Newest { start, stop, bytes }) = newest else { return Due::NoSnapshot };
    let replay = Replay::of(bytes, bound.rate);
    if at.now < stop {
        if at.in_recovery { Due::Lags(replay) } else { Due::SetBack }
    } else if replay.keeps(bound.target / 2) {
        Due::No(replay)
    } else if at.begin > start {
        Due::Yes(replay)
    } else if at.checkpoint.is_some_and(|checkpoint| checkpoint > start) {
        Due::Lags(replay)
    } else {
        Due::InVain(replay)
    }
}

/// How much log there is between a snapshot's start and a position.
///
/// When its backup ends, a primary leaves the rest of a segment empty, which takes no time to replay.
pub fn log_since(snapshot: &Summary, end: Lsn) -> u64 {
    let Summary { timeline, start_lsn, stop_lsn, segment_size, from_standby, .. } = snapshot;
    // A backup that ended with its segment has left nothing of the next.
    let last = Lsn::new(stop_lsn.get().saturating_sub(1));
    let segment_end = Segment::containing(*timeline, last, *segment_size).end(*segment_size);
    let bytes = end.bytes_since(*start_lsn);
    if *from_standby || end < segment_end { bytes } else { bytes - segment_end.bytes_since(*stop_lsn) }
}

/// The snapshot of a timeline from which the least log would be replayed to the end of the log; `None` if there is none
/// behind which the log is whole.
pub async fn newest_on(
    repository: &Repository,
    source: &str,
    lineage: Lineage,
    timeline: Timeline,
) -> Result<Option<Summary>, RepositoryError> {
    let view = repository.log(source, lineage).await?;
    let (coverage, end) = (view.coverage(timeline), view.end(timeline));
    let is_whole = |summary: &Summary| {
        let size = lineage.segment_size;
        coverage.reach(Segment::containing(timeline, summary.start_lsn, size).start(size)) == end
    };
    // A damaged manifest is for `verify` to report.
    let summaries = repository.snapshots(source).await?.into_iter().filter_map(|entry| entry.summary.ok());
    let here = |summary: &Summary| summary.system_id == lineage.system_id && summary.timeline == timeline;
    Ok(summaries
        .filter(|summary| here(summary) && is_whole(summary))
        .max_by_key(|summary| (summary.start_lsn, summary.stopped_at)))
}

/// The snapshot that a recovery to the newest point would begin with, and how much log there is behind it. As far as
/// that can be known without a key: of the newest cluster, along the highest timeline.
pub async fn log_behind(
    repository: &Repository,
    source: &str,
    snapshots: &[Summary],
) -> Result<Option<(Summary, u64)>, RepositoryError> {
    let Some(newest) = snapshots.iter().max_by_key(|summary| summary.stopped_at) else { return Ok(None) };
    let of_cluster = snapshots.iter().filter(|summary| summary.system_id == newest.system_id);
    let last = of_cluster.max_by_key(|summary| (summary.timeline, summary.start_lsn)).unwrap_or(newest);
    let lineage = Lineage { system_id: last.system_id, segment_size: last.segment_size };
    let view = repository.log(source, lineage).await?;
    let highest = view.timelines().filter(|timeline| *timeline >= last.timeline).max();
    let end = highest.and_then(|timeline| view.end(timeline)).unwrap_or(last.stop_lsn);
    Ok(Some((last.clone(), log_since(last, end))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes::tests::summary;

    const MIB: u64 = 1 << 20;

    fn bound() -> ReplayBound {
        ReplayBound { target: Duration::from_secs(30), rate: ByteSize::mib(32) }
    }

    fn at(mib: u64) -> Lsn {
        Lsn::new(mib * MIB)
    }

    fn newest(bytes: u64) -> Newest {
        Newest { start: at(1000), stop: at(1001), bytes }
    }

    fn primary(now: Lsn) -> Positions {
        Positions { now, begin: now, in_recovery: false, checkpoint: None }
    }

    #[test]
    fn a_backup_is_due_when_half_of_the_target_is_used_up() {
        let decide = |bytes| due(&bound(), Some(newest(bytes)), primary(at(1001).advance(bytes)));
        assert_eq!(decide(0), Due::No(Replay { bytes: 0, time: Duration::ZERO }));
        assert_eq!(decide(120 * MIB), Due::No(Replay { bytes: 120 * MIB, time: Duration::from_millis(3750) }));
        // 15 s at 32 MiB/s are 480 MiB.
        let half = Replay { bytes: 480 * MIB, time: Duration::from_secs(15) };
        assert_eq!(decide(480 * MIB), Due::No(half));
        assert!(matches!(decide(480 * MIB + 1), Due::Yes(replay) if replay.bytes == half.bytes + 1));
    }

    #[test]
    fn without_a_snapshot_a_backup_is_due() {
        assert_eq!(due(&bound(), None, primary(Lsn::ZERO)), Due::NoSnapshot);
    }

    #[test]
    fn a_server_before_the_newest_snapshot_was_set_back() {
        assert_eq!(due(&bound(), Some(newest(0)), primary(at(900))), Due::SetBack);
        assert_eq!(due(&bound(), Some(newest(0)), primary(at(1000))), Due::SetBack);
        assert!(matches!(due(&bound(), Some(newest(0)), primary(at(1001))), Due::No(_)));
        let standby = Positions { in_recovery: true, ..primary(at(900)) };
        assert!(matches!(due(&bound(), Some(newest(0)), standby), Due::Lags(_)));
    }

    #[test]
    fn a_standby_without_a_new_checkpoint_makes_none_in_vain() {
        let decide = |begin, checkpoint| {
            due(
                &bound(),
                Some(newest(4000 * MIB)),
                Positions { begin, checkpoint: Some(checkpoint), ..primary(at(6000)) },
            )
        };
        assert!(matches!(decide(at(1000), at(1000)), Due::InVain(_)));
        assert!(matches!(decide(at(900), at(1000)), Due::InVain(_)));
        assert!(matches!(decide(at(1001), at(1001)), Due::Yes(_)));
        // The primary has made one, and the standby has not come to it.
        assert!(matches!(decide(at(1000), at(1001)), Due::Lags(_)));
        assert!(matches!(decide(at(900), at(5000)), Due::Lags(_)));
    }

    #[test]
    fn what_a_switch_of_segments_leaves_empty_is_no_log() {
        let primary = summary(1, 20 * MIB, 21 * MIB);
        assert_eq!(log_since(&primary, at(21)), MIB);
        // Segments are of 16 MiB.
        assert_eq!(log_since(&primary, at(32)), MIB);
        assert_eq!(log_since(&primary, at(33)), 2 * MIB);
        let standby = Summary { from_standby: true, ..primary.clone() };
        assert_eq!(log_since(&standby, at(33)), 13 * MIB);
        assert_eq!(log_since(&summary(1, 20 * MIB, 32 * MIB), at(33)), 13 * MIB);
        // A server that was set back has written nothing since.
        assert_eq!(log_since(&primary, at(19)), 0);
    }

    #[test]
    fn any_rate_and_size_has_a_time() {
        assert_eq!(Replay::of(u64::MAX, ByteSize::new(1)).time, Duration::MAX);
        assert_eq!(Replay::of(7, ByteSize::new(0)).time, Duration::from_secs(7));
    }
}
