//! Copying the files: threads that read and seal, tasks that store, and an eye on the session and on who cancels.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_format::manifest::{MapRef, PackSize};
use holdfast_format::map::Map;
use holdfast_format::unfinished::Part;
use holdfast_postgres::backup_api::BackupSession;
use holdfast_repository::{Epoch, Lineage, RepositoryError};
use holdfast_runtime::{Cancel, Pace, RateLimit, lower_thread};
use holdfast_types::Lsn;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::BackupError;
use crate::base::Base;
use crate::impact::{Impact, Probe};
use crate::scan::Scan;
use crate::snapshot::Job;
use crate::worker::{Output, Sealed, Shared, work};

/// Packs on their way to the store at once, at least: from far away each takes longer than it takes to fill one.
const UPLOADS: usize = 4;
/// Pages of a relation's segment file, 1 GiB: PostgreSQL's default, which every distribution keeps.
pub(crate) const RELSEG_BLOCKS: u32 = 131_072;

impl Job<'_> {
    pub(crate) async fn copy(
        &self,
        base: Option<Arc<Base>>,
        listed: &mut Scan,
        session: &mut BackupSession,
        probe: Option<&mut Probe>,
        part: Option<Part>,
    ) -> Result<Vec<Output>, BackupError> {
        let Self { epoch, options, info, progress, cancel, .. } = self;
        let mut files = std::mem::take(&mut listed.files);
        // The most work first, so that no worker is left with it at the end; otherwise in order of name, so that
        // segments of a relation are packed near each other.
        files.sort_by(|a, b| (b.bytes_to_read(), &a.name).cmp(&(a.bytes_to_read(), &b.name)));
        // Workers stop when one of them fails, and when the session does.
        let stop = Cancel::new();
        let pace = Arc::new(Pace::full());
        let shared = Arc::new(Shared {
            queue: Mutex::new(files.into()),
            epoch: epoch.clone(),
            offers_parts: part.is_some(),
            base,
            level: options.level,
            check_pages: info.data_checksums.then_some(RELSEG_BLOCKS),
            rate_limit: options.impact.rate_limit.map(|limit| RateLimit::new(limit.get())),
            iops_limit: options.impact.iops_limit.map(RateLimit::new),
            pace: Arc::clone(&pace),
            progress: (*progress).clone(),
            cancel: stop.clone(),
        });
        let parallel = options.parallel.max(1);
        let (sender, receiver) = mpsc::channel(1);
        let (position, positions) = watch::channel(None);
        let uploader = Uploader {
            epoch: epoch.clone(),
            parallel,
            running: JoinSet::new(),
            head: part,
            waiting: Vec::new(),
            stored_parts: 0,
        };
        let uploader = tokio::spawn(uploader.run(receiver, positions));
        let mut workers = Vec::new();
        for _ in 0..parallel {
            match start_worker(&shared, sender.clone(), &options.impact) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    stop.cancel();
                    return Err(error);
                }
            }
        }
        drop(sender);
        let watched = async {
            tokio::select! {
                error = watch_session(session, &position, cancel) => error,
                never = watch_latency(probe, &pace) => match never {},
            }
        };
        let finished = async {
            let mut outputs = Vec::new();
            let mut failures = Vec::new();
            for worker in workers {
                match worker.await.unwrap_or(Err(BackupError::Worker)) {
                    Ok(output) => outputs.push(output),
                    Err(error) => failures.push(error),
                }
            }
            (outputs, failures)
        };
        tokio::pin!(finished);
        let interrupted = tokio::select! {
            error = watched => Some(error),
            (outputs, failures) = &mut finished => {
                return conclude(outputs, failures, uploader).await;
            }
        };
        stop.cancel();
        let (outputs, failures) = finished.await;
        drop(conclude(outputs, failures, uploader).await);
        Err(interrupted.unwrap_or(BackupError::Worker))
    }
}

/// A thread of its own, because a priority that was lowered cannot be raised again.
fn start_worker(
    shared: &Arc<Shared>,
    sealed: mpsc::Sender<Sealed>,
    impact: &Impact,
) -> Result<oneshot::Receiver<Result<Output, BackupError>>, BackupError> {
    let (sender, receiver) = oneshot::channel();
    let shared = Arc::clone(shared);
    let (nice, io_class) = (impact.nice, impact.io_class);
    let run = move || {
        if let Err(error) = lower_thread(nice, io_class) {
            tracing::warn!(%error, "the priority of a worker could not be lowered");
        }
        let cancel = shared.cancel.clone();
        let outcome = work(shared, sealed);
        if outcome.is_err() {
            cancel.cancel();
        }
        // Nobody to hear it: the backup has failed otherwise.
        drop(sender.send(outcome));
    };
    // As the names of threads go, at most 15 bytes.
    std::thread::Builder::new().name("backup".to_owned()).spawn(run).map_err(|_| BackupError::Worker)?;
    Ok(receiver)
}

async fn watch_latency(probe: Option<&mut Probe>, pace: &Arc<Pace>) -> Infallible {
    match probe {
        Some(probe) => probe.watch(pace).await,
        None => std::future::pending().await,
    }
}

/// The uploader's error is the cause where a worker only found the channel closed.
async fn conclude(
    outputs: Vec<Output>,
    failures: Vec<BackupError>,
    uploader: JoinHandle<Result<(), BackupError>>,
) -> Result<Vec<Output>, BackupError> {
    uploader.await.map_err(|_| BackupError::Worker)??;
    let is_cause = |error: &BackupError| !matches!(error, BackupError::Cancelled(_) | BackupError::Worker);
    let (mut causes, others): (Vec<_>, Vec<_>) = failures.into_iter().partition(is_cause);
    match causes.pop().or_else(|| others.into_iter().next()) {
        Some(error) => Err(error),
        None => Ok(outputs),
    }
}

