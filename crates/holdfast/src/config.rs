//! `holdfast.toml`: which repositories and sources there are.
//!
//! The file is read as it is written ([`mod@file`]), every value is checked ([`validate`]), and what does not fit is shown
//! with its line. [`mod@reference`] describes every key.

mod error;
mod file;
pub(crate) mod reference;
mod suggest;
mod validate;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_backup::{Impact, LatencyLimit, Limit, ReplayBound, Windows};
use holdfast_policy::{Places, Retention};
use holdfast_postgres::ConnInfo;
use holdfast_postgres::backup_api::StartCheckpoint;
use holdfast_repository::{Names, Recipient};
use holdfast_store::{Address, SftpPlace};
use holdfast_types::ByteSize;
use jiff::tz::TimeZone;

pub(crate) use error::ConfigError;
use error::Problem;

/// The whole configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// Absolute.
    pub(crate) path: PathBuf,
    repositories: BTreeMap<String, RepositorySettings>,
    sources: BTreeMap<String, Source>,
}

#[derive(Clone, Debug)]
pub(crate) struct RepositorySettings {
    pub(crate) name: String,
    pub(crate) location: Location,
    /// What may be lost at once.
    pub(crate) site: Option<String>,
    pub(crate) identity_file: Option<PathBuf>,
    pub(crate) identity_passphrase_file: Option<PathBuf>,
    /// What the repository's own recipients must equal.
    pub(crate) recipients: Option<Vec<Recipient>>,
}

/// Where a repository is kept.
#[derive(Clone, Debug)]
pub(crate) enum Location {
    Directory(PathBuf),
    Bucket(BucketSettings),
    Sftp(SftpPlace),
}

/// What it takes to reach a bucket.
#[derive(Clone, Debug)]
pub(crate) struct BucketSettings {
    pub(crate) address: Address,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    pub(crate) path_style: bool,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) credentials_file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) connection: ConnInfo,
    /// The name of one of the repositories.
    pub(crate) repository: String,
    /// Those that get the same.
    pub(crate) copies: Vec<String>,
    /// Those without which nothing is done.
    pub(crate) required: Vec<String>,
    pub(crate) data_directory: Option<PathBuf>,
    pub(crate) slot: String,
    pub(crate) spool: Option<PathBuf>,
    pub(crate) backup: BackupSettings,
    pub(crate) wal: WalSettings,
    /// `None`: everything is kept.
    pub(crate) retention: Option<RetentionSettings>,
    /// `None`: nothing is promised about it.
    pub(crate) places: Option<Places>,
}

