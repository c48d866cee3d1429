use std::io;
use std::path::PathBuf;

use holdfast_pgformat::{ControlError, HistoryError, LabelError};
use holdfast_postgres::cluster::{ClusterError, FindBinariesError};
use holdfast_repository::RepositoryError;
use holdfast_runtime::Cancelled;
use holdfast_types::{ByteSize, SystemId, Timeline};

/// A recovery was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    #[error("source `{source_name}` has no snapshot in the repository")]
    NoSnapshot { source_name: String },

    #[error("source `{source_name}` has no snapshot `{id}`")]
    UnknownSnapshot { source_name: String, id: String },

    #[error("{target} cannot be reached: {why}")]
    Unreachable {
        target: String,
        why: String,
        /// The nearest points that can be, for people.
        nearest: Vec<String>,
    },

    #[error("source `{source_name}` has no timeline {timeline}")]
    UnknownTimeline { source_name: String, timeline: Timeline, known: Vec<Timeline> },

    #[error("the history of timeline {timeline} cannot be used")]
    History {
        timeline: Timeline,
        #[source]
        source: HistoryError,
    },

    #[error("a server is running on {} (process {pid})", .path.display())]
    ServerRunning { path: PathBuf, pid: i32 },

    #[error("whether a server is running on {} could not be found out: {reason}", .path.display())]
    ServerUnknown { path: PathBuf, reason: String },

    #[error("{} is not empty", .path.display())]
    NotEmpty { path: PathBuf },

    #[error("whose data directory {} is cannot be told: {why}", .path.display())]
    UnknownCluster { path: PathBuf, why: String },

    #[error("{} is the data directory of another cluster: its system identifier is {found}, the snapshot's {expected}", .path.display())]
    OtherCluster { path: PathBuf, found: SystemId, expected: SystemId },

    #[error("{} is of PostgreSQL {found}, the snapshot of {expected}", .path.display())]
    OtherVersion { path: PathBuf, found: String, expected: u32 },

    #[error("tablespace {name} is in {}, where the running server of {} has one", .path.display(), .server.display())]
    TablespaceOfRunning { name: String, path: PathBuf, server: PathBuf },

    #[error("tablespace {name} ({oid}) would go to {}, which is not empty", .path.display())]
    TablespaceInUse { oid: u32, name: String, path: PathBuf },

    #[error("{} and {} would lie in one another", .path.display(), .other.display())]
    Nested { path: PathBuf, other: PathBuf },

    #[error("{} is on another file system than the directory that it is in, and would be deleted", .path.display())]
    MountPoint { path: PathBuf },

    #[error("the snapshot has no tablespace `{0}`")]
    UnknownTablespace(String),

    #[error("{} has {} free, and {} are needed", .path.display(), .free, .needed)]
    NoSpace { path: PathBuf, free: ByteSize, needed: ByteSize },

    #[error("could not write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("could not read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("the snapshot's {what} cannot be used: {why}")]
    Snapshot { what: &'static str, why: String },

    #[error("the snapshot's backup label cannot be used")]
    Label(#[from] LabelError),

    #[error("the snapshot's control file cannot be used")]
    ControlFile(#[from] ControlError),

    #[error(transparent)]
    Repository(#[from] RepositoryError),

    #[error("the programs of the right PostgreSQL version are needed")]
    Binaries(#[from] FindBinariesError),

    #[error("the restored server could not be controlled")]
    Cluster(#[from] ClusterError),

    #[error("the restored server stopped before it reached the target")]
    RecoveryFailed {
        /// The end of its log.
        log: String,
    },

    #[error("starting a thread")]
    Thread(#[source] io::Error),

    #[error("a worker ended unexpectedly")]
    Worker,

    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl RestoreError {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl Fn(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path: path.clone(), source }
    }

    /// The target's file system is full.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Write { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}
