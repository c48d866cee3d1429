//! Where to go on: the repository's last log, the server's timelines, the slot.

use holdfast_pgformat::TimelineHistory;
use holdfast_postgres::client::{Client, Purpose};
use holdfast_postgres::replication::{SlotLifetime, SlotReserve, WalStatus};
use holdfast_postgres::server::ServerInfo;
use holdfast_repository::{Lineage, LogView, Names};
use holdfast_types::{Lsn, Segment, Timeline};

use super::{ReceiveError, Receiver};

/// A connection that is ready to stream, and from where.
pub(super) struct Begin {
    pub client: Client,
    pub lineage: Lineage,
    pub major: u32,
    pub slot: String,
    pub timeline: Timeline,
    /// The start of a segment.
    pub start: Lsn,
    /// Up to here it is all in the repository.
    pub durable: Lsn,
    /// The timelines behind the server's own, if it has any.
    pub server_timeline: Timeline,
    pub server_end: Lsn,
}

impl Receiver<'_> {
    pub(super) async fn begin(&mut self) -> Result<Begin, ReceiveError> {
        let source_name = || self.options.source.clone();
        let connect = |source| ReceiveError::Connect { source_name: source_name(), source };
        let replication = |source| ReceiveError::Replication { source_name: source_name(), source };
        let info = {
            let mut sql = Client::connect(&self.options.connection, Purpose::Sql).await.map_err(connect)?;
            let info = ServerInfo::read(&mut sql).await;
            sql.close().await;
            info.map_err(|source| ReceiveError::Query { source_name: source_name(), source })?
        };
        let lineage = Lineage { system_id: info.system_id, segment_size: info.wal_segment_size };
        let mut client =
            Client::connect(&self.options.connection, Purpose::Replication).await.map_err(connect)?;
        let identity = client.identify_system().await.map_err(replication)?;
        if identity.system_id != info.system_id {
            return Err(ReceiveError::OtherCluster { expected: info.system_id, found: identity.system_id });
        }
        let (slot, slot_start) = self.slot(&mut client).await?;
        let history = self.history(&mut client, lineage, identity.timeline).await?;
        let view = self.repository.log(&self.options.source, lineage).await?;
        self.drop_replaced_pieces(&view).await?;

        let size = lineage.segment_size;
        let floor = |timeline, lsn| Segment::containing(timeline, lsn, size).start(size);
        let anew = slot_start.unwrap_or(identity.xlogpos);
        let (timeline, mut start, mut durable) = match last_position(&view, history.as_ref(), identity.timeline) {
            Some((timeline, end)) if !self.begin_after_gap => (timeline, floor(timeline, end), end),
            _ => {
                let timeline = history.as_ref().map_or(identity.timeline, |history| history.timeline_at(anew));
                (timeline, floor(timeline, anew), floor(timeline, anew))
            }
        };
        if timeline == identity.timeline && identity.xlogpos < durable {
            // A standby that has not caught up yet, or a server that was set back.
            let server_end = identity.xlogpos;
            return Err(ReceiveError::ServerBehind { timeline, server_end, durable });
        }
        // The segment in which an earlier timeline ended begins the next one as well.
        if let Some(switch) = history.as_ref().and_then(|history| history.switch_point(timeline))
            && durable >= switch
            && timeline != identity.timeline
        {
            let next = history.as_ref().and_then(|history| next_timeline(history, timeline));
            let next = next.unwrap_or(identity.timeline);
            start = floor(next, switch);
            durable = start;
            return Ok(Begin {
                client,
                lineage,
                major: info.major(),
                slot,
                timeline: next,
                start,
                durable,
                server_timeline: identity.timeline,
                server_end: identity.xlogpos,
            });
        }
        Ok(Begin {
            client,
            lineage,
            major: info.major(),
            slot,
            timeline,
            start,
            durable,
            server_timeline: identity.timeline,
            server_end: identity.xlogpos,
        })
    }

    /// The slot to stream from, made if need be, and the oldest log that it keeps.
    async fn slot(&self, client: &mut Client) -> Result<(String, Option<Lsn>), ReceiveError> {
        let source_name = || self.options.source.clone();
        let replication = |source| ReceiveError::Replication { source_name: source_name(), source };
        let Some(slot) = &self.options.slot else {
            let slot = format!("holdfast_tmp_{}", client.backend_pid());
            client
                .create_physical_slot(&slot, SlotLifetime::Temporary, SlotReserve::Immediately)
                .await
                .map_err(replication)?;
            return Ok((slot, None));
        };
        let mut sql = Client::connect(&self.options.connection, Purpose::Sql)
            .await
            .map_err(|source| ReceiveError::Connect { source_name: source_name(), source })?;
        let mut state = sql.read_slot(slot).await.map_err(replication)?;
        if state.as_ref().is_some_and(|state| state.wal_status == Some(WalStatus::Lost)) {
            tracing::error!(slot, "the slot has lost log that was not received; making it anew");
            client.drop_slot(slot).await.map_err(replication)?;
            state = None;
        }
        if state.is_none() {
            if !self.options.create_slot {
                return Err(ReceiveError::SlotMissing { slot: slot.clone() });
            }
            client
                .create_physical_slot(slot, SlotLifetime::Persistent, SlotReserve::Immediately)
                .await
                .map_err(replication)?;
            state = sql.read_slot(slot).await.map_err(replication)?;
        }
        sql.close().await;
        match state {
            Some(state) if !state.physical => Err(ReceiveError::SlotLogical { slot: slot.clone() }),
            state => Ok((slot.clone(), state.and_then(|state| state.restart_lsn))),
        }
    }

    /// The server's timeline history, which goes to the repository with those before it.
    async fn history(
        &self,
        client: &mut Client,
        lineage: Lineage,
        timeline: Timeline,
    ) -> Result<Option<TimelineHistory>, ReceiveError> {
        if timeline == Timeline::FIRST {
            return Ok(None);
        }
        let history = self.store_history(client, lineage, timeline).await?;
        for entry in history.as_ref().map_or(&[][..], TimelineHistory::entries) {
            if entry.timeline != Timeline::FIRST {
                self.store_history(client, lineage, entry.timeline).await?;
            }
        }
        Ok(history)
    }

    pub(super) async fn store_history(
        &self,
        client: &mut Client,
        lineage: Lineage,
        timeline: Timeline,
    ) -> Result<Option<TimelineHistory>, ReceiveError> {
        let source_name = || self.options.source.clone();
        let (_, bytes) = match client.timeline_history(timeline).await {
            // A server keeps the histories that it came by, not always those of timelines before.
            Err(error) if error.server_error().is_some_and(|error| error.sqlstate == "58P01") => return Ok(None),
            outcome => {
                outcome.map_err(|source| ReceiveError::Replication { source_name: source_name(), source })?
            }
        };
        if let Some(epoch) = &self.epoch {
            let name = Names::history(&self.options.source, lineage, timeline);
            self.repository.put_log(&epoch.seal_history(name, &bytes)?).await?;
        }
        match TimelineHistory::parse(timeline, &bytes) {
            Ok(history) => Ok(Some(history)),
            Err(error) => {
                tracing::error!(%timeline, %error, "the server's timeline history cannot be read");
                Ok(None)
            }
        }
    }

    /// Pieces of segments that are whole: what the receiver before us did not get to remove.
    async fn drop_replaced_pieces(&self, view: &LogView) -> Result<(), ReceiveError> {
        let source = &self.options.source;
        for timeline in view.timelines() {
            for segment in self.repository.segments_in_pieces(source, view.lineage, timeline).await? {
                self.repository.drop_pieces(source, view.lineage, segment).await?;
            }
        }
        Ok(())
    }
}

/// The end of the repository's log on the newest timeline that the server's own history goes through.
fn last_position(
    view: &LogView,
    history: Option<&TimelineHistory>,
    server: Timeline,
) -> Option<(Timeline, Lsn)> {
    let is_ours = |timeline: Timeline| {
        timeline == server || history.is_some_and(|history| history.switch_point(timeline).is_some())
    };
    let timeline = view.timelines().filter(|timeline| is_ours(*timeline)).max()?;
    Some((timeline, view.end(timeline)?))
}

/// The timeline that follows `timeline` on the way to the server's own.
fn next_timeline(history: &TimelineHistory, timeline: Timeline) -> Option<Timeline> {
    let mut entries = history.entries().iter().skip_while(|entry| entry.timeline != timeline).skip(1);
    entries.next().map(|entry| entry.timeline)
}
