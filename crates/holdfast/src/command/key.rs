mod recipients;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use holdfast_repository::{Keyring, Names, NewIdentity, Repository, RepositoryError};
use holdfast_types::EpochId;

use crate::config::RepositorySettings;
use crate::context::{self, Context};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::passphrase;

/// Makes identities, and says who can read a repository.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Makes an identity and prints its recipient.
    ///
    /// The file is a standard age identity. It needs no configuration and no repository.
    #[command(
        after_help = "Examples:\n  holdfast key create /root/holdfast-identity.txt\n  holdfast key create /root/holdfast-identity.age --passphrase"
    )]
    Create {
        /// The new file.
        file: PathBuf,
        /// Protect it with a passphrase, asked for on the terminal.
        #[arg(long)]
        passphrase: bool,
        /// Protect it with the passphrase in the first line of this file.
        #[arg(long, value_name = "FILE", conflicts_with = "passphrase")]
        passphrase_file: Option<PathBuf>,
    },
    /// Shows the recipients of a repository: who can read it.
    #[command(after_help = "Examples:\n  holdfast key list\n  holdfast key list main --json")]
    List {
        /// The repository's name in the configuration; needed if there are several.
        repository: Option<String>,
    },
    /// Lets somebody else read a repository as well: all that is in it, and all that will be.
    #[command(
        after_help = "Examples:\n  holdfast key add main age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    )]
    Add(recipients::Change),
    /// Takes the right to read a repository away.
    ///
    /// Whoever has read or copied keys before keeps what they have: this stops them from reading what is written from
    /// now on with new keys, and from opening the keys that are in the repository.
    #[command(
        after_help = "Examples:\n  holdfast key remove main age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p --dry-run\n  holdfast key remove main age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p --yes"
    )]
    Remove(recipients::Removal),
    /// Proves that the configured identity opens every key of a repository.
    #[command(after_help = "Examples:\n  holdfast key check\n  holdfast key check main")]
    Check {
        /// The repository's name in the configuration; needed if there are several.
        repository: Option<String>,
    },
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    match options.command {
        KeyCommand::Create { file, passphrase, passphrase_file } => {
            let passphrase = match passphrase_file {
                Some(file) => Some(passphrase::from_file(&file)?),
                None if passphrase => Some(passphrase::ask_new("Passphrase for the new identity")?),
                None => None,
            };
            create(context, &file, passphrase)
        }
        KeyCommand::List { repository } => recipients::list(context, repository.as_deref()).await,
        KeyCommand::Add(change) => recipients::add(context, change).await,
        KeyCommand::Remove(removal) => recipients::remove(context, removal).await,
        KeyCommand::Check { repository } => check(context, repository.as_deref()).await,
    }
}

fn create(context: &Context, file: &Path, passphrase: Option<String>) -> Result<Exit, Failure> {
    let is_protected = passphrase.is_some();
    let identity = NewIdentity::generate(passphrase)?;
    context::write_secret(file, &identity.file)?;
    let json = serde_json::json!({ "recipient": identity.recipient, "file": file, "protected": is_protected });
    context.output.result(&json, || format!("{}\n", identity.recipient))?;
    context.output.note(&format!("The identity is in {}. Keep a copy of it elsewhere.", file.display()));
    Ok(Exit::Done)
}

/// The epochs of a repository, the newest last.
pub(crate) async fn epochs(repository: &Repository) -> Result<Vec<EpochId>, Failure> {
    const PAGE: usize = 10_000;
    let mut epochs: Vec<(SystemTime, EpochId)> = Vec::new();
    let mut after = None;
    loop {
        let page = repository.store().list(Names::KEYS, after.as_ref(), PAGE).await.map_err(RepositoryError::from)?;
        let is_last = page.len() < PAGE;
        after = page.last().map(|listed| listed.name.clone());
        for listed in page {
            let epoch = listed.name.as_str().split('/').nth(1).and_then(|epoch| epoch.parse().ok());
            // The first sealing of a key is as old as its epoch.
            if let Some(epoch) = epoch
                && epochs.last().is_none_or(|(_, last)| *last != epoch)
            {
                epochs.push((listed.modified, epoch));
            }
        }
        if is_last {
            epochs.sort();
            return Ok(epochs.into_iter().map(|(_, epoch)| epoch).collect());
        }
    }
}

async fn check(context: &Context, repository: Option<&str>) -> Result<Exit, Failure> {
    let config = context.config()?;
    let settings: &RepositorySettings = config.repository(repository)?;
    let repository = context.repository(settings).await?;
    let keyring = Keyring::new(repository, Arc::new(context::identities(settings)?));
    let epochs = epochs(keyring.repository()).await?;
    for epoch in &epochs {
        keyring.epoch_key(*epoch).await?;
    }
    let json = serde_json::json!({ "repository": settings.name, "keys": epochs.len() });
    context.output.result(&json, || match epochs.len() {
        0 => "nothing was written to the repository yet, so there is no key to open\n".to_owned(),
        1 => format!("the identity opens the only key of the repository `{}`\n", settings.name),
        count => format!("the identity opens all {count} keys of the repository `{}`\n", settings.name),
    })?;
    Ok(Exit::Done)
}
