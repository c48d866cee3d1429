//! How the log and the snapshots of a source stand in the repository.

use holdfast_backup::{Replay, lineage, log_since, newest_on};
use holdfast_postgres::ServerInfo;
use holdfast_repository::{Gap, Repository, RepositoryError};

use crate::command::check::checklist::{Checklist, Entry};
use crate::config::Source;
use crate::{table, time};

pub(super) async fn check(source: &Source, info: &ServerInfo, repository: &Repository, checklist: &mut Checklist) {
    if let Err(error) = snapshots(source, info, repository, checklist).await {
        checklist.add(Entry::error(&source.name, "snapshots", &error));
    }
    if let Err(error) = log(source, info, repository, checklist).await {
        checklist.add(Entry::error(&source.name, "log", &error));
    }
    if let Err(error) = replay(source, info, repository, checklist).await {
        checklist.add(Entry::error(&source.name, REPLAY, &error));
    }
}

const REPLAY: &str = "log to replay";

/// What a recovery would replay if the server were lost now.
async fn replay(
    source: &Source,
    info: &ServerInfo,
    repository: &Repository,
    checklist: &mut Checklist,
) -> Result<(), RepositoryError> {
    let name = source.name.as_str();
    let Some(newest) = newest_on(repository, name, lineage(info), info.timeline).await? else { return Ok(()) };
    if info.lsn < newest.stop_lsn {
        let found = format!("not known: the server is at {}, before the end of snapshot {}", info.lsn, newest.id);
        let hint = "Was it set back to an earlier state? Then protect it as another source; what it writes now is in no \
                    snapshot. A standby may only lag.";
        checklist.add(Entry::warning(name, REPLAY, found, hint));
        return Ok(());
    }
    let replay = Replay::of(log_since(&newest, info.lsn), source.backup.replay_rate);
    let target = source.backup.replay_target;
    let found = crate::replay::text(replay, target);
    checklist.add(if target.is_none_or(|target| replay.keeps(target)) {
        Entry::ok(name, REPLAY, found)
    } else {
        let hint = format!("Run `holdfast backup {name} --type incremental --if-due` every minute, by a timer.");
        Entry::warning(name, REPLAY, found, hint)
    });
    Ok(())
}

async fn snapshots(
    source: &Source,
    info: &ServerInfo,
    repository: &Repository,
    checklist: &mut Checklist,
) -> Result<(), RepositoryError> {
    let name = source.name.as_str();
    let entries = repository.snapshots(name).await?;
    let mut newest = None;
    for entry in entries {
        match entry.summary {
            Ok(summary) if summary.system_id == info.system_id => newest = Some(summary),
            Ok(_) => {}
            Err(error) => checklist.add(Entry::error(name, "snapshots", &error)),
        }
    }
    checklist.add(match newest {
        Some(summary) => {
            let found = format!("newest is {} of {}", summary.id, time::show_seconds(summary.stopped_at));
            Entry::ok(name, "snapshots", found)
        }
        None => Entry::warning(name, "snapshots", "none of this cluster", format!("Run `holdfast backup {name}`.")),
    });
    Ok(())
}

async fn log(
    source: &Source,
    info: &ServerInfo,
    repository: &Repository,
    checklist: &mut Checklist,
) -> Result<(), RepositoryError> {
    let name = source.name.as_str();
    let view = repository.log(name, lineage(info)).await?;
    for timeline in view.timelines() {
        for Gap { start, end } in view.coverage(timeline).gaps() {
            checklist.add(Entry::warning(
                name,
                "log",
                format!("timeline {} lacks {start} to {end}", timeline.get()),
                "Recovery cannot cross the gap. Push the segments if they still exist, or take a new backup behind it.",
            ));
        }
    }
    checklist.add(match view.end(info.timeline) {
        Some(end) => {
            let behind = table::size(info.lsn.bytes_since(end));
            Entry::ok(
                name,
                "log",
                format!("reaches {end} on timeline {}, {behind} behind the server", info.timeline.get()),
            )
        }
        None => Entry::warning(
            name,
            "log",
            format!("none of timeline {}", info.timeline.get()),
            format!("Run `holdfast wal receive {name}` as a service, or set archive_command to `wal push`."),
        ),
    });
    Ok(())
}
