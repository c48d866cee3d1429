//! Copying the files: threads that read and seal, tasks that store, and an eye on the session and on who cancels.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_postgres::backup_api::BackupSession;
use holdfast_repository::Epoch;
use holdfast_runtime::{Cancel, RateLimit};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::BackupError;
use crate::base::Base;
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
    ) -> Result<Vec<Output>, BackupError> {
        let Self { epoch, options, info, progress, cancel, .. } = self;
        let mut files = std::mem::take(&mut listed.files);
        // The most work first, so that no worker is left with it at the end; otherwise in order of name, so that
        // segments of a relation are packed near each other.
        files.sort_by(|a, b| (b.bytes_to_read(), &a.name).cmp(&(a.bytes_to_read(), &b.name)));
        // Workers stop when one of them fails, and when the session does.
        let stop = Cancel::new();
        let shared = Arc::new(Shared {
            queue: Mutex::new(files.into()),
            epoch: epoch.clone(),
            base,
            level: options.level,
            check_pages: info.data_checksums.then_some(RELSEG_BLOCKS),
            rate_limit: options.rate_limit.map(|limit| RateLimit::new(limit.get())),
            progress: (*progress).clone(),
            cancel: stop.clone(),
        });
        let parallel = options.parallel.max(1);
        let (sender, receiver) = mpsc::channel(1);
        let uploader = tokio::spawn(upload(epoch.clone(), receiver, parallel));
        let workers: Vec<_> = (0..parallel)
            .map(|_| {
                let (shared, sender) = (Arc::clone(&shared), sender.clone());
                tokio::task::spawn_blocking(move || {
                    let outcome = work(Arc::clone(&shared), sender);
                    if outcome.is_err() {
                        shared.cancel.cancel();
                    }
                    outcome
                })
            })
            .collect();
        drop(sender);
        let watched = watch_session(session, cancel);
        let finished = async {
            let mut outputs = Vec::new();
            let mut failures = Vec::new();
            for worker in workers {
                match worker.await.map_err(|_| BackupError::Worker).flatten() {
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
