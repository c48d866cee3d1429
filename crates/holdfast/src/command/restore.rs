mod command_line;
mod text;

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use holdfast_recovery::{ArchiveMode, Plan, RestoreOptions, Target};
use holdfast_repository::Keyring;
use holdfast_runtime::Progress;
use holdfast_types::{Lsn, SnapshotId, Timeline};
use jiff::tz::TimeZone;

use crate::config::{Config, default_parallel};
use crate::context::{self, Context};
use crate::exit::Exit;
use crate::failure::{CommandError, Doing as _, Failure};
use crate::time;

const EXAMPLES: &str = "\
Examples:
  holdfast restore chat --to /var/lib/postgresql/15/restored
  holdfast restore chat --to /srv/restored --at '2026-11-21 10:15:00' --start
  holdfast restore chat --to /srv/restored --at 2026-11-21T10:15:00Z --dry-run
  holdfast restore chat --to /var/lib/postgresql/15/main --delta --at '2026-11-21 10:15:00'
  holdfast restore chat --to /srv/copy --reuse /var/lib/postgresql/15/main
  holdfast restore chat --to /srv/restored --name before_migration --tablespace fast=/srv/fast
  holdfast restore chat --to /srv/restored --snapshot 20261121T101500Z-5f0c2a9b";

/// Brings a cluster back, as it was at any moment that the repository holds.
///
/// Shows its plan, restores the snapshot into an empty directory, and writes the settings with which PostgreSQL replays
/// the log to the target and opens the database. A directory that is not wholly restored cannot be started.
///
/// With --delta it goes over a data directory of the same cluster, older, newer or damaged, whose server is stopped:
/// only pages that differ are fetched and written, and what the snapshot does not have is deleted, log that was never
/// archived included.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name.
    source: String,

    /// The directory to restore into: absent or empty, or with --delta a data directory.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// Restore over an old data directory of the same cluster; what is right in it stays.
    #[arg(long)]
    delta: bool,

    /// Copy what is equal in another data directory, rather than fetching it; may be given several times.
    #[arg(long, value_name = "DIR")]
    reuse: Vec<PathBuf>,

    #[command(flatten)]
    target: TargetOptions,

    /// Follow this timeline to the target, rather than the newest.
    #[arg(long, value_name = "N")]
    timeline: Option<u32>,

    /// Put a tablespace, given by its name, oid or old directory, elsewhere; may be given several times.
    #[arg(long = "tablespace", value_name = "OLD=NEW", value_parser = tablespace)]
    tablespaces: Vec<(String, PathBuf)>,

    /// How many files are written at once.
    #[arg(long, value_name = "N", value_parser = super::parallel)]
    parallel: Option<usize>,

    /// Read from this one of the source's repositories only, as when the others are lost. Else all of them have to answer.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,

    /// Whether the restored cluster archives its log as the old one did.
    #[arg(long, value_enum, default_value_t = Archive::Off)]
    archive_mode: Archive,

    /// Start it, wait until it has replayed the log, and say which point was reached.
    #[arg(long)]
    start: bool,

    /// Only show the plan. With --delta or --reuse, read what is there and say how much would be fetched.
    #[arg(long)]
    dry_run: bool,

    /// Where the programs of the right PostgreSQL version are.
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,

    /// The port of the server that is started, if not that of its configuration.
    #[arg(long, requires = "start")]
    port: Option<u16>,

    /// The directory of the socket of the server that is started, if not that of its configuration.
    #[arg(long, value_name = "DIR", requires = "start")]
    socket_dir: Option<PathBuf>,
}

/// Where to stop replaying. Without any of these: at the end of the log.
#[derive(Debug, Args)]
struct TargetOptions {
    /// The last moment to include: RFC 3339, or local time if it has no zone.
    #[arg(long, value_name = "TIME", group = "point")]
    at: Option<String>,

    /// The last position in the log to include.
    #[arg(long, group = "point")]
    lsn: Option<Lsn>,

    /// A restore point that pg_create_restore_point() made.
    #[arg(long, group = "point")]
    name: Option<String>,

    /// The newest point that can be reached. This is what happens without a target.
    #[arg(long, group = "point")]
    latest: bool,

