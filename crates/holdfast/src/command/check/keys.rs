//! Whether what is in the repository can be read here.

use std::sync::Arc;

use holdfast_repository::{Keyring, Repository};

use super::checklist::{Checklist, Entry};
use crate::command::key;
use crate::config::RepositorySettings;
use crate::context::{self, Context};

pub(super) async fn check(
    context: &Context,
    settings: &RepositorySettings,
    repository: &Repository,
    checklist: &mut Checklist,
) {
    let name = settings.name.as_str();
    if settings.identity_file.is_none() {
        checklist.add(Entry::ok(name, "identity", "none here: this host can write backups and not read them"));
        return;
    }
    checklist.add(match try_newest(context, settings, repository).await {
        Ok(found) => Entry::ok(name, "identity", found),
        Err(error) => Entry::error(name, "identity", error.as_ref()),
    });
    if let Err(error) = context::usable_unattended(settings) {
        let (found, hint) = crate::report::in_one_line(error.as_ref());
        checklist.add(Entry::warning(name, "identity", found, hint.unwrap_or_default()));
    }
}

async fn try_newest(
    context: &Context,
    settings: &RepositorySettings,
    repository: &Repository,
) -> Result<String, crate::failure::Failure> {
    let identities = context.identities(settings)?;
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
