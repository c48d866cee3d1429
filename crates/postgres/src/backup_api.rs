//! One online backup, from start to stop, on one held session.
//!
//! PostgreSQL ties a backup to the session that began it. [`BackupSession`] owns that session, so that a backup
//! cannot be begun and stopped on different ones, and a lost session cannot be mistaken for a finished backup.
//!
//! *Consistency*: `backup_label` and `tablespace_map` are fetched as hexadecimal digits in the database's own
//! encoding, so they arrive byte for byte whatever the encodings in between. They belong into the backup, never into
//! the live data directory. Stopping does not wait for the server's archiver: whoever keeps the log has to prove that
//! all of it from start to stop is durable.
//!
//! *Retries*: none. After any error of [`BackupSession::stop`] the backup is void.
//!
//! *Cancellation*: dropping a session, or one of its futures, ends the connection, and the server abandons the
//! backup. The same happens if this process dies: nothing stays behind at the server.

use std::time::Duration;

use holdfast_types::{Lsn, Micros, Timeline};

use crate::client::{Client, Purpose, QueryError, Row, RowError, ServerError, literal};

/// Why a backup could not be begun or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    #[error("the connection to {server} is for replication and cannot hold a backup")]
    Purpose { server: String },

    #[error("could not prepare the session at {server} for a backup")]
    Prepare {
        server: String,
        #[source]
        source: QueryError,
    },

    #[error("could not begin a backup at {server}")]
    Start {
        server: String,
        #[source]
        source: QueryError,
    },

    #[error("the session at {server} that holds the backup begun at {lsn} is lost: the backup is void")]
    SessionLost {
        server: String,
        lsn: Lsn,
        #[source]
        source: QueryError,
    },

    #[error("the session at {server} that holds the backup begun at {lsn} gave no answer within {after:?}")]
    NoAnswer { server: String, lsn: Lsn, after: Duration },

    #[error("could not end the backup at {server} that began at {lsn}: the backup is void")]
    Stop {
        server: String,
        lsn: Lsn,
        #[source]
        source: QueryError,
    },

    #[error("the backup label from {server} does not agree with the backup begun at {lsn} ({problem})")]
    Label { server: String, lsn: Lsn, problem: &'static str },
}

impl BackupError {
    /// Whether another backup may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Prepare { source, .. }
            | Self::Start { source, .. }
            | Self::SessionLost { source, .. }
            | Self::Stop { source, .. } => source.is_retryable(),
            Self::NoAnswer { .. } => true,
            Self::Purpose { .. } | Self::Label { .. } => false,
        }
    }

    /// What the server said, if it was the server that refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Prepare { source, .. }
            | Self::Start { source, .. }
            | Self::SessionLost { source, .. }
            | Self::Stop { source, .. } => source.server_error(),
            _ => None,
        }
    }
}

/// What is known of a backup when it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupStart {
    /// The redo position: replay of this backup begins here.
    pub lsn: Lsn,
    /// The timeline of `lsn`. On a standby it is not known until the end if a restartpoint came in between.
    pub timeline: Option<Timeline>,
    /// The server's clock.
    pub started_at: Micros,
}

/// What makes the copied files a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStop {
    /// The backup is consistent when replay has come this far.
    pub lsn: Lsn,
    /// The timeline of the start, from the label.
    pub start_timeline: Timeline,
    /// The timeline of `lsn`; on a standby it differs from the start's if the primary was replaced meanwhile.
    pub timeline: Timeline,
    /// The server's clock.
    pub stopped_at: Micros,
    /// The file `backup_label`, without which the copied files are not to be started.
    pub backup_label: Vec<u8>,
    /// The file `tablespace_map`; empty if there are no tablespaces, and then it is not written.
    pub tablespace_map: Vec<u8>,
}

/// A backup under way. See the [module documentation](self).
#[derive(Debug)]
pub struct BackupSession {
    client: Client,
    lsn: Lsn,
}

/// How the checkpoint that begins a backup is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartCheckpoint {
    /// At once, at the price of much I/O.
    Fast,
    /// Spread over `checkpoint_completion_target`: gentle, and takes minutes.
    Spread,
}

const MICROSECONDS_NOW: &str =
    "(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::pg_catalog.int8 AS microseconds";

