//! The same for errors that come from the database.

use std::io;

use holdfast_postgres::{ConnectError, QueryError, ReplicationError, ServerError};

use super::classify::{Verdict, verdict};
use crate::exit::Exit;

pub(super) fn connect(error: &ConnectError) -> Verdict {
    if let Some(server) = error.server_error() {
        return verdict(Exit::Database, refused_login(server));
    }
    let hint = match error {
        ConnectError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "The user that runs this may not use the socket."
        }
        ConnectError::Io { .. } | ConnectError::Timeout { .. } | ConnectError::NoServer { .. } => {
            "Is the server running, and does `connection` in the configuration name it?"
        }
        ConnectError::Resolve { .. } => "Check `host` in `connection`.",
        ConnectError::PasswordNeeded { .. } => "Put the password into a passfile (`passfile=` in `connection`).",
        ConnectError::TlsNotOffered { .. } => "Turn on `ssl` at the server, or choose another sslmode.",
        _ => "Check `connection` in the configuration; `holdfast check` tries it.",
    };
    verdict(Exit::Database, hint)
}

fn refused_login(server: &ServerError) -> &'static str {
    match server.sqlstate.as_str() {
        "28P01" => "The password is wrong, or the role has none.",
        "28000" if server.message.contains("pg_hba") => {
            "Add a line for the role to the server's pg_hba.conf, for its database and another one for `replication`, \
             and reload the server."
        }
        "28000" => "Does the role exist, and does pg_hba.conf let it in as this user?",
        "42501" => "The role needs REPLICATION: run `ALTER ROLE <role> REPLICATION` as a superuser.",
        "3D000" => "Set `dbname` in `connection` to a database that exists.",
        "53300" => "The server has no connection left: raise `max_connections` or `max_wal_senders`.",
        "57P03" => "The server is starting or stopping; try again.",
        _ => "`holdfast check` says what the role needs.",
    }
}

pub(super) fn replication(error: &ReplicationError) -> Option<Verdict> {
    if error.is_slot_missing() {
        return Some(verdict(Exit::Database, "`holdfast wal receive SOURCE --create-slot` makes the slot."));
    }
    if error.is_wal_removed() {
        return Some(verdict(
            Exit::Failed,
            "The server has removed log that is not in the repository: there is a gap, and recovery cannot cross it. \
             Take a new backup now; use a slot so that it does not happen again.",
        ));
    }
    error.server_error().and_then(not_allowed)
}

pub(super) fn query(error: &QueryError) -> Option<Verdict> {
    match error {
        QueryError::ConnectionLost { .. } | QueryError::Closed { .. } => {
            Some(verdict(Exit::Database, "The server ended or the network failed; try again."))
        }
        _ => error.server_error().and_then(not_allowed),
    }
}

fn not_allowed(server: &ServerError) -> Option<Verdict> {
    match server.sqlstate.as_str() {
        "42501" => {
            Some(verdict(Exit::Database, "`holdfast check` says which right the role lacks and how to give it."))
        }
        "55006" => Some(verdict(
            Exit::Database,
            "Somebody else uses the slot. A receiver that has just died is noticed after `wal_sender_timeout`.",
        )),
        "53400" | "53300" => {
            Some(verdict(Exit::Database, "Raise `max_replication_slots` or `max_wal_senders` at the server."))
        }
        _ => None,
    }
}
