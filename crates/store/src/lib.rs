//! The seam to where repositories are kept: write-once objects under names.
//!
//! [`Store`] is a short contract that every place can keep: directories, buckets, directories of other machines.
//! [`conformance`] is the suite that proves it for each of them; a new store is done when it passes. [`probe()`] asks a place
//! of a user's whether it keeps it.

mod bucket;
pub mod conformance;
mod directory;
mod error;
mod name;
mod place;
mod probe;
mod sftp;

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

pub use bucket::Bucket;
pub use directory::Directory;
pub use error::{Cause, StoreError};
pub use name::{NameError, ObjectName};
pub use place::{Address, AddressError, OpenError, Place, Service};
pub use probe::{ProbeError, Probed, probe};
pub use sftp::{SftpPlace, SftpStore};

/// One that nobody else has or had, in this container or another.
pub(crate) fn temporary_name(name: &ObjectName) -> String {
    // Its keys come from the operating system's random source.
    let random = RandomState::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (one, other) = (random.hash_one((now, 1)), random.hash_one((std::process::id(), 2)));
    format!("{}-{one:016x}{other:016x}", name.file_name())
}

/// Whether [`Store::create`] made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    New,
    /// An object of this name was there already; it is as it was.
    Exists,
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: ObjectName,
    pub size: u64,
    /// By the store's own clock.
    pub modified: SystemTime,
}

/// A place for write-once objects.
///
/// *Consistency.* When [`create`](Self::create) has returned [`Created::New`], the whole object is durable, and every
/// later read and listing shows it. An object is never seen in part. Of several that create the same name at once,
/// one is told `New` and all others `Exists`.
///
/// *Errors.* [`Cause::NotFound`] means that the store was asked and has no such object. Whatever keeps the store from
/// being asked is another cause: callers decide about lost data by this difference.
///
/// *Retries.* None inside; [`StoreError::is_retryable`] tells the caller.
///
/// *Cancellation.* A dropped `create` may or may not have made the object, never a part of it.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Where this is, for messages.
    fn location(&self) -> String;

    /// Makes an object unless there is one of this name.
    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError>;

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError>;

    /// Exactly the bytes of `range`; fewer is [`Cause::Truncated`].
    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError>;

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError>;

    /// The objects whose names begin with `folder` and a slash (all, for an empty folder), in the order of their names,
    /// those behind `after` only, at most `limit`.
    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// How many objects a listing had better ask for at once: more where each begins at the first name.
    fn page(&self) -> usize {
        10_000
    }

    /// The names of the folders directly below `folder`, in order.
    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError>;

    /// Removes an object; fine if there is none.
    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;
}