impl BackupSession {
    /// Begins a backup. It waits for a checkpoint, on a standby for one of the primary's to have been replayed.
    pub async fn start(
        mut client: Client,
        label: &str,
        checkpoint: StartCheckpoint,
    ) -> Result<(Self, BackupStart), BackupError> {
        let server = client.server().to_owned();
        if client.purpose() != Purpose::Sql {
            return Err(BackupError::Purpose { server });
        }
        let prepared = client.execute(&session_settings(client.major())).await;
        prepared.map_err(|source| BackupError::Prepare { server: server.clone(), source })?;

        let fast = checkpoint == StartCheckpoint::Fast;
        let call = match client.major() {
            15.. => format!("pg_catalog.pg_backup_start({}, {fast})", literal(label)),
            _ => format!("pg_catalog.pg_start_backup({}, {fast}, false)", literal(label)),
        };
        // The clock first: what was committed before this moment is in the backup.
        let sql = format!("SELECT {MICROSECONDS_NOW}, (SELECT {call}) AS lsn");
        let failed = |source| BackupError::Start { server: server.clone(), source };
        let row = client.query_one(&sql).await.map_err(failed)?;
        let lsn: Lsn = read(&server, row.parse("lsn")).map_err(failed)?;
        let started_at = Micros::new(read(&server, row.parse("microseconds")).map_err(failed)?);
        let timeline = timeline_of(&mut client, lsn).await.map_err(failed)?;
        Ok((Self { client, lsn }, BackupStart { lsn, timeline, started_at }))
    }

    /// Asks how far the server is: nothing in its files was written later. To be called now and then while files are
    /// copied: a backup whose session is gone is void, however much has been copied.
    pub async fn position(&mut self, deadline: Duration) -> Result<Lsn, BackupError> {
        const SQL: &str = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                           ELSE pg_catalog.pg_current_wal_flush_lsn() END AS lsn";
        let (server, lsn) = (self.client.server().to_owned(), self.lsn);
        match tokio::time::timeout(deadline, self.client.query_one(SQL)).await {
            Ok(Ok(row)) => read(&server, row.parse("lsn")).map_err(|source| BackupError::SessionLost {
                server: server.clone(),
                lsn,
                source,
            }),
            Ok(Err(source)) => Err(BackupError::SessionLost { server, lsn, source }),
            Err(_) => Err(BackupError::NoAnswer { server, lsn, after: deadline }),
        }
    }

    /// The session itself, for questions that must go to the server that holds the backup and no other.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Ends the backup. Its log must reach to [`BackupStop::lsn`] before it counts as one. The session is given back.
    pub async fn stop(mut self) -> Result<(BackupStop, Client), BackupError> {
        let (server, lsn) = (self.client.server().to_owned(), self.lsn);
        let call = match self.client.major() {
            15.. => "pg_catalog.pg_backup_stop(false)",
            _ => "pg_catalog.pg_stop_backup(false, false)",
        };
        let hexadecimal = |column: &str| {
            let bytes = format!("pg_catalog.convert_to({column}, pg_catalog.getdatabaseencoding())");
            format!("pg_catalog.encode({bytes}, 'hex') AS {column}")
        };
        // The control data is read after the stop, in the same statement: functions of the target list run on the
        // rows of the FROM list.
        let sql = format!(
            "SELECT stop.lsn, {}, {}, pg_catalog.pg_is_in_recovery() AS standby, {MICROSECONDS_NOW}, \
             (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery() WHERE stop.lsn IS NOT NULL) \
             AS recovery_timeline FROM {call} AS stop",
            hexadecimal("labelfile"),
            hexadecimal("spcmapfile"),
        );
        let failed = |source: QueryError| {
            let server = server.clone();
            match source {
                QueryError::ConnectionLost { .. } | QueryError::Closed { .. } => {
                    BackupError::SessionLost { server, lsn, source }
                }
                source => BackupError::Stop { server, lsn, source },
            }
        };
        let row = self.client.query_one(&sql).await.map_err(failed)?;
        let stop = read(&server, StopRow::read(&row)).map_err(failed)?;
        let label = Label::parse(&stop.backup_label).ok_or(BackupError::Label {
            server: server.clone(),
            lsn,
            problem: "it names no start position or timeline",
        })?;
        if label.lsn != lsn {
            return Err(BackupError::Label { server, lsn, problem: "it names another start position" });
        }
        let stop = BackupStop {
            lsn: stop.lsn,
            start_timeline: label.timeline,
            timeline: stop.recovery_timeline.unwrap_or(label.timeline),
            stopped_at: stop.stopped_at,
            backup_label: stop.backup_label,
            tablespace_map: stop.tablespace_map,
        };
        Ok((stop, self.client))
    }
}

