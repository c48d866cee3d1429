use std::path::PathBuf;

use clap::Args;
use holdfast_recovery::{GetOptions, GetOutcome};
use holdfast_repository::Lineage;

use crate::context::Context;
use crate::exit::{self, Exit};
use crate::failure::{Doing as _, Failure};

const EXAMPLES: &str = "\
Examples:
  holdfast wal get chat 00000001000000000000002A pg_wal/RECOVERYXLOG

In postgresql.conf (`holdfast restore` writes it):
  restore_command = 'holdfast wal get chat %f \"%p\" --partial'";

/// Fetches one file of the log: PostgreSQL's restore_command.
///
/// Exits with 1 only if the repository was asked and has no such file; PostgreSQL then takes the log to end there. All
/// other failures exit with more than 125, which makes PostgreSQL stop: 126 if it could not find out, 127 for wrong usage
/// or configuration.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name.
    source: String,
    /// The file's name; PostgreSQL's %f.
    file: String,
    /// Where to put it; PostgreSQL's %p.
    destination: PathBuf,
    /// Make the last segment of what there is of it, filled up with zeros.
    #[arg(long)]
    partial: bool,
    /// Which cluster's log, if the source has had several: system identifier and segment size in MiB.
    #[arg(long, value_name = "SYSID-MIB", value_parser = lineage)]
    lineage: Option<Lineage>,
    /// How many segments to fetch ahead.
    #[arg(long, value_name = "N", default_value_t = 4)]
    prefetch: usize,
    /// Where to keep those fetched ahead.
    #[arg(long, value_name = "DIR")]
    prefetch_directory: Option<PathBuf>,
}

fn lineage(text: &str) -> Result<Lineage, String> {
    text.parse().map_err(|()| "expected a system identifier and a size in MiB, as in 7412345678901234567-16".to_owned())
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, file, destination, partial, lineage, prefetch, prefetch_directory } = options;
    let config = context.config()?;
    let keyring = context.keyring(config.repository_of(&source)?).await?;
    let what = || format!("could not find out about {file} of `{source}`");
    let get = GetOptions {
        source: source.clone(),
        name: file.clone(),
        destination,
        lineage,
        prefetch,
        prefetch_directory,
        partial,
    };
    match holdfast_recovery::get(&keyring, &get).await.doing(what)? {
        GetOutcome::Fetched => Ok(Exit::Done),
        GetOutcome::NotFound => {
            tracing::info!(source, file, "the repository has no such file");
            exit::not_found()
        }
    }
}
