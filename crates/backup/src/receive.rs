//! Streaming the log into the repository.
//!
//! The log comes by physical replication and is durable within a fraction of a second: what a segment has so far is
//! stored in pieces, the whole segment replaces them.
//!
//! *Consistency.* Only log that is durable in the repository is acknowledged to the server, so the slot keeps all else,
//! and a server that counts us as synchronous standby returns from a commit only then. Log in the spool is not
//! acknowledged.
//! *Retries.* Whatever can pass is waited for without end: the database, the network, the store. Log is never dropped.
//! *Cancellation.* What was received is made durable first.
//! *Crash.* The next receiver goes on at the first hole at or after the oldest log that the slot keeps, from the start of
//! its segment; what it gets twice is the same.

mod begin;
mod error;
mod stream;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_postgres::conninfo::ConnInfo;
use holdfast_repository::{Epoch, Repository};
use holdfast_runtime::{Backoff, Cancel};
use holdfast_types::{Lsn, Timeline};
use tokio::sync::watch;

pub use error::ReceiveError;

use begin::Position;

use crate::spool::Spool;

/// How to receive.
#[derive(Clone, Debug)]
pub struct ReceiveOptions {
    pub source: String,
    pub connection: ConnInfo,
    /// The server keeps log for this slot until it is durable, and its name is also our `application_name`, by which
    /// `synchronous_standby_names` can name us. Without one, a temporary slot serves.
    pub slot: Option<String>,
    /// Make the slot if it is missing.
    pub create_slot: bool,
    /// Where log goes while the repository is away.
    pub spool: Option<PathBuf>,
    /// How long received log may wait before it is made durable.
    pub interval: Duration,
    /// Make durable at once: for a server whose commits wait for us.
    pub synchronous: bool,
    /// Without a slot: begin no later than here. A standby keeps the log from its last restartpoint on.
    pub from: Option<Lsn>,
}

/// How far a receiver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveStatus {
    pub connected: bool,
    pub timeline: Timeline,
    pub received: Lsn,
    /// Everything before is in the repository.
    pub durable: Lsn,
    pub server_end: Lsn,
    /// The repository is away, and log is kept in the spool.
    pub spooling: bool,
    pub last_error: Option<String>,
}

impl Default for ReceiveStatus {
    fn default() -> Self {
        Self {
            connected: false,
            timeline: Timeline::FIRST,
            received: Lsn::ZERO,
            durable: Lsn::ZERO,
            server_end: Lsn::ZERO,
            spooling: false,
            last_error: None,
        }
    }
}

/// How often and how fast to try again; without end.
const RECONNECT: Backoff =
    Backoff { tries: u32::MAX, first: Duration::from_millis(200), longest: Duration::from_secs(5) };

/// What outlives one connection.
struct Receiver<'a> {
    repository: &'a Repository,
    options: &'a ReceiveOptions,
    spool: Option<Arc<Spool>>,
    /// Begun when the repository is first reached.
    epoch: Option<Epoch>,
    until: watch::Receiver<Option<Lsn>>,
    status: &'a watch::Sender<ReceiveStatus>,
    cancel: &'a Cancel,
    /// Where an earlier session of ours ended.
    resume: Option<Position>,
    /// The repository is away, and the spool goes on.
    spooling: bool,
}

/// Receives until cancelled, or until `until` holds a position and the log is durable up to it.
pub async fn receive(
    repository: &Repository,
    options: &ReceiveOptions,
    until: watch::Receiver<Option<Lsn>>,
    status: &watch::Sender<ReceiveStatus>,
    cancel: &Cancel,
) -> Result<(), ReceiveError> {
    let spool = match &options.spool {
        Some(path) => Some(Spool::open(path).map_err(|source| ReceiveError::Spool { path: path.clone(), source })?),
        None => None,
    };
    let mut receiver =
        Receiver { repository, options, spool, epoch: None, until, status, cancel, resume: None, spooling: false };
    let mut failures = 0;
    loop {
        let before = status.borrow().durable;
        let outcome = receiver.session().await;
        status.send_modify(|status| status.connected = false);
        let error = match outcome {
            Ok(()) => return Ok(()),
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error),
        };
        if cancel.is_cancelled() {
            return Ok(());
        }
        failures = if status.borrow().durable > before { 1 } else { failures + 1 };
        let text = error::chain(&error);
        tracing::warn!(source = options.source, error = %text, "receiving the log was interrupted; trying again");
        status.send_modify(|status| status.last_error = Some(text));
        tokio::select! {
            () = tokio::time::sleep(RECONNECT.before(failures)) => {}
            () = cancel.cancelled() => return Ok(()),
        }
    }
}

impl Receiver<'_> {
    /// One connection, from connecting to its end.
    async fn session(&mut self) -> Result<(), ReceiveError> {
        match self.drain_spool().await {
            Ok(()) => self.spooling = false,
            // The database may be gone for good before the repository is back: what it still sends is taken.
            Err(error) if error.is_retryable() && self.resume.is_some() && self.epoch.is_some() => {
                self.spooling = true;
            }
            Err(error) => return Err(error),
        }
        if self.epoch.is_none() {
            self.epoch = Some(self.repository.begin_epoch().await?);
        }
        let begin = self.begin().await?;
        self.stream(begin).await
    }

    /// What an earlier receiver could not bring to the repository goes there before anything else.
    async fn drain_spool(&self) -> Result<(), ReceiveError> {
        if let Some(spool) = &self.spool {
            if !spool.is_empty().await? {
                tracing::info!(source = self.options.source, "moving spooled log to the repository");
            }
            while !spool.drain(self.repository, 1000).await? {
                if self.cancel.is_cancelled() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
