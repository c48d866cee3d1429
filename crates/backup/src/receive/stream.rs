//! From the replication stream to objects.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_format::codec::Compressor;
use holdfast_format::wal::LogIndex;
use holdfast_pgformat::wal::WalDecoder;
use holdfast_postgres::client::Client;
use holdfast_postgres::replication::{Event, ReplicationStream};
use holdfast_repository::{Epoch, Lineage, LogRange, Repository, SealedLog};
use holdfast_store::Created;
use holdfast_types::{Lsn, Segment, Timeline};

use super::begin::{Begin, Position};
use super::{ReceiveError, Receiver};
use crate::changes::Recorder;
use crate::segment::{LOG_LEVEL, LogSealer, note};
use crate::spool::Spool;

/// The server hangs up after `wal_sender_timeout`, a minute by default.
const STATUS_EVERY: Duration = Duration::from_secs(5);
/// Longer than this a store counts as away, if there is a spool to go to.
const STORE_DEADLINE: Duration = Duration::from_secs(10);
/// How often a spool is tried to be emptied.
const DRAIN_EVERY: Duration = Duration::from_secs(1);

impl Receiver<'_> {
    pub(super) async fn stream(&mut self, begin: Begin) -> Result<(), ReceiveError> {
        let epoch = match &self.epoch {
            Some(epoch) => epoch.clone(),
            None => self.repository.begin_epoch().await?,
        };
        let Begin { client, lineage, major, slot, position, server_end } = begin;
        let mut capture = Capture {
            source: self.options.source.clone(),
            epoch,
            lineage,
            major,
            compressor: Compressor::new(LOG_LEVEL)?,
            outlet: Outlet { repository: self.repository.clone(), spool: self.spool.clone(), spooling: self.spooling },
            timeline: position.timeline,
            position: position.written,
            written: position.written,
            durable: position.durable,
            open: None,
            made_whole: None,
            piece: Vec::new(),
            piece_index: LogIndex::default(),
            piece_since: None,
            decoder: None,
            changes: Recorder::default(),
            server_end,
        };
        let outcome = self.stream_timelines(client, &slot, &mut capture).await;
        if let Err(ReceiveError::Replication { .. }) = &outcome {
            // The server may be gone for good, and what it sent last be nowhere else.
            if let Err(error) = capture.flush_piece().await {
                tracing::warn!(error = %super::error::chain(&error), "what was received last could not be stored");
            }
        }
        let Capture { timeline, written, durable, .. } = capture;
        self.resume = Some(Position { timeline, written, durable });
        outcome
    }

    /// One timeline after the other, each from the start of the segment where it is to go on.
    async fn stream_timelines(
        &mut self,
        mut client: Client,
        slot: &str,
        capture: &mut Capture,
    ) -> Result<(), ReceiveError> {
        let source_name = || self.options.source.clone();
        let size = capture.lineage.segment_size;
        let mut start = Segment::containing(capture.timeline, capture.written, size).start(size);
        loop {
            let timeline = capture.timeline;
            tracing::info!(source = self.options.source, slot, %timeline, %start, durable = %capture.durable, "streaming the log");
            capture.begin(start);
            let stream = client.start_physical(Some(slot), timeline, start).await;
            let mut stream =
                stream.map_err(|source| ReceiveError::Replication { source_name: source_name(), source })?;
            match self.follow(&mut stream, capture).await? {
                Ended::Done => return Ok(()),
                Ended::Timeline { next, start: switch } => {
                    tracing::info!(source = self.options.source, from = %timeline, to = %next, at = %switch, "the timeline changed");
                    client =
                        stream.into_client().map_err(|_| ReceiveError::ServerClosed { source_name: source_name() })?;
                    self.store_history(&mut client, capture.lineage, next).await?;
                    start = Segment::containing(next, switch, size).start(size);
                    capture.timeline = next;
                    capture.written = start;
                }
            }
        }
    }

    /// Takes what the stream brings until the timeline ends or nobody wants more.
    async fn follow(&mut self, stream: &mut ReplicationStream, capture: &mut Capture) -> Result<Ended, ReceiveError> {
        let source_name = self.options.source.clone();
        let replication = |source| ReceiveError::Replication { source_name: source_name.clone(), source };
        let mut last_status = Instant::now();
        let mut last_drain = Instant::now();
        let mut reply = true;
        let mut reported = Lsn::ZERO;
        loop {
            if reply || capture.durable > reported || last_status.elapsed() >= STATUS_EVERY {
                // Nothing is applied here; to say so would let `synchronous_commit = remote_apply` return too early.
                stream.status(capture.position, capture.durable, Lsn::ZERO, false).await.map_err(replication)?;
                (reply, reported, last_status) = (false, capture.durable, Instant::now());
            }
            self.report(capture);
            if self.cancel.is_cancelled() || self.is_far_enough(capture.durable) {
                capture.flush_piece().await?;
                stream.status(capture.position, capture.durable, Lsn::ZERO, false).await.map_err(replication)?;
                self.report(capture);
                capture.store_changes().await?;
                return Ok(Ended::Done);
            }
            let wait = self.wait_at_most(capture, last_status, last_drain);
            let event = tokio::select! {
                event = stream.next() => Some(event.map_err(replication)?),
                () = tokio::time::sleep(wait) => None,
                () = self.cancel.cancelled() => None,
                // An error only says that nobody will ask for an end any more.
                Ok(()) = self.until.changed() => None,
            };
            let mut next = event;
            while let Some(event) = next.take() {
                match event {
                    Event::Wal { start, server_end, data, .. } => {
                        capture.server_end = server_end.max(capture.server_end);
                        capture.take(start, &data).await?;
                    }
                    Event::Keepalive { server_end, reply_requested, .. } => {
                        capture.server_end = server_end.max(capture.server_end);
                        reply |= reply_requested;
                    }
                    Event::EndOfTimeline { next, start } => {
                        capture.flush_piece().await?;
                        self.report(capture);
                        capture.store_changes().await?;
                        return Ok(Ended::Timeline { next, start });
                    }
                    Event::Closed => {
                        capture.flush_piece().await?;
                        self.report(capture);
                        return Err(ReceiveError::ServerClosed { source_name });
                    }
                }
                // Whatever else has arrived goes into the same piece, as long as the piece is not due.
                if !capture.is_due(self.options.interval) {
                    next = stream.try_next_buffered().map_err(replication)?;
                }
            }
            if capture.has_open_piece() && (self.options.synchronous || capture.is_due(self.options.interval)) {
                capture.flush_piece().await?;
            }
            if capture.outlet.spooling && last_drain.elapsed() >= DRAIN_EVERY {
                capture.try_to_drain().await;
                last_drain = Instant::now();
            }
        }
    }

    fn is_far_enough(&self, durable: Lsn) -> bool {
        self.until.borrow().is_some_and(|until| durable >= until)
    }

    fn wait_at_most(&self, capture: &Capture, last_status: Instant, last_drain: Instant) -> Duration {
        let mut wait = STATUS_EVERY.saturating_sub(last_status.elapsed());
        if let Some(since) = capture.piece_since {
            wait = wait.min(self.options.interval.saturating_sub(since.elapsed()));
        }
        if capture.outlet.spooling {
            wait = wait.min(DRAIN_EVERY.saturating_sub(last_drain.elapsed()));
        }
        wait
    }

    fn report(&self, capture: &Capture) {
        self.status.send_if_modified(|status| {
            let (timeline, received, durable) = (capture.timeline, capture.position, capture.durable);
            let (server_end, spooling) = (capture.server_end, capture.outlet.spooling);
            let last_error = if spooling { status.last_error.clone() } else { None };
            let now =
                super::ReceiveStatus { connected: true, timeline, received, durable, server_end, spooling, last_error };
            let changed = *status != now;
            *status = now;
            changed
        });
    }
}

