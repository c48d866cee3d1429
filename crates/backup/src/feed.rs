//! Who brings the log of a backup into the repository.

use std::time::{Duration, Instant};

use holdfast_postgres::backup_api::BackupStop;
use holdfast_postgres::client::{Client, Purpose};
use holdfast_postgres::server::ServerInfo;
use holdfast_repository::{Lineage, Repository};
use holdfast_runtime::Cancel;
use holdfast_types::{Lsn, Segment, Timeline};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::receive::{ReceiveOptions, ReceiveStatus, receive};
use crate::snapshot::BackupOptions;
use crate::{BackupError, ReceiveError};

/// How long to wait between two looks at the repository: little at first, since the log of a small backup is there soon,
/// and then longer, since each look lists objects.
#[derive(Debug)]
struct Pace(Duration);

impl Pace {
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_millis(200);

    const fn new() -> Self {
        Self(Self::SHORTEST)
    }

    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(Self::LONGEST);
        now
    }
}

/// A receiver that runs already, or one of our own.
pub(crate) struct LogFeed {
    own: Option<OwnReceiver>,
}

struct OwnReceiver {
    until: watch::Sender<Option<Lsn>>,
    status: watch::Receiver<ReceiveStatus>,
    task: JoinHandle<Result<(), ReceiveError>>,
    cancel: Cancel,
}

impl LogFeed {
    pub(crate) async fn begin(
        repository: &Repository,
        options: &BackupOptions,
        info: &ServerInfo,
    ) -> Result<Self, BackupError> {
        if is_received(options, info).await? {
            refuse_if_set_back(repository, options, info).await?;
            return Ok(Self { own: None });
        }
        let from = if info.in_recovery { Some(restartpoint(options).await?) } else { None };
        let receive_options = ReceiveOptions {
            source: options.source.clone(),
            connection: options.connection.clone(),
            slot: None,
            create_slot: false,
            spool: None,
            interval: Duration::from_millis(500),
            synchronous: false,
            from,
        };
        let (until, until_receiver) = watch::channel(None);
        let (status_sender, mut status) = watch::channel(ReceiveStatus::default());
        let cancel = Cancel::new();
        let task = {
            let (repository, cancel) = (repository.clone(), cancel.clone());
            tokio::spawn(async move {
                receive(&repository, &receive_options, until_receiver, &status_sender, &cancel).await
            })
        };
        // Streaming first: the backup's own log must not be gone before somebody asks for it.
        let is_decided = |status: &ReceiveStatus| status.connected || status.last_error.is_some();
        let is_connected = status.wait_for(is_decided).await.is_ok_and(|status| status.connected);
        if !is_connected {
            cancel.cancel();
            if let Ok(Err(error)) = task.await {
                return Err(BackupError::Log(Box::new(error)));
            }
            // It may be the repository that failed, and not the server: to write to it tells.
            repository.begin_epoch().await?;
            return Err(BackupError::Log(Box::new(ReceiveError::ServerClosed { source_name: options.source.clone() })));
        }
        Ok(Self { own: Some(OwnReceiver { until, status, task, cancel }) })
    }

    /// Returns when the log of a timeline has come as far as `lsn`; says whether it has within the time.
    pub(crate) async fn reaches(
        &self,
        repository: &Repository,
        options: &BackupOptions,
        (lineage, timeline, lsn): (Lineage, Timeline, Lsn),
        cancel: &Cancel,
    ) -> Result<bool, BackupError> {
        let (begun, mut pace) = (Instant::now(), Pace::new());
        loop {
            let is_there = match &self.own {
                Some(own) => own.status.borrow().durable >= lsn,
                None => repository.log(&options.source, lineage).await?.end(timeline).is_some_and(|end| end >= lsn),
            };
            if is_there || begun.elapsed() > options.log_wait {
                return Ok(is_there);
            }
            cancel.check()?;
            tokio::time::sleep(pace.next()).await;
        }
    }

