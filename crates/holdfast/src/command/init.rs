use std::path::{Path, PathBuf};

use clap::Args;
use holdfast_repository::{NewIdentity, Recipient, Repository};

use crate::config::{Location, RepositorySettings};
use crate::context::{self, Context};
use crate::exit::Exit;
use crate::failure::{CommandError, Doing as _, Failure};
use crate::table::Lines as _;
use crate::{passphrase, place, time};

const EXAMPLES: &str = "\
Examples:
  holdfast init --new-identity /root/holdfast-identity.txt
  holdfast init main --new-identity /root/holdfast-identity.age --passphrase
  holdfast init main --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p
  holdfast init offsite --like main";

/// Makes a repository.
///
/// Everything in a repository is encrypted to its recipients, the public halves of age identities. A host that only
/// writes backups needs no identity: make one with `holdfast key create` where restores will run, and name its recipient
/// here. Keep a copy of the identity away from both: whoever loses all copies loses the backups.
///
/// Without --recipient and --new-identity the recipients of the configuration are taken.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The repository's name in the configuration; needed if there are several.
    repository: Option<String>,

    /// Who can read the backups; may be given several times.
    #[arg(long = "recipient", value_name = "AGE1…")]
    recipients: Vec<Recipient>,

    /// Make an identity, write it to this new file, and add it to the recipients.
    #[arg(long, value_name = "FILE")]
    new_identity: Option<PathBuf>,

    /// Protect the new identity with a passphrase, from `identity_passphrase_file` or the terminal.
    #[arg(long, requires = "new_identity")]
    passphrase: bool,

    /// Make it of the same identity as this one, so that each can hold what the other holds; `holdfast copy` fills it.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["recipients", "new_identity"])]
    like: Option<String>,
}

pub(crate) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let settings = config.repository(options.repository.as_deref())?;
    if let Some(like) = &options.like {
        let other = context.unpinned(config.repository(Some(like))?).await?;
        make_directory(settings)?;
        let repository = Repository::init_like(place::open(settings)?, &other)
            .await
            .doing(|| format!("could not make the repository `{}` like `{like}`", settings.name))?;
        return report(context, settings, &repository, None);
    }
    let mut recipients = options.recipients;
    if recipients.is_empty() && options.new_identity.is_none() {
        recipients = settings.recipients.clone().ok_or_else(no_recipients)?;
    }
    let identity = match &options.new_identity {
        Some(path) => Some((path, new_identity(settings, options.passphrase)?)),
        None => None,
    };
    if let Some((path, identity)) = &identity {
        recipients.push(identity.recipient.clone());
        // First: a repository whose only identity was never written could not be read by anybody.
        context::write_secret(path, &identity.file)?;
    }
    let outcome = make(settings, recipients).await;
    let repository = match outcome {
        Ok(repository) => repository,
        Err(error) => {
            if let Some((path, _)) = &identity {
                // It opens nothing. Leaving it would only stand in the way of the next try.
                drop(std::fs::remove_file(path));
            }
            return Err(error);
        }
    };
    report(context, settings, &repository, options.new_identity.as_deref())?;
    if let Some((path, _)) = &identity {
        context.output.note(&format!(
            "The identity in {} is the only thing that opens this repository. Keep a copy of it elsewhere, now.",
            path.display()
        ));
    }
    Ok(Exit::Done)
}

fn report(
    context: &Context,
    settings: &RepositorySettings,
    repository: &Repository,
    identity_file: Option<&Path>,
) -> Result<Exit, Failure> {
    let recipients = &repository.config().recipients;
    let json = serde_json::json!({
        "repository": settings.name,
        "location": repository.location(),
        "id": repository.id(),
        "recipients": recipients,
        "identity_file": identity_file,
    });
    context.output.result(&json, || {
        let mut text = format!("made repository {} in {}\n", repository.id(), repository.location());
        for recipient in recipients {
            text.line(format_args!("recipient {recipient}"));
        }
        text
    })?;
    Ok(Exit::Done)
}

fn no_recipients() -> CommandError {
    CommandError::usage(
        "nobody could read the repository",
        "Give --recipient AGE1… for an identity that exists, or --new-identity FILE to make one.",
    )
}

fn new_identity(settings: &RepositorySettings, protect: bool) -> Result<NewIdentity, Failure> {
    let passphrase = match (protect, &settings.identity_passphrase_file) {
        (false, _) => None,
        (true, Some(file)) => Some(passphrase::from_file(file)?),
        (true, None) => Some(passphrase::ask_new("Passphrase for the new identity")?),
    };
    Ok(NewIdentity::generate(passphrase)?)
}

async fn make(settings: &RepositorySettings, recipients: Vec<Recipient>) -> Result<Repository, Failure> {
    make_directory(settings)?;
    Repository::init(place::open(settings)?, recipients, time::now())
        .await
        .doing(|| format!("could not make the repository `{}`", settings.name))
}

fn make_directory(settings: &RepositorySettings) -> Result<(), Failure> {
    if let Location::Directory(path) = &settings.location {
        std::fs::create_dir_all(path).map_err(CommandError::file("make", path))?;
    }
    Ok(())
}