enum Ended {
    Done,
    Timeline { next: Timeline, start: Lsn },
}

/// Where sealed log goes.
#[derive(Debug)]
struct Outlet {
    repository: Repository,
    spool: Option<Arc<Spool>>,
    /// The repository is away; everything goes to the spool so that it gets there in order.
    spooling: bool,
}

impl Outlet {
    /// Returns when the log is durable: in the repository, or (while `spooling`) in the spool. Says whether the object
    /// in the repository is our own.
    async fn put(&mut self, sealed: &SealedLog) -> Result<bool, ReceiveError> {
        let Some(spool) = self.spool.clone() else {
            return Ok(self.repository.put_log(sealed).await? == Created::New);
        };
        if !self.spooling {
            let error = match tokio::time::timeout(STORE_DEADLINE, self.repository.put_log(sealed)).await {
                Ok(Ok(created)) => return Ok(created == Created::New),
                Ok(Err(error)) => ReceiveError::from(error),
                Err(_) => ReceiveError::RepositorySlow { seconds: STORE_DEADLINE.as_secs() },
            };
            if !error.is_retryable() {
                return Err(error);
            }
            tracing::error!(error = %super::error::chain(&error), "the repository is away; spooling");
            self.spooling = true;
        }
        spool.put(sealed).await?;
        Ok(false)
    }
}

