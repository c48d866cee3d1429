//! Whether what is in the repository can be read here.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use holdfast_repository::{Keyring, Repository};

use super::checklist::{Checklist, Entry};
use crate::command::key;
use crate::config::RepositorySettings;
use crate::context;

pub(super) async fn check(settings: &RepositorySettings, repository: &Repository, checklist: &mut Checklist) {
    let name = settings.name.as_str();
    if settings.identity_file.is_none() {
        checklist.add(Entry::ok(name, "identity", "none here: this host can write backups and not read them"));
        return;
    }
    checklist.add(match try_newest(settings, repository).await {
        Ok(found) => Entry::ok(name, "identity", found),
        Err(error) => Entry::error(name, "identity", error.as_ref()),
    });
    if let Some(path) = &settings.identity_file
        && let Ok(metadata) = std::fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        let found = format!("{} is open to other users", path.display());
        checklist.add(Entry::warning(name, "identity", found, format!("Run `chmod 600 {}`.", path.display())));
    }
    if let Err(error) = context::usable_unattended(settings) {
        let (found, hint) = crate::report::in_one_line(error.as_ref());
        checklist.add(Entry::warning(name, "identity", found, hint.unwrap_or_default()));
    }
}

async fn try_newest(settings: &RepositorySettings, repository: &Repository) -> Result<String, crate::failure::Failure> {
    let identities = context::identities(settings)?;
    let recipients = repository.config().recipients.iter().map(ToString::to_string);
    let is_recipient = recipients.into_iter().any(|recipient| identities.recipients().contains(&recipient));
    let keyring = Keyring::new(repository.clone(), Arc::new(identities));
    match key::epochs(repository).await?.last() {
        Some(newest) => {
            keyring.epoch_key(*newest).await?;
            Ok("opens the newest key".to_owned())
        }
        None if is_recipient => Ok("is a recipient; nothing was written yet".to_owned()),
        None => Err("the identity is not among the repository's recipients".into()),
    }
}
