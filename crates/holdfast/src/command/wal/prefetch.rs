//! Fetching segments ahead of recovery, in a process of its own that outlives the `wal get` that began it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use holdfast_recovery::{Handover, PrefetchOptions};
use holdfast_repository::Lineage;
use holdfast_types::{Lsn, Timeline};

use super::get;
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{CommandError, Failure};

/// Keeps the next segments ready until nobody takes them any more. Run by `wal get`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    source: String,
    /// The segment before the first one to fetch.
    after: String,
    directory: PathBuf,
    #[arg(long, value_parser = get::lineage)]
    lineage: Lineage,
    #[arg(long)]
    timeline: u32,
    #[arg(long)]
    until: Option<Lsn>,
    #[arg(long)]
    repository: Option<String>,
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, after, directory, lineage, timeline, until, repository } = options;
    let config = context.config()?;
    let after = get::segment(&after, lineage).ok_or_else(|| CommandError::Usage {
        problem: format!("`{after}` is not the name of a WAL segment"),
        hint: None,
    })?;
    // First, so that whoever comes meanwhile knows that this process is there.
    let Some(handover) = Handover::open(&directory)? else { return Ok(Exit::Done) };
    let (keyring, _) = context.reader(&config, &source, repository.as_deref()).await?;
    let options = PrefetchOptions { source, lineage, after, timeline: Timeline::new(timeline), until };
    let ahead = holdfast_recovery::prefetch(&keyring, handover, &options);
    crate::signals::droppable(&context.cancel, async { Ok(ahead.await?) }).await?;
    Ok(Exit::Done)
}

/// What is to be fetched ahead.
#[derive(Debug)]
pub(super) struct Ahead<'a> {
    pub(super) config: &'a Path,
    pub(super) source: &'a str,
    pub(super) directory: &'a Path,
    pub(super) lineage: Lineage,
    pub(super) timeline: u32,
    pub(super) until: Option<Lsn>,
    pub(super) repository: Option<&'a str>,
    /// The file that recovery asks for.
    pub(super) after: &'a str,
}

/// Starts the process unless it runs. Nothing depends on it: recovery only gets slower without.
pub(super) fn start(ahead: &Ahead<'_>) {
    let size = ahead.lineage.segment_size;
    if get::segment(ahead.after, ahead.lineage)
        .is_some_and(|segment| holdfast_recovery::is_needed(segment.number() + 1, ahead.until, size))
        && !holdfast_recovery::is_served(ahead.directory)
        && let Err(error) = spawn(ahead)
    {
        tracing::debug!(%error, "could not start to fetch ahead");
    }
}

fn spawn(ahead: &Ahead<'_>) -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let Ahead { config, source, directory, lineage, timeline, until, repository, after } = ahead;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--config").arg(config).args(["wal", "prefetch", source, after]).arg(directory);
    command.args(["--lineage", &lineage.to_string(), "--timeline", &timeline.to_string()]);
    if let Some(until) = until {
        command.args(["--until", &until.to_string()]);
    }
    if let Some(repository) = repository {
        command.args(["--repository", repository]);
    }
    // Not waited for: this process ends soon, and the new one belongs to nobody.
    let _child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // PostgreSQL signals its command's process group when it is shut down.
        .process_group(0)
        .spawn()?;
    Ok(())
}