    /// Returns when the log from `start` to the stop is durable in the repository.
    pub(crate) async fn wait(
        &self,
        repository: &Repository,
        options: &BackupOptions,
        lineage: Lineage,
        (start, stop): (Lsn, &BackupStop),
        cancel: &Cancel,
    ) -> Result<(), BackupError> {
        if let Some(own) = &self.own {
            own.until.send_replace(Some(stop.lsn));
            let mut status = own.status.clone();
            tokio::select! {
                // An error means that the receiver has ended; whether far enough shows below.
                _ = status.wait_for(|status| status.durable >= stop.lsn) => {}
                () = tokio::time::sleep(options.log_wait) => {}
                () = cancel.cancelled() => return Err(holdfast_runtime::Cancelled.into()),
            }
        }
        let (begun, mut pace) = (Instant::now(), Pace::new());
        loop {
            let view = repository.log(&options.source, lineage).await?;
            // Recovery reads whole segments: the one in which the backup began from its beginning.
            let size = lineage.segment_size;
            let first = Segment::containing(stop.start_timeline, start, size).start(size);
            if view.coverage(stop.start_timeline).covers(first, stop.lsn) {
                return Ok(());
            }
            if begun.elapsed() > options.log_wait || self.own.is_some() {
                let waited_seconds = options.log_wait.as_secs();
                return Err(BackupError::LogMissing { start, stop: stop.lsn, waited_seconds });
            }
            cancel.check()?;
            tokio::time::sleep(pace.next()).await;
        }
    }

    pub(crate) async fn end(self) {
        if let Some(own) = self.own {
            own.cancel.cancel();
            if let Ok(Err(error)) = own.task.await {
                tracing::debug!(%error, "the backup's own receiver ended");
            }
        }
    }
}

/// Where a backup of a standby begins, or later.
async fn restartpoint(options: &BackupOptions) -> Result<Lsn, BackupError> {
    let source_name = || options.source.clone();
    let mut client = Client::connect(&options.connection, Purpose::Sql)
        .await
        .map_err(|source| BackupError::Connect { source_name: source_name(), source })?;
    let last = client.checkpoint().await.map_err(|source| BackupError::Query { source_name: source_name(), source })?;
    client.close().await;
    Ok(last.redo)
}

/// A server that was set back writes another history at positions that the repository has log of, and a snapshot of it must
/// not be taken for one that this log leads on from. Whoever brings the log is refused, but only the server sees that.
async fn refuse_if_set_back(
    repository: &Repository,
    options: &BackupOptions,
    info: &ServerInfo,
) -> Result<(), BackupError> {
    let source_name = || options.source.clone();
    let mut client = Client::connect(options.log_connection.as_ref().unwrap_or(&options.connection), Purpose::Sql)
        .await
        .map_err(|source| BackupError::Connect { source_name: source_name(), source })?;
    let view = repository.log(&options.source, crate::server::lineage(info)).await?;
    // Asked after the listing, since the log goes on meanwhile.
    let server = ServerInfo::read(&mut client).await;
    client.close().await;
    let ServerInfo { in_recovery, timeline, lsn: server_end, .. } =
        server.map_err(|source| BackupError::Query { source_name: source_name(), source })?;
    match view.end(timeline) {
        // A standby may well be behind.
        Some(durable) if durable > server_end && !in_recovery => {
            Err(BackupError::Log(Box::new(ReceiveError::ServerSetBack { timeline, server_end, durable })))
        }
        _ => Ok(()),
    }
}

/// Whether somebody brings the log already: a receiver on the slot, or the archiver.
async fn is_received(options: &BackupOptions, info: &ServerInfo) -> Result<bool, BackupError> {
    let source_name = || options.source.clone();
    let mut client =
        match Client::connect(options.log_connection.as_ref().unwrap_or(&options.connection), Purpose::Sql).await {
            Ok(client) => client,
            // The standby has the log too.
            Err(error) if options.log_connection.is_some() => {
                tracing::warn!(%error, "could not find out whether a receiver runs");
                return Ok(false);
            }
            Err(source) => return Err(BackupError::Connect { source_name: source_name(), source }),
        };
    let mut received = false;
    if let Some(slot) = &options.slot {
        match client.read_slot(slot).await {
            Ok(state) => received = state.is_some_and(|state| state.active),
            // Not knowing is safe: the backup then streams the log itself.
            Err(error) => tracing::warn!(slot, %error, "could not find out whether a receiver runs"),
        }
    }
    // At the end of a backup a primary switches to another segment, which archives the one before. A standby cannot, and
    // where nothing is written the archiver would be waited for without end.
    if !received && !info.in_recovery {
        let archives = client
            .query(
                "SELECT 1 FROM pg_catalog.pg_settings a, pg_catalog.pg_settings c \
                    WHERE a.name = 'archive_mode' AND a.setting <> 'off' \
                    AND c.name = 'archive_command' AND c.setting LIKE '%holdfast%wal%push%'",
            )
            .await
            .map_err(|source| BackupError::Query { source_name: source_name(), source })?;
        received = !archives.is_empty();
    }
    client.close().await;
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_fast_at_first_and_never_rarer_than_before() {
        let mut pace = Pace::new();
        let waits: Vec<u128> = (0..8).map(|_| pace.next().as_millis()).collect();
        assert_eq!(waits, [10, 20, 40, 80, 160, 200, 200, 200]);
    }
}
