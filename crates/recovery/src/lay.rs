//! Laying files out: frames from packs to where they belong, in parallel.
//!
//! The unit of work is a window of a large file, or a stretch of a pack with small ones. Whatever lies together in a pack
//! is fetched with one read, the next while this one is opened, and each frame is authenticated before a byte of it is
//! written. Files are synced as they become whole, while others are still written.

mod region;
mod work;
mod worker;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};

use holdfast_repository::Keyring;
use holdfast_runtime::{Cancel, Progress};
use tokio::runtime::Handle;

use work::Group;
pub(crate) use work::{Piece, Target, Work, ZeroRun};

use crate::RestoreError;

struct Shared {
    targets: Vec<Target>,
    queue: Mutex<VecDeque<Group>>,
    progress: Progress,
    cancel: Cancel,
    handle: Handle,
}

impl Shared {
    fn target(&self, index: u32) -> Result<&Target, RestoreError> {
        self.targets.get(index as usize).ok_or(RestoreError::Worker)
    }

    /// Hands a file that is whole now to whoever syncs it; says whether it is.
    fn written(&self, index: u32, len: u64, whole: &mpsc::SyncSender<u32>) -> Result<bool, RestoreError> {
        self.progress.add(len);
        let is_whole = self.target(index)?.missing.fetch_sub(len, Ordering::AcqRel) == len;
        if is_whole {
            whole.send(index).map_err(|_| RestoreError::Worker)?;
        }
        Ok(is_whole)
    }
}

/// Writes all files and makes them durable. Gives the sealed bytes that were fetched.
pub(crate) async fn lay(
    mut work: Work,
    keyring: &Keyring,
    parallel: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<u64, RestoreError> {
    let groups = work.groups(keyring).await?;
    // Files without a single frame that is to be written: empty ones, those of zeros only, those that are there already.
    let is_whole = |target: &Target| target.missing.load(Ordering::Relaxed) == 0;
    let whole_already: Vec<u32> =
        (0u32..).zip(&work.targets).filter(|(_, target)| is_whole(target)).map(|(index, _)| index).collect();
    let stop = Cancel::new();
    let shared = Arc::new(Shared {
        targets: work.targets,
        queue: Mutex::new(groups),
        progress: progress.clone(),
        cancel: stop.clone(),
        handle: Handle::current(),
    });
    // Whole files on their way to be synced; bounded by what the queue of a syncer may hold.
    let (whole, to_sync) = mpsc::sync_channel::<u32>(1024);
    let syncer = {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_blocking(move || sync_files(&shared, &to_sync))
    };
    let workers: Vec<_> = (0..parallel.max(1))
        .map(|_| {
            let (shared, whole) = (Arc::clone(&shared), whole.clone());
            tokio::task::spawn_blocking(move || {
                let outcome = worker::work(&shared, whole);
                if outcome.is_err() {
                    shared.cancel.cancel();
                }
                outcome
            })
        })
        .collect();
    let without_frames = {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_blocking(move || {
            for index in whole_already {
                shared.cancel.check()?;
                let target = shared.target(index)?;
                target.open_buffered().map_err(RestoreError::write(&target.path))?;
                whole.send(index).map_err(|_| RestoreError::Worker)?;
            }
            Ok(())
        })
    };
    let watcher = {
        let (cancel, stop) = (cancel.clone(), stop.clone());
        tokio::spawn(async move {
            cancel.cancelled().await;
            stop.cancel();
        })
    };
    let mut fetched = 0;
    let mut failures = Vec::new();
    if let Err(error) = without_frames.await.map_err(|_| RestoreError::Worker).flatten() {
        failures.push(error);
    }
    for worker in workers {
        match worker.await.map_err(|_| RestoreError::Worker).flatten() {
            Ok(bytes) => fetched += bytes,
            Err(error) => failures.push(error),
        }
    }
    watcher.abort();
    if let Err(error) = syncer.await.map_err(|_| RestoreError::Worker).flatten() {
        failures.push(error);
    }
    if failures.is_empty() && shared.targets.iter().any(|target| target.missing.load(Ordering::Relaxed) > 0) {
        failures.push(RestoreError::Worker);
    }
    failures.sort_by_key(|error| !is_cause(error));
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(fetched),
    }
}

/// And not what follows from another failure.
fn is_cause(error: &RestoreError) -> bool {
    !matches!(error, RestoreError::Cancelled(_) | RestoreError::Worker)
}

fn sync_files(shared: &Shared, whole: &mpsc::Receiver<u32>) -> Result<(), RestoreError> {
    let mut outcome = Ok(());
    // Goes on receiving after a failure, so that no worker waits for a place in the queue.
    for index in whole {
        if outcome.is_ok()
            && let Some(target) = shared.targets.get(index as usize)
        {
            outcome = target.complete().map_err(RestoreError::write(&target.path));
            if outcome.is_err() {
                shared.cancel.cancel();
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests;
