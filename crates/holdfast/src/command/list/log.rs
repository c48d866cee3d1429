//! Which moments and positions can be recovered.

use std::sync::Arc;

use holdfast_format::wal::RestorePoint;
use holdfast_recovery::{RecoverablePoints, TimelinePoints};
use holdfast_repository::{Gap, Keyring, LogRange, Repository};
use holdfast_types::{Lsn, SnapshotId, SystemId, Timeline};
use serde::Serialize;

use crate::config::RepositorySettings;
use crate::context;
use crate::failure::{CommandError, Failure};
use crate::table::{Lines as _, Table};
use crate::time;

/// The log of one timeline of one cluster.
#[derive(Debug, Serialize)]
pub(super) struct Stretch {
    system_id: SystemId,
    timeline: Timeline,
    ranges: Vec<LogRange>,
    /// The earliest and the latest moment; absent where they are not known.
    first: Option<String>,
    last: Option<String>,
    gaps: Vec<Gap>,
    /// The snapshots to start from.
    snapshots: Vec<SnapshotId>,
    restore_points: Vec<Named>,
}

#[derive(Debug, Serialize)]
struct Named {
    name: String,
    at: String,
    lsn: Lsn,
}

/// The recoverable stretches, and why their moments are missing if they are.
pub(super) async fn read(
    settings: &RepositorySettings,
    repository: &Repository,
    source: &str,
) -> Result<(Vec<Stretch>, Option<String>), Failure> {
    let identities = match context::identities(settings) {
        Ok(identities) => identities,
        Err(error) if is_absent(&error) => {
            let why = format!("they are sealed, and {error}");
            return Ok((without_key(repository, source).await?, Some(why)));
        }
        Err(error) => return Err(error),
    };
    let keyring = Keyring::new(repository.clone(), Arc::new(identities));
    let points = holdfast_recovery::recoverable(&keyring, source).await?;
    Ok((points.into_iter().flat_map(stretches).collect(), None))
}

/// There is no identity here, which is how a host should be that only writes backups.
fn is_absent(error: &Failure) -> bool {
    matches!(error.downcast_ref(), Some(CommandError::NoIdentity { .. } | CommandError::NoTerminal))
}

fn stretches(points: RecoverablePoints) -> impl Iterator<Item = Stretch> {
    let system_id = points.system_id;
    points.timelines.into_iter().map(move |points| {
        let TimelinePoints { timeline, ranges, gaps, first, last, restore_points, snapshots } = points;
        Stretch {
            system_id,
            timeline,
            ranges,
            first: first.map(|first| time::rfc3339(first.at)),
            last: last.map(|last| time::rfc3339(last.at)),
            gaps,
            snapshots,
            restore_points: restore_points.into_iter().map(named).collect(),
        }
    })
}

fn named(point: RestorePoint) -> Named {
    let RestorePoint { name, at, lsn } = point;
    Named { name, at: time::rfc3339(at), lsn }
}

async fn without_key(repository: &Repository, source: &str) -> Result<Vec<Stretch>, Failure> {
    let mut stretches = Vec::new();
    for lineage in repository.lineages(source).await? {
        let view = repository.log(source, lineage).await?;
        for timeline in view.timelines() {
            let coverage = view.coverage(timeline);
            stretches.push(Stretch {
                system_id: lineage.system_id,
                timeline,
                gaps: coverage.gaps(),
                ranges: coverage.ranges,
                first: None,
                last: None,
                snapshots: Vec::new(),
                restore_points: Vec::new(),
            });
        }
    }
    Ok(stretches)
}

pub(super) fn text(stretches: &[Stretch]) -> String {
    if stretches.is_empty() {
        return "no log\n".to_owned();
    }
    let moment = |at: &Option<String>| at.as_ref().map_or_else(|| "-".to_owned(), |at| at.replace('T', " "));
    let several = stretches.iter().any(|stretch| stretch.system_id != stretches[0].system_id);
    let mut table = Table::new(&["timeline", "log from", "to", "first moment", "last moment", "cluster"]);
    for stretch in stretches {
        table.row([
            &stretch.timeline.to_string(),
            &stretch.ranges.first().map(|range| range.start.to_string()).unwrap_or_default(),
            &stretch.ranges.last().map(|range| range.end.to_string()).unwrap_or_default(),
            &moment(&stretch.first),
            &moment(&stretch.last),
            &stretch.system_id.to_string(),
        ]);
    }
    let mut text = table.text();
    for stretch in stretches {
        let of = if several { format!(" of cluster {}", stretch.system_id) } else { String::new() };
        for Gap { start, end } in &stretch.gaps {
            text.line(format_args!("GAP: timeline {}{of} lacks {start} to {end}", stretch.timeline));
        }
    }
    let mut points = Table::new(&["restore point", "at", "position", "timeline"]);
    let mut has_points = false;
    for stretch in stretches {
        for Named { name, at, lsn } in &stretch.restore_points {
            has_points = true;
            points.row([name, &at.replace('T', " "), &lsn.to_string(), &stretch.timeline.to_string()]);
        }
    }
    if has_points {
        text.push('\n');
        text.push_str(&points.text());
    }
    text
}