    /// The moment this snapshot was taken; together with another target, the snapshot to start from.
    #[arg(long, value_name = "ID")]
    snapshot: Option<SnapshotId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Archive {
    /// It does not: right for a copy, which must not mix its log with that of the original.
    Off,
    /// It does: for a cluster that takes the place of the old one.
    Preserve,
}

fn tablespace(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && new.starts_with('/') => Ok((old.to_owned(), new.into())),
        _ => Err("expected OLD=NEW, where NEW is an absolute path".to_owned()),
    }
}

/// Says what to recover to, and how a time was understood that left its zone open.
fn target(options: &TargetOptions) -> Result<(Target, Option<SnapshotId>, Option<String>), Failure> {
    let TargetOptions { at, lsn, name, latest, snapshot } = options;
    let base = snapshot.clone();
    Ok(match (at, lsn, name, latest, snapshot) {
        (Some(text), ..) => {
            let understood = time::parse(text, &TimeZone::system())
                .map_err(|problem| CommandError::Usage { problem: format!("--at: {problem}"), hint: None })?;
            let taken = |zone| format!("`{text}` is taken as {} ({zone})", time::show(understood.at));
            (Target::Time(understood.at), base, understood.zone.map(taken))
        }
        (_, Some(lsn), ..) => (Target::Lsn(*lsn), base, None),
        (_, _, Some(name), ..) => (Target::Name(name.clone()), base, None),
        (.., false, Some(_)) => (Target::Consistent, base, None),
        _ => (Target::Latest, base, None),
    })
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let (target, base, remark) = target(&options.target)?;
    let (keyring, settings) = context.reader(&config, &options.source, options.repository.as_deref()).await?;
    if !options.dry_run {
        context::usable_unattended(&settings)?;
    }
    let timeline = options.timeline.map(Timeline::new);
    let plan = holdfast_recovery::plan(&keyring, &options.source, target, base, timeline);
    let plan = crate::signals::droppable(&context.cancel, async { Ok(plan.await?) }).await;
    let plan = plan.doing(|| format!("could not plan the recovery of `{}`", options.source))?;
    if let Some(remark) = &remark {
        context.output.note(remark);
    }
    if options.dry_run {
        return show(context, &config, &keyring, &plan, &options).await;
    }
    context.output.note(text::plan(&plan, &options.to, &config.backup_settings(&options.source)).trim_end());
    carry_out(context, &config, &keyring, &plan, options).await
}

/// Shows the plan, and what of it is there already.
async fn show(
    context: &Context,
    config: &Config,
    keyring: &Keyring,
    plan: &Plan,
    options: &Options,
) -> Result<Exit, Failure> {
    let backup = config.backup_settings(&options.source);
    let mut json = serde_json::json!({ "plan": text::plan_json(plan, &backup) });
    let mut shown = text::plan(plan, &options.to, &backup);
    if options.delta || !options.reuse.is_empty() {
        let restore_options = restore_options(options, String::new())?;
        let progress = Progress::new();
        let bar = context.show(&progress);
        let found = holdfast_recovery::compare(keyring, plan, &restore_options, &progress, &context.cancel).await;
        drop(bar);
        let found = found.doing(|| format!("could not compare {} with the snapshot", restore_options.to.display()))?;
        shown.push_str(&text::comparison(&found));
        json["comparison"] = text::comparison_json(&found);
    }
    context.output.result(&json, || shown)?;
    Ok(Exit::Done)
}

fn restore_options(options: &Options, restore_command: String) -> Result<RestoreOptions, Failure> {
    let Options { to, delta, reuse, tablespaces, parallel, archive_mode, bin_dir, port, socket_dir, .. } = options;
    Ok(RestoreOptions {
        to: absolute(to)?,
        delta: *delta,
        reuse: reuse.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
        parallel: parallel.unwrap_or_else(default_parallel),
        tablespaces: tablespaces.clone(),
        archive_mode: match archive_mode {
            Archive::Off => ArchiveMode::Off,
            Archive::Preserve => ArchiveMode::Preserve,
        },
        restore_command,
        // PostgreSQL and its programs run in other directories than this one.
        bin_directory: bin_dir.as_deref().map(absolute).transpose()?,
        port: *port,
        socket_directory: socket_dir.as_deref().map(absolute).transpose()?,
    })
}

