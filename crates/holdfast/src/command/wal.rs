mod get;
mod prefetch;
mod receive;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use holdfast_backup::{PushOutcome, push};

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};

/// Brings the write-ahead log into the repository and back.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    pub(crate) command: WalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    Receive(receive::Options),
    Push(PushOptions),
    Get(get::Options),
    #[command(hide = true)]
    Prefetch(prefetch::Options),
}

const PUSH_EXAMPLES: &str = "\
Examples:
  holdfast wal push chat pg_wal/00000001000000000000002A

In postgresql.conf:
  archive_mode = on
  archive_command = 'holdfast wal push chat %p'";

/// Stores one finished file of the log: PostgreSQL's archive_command.
///
/// Returns when the file is durable. A file that is there already with the same content is fine, one with other content
/// is an error. `holdfast wal receive` loses less; both may be used at once.
#[derive(Debug, Args)]
#[command(after_help = PUSH_EXAMPLES)]
pub(crate) struct PushOptions {
    /// The source's name in the configuration.
    source: String,
    /// The file; PostgreSQL's %p.
    path: PathBuf,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    match options.command {
        WalCommand::Receive(options) => receive::run(context, options).await,
        WalCommand::Push(options) => push_file(context, options).await,
        WalCommand::Get(options) => get::run(context, options).await,
        WalCommand::Prefetch(options) => prefetch::run(context, options).await,
    }
}

async fn push_file(context: &Context, options: PushOptions) -> Result<Exit, Failure> {
    let PushOptions { source, path } = options;
    let config = context.config()?;
    let settings = config.source(&source)?;
    let repository = context.writer(&config, settings, true).await?;
    let pushed = push(&repository, &source, &path);
    let pushed = crate::signals::droppable(&context.cancel, async { Ok(pushed.await?) }).await;
    repository.settle().await;
    let what = || format!("could not push {} of `{source}`", path.display());
    match pushed.doing(what)? {
        PushOutcome::Stored => tracing::info!(source, path = %path.display(), "stored"),
        PushOutcome::AlreadyThere => tracing::info!(source, path = %path.display(), "was there already"),
        PushOutcome::NotNeeded => tracing::info!(source, path = %path.display(), "nothing needs it"),
    }
    Ok(Exit::Done)
}
