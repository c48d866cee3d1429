//! Fetching segments ahead of recovery, in a process of its own that outlives the `wal get` that began it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use holdfast_repository::Lineage;
use nix::fcntl::{Flock, FlockArg};

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
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, after, directory, lineage } = options;
    let config = context.config()?;
    let after = get::segment(&after, lineage).ok_or_else(|| CommandError::Usage {
        problem: format!("`{after}` is not the name of a WAL segment"),
        hint: None,
    })?;
    let keyring = context.keyring(config.repository_of(&source)?).await?;
    let ahead = holdfast_recovery::prefetch(&keyring, &source, lineage, after, &directory);
    crate::signals::droppable(&context.cancel, async { Ok(ahead.await?) }).await?;
    Ok(Exit::Done)
}

/// What `wal get` knows of the process that fetches ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    pub(super) config: PathBuf,
    pub(super) source: String,
    pub(super) directory: PathBuf,
}

impl Ahead {
    /// Takes a segment that was fetched ahead. They get their names only when they are whole.
    pub(super) fn take(&self, file: &str, destination: &Path) -> bool {
        !file.contains('/') && std::fs::rename(self.directory.join(file), destination).is_ok()
    }

    /// Starts the process unless it runs. Nothing depends on it: recovery only gets slower without.
    pub(super) fn go_on(&self, lineage: Lineage, file: &str) {
        if get::segment(file, lineage).is_some()
            && !self.is_running()
            && let Err(error) = self.start(lineage, file)
        {
            tracing::debug!(%error, "could not start to fetch ahead");
        }
    }

    fn is_running(&self) -> bool {
        let Ok(lock) = File::open(self.directory.join("lock")) else { return false };
        Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_err()
    }

    fn start(&self, lineage: Lineage, file: &str) -> std::io::Result<()> {
        use std::os::unix::process::CommandExt as _;
        // Not waited for: this process ends now, and the new one belongs to nobody.
        let _child = Command::new(std::env::current_exe()?)
            .arg("--config")
            .arg(&self.config)
            .args(["wal", "prefetch", &self.source, file])
            .arg(&self.directory)
            .arg("--lineage")
            .arg(lineage.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // PostgreSQL signals its command's process group when it is shut down.
            .process_group(0)
            .spawn()?;
        Ok(())
    }
}
