//! Whether the snapshots and the log of a source are in as many places as was promised, now.

use std::collections::BTreeMap;

use holdfast_policy::{Holding, Places};
use holdfast_repository::{Lineage, Repository, RepositoryError};

use super::checklist::{Checklist, Entry};
use crate::config::{Config, Source};
use crate::table;

/// Log takes a moment to get everywhere.
const UNDER_WAY: u64 = 32 << 20;
const HINT: &str = "`holdfast copy` brings what is missing; so does the next backup that has an identity.";

/// `opened`: what could be opened of the repositories, by name.
pub(super) async fn check(
    config: &Config,
    source: &Source,
    opened: &BTreeMap<String, Option<Repository>>,
    checklist: &mut Checklist,
) {
    let Some(places) = source.places else { return };
    let mut holdings = Vec::new();
    for name in source.repositories() {
        let site = config.repository(Some(name)).ok().and_then(|settings| settings.site.clone());
        let mut holding =
            Holding { repository: name.clone(), site: site.unwrap_or_else(|| name.clone()), ..Holding::default() };
        if let Some(Some(repository)) = opened.get(name)
            && let Err(error) = fill(&mut holding, repository, &source.name).await
        {
            checklist.add(Entry::error(&source.name, "places", &error));
        }
        holdings.push(holding);
    }
    checklist.add(snapshots(&source.name, places, &holdings));
    checklist.add(log(&source.name, places, &holdings));
}

async fn fill(holding: &mut Holding, repository: &Repository, source: &str) -> Result<(), RepositoryError> {
    let summaries: Vec<_> =
        repository.snapshots(source).await?.into_iter().filter_map(|entry| entry.summary.ok()).collect();
    holding.snapshots = summaries.iter().map(|summary| summary.id.clone()).collect();
    let Some(newest) = summaries.iter().max_by_key(|summary| summary.stopped_at) else { return Ok(()) };
    let lineage = Lineage { system_id: newest.system_id, segment_size: newest.segment_size };
    let view = repository.log(source, lineage).await?;
    let Some(timeline) = view.timelines().last() else { return Ok(()) };
    let coverage = view.coverage(timeline);
    // Behind the last gap nothing can be reached.
    let first_gap = coverage.gaps().into_iter().map(|gap| gap.start).find(|start| *start >= newest.start_lsn);
    holding.log = first_gap.or_else(|| view.end(timeline)).map(|end| (timeline, end));
    Ok(())
}

fn promised(places: Places) -> String {
    let Places { copies, sites } = places;
    let repositories = if copies == 1 { "repository" } else { "repositories" };
    format!("{copies} {repositories} at {}", table::count(sites.into(), "site"))
}

fn snapshots(source: &str, places: Places, holdings: &[Holding]) -> Entry {
    let shortfalls = places.shortfalls(holdings);
    let Some(worst) = shortfalls.first() else {
        return Entry::ok(source, "places", format!("every snapshot is in {}, as promised", promised(places)));
    };
    let found = format!(
        "{} in fewer places than {}; the newest, {}, is in {}",
        table::count(shortfalls.len() as u64, "snapshot"),
        promised(places),
        worst.snapshot,
        worst.repositories.join(" and ")
    );
    Entry::fail(source, "places", found, HINT)
}

fn log(source: &str, places: Places, holdings: &[Holding]) -> Entry {
    let Some(log) = places.log(holdings) else {
        return Entry::warning(source, "places of the log", "there is no log", "Does `holdfast wal receive` run?");
    };
    match (log.kept, log.behind()) {
        (Some((timeline, end)), Some(behind)) if behind <= UNDER_WAY => {
            let rest =
                if behind == 0 { String::new() } else { format!("; the last {} is on its way", table::size(behind)) };
            let found = format!("up to {end} of timeline {timeline} it is in {}{rest}", promised(places));
            Entry::ok(source, "places of the log", found)
        }
        (Some((timeline, end)), _) => {
            let (newest, last) = log.newest;
            let found = format!(
                "only up to {end} of timeline {timeline} it is in {}; the newest ends at {last} of timeline {newest}",
                promised(places)
            );
            Entry::fail(source, "places of the log", found, HINT)
        }
        (None, _) => {
            let found = format!("none of it is in {}", promised(places));
            Entry::fail(source, "places of the log", found, HINT)
        }
    }
}
