use std::io;

/// An operation on a store failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {operation} `{name}` in {location}")]
pub struct StoreError {
    pub operation: &'static str,
    /// The object, or the folder of a listing.
    pub name: String,
    pub location: String,
    #[source]
    pub cause: Cause,
}

/// Why an operation on a store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The store answered: there is no such object.
    #[error("there is no such object")]
    NotFound,
    /// The object is shorter than the range that was asked for.
    #[error("the object ends at byte {len}, before the range that was asked for")]
    Truncated { len: u64 },
    /// The place itself is not there: not mounted, or never made.
    #[error("the directory is not there")]
    Away,
    #[error("no space is left")]
    Full(#[source] io::Error),
    #[error("permission denied")]
    Denied(#[source] io::Error),
    /// The service has no such bucket.
    #[error("there is no such bucket ({0})")]
    NoBucket(String),
    /// The service does not accept the credentials, or they do not allow this.
    #[error("the service refuses it ({0})")]
    Refused(String),
    /// The service did what it must not, or cannot do this.
    #[error("{0}")]
    Service(String),
    /// The service failed, or gave no answer; it may give one later.
    #[error("{0}")]
    Unavailable(String),
    #[error(transparent)]
    Io(io::Error),
}

impl StoreError {
    pub fn is_not_found(&self) -> bool {
        matches!(self.cause, Cause::NotFound)
    }

    pub fn is_full(&self) -> bool {
        matches!(self.cause, Cause::Full(_))
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_retryable(&self) -> bool {
        match &self.cause {
            Cause::NotFound
            | Cause::Truncated { .. }
            | Cause::Denied(_)
            | Cause::Full(_)
            | Cause::NoBucket(_)
            | Cause::Refused(_)
            | Cause::Service(_) => false,
            Cause::Away | Cause::Unavailable(_) => true,
            Cause::Io(error) => matches!(
                error.kind(),
                io::ErrorKind::Interrupted
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::StaleNetworkFileHandle
                    | io::ErrorKind::ResourceBusy
            ),
        }
    }
}
