mod checklist;
mod keys;
mod places;
mod server;
mod storage;

use std::collections::BTreeMap;

use clap::Args;
use holdfast_repository::Repository;

use crate::config::{Config, Source};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::Failure;
use checklist::{Checklist, Entry};

const EXAMPLES: &str = "\
Examples:
  holdfast check
  holdfast check chat
  holdfast check --json";

/// Finds out whether everything is in place for backups and restores.
///
/// Looks at the configuration, the repositories, their keys, and for each source at the server, the rights of its role,
/// its settings, the data directory, the replication slot and the log in the repository. Changes nothing. Exits with 1
/// if anything is found that keeps backups from working.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name in the configuration; all of them if it is absent.
    source: Option<String>,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let sources: Vec<&Source> = match &options.source {
        Some(name) => vec![config.source(name)?],
        None => config.sources().collect(),
    };
    let mut checklist = Checklist::default();
    let path = config.path.display().to_string();
    checklist.add(Entry::ok("", "configuration", path));
    if sources.is_empty() {
        let hint = "Add a table [source.NAME] for each cluster to protect.";
        checklist.add(Entry::warning("", "configuration", "it has no source", hint));
    }
    check_all(context, &config, options.source.is_some(), &sources, &mut checklist).await?;
    context.output.result(&checklist.json(), || checklist.text())?;
    Ok(if checklist.has_failed() { Exit::Failed } else { Exit::Done })
}

async fn check_all(
    context: &Context,
    config: &Config,
    only_theirs: bool,
    sources: &[&Source],
    checklist: &mut Checklist,
) -> Result<(), Failure> {
    let mut opened = BTreeMap::new();
    for settings in config.repositories() {
        let theirs: Vec<_> = sources.iter().filter(|source| source.is_kept_in(&settings.name)).collect();
        if only_theirs && theirs.is_empty() {
            continue;
        }
        let repository: Option<Repository> = storage::check(context, settings, checklist).await;
        if let Some(repository) = &repository {
            keys::check(settings, repository, checklist).await;
        }
        for source in theirs.iter().filter(|source| source.repository == settings.name) {
            server::check(source, repository.as_ref(), checklist).await;
            storage::check_spool(source, checklist);
        }
        opened.insert(settings.name.clone(), repository);
    }
    for source in sources {
        places::check(config, source, &opened, checklist).await;
    }
    Ok(())
}
