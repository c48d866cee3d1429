use std::collections::{BTreeMap, BTreeSet, HashSet};

use clap::Args;
use holdfast_policy::{Decision, LogNeed, Pin, Point, Reason, decide, log_needs};
use holdfast_repository::{Candidate, Expired, Fate, KeepsLog, Keyring, Lineage, LogRange, Tally, candidates, expire};
use holdfast_runtime::Progress;
use holdfast_types::Micros;
use jiff::Timestamp;

use crate::config::{Config, RepositorySettings, RetentionSettings};
use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};
use crate::table::{self, Lines as _, Table};
use crate::time;

const EXAMPLES: &str = "\
Examples:
  holdfast expire --dry-run
  holdfast expire
  holdfast expire --repository main --json";

/// Removes what no promise needs any more, in two steps.
///
/// Says for each snapshot why it is kept and until when, by the tables [source.NAME.retention] of the configuration; sources
/// without one keep everything. What goes is named first, and removed by a run that comes at least 24 hours later, if it still is
/// to go. Until then `holdfast pin` keeps it. Run it every day; what backups are made meanwhile does not matter. It needs an
/// identity, since what a snapshot needs is sealed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Only this repository.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,

    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// What became of the snapshots of one source.
type Decisions = BTreeMap<String, Vec<Decision>>;

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let Options { repository, dry_run } = options;
    let repositories: Vec<&RepositorySettings> = match &repository {
        Some(name) => vec![config.repository(Some(name))?],
        None => config.repositories().collect(),
    };
    if repositories.is_empty() {
        config.repository(None)?;
    }
    let mut results = Vec::new();
    for settings in repositories {
        let keyring = context.keyring(settings).await?;
        let rules = rules(&config, settings);
        let decisions = std::sync::Mutex::new(Decisions::new());
        let progress = Progress::new();
        let shown = context.show(&progress);
        let choose = |candidates: &[Candidate], now: Micros| {
            let (decided, fate) = choose(&rules, candidates, now);
            if let Ok(mut decisions) = decisions.lock() {
                *decisions = decided;
            }
            fate
        };
        let needs_proof = rules.values().any(|settings| settings.rules.minimum > 0);
        let outcome = expire(&keyring, choose, needs_proof, dry_run, &progress).await;
        drop(shown);
        let expired = outcome.doing(|| format!("could not expire what is in the repository `{}`", settings.name))?;
        results.push((settings.name.clone(), expired, decisions.into_inner().unwrap_or_default()));
    }
    let json: Vec<_> = results.iter().map(|(name, expired, decisions)| json(name, expired, decisions)).collect();
    context.output.result(&serde_json::json!({ "dry_run": dry_run, "repositories": json }), || {
        results.iter().map(|(name, expired, decisions)| text(name, expired, decisions, dry_run)).collect()
    })?;
    Ok(Exit::Done)
}

/// The sources of a repository that have rules.
fn rules(config: &Config, settings: &RepositorySettings) -> BTreeMap<String, RetentionSettings> {
    let here = config.sources().filter(|source| source.is_kept_in(&settings.name));
    here.filter_map(|source| Some((source.name.clone(), source.retention.clone()?))).collect()
}

fn timestamp(at: Micros) -> Timestamp {
    let extreme = if at.get() < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(at.get()).unwrap_or(extreme)
}

fn point(candidate: &Candidate) -> Point {
    let summary = &candidate.summary;
    Point {
        id: summary.id.clone(),
        taken_at: timestamp(candidate.taken_at),
        system_id: summary.system_id,
        timeline: summary.timeline,
        start_lsn: summary.start_lsn,
        stop_lsn: summary.stop_lsn,
        segment_size: summary.segment_size,
        is_verified: candidate.is_verified,
        pin: candidate.pin.as_ref().map(|pin| Pin { why: pin.why.clone(), until: pin.until.map(timestamp) }),
    }
}

