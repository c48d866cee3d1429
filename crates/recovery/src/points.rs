//! Which points can be recovered to, without replaying anything.

use std::collections::BTreeMap;

use holdfast_format::manifest::Summary;
use holdfast_format::wal::{Moment, RestorePoint};
use holdfast_pgformat::TimelineHistory;
use holdfast_repository::{Gap, Keyring, Lineage, LogObject, LogRange, LogView, RepositoryError};
use holdfast_types::{Lsn, Segment, SnapshotId, SystemId, Timeline};
use serde::Serialize;

use crate::RestoreError;

/// What can be recovered of one timeline.
#[derive(Clone, Debug, Serialize)]
pub struct TimelinePoints {
    pub timeline: Timeline,
    /// The stretches of log that are there.
    pub ranges: Vec<LogRange>,
    pub gaps: Vec<Gap>,
    pub first: Option<Moment>,
    pub last: Option<Moment>,
    pub restore_points: Vec<RestorePoint>,
    /// The snapshots that began on it.
    pub snapshots: Vec<SnapshotId>,
    /// The moments that can be recovered by following it, each range without a hole; `None` if its history cannot be
    /// read.
    pub recoverable: Option<Vec<RecoverableRange>>,
}

/// Moments that can be recovered one and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RecoverableRange {
    /// The end of the oldest snapshot.
    pub from: Moment,
    /// The last moment in the log; `None` if the log has no commit after the snapshot.
    pub to: Option<Moment>,
    /// The end of the log.
    pub end: Lsn,
}

/// What can be recovered of one cluster.
#[derive(Clone, Debug, Serialize)]
pub struct RecoverablePoints {
    pub system_id: SystemId,
    pub timelines: Vec<TimelinePoints>,
}

/// A receiver that runs puts whole segments in the place of their pieces: what was listed may have gone when it is read.
/// So often all of it is looked at before that is an error.
pub(crate) const LOOKS: u32 = 5;

/// Asks the log's own indexes; an identity that opens them is needed.
pub async fn recoverable(keyring: &Keyring, source: &str) -> Result<Vec<RecoverablePoints>, RepositoryError> {
    for _ in 1..LOOKS {
        match look(keyring, source).await {
            Err(error) if error.is_not_found() => {
                tracing::debug!(%error, "the repository changed while it was looked at");
            }
            outcome => return outcome,
        }
    }
    look(keyring, source).await
}

async fn look(keyring: &Keyring, source: &str) -> Result<Vec<RecoverablePoints>, RepositoryError> {
    let repository = keyring.repository();
    let mut snapshots: Vec<Summary> =
        repository.snapshots(source).await?.into_iter().filter_map(|entry| entry.summary.ok()).collect();
    snapshots.sort_by_key(|snapshot| snapshot.stopped_at);
    let mut clusters = Vec::new();
    for lineage in repository.lineages(source).await? {
        let view = repository.log(source, lineage).await?;
        let snapshots: Vec<_> = snapshots.iter().filter(|snapshot| snapshot.system_id == lineage.system_id).collect();
        let mut timelines = Vec::new();
        for timeline in view.timelines() {
            let objects = view.objects(timeline);
            let moments = keyring.moments(objects).await?;
            let coverage = view.coverage(timeline);
            timelines.push(TimelinePoints {
                timeline,
                gaps: coverage.gaps(),
                ranges: coverage.ranges,
                first: moments.first,
                last: moments.last,
                restore_points: keyring.marks(objects).await?.restore_points,
                snapshots: snapshots
                    .iter()
                    .filter(|snapshot| snapshot.timeline == timeline)
                    .map(|snapshot| snapshot.id.clone())
                    .collect(),
                recoverable: ranges(keyring, &view, timeline, &snapshots).await?,
            });
        }
        clusters.push(RecoverablePoints { system_id: lineage.system_id, timelines });
    }
    Ok(clusters)
}