async fn carry_out(
    context: &Context,
    config: &Config,
    keyring: &Keyring,
    plan: &Plan,
    options: Options,
) -> Result<Exit, Failure> {
    let (until, is_cut, timeline) = (plan.until(), plan.is_cut(), plan.timeline);
    let (source, mark) = (&options.source, command_line::Mark::now());
    let only = options.repository.as_deref();
    let command =
        command_line::restore_command(&config.path, source, only, plan.lineage, timeline, (until, is_cut), mark)?;
    let restore_options = restore_options(&options, command)?;
    let Options { source, archive_mode, start, .. } = options;
    let to = restore_options.to.clone();
    command_line::prove(&restore_options.restore_command, &plan.manifest.owner.user)?;
    let progress = Progress::new();
    let shown = context.show(&progress);
    let report = holdfast_recovery::restore(keyring, plan, &restore_options, &progress, &context.cancel).await;
    drop(shown);
    let report = report.doing(|| format!("could not restore `{source}` to {}", to.display()))?;
    let started = if start {
        let progress = Progress::new();
        let shown = context.show(&progress);
        let started = holdfast_recovery::start(keyring, plan, &restore_options, &progress, &context.cancel).await;
        drop(shown);
        Some(started)
    } else {
        None
    };
    // The files are whole, whatever became of the start.
    let end = match &started {
        None => text::End::Restored,
        Some(Ok(reached)) => text::End::Reached(reached),
        Some(Err(_)) => text::End::not_started(&to),
    };
    let backup = config.backup_settings(&source);
    let result = text::Result { plan, backup: &backup, report: &report, end, to: &to };
    context.output.result(&result.json(), || result.text())?;
    if archive_mode == Archive::Off {
        context.output.note(&format!(
            "Archiving and synchronous standbys are off in the restored cluster. If it takes the place of the old one,\n\
             set `archive_mode` and `synchronous_standby_names`, run `holdfast wal receive {source} --create-slot`, and \
             take a backup."
        ));
    }
    if let Some(started) = started {
        started.doing(|| format!("restored `{source}` to {}, and could not start it", to.display()))?;
    }
    Ok(if report.damage.is_empty() { Exit::Done } else { Exit::Losses })
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(path).map_err(CommandError::file("find", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> TargetOptions {
        TargetOptions { at: None, lsn: None, name: None, latest: false, snapshot: None }
    }

    #[test]
    fn targets() {
        let id: SnapshotId = "20261121T101500Z-5f0c2a9b".parse().unwrap();
        let chosen = |options: TargetOptions| target(&options).unwrap();
        assert!(matches!(chosen(options()), (Target::Latest, None, None)));
        let (target_only, base, _) = chosen(TargetOptions { snapshot: Some(id.clone()), ..options() });
        assert!(matches!(target_only, Target::Consistent) && base.as_ref() == Some(&id));
        let (latest, base, _) = chosen(TargetOptions { latest: true, snapshot: Some(id.clone()), ..options() });
        assert!(matches!(latest, Target::Latest) && base == Some(id));
        let (at, _, remark) = chosen(TargetOptions { at: Some("2026-11-21T11:15:00+01:00".into()), ..options() });
        assert!(matches!(at, Target::Time(at) if time::show(at) == "2026-11-21 10:15:00Z"));
        assert_eq!(remark, None);
        let (_, _, remark) = chosen(TargetOptions { at: Some("2026-11-21 11:15:00".into()), ..options() });
        assert!(remark.unwrap().starts_with("`2026-11-21 11:15:00` is taken as 2026-11-2"));
        assert!(target(&TargetOptions { at: Some("soon".into()), ..options() }).is_err());
    }

    #[test]
    fn tablespaces_are_pairs() {
        assert_eq!(tablespace("fast=/srv/fast"), Ok(("fast".into(), "/srv/fast".into())));
        assert!(tablespace("fast").is_err() && tablespace("fast=relative").is_err() && tablespace("=/x").is_err());
    }
}
