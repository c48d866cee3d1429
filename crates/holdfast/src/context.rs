//! What commands have in common: the configuration, repositories, keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_repository::{FanOut, FanOutSettings, Identities, IdentityError, Keyring, Repository, Sibling};
use holdfast_runtime::{Cancel, Progress};

use crate::config::{Config, ConfigError, RepositorySettings, Source};
use crate::failure::{CommandError, Doing as _, Failure};
use crate::output::Output;
use crate::progress::{self, Shown};
use crate::{passphrase, place};

#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) config_file: Option<PathBuf>,
    pub(crate) output: Output,
    pub(crate) cancel: Cancel,
}

impl Context {
    pub(crate) fn config(&self) -> Result<Config, ConfigError> {
        Config::load(self.config_file.as_deref())
    }

    pub(crate) fn show(&self, progress: &Progress) -> Shown {
        progress::show(progress, self.output)
    }

    /// Opens a repository for writing, and holds it to its pinned recipients.
    pub(crate) async fn repository(&self, settings: &RepositorySettings) -> Result<Repository, Failure> {
        let repository = self.unpinned(settings).await?;
        if let Some(expected) = &settings.recipients {
            repository.require_recipients(expected)?;
        }
        Ok(repository)
    }

    /// Opens all repositories of a source for writing. `is_patient`: whether one that is slower than the others is waited for.
    pub(crate) async fn writer(
        &self,
        config: &Config,
        source: &Source,
        is_patient: bool,
    ) -> Result<Repository, Failure> {
        if source.copies.is_empty() {
            return self.repository(config.repository(Some(&source.repository))?).await;
        }
        let all = config.repositories_of(&source.name, None)?;
        let settings = FanOutSettings { required: source.required.clone(), is_patient, is_reader: false };
        let opened = FanOut::open(siblings(&all)?, &settings, &self.cancel).await;
        let repository = opened.doing(|| format!("could not open a repository of `{}`", source.name))?;
        for expected in all.iter().filter_map(|settings| settings.recipients.as_ref()) {
            repository.require_recipients(expected)?;
        }
        Ok(repository)
    }

    /// Opens all repositories of a source for reading, or only that one of them: what one of them has is there. Without a choice all
    /// of them have to answer, since nobody knows what one that is away has.
    pub(crate) async fn reader(
        &self,
        config: &Config,
        source: &str,
        only: Option<&str>,
    ) -> Result<(Keyring, RepositorySettings), Failure> {
        let all = config.repositories_of(source, only)?;
        // One identity opens them all.
        let with_identity = all.iter().find(|settings| settings.identity_file.is_some()).or(all.first()).copied();
        let Some(settings) = with_identity else {
            return Err(config
                .source(source)
                .err()
                .map_or_else(|| CommandError::NoLog { source_name: source.to_owned() }.into(), Into::into));
        };
        if all.len() == 1 {
            return Ok((self.keyring(settings).await?, settings.clone()));
        }
        let settings_of_all = FanOutSettings { is_reader: true, ..FanOutSettings::default() };
        let opened = FanOut::open(siblings(&all)?, &settings_of_all, &self.cancel).await;
        let repository = opened.doing(|| format!("could not open a repository of `{source}`"))?;
        let status = repository.fan_out().map(|all| all.status()).unwrap_or_default();
        if let Some((name, why)) = status.iter().find_map(|at| Some((&at.name, at.trouble.clone()?))) {
            let others = status.iter().filter(|at| at.trouble.is_none()).map(|at| at.name.clone()).collect();
            return Err(CommandError::CopyAway { name: name.clone(), why, others }.into());
        }
        Ok((Keyring::new(repository, Arc::new(identities(settings)?)), settings.clone()))
    }

    /// The same without looking at its recipients.
    pub(crate) async fn unpinned(&self, settings: &RepositorySettings) -> Result<Repository, Failure> {
        let repository = Repository::open(place::open(settings)?).await;
        let repository = repository.doing(|| format!("could not open the repository `{}`", settings.name))?;
        Ok(repository.with_cancel(self.cancel.clone()))
    }

    /// Opens a repository for reading. Other recipients than the pinned ones are no reason to refuse a recovery.
    pub(crate) async fn keyring(&self, settings: &RepositorySettings) -> Result<Keyring, Failure> {
        let repository = self.unpinned(settings).await?;
        if let Some(expected) = &settings.recipients
            && let Err(error) = repository.require_recipients(expected)
        {
            tracing::warn!(%error, "reading all the same");
        }
        Ok(Keyring::new(repository, Arc::new(identities(settings)?)))
    }
}

fn siblings(all: &[&RepositorySettings]) -> Result<Vec<Sibling>, Failure> {
    let sibling = |settings: &&RepositorySettings| {
        Ok(Sibling { name: settings.name.clone(), store: place::open(settings)?, trouble: None })
    };
    all.iter().map(sibling).collect()
}

/// The configured identity. Asks for its passphrase if it has one and no file does.
pub(crate) fn identities(settings: &RepositorySettings) -> Result<Identities, Failure> {
    let Some(path) = &settings.identity_file else {
        return Err(CommandError::NoIdentity { repository: settings.name.clone() }.into());
    };
    let file = std::fs::read(path).map_err(CommandError::file("read the identity file", path))?;
    let mut asked = Ok(());
    let mut identities = Identities::default();
    let outcome = identities.add_file(&file, || {
        let answer = match &settings.identity_passphrase_file {
            Some(path) => passphrase::from_file(path),
            None => passphrase::ask(&format!("Passphrase of {}", path.display())),
        };
        answer.map_err(|error| asked = Err(error)).ok()
    });
    asked?;
    outcome.doing(|| format!("could not use the identity file {}", path.display()))?;
    Ok(identities)
}

/// Whether a program without a terminal could use the identity: a protected one needs the passphrase in a file.
pub(crate) fn usable_unattended(settings: &RepositorySettings) -> Result<(), Failure> {
    let Some(path) = &settings.identity_file else { return Ok(()) };
    let file = std::fs::read(path).map_err(CommandError::file("read the identity file", path))?;
    let needs_passphrase =
        matches!(Identities::default().add_file(&file, || None), Err(IdentityError::PassphraseNeeded));
    if needs_passphrase && settings.identity_passphrase_file.is_none() {
        return Err(CommandError::usage(
            format!("PostgreSQL could not open {} while it recovers", path.display()),
            format!(
                "Set `identity_passphrase_file` in [repository.{}]: nobody can type the passphrase then.",
                settings.name
            ),
        )
        .into());
    }
    Ok(())
}

/// Writes a secret to a new file that only its owner can read.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::File::open(parent)?.sync_all()
    };
    Ok(write().map_err(CommandError::file("write", path))?)
}
