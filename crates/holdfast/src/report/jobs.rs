//! The same for errors of backups and recoveries.

use std::error::Error;

use holdfast_backup::{BackupError, PushError, ReceiveError};
use holdfast_postgres::cluster::{ClusterError, FindBinariesError};
use holdfast_recovery::{GetError, RestoreError};

use super::classify::{self, Verdict, plain, verdict};
use crate::exit::Exit;

/// What is known of the jobs' errors; `None` leaves the decision to their causes.
pub(super) fn classify(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<BackupError>() {
        backup(error)
    } else if let Some(error) = error.downcast_ref::<ReceiveError>() {
        receive(error)
    } else if let Some(error) = error.downcast_ref::<Box<ReceiveError>>() {
        receive(error)
    } else if let Some(error) = error.downcast_ref::<PushError>() {
        push(error)
    } else if let Some(error) = error.downcast_ref::<RestoreError>() {
        restore(error)
    } else if let Some(error) = error.downcast_ref::<GetError>() {
        get(error)
    } else if let Some(error) = error.downcast_ref::<ClusterError>() {
        cluster(error)
    } else {
        error.downcast_ref::<FindBinariesError>().map(binaries)
    }
}

fn backup(error: &BackupError) -> Option<Verdict> {
    Some(match error {
        BackupError::Cancelled(_) => plain(Exit::Cancelled),
        BackupError::WalLevel { .. } => {
            verdict(Exit::Database, "Set `wal_level = replica` in postgresql.conf and restart the server.")
        }
        BackupError::Rights { hints, .. } => verdict(Exit::Database, hints.join("\n")),
        BackupError::DataDirectoryUnknown => verdict(
            Exit::Database,
            "Set `data_directory` for the source in the configuration, or grant pg_read_all_settings to the role.",
        ),
        BackupError::DataDirectory { path, .. } => verdict(
            Exit::Failed,
            format!(
                "Backups read the files themselves: run this where {} is, as the user that owns it or in its group.",
                path.display()
            ),
        ),
        BackupError::OtherCluster { .. } => {
            verdict(Exit::Usage, "`connection` and `data_directory` in the configuration must be of the same cluster.")
        }
        BackupError::LogOfOther { .. } => verdict(
            Exit::Usage,
            "`connection` in [source.NAME.backup] must lead to a standby of the server that `connection` in \
             [source.NAME] leads to.",
        ),
        BackupError::NoStandby { .. } => verdict(
            Exit::Usage,
            "It was promoted, or runs by itself, and its log is not received. Let `connection` in [source.NAME] lead to \
             the server that serves now, and start the receiver with it.",
        ),
        BackupError::OtherServer { .. } => verdict(
            Exit::Usage,
            "`connection` leads to another server of the same cluster, as after a failover or with several hosts. Run this \
             where that server is, or name the server of this machine, best by its socket's directory: `host=/run/postgresql`.",
        ),
        BackupError::LogMissing { .. } => verdict(
            Exit::Failed,
            "Is `holdfast wal receive` running and connected? `holdfast check` shows how far the log is.",
        ),
        BackupError::NoIdentity => verdict(
            Exit::WrongKey,
            "Set `identity_file` in the [repository] table of the configuration, or make full backups.",
        ),
        BackupError::Probe { .. } => verdict(
            Exit::Database,
            "`latency_query` must be SQL that the role may run, in the database it connects to.",
        ),
        BackupError::OutsideWindow { .. } => verdict(Exit::InTheWay, "`--any-time` runs it now."),
        BackupError::WindowClosed { .. } => verdict(
            Exit::Cancelled,
            "The next full backup goes on with what is stored. Widen `windows`, or loosen the limits.",
        ),
        BackupError::Pooled { .. } => verdict(
            Exit::Usage,
            "Let `connection` lead to the server itself, best by its socket's directory: `host=/run/postgresql`.",
        ),
        BackupError::Running { .. } => plain(Exit::InTheWay),
        BackupError::TimelineChanged => verdict(Exit::Failed, "Take the backup again."),
        BackupError::Level(_) => plain(Exit::Usage),
        _ => return None,
    })
}

fn receive(error: &ReceiveError) -> Option<Verdict> {
    Some(match error {
        ReceiveError::SlotMissing { .. } => verdict(
            Exit::Database,
            "`holdfast wal receive SOURCE --create-slot` makes it. If it was there before, log may be missing: take a \
             backup as well.",
        ),
        ReceiveError::SlotLogical { .. } => {
            verdict(Exit::Usage, "Choose another name for `slot` in the configuration.")
        }
        ReceiveError::OtherCluster { .. } => verdict(
            Exit::Failed,
            "`connection` in the configuration leads to another cluster than before; start this again if that is meant.",
        ),
        ReceiveError::ServerBehind { .. } => verdict(Exit::Failed, "The server is a standby that has yet to catch up."),
        ReceiveError::ServerSetBack { .. } => verdict(
            Exit::Failed,
            "What it has written since is another history at the same positions, and cannot be stored beside the first. Give \
             it a timeline of its own: stop it, create `standby.signal` in its data directory, start it, run `SELECT \
             pg_promote()`, start this again, and take a full backup. Where `archive_command` pushes the log, then delete \
             the files `SEGMENT.ready` in pg_wal/archive_status of segments of the old timeline that are refused, or they are \
             tried for ever. Nothing that is in the repository is lost.",
        ),
        ReceiveError::Level(_) => plain(Exit::Usage),
        _ => return None,
    })
}

