//! Which moments and positions can be recovered.

use std::sync::Arc;

use holdfast_format::wal::RestorePoint;
use holdfast_recovery::{RecoverablePoints, RecoverableRange, TimelinePoints};
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
    /// What can be recovered by following this timeline; absent where it is not known.
    recoverable: Option<Vec<Range>>,
}

/// From the end of a snapshot to the last moment in the log.
#[derive(Debug, Serialize)]
struct Range {
    from: String,
    from_lsn: Lsn,
    /// Absent if the log has no commit after the snapshot.
    to: Option<String>,
    to_lsn: Lsn,
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
        let TimelinePoints { timeline, ranges, gaps, first, last, restore_points, snapshots, recoverable } = points;
        Stretch {
            system_id,
            timeline,
            ranges,
            first: first.map(|first| time::rfc3339(first.at)),
            last: last.map(|last| time::rfc3339(last.at)),
            gaps,
            snapshots,
            restore_points: restore_points.into_iter().map(named).collect(),
            recoverable: recoverable.map(|ranges| ranges.iter().map(range).collect()),
        }
    })
}

fn range(range: &RecoverableRange) -> Range {
    let RecoverableRange { from, to, end } = range;
    Range { from: time::rfc3339(from.at), from_lsn: from.lsn, to: to.map(|to| time::rfc3339(to.at)), to_lsn: *end }
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
                recoverable: None,
            });
        }
    }
    Ok(stretches)
}

pub(super) fn text(stretches: &[Stretch]) -> String {
    if stretches.is_empty() {
        return "no log\n".to_owned();
    }
    let moment = |at: &Option<String>| at.as_deref().map_or_else(|| "-".to_owned(), spaced);
    let several = stretches.iter().any(|stretch| stretch.system_id != stretches[0].system_id);
    let of = |stretch: &Stretch| if several { format!(" of cluster {}", stretch.system_id) } else { String::new() };
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
        for Gap { start, end } in &stretch.gaps {
            text.line(format_args!("GAP: timeline {}{} lacks {start} to {end}", stretch.timeline, of(stretch)));
        }
    }
    text.push_str(&recoverable(stretches, of));
    let mut points = Table::new(&["restore point", "at", "position", "timeline"]);
    let mut has_points = false;
    for stretch in stretches {
        for Named { name, at, lsn } in &stretch.restore_points {
            has_points = true;
            points.row([name, &spaced(at), &lsn.to_string(), &stretch.timeline.to_string()]);
        }
    }
    if has_points {
        text.push('\n');
        text.push_str(&points.text());
    }
    text
}

/// As `--at` takes it and people read it.
fn spaced(at: &str) -> String {
    at.replace('T', " ")
}

/// From when to when one can recover, on which timeline if there are several.
fn recoverable(stretches: &[Stretch], of: impl Fn(&Stretch) -> String) -> String {
    let mut text = String::new();
    for stretch in stretches {
        let on = match stretches {
            [_] => String::new(),
            _ => format!(" on timeline {}{}", stretch.timeline, of(stretch)),
        };
        for Range { from, to, .. } in stretch.recoverable.iter().flatten() {
            let from = spaced(from);
            match to {
                Some(to) => text.line(format_args!("recoverable{on} from {from} to {}", spaced(to))),
                None => text.line(format_args!("recoverable{on} as of {from}; the log has no later commit")),
            }
        }
    }
    if text.is_empty() && stretches.iter().all(|stretch| stretch.recoverable.is_some()) {
        text.push_str("nothing is recoverable: no snapshot has all the log that it needs\n");
    }
    if !text.is_empty() {
        text.insert(0, '\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(timeline: u32, recoverable: Option<Vec<Range>>) -> Stretch {
        Stretch {
            system_id: SystemId::new(7),
            timeline: Timeline::new(timeline),
            ranges: Vec::new(),
            first: None,
            last: None,
            gaps: Vec::new(),
            snapshots: Vec::new(),
            restore_points: Vec::new(),
            recoverable,
        }
    }

    fn range(from: &str, to: Option<&str>) -> Range {
        Range { from: from.to_owned(), from_lsn: Lsn::ZERO, to: to.map(str::to_owned), to_lsn: Lsn::ZERO }
    }

    #[test]
    fn the_range_is_said_plainly() {
        let whole = || range("2026-11-21T10:15:00Z", Some("2026-11-21T11:00:00.5Z"));
        let said = |stretches: &[Stretch]| recoverable(stretches, |_| String::new());
        assert_eq!(
            said(&[stretch(1, Some(vec![whole()]))]),
            "\nrecoverable from 2026-11-21 10:15:00Z to 2026-11-21 11:00:00.5Z\n"
        );
        let several = said(&[
            stretch(1, Some(vec![whole(), range("2026-11-22T10:15:00Z", None)])),
            stretch(2, None),
            stretch(3, Some(vec![whole()])),
        ]);
        assert_eq!(
            several,
            "\nrecoverable on timeline 1 from 2026-11-21 10:15:00Z to 2026-11-21 11:00:00.5Z\n\
             recoverable on timeline 1 as of 2026-11-22 10:15:00Z; the log has no later commit\n\
             recoverable on timeline 3 from 2026-11-21 10:15:00Z to 2026-11-21 11:00:00.5Z\n"
        );
        assert!(said(&[stretch(1, Some(Vec::new()))]).contains("nothing is recoverable"));
        assert_eq!(said(&[stretch(1, None)]), "");
    }
}
