//! What a server reads in its own `pg_control`: enough to tell its data directory from any other.

use holdfast_types::{Lsn, SystemId, Timeline};

use crate::client::{Client, QueryError, Row, RowError};

/// The server reads its file anew for each of these functions, so a write between them can show in a part only.
const SQL: &str = "\
    SELECT s.system_identifier, extract(epoch FROM s.pg_control_last_modified)::pg_catalog.int8 AS modified, \
        c.checkpoint_lsn, c.redo_lsn, c.timeline_id, \
        extract(epoch FROM c.checkpoint_time)::pg_catalog.int8 AS checkpoint_time, \
        r.min_recovery_end_lsn, r.min_recovery_end_timeline, r.backup_start_lsn, r.backup_end_lsn, \
        r.end_of_backup_record_required \
    FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r";

/// How far the server's log has come on its disk, on a standby in its files: what is done to files was logged before.
pub async fn log_position(client: &mut Client) -> Result<Lsn, QueryError> {
    let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
               ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn";
    let row = client.query_one(sql).await?;
    row.parse("lsn").map_err(QueryError::answer(client.server()))
}

/// The state of a control file, as the server that it belongs to sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlState {
    pub system_id: SystemId,
    /// When it was written last, in seconds since 1970.
    pub modified: i64,
    pub checkpoint: Lsn,
    pub redo: Lsn,
    pub timeline: Timeline,
    /// In seconds since 1970.
    pub checkpoint_time: i64,
    pub min_recovery_point: Lsn,
    pub min_recovery_timeline: Timeline,
    pub backup_start: Lsn,
    pub backup_end: Lsn,
    pub end_of_backup_required: bool,
}

impl ControlState {
    /// Asks the server at the other end of this connection, and no other.
    pub async fn read(client: &mut Client) -> Result<Self, QueryError> {
        let row = client.query_one(SQL).await?;
        Self::parse(&row).map_err(QueryError::answer(client.server()))
    }

    fn parse(row: &Row) -> Result<Self, RowError> {
        Ok(Self {
            system_id: SystemId::new(row.parse::<i64>("system_identifier")?.cast_unsigned()),
            modified: row.parse("modified")?,
            checkpoint: row.parse("checkpoint_lsn")?,
            redo: row.parse("redo_lsn")?,
            timeline: Timeline::new(row.parse("timeline_id")?),
            checkpoint_time: row.parse("checkpoint_time")?,
            min_recovery_point: row.parse("min_recovery_end_lsn")?,
            min_recovery_timeline: Timeline::new(row.parse("min_recovery_end_timeline")?),
            backup_start: row.parse("backup_start_lsn")?,
            backup_end: row.parse("backup_end_lsn")?,
            end_of_backup_required: row.truth("end_of_backup_record_required")?,
        })
    }
}