/// The segment that is being received.
#[derive(Debug)]
struct OpenSegment {
    segment: Segment,
    sealer: LogSealer,
}

/// What has been received and where it goes.
#[derive(Debug)]
struct Capture {
    source: String,
    epoch: Epoch,
    lineage: Lineage,
    major: u32,
    compressor: Compressor,
    outlet: Outlet,
    timeline: Timeline,
    /// Where the next byte comes from.
    position: Lsn,
    /// What is in an object already, here or in the spool.
    written: Lsn,
    /// What is in the repository.
    durable: Lsn,
    open: Option<OpenSegment>,
    /// The last segment whose whole object this run itself put into the repository.
    made_whole: Option<Segment>,
    /// Received and in no object yet: from `written` to `position`.
    piece: Vec<u8>,
    piece_index: LogIndex,
    piece_since: Option<Instant>,
    decoder: Option<WalDecoder>,
    /// As far as the log could be decoded without a hole.
    changes: Recorder,
    server_end: Lsn,
}

impl Capture {
    /// From `start` on, which is at or before what is written already.
    fn begin(&mut self, start: Lsn) {
        self.position = start;
        self.open = None;
        self.piece.clear();
        self.piece_index = LogIndex::default();
        self.piece_since = None;
        self.changes = Recorder::default();
        self.decoder = WalDecoder::new(self.major, self.lineage.segment_size, start)
            .map(|decoder| decoder.for_system(self.lineage.system_id))
            .map_err(|error| tracing::warn!(%error, "the log will not be indexed"))
            .ok();
    }

    async fn take(&mut self, start: Lsn, data: &[u8]) -> Result<(), ReceiveError> {
        if start != self.position {
            return Err(ReceiveError::Discontinuous { expected: self.position, found: start });
        }
        let size = self.lineage.segment_size;
        let mut rest = data;
        while !rest.is_empty() {
            let segment = Segment::containing(self.timeline, self.position, size);
            let room = segment.end(size).bytes_since(self.position) as usize;
            let (now, later) = rest.split_at(rest.len().min(room));
            self.add(segment, now);
            if self.position == segment.end(size) {
                self.finish_segment(segment).await?;
            }
            rest = later;
        }
        Ok(())
    }

