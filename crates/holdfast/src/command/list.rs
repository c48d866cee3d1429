mod log;

use clap::Args;
use holdfast_backup::{Replay, log_behind};
use holdfast_format::manifest::Summary;
use holdfast_repository::{Repository, SnapshotEntry};
use serde::Serialize;

use crate::config::{BackupSettings, Config, RepositorySettings};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};
use crate::replay;
use crate::table::{self, Lines as _, Table};
use crate::time;

const EXAMPLES: &str = "\
Examples:
  holdfast list
  holdfast list chat
  holdfast list chat --json";

/// Lists snapshots, and the moments that can be recovered.
///
/// From the end of a snapshot to the last moment in the log that follows it, any moment can be recovered. Without an
/// identity it shows the snapshots and the stretches of log; the moments and restore points in them are sealed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name; all of them if it is absent.
    source: Option<String>,

    /// Only what is in this repository.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listing {
    source: String,
    repository: String,
    snapshots: Vec<serde_json::Value>,
    /// Snapshots that cannot be read any more.
    broken: Vec<Broken>,
    log: Vec<log::Stretch>,
    /// Why the moments in the log are not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
    /// What a recovery to the newest point would replay.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<serde_json::Value>,
    #[serde(skip)]
    replay_text: Option<String>,
    #[serde(skip)]
    summaries: Vec<Summary>,
}

#[derive(Debug, Serialize)]
struct Broken {
    object: String,
    problem: String,
}

/// A repository that could not be asked.
#[derive(Debug, Serialize)]
struct Away {
    repository: String,
    problem: String,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let Options { source, repository } = options;
    let config = context.config()?;
    let repositories = match (&source, &repository) {
        (Some(source), only) => config.repositories_of(source, only.as_deref())?,
        (None, Some(only)) => vec![config.repository(Some(only))?],
        (None, None) => config.repositories().collect(),
    };
    let (mut listings, mut away) = (Vec::new(), Vec::new());
    for settings in &repositories {
        match of_repository(context, &config, settings, source.as_ref()).await {
            Ok(more) => listings.extend(more),
            Err(failure) if repositories.len() > 1 => {
                away.push(Away { repository: settings.name.clone(), problem: chain(&*failure) });
            }
            Err(failure) => return Err(failure),
        }
    }
    context.output.result(&serde_json::json!({ "sources": listings, "away": away }), || {
        let mut shown = listings.iter().map(text).collect::<Vec<_>>().join("\n");
        if listings.is_empty() && away.is_empty() {
            shown.push_str("nothing was backed up yet\n");
        }
        for Away { repository, problem } in &away {
            shown.line(format_args!("AWAY: repository `{repository}`: {problem}"));
        }
        shown
    })?;
    let is_broken = listings.iter().any(|listing| !listing.broken.is_empty());
    Ok(match (is_broken, away.is_empty()) {
        (true, _) => Exit::Losses,
        (false, false) => Exit::NoRepository,
        (false, true) => Exit::Done,
    })
}

/// The sources of a repository: those of the configuration, and those that are there without being in it.
async fn of_repository(
    context: &Context,
    config: &Config,
    settings: &RepositorySettings,
    source: Option<&String>,
) -> Result<Vec<Listing>, Failure> {
    let repository = context.unpinned(settings).await?;
    let sources = if let Some(source) = source {
        vec![source.clone()]
    } else {
        let mut sources = repository.sources().await?;
        sources.extend(config.sources().filter(|s| s.is_kept_in(&settings.name)).map(|s| s.name.clone()));
        sources.sort();
        sources.dedup();
        sources
    };
    let mut listings = Vec::new();
    for source in sources {
        let backup = config.backup_settings(&source);
        listings.push(list(settings, &backup, &repository, source).await?);
    }
    Ok(listings)
}

async fn list(
    settings: &RepositorySettings,
    backup: &BackupSettings,
    repository: &Repository,
    source: String,
) -> Result<Listing, Failure> {
    let entries = repository.snapshots(&source).await.doing(|| format!("could not list `{source}`"))?;
    let mut listing = Listing {
        source,
        repository: settings.name.clone(),
        snapshots: Vec::new(),
        broken: Vec::new(),
        log: Vec::new(),
        sealed: None,
        replay: None,
        replay_text: None,
        summaries: Vec::new(),
    };
    for SnapshotEntry { name, stored_at: _, summary } in entries {
        match summary {
            Ok(summary) => {
                listing.snapshots.push(summary_json(&summary));
                listing.summaries.push(summary);
            }
            Err(error) => listing.broken.push(Broken { object: name.to_string(), problem: chain(&error) }),
        }
    }
    if let Some((summary, bytes)) = log_behind(repository, &listing.source, &listing.summaries).await? {
        let (replay, target) = (Replay::of(bytes, backup.replay_rate), backup.replay_target);
        let mut value = replay::json(replay, target);
        value["snapshot"] = summary.id.as_str().into();
        listing.replay = Some(value);
        listing.replay_text = Some(replay::text(replay, target));
    }
    let (stretches, sealed) = log::read(settings, repository, &listing.source).await?;
    (listing.log, listing.sealed) = (stretches, sealed);
    Ok(listing)
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(crate) fn summary_json(summary: &Summary) -> serde_json::Value {
    let mut value = serde_json::to_value(summary).unwrap_or_default();
    value["started_at"] = time::rfc3339(summary.started_at).into();
    value["stopped_at"] = time::rfc3339(summary.stopped_at).into();
    value
}

fn text(listing: &Listing) -> String {
    let Listing { source, repository, broken, log, sealed, summaries, replay_text, snapshots: _, replay: _ } = listing;
    let mut text = format!("{source} in repository `{repository}`\n\n");
    if summaries.is_empty() {
        text.push_str("no snapshot\n");
    } else {
        let mut table = Table::new(&[
            "snapshot",
            "kind",
            "taken",
            "size",
            "stored",
            "timeline",
            "log needed",
            "damaged",
            "builds on",
        ]);
        for summary in summaries {
            let damaged = match summary.damaged_pages {
                0 => "-".to_owned(),
                pages => table::count(pages, "page"),
            };
            table.row([
                summary.id.as_str(),
                &format!("{:?}", summary.kind).to_lowercase(),
                &time::show_seconds(summary.stopped_at),
                &table::size(summary.bytes),
                &table::size(summary.stored_bytes),
                &summary.timeline.get().to_string(),
                &format!("{} to {}", summary.start_lsn, summary.stop_lsn),
                summary.base.as_ref().map_or("-", |base| base.as_str()),
                &damaged,
            ]);
        }
        text.push_str(&table.text());
    }
    for Broken { object, problem } in broken {
        text.line(format_args!("BROKEN: {object}: {problem}"));
    }
    text.push('\n');
    text.push_str(&log::text(log));
    if let Some(replay) = replay_text {
        text.line(format_args!("log to replay: {replay}"));
    }
    if let Some(why) = sealed {
        text.line(format_args!("\nwhat is recoverable, moments and restore points are not shown: {why}"));
    }
    text
}