/// Ends with an error when the backup's session is gone, or somebody cancels; tells meanwhile how far the server is.
async fn watch_session(
    session: &mut BackupSession,
    position: &watch::Sender<Option<Position>>,
    cancel: &Cancel,
) -> BackupError {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(5)) => {}
            () = cancel.cancelled() => return holdfast_runtime::Cancelled.into(),
        }
        let asked_at = Instant::now();
        match session.position(Duration::from_mins(1)).await {
            Ok(lsn) => drop(position.send_replace(Some(Position { asked_at, lsn }))),
            Err(error) => return BackupError::Api(error),
        }
    }
}

/// Where the server was when it was asked.
#[derive(Clone, Copy, Debug)]
struct Position {
    asked_at: Instant,
    lsn: Lsn,
}

/// A part that is stored once the repository has the log up to where the server was when it was read.
///
/// A server that is set back to an earlier state writes another log. What is in the repository is never overwritten, so
/// that is noticed, but only where the log of the lost state had come to the repository.
struct WaitingPart {
    read_at: Instant,
    read_lsn: Option<Lsn>,
    map: Map,
    packs: Vec<PackSize>,
}

/// How often the repository is looked at for the log that a part waits for.
const LOOK: Duration = Duration::from_secs(1);
/// Packs wait meanwhile: a look that takes long is followed by so many times as long without.
const REST: u32 = 20;

/// Stores what the workers seal.
struct Uploader {
    epoch: Epoch,
    /// How many packs are stored at once.
    parallel: usize,
    running: JoinSet<Result<(), RepositoryError>>,
    /// What all parts have in common; nothing if none is wanted.
    head: Option<Part>,
    /// Parts whose packs are durable.
    waiting: Vec<WaitingPart>,
    stored_parts: u32,
}

impl Uploader {
    async fn run(
        mut self,
        mut sealed: mpsc::Receiver<Sealed>,
        mut position: watch::Receiver<Option<Position>>,
    ) -> Result<(), BackupError> {
        let mut look_at = Instant::now();
        loop {
            let next = tokio::select! {
                next = sealed.recv() => next,
                Ok(()) = position.changed() => {
                    let position = *position.borrow_and_update();
                    if let Some(position) = position {
                        self.place_parts(position);
                    }
                    continue;
                }
                // Where log is written all the time, the repository has that of a moment only a little later.
                () = tokio::time::sleep_until(look_at.into()), if self.waiting.iter().any(|part| part.read_lsn.is_some()) => {
                    let begun = Instant::now();
                    self.store_parts().await;
                    look_at = Instant::now() + LOOK.max(begun.elapsed() * REST);
                    continue;
                }
            };
            match next {
                None => break,
                Some(Sealed::Pack { bytes, id }) => {
                    while self.running.len() >= self.parallel.max(UPLOADS) {
                        join(&mut self.running).await?;
                    }
                    let epoch = self.epoch.clone();
                    self.running.spawn(async move { epoch.put_pack(bytes, id).await });
                }
                Some(Sealed::Part { map, packs }) => {
                    while !self.running.is_empty() {
                        join(&mut self.running).await?;
                    }
                    self.waiting.push(WaitingPart { read_at: Instant::now(), read_lsn: None, map, packs });
                }
            }
        }
        while !self.running.is_empty() {
            join(&mut self.running).await?;
        }
        Ok(())
    }

    /// What was read before the server was asked where it is holds nothing that it wrote later.
    fn place_parts(&mut self, position: Position) {
        for part in &mut self.waiting {
            if part.read_at < position.asked_at {
                part.read_lsn.get_or_insert(position.lsn);
            }
        }
    }

    /// A part that cannot be stored is no loss: without it more is read again after an interruption.
    async fn store_parts(&mut self) {
        let Some(head) = self.head.clone() else { return };
        let lineage = Lineage { system_id: head.system_id, segment_size: head.segment_size };
        let coverage = match self.epoch.repository().log(&head.source, lineage).await {
            Ok(view) => view.coverage(head.timeline),
            Err(error) => {
                tracing::debug!(%error, "it is not known how far the log in the repository goes");
                return;
            }
        };
        let is_covered = |part: &mut WaitingPart| part.read_lsn.is_some_and(|lsn| coverage.covers(head.start_lsn, lsn));
        for WaitingPart { read_lsn, map, packs, .. } in self.waiting.extract_if(.., is_covered).collect::<Vec<_>>() {
            let Some(read_lsn) = read_lsn else { continue };
            let entries = map.entries.len() as u64;
            let stored = async {
                let (id, bytes) = self.epoch.put_map(&map).await?;
                let map = MapRef { id, bytes, entries };
                let part = Part { read_lsn, map, packs, ..head.clone() };
                self.epoch.put_unfinished(&part, self.stored_parts + 1).await
            };
            match stored.await {
                Ok(()) => self.stored_parts += 1,
                Err(error) => tracing::warn!(%error, "part of the backup cannot be offered to another one"),
            }
        }
    }
}

async fn join(running: &mut JoinSet<Result<(), RepositoryError>>) -> Result<(), BackupError> {
    match running.join_next().await {
        Some(Ok(outcome)) => Ok(outcome?),
        Some(Err(_)) => Err(BackupError::Worker),
        None => Ok(()),
    }
}
