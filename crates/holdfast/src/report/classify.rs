//! Which exit code and which advice an error deserves.

use std::error::Error;
use std::io;

use holdfast_format::object::OpenError;
use holdfast_postgres::{ConnectError, QueryError, ReplicationError};
use holdfast_repository::{IdentityError, RepositoryError};
use holdfast_runtime::Cancelled;
use holdfast_store::{Cause, ProbeError, StoreError};

use super::{database, jobs};
use crate::config::ConfigError;
use crate::exit::Exit;
use crate::failure::CommandError;

/// What the operator is told besides the error itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) exit: Exit,
    pub(super) hint: Option<String>,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { exit: Exit::Failed, hint: None }
    }
}

pub(super) fn verdict(exit: Exit, hint: impl Into<String>) -> Verdict {
    Verdict { exit, hint: Some(hint.into()) }
}

pub(super) fn plain(exit: Exit) -> Verdict {
    Verdict { exit, hint: None }
}

/// What is known of one error of a chain; `None` leaves the decision to its causes.
pub(super) fn classify(error: &(dyn Error + 'static)) -> Option<Verdict> {
    if let Some(error) = error.downcast_ref::<CommandError>() {
        command(error)
    } else if let Some(error) = error.downcast_ref::<ConfigError>() {
        Some(config(error))
    } else if let Some(error) = error.downcast_ref::<RepositoryError>() {
        Some(repository(error))
    } else if let Some(error) = error.downcast_ref::<StoreError>() {
        Some(store(error))
    } else if let Some(error) = error.downcast_ref::<IdentityError>() {
        Some(identity(error))
    } else if let Some(error) = error.downcast_ref::<ConnectError>() {
        Some(database::connect(error))
    } else if let Some(error) = error.downcast_ref::<ReplicationError>() {
        database::replication(error)
    } else if let Some(error) = error.downcast_ref::<QueryError>() {
        database::query(error)
    } else if let Some(verdict) = jobs::classify(error) {
        Some(verdict)
    } else if error.is::<Cancelled>() {
        Some(plain(Exit::Cancelled))
    } else if let Some(error) = error.downcast_ref::<io::Error>() {
        file(error)
    } else {
        None
    }
}

fn command(error: &CommandError) -> Option<Verdict> {
    Some(match error {
        CommandError::While { .. } | CommandError::File { .. } | CommandError::Stdout(_) => return None,
        CommandError::Usage { hint, .. } => Verdict { exit: Exit::Usage, hint: hint.clone() },
        CommandError::FileExists { .. } => {
            verdict(Exit::InTheWay, "Nothing is overwritten: choose another name, or move it away.")
        }
        CommandError::NoIdentity { .. } => verdict(
            Exit::WrongKey,
            "Reading backups takes the identity: set `identity_file` in the [repository] table of the configuration.",
        ),
        CommandError::NoTerminal => verdict(
            Exit::WrongKey,
            "Set `identity_passphrase_file` in the configuration, give --passphrase-file where there is such an \
             option, or run this on a terminal.",
        ),
        CommandError::PassphrasesDiffer | CommandError::EmptyPassphrase => plain(Exit::Usage),
        CommandError::NoSuchSnapshot { source_name, .. } => {
            verdict(Exit::Failed, format!("`holdfast list {source_name}` shows what there is."))
        }
        CommandError::CopyAway { name, others, .. } => {
            let others = others.iter().map(|other| format!("`--repository {other}`")).collect::<Vec<_>>().join(" or ");
            let hint = format!("It may have what the others lack. If `{name}` is lost, use what they have: {others}.");
            Verdict { exit: Exit::NoRepository, hint: Some(hint) }
        }
        CommandError::NoLog { .. } => verdict(Exit::Failed, "Is the source's name right?"),
        CommandError::Unconfirmed => verdict(Exit::Usage, "Say --yes; --dry-run shows what would be done."),
        CommandError::Runtime(_) => plain(Exit::Failed),
    })
}

fn config(error: &ConfigError) -> Verdict {
    let hint = match error {
        ConfigError::NotFound { .. } => Some(
            "Write one, or name it with --config or the environment variable HOLDFAST_CONFIG. \
             `holdfast generate example` prints a file to begin with."
                .to_owned(),
        ),
        ConfigError::Invalid { hint, .. }
        | ConfigError::NoSuchSource { hint, .. }
        | ConfigError::NoSuchRepository { hint, .. } => hint.clone(),
        ConfigError::SourceName { .. } => {
            Some("Names have 1 to 63 letters, digits, `.`, `-` and `_`, not beginning with `.` or `-`.".to_owned())
        }
        ConfigError::NoRepository { .. } => Some("Add a table [repository.NAME] with a `path`.".to_owned()),
        ConfigError::WhichRepository { .. } | ConfigError::Read { .. } => None,
    };
    Verdict { exit: Exit::Usage, hint }
}

pub(super) fn repository(error: &RepositoryError) -> Verdict {
    match error {
        RepositoryError::Store(error) => store(error),
        RepositoryError::Identity(error) => identity(error),
        RepositoryError::NotARepository { .. } => verdict(
            Exit::NoRepository,
            "Is the right `path` configured, and is it mounted? `holdfast init` makes a new repository.",
        ),
        error if error.is_config_lost() => verdict(
            Exit::NoRepository,
            "Bring the objects under `config/` back from a copy of the repository: nothing else was touched, and nothing \
             can be read without them.",
        ),
        RepositoryError::Probe(ProbeError::Store(error)) => store(error),
        RepositoryError::Probe(ProbeError::Unconditional { .. }) => verdict(
            Exit::Failed,
            "Such a store loses what several writers write at once. docs/stores.md lists those that will do.",
        ),
        RepositoryError::NotSiblings { .. } => verdict(
            Exit::Usage,
            "Only repositories of one identity hold each other's objects: `holdfast init --like` makes one.",
        ),
        RepositoryError::Expiring { .. } => verdict(Exit::Failed, "Make another backup: it builds on what stays."),
        RepositoryError::TooLate { .. } => verdict(
            Exit::Failed,
            "Backups have to be done within 7 days: give it more of the machine, or make it go on where it was interrupted.",
        ),
        RepositoryError::Slept => verdict(Exit::Failed, "Run it again: it removes what is left."),
        RepositoryError::Unreadable { .. } => verdict(
            Exit::Failed,
            "Nothing is removed as long as it is not known what that snapshot needs. `holdfast verify` says more.",
        ),
        RepositoryError::AlreadyARepository { .. } => {
            verdict(Exit::InTheWay, "It is left as it is. Use it, or choose another `path`.")
        }
        RepositoryError::NotEmpty { .. } => {
            verdict(Exit::InTheWay, "A repository wants a directory, or a prefix in a bucket, of its own.")
        }
        RepositoryError::NewerFormat { .. } => {
            verdict(Exit::Failed, "Update this program: a newer version of it wrote to the repository.")
        }
        RepositoryError::Object { source: OpenError::NewerFormat { .. }, .. } => {
            verdict(Exit::Failed, "Update this program: a newer version of it wrote the object.")
        }
        RepositoryError::Object { source: OpenError::WrongRepository { .. }, .. } => verdict(
            Exit::Failed,
            "An object of another repository lies here. `holdfast verify` lists all such; nothing of it was used.",
        ),
        RepositoryError::Object { .. } | RepositoryError::Content { .. } => {
            verdict(Exit::Failed, "`holdfast verify` finds everything that is damaged and says what it affects.")
        }
        RepositoryError::NoIdentity => {
            verdict(Exit::WrongKey, "Set `identity_file` in the [repository] table of the configuration.")
        }
        RepositoryError::WrongKey { .. } => verdict(
            Exit::WrongKey,
            "`identity_file` names an identity of somebody else. `holdfast key list` shows whose are accepted, \
             `holdfast key check` tries all keys.",
        ),
        RepositoryError::KeyMissing { .. } | RepositoryError::KeyDamaged { .. } => verdict(
            Exit::WrongKey,
            "What was written under this key cannot be read without it: bring the object back from a copy of the \
             repository.",
        ),
        RepositoryError::OtherRecipients { .. } => verdict(
            Exit::WrongKey,
            "If you changed the recipients, change `recipients` in the configuration as well. If you did not, find \
             out who did before anything is written.",
        ),
        RepositoryError::Conflict { .. } => verdict(
            Exit::Failed,
            "Another writer, or another cluster under the same source name, has stored something else there.",
        ),
        RepositoryError::NoRecipients => {
            verdict(Exit::Usage, "Without a recipient nobody could ever read a backup: give one with --recipient.")
        }
        RepositoryError::Cancelled(_) => plain(Exit::Cancelled),
        _ => plain(Exit::Failed),
    }
}

fn store(error: &StoreError) -> Verdict {
    match &error.cause {
        Cause::Away => verdict(
            Exit::NoRepository,
            "Is the right `path` configured, and is it mounted? `holdfast init` makes a new repository.",
        ),
        Cause::Full(_) => verdict(
            Exit::NoSpace,
            format!("Make room in {}. What was complete is safe; nothing incomplete is ever listed.", error.location),
        ),
        Cause::Denied(_) => {
            verdict(Exit::Failed, format!("The user that runs this needs access to {}.", error.location))
        }
        Cause::NoBucket(_) => verdict(
            Exit::NoRepository,
            "Are `url` and `endpoint` right? The bucket is not made by Holdfast: make it at the service, with versioning or \
             object lock as you want them.",
        ),
        Cause::Refused(why) if why.contains("RequestTimeTooSkewed") => {
            verdict(Exit::Failed, "This machine's clock is wrong, or the service's. Set it by NTP.")
        }
        Cause::Refused(_) => verdict(
            Exit::Failed,
            "Check the credentials (`credentials_file`, or the provider's environment variables) and what they may do.",
        ),
        Cause::NotFound => {
            verdict(Exit::Failed, "`holdfast verify` finds everything that is missing and says what it affects.")
        }
        _ => plain(Exit::Failed),
    }
}

fn identity(error: &IdentityError) -> Verdict {
    match error {
        IdentityError::NotARecipient(_) => {
            verdict(Exit::Usage, "A recipient begins with `age1`; `holdfast key create` prints one.")
        }
        IdentityError::NotAnIdentity => verdict(Exit::WrongKey, "`holdfast key create` makes an identity file."),
        IdentityError::PassphraseNeeded => {
            verdict(Exit::WrongKey, "Set `identity_passphrase_file`, or run this on a terminal.")
        }
        IdentityError::WrongPassphrase => verdict(Exit::WrongKey, "Try again; nothing was changed."),
        _ => plain(Exit::WrongKey),
    }
}

fn file(error: &io::Error) -> Option<Verdict> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some(verdict(Exit::NoSpace, "Make room, then run the same command again."))
        }
        io::ErrorKind::PermissionDenied => Some(verdict(Exit::Failed, "The user that runs this is not allowed to.")),
        _ => None,
    }
}