fn choose(rules: &BTreeMap<String, RetentionSettings>, candidates: &[Candidate], now: Micros) -> (Decisions, Fate) {
    let (mut decisions, mut goes) = (Decisions::new(), HashSet::new());
    let mut needs: BTreeMap<String, Vec<LogNeed>> = BTreeMap::new();
    let sources: BTreeSet<&String> = candidates.iter().map(|candidate| &candidate.source).collect();
    for source in sources {
        let Some(RetentionSettings { rules, zone }) = rules.get(source) else { continue };
        let of_source = || candidates.iter().filter(|candidate| candidate.source == *source);
        let points: Vec<Point> = of_source().map(point).collect();
        let decided = decide(rules, &points, timestamp(now), zone);
        let going: HashSet<_> = decided.iter().filter(|d| !d.is_kept()).map(|d| &d.id).collect();
        goes.extend(of_source().filter(|c| going.contains(&c.summary.id)).map(|c| c.name.clone()));
        needs.insert(source.clone(), log_needs(rules, &points, &decided, timestamp(now)));
        decisions.insert(source.clone(), decided);
    }
    let keeps_log = move |source: &str, lineage: Lineage, timeline, range: LogRange| {
        // The log of a source without rules, or of a cluster without snapshots, is not understood here.
        needs.get(source).is_none_or(|needs| {
            let mut of_cluster = needs.iter().filter(|need| need.system_id == lineage.system_id).peekable();
            of_cluster.peek().is_none() || of_cluster.any(|need| need.covers(timeline, range.start, range.end))
        })
    };
    (decisions, Fate { goes, keeps_log: KeepsLog::new(keeps_log) })
}

/// The log that the promises need, if they can be known.
pub(super) async fn keeps_log(config: &Config, settings: &RepositorySettings, keyring: &Keyring) -> Option<KeepsLog> {
    // What cannot be read is reported by whoever reads everything.
    let candidates = candidates(keyring.repository()).await.ok()?;
    Some(choose(&rules(config, settings), &candidates, time::now()).1.keeps_log)
}

fn json(name: &str, expired: &Expired, decisions: &Decisions) -> serde_json::Value {
    let snapshots = decisions.iter().flat_map(|(source, decisions)| {
        decisions.iter().map(move |decision| {
            serde_json::json!({
                "source": source,
                "snapshot": decision.id,
                "is_kept": decision.is_kept(),
                "reasons": decision.reasons,
                "until": decision.until,
            })
        })
    });
    serde_json::json!({
        "repository": name,
        "snapshots": snapshots.collect::<Vec<_>>(),
        "named": expired.named,
        "waiting": expired.waiting,
        "removed": expired.removed,
    })
}

fn text(name: &str, expired: &Expired, decisions: &Decisions, dry_run: bool) -> String {
    let mut text = format!("repository `{name}`\n\n");
    let mut shown = Table::new(&["source", "snapshot", "", "why", "until about"]);
    for (source, decisions) in decisions {
        for decision in decisions {
            let why = decision.reasons.iter().map(why).collect::<Vec<_>>().join(", ");
            let until = decision
                .until
                .map_or_else(|| "-".to_owned(), |at| time::show_seconds(Micros::new(at.as_microsecond())));
            let (fate, until) = if decision.is_kept() { ("kept", until.as_str()) } else { ("goes", "-") };
            shown.row([source, decision.id.as_str(), fate, &why, until]);
        }
    }
    if decisions.is_empty() {
        text.push_str("no source here has a [source.NAME.retention]: everything is kept\n");
    } else {
        text.push_str(&shown.text());
    }
    text.push('\n');
    let Expired { named, waiting, removed } = expired;
    let (named_as, removed_as) = if dry_run { ("would be named", "would be removed") } else { ("named", "removed") };
    for (word, tally) in [(removed_as, removed), ("waiting", waiting), (named_as, named)] {
        text.line(format_args!("{word:<17} {}", amount(tally)));
    }
    if *named != Tally::default() || *waiting != Tally::default() {
        text.push_str("what is named is removed by a run at least 24 hours later; `holdfast pin` keeps a snapshot\n");
    }
    text
}

fn amount(tally: &Tally) -> String {
    let Tally { snapshots, objects, bytes } = tally;
    if tally == &Tally::default() {
        return "nothing".to_owned();
    }
    format!(
        "{}, {}, {}",
        table::count(*snapshots, "snapshot"),
        table::count(*objects, "other object"),
        table::size(*bytes)
    )
}

fn why(reason: &Reason) -> String {
    match reason {
        Reason::Last(1) => "the newest".to_owned(),
        Reason::Last(place) => format!("number {place} of the newest"),
        Reason::Within => "young".to_owned(),
        Reason::Daily(date) => format!("day {date}"),
        Reason::Weekly(date) => format!("week of {date}"),
        Reason::Monthly(date) => format!("month of {date}"),
        Reason::Yearly(date) => format!("year of {date}"),
        Reason::Window => "the recovery window".to_owned(),
        Reason::Pinned(why) => format!("pinned: {why}"),
        Reason::Minimum => "too few are verified".to_owned(),
        Reason::Future => "its time has not come: some clock is wrong".to_owned(),
        _ => "another reason".to_owned(),
    }
}
