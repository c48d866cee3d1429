mod due;
mod receiver;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use holdfast_backup::{BackupError, BackupOptions, BackupReport, Limit, Replay, ReplayBound, backup};
use holdfast_format::manifest::SnapshotKind;
use holdfast_postgres::backup_api::StartCheckpoint;
use holdfast_repository::{Keyring, Repository, SiblingStatus};
use holdfast_runtime::Progress;
use holdfast_types::ByteSize;

use crate::context::{self, Context};
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};
use crate::table::{self, Lines as _, Table};

const EXAMPLES: &str = "\
Examples:
  holdfast backup chat --fast
  holdfast backup chat --type incremental
  holdfast backup chat --type incremental --if-due
  holdfast backup chat --rate-limit 50MiB
  holdfast backup chat --latency-limit 20ms --any-time
  holdfast backup chat --parallel 8 --level 6";

/// How long the log that a backup needs may take to arrive in the repository.
const LOG_WAIT: Duration = Duration::from_mins(5);

/// Takes a backup of a running cluster.
///
/// It must run where the data directory is, of the primary or of the standby that `connection` in the backup table of
/// the configuration names. Damaged pages are stored as they are, listed, and make it exit with 3.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Options {
    /// The source's name in the configuration.
    source: String,

    /// What to read: everything, or what changed since the last full snapshot or since the last of any kind.
    ///
    /// Every snapshot is complete whatever its type, and none needs another to be restored. The log says what changed;
    /// where it does not, everything is read and the reason is said.
    #[arg(long = "type", value_enum, default_value_t = Kind::Full)]
    kind: Kind,

    /// Only if the log since the newest snapshot would take more than half of `replay_target` to replay.
    ///
    /// For a timer that runs every minute or so: where no backup is due, it says so and exits with 0. Where one would be and the
    /// standby that backups are taken from lags too far to make it, it exits with 1.
    #[arg(long)]
    if_due: bool,

    /// Begin with a checkpoint at once. Else it is spread over some minutes, unless the configuration says otherwise.
    #[arg(long)]
    fast: bool,

    /// Begin with a gentle checkpoint, some minutes later, even if the configuration says "fast".
    #[arg(long, conflicts_with = "fast")]
    spread: bool,

    /// How many files are read at once.
    #[arg(long, value_name = "N", value_parser = super::parallel)]
    parallel: Option<usize>,

    /// How many bytes a second are read at most, as in 200MiB.
    #[arg(long, value_name = "SIZE", value_parser = super::positive_size)]
    rate_limit: Option<ByteSize>,

    /// How many reads a second are asked for at most, of up to 1 MiB each.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iops_limit: Option<u64>,

    /// Slow down when the database takes longer than this to answer, as in 20ms; "auto": twice as long as without the
    /// backup, if anybody uses it; "off": never.
    #[arg(long, value_name = "TIME")]
    latency_limit: Option<Limit>,

    /// Run also outside the windows that the configuration gives.
    #[arg(long)]
    any_time: bool,

    /// zstd's level, from 1 to 19.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=19))]
    level: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Full,
    #[value(alias = "diff")]
    Differential,
    #[value(alias = "incr")]
    Incremental,
}

impl From<Kind> for SnapshotKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Full => Self::Full,
            Kind::Differential => Self::Differential,
            Kind::Incremental => Self::Incremental,
        }
    }
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let source = config.source(&options.source)?;
    let stored = config.repository(Some(&source.repository))?;
    let repository = context.writer(&config, source, true).await?;
    let mut is_missed = false;
    if options.if_due {
        let decided = due::decide(&repository, source).await;
        let decided = decided.doing(|| format!("could not find out whether a backup of `{}` is due", source.name))?;
        if !decided.is_due() {
            context.output.result(&decided.json(), || decided.text() + "\n")?;
            return Ok(if decided.is_failure() { Exit::Failed } else { Exit::Done });
        }
        context.output.note(&decided.text());
        is_missed = decided.is_missed();
    }
    let identities = match options.kind {
        // Only to go on with one that was interrupted: without an identity it begins anew.
        Kind::Full if context::usable_unattended(stored).is_ok() => context::identities(stored).ok(),
        Kind::Full => None,
        Kind::Differential | Kind::Incremental => Some(context::identities(stored)?),
    };
    let keyring = identities.map(|identities| Keyring::new(repository.clone(), Arc::new(identities)));
    let settings = &source.backup;
    let checkpoint = match (options.fast, options.spread) {
        (true, _) => StartCheckpoint::Fast,
        (_, true) => StartCheckpoint::Spread,
        _ => settings.checkpoint,
    };
    let mut impact = settings.impact.clone();
    impact.rate_limit = options.rate_limit.or(impact.rate_limit);
    impact.iops_limit = options.iops_limit.or(impact.iops_limit);
    impact.latency.limit = options.latency_limit.unwrap_or(impact.latency.limit);
    let job = BackupOptions {
        source: source.name.clone(),
        kind: options.kind.into(),
        connection: settings.connection.as_ref().unwrap_or(&source.connection).clone(),
        log_connection: settings.connection.as_ref().map(|_| source.connection.clone()),
        data_directory: source.data_directory.clone(),
        checkpoint,
        parallel: options.parallel.unwrap_or(settings.parallel),
        impact,
        windows: settings.windows.clone().filter(|_| !options.any_time),
        level: options.level.unwrap_or(settings.level),
        slot: Some(source.slot.clone()),
        log_wait: LOG_WAIT,
        unless_running: options.if_due,
    };
    let progress = Progress::new();
    let shown = context.show(&progress);
    let report = backup(&repository, keyring.as_ref(), &job, &progress, &context.cancel).await;
    drop(shown);
    if let Err(error @ BackupError::Running { .. }) = &report {
        let value = serde_json::json!({ "due": false, "running": true });
        context.output.result(&value, || format!("not due: {error}\n"))?;
        // One that takes too long keeps no promise, and neither does one that hangs.
        return Ok(if is_missed { Exit::Failed } else { Exit::Done });
    }
    let mut report = report.doing(|| format!("could not back up `{}`", source.name))?;
    let bound = settings.replay_bound();
    report.notes.extend(bound.and_then(|bound| too_long(&report, &bound, checkpoint)));
    let siblings = bring(&repository, keyring.as_ref(), context, &source.name).await;
    let mut value = json(&report, bound);
    value["repositories"] = serde_json::to_value(&siblings)?;
    if options.if_due {
        value["due"] = true.into();
    }
    context.output.result(&value, || text(&report, bound) + &kept_in(&siblings))?;
    receiver::remark(context, source).await;
    Ok(if !report.damage.is_empty() || !report.incidents.is_empty() {
        Exit::Losses
    } else if siblings.iter().any(|sibling| sibling.trouble.is_some()) {
        Exit::Behind
    } else {
        Exit::Done
    })
}

