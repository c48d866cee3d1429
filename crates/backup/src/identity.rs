//! Proving that the files on this machine are those of the server that answers.
//!
//! All servers of a cluster have one system identifier, and a connection may lead to any of them: by an address that
//! moves, by a list of hosts, by a proxy. A backup that is begun at one server and copies the files of another, perhaps of
//! a standby that lags behind, is a backup of nothing. What no two servers share is their control file: a primary's says
//! nothing of a recovery, a standby's says how far it must replay, and each is written at its server's own times.
//!
//! *Consistency.* The file may be written between a look at it and the server's answer. So both are asked again until they
//! agree; two different files do not.

use std::path::Path;
use std::time::Duration;

use holdfast_pgformat::ControlFile;
use holdfast_postgres::client::Client;
use holdfast_postgres::control::ControlState;
use holdfast_types::Timeline;

use crate::BackupError;
use crate::server::read_control_file;

/// A standby under load writes its control file many times a second.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(50);

/// Fails with [`BackupError::OtherServer`] if the data directory is not that of the server at the other end of this very
/// connection.
pub async fn prove_local(data_directory: &Path, client: &mut Client) -> Result<(), BackupError> {
    let mut before = local(data_directory).await?;
    let mut difference = String::new();
    for _ in 0..TRIES {
        match ControlState::read(client).await {
            Ok(told) => {
                let after = local(data_directory).await?;
                if before == told || after == told {
                    return Ok(());
                }
                difference = describe(&after, &told);
                before = after;
            }
            // The server reads without a lock as well, and fails where it meets a write.
            Err(error) if error.server_error().is_some() => difference = error.to_string(),
            Err(source) => {
                return Err(BackupError::Identity { server: client.server().to_owned(), source });
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    let (path, server) = (data_directory.to_owned(), client.server().to_owned());
    Err(BackupError::OtherServer { path, server, difference })
}

async fn local(data_directory: &Path) -> Result<ControlState, BackupError> {
    let bytes = read_control_file(data_directory).await?;
    let control = ControlFile::parse(&bytes).map_err(|error| BackupError::ControlFile {
        path: data_directory.join("global/pg_control"),
        problem: error.to_string(),
    })?;
    Ok(state(&control))
}

const fn state(control: &ControlFile) -> ControlState {
    ControlState {
        system_id: control.system_id,
        modified: control.modified.get() / 1_000_000,
        checkpoint: control.checkpoint,
        redo: control.redo,
        timeline: control.timeline,
        checkpoint_time: control.checkpoint_time.get() / 1_000_000,
        min_recovery_point: control.min_recovery_point,
        min_recovery_timeline: control.min_recovery_timeline,
        backup_start: control.backup_start,
        backup_end: control.backup_end,
        end_of_backup_required: control.end_of_backup_required,
    }
}

/// The difference that says most to a person.
fn describe(local: &ControlState, told: &ControlState) -> String {
    let timeline = |timeline: Timeline| format!("timeline {}", timeline.get());
    if local.system_id != told.system_id {
        format!("it is of cluster {}, the server of {}", local.system_id, told.system_id)
    } else if local.timeline != told.timeline {
        format!("its last checkpoint is on {}, the server's on {}", timeline(local.timeline), timeline(told.timeline))
    } else if local.checkpoint != told.checkpoint {
        format!("its last checkpoint is at {}, the server's at {}", local.checkpoint, told.checkpoint)
    } else if local.min_recovery_point != told.min_recovery_point {
        format!("it must be replayed to {}, the server's to {}", local.min_recovery_point, told.min_recovery_point)
    } else {
        "its control file is not the server's".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::Lsn;

    use super::*;

    #[test]
    fn the_difference_is_said() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../pgformat/tests/fixtures/15/pg_control");
        let one = state(&ControlFile::parse(&std::fs::read(fixture).unwrap()).unwrap());
        let other = ControlState { checkpoint: Lsn::new(0x10), ..one };
        assert!(describe(&one, &other).contains("the server's at 0/10"));
        let other = ControlState { timeline: Timeline::new(9), ..other };
        assert!(describe(&one, &other).contains("the server's on timeline 9"));
        let other = ControlState { modified: one.modified + 1, ..one };
        assert!(describe(&one, &other).contains("not the server's"));
    }
}