fn push(error: &PushError) -> Option<Verdict> {
    Some(match error {
        PushError::NotArchived { .. } | PushError::Size { .. } => verdict(
            Exit::Usage,
            "PostgreSQL gives the right path with %p: archive_command='holdfast wal push SOURCE %p'.",
        ),
        PushError::Content { .. } => verdict(
            Exit::Failed,
            "The file is damaged, unfinished, or of another cluster. It was not archived, and PostgreSQL keeps it.",
        ),
        PushError::UnknownCluster { .. } => {
            verdict(Exit::Failed, "Push it from the server's pg_wal, where segments lie beside it.")
        }
        PushError::Level(_) => plain(Exit::Usage),
        _ => return None,
    })
}

fn restore(error: &RestoreError) -> Option<Verdict> {
    Some(match error {
        RestoreError::Repository(error) => classify::repository(error),
        RestoreError::Cancelled(_) => plain(Exit::Cancelled),
        RestoreError::NoSnapshot { source_name } => verdict(
            Exit::Unreachable,
            format!("`holdfast list` shows what there is; `holdfast backup {source_name}` takes a snapshot."),
        ),
        RestoreError::UnknownSnapshot { source_name, .. } => {
            verdict(Exit::Unreachable, format!("`holdfast list {source_name}` shows the snapshots."))
        }
        RestoreError::Unreachable { nearest, .. } if nearest.is_empty() => {
            verdict(Exit::Unreachable, "No snapshot can be restored on this timeline; try another with --timeline.")
        }
        RestoreError::Unreachable { nearest, .. } => verdict(Exit::Unreachable, nearest.join("\n")),
        RestoreError::UnknownTimeline { known, .. } => {
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            verdict(Exit::Unreachable, format!("There are the timelines {}.", known.join(", ")))
        }
        RestoreError::ServerRunning { .. } => {
            verdict(Exit::InTheWay, "Nothing was touched. Stop the server, or restore into another directory.")
        }
        RestoreError::ServerUnknown { .. } => verdict(
            Exit::InTheWay,
            "Nothing was touched. Make sure that no server uses the directory, in any container or on any machine; then \
             remove its postmaster.pid. Or restore into another directory.",
        ),
        RestoreError::OtherCluster { .. } | RestoreError::OtherVersion { .. } => {
            verdict(Exit::InTheWay, "Nothing was touched. Restore into another directory.")
        }
        RestoreError::NotEmpty { .. } => verdict(
            Exit::InTheWay,
            "Nothing was touched. Restore into an empty directory; an old data directory is best moved aside, or restored \
             over with --delta.",
        ),
        RestoreError::UnknownCluster { .. } => verdict(
            Exit::InTheWay,
            "Nothing was touched. --delta goes over a data directory of the snapshot's cluster only; move this one aside.",
        ),
        RestoreError::TablespaceOfRunning { name, .. } => verdict(
            Exit::InTheWay,
            format!(
                "Nothing was touched. A copied data directory leads to its original's tablespaces; put this one \
                 elsewhere with --tablespace {name}=DIR."
            ),
        ),
        RestoreError::TablespaceInUse { name, .. } => verdict(
            Exit::InTheWay,
            format!("Nothing was touched. Put the tablespace elsewhere with --tablespace {name}=DIR."),
        ),
        RestoreError::Nested { .. } => verdict(
            Exit::InTheWay,
            "Nothing was touched. Put each tablespace into a directory of its own with --tablespace OLD=NEW.",
        ),
        RestoreError::MountPoint { .. } => verdict(
            Exit::InTheWay,
            "Nothing was touched. If what is mounted there may go, delete it; or else mount it elsewhere.",
        ),
        RestoreError::UnknownTablespace(_) => verdict(
            Exit::Usage,
            "`holdfast show` lists the snapshot's tablespaces: give one by its name, oid or former directory.",
        ),
        RestoreError::NoSpace { .. } => verdict(Exit::NoSpace, "Make room, or restore elsewhere."),
        RestoreError::Snapshot { .. }
        | RestoreError::Label(_)
        | RestoreError::ControlFile(_)
        | RestoreError::History { .. } => {
            verdict(Exit::Failed, "`holdfast verify` finds what is damaged; another snapshot may do.")
        }
        RestoreError::RecoveryFailed { log } => {
            let exit = if log.contains("recovery ended before configured recovery target was reached") {
                Exit::Unreachable
            } else {
                Exit::Failed
            };
            verdict(exit, format!("Its log ends with:\n{}", log.trim_end()))
        }
        _ => return None,
    })
}

fn get(error: &GetError) -> Option<Verdict> {
    Some(match error {
        GetError::Name(_) => plain(Exit::Usage),
        GetError::Gap { .. } => {
            verdict(Exit::Failed, "Recovery cannot cross a gap: choose a target before it, or a snapshot behind it.")
        }
        GetError::Undecided { .. } => verdict(
            Exit::Failed,
            "Say in restore_command with --timeline which timeline recovery follows: `latest`, or its number where others \
             left this one elsewhere.",
        ),
        GetError::NoHistory { timeline } => verdict(
            Exit::Failed,
            format!(
                "`holdfast wal push` stores {} from the pg_wal of a server that has it. If that timeline's log begins \
                 in the repository, say `--timeline {timeline}`.",
                timeline.history_file()
            ),
        ),
        _ => return None,
    })
}

fn cluster(error: &ClusterError) -> Option<Verdict> {
    Some(match error {
        ClusterError::AlreadyRunning { .. } => verdict(Exit::InTheWay, "Stop it first."),
        ClusterError::OwnedByRoot { .. } => {
            verdict(Exit::Failed, "Give the directory to PostgreSQL's user, and run this as that user or as root.")
        }
        ClusterError::NotOwner { .. } => verdict(Exit::Failed, "Run this as the directory's owner or as root."),
        _ => return None,
    })
}

fn binaries(_error: &FindBinariesError) -> Verdict {
    verdict(Exit::Failed, "Install that version's server, or say where its programs are with --bin-dir.")
}