/// Takes away every limit that could end the session while files are copied for hours.
fn session_settings(major: u32) -> String {
    let mut settings = vec![
        "statement_timeout = 0",
        "lock_timeout = 0",
        "idle_in_transaction_session_timeout = 0",
        "client_min_messages = warning",
    ];
    if major >= 14 {
        settings.push("idle_session_timeout = 0");
    }
    if major >= 17 {
        settings.push("transaction_timeout = 0");
    }
    settings.iter().map(|setting| format!("SET {setting};")).collect::<Vec<_>>().join(" ")
}

/// The timeline that a backup's start position is on.
async fn timeline_of(client: &mut Client, lsn: Lsn) -> Result<Option<Timeline>, QueryError> {
    // The checkpoint that began the backup is the newest, unless another has come already; then its timeline still
    // is this one on a primary, which cannot change its timeline while it runs.
    let sql = "SELECT pg_catalog.pg_is_in_recovery() AS standby, redo_lsn, timeline_id \
               FROM pg_catalog.pg_control_checkpoint()";
    let row = client.query_one(sql).await?;
    let server = client.server();
    let same = read(server, row.parse::<Lsn>("redo_lsn"))? == lsn;
    let timeline = Timeline::new(read(server, row.parse("timeline_id"))?);
    Ok((same || !read(server, row.truth("standby"))?).then_some(timeline))
}

fn read<T>(server: &str, value: Result<T, RowError>) -> Result<T, QueryError> {
    value.map_err(QueryError::answer(server))
}

struct StopRow {
    lsn: Lsn,
    stopped_at: Micros,
    recovery_timeline: Option<Timeline>,
    backup_label: Vec<u8>,
    tablespace_map: Vec<u8>,
}

impl StopRow {
    fn read(row: &Row) -> Result<Self, RowError> {
        // On a primary the control data holds the end of its last recovery, which says nothing here.
        let standby = row.truth("standby")?;
        let recovery_timeline = row.optional("recovery_timeline")?.filter(|timeline| standby && *timeline > 0);
        Ok(Self {
            lsn: row.parse("lsn")?,
            stopped_at: Micros::new(row.parse("microseconds")?),
            recovery_timeline: recovery_timeline.map(Timeline::new),
            backup_label: row.parse::<Hexadecimal>("labelfile")?.0,
            tablespace_map: row.optional::<Hexadecimal>("spcmapfile")?.map(|map| map.0).unwrap_or_default(),
        })
    }
}

struct Hexadecimal(Vec<u8>);

impl std::str::FromStr for Hexadecimal {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(());
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let bytes = pairs.iter().map(|[high, low]| Ok((digit(*high)? << 4 | digit(*low)?) as u8));
        if rest.is_empty() { bytes.collect::<Result<_, ()>>().map(Self) } else { Err(()) }
    }
}

/// The two lines of a `backup_label` that say what it belongs to.
struct Label {
    lsn: Lsn,
    timeline: Timeline,
}

impl Label {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let line = |name: &[u8]| {
            let line = bytes.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
            std::str::from_utf8(line).ok()
        };
        let lsn = line(b"START WAL LOCATION: ")?.split(' ').next()?.parse().ok()?;
        let timeline = line(b"START TIMELINE: ")?.trim_ascii().parse().ok().filter(|timeline| *timeline > 0)?;
        Some(Self { lsn, timeline: Timeline::new(timeline) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_labels_with_any_text_in_them() {
        let label =
            b"START WAL LOCATION: 1A/2000028 (file 00000003000000000000001A)\nCHECKPOINT LOCATION: 1A/2000060\n\
                      BACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-01-01 00:00:00 GMT\n\
                      LABEL: caf\xe9 START TIMELINE: 9\nSTART TIMELINE: 3\n";
        let label = Label::parse(label).unwrap();
        assert_eq!((label.lsn.to_string().as_str(), label.timeline), ("1A/2000028", Timeline::new(3)));
        assert!(Label::parse(b"START WAL LOCATION: 1A/2000028 (file x)\n").is_none());
        assert!(Label::parse(b"").is_none());
    }

    #[test]
    fn session_settings_fit_the_version() {
        for name in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
            assert!(session_settings(13).contains(&format!("SET {name} = 0;")), "{name}");
        }
        assert!(!session_settings(13).contains("idle_session_timeout"));
        assert!(session_settings(14).contains("SET idle_session_timeout = 0;"));
        assert!(session_settings(18).contains("SET transaction_timeout = 0;"));
    }

    #[test]
    fn hexadecimal_digits_become_bytes() {
        assert_eq!("00ff0a".parse::<Hexadecimal>().map(|h| h.0), Ok(vec![0, 255, 10]));
        assert!("0".parse::<Hexadecimal>().is_err() && "0g".parse::<Hexadecimal>().is_err());
    }
}
