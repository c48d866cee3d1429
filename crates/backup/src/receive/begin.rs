//! Where to go on: the repository's last log, the server's timelines, the slot.

use holdfast_pgformat::TimelineHistory;
use holdfast_postgres::client::{Client, Purpose};
use holdfast_postgres::replication::{SlotLifetime, SlotReserve, WalStatus};
use holdfast_postgres::server::ServerInfo;
use holdfast_repository::{Lineage, LogView, Names};
use holdfast_types::{Lsn, Timeline};

use super::{ReceiveError, Receiver};

/// A connection that is ready to stream, and from where.
pub(super) struct Begin {
    pub client: Client,
    pub lineage: Lineage,
    pub major: u32,
    pub slot: String,
    pub position: Position,
    pub server_end: Lsn,
}

impl Receiver<'_> {
    pub(super) async fn begin(&mut self) -> Result<Begin, ReceiveError> {
        let source_name = || self.options.source.clone();
        let connect = |source| ReceiveError::Connect { source_name: source_name(), source };
        let replication = |source| ReceiveError::Replication { source_name: source_name(), source };
        let (info, asked) = {
            let mut sql = Client::connect(&self.options.connection, Purpose::Sql).await.map_err(connect)?;
            let info = ServerInfo::read(&mut sql).await;
            let asked = sql.server().to_owned();
            sql.close().await;
            (info.map_err(|source| ReceiveError::Query { source_name: source_name(), source })?, asked)
        };
        let lineage = crate::server::lineage(&info);
        // The name by which `synchronous_standby_names` knows us.
        let name = self.options.slot.as_deref().unwrap_or("holdfast_backup");
        let connection = self.options.connection.clone().with_application_name(name);
        let mut client = Client::connect(&connection, Purpose::Replication).await.map_err(connect)?;
        let identity = client.identify_system().await.map_err(replication)?;
        if identity.system_id != info.system_id {
            return Err(ReceiveError::OtherCluster { expected: info.system_id, found: identity.system_id });
        }
        let (slot, slot_start) = self.slot(&mut client).await?;
        let history = self.history(&mut client, lineage, identity.timeline).await?;
        let history = history.unwrap_or_else(|| TimelineHistory::root(identity.timeline));
        let position = match &self.resume {
            // What this receiver has put aside itself; the repository cannot be asked.
            Some(resume) if self.spooling => resume.clone(),
            _ => {
                let view = self.repository.log(&self.options.source, lineage).await?;
                let anchor = slot_start.unwrap_or(identity.xlogpos);
                let position = Position::after(&view, &history, anchor);
                if view.end(position.timeline).is_some_and(|end| end < position.written) {
                    tracing::error!(
                        source = self.options.source, timeline = %position.timeline, at = %position.written,
                        "there is a gap before this position: a new full backup is needed"
                    );
                }
                position
            }
        };
        if position.timeline == identity.timeline && identity.xlogpos < position.written {
            let (timeline, server_end, durable) = (position.timeline, identity.xlogpos, position.written);
            if is_primary(&client, &info, &asked) {
                // It sent that log, and has lost it: what it writes at these positions now is another history.
                return Err(ReceiveError::ServerSetBack { timeline, server_end, durable });
            }
            // A standby that has not caught up yet.
            return Err(ReceiveError::ServerBehind { timeline, server_end, durable });
        }
        Ok(Begin { client, lineage, major: info.major(), slot, position, server_end: identity.xlogpos })
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
            return Ok((slot, self.options.from));
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
            outcome => outcome.map_err(|source| ReceiveError::Replication { source_name: source_name(), source })?,
        };
        if let Some(epoch) = &self.epoch {
            let name = Names::history(&self.options.source, lineage, timeline);
            let sealed = epoch.seal_history(name, &bytes)?;
            match &self.spool {
                Some(spool) if self.spooling => spool.put(&sealed).await?,
                _ => drop(self.repository.put_log(&sealed).await?),
            }
        }
        match TimelineHistory::parse(timeline, &bytes) {
            Ok(history) => Ok(Some(history)),
            Err(error) => {
                tracing::error!(%timeline, %error, "the server's timeline history cannot be read");
                Ok(None)
            }
        }
    }
}

/// Whether the server at the other end of this connection is a primary; with several hosts each connection may lead to
/// another one. Versions before 14 do not tell on connections like this one.
fn is_primary(client: &Client, info: &ServerInfo, asked: &str) -> bool {
    match client.parameter("in_hot_standby") {
        Some(told) => told == "off",
        None => !info.in_recovery && client.server() == asked,
    }
}

/// How far a receiver is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub timeline: Timeline,
    /// In an object, in the repository or the spool.
    pub written: Lsn,
    /// In the repository.
    pub durable: Lsn,
}

impl Position {
    /// The first position from `anchor` on that the repository does not have, along the server's own history.
    ///
    /// `anchor` is the oldest log that the server keeps for us: a hole that lies behind it cannot be filled, one after
    /// it is.
    fn after(view: &LogView, history: &TimelineHistory, anchor: Lsn) -> Self {
        let size = view.lineage.segment_size.get();
        let floor = |lsn: Lsn| Lsn::new(lsn.get() / size * size);
        let mut timeline = history.timeline_at(anchor);
        let mut from = floor(anchor);
        loop {
            let reach = view.coverage(timeline).reach(from).unwrap_or(from);
            match (history.switch_point(timeline), next_timeline(history, timeline)) {
                // The segment in which a timeline ends begins the next one as well.
                (Some(switch), Some(next)) if reach >= switch => {
                    from = from.max(floor(switch));
                    timeline = next;
                }
                _ => return Self { timeline, written: reach, durable: reach },
            }
        }
    }
}

/// The timeline that follows `timeline` on the way to the server's own.
fn next_timeline(history: &TimelineHistory, timeline: Timeline) -> Option<Timeline> {
    let parents = history.entries().iter().map(|entry| entry.timeline);
    parents.chain([history.timeline()]).skip_while(|other| *other != timeline).nth(1)
}