    fn add(&mut self, segment: Segment, bytes: &[u8]) {
        let open = self.open.get_or_insert_with(|| OpenSegment {
            segment,
            sealer: LogSealer::segment(&self.epoch, &self.source, self.lineage, segment),
        });
        debug_assert_eq!(open.segment, segment);
        open.sealer.push(bytes, &mut self.compressor);
        if let Some(decoder) = &mut self.decoder {
            let (whole, piece, written) = (&mut open.sealer.index, &mut self.piece_index, self.written);
            let changes = &mut self.changes;
            let decoded = decoder.feed(bytes, &mut |record| {
                changes.note(&record);
                note(whole, &record);
                if record.end > written {
                    note(piece, &record);
                }
            });
            if let Err(error) = decoded {
                // The bytes are kept as they are; only the time index ends here.
                tracing::warn!(%error, "the log cannot be decoded; it is stored and no longer indexed");
                self.decoder = None;
                self.changes = Recorder::default();
            }
        }
        let end = self.position.advance(bytes.len() as u64);
        if end > self.written {
            let known = self.written.bytes_since(self.position) as usize;
            self.piece.extend_from_slice(bytes.get(known..).unwrap_or_default());
            self.piece_since.get_or_insert_with(Instant::now);
        }
        self.position = end;
    }

    async fn finish_segment(&mut self, segment: Segment) -> Result<(), ReceiveError> {
        let mut is_ours = false;
        if let Some(open) = self.open.take() {
            let sealed = open.sealer.finish(&mut self.compressor)?;
            is_ours = self.outlet.put(&sealed).await?;
        }
        self.piece.clear();
        self.piece_index = LogIndex::default();
        self.piece_since = None;
        self.now_written();
        if self.changes.is_due() {
            self.store_changes().await?;
        }
        // The pieces of the segment before this one, if the object that holds it whole is our own: that of another may be
        // damaged, and one that we never saw whole may be nowhere else. Whoever is reading those pieces has had a
        // segment's time to finish.
        if let Some(before) = std::mem::replace(&mut self.made_whole, is_ours.then_some(segment))
            && before.next() == segment
            && let Err(error) = self.outlet.repository.drop_pieces(&self.source, self.lineage, before).await
        {
            tracing::debug!(%error, "the pieces of a whole segment stay");
        }
        Ok(())
    }

    /// What a kill loses of this is read from the log again when a backup needs it.
    async fn store_changes(&mut self) -> Result<(), ReceiveError> {
        let (lineage, timeline) = (self.lineage, self.timeline);
        let sealed = self.changes.take(&self.epoch, &self.source, lineage, timeline, &mut self.compressor)?;
        if let Some(sealed) = sealed {
            self.outlet.put(&sealed).await?;
        }
        Ok(())
    }

    fn has_open_piece(&self) -> bool {
        !self.piece.is_empty()
    }

    fn is_due(&self, interval: Duration) -> bool {
        self.piece_since.is_some_and(|since| since.elapsed() >= interval)
    }

    /// Makes everything durable that has been received.
    async fn flush_piece(&mut self) -> Result<(), ReceiveError> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let segment = Segment::containing(self.timeline, self.written, self.lineage.segment_size);
        let range = LogRange { start: self.written, end: self.position };
        let mut sealer = LogSealer::piece(&self.epoch, &self.source, self.lineage, segment, range);
        sealer.push(&self.piece, &mut self.compressor);
        sealer.index = std::mem::take(&mut self.piece_index);
        let sealed = sealer.finish(&mut self.compressor)?;
        self.outlet.put(&sealed).await?;
        self.piece.clear();
        self.piece_since = None;
        self.now_written();
        Ok(())
    }

    fn now_written(&mut self) {
        self.written = self.position;
        if !self.outlet.spooling {
            self.durable = self.written;
        }
    }

    async fn try_to_drain(&mut self) {
        let Some(spool) = &self.outlet.spool else { return };
        match tokio::time::timeout(STORE_DEADLINE, spool.drain(&self.outlet.repository, 1000)).await {
            Ok(Ok(true)) => {
                tracing::info!("the repository is back, and has the spooled log");
                self.outlet.spooling = false;
                self.durable = self.written;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the repository is still away"),
            Err(_) => tracing::debug!("the repository is still slow"),
        }
    }
}
