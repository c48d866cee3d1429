//! Who new and old keys are sealed to.
//!
//! Adding a recipient seals every existing epoch key once more, to the new set; removing one does the same and then
//! deletes the sealings that the removed one could open. Keys themselves never change, so no data is rewritten.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_store::{Created, Listed};
use holdfast_types::EpochId;

use crate::{Keyring, Names, Recipient, Repository, RepositoryConfig, RepositoryError, keys};

impl Repository {
    pub async fn add_recipient(&self, keyring: &Keyring, recipient: Recipient) -> Result<Self, RepositoryError> {
        let mut recipients = self.config.recipients.clone();
        if !recipients.contains(&recipient) {
            recipients.push(recipient);
        }
        Ok(self.change_recipients(keyring, recipients).await?.0)
    }

    pub async fn remove_recipient(&self, keyring: &Keyring, recipient: &Recipient) -> Result<Self, RepositoryError> {
        let recipients: Vec<_> = self.config.recipients.iter().filter(|kept| *kept != recipient).cloned().collect();
        if recipients.is_empty() {
            return Err(RepositoryError::NoRecipients);
        }
        let (changed, earlier) = self.change_recipients(keyring, recipients).await?;
        // Only now, when every key can be opened by those who stay, and only what stood before our own sealing.
        for sealing in earlier {
            tracing::info!(name = %sealing.name, "dropping an earlier sealing of a key");
            changed.store.delete(&sealing.name).await?;
        }
        Ok(changed)
    }

    /// *Crash.* The configuration changes first, so that epochs begun meanwhile have the new recipients; keys that were
    /// not yet sealed again are when the same command runs again.
    async fn change_recipients(
        &self,
        keyring: &Keyring,
        recipients: Vec<Recipient>,
    ) -> Result<(Self, Vec<Listed>), RepositoryError> {
        let current = self.reopen().await?;
        let changed = if current.config.recipients == recipients {
            current
        } else {
            let generation = current.config.generation + 1;
            let config = RepositoryConfig { generation, recipients, ..(*current.config).clone() };
            if current.write_config(&config).await? == Created::Exists {
                return Err(RepositoryError::Conflict { name: Names::config(generation).to_string() });
            }
            Self { config: Arc::new(config), ..current }
        };
        let mut earlier = Vec::new();
        for (epoch, sealings) in changed.sealings().await? {
            let key = keyring.epoch_key(epoch).await?;
            let sealed = keys::seal_epoch_key(changed.id(), &key, &changed.config.recipients)?;
            let generation = sealings.last().map_or(1, |last| generation(last) + 1);
            let name = Names::key(epoch, generation);
            if changed.create(&name, Bytes::from(sealed)).await? == Created::Exists {
                return Err(RepositoryError::Conflict { name: name.to_string() });
            }
            earlier.extend(sealings);
        }
        Ok((changed, earlier))
    }

    /// The key objects of every epoch, oldest sealing first.
    async fn sealings(&self) -> Result<Vec<(EpochId, Vec<Listed>)>, RepositoryError> {
        let mut epochs: Vec<(EpochId, Vec<Listed>)> = Vec::new();
        for listed in self.list(Names::KEYS).await? {
            let epoch = listed.name.as_str().split('/').nth(1).and_then(|epoch| epoch.parse().ok());
            match (epoch, epochs.last_mut()) {
                (Some(epoch), Some((last, sealings))) if *last == epoch => sealings.push(listed),
                (Some(epoch), _) => epochs.push((epoch, vec![listed])),
                (None, _) => {}
            }
        }
        Ok(epochs)
    }
}

fn generation(listed: &Listed) -> u32 {
    listed.name.file_name().split('.').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
