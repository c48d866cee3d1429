use std::io;
use std::path::PathBuf;

use holdfast_postgres::client::{ConnectError, QueryError};
use holdfast_repository::RepositoryError;
use holdfast_runtime::Cancelled;
use holdfast_types::{Lsn, SystemId, Timeline};

use crate::ReceiveError;

/// A backup failed. Nothing of it counts as a snapshot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
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

    #[error("a backup of what changed must read the snapshot before, and no identity is configured")]
    NoIdentity,

    #[error("the backup API of the database failed")]
    Api(#[source] holdfast_postgres::backup_api::BackupError),

    #[error("PostgreSQL {version} is not supported; 13 to 18 are")]
    UnsupportedVersion { version: u32 },

    #[error("pages of {block_size} bytes are not supported; 8192 is")]
    UnsupportedBlockSize { block_size: u32 },

    #[error("relations in files of {pages} pages are not supported; 131072, which is 1 GiB, are")]
    UnsupportedSegmentFiles { pages: u32 },

    #[error("wal_level is `{wal_level}`, which does not allow backups of a running server")]
    WalLevel { wal_level: String },

    #[error("the role may not do what a backup needs: {}", .missing.join("; "))]
    Rights {
        missing: Vec<String>,
        /// What to run, one sentence each.
        hints: Vec<String>,
    },

    #[error("the server does not tell where its data directory is")]
    DataDirectoryUnknown,

    #[error("could not read the data directory {}", .path.display())]
    DataDirectory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{} belongs to cluster {found}, but the server is cluster {expected}", .path.display())]
    OtherCluster { path: PathBuf, expected: SystemId, found: SystemId },

    #[error("the server that backups are taken from is cluster {here}, and the source is cluster {log}")]
    LogOfOther { here: SystemId, log: SystemId },

    #[error(
        "the server that backups are taken from is no standby (timeline {here}), and not the source's server (timeline \
         {log})"
    )]
    NoStandby { here: Timeline, log: Timeline },

    #[error("{} is not the data directory of the server at {server}: {difference}", .path.display())]
    OtherServer { path: PathBuf, server: String, difference: String },

    #[error("could not find out whose data directory this is from the server at {server}")]
    Identity {
        server: String,
        #[source]
        source: QueryError,
    },

    #[error("{} is not what a data directory may contain: {problem}", .path.display())]
    Layout { path: PathBuf, problem: String },

    #[error("could not read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{} could not be read whole: {problem}", .path.display())]
    ControlFile { path: PathBuf, problem: String },

    #[error("could not use the repository")]
    Repository(#[from] RepositoryError),

    #[error("could not receive the log that belongs to the backup")]
    Log(#[source] Box<ReceiveError>),

    #[error("the log of the backup, {start} to {stop}, did not arrive in the repository within {waited_seconds} s")]
    LogMissing { start: Lsn, stop: Lsn, waited_seconds: u64 },

    #[error("the database changed its timeline during the backup")]
    TimelineChanged,

    #[error(transparent)]
    Level(#[from] holdfast_format::codec::LevelError),

    #[error("the probe of the database's latency does not work: `{query}`")]
    Probe {
        query: String,
        #[source]
        source: QueryError,
    },

    #[error("backups of `{source_name}` may not run now; their window opens on {opens}")]
    OutsideWindow { source_name: String, opens: String },

    #[error("the window for backups of `{source_name}` closed before the backup was done")]
    WindowClosed { source_name: String },

    #[error(
        "{server} is no server but a pooler of connections, and a backup needs one session from its beginning to its end"
    )]
    Pooled { server: String },

    #[error("another backup of `{source_name}` is being made on this server")]
    Running { source_name: String },

    #[error("a worker ended unexpectedly")]
    Worker,

    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}
