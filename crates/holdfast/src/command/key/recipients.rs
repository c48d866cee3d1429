//! Who can read a repository.

use std::io::{BufRead as _, IsTerminal as _};
use std::sync::Arc;

use clap::Args;
use holdfast_repository::{Keyring, Recipient, Repository, RepositoryError};

use crate::config::RepositorySettings;
use crate::context::{self, Context};
use crate::exit::Exit;
use crate::failure::{CommandError, Failure};
use crate::output;
use crate::table::{self, Lines as _};

#[derive(Debug, Args)]
pub(super) struct Change {
    /// The repository's name in the configuration.
    repository: String,
    /// The public half of an identity, as `holdfast key create` prints it.
    #[arg(value_name = "AGE1…")]
    recipient: Recipient,
}

#[derive(Debug, Args)]
pub(super) struct Removal {
    #[command(flatten)]
    change: Change,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn list(context: &Context, name: Option<&str>) -> Result<Exit, Failure> {
    let config = context.config()?;
    let settings = config.repository(name)?;
    let repository = context.unpinned(settings).await?;
    let recipients = &repository.config().recipients;
    let epochs = super::epochs(&repository).await?.len();
    let json = serde_json::json!({ "repository": settings.name, "recipients": recipients, "keys": epochs });
    context.output.result(&json, || lines(recipients))?;
    if let Some(expected) = &settings.recipients
        && let Err(error) = repository.require_recipients(expected)
    {
        return Err(error.into());
    }
    Ok(Exit::Done)
}

fn lines(recipients: &[Recipient]) -> String {
    let mut text = String::new();
    for recipient in recipients {
        text.line(format_args!("{recipient}"));
    }
    text
}

/// Opens the repository with its pin held: to what it is before the change, or to what it is after it, since the same
/// command may have been interrupted, or the configuration changed first.
async fn open(
    context: &Context,
    settings: &RepositorySettings,
    changed: impl Fn(&[Recipient]) -> Vec<Recipient>,
) -> Result<Repository, Failure> {
    let repository = context.unpinned(settings).await?;
    if let Some(pinned) = &settings.recipients {
        let found = &repository.config().recipients;
        let fits = |expected: &[Recipient]| repository.require_recipients(expected).is_ok();
        let will_fit = || {
            let mut after: Vec<String> = changed(found).iter().map(ToString::to_string).collect();
            let mut pinned: Vec<String> = pinned.iter().map(ToString::to_string).collect();
            after.sort();
            pinned.sort();
            after == pinned
        };
        if !fits(pinned) && !fits(&changed(pinned)) && !will_fit() {
            repository.require_recipients(pinned)?;
        }
    }
    Ok(repository)
}

fn with(recipients: &[Recipient], added: &Recipient) -> Vec<Recipient> {
    let others = recipients.iter().filter(|recipient| *recipient != added);
    others.chain([added]).cloned().collect()
}

fn without(recipients: &[Recipient], removed: &Recipient) -> Vec<Recipient> {
    recipients.iter().filter(|recipient| *recipient != removed).cloned().collect()
}

pub(super) async fn add(context: &Context, change: Change) -> Result<Exit, Failure> {
    let Change { repository: name, recipient } = change;
    let config = context.config()?;
    let settings = config.repository(Some(&name))?;
    let repository = open(context, settings, |recipients| with(recipients, &recipient)).await?;
    let keyring = Keyring::new(repository.clone(), Arc::new(context::identities(settings)?));
    let changed = repository.add_recipient(&keyring, recipient).await?;
    done(context, settings, &changed)
}

pub(super) async fn remove(context: &Context, removal: Removal) -> Result<Exit, Failure> {
    let Removal { change: Change { repository: name, recipient }, yes, dry_run } = removal;
    let config = context.config()?;
    let settings = config.repository(Some(&name))?;
    let repository = open(context, settings, |recipients| without(recipients, &recipient)).await?;
    let identities = context::identities(settings)?;
    let remaining = without(&repository.config().recipients, &recipient);
    // One that is gone already may have been removed by a command that died before it was done.
    if remaining.is_empty() {
        return Err(RepositoryError::NoRecipients.into());
    }
    let keeps_access = |recipient: &Recipient| identities.recipients().contains(&recipient.to_string());
    if !remaining.iter().any(keeps_access) {
        return Err(CommandError::usage(
            "your own identity would no longer open the repository",
            "Run this with the identity of one of those who stay.",
        )
        .into());
    }
    let epochs = super::epochs(&repository).await?.len();
    let was_there = repository.config().recipients.contains(&recipient);
    context.output.note(&format!(
        "{recipient} {} a recipient of `{name}`. {} will be sealed to {}:",
        if was_there { "is" } else { "is not" },
        table::count(epochs as u64, "key"),
        table::count(remaining.len() as u64, "recipient")
    ));
    for recipient in &remaining {
        context.output.note(&format!("  {recipient}"));
    }
    if dry_run {
        let json = serde_json::json!({ "repository": name, "recipients": remaining, "keys": epochs, "dry_run": true });
        context.output.result(&json, String::new)?;
        return Ok(Exit::Done);
    }
    if !yes && !confirmed()? {
        return Err(CommandError::Unconfirmed.into());
    }
    let keyring = Keyring::new(repository.clone(), Arc::new(identities));
    let changed = repository.remove_recipient(&keyring, &recipient).await?;
    if !was_there {
        context.output.note("If an earlier removal was interrupted, it is complete now. Else nothing has changed.");
    }
    done(context, settings, &changed)
}

fn confirmed() -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    output::talk("Type `yes` to go on:");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

fn done(context: &Context, settings: &RepositorySettings, changed: &Repository) -> Result<Exit, Failure> {
    let recipients = &changed.config().recipients;
    let json = serde_json::json!({ "repository": settings.name, "recipients": recipients });
    context.output.result(&json, || lines(recipients))?;
    if let Some(pinned) = &settings.recipients
        && changed.require_recipients(pinned).is_err()
    {
        context.output.note(&format!(
            "`recipients` in [repository.{}] now has to name exactly these, on every host.",
            settings.name
        ));
    }
    Ok(Exit::Done)
}