impl Source {
    /// The names of all its repositories, in the order in which they are asked.
    pub(crate) fn repositories(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.repository).chain(&self.copies)
    }

    pub(crate) fn is_kept_in(&self, repository: &str) -> bool {
        self.repositories().any(|name| name == repository)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RetentionSettings {
    pub(crate) rules: Retention,
    /// Where days begin.
    pub(crate) zone: TimeZone,
}

#[derive(Clone, Debug)]
pub(crate) struct BackupSettings {
    /// The server that backups are taken from, if not the source's own.
    pub(crate) connection: Option<ConnInfo>,
    pub(crate) parallel: usize,
    pub(crate) impact: Impact,
    pub(crate) windows: Option<Windows>,
    pub(crate) level: i32,
    pub(crate) checkpoint: StartCheckpoint,
    /// How long the log may take to replay.
    pub(crate) replay_target: Option<Duration>,
    /// Log that the machine that would take over replays in a second.
    pub(crate) replay_rate: ByteSize,
}

impl BackupSettings {
    pub(crate) fn replay_bound(&self) -> Option<ReplayBound> {
        self.replay_target.map(|target| ReplayBound { target, rate: self.replay_rate })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct WalSettings {
    pub(crate) interval: Duration,
    pub(crate) synchronous: bool,
}

impl Default for BackupSettings {
    fn default() -> Self {
        Self {
            connection: None,
            parallel: default_parallel(),
            impact: Impact { nice: 10, latency: LatencyLimit { limit: Limit::Auto, query: None }, ..Impact::default() },
            windows: None,
            level: 2,
            checkpoint: StartCheckpoint::Spread,
            replay_target: None,
            replay_rate: ByteSize::mib(32),
        }
    }
}

impl Default for WalSettings {
    fn default() -> Self {
        Self { interval: Duration::from_millis(250), synchronous: false }
    }
}

/// As many as there are CPUs; more than four would rather disturb the server than help.
pub(crate) fn default_parallel() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(4)
}

fn default_slot(source: &str) -> String {
    let letter = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
        _ => '_',
    };
    format!("holdfast_{source}").chars().take(63).map(letter).collect()
}

/// Where a configuration file is looked for when none is named.
pub(crate) const DEFAULT_PATH: &str = "/etc/holdfast/holdfast.toml";

impl Config {
    /// Finds and reads the file. `named` is what the command line says.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = find(named)?;
        let read = |source| ConfigError::Read { path: path.clone(), source };
        let content = std::fs::read_to_string(&path).map_err(read)?;
        let absolute = std::path::absolute(&path).map_err(read)?;
        Self::parse(absolute, &content)
    }

    fn parse(path: PathBuf, content: &str) -> Result<Self, ConfigError> {
        let file = toml::from_str(content).map_err(|error| refused(&error));
        match file.and_then(validate::validate) {
            Ok((repositories, sources)) => Ok(Self { path, repositories, sources }),
            Err(problem) => Err(problem.in_file(path, content)),
        }
    }

    pub(crate) fn repositories(&self) -> impl Iterator<Item = &RepositorySettings> {
        self.repositories.values()
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.values()
    }

    /// The repository of that name, or the only one.
    pub(crate) fn repository(&self, name: Option<&str>) -> Result<&RepositorySettings, ConfigError> {
        let path = || self.path.clone();
        let mut all = self.repositories.values();
        match (name, all.next(), all.next()) {
            (Some(name), ..) => self.repositories.get(name).ok_or_else(|| {
                let meant = suggest::nearest(name, self.repositories.keys().map(String::as_str));
                let hint = meant.map(|meant| format!("Did you mean `{meant}`?"));
                ConfigError::NoSuchRepository { path: path(), name: name.to_owned(), hint }
            }),
            (None, Some(only), None) => Ok(only),
            (None, None, _) => Err(ConfigError::NoRepository { path: path() }),
            (None, Some(_), Some(_)) => {
                Err(ConfigError::WhichRepository { path: path(), names: self.repositories.keys().cloned().collect() })
            }
        }
    }

    /// A source whose server is dealt with: it has to be in the file.
    pub(crate) fn source(&self, name: &str) -> Result<&Source, ConfigError> {
        self.sources.get(name).ok_or_else(|| {
            let meant = suggest::nearest(name, self.sources.keys().map(String::as_str));
            let hint = match meant {
                Some(meant) => format!("Did you mean `{meant}`?"),
                None if self.sources.is_empty() => "It has no source at all.".to_owned(),
                None => format!("It has: {}.", self.sources.keys().cloned().collect::<Vec<_>>().join(", ")),
            };
            ConfigError::NoSuchSource { path: self.path.clone(), name: name.to_owned(), hint: Some(hint) }
        })
    }

    /// How the backups of a source are made, if it is in the file.
    pub(crate) fn backup_settings(&self, source: &str) -> BackupSettings {
        self.sources.get(source).map(|source| source.backup.clone()).unwrap_or_default()
    }

    /// The repositories that keep a source, or only that one of them.
    pub(crate) fn repositories_of(
        &self,
        source: &str,
        only: Option<&str>,
    ) -> Result<Vec<&RepositorySettings>, ConfigError> {
        match (only, self.sources.get(source)) {
            (Some(name), _) => Ok(vec![self.repository(Some(name))?]),
            (None, Some(source)) => source.repositories().map(|name| self.repository(Some(name))).collect(),
            (None, None) => Ok(vec![self.repository_of(source)?]),
        }
    }

    /// The repository that keeps a source. One that is not in the file is looked for in the only repository, so that a
    /// host that only restores needs to know no sources.
    pub(crate) fn repository_of(&self, source: &str) -> Result<&RepositorySettings, ConfigError> {
        match self.sources.get(source) {
            Some(source) => self.repository(Some(&source.repository)),
            None if !Names::is_source_name(source) => Err(ConfigError::SourceName { name: source.to_owned() }),
            None if self.repositories.len() == 1 => self.repository(None),
            None => self.source(source).and_then(|source| self.repository(Some(&source.repository))),
        }
    }
}

fn find(named: Option<&Path>) -> Result<PathBuf, ConfigError> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("HOLDFAST_CONFIG").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/holdfast/holdfast.toml"));
    let looked_for: Vec<PathBuf> = std::iter::once(DEFAULT_PATH.into()).chain(home).collect();
    // One that is there and cannot be read is an error when it is read; passing it over would use another.
    match looked_for.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Ok(path.clone()),
        None => Err(ConfigError::NotFound { looked_for }),
    }
}

/// What TOML or serde refused.
fn refused(error: &toml::de::Error) -> Problem {
    let message = error.message().trim();
    let problem = Problem::new(error.span().unwrap_or_default(), message);
    // serde has no other way to tell which key it was: "unknown field `x`, expected one of `a`, `b`".
    let Some(rest) = message.strip_prefix("unknown field ") else { return problem };
    let words: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let Some((key, expected)) = words.split_first() else { return problem };
    let problem = Problem { text: format!("unknown key `{key}`"), ..problem };
    match suggest::for_key(key, expected) {
        Some(hint) => problem.with_hint(hint),
        None => problem,
    }
}

#[cfg(test)]
mod tests;
