//! Plans and results of restores, for people and for programs.

use std::path::{Path, PathBuf};

use holdfast_backup::{Replay, log_since};
use holdfast_format::wal::Moment;
use holdfast_postgres::cluster::{Running, is_running};
use holdfast_recovery::{Comparison, Plan, Reached, RestoreReport, Reused, Target, log_file};

use crate::command::{list, phases_json, phases_text, show};
use crate::config::BackupSettings;
use crate::replay;
use crate::table::{self, Lines as _, Table};
use crate::time;

fn target(target: &Target) -> String {
    match target {
        Target::Latest => "the newest point that can be reached".to_owned(),
        Target::Time(at) => format!("everything committed up to {}", time::show(*at)),
        Target::Lsn(lsn) => format!("position {lsn}"),
        Target::Name(name) => format!("restore point `{name}`"),
        Target::Consistent => "the end of the snapshot".to_owned(),
    }
}

pub(super) fn plan(plan: &Plan, to: &Path, backup: &BackupSettings) -> String {
    let snapshot = plan.summary();
    let mut all = Table::bare();
    all.row(["restore", &format!("{} to {}", plan.source, to.display())]);
    all.row(["target", &target(&plan.target)]);
    all.row(["from snapshot", &format!("{}, taken {}", snapshot.id, time::show_seconds(snapshot.stopped_at))]);
    all.row(["files", &format!("{}, {} to fetch", table::size(snapshot.bytes), table::size(plan.fetch_bytes))]);
    let log = format!("{} to {} on timeline {}", plan.log_from, plan.log_to, plan.timeline);
    let replay = replay::text(to_replay(plan, backup), None);
    all.row(["log to replay", &format!("at most {replay}: {log}")]);
    if let Some(newest) = plan.newest {
        let newest = time::show(newest.at);
        match plan.target {
            Target::Latest => all.row(["newest commit", &newest]),
            _ => all.row(["could reach", &format!("up to {newest}, the newest commit in the log")]),
        }
    }
    let mut text = all.text();
    for note in &plan.notes {
        text.line(format_args!("note: {note}"));
    }
    text
}

fn to_replay(plan: &Plan, backup: &BackupSettings) -> Replay {
    Replay::of(log_since(plan.summary(), plan.log_to), backup.replay_rate)
}

pub(super) fn plan_json(plan: &Plan, backup: &BackupSettings) -> serde_json::Value {
    let Plan {
        source,
        lineage,
        target,
        stop_at: _,
        manifest,
        timeline,
        log_from,
        log_to,
        newest,
        fetch_bytes,
        created_tablespaces: _,
        notes,
    } = plan;
    let target = match target {
        Target::Latest => serde_json::json!({ "latest": true }),
        Target::Time(at) => serde_json::json!({ "time": time::rfc3339(*at) }),
        Target::Lsn(lsn) => serde_json::json!({ "lsn": lsn }),
        Target::Name(name) => serde_json::json!({ "name": name }),
        Target::Consistent => serde_json::json!({ "snapshot": manifest.summary.id }),
    };
    serde_json::json!({
        "source": source,
        "lineage": lineage.to_string(),
        "target": target,
        "snapshot": list::summary_json(&manifest.summary),
        "timeline": timeline,
        "log_from": log_from,
        "log_to": log_to,
        "replay": replay::json(to_replay(plan, backup), None),
        "newest_commit": newest.map(|newest| time::rfc3339(newest.at)),
        "fetch_bytes": fetch_bytes,
        "notes": notes,
    })
}

/// What a restore would find there already.
pub(super) fn comparison(found: &Comparison) -> String {
    let Comparison { reused, fetch, notes } = found;
    let mut all = Table::bare();
    reused_rows(&mut all, reused);
    all.row(["to fetch", &table::size(*fetch)]);
    let mut text = all.text();
    for note in notes {
        text.line(format_args!("note: {note}"));
    }
    text
}

pub(super) fn comparison_json(found: &Comparison) -> serde_json::Value {
    let Comparison { reused, fetch, notes } = found;
    serde_json::json!({ "reused": reused_json(reused), "fetch_bytes": fetch, "notes": notes })
}

fn reused_rows(all: &mut Table, reused: &Reused) {
    let Reused { compared, kept, copied, written, deleted_files, deleted } = *reused;
    all.row(["compared", &format!("{}, {} kept", table::size(compared), table::size(kept))]);
    if copied > 0 {
        all.row(["copied", &format!("{} from other directories", table::size(copied))]);
    }
    all.row(["written", &table::size(written)]);
    all.row(["deleted", &format!("{} with {}", table::count(deleted_files, "file"), table::size(deleted))]);
}

fn reused_json(reused: &Reused) -> serde_json::Value {
    let Reused { compared, kept, copied, written, deleted_files, deleted } = reused;
    serde_json::json!({
        "compared_bytes": compared,
        "kept_bytes": kept,
        "copied_bytes": copied,
        "written_bytes": written,
        "deleted_files": deleted_files,
        "deleted_bytes": deleted,
    })
}

/// What became of a plan.
pub(super) struct Result<'a> {
    pub(super) plan: &'a Plan,
    pub(super) backup: &'a BackupSettings,
    pub(super) report: &'a RestoreReport,
    pub(super) end: End<'a>,
    pub(super) to: &'a Path,
}

