//! Physical replication: who a server is, slots, timeline histories and the stream of WAL.
//!
//! PostgreSQL answers SQL only on connections made for [`Purpose::Sql`], and replication commands only on those made
//! for [`Purpose::Replication`]; a call on the wrong kind is refused here.
//!
//! *Consistency*: a stream hands on every byte exactly once and in order. Each message must begin where the one before
//! ended; anything else ends the stream with [`ReplicationError::Discontinuity`].
//!
//! *Cancellation*: futures of a [`ReplicationStream`] may be dropped and called again; neither bytes nor status
//! messages are lost or doubled.
//!
//! *Crash*: the server keeps WAL for a slot from the last position that was reported as flushed. Whoever reports a
//! position must have made the bytes before it durable.

mod stream;

use std::io;

use bytes::Bytes;
use holdfast_types::{Lsn, SystemId, Timeline};

pub use stream::{Event, ReplicationStream};

use crate::client::{Client, Purpose, QueryError, Row, RowError, ServerError, identifier, literal};

/// Why replication does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicationError {
    #[error("the connection to {server} is not one for {expected:?}")]
    Purpose { server: String, expected: Purpose },

    #[error("`{slot}` cannot be the name of a replication slot (expected 1 to 63 of a-z, 0-9 and `_`)")]
    SlotName { slot: String },

    #[error("the server {server} did not carry out {command}")]
    Command {
        server: String,
        command: String,
        #[source]
        source: QueryError,
    },

    #[error("the stream of WAL from {server} broke at {lsn}")]
    Broken {
        server: String,
        lsn: Lsn,
        #[source]
        source: QueryError,
    },

    #[error("the stream of WAL from {server} goes on at {got} where {expected} was to come")]
    Discontinuity { server: String, expected: Lsn, got: Lsn },

    #[error("the server {server} sent a message at {lsn} that is not part of a stream of WAL")]
    Message {
        server: String,
        lsn: Lsn,
        #[source]
        source: io::Error,
    },
}

impl ReplicationError {
    /// Whether the same may succeed later, on a new connection.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Command { source, .. } | Self::Broken { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// What the server said, if it was the server that refused.
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Command { source, .. } | Self::Broken { source, .. } => source.server_error(),
            _ => None,
        }
    }

    /// Whether the server no longer has the WAL that was asked for: trying again cannot help, there is a gap.
    pub fn is_wal_removed(&self) -> bool {
        let undefined_file = "58P01";
        // An invalidated slot says so in words of each version, always with this state.
        let slot_invalidated = "55000";
        self.server_error().is_some_and(|error| {
            error.sqlstate == undefined_file
                || (error.sqlstate == slot_invalidated && error.message.contains("replication slot"))
        })
    }

    /// Whether there is no such slot.
    pub fn is_slot_missing(&self) -> bool {
        self.server_error().is_some_and(|error| error.sqlstate == "42704")
    }
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_id: SystemId,
    pub timeline: Timeline,
    /// On a primary the end of what is flushed, on a standby of what is replayed.
    pub xlogpos: Lsn,
}

/// A replication slot as its server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub name: String,
    pub physical: bool,
    pub temporary: bool,
    pub active: bool,
    /// The process that uses it.
    pub active_pid: Option<i32>,
    /// The oldest WAL that is kept for it; none if it has never been used or reserved.
    pub restart_lsn: Option<Lsn>,
    pub wal_status: Option<WalStatus>,
    /// How much may still be written until WAL that it needs can be removed (`max_slot_wal_keep_size`); none if
    /// there is no such limit, or the slot is lost.
    pub safe_wal_bytes: Option<i64>,
}

/// Whether a slot's WAL is still there (`pg_replication_slots.wal_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStatus {
    /// All of it, within `max_wal_size`.
    Reserved,
    /// All of it, beyond `max_wal_size`.
    Extended,
    /// It may go at the next checkpoint.
    Unreserved,
    /// Some of it is gone: the slot is of no use any more.
    Lost,
}

impl std::str::FromStr for WalStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "reserved" => Ok(Self::Reserved),
            "extended" => Ok(Self::Extended),
            "unreserved" => Ok(Self::Unreserved),
            "lost" => Ok(Self::Lost),
            _ => Err(()),
        }
    }
}

/// How long a slot lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotLifetime {
    /// Until it is dropped.
    Persistent,
    /// Until the connection that made it ends.
    Temporary,
}

/// From when on a new slot keeps WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotReserve {
    Immediately,
    FromFirstUse,
}

