use crate::client::{Client, QueryError, identifier};

/// Something that a role needs for backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To begin a backup.
    BackupStart,
    /// To end it.
    BackupStop,
    /// To stream the log.
    Replication,
    /// To find out where the data directory and the configuration are.
    ReadSettings,
    /// To complete a WAL segment, so that a backup's log is whole without waiting for traffic.
    SwitchWal,
    /// To give recovery targets names.
    RestorePoint,
}

impl Right {
    /// Whether backups are impossible without it; without the others they lack something.
    pub const fn is_essential(self) -> bool {
        matches!(self, Self::BackupStart | Self::BackupStop | Self::Replication)
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BackupStart => "begin a backup",
            Self::BackupStop => "end a backup",
            Self::Replication => "stream the log",
            Self::ReadSettings => "read all settings",
            Self::SwitchWal => "switch to a new WAL segment",
            Self::RestorePoint => "name restore points",
        })
    }
}

/// A right that the role lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub right: Right,
    /// A sentence with the statement that gives the right.
    pub hint: String,
}

/// Finds out what the role of this connection lacks; an empty answer means nothing. On a connection for SQL.
pub async fn check_rights(client: &mut Client) -> Result<Vec<Finding>, QueryError> {
    let functions = functions(client.major());
    let columns: Vec<_> = functions
        .iter()
        .map(|(_, function)| format!("pg_catalog.has_function_privilege('pg_catalog.{function}', 'EXECUTE')"))
        .collect();
    let sql = format!(
        "SELECT current_user AS role, pg_catalog.current_database() AS database, (r.rolsuper OR r.rolreplication) AS replication, \
         pg_catalog.pg_has_role('pg_read_all_settings', 'USAGE') AS settings, {} \
         FROM pg_catalog.pg_roles r WHERE r.rolname OPERATOR(pg_catalog.=) current_user",
        columns.join(", ")
    );
    let row = client.query_one(&sql).await?;
    let failed = QueryError::answer(client.server());
    let role = identifier(row.text("role").map_err(&failed)?);
    // Grants on functions hold in one database only, so their hints name it.
    let database = identifier(row.text("database").map_err(&failed)?);
    let mut findings = Vec::new();
    let mut lacks = |right, statement: String| {
        findings.push(Finding { right, hint: format!("Run `{statement}` as a superuser.") });
    };
    if !row.truth("replication").map_err(&failed)? {
        lacks(Right::Replication, format!("ALTER ROLE {role} REPLICATION"));
    }
    if !row.truth("settings").map_err(&failed)? {
        lacks(Right::ReadSettings, format!("GRANT pg_read_all_settings TO {role}"));
    }
    for (index, (right, function)) in functions.into_iter().enumerate() {
        if !row.truth(4 + index).map_err(&failed)? {
            let statement = format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role}");
            let hint = format!("Run `{statement}` as a superuser in the database {database}.");
            findings.push(Finding { right, hint });
        }
    }
    Ok(findings)
}

fn functions(major: u32) -> [(Right, &'static str); 4] {
    let (start, stop) = match major {
        15.. => ("pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"),
        _ => ("pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"),
    };
    [
        (Right::BackupStart, start),
        (Right::BackupStop, stop),
        (Right::SwitchWal, "pg_switch_wal()"),
        (Right::RestorePoint, "pg_create_restore_point(text)"),
    ]
}
