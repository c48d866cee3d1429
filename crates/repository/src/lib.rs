//! The repository: write-once objects, the keys that open them, and what can be recovered from them.
//!
//! A snapshot exists if and only if its manifest object exists; the manifest is created once, after everything that it
//! names. Nothing is overwritten. `docs/format.md` specifies every object.
//!
//! *Consistency.* Many hosts may write at once without locks, because no name is ever written twice.
//! *Retries.* Every store operation is tried again for a few seconds where that can help.
//! *Crash.* What a dead writer leaves are objects that no manifest names.

mod changes;
mod config;
mod copy;
mod error;
mod expiry;
mod fan_out;
mod keys;
mod ledger;
mod log;
mod names;
mod packs;
mod pins;
mod read;
mod recipients;
mod repository;
mod snapshots;
mod unfinished;
mod verify;
mod write;

pub use changes::StoredChanges;
pub use config::RepositoryConfig;
pub use copy::{Copied, Left, Repaired, copy, repair};
pub use error::RepositoryError;
pub use expiry::{Candidate, Doomed, Expired, Fate, GRACE, KeepsLog, LONGEST_BACKUP, Tally, candidates, expire};
pub use fan_out::{FanOut, Settings as FanOutSettings, Sibling, SiblingStatus};
pub use keys::{Identities, IdentityError, NewIdentity, Recipient};
pub use ledger::{Ledger, Prover};
pub use log::{Coverage, Gap, Lineage, LogObject, LogRange, LogView, Moments};
pub use names::Names;
pub use packs::MissingPack;
pub use pins::Pin;
pub use read::{Keyring, PackReader};
pub use repository::Repository;
pub use snapshots::{SnapshotEntry, StoredSnapshot};
pub use verify::{Budget, Finding, InspectLog, Severity, Unread, VerifyOptions, VerifyReport, verify};
pub use write::{Epoch, SealedLog, random};
