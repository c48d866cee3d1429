//! Copying the files: threads that read and seal, tasks that store, and an eye on the session and on who cancels.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_postgres::backup_api::BackupSession;
use holdfast_repository::Epoch;
use holdfast_runtime::{Cancel, Pace, RateLimit, lower_thread};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::BackupError;
use crate::base::Base;
use crate::impact::{Impact, Probe};
use crate::scan::Scan;
use crate::snapshot::Job;
use crate::worker::{FullPack, Output, Shared, work};

/// Pages of a relation's segment file, 1 GiB: PostgreSQL's default, which every distribution keeps.
pub(crate) const RELSEG_BLOCKS: u32 = 131_072;

impl Job<'_> {
    pub(crate) async fn copy(
        &self,
        base: Option<Arc<Base>>,
        listed: &mut Scan,
        session: &mut BackupSession,
        probe: Option<&mut Probe>,
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
        let uploader = tokio::spawn(upload(epoch.clone(), receiver, parallel));
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
                error = watch_session(session, cancel) => error,
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
    packs: mpsc::Sender<FullPack>,
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
        let outcome = work(shared, packs);
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

/// Ends with an error when the backup's session is gone, or somebody cancels.
async fn watch_session(session: &mut BackupSession, cancel: &Cancel) -> BackupError {
    loop {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
            () = cancel.cancelled() => return holdfast_runtime::Cancelled.into(),
        }
        if let Err(error) = session.check_alive(Duration::from_mins(1)).await {
            return BackupError::Api(error);
        }
    }
}

/// Stores packs as they come, a few at a time.
async fn upload(epoch: Epoch, mut packs: mpsc::Receiver<FullPack>, parallel: usize) -> Result<(), BackupError> {
    let mut running = tokio::task::JoinSet::new();
    while let Some(pack) = packs.recv().await {
        while running.len() >= parallel {
            join(&mut running).await?;
        }
        let epoch = epoch.clone();
        running.spawn(async move { epoch.put_pack(pack.bytes, pack.id).await });
    }
    while !running.is_empty() {
        join(&mut running).await?;
    }
    Ok(())
}

async fn join(
    running: &mut tokio::task::JoinSet<Result<(), holdfast_repository::RepositoryError>>,
) -> Result<(), BackupError> {
    match running.join_next().await {
        Some(Ok(outcome)) => Ok(outcome?),
        Some(Err(_)) => Err(BackupError::Worker),
        None => Ok(()),
    }
}
