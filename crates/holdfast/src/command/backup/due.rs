//! `--if-due`: whether so much log was written since the newest snapshot that another is due.

use holdfast_backup::{Due, Newest, Positions, Replay, ReplayBound, due, lineage, log_since, newest_on};
use holdfast_format::manifest::Summary;
use holdfast_postgres::server::LastCheckpoint;
use holdfast_postgres::{Client, ConnInfo, Purpose, ServerInfo};
use holdfast_repository::Repository;
use holdfast_types::Lsn;

use crate::config::Source;
use crate::failure::{CommandError, Failure};
use crate::replay;

/// What was decided, and by which snapshot.
pub(super) struct Decision {
    due: Due,
    newest: Option<Summary>,
    bound: ReplayBound,
}

pub(super) async fn decide(repository: &Repository, source: &Source) -> Result<Decision, Failure> {
    let bound = source.backup.replay_bound().ok_or_else(|| {
        CommandError::usage(
            format!("source `{}` has no `replay_target`, so that nothing says when a backup is due", source.name),
            format!("Add `replay_target = \"30s\"` to [source.{}.backup], or leave --if-due out.", source.name),
        )
    })?;
    let mut client = Client::connect(&source.connection, Purpose::Sql).await?;
    let info = ServerInfo::read(&mut client).await?;
    let last = client.checkpoint().await?;
    client.close().await;
    let (begin, checkpoint) = match &source.backup.connection {
        Some(standby) => (begin_at(standby, &info, last).await?, Some(last.redo)),
        None if info.in_recovery => (last.redo, None),
        None => (info.lsn, None),
    };
    let at = Positions { now: info.lsn, in_recovery: info.in_recovery, begin, checkpoint };
    let newest = newest_on(repository, &source.name, lineage(&info), info.timeline).await?;
    let counted = |newest: &Summary| Newest {
        start: newest.start_lsn,
        stop: newest.stop_lsn,
        bytes: log_since(newest, info.lsn),
    };
    let due = due(&bound, newest.as_ref().map(counted), at);
    Ok(Decision { due, newest, bound })
}

/// Where a backup from a standby would begin: at its last restartpoint, or if it has replayed the primary's last
/// checkpoint, there, as a restartpoint is made then.
async fn begin_at(standby: &ConnInfo, primary: &ServerInfo, last: LastCheckpoint) -> Result<Lsn, Failure> {
    let mut client = Client::connect(standby, Purpose::Sql).await?;
    let info = ServerInfo::read(&mut client).await?;
    let own = client.checkpoint().await?;
    let replayed = client.replayed().await?;
    client.close().await;
    Ok(match replayed {
        // Promoted: it is the source's server, or the backup refuses it.
        None => info.lsn,
        Some(replayed) if !primary.in_recovery && replayed > last.lsn => own.redo.max(last.redo),
        Some(_) => own.redo,
    })
}

impl Decision {
    pub(super) fn is_due(&self) -> bool {
        matches!(self.due, Due::NoSnapshot | Due::SetBack | Due::Yes(_))
    }

    /// Whether somebody has to do something, because no backup that could be made now would help.
    pub(super) fn is_failure(&self) -> bool {
        matches!(self.due, Due::Lags(replay) if !replay.keeps(self.bound.target))
    }

    /// Whether the target is missed already.
    pub(super) fn is_missed(&self) -> bool {
        matches!(self.due, Due::Yes(replay) if !replay.keeps(self.bound.target))
    }

    pub(super) fn text(&self) -> String {
        let since = self.newest.as_ref().map(|newest| newest.id.as_str()).unwrap_or_default();
        let estimate = |Replay { bytes, time }: Replay| {
            let (log, time) = (crate::table::size(bytes), replay::time(time));
            format!("{log} of log since snapshot {since} would replay in about {time}")
        };
        let target = replay::time(self.bound.target);
        match self.due {
            Due::NoSnapshot => "due: there is no snapshot on this timeline with all the log behind it".to_owned(),
            Due::SetBack => {
                format!("due: the server is before the end of snapshot {since}, as if it had been set back")
            }
            Due::Yes(replay) => format!("due: {}; the target is {target}", estimate(replay)),
            Due::No(replay) => format!("not due: {}; the target is {target}", estimate(replay)),
            Due::InVain(replay) => format!(
                "not due: {}; the target is {target}, and a backup from the standby would begin no later, as the \
                 primary has made no checkpoint since (a shorter checkpoint_timeout there helps)",
                estimate(replay)
            ),
            Due::Lags(replay) => format!(
                "not due: {}; the target is {target}, and a backup from the standby would begin no later, as it lags",
                estimate(replay)
            ),
        }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        let mut value = serde_json::json!({
            "due": self.is_due(),
            "snapshot": self.newest.as_ref().map(|newest| &newest.id),
        });
        if let Due::Yes(replay) | Due::No(replay) | Due::InVain(replay) | Due::Lags(replay) = self.due {
            value["replay"] = replay::json(replay, Some(self.bound.target));
            value["in_vain"] = matches!(self.due, Due::InVain(_) | Due::Lags(_)).into();
            value["lags"] = matches!(self.due, Due::Lags(_)).into();
        }
        value
    }
}
