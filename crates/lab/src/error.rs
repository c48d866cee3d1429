//! Why the lab could not do what it was asked.

use std::path::PathBuf;

/// Why the lab could not do what it was asked. A database that is not as it should be is no error but a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The connection string is not one.
    #[error("the connection string is not understood")]
    Conninfo {
        /// What is wrong with it.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No connection.
    #[error("could not connect to the database")]
    Connect {
        /// What the client said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server refused or was lost.
    #[error("could not {what}")]
    Database {
        /// What was being done.
        what: &'static str,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// `create` on a database that has been filled before.
    #[error("the database holds a data set already")]
    AlreadyLoaded,
    /// `run` or `check` on a database that was never filled, or that was lost up to before that.
    #[error("the database holds no data set of the lab")]
    NoDataSet,
    /// The journal could not be written or read.
    #[error("could not use the journal {path}")]
    Journal {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The journal holds something that no run wrote.
    #[error("the journal {path} is damaged at byte {offset}")]
    JournalDamaged {
        /// Its path.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// The journal was written on another data set, so it can say nothing about this one.
    #[error("the journal {path} belongs to another data set than the database")]
    ForeignJournal {
        /// Its path.
        path: PathBuf,
    },
}

impl LabError {
    /// To be given to `map_err`.
    pub(crate) fn database(what: &'static str) -> impl Fn(tokio_postgres::Error) -> Self {
        move |source| Self::Database { what, source }
    }
}