/// How far it was carried out.
pub(super) enum End<'a> {
    /// The files are there, and nothing more was asked for.
    Restored,
    Reached(&'a Reached),
    /// The files are there, and the server did not become what was asked for.
    NotStarted {
        /// It runs all the same, perhaps still replaying.
        runs: bool,
        /// What it said, if it was started at all.
        log: Option<PathBuf>,
    },
}

impl End<'_> {
    pub(super) fn not_started(to: &Path) -> Self {
        let log = log_file(to);
        Self::NotStarted { runs: matches!(is_running(to), Running::Yes { .. }), log: log.exists().then_some(log) }
    }
}

impl Result<'_> {
    pub(super) fn json(&self) -> serde_json::Value {
        let RestoreReport { bytes, files, fetched, reused, phases, damage, notes } = self.report;
        let (mut reached, mut server_log) = (None, None);
        match &self.end {
            End::Restored => {}
            End::Reached(Reached { lsn, commit, timeline, reason, replay }) => {
                reached = Some(serde_json::json!({
                    "lsn": lsn,
                    "commit": commit.map(|commit| time::rfc3339(commit.at)),
                    "timeline": timeline,
                    "reason": reason,
                    "replay_seconds": replay.as_secs_f64(),
                    "replay_bytes": log_since(self.plan.summary(), *lsn),
                }));
            }
            End::NotStarted { runs: _, log } => server_log = log.as_ref(),
        }
        serde_json::json!({
            "plan": plan_json(self.plan, self.backup),
            "to": self.to,
            "bytes": bytes,
            "files": files,
            "fetched_bytes": fetched,
            "reused": reused.as_ref().map(reused_json),
            "phases": phases_json(phases),
            "damage": damage,
            "notes": notes,
            "reached": reached,
            "server_log": server_log,
        })
    }

    pub(super) fn text(&self) -> String {
        let RestoreReport { bytes, files, fetched, reused, phases, damage, notes } = self.report;
        let took = phases.iter().map(|(_, duration)| *duration).sum();
        let mut all = Table::bare();
        let (files, size) = (table::count(*files, "file"), table::size(*bytes));
        all.row(["restored", &format!("{files} with {size} in {}", self.to.display())]);
        if let Some(reused) = reused {
            reused_rows(&mut all, reused);
        }
        all.row(["fetched", &table::size(*fetched)]);
        all.row(["took", &format!("{}, {}", table::duration(took), table::rate(*bytes, took))]);
        let mut text = all.text();
        text.push_str(&phases_text(phases));
        match &self.end {
            End::Restored => text.push_str(&by_hand(self.to)),
            End::Reached(reached) => {
                let replayed = log_since(self.plan.summary(), reached.lsn);
                text.push_str(&reached_text(replayed, self.plan.newest, reached));
            }
            End::NotStarted { runs, log } => {
                if *runs {
                    text.push_str("the server runs, and may still be replaying the log\n");
                } else {
                    text.push_str("the server did not come up; the files are whole\n");
                    text.push_str(&by_hand(self.to));
                }
                if let Some(log) = log {
                    text.line(format_args!("the server's log: {}", log.display()));
                }
            }
        }
        for note in notes.iter().filter(|note| !self.plan.notes.contains(note)) {
            text.line(format_args!("note: {note}"));
        }
        for page in damage {
            text.line(format_args!("DAMAGED: {}", show::damaged(page)));
        }
        text
    }
}

fn by_hand(to: &Path) -> String {
    format!("start it with: pg_ctl -D {} start\n", to.display())
}

/// Where recovery ended, behind so much log, whose last commit is `newest`.
fn reached_text(replayed: u64, newest: Option<Moment>, reached: &Reached) -> String {
    let Reached { lsn, commit, timeline, reason, replay } = reached;
    let mut all = Table::bare();
    all.row(["reached", &format!("{lsn}, now on timeline {timeline}")]);
    if let Some(commit) = commit {
        // The index of the log leaves commits out that follow another within a second, but for its last.
        let later = if newest == Some(*commit) { "" } else { ", or up to a second later" };
        all.row(["last commit", &format!("{}{later}", time::show(commit.at))]);
    }
    if !reason.is_empty() {
        all.row(["stopped", &format!("PostgreSQL says: {reason}")]);
    }
    let rate = table::rate(replayed, *replay);
    all.row(["replay", &format!("{} in {}, {rate}", table::size(replayed), table::duration(*replay))]);
    all.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use holdfast_types::{Lsn, Micros, Timeline};

    #[test]
    fn where_recovery_ended() {
        let commit = Moment { at: Micros::new(1_795_256_100_250_000), lsn: Lsn::new(0x0400_0000) };
        let mut reached = Reached {
            lsn: commit.lsn,
            commit: Some(commit),
            timeline: Timeline::new(2),
            reason: "before 2026-11-21 10:15:07+00".to_owned(),
            replay: Duration::from_secs(1),
        };
        let replayed = 16 << 20;
        assert_eq!(
            reached_text(replayed, None, &reached),
            "reached      0/4000000, now on timeline 2\n\
             last commit  2026-11-21 10:15:00.25Z, or up to a second later\n\
             stopped      PostgreSQL says: before 2026-11-21 10:15:07+00\n\
             replay       16.0 MiB in 1.00 s, 16.0 MiB/s\n"
        );
        reached.reason = String::new();
        assert_eq!(
            reached_text(replayed, Some(commit), &reached),
            "reached      0/4000000, now on timeline 2\n\
             last commit  2026-11-21 10:15:00.25Z\n\
             replay       16.0 MiB in 1.00 s, 16.0 MiB/s\n"
        );
    }
}
