use holdfast_format::object::OpenError;
use holdfast_store::StoreError;
use holdfast_types::{EpochId, SnapshotId};

/// An operation on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepositoryError {
    #[error(transparent)]
    Store(#[from] StoreError),

    #[error("no repository can be kept there")]
    Probe(#[from] holdfast_store::ProbeError),

    #[error("there is no repository in {location}")]
    NotARepository { location: String },

    /// There are objects of a repository, and nothing says which and for whom.
    #[error("the repository in {location} has lost its configuration, `config/`")]
    ConfigMissing { location: String },

    #[error("there is a repository in {location} already")]
    AlreadyARepository { location: String },

    #[error("{location} is not empty and holds no repository")]
    NotEmpty { location: String },

    #[error("the repository in {location} has format {found}, newer than this program's {known}")]
    NewerFormat { location: String, found: u16, known: u16 },

    #[error("object `{name}` cannot be used")]
    Object {
        name: String,
        #[source]
        source: OpenError,
    },

    #[error("object `{name}` does not hold what it should")]
    Content {
        name: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    #[error("no identity was given that opens the repository's keys")]
    NoIdentity,

    #[error("none of the given identities opens the key of epoch {epoch}")]
    WrongKey { epoch: EpochId },

    #[error("the key of epoch {epoch} is missing from the repository")]
    KeyMissing { epoch: EpochId },

    #[error("the key object `{name}` is damaged: {why}")]
    KeyDamaged { name: String, why: String },

    #[error("the repository's recipients {found:?} are not those that the configuration asks for, {expected:?}")]
    OtherRecipients { expected: Vec<String>, found: Vec<String> },

    #[error("object `{name}` exists with other content")]
    Conflict { name: String },

    #[error("the repository must keep at least one recipient")]
    NoRecipients,

    #[error("the repositories in {one} and {other} are not of one content")]
    NotSiblings { one: String, other: String },

    #[error("snapshot {id} refers to `{name}`, which is about to be removed")]
    Expiring { id: SnapshotId, name: String },

    #[error("the backup of snapshot {id} has taken longer than what it stored is safe from expiry")]
    TooLate { id: SnapshotId },

    #[error("expiry was begun too long ago to remove anything more")]
    Slept,

    #[error("expiry cannot tell what may go, because snapshot `{name}` cannot be read")]
    Unreadable {
        name: String,
        #[source]
        source: Box<RepositoryError>,
    },

    #[error(transparent)]
    Identity(#[from] crate::IdentityError),

    #[error(transparent)]
    Cancelled(#[from] holdfast_runtime::Cancelled),
}

impl RepositoryError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_retryable())
    }

    /// The object was looked for and is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_not_found())
    }

    /// No space is left in the store.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_full())
    }

    /// Something in the repository is not what was written, or has gone; the rest may be as good as ever.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Object { .. } | Self::Content { .. } | Self::KeyMissing { .. } | Self::KeyDamaged { .. })
            || self.is_not_found()
    }

    /// The repository's configuration is damaged or missing, so that nothing in it can be opened.
    pub fn is_config_lost(&self) -> bool {
        match self {
            Self::ConfigMissing { .. } => true,
            Self::Content { name, .. } => name.starts_with("config/"),
            _ => false,
        }
    }

    pub(crate) fn content(name: impl ToString, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Content { name: name.to_string(), source: source.into() }
    }

    pub(crate) fn object(name: impl ToString, source: OpenError) -> Self {
        Self::Object { name: name.to_string(), source }
    }
}
