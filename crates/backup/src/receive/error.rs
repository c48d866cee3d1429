use std::io;
use std::path::PathBuf;

use holdfast_postgres::client::{ConnectError, QueryError};
use holdfast_postgres::replication::ReplicationError;
use holdfast_repository::RepositoryError;
use holdfast_store::StoreError;
use holdfast_types::{Lsn, SystemId, Timeline};

/// Receiving the log ended, or was interrupted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    #[error("could not connect to the database of source `{source_name}`")]
    Connect {
        source_name: String,
        #[source]
        source: ConnectError,
    },

    #[error("could not ask the database of source `{source_name}`")]
    Query {
        source_name: String,
        #[source]
        source: QueryError,
    },

    #[error("could not stream the log of source `{source_name}`")]
    Replication {
        source_name: String,
        #[source]
        source: ReplicationError,
    },

    #[error("the server of source `{source_name}` was shut down")]
    ServerClosed { source_name: String },

    #[error("replication slot `{slot}` does not exist")]
    SlotMissing { slot: String },

    #[error("replication slot `{slot}` is not a physical one")]
    SlotLogical { slot: String },

    #[error("the server's log ends at {server_end}, before {durable}, which the repository has of timeline {timeline}")]
    ServerBehind { timeline: Timeline, server_end: Lsn, durable: Lsn },

    #[error(
        "the server was set back: its log ends at {server_end}, before {durable}, which the repository has of timeline \
         {timeline}, and it is no standby that could catch up"
    )]
    ServerSetBack { timeline: Timeline, server_end: Lsn, durable: Lsn },

    #[error("the log was expected to go on at {expected}, the server sent {found}")]
    Discontinuous { expected: Lsn, found: Lsn },

    #[error("the server now belongs to cluster {found}, it was cluster {expected}")]
    OtherCluster { expected: SystemId, found: SystemId },

    #[error("the log could not be stored in the repository")]
    Repository(#[from] RepositoryError),

    #[error("the log could not be spooled")]
    SpoolStore(#[from] StoreError),

    #[error("the repository did not answer within {seconds} s")]
    RepositorySlow { seconds: u64 },

    #[error("the spool {} cannot be used", .path.display())]
    Spool {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error(transparent)]
    Level(#[from] holdfast_format::codec::LevelError),
}

impl ReceiveError {
    /// Whether going on later can help. Log is never dropped, so a full store is waited for as well.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { source, .. } => source.is_retryable(),
            Self::Query { source, .. } => source.is_retryable(),
            Self::Replication { source, .. } => {
                source.is_retryable() || is_slot_in_use(source) || source.is_wal_removed()
            }
            Self::Repository(error) => error.is_retryable() || error.is_full(),
            Self::SpoolStore(error) => error.is_retryable() || error.is_full(),
            Self::ServerClosed { .. }
            | Self::ServerBehind { .. }
            | Self::RepositorySlow { .. }
            | Self::Discontinuous { .. } => true,
            Self::SlotMissing { .. }
            | Self::SlotLogical { .. }
            | Self::OtherCluster { .. }
            | Self::ServerSetBack { .. }
            | Self::Spool { .. }
            | Self::Level(_) => false,
        }
    }
}

/// The server has not noticed yet that an earlier connection of ours is gone.
fn is_slot_in_use(error: &ReplicationError) -> bool {
    error.server_error().is_some_and(|error| error.sqlstate == "55006")
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
