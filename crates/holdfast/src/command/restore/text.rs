//! Plans and results of restores, for people and for programs.

use std::path::Path;

use holdfast_recovery::{Plan, Reached, RestoreReport, Target};

use crate::command::{phases_json, phases_text, show};
use crate::table::{self, Table};
use crate::time;

fn target(target: &Target) -> String {
    match target {
        Target::Latest => "the newest point that can be reached".to_owned(),
        Target::Time(at) => format!("the last commit up to {}", time::show(*at)),
        Target::Lsn(lsn) => format!("position {lsn}"),
        Target::Name(name) => format!("restore point `{name}`"),
        Target::Snapshot(id) => format!("the end of snapshot {id}"),
    }
}

pub(super) fn plan(plan: &Plan, to: &Path) -> String {
    let snapshot = &plan.snapshot;
    let mut all = Table::bare();
    all.row(["restore", &format!("{} to {}", plan.source, to.display())]);
    all.row(["target", &target(&plan.target)]);
    all.row(["from snapshot", &format!("{}, taken {}", snapshot.id, time::show_seconds(snapshot.stopped_at))]);
    all.row(["files", &table::size(plan.bytes)]);
    all.row(["log to replay", &format!(
        "{} to {} ({}) on timeline {}",
        plan.log_from,
        plan.log_to,
        table::size(plan.log_to.bytes_since(plan.log_from)),
        plan.timeline.get()
    )]);
    if let Some(newest) = plan.newest {
        all.row(["newest moment", &time::show(newest.at)]);
    }
    all.text()
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
            let Reached { lsn, time, timeline, socket_directory, port, replay } = reached;
            serde_json::json!({
                "lsn": lsn,
                "time": time.map(time::rfc3339),
                "timeline": timeline.get(),
                "socket_directory": socket_directory,
                "port": port,
                "replay_seconds": replay.as_secs_f64(),
            })
        });
        serde_json::json!({
            "plan": self.plan,
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
        text.push_str(&match self.reached {
            Some(reached) => reached_text(reached),
            None => format!("start it with: pg_ctl -D {} start\n", self.to.display()),
        });
        for note in notes {
            text.push_str(&format!("note: {note}\n"));
        }
        for page in damage {
            text.push_str(&format!("DAMAGED: {}\n", show::damaged(page)));
        }
        text
    }
}

fn reached_text(reached: &Reached) -> String {
    let Reached { lsn, time, timeline, socket_directory, port, replay } = reached;
    let mut all = Table::bare();
    let moment = time.map(|at| format!(", last commit {}", time::show(at))).unwrap_or_default();
    all.row(["reached", &format!("{lsn}{moment}, now on timeline {}", timeline.get())]);
    all.row(["replay took", &table::duration(*replay)]);
    all.row(["running", &format!("host={} port={port}", socket_directory.display())]);
    all.text()
}