/// Brings the copies up that lack something, as far as that can be done here, and says how all of them stand.
async fn bring(
    repository: &Repository,
    keyring: Option<&Keyring>,
    context: &Context,
    source: &str,
) -> Vec<SiblingStatus> {
    let Some(all) = repository.fan_out() else { return Vec::new() };
    if let Some(keyring) = keyring {
        let progress = Progress::new();
        let shown = context.show(&progress);
        let outcome = Box::pin(all.catch_up(keyring, source, &progress)).await;
        drop(shown);
        if let Err(error) = outcome {
            tracing::warn!(%error, "copies could not be brought up");
        }
    }
    all.status()
}

fn kept_in(siblings: &[SiblingStatus]) -> String {
    let mut text = String::new();
    for SiblingStatus { name, trouble, .. } in siblings {
        match trouble {
            None => text.line(format_args!("kept in {name}")),
            Some(why) => text.line(format_args!("NOT IN {name}: {why}")),
        }
    }
    if siblings.iter().any(|sibling| sibling.trouble.is_some()) {
        text.push_str("`holdfast copy` brings it there, and so does the next backup that has an identity.\n");
    }
    text
}

/// The log that the backup itself needs.
fn own_log(report: &BackupReport, rate: ByteSize) -> Replay {
    Replay::of(report.summary.stop_lsn.bytes_since(report.summary.start_lsn), rate)
}

/// Where the target was missed before the snapshot existed, more frequent backups would not help.
fn too_long(report: &BackupReport, bound: &ReplayBound, checkpoint: StartCheckpoint) -> Option<String> {
    let replay = own_log(report, bound.rate);
    if replay.keeps(bound.target) {
        return None;
    }
    let hint = match (report.summary.from_standby, checkpoint) {
        (true, _) => {
            "; a backup from a standby begins at the primary's last checkpoint: a shorter checkpoint_timeout helps"
        }
        (false, StartCheckpoint::Spread) => "; --fast does not wait for a spread checkpoint",
        (false, StartCheckpoint::Fast) => "",
    };
    let (time, target) = (crate::replay::time(replay.time), crate::replay::time(bound.target));
    Some(format!(
        "the log that was written while the backup was made would already replay in about {time}, and the target is \
         {target}{hint}"
    ))
}

fn json(report: &BackupReport, bound: Option<ReplayBound>) -> serde_json::Value {
    let BackupReport { summary, damage, incidents, notes, phases } = report;
    let replay = bound.map(|bound| crate::replay::json(own_log(report, bound.rate), Some(bound.target)));
    serde_json::json!({
        "replay": replay,
        "snapshot": super::list::summary_json(summary),
        "damage": damage,
        "incidents": incidents,
        "notes": notes,
        "phases": super::phases_json(phases),
    })
}

fn text(report: &BackupReport, bound: Option<ReplayBound>) -> String {
    let BackupReport { summary, damage, incidents, notes, phases } = report;
    let took = phases.iter().map(|(_, duration)| *duration).sum();
    let mut all = Table::bare();
    all.row(["snapshot", summary.id.as_str()]);
    all.row(["files", &format!("{} with {}", summary.files, table::size(summary.bytes))]);
    if let Some(base) = &summary.base {
        all.row(["builds on", base.as_str()]);
    }
    if let Some(read) = summary.read_bytes {
        all.row(["read", &table::size(read)]);
    }
    all.row(["stored", &table::size(summary.stored_bytes)]);
    all.row(["log needed", &format!("{} to {}", summary.start_lsn, summary.stop_lsn)]);
    if let Some(bound) = bound {
        all.row(["log to replay", &crate::replay::text(own_log(report, bound.rate), Some(bound.target))]);
    }
    all.row(["took", &format!("{}, {}", table::duration(took), table::rate(summary.bytes, took))]);
    let mut text = all.text();
    text.push_str(&super::phases_text(phases));
    for note in notes {
        text.line(format_args!("note: {note}"));
    }
    for incident in incidents {
        text.line(format_args!("INCIDENT: {incident}"));
    }
    if !incidents.is_empty() {
        text.push_str("Snapshots that build on others may hold stale pages; this one read everything.\n");
    }
    for page in damage {
        text.line(format_args!("DAMAGED: {}", super::show::damaged(page)));
    }
    text
}
