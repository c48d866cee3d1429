use clap::Args;
use holdfast_repository::{Pin, RepositoryError};
use holdfast_types::SnapshotId;
use jiff::tz::TimeZone;

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{CommandError, Doing as _, Failure};
use crate::time;

const EXAMPLES: &str = "\
Examples:
  holdfast pin chat 20261121T101500Z-0a1b2c3d --why 'before the migration'
  holdfast pin chat 20261121T101500Z-0a1b2c3d --why 'audit 2026' --until 2027-12-31T00:00:00Z";

const UNDO_EXAMPLES: &str = "\
Examples:
  holdfast unpin chat 20261121T101500Z-0a1b2c3d";

/// Keeps a snapshot, whatever the retention says: as a legal hold, or before something risky.
///
/// It holds until a moment, or until `holdfast unpin`. A later pin of the same snapshot replaces the earlier one. The log that the
/// snapshot itself needs is kept with it, not what follows it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name.
    source: String,
    snapshot: SnapshotId,
    /// Why, for whoever wonders later.
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// Until when; without it, until it is taken away.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// Takes the pins of a snapshot away.
#[derive(Debug, Args)]
#[command(after_help = UNDO_EXAMPLES)]
pub(crate) struct UndoOptions {
    /// The source's name.
    source: String,
    snapshot: SnapshotId,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, snapshot, why, until } = options;
    let config = context.config()?;
    let until = match &until {
        None => None,
        Some(text) => {
            let understood = time::parse(text, &TimeZone::system())
                .map_err(|problem| CommandError::Usage { problem, hint: None })?;
            if let Some(zone) = &understood.zone {
                context.output.note(&format!("{} is taken as {} ({zone})", text, time::show(understood.at)));
            }
            Some(understood.at)
        }
    };
    let at = time::now();
    if until.is_some_and(|until| until <= at) {
        return Err(CommandError::usage("that moment has passed".to_owned(), "Give a later one, or none.").into());
    }
    let settings = config.repository_of(&source)?;
    let repository = context.repository(settings).await?;
    let was_named = match repository.pin(&source, &snapshot, &Pin { why, until, at }).await {
        Err(error) if RepositoryError::is_not_found(&error) => {
            let location = repository.location();
            return Err(CommandError::NoSuchSnapshot { source_name: source, id: snapshot.to_string(), location }.into());
        }
        outcome => outcome.doing(|| format!("could not pin the snapshot {snapshot} of `{source}`"))?,
    };
    if was_named {
        context.output.note(
            "It was about to be removed. If `holdfast expire` runs at this moment, look with `holdfast list` afterwards whether it \
             is still there.",
        );
    }
    let json = serde_json::json!({ "pinned": snapshot, "was_named": was_named });
    context.output.result(&json, || format!("{snapshot} is kept\n"))?;
    Ok(Exit::Done)
}

pub(crate) async fn undo(context: &Context, options: UndoOptions) -> Result<Exit, Failure> {
    let UndoOptions { source, snapshot } = options;
    let config = context.config()?;
    let repository = context.repository(config.repository_of(&source)?).await?;
    let had = repository.unpin(&source, &snapshot).await;
    let had = had.doing(|| format!("could not take the pins of the snapshot {snapshot} of `{source}` away"))?;
    context.output.result(&serde_json::json!({ "unpinned": snapshot, "was_pinned": had }), || {
        if had { format!("{snapshot} is kept by the retention only\n") } else { format!("{snapshot} was not pinned\n") }
    })?;
    Ok(Exit::Done)
}
