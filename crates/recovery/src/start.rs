//! Bringing a restored cluster up, and finding out which point it reached.
//!
//! The server's own files are asked, not the server: a restored cluster may let nobody in whom we could be.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_format::wal::Moment;
use holdfast_pgformat::{ClusterState, ControlFile, TimelineHistory};
use holdfast_postgres::cluster::{Binaries, ClusterError, PgCtl, Running, is_running};
use holdfast_repository::Keyring;
use holdfast_runtime::{Cancel, Phase, Progress};
use holdfast_types::{Lsn, Timeline};

use crate::RestoreError;
use crate::plan::Plan;
use crate::replay::Replay;
use crate::restore::{PREFETCH_DIRECTORY, RestoreOptions, replays_little};

/// Where recovery ended.
#[derive(Clone, Debug)]
pub struct Reached {
    /// The log up to here was replayed.
    pub lsn: Lsn,
    /// The newest commit before it that the index knows; commits lie at most a second behind it.
    pub commit: Option<Moment>,
    /// The timeline that began here.
    pub timeline: Timeline,
    /// Why recovery stopped, in PostgreSQL's words.
    pub reason: String,
    pub replay: Duration,
}

/// How often the state is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Starts the server and waits until it is promoted.
pub async fn start(
    keyring: &Keyring,
    plan: &Plan,
    options: &RestoreOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Reached, RestoreError> {
    progress.begin(Phase("replaying the log"), if replays_little(plan) { 0 } else { plan.log_bytes() });
    let begun = Instant::now();
    let replay = Replay::watch(keyring, plan, progress);
    let major = plan.summary().server_version / 10_000;
    let binaries = Binaries::find(major, options.bin_directory.as_deref()).await?;
    let log_file = log_file(&options.to);
    let server = PgCtl::new(binaries, &options.to, &log_file);
    let port = options.port.map(|port| port.to_string());
    let socket = options.socket_directory.as_ref().map(|path| path.display().to_string());
    let mut settings = vec![];
    settings.extend(port.as_deref().map(|port| ("port", port)));
    settings.extend(socket.as_deref().map(|path| ("unix_socket_directories", path)));
    server.start(&settings).await?;
    loop {
        // Running and in production: recovery has ended and the server takes writes.
        let control = read_control(&options.to);
        if control.as_ref().is_some_and(|control| control.state == ClusterState::Production)
            && !options.to.join("recovery.signal").exists()
        {
            break;
        }
        if is_running(&options.to) == Running::No {
            let Err(ClusterError::NotRunning { log, .. }) = server.readiness() else { continue };
            return Err(RestoreError::RecoveryFailed { log });
        }
        replay.look(&options.to, control.as_ref());
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = cancel.cancelled() => return Err(holdfast_runtime::Cancelled.into()),
        }
    }
    drop(replay);
    server.wait_ready(Duration::from_mins(1)).await?;
    let replay = begun.elapsed();
    remove_prefetched(&options.to);
    let (timeline, lsn, reason) = end_of_recovery(&options.to, plan)?;
    let commit = last_commit(keyring, plan, lsn).await?;
    Ok(Reached { lsn, commit, timeline, reason, replay })
}

/// What a server that [`start()`] started says. In the data directory, where its user can write.
pub fn log_file(data_directory: &Path) -> PathBuf {
    data_directory.join("holdfast.start.log")
}

fn read_control(data_directory: &Path) -> Option<ControlFile> {
    // Torn while it is written, now and then; the next look will do.
    ControlFile::parse(&std::fs::read(data_directory.join("global/pg_control")).ok()?).ok()
}

/// The new timeline's history ends with the line that says where it left the old one, and why.
fn end_of_recovery(data_directory: &Path, plan: &Plan) -> Result<(Timeline, Lsn, String), RestoreError> {
    let control = read_control(data_directory)
        .ok_or(RestoreError::Snapshot { what: "control file", why: "it cannot be read any more".to_owned() })?;
    // The checkpoint that ends recovery may still be under way, so the newest history is looked for.
    let folder = data_directory.join("pg_wal");
    let mut newest = control.timeline.max(plan.timeline);
    for entry in std::fs::read_dir(&folder).map_err(RestoreError::write(&folder))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let timeline = name.strip_suffix(".history").and_then(|digits| u32::from_str_radix(digits, 16).ok());
        newest = newest.max(timeline.map_or(newest, Timeline::new));
    }
    let path = folder.join(newest.history_file());
    let bytes = std::fs::read(&path).map_err(RestoreError::write(&path))?;
    let history =
        TimelineHistory::parse(newest, &bytes).map_err(|source| RestoreError::History { timeline: newest, source })?;
    match history.entries().last() {
        Some(entry) => Ok((newest, entry.switch, entry.reason.clone())),
        None => Ok((newest, control.checkpoint, String::new())),
    }
}

async fn last_commit(keyring: &Keyring, plan: &Plan, reached: Lsn) -> Result<Option<Moment>, RestoreError> {
    let view = keyring.repository().log(&plan.source, plan.lineage).await?;
    let path = crate::points::Path::to(keyring, &plan.source, plan.lineage, plan.timeline).await?;
    let objects = path.objects(&view, plan.summary().timeline, plan.log_from, reached);
    for object in objects.iter().rev() {
        let index = keyring.log_index(object).await?;
        if let Some(moment) = index.moments.iter().rev().find(|moment| moment.lsn <= reached) {
            return Ok(Some(*moment));
        }
    }
    Ok(None)
}

fn remove_prefetched(data_directory: &Path) {
    let directory = data_directory.join(PREFETCH_DIRECTORY);
    if let Err(error) = std::fs::remove_dir_all(&directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "prefetched segments are left in {}", directory.display());
    }
}
