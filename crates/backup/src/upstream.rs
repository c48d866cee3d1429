//! Whether the server that a backup is taken from, and the one whose log is received, are of one history.

use holdfast_postgres::client::{Client, Purpose};
use holdfast_postgres::conninfo::ConnInfo;
use holdfast_postgres::server::ServerInfo;

use crate::BackupError;

/// Looks at the server whose log is received. One that is gone may be why a backup of its standby is wanted.
pub(crate) async fn check(
    source: &str,
    client: &mut Client,
    info: &ServerInfo,
    log_connection: &ConnInfo,
) -> Result<(), BackupError> {
    let query = |error| BackupError::Query { source_name: source.to_owned(), source: error };
    let mut upstream = match Client::connect(log_connection, Purpose::Sql).await {
        Ok(upstream) => upstream,
        Err(error) if info.in_recovery => {
            tracing::warn!(%error, "the server that the standby follows cannot be asked");
            return Ok(());
        }
        // A server that writes has a history of its own, unless it is the one whose log is received.
        Err(error) => return Err(BackupError::Connect { source_name: source.to_owned(), source: error }),
    };
    let theirs = ServerInfo::read(&mut upstream).await.map_err(query)?;
    let is_same_server = upstream.started_at().await.map_err(query)? == client.started_at().await.map_err(query)?;
    upstream.close().await;
    if theirs.system_id != info.system_id {
        return Err(BackupError::LogOfOther { here: info.system_id, log: theirs.system_id });
    }
    if !info.in_recovery && !is_same_server {
        return Err(BackupError::NoStandby { here: info.timeline, log: theirs.timeline });
    }
    Ok(())
}
