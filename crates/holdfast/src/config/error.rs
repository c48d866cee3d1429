use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// Why there is no configuration, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("there is no configuration file (looked for {})", list(looked_for))]
    NotFound { looked_for: Vec<PathBuf> },

    #[error("could not read the configuration file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("{}, line {line}, column {column}: {problem}", path.display())]
    Invalid { path: PathBuf, line: usize, column: usize, problem: String, hint: Option<String> },

    #[error("{} has no [source.{name}]", path.display())]
    NoSuchSource { path: PathBuf, name: String, hint: Option<String> },

    #[error("`{name}` cannot be the name of a source")]
    SourceName { name: String },

    #[error("{} has no [repository.{name}]", path.display())]
    NoSuchRepository { path: PathBuf, name: String, hint: Option<String> },

    #[error("{} has no repository", path.display())]
    NoRepository { path: PathBuf },

    #[error("{} has several repositories ({}): say which", path.display(), names.join(", "))]
    WhichRepository { path: PathBuf, names: Vec<String> },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What is wrong in a file, and where in its bytes.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) at: Range<usize>,
    pub(super) text: String,
    pub(super) hint: Option<String>,
}

impl Problem {
    pub(super) fn new(at: Range<usize>, text: impl Into<String>) -> Self {
        Self { at, text: text.into(), hint: None }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As an error that names the line and column, counted from one.
    pub(super) fn in_file(self, path: PathBuf, content: &str) -> ConfigError {
        let before = content.get(..self.at.start).unwrap_or(content);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        ConfigError::Invalid { path, line, column, problem: self.text, hint: self.hint }
    }
}