impl Client {
    /// Asks who the server is. On a replication connection.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, ReplicationError> {
        let row = self.command(Purpose::Replication, "IDENTIFY_SYSTEM").await?;
        let read = || {
            Ok(SystemIdentity {
                system_id: row.parse("systemid")?,
                timeline: Timeline::new(row.parse("timeline")?),
                xlogpos: row.parse("xlogpos")?,
            })
        };
        read().map_err(|source| self.unreadable("IDENTIFY_SYSTEM", source))
    }

    /// The history file of a timeline, as the server keeps it: its name and its bytes. On a replication connection.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<(String, Bytes), ReplicationError> {
        let command = format!("TIMELINE_HISTORY {timeline}");
        let row = self.command(Purpose::Replication, &command).await?;
        let name = row.text("filename").map_err(|source| self.unreadable(&command, source))?;
        let content = row.bytes("content").ok_or(RowError::Null { column: "content".to_owned() });
        let content = content.map_err(|source| self.unreadable(&command, source))?;
        Ok((name.to_owned(), Bytes::copy_from_slice(content)))
    }

    /// Makes a physical slot. On a replication connection. If there is one of that name, the server says 42710.
    pub async fn create_physical_slot(
        &mut self,
        name: &str,
        lifetime: SlotLifetime,
        reserve: SlotReserve,
    ) -> Result<(), ReplicationError> {
        check_slot_name(name)?;
        let temporary = if lifetime == SlotLifetime::Temporary { "TEMPORARY " } else { "" };
        let reserve = if reserve == SlotReserve::Immediately { " RESERVE_WAL" } else { "" };
        // The form of PostgreSQL 13 and 14, which later ones understand as well.
        let command = format!("CREATE_REPLICATION_SLOT {} {temporary}PHYSICAL{reserve}", identifier(name));
        self.command(Purpose::Replication, &command).await.map(drop)
    }

    /// Drops a slot that nobody uses. On a replication connection.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        check_slot_name(name)?;
        self.check_purpose(Purpose::Replication)?;
        let command = format!("DROP_REPLICATION_SLOT {}", identifier(name));
        match self.execute(&command).await {
            Ok(_) => Ok(()),
            Err(source) => Err(ReplicationError::Command { server: self.server().to_owned(), command, source }),
        }
    }

    /// Looks a slot up; `None` if there is none of that name. On a connection for SQL.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<SlotState>, ReplicationError> {
        check_slot_name(name)?;
        self.check_purpose(Purpose::Sql)?;
        let sql = format!(
            "SELECT slot_name, slot_type, temporary, active, active_pid, restart_lsn, wal_status, safe_wal_size \
             FROM pg_catalog.pg_replication_slots WHERE slot_name OPERATOR(pg_catalog.=) {}",
            literal(name)
        );
        let command = "a look at pg_replication_slots";
        let rows = self.query(&sql).await.map_err(|source| ReplicationError::Command {
            server: self.server().to_owned(),
            command: command.to_owned(),
            source,
        })?;
        let state = rows.first().map(read_slot_row).transpose();
        state.map_err(|source| self.unreadable(command, source))
    }

    /// Begins to stream WAL of `timeline` from `lsn` on. On a replication connection, which it takes.
    ///
    /// If the timeline ends at `lsn` already, the stream's first event is [`Event::EndOfTimeline`].
    pub async fn start_physical(
        self,
        slot: Option<&str>,
        timeline: Timeline,
        lsn: Lsn,
    ) -> Result<ReplicationStream, ReplicationError> {
        self.check_purpose(Purpose::Replication)?;
        let slot = match slot {
            Some(name) => {
                check_slot_name(name)?;
                format!("SLOT {} ", identifier(name))
            }
            None => String::new(),
        };
        let command = format!("START_REPLICATION {slot}PHYSICAL {lsn} TIMELINE {timeline}");
        ReplicationStream::start(self, &command, lsn).await
    }

    fn check_purpose(&self, expected: Purpose) -> Result<(), ReplicationError> {
        if self.purpose() == expected {
            return Ok(());
        }
        Err(ReplicationError::Purpose { server: self.server().to_owned(), expected })
    }

    async fn command(&mut self, purpose: Purpose, command: &str) -> Result<Row, ReplicationError> {
        self.check_purpose(purpose)?;
        self.query_one(command).await.map_err(|source| ReplicationError::Command {
            server: self.server().to_owned(),
            command: command.to_owned(),
            source,
        })
    }

    fn unreadable(&self, command: &str, source: RowError) -> ReplicationError {
        ReplicationError::Command {
            server: self.server().to_owned(),
            command: command.to_owned(),
            source: QueryError::answer(self.server())(source),
        }
    }
}

fn read_slot_row(row: &Row) -> Result<SlotState, RowError> {
    Ok(SlotState {
        name: row.text("slot_name")?.to_owned(),
        physical: row.text("slot_type")? == "physical",
        temporary: row.truth("temporary")?,
        active: row.truth("active")?,
        active_pid: row.optional("active_pid")?,
        restart_lsn: row.optional("restart_lsn")?,
        wal_status: row.optional("wal_status")?,
        safe_wal_bytes: row.optional("safe_wal_size")?,
    })
}

fn check_slot_name(name: &str) -> Result<(), ReplicationError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(ReplicationError::SlotName { slot: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_are_postgresqls() {
        for name in ["holdfast", "a_1", &"x".repeat(63)] {
            assert!(check_slot_name(name).is_ok(), "{name}");
        }
        for name in ["", "Holdfast", "a-b", "a\"b", &"x".repeat(64)] {
            assert!(check_slot_name(name).is_err(), "{name}");
        }
    }
}
