//! Plans and results of restores, for people and for programs.

use std::path::Path;

use holdfast_recovery::{Plan, Reached, RestoreReport, Target};

use crate::command::{list, phases_json, phases_text, show};
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

pub(super) fn plan(plan: &Plan, to: &Path) -> String {
    let snapshot = plan.summary();
    let mut all = Table::bare();
    all.row(["restore", &format!("{} to {}", plan.source, to.display())]);
    all.row(["target", &target(&plan.target)]);
    all.row(["from snapshot", &format!("{}, taken {}", snapshot.id, time::show_seconds(snapshot.stopped_at))]);
    all.row(["files", &format!("{}, {} to fetch", table::size(snapshot.bytes), table::size(plan.fetch_bytes))]);
    let log = format!("{} to {} on timeline {}", plan.log_from, plan.log_to, plan.timeline);
    all.row(["log to replay", &format!("at most {}: {log}", table::size(plan.log_bytes()))]);
    if let Some(newest) = plan.newest {
        all.row(["newest commit", &time::show(newest.at)]);
    }
    let mut text = all.text();
    for note in &plan.notes {
        text.line(format_args!("note: {note}"));
    }
    text
}

pub(super) fn plan_json(plan: &Plan) -> serde_json::Value {
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
        "newest_commit": newest.map(|newest| time::rfc3339(newest.at)),
        "fetch_bytes": fetch_bytes,
        "notes": notes,
    })
}

/// What became of a plan.
pub(super) struct Result<'a> {
    pub(super) plan: &'a Plan,
    pub(super) report: &'a RestoreReport,
    pub(super) reached: Option<&'a Reached>,
    pub(super) to: &'a Path,
}

impl Result<'_> {
    pub(super) fn json(&self) -> serde_json::Value {
        let RestoreReport { bytes, files, fetched, phases, damage, notes } = self.report;
        let reached = self.reached.map(|reached| {
            let Reached { lsn, commit, timeline, reason, replay } = reached;
            serde_json::json!({
                "lsn": lsn,
                "commit": commit.map(|commit| time::rfc3339(commit.at)),
                "timeline": timeline,
                "reason": reason,
                "replay_seconds": replay.as_secs_f64(),
            })
        });
        serde_json::json!({
            "plan": plan_json(self.plan),
            "to": self.to,
            "bytes": bytes,
            "files": files,
            "fetched_bytes": fetched,
            "phases": phases_json(phases),
            "damage": damage,
            "notes": notes,
            "reached": reached,
        })
    }

    pub(super) fn text(&self) -> String {
        let RestoreReport { bytes, files, fetched, phases, damage, notes } = self.report;
        let took = phases.iter().map(|(_, duration)| *duration).sum();
        let mut all = Table::bare();
        all.row(["restored", &format!("{files} files with {} in {}", table::size(*bytes), self.to.display())]);
        all.row(["fetched", &table::size(*fetched)]);
        all.row(["took", &format!("{}, {}", table::duration(took), table::rate(*bytes, took))]);
        let mut text = all.text();
        text.push_str(&phases_text(phases));
        match self.reached {
            Some(reached) => text.push_str(&self.reached_text(reached)),
            None => text.line(format_args!("start it with: pg_ctl -D {} start", self.to.display())),
        }
        for note in notes.iter().filter(|note| !self.plan.notes.contains(note)) {
            text.line(format_args!("note: {note}"));
        }
        for page in damage {
            text.line(format_args!("DAMAGED: {}", show::damaged(page)));
        }
        text
    }

    fn reached_text(&self, reached: &Reached) -> String {
        let Reached { lsn, commit, timeline, reason, replay } = reached;
        let replayed = lsn.bytes_since(self.plan.log_from);
        let mut all = Table::bare();
        let commit = commit.map(|commit| format!(", last commit at or after {}", time::show(commit.at)));
        all.row(["reached", &format!("{lsn}{}", commit.unwrap_or_default())]);
        all.row(["", &format!("{reason}; now on timeline {timeline}")]);
        let rate = table::rate(replayed, *replay);
        all.row(["replay", &format!("{} in {}, {rate}", table::size(replayed), table::duration(*replay))]);
        all.text()
    }
}
