//! What can go wrong in a command besides what its libraries report.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Any error, on its way to the one place that shows it.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// Says what was being done when a library failed.
    #[error("{what}")]
    While {
        what: String,
        #[source]
        source: Failure,
    },

    /// The command line asks for something that makes no sense.
    #[error("{problem}")]
    Usage { problem: String, hint: Option<String> },

    #[error("could not {operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{} exists already", path.display())]
    FileExists { path: PathBuf },

    #[error("no identity is configured for the repository `{repository}`")]
    NoIdentity { repository: String },

    #[error("a passphrase is needed and there is no terminal to ask for it")]
    NoTerminal,

    #[error("the two passphrases differ")]
    PassphrasesDiffer,

    #[error("the passphrase is empty")]
    EmptyPassphrase,

    #[error("source `{source_name}` has no snapshot `{id}` in the repository in {location}")]
    NoSuchSnapshot { source_name: String, id: String, location: String },

    #[error("the repository has no log of a source `{source_name}`")]
    NoLog { source_name: String },

    #[error("the repository `{name}` cannot be read: {why}")]
    CopyAway { name: String, why: String, others: Vec<String> },

    #[error("this needs to be confirmed")]
    Unconfirmed,

    #[error("could not start the asynchronous runtime")]
    Runtime(#[source] io::Error),

    #[error("could not write the result to stdout")]
    Stdout(#[source] io::Error),
}

impl CommandError {
    pub(crate) fn usage(problem: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: Some(hint.into()) }
    }

    /// For `map_err` on operations on files.
    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::AlreadyExists => Self::FileExists { path },
            _ => Self::File { operation, path, source },
        }
    }
}

/// Adds what was being done.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| CommandError::While { what: what(), source: error.into() }.into())
    }
}