/// What can be recovered on a timeline, from snapshots on the way to it, the oldest first.
async fn ranges(
    keyring: &Keyring,
    view: &LogView,
    timeline: Timeline,
    snapshots: &[&Summary],
) -> Result<Option<Vec<RecoverableRange>>, RepositoryError> {
    let path = match Path::to(keyring, &view.source, view.lineage, timeline).await {
        Ok(path) => path,
        Err(RestoreError::Repository(error @ (RepositoryError::Store(_) | RepositoryError::Cancelled(_)))) => {
            return Err(error);
        }
        // One damaged history must not hide what the other timelines have.
        Err(error) => {
            tracing::warn!(%timeline, %error, "what can be recovered on this timeline is not known");
            return Ok(None);
        }
    };
    // Snapshots from which the log goes on to the same end are in one range.
    let mut oldest: BTreeMap<Lsn, &Summary> = BTreeMap::new();
    for snapshot in snapshots {
        if let Some(end) = path.reach_from(view, snapshot) {
            oldest.entry(end).or_insert(snapshot);
        }
    }
    let mut ranges = Vec::new();
    for (end, snapshot) in oldest {
        let from = Moment { at: snapshot.stopped_at, lsn: snapshot.stop_lsn };
        let objects = path.objects(view, snapshot.timeline, snapshot.start_lsn, end);
        let to = keyring.moments(&objects).await?.last.filter(|last| last.at >= from.at);
        ranges.push(RecoverableRange { from, to, end });
    }
    Ok(Some(ranges))
}

/// Recovery reads whole segments: the one in which the snapshot began from its beginning.
pub(crate) fn first_segment(snapshot: &Summary) -> Lsn {
    Segment::containing(snapshot.timeline, snapshot.start_lsn, snapshot.segment_size).start(snapshot.segment_size)
}

/// A way through the log: one timeline after the other, each with where it is left for the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub history: TimelineHistory,
}

impl Path {
    pub(crate) async fn to(
        keyring: &Keyring,
        source: &str,
        lineage: Lineage,
        timeline: Timeline,
    ) -> Result<Self, RestoreError> {
        let history = match keyring.history(source, lineage, timeline).await? {
            Some(bytes) => {
                TimelineHistory::parse(timeline, &bytes).map_err(|source| RestoreError::History { timeline, source })?
            }
            None => TimelineHistory::root(timeline),
        };
        Ok(Self { history })
    }

    pub(crate) fn timeline(&self) -> Timeline {
        self.history.timeline()
    }

    /// The timelines of the path from the one that holds `start` on, each with where it ends.
    fn parts(&self, from: Timeline) -> Vec<(Timeline, Option<Lsn>)> {
        let parents = self.history.entries().iter().map(|entry| (entry.timeline, Some(entry.switch)));
        parents.chain([(self.timeline(), None)]).skip_while(|(timeline, _)| *timeline != from).collect()
    }

    /// How far the log goes without a hole along the path, from a position on one of its timelines.
    pub(crate) fn reach(&self, view: &LogView, from: Timeline, start: Lsn) -> Option<Lsn> {
        let size = view.lineage.segment_size.get();
        let mut position = start;
        let mut reached = None;
        for (timeline, end) in self.parts(from) {
            let Some(reach) = view.coverage(timeline).reach(position) else { break };
            let Some(end) = end else { return Some(reach) };
            // The next timeline's first segment holds what comes before the switch as well.
            let shared = Lsn::new(end.get() / size * size);
            reached = Some(reach.min(end));
            if reach < shared {
                break;
            }
            position = position.max(shared);
        }
        reached
    }

    /// The same from a snapshot; `None` if it is not on the path, or log that it needs is missing.
    pub(crate) fn reach_from(&self, view: &LogView, snapshot: &Summary) -> Option<Lsn> {
        if !self.history.contains(snapshot.timeline, snapshot.stop_lsn) {
            return None;
        }
        self.reach(view, snapshot.timeline, first_segment(snapshot)).filter(|reach| *reach >= snapshot.stop_lsn)
    }

    /// The objects along the path that hold log between two positions.
    pub(crate) fn objects(&self, view: &LogView, from: Timeline, start: Lsn, end: Lsn) -> Vec<LogObject> {
        let mut by_start: BTreeMap<(Lsn, Timeline), LogObject> = BTreeMap::new();
        let mut begin = start;
        for (timeline, switch) in self.parts(from) {
            let stop = switch.unwrap_or(end).min(end);
            for object in view.objects(timeline) {
                if object.range.end > begin && object.range.start < stop {
                    by_start.insert((object.range.start, timeline), object.clone());
                }
            }
            begin = stop;
        }
        by_start.into_values().collect()
    }
}
