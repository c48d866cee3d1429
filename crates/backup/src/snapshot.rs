//! A backup of a running server: of everything, or of what changed since an earlier one.
//!
//! *Consistency.* The files are copied while the server writes them; the log from start to stop makes them one state.
//! The manifest is written only after all packs, maps and that log are durable in the repository.
//! *Cancellation, crash.* The server ends the backup with its session. What was stored belongs to no snapshot.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_changes::ChangeMap;
use holdfast_format::manifest::{DamagedPage, Manifest, MapRef, SnapshotKind, Summary};
use holdfast_format::map::Map;
use holdfast_format::unfinished::Part;
use holdfast_pgformat::path::tablespace_version_directory;
use holdfast_postgres::backup_api::{BackupSession, BackupStart, StartCheckpoint};
use holdfast_postgres::client::Client;
use holdfast_postgres::conninfo::ConnInfo;
use holdfast_postgres::control::log_position;
use holdfast_postgres::server::ServerInfo;
use holdfast_repository::{Epoch, Keyring, Lineage, LogRange, Repository, random};
use holdfast_runtime::{Cancel, Phase, Progress};
use holdfast_types::{ByteSize, Lsn, Micros, PackId, SnapshotId, Timeline};

use crate::BackupError;
use crate::assemble::{assemble, pack_sizes};
use crate::audit::{Audit, strict_from};
use crate::base::Base;
use crate::changes::{self, Between};
use crate::copy::RELSEG_BLOCKS;
use crate::feed::LogFeed;
use crate::fragmentation;
use crate::identity::prove_local;
use crate::impact::{Impact, Probe};
use crate::packs::PackCheck;
use crate::relation_names::RelationNames;
use crate::scan::{Scan, scan};
use crate::select::{Known, Reading, select};
use crate::server::{
    add_config_files, config_files, connect, find_data_directory, is_only_one, is_pooled, lineage, owner, parameters,
    read_control_file, tablespaces,
};
use crate::upstream;
use crate::vanished::{self, Inquiry, Suspect, Vanished};
use crate::window::Windows;
use crate::worker::Output;

/// What to back up and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    pub source: String,
    /// What is asked for. Where the log does not tell what changed, a full backup is made, and says why.
    pub kind: SnapshotKind,
    pub connection: ConnInfo,
    /// The server whose log is received, where the backup is taken from a standby of it.
    pub log_connection: Option<ConnInfo>,
    /// Where the server's files are on this machine, if not where the server says.
    pub data_directory: Option<PathBuf>,
    pub checkpoint: StartCheckpoint,
    /// Worker threads.
    pub parallel: usize,
    /// What it may cost the database.
    pub impact: Impact,
    /// When it may run; at any time if absent.
    pub windows: Option<Windows>,
    /// zstd level.
    pub level: i32,
    /// The slot of a receiver that may be running.
    pub slot: Option<String>,
    /// How long to wait for the log when somebody else brings it.
    pub log_wait: Duration,
    /// Not while another backup of the source is being made on the same server.
    pub unless_running: bool,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct BackupReport {
    pub summary: Summary,
    pub damage: Vec<DamagedPage>,
    /// Pages that changed without a word in the log: what was built on it since may hold stale pages.
    pub incidents: Vec<String>,
    pub notes: Vec<String>,
    pub phases: Vec<(Phase, Duration)>,
}

/// Makes a backup. One that builds on another needs the keyring to read it.
pub async fn backup(
    repository: &Repository,
    keyring: Option<&Keyring>,
    options: &BackupOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<BackupReport, BackupError> {
    if options.kind != SnapshotKind::Full && keyring.is_none() {
        return Err(BackupError::NoIdentity);
    }
    let closes = match &options.windows {
        Some(windows) => Some(closing_time(windows, &options.source)?),
        None => None,
    };
    progress.begin(Phase("connecting"), 0);
    let (mut client, info) = connect(options).await?;
    if let Some(pooled) = is_pooled(&mut client, &options.source).await? {
        return Err(BackupError::Pooled { server: pooled });
    }
    if !is_only_one(&mut client, &options.source).await? && options.unless_running {
        return Err(BackupError::Running { source_name: options.source.clone() });
    }
    if let Some(log_connection) = &options.log_connection {
        upstream::check(&options.source, &mut client, &info, log_connection).await?;
    }
    let data_directory = find_data_directory(options, &info).await?;
    let epoch = repository.begin_epoch().await?;
    let lineage = lineage(&info);
    let log = LogFeed::begin(repository, options, &info).await?;
    let stop = Cancel::new();
    let is_over = AtomicBool::new(false);
    let job = Job { epoch, keyring, options, info, data_directory, lineage, progress, cancel: &stop, is_over };
    let run = async {
        let running = job.run(client, &log);
        tokio::pin!(running);
        let is_closed = tokio::select! {
            outcome = &mut running => return (outcome, false),
            () = cancel.cancelled() => false,
            () = closing(closes, &job.is_over) => true,
        };
        stop.cancel();
        (running.await, is_closed)
    };
    let (outcome, is_closed) = run.await;
    log.end().await;
    match outcome {
        Err(BackupError::Cancelled(_)) if is_closed => {
            Err(BackupError::WindowClosed { source_name: options.source.clone() })
        }
        outcome => outcome,
    }
}

/// When the window closes that is open now.
fn closing_time(windows: &Windows, source: &str) -> Result<jiff::Timestamp, BackupError> {
    let now = jiff::Timestamp::now();
    windows.closes(now).ok_or_else(|| BackupError::OutsideWindow {
        source_name: source.to_owned(),
        opens: windows.opens(now).map_or_else(|| "never".to_owned(), |opens| windows.clock(opens)),
    })
}

/// Returns when the window closes on a backup that the server still has a part in.
async fn closing(moment: Option<jiff::Timestamp>, is_over: &AtomicBool) {
    // The clock may be set meanwhile: it is looked at again and again.
    while moment.is_none_or(|moment| jiff::Timestamp::now() < moment) || is_over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// All that stays the same while a backup is made.
pub(crate) struct Job<'a> {
    pub epoch: Epoch,
    keyring: Option<&'a Keyring>,
    pub options: &'a BackupOptions,
    pub info: ServerInfo,
    data_directory: PathBuf,
    lineage: Lineage,
    pub progress: &'a Progress,
    pub cancel: &'a Cancel,
    /// The server's part is over: the rest costs it nothing.
    is_over: AtomicBool,
}

/// What a backup builds on.
struct Ground {
    base: Arc<Base>,
    between: Between,
}

/// Files that are shorter than in the base, and the log that would have to say so.
struct Unclear {
    suspects: Vec<Suspect>,
    base: Arc<Base>,
    range: LogRange,
}

impl Job<'_> {
    async fn run(&self, client: Client, log: &LogFeed) -> Result<BackupReport, BackupError> {
        let Self { epoch, options, info, .. } = self;
        let id = SnapshotId::new(&stamp(info.now), random()).map_err(|_| BackupError::Worker)?;
        let mut notes = Vec::new();
        let base = self.find_base(&mut notes).await?;
        let packs = base.as_ref().map(|base| PackCheck::begin(epoch.repository(), base));
        let latency = &options.impact.latency;
        let mut probe = Probe::begin(&options.connection, latency, info.in_recovery, &options.source).await?;
        let outcome = self.make(client, log, id, (base, packs), probe.as_mut(), notes).await;
        // However it ended.
        if let Some(probe) = probe {
            probe.end().await;
        }
        outcome
    }

    async fn make(
        &self,
        client: Client,
        log: &LogFeed,
        id: SnapshotId,
        (base, packs): (Option<Base>, Option<PackCheck>),
        mut probe: Option<&mut Probe>,
        mut notes: Vec<String>,
    ) -> Result<BackupReport, BackupError> {
        let Self { epoch, options, info, progress, cancel, .. } = self;
        progress.begin(Phase("waiting for the checkpoint"), 0);
        if options.checkpoint == StartCheckpoint::Spread
            && let Some(wait) = spread_checkpoint(info)
        {
            progress.remark(wait);
        }
        let label = format!("holdfast {id}");
        let start = tokio::select! {
            outcome = BackupSession::start(client, &label, options.checkpoint) => outcome,
            () = cancel.cancelled() => return Err(holdfast_runtime::Cancelled.into()),
        };
        let (mut session, start) = start.map_err(BackupError::Api)?;
        tracing::info!(snapshot = %id, lsn = %start.lsn, "the backup began");
        prove_local(&self.data_directory, session.client()).await?;
        let timeline = start.timeline.unwrap_or(info.timeline);
        let mut ground = match base {
            Some(base) => self.find_changes(base, log, timeline, start.lsn, &mut notes).await?,
            None => None,
        };

        let config = config_files(info, &self.data_directory);
        let version_directory = tablespace_version_directory(info.version.0 / 10_000, info.catalog_version);
        let mut listed = scan(&self.data_directory, &version_directory)?;
        add_config_files(&mut listed, &config);
        let mut incidents = Vec::new();
        let mut unclear = None;
        if let Some(known) = &ground {
            choose_pages(&mut listed, known);
            // An older base than the one that was found first may have been chosen since.
            let packs = packs.filter(|packs| packs.is_of(&known.base));
            let packs = packs.unwrap_or_else(|| PackCheck::begin(epoch.repository(), &known.base));
            let doubt = async {
                let mut found = packs.incidents().await?;
                let vanished = self.vanished(known, &listed, log, (timeline, start.lsn), &mut session).await?;
                let (vanished, range) = vanished;
                found.extend(vanished.incidents);
                found.extend(self.audit(known, &listed, start.lsn).await?);
                Ok((found, Unclear { suspects: vanished.unclear, base: Arc::clone(&known.base), range }))
            };
            let doubt = match doubt.await {
                Err(BackupError::Repository(error)) if known.base.is_unfinished => {
                    Some(format!("an interrupted backup was begun anew: {error}"))
                }
                found => {
                    let (found, later) = found?;
                    incidents = found;
                    let cut = later.suspects.len();
                    if cut > 0 {
                        unclear = Some(later);
                    }
                    match (incidents.is_empty(), cut) {
                        (true, 0) => None,
                        (true, cut) => Some(format!(
                            "everything was read: {cut} files are shorter, and the log since the backup began was not there"
                        )),
                        (false, _) => {
                            Some("everything was read, because what changed is not what the log says".to_owned())
                        }
                    }
                }
            };
            if let Some(why) = doubt {
                notes.push(why);
                listed.files.iter_mut().for_each(|task| task.reading = Reading::Whole);
                ground = None;
            }
        }
        if let Some(ground) = &ground {
            let rewritten = fragmentation::rewrite(&mut listed.files, &ground.base);
            if rewritten > 0 {
                let size = ByteSize::new(rewritten);
                listed.notes.push(format!("{size} that had not changed were stored anew, to keep restores fast"));
            }
        }
        let read_bytes = listed.bytes_to_read();
        progress.begin(Phase("copying"), read_bytes);
        let base = ground.as_ref().map(|ground| Arc::clone(&ground.base));
        if base.as_ref().is_some_and(|base| base.is_unfinished) {
            let kept = listed.bytes().saturating_sub(read_bytes);
            notes.push(format!("goes on from an interrupted backup: {} were not read again", ByteSize::new(kept)));
        }
        let part = self.part(&id, (timeline, &start), base.as_deref());
        let mut outputs = self.copy(base.clone(), &mut listed, &mut session, probe.as_deref_mut(), part).await?;
        notes.extend(probe.and_then(|probe| probe.note()));

        progress.begin(Phase("ending the backup"), 0);
        prove_local(&self.data_directory, session.client()).await?;
        let pg_control = read_control_file(&self.data_directory).await?;
        // The session says until the end that a backup is being made.
        let (stop, client) = session.stop().await.map_err(BackupError::Api)?;
        self.is_over.store(true, Ordering::Relaxed);
        if stop.timeline != stop.start_timeline || stop.start_timeline != timeline {
            // A standby that followed a promotion: the files are good, but the way through the log is not a single one.
            return Err(BackupError::TimelineChanged);
        }
        let damage = damaged_pages(&outputs, start.lsn, stop.lsn, options).await;
        notes.append(&mut listed.notes);
        let count = |(n, b): (u64, u64), size: u64| (n + 1, b + size);
        let (files, bytes) = outputs.iter().flat_map(|output| &output.files).map(|file| file.size).fold((0, 0), count);
        let own_bytes: u64 = outputs.iter().flat_map(|output| &output.packs).map(|(_, bytes)| *bytes).sum();
        let assembled = assemble(&mut outputs, &listed.others, base.as_deref());
        let packs = pack_sizes(&assembled, &outputs, base.as_deref())?;
        let (maps, map_bytes) = store_maps(epoch, &assembled).await?;
        progress.begin(Phase("waiting for the log"), 0);
        log.wait(epoch.repository(), options, self.lineage, (start.lsn, &stop), cancel).await?;
        if let Some(unclear) = unclear {
            incidents.extend(self.judge(unclear, &listed, timeline).await?);
        }
        let summary = Summary {
            id,
            source: options.source.clone(),
            kind: if ground.is_some() { options.kind } else { SnapshotKind::Full },
            base: base.as_ref().filter(|base| !base.is_unfinished).map(|base| base.summary.id.clone()),
            server_version: info.version.0,
            system_id: info.system_id,
            timeline: stop.start_timeline,
            start_lsn: start.lsn,
            stop_lsn: stop.lsn,
            segment_size: info.wal_segment_size,
            started_at: start.started_at,
            stopped_at: stop.stopped_at,
            from_standby: self.is_from_standby(base.as_deref()),
            bytes,
            files,
            read_bytes: Some(read_bytes),
            stored_bytes: own_bytes + map_bytes,
            damaged_pages: damage.len() as u64,
            made_by: format!("holdfast {}", env!("CARGO_PKG_VERSION")),
        };
        let manifest = Manifest {
            summary: summary.clone(),
            maps,
            packs,
            backup_label: stop.backup_label,
            tablespace_map: stop.tablespace_map,
            pg_control,
            tablespaces: tablespaces(info, &listed),
            owner: owner(&self.data_directory)?,
            data_directory: self.data_directory.display().to_string(),
            config_files: config.iter().map(|path| path.display().to_string()).collect(),
            parameters: parameters(info),
            damage: damage.clone(),
        };
        cancel.check()?;
        epoch.commit(&manifest).await?;
        tracing::info!(snapshot = %summary.id, "the snapshot exists");
        client.close().await;
        if summary.kind == SnapshotKind::Full
            && let Err(error) = epoch.repository().drop_unfinished(&summary.source, &summary.id).await
        {
            // A writer that may only write; the next backup passes them over.
            tracing::debug!(%error, "parts of unfinished backups are left");
        }
        if let (Some(ground), Some(log)) = (&ground, self.log())
            && let Err(error) = changes::merge(epoch, &log, &ground.between).await
        {
            // They are merged next time.
            tracing::warn!(%error, "change maps could not be merged");
        }
        Ok(BackupReport { summary, damage, incidents, notes, phases: progress.durations() })
    }

    /// What is stored of a full backup now and then while it is not done.
    fn part(&self, id: &SnapshotId, (timeline, start): (Timeline, &BackupStart), base: Option<&Base>) -> Option<Part> {
        (self.options.kind == SnapshotKind::Full).then(|| Part {
            id: id.clone(),
            source: self.options.source.clone(),
            server_version: self.info.version.0,
            system_id: self.info.system_id,
            timeline,
            segment_size: self.info.wal_segment_size,
            start_lsn: start.lsn,
            read_lsn: start.lsn,
            started_at: start.started_at,
            from_standby: self.is_from_standby(base),
            checksums: self.info.data_checksums,
            map: MapRef { id: PackId::new([0; 32]), bytes: 0, entries: 0 },
            packs: Vec::new(),
        })
    }

    /// Whether any page is a standby's: those that an interrupted backup took from one are no less so.
    fn is_from_standby(&self, base: Option<&Base>) -> bool {
        self.info.in_recovery || base.is_some_and(|base| base.is_unfinished && base.summary.from_standby)
    }

    /// Compares some pages that are said to be unchanged with what the base has.
    async fn audit(&self, ground: &Ground, listed: &Scan, start: Lsn) -> Result<Vec<String>, BackupError> {
        let Some(keyring) = self.keyring else { return Ok(Vec::new()) };
        self.progress.begin(Phase("auditing"), 0);
        let known = keyring.repository().snapshots(&self.options.source).await?;
        let known: Vec<Summary> = known.into_iter().filter_map(|entry| entry.summary.ok()).collect();
        let (base, timeline_start) = (&ground.base.summary, ground.between.timeline_start);
        let strict_from = strict_from(self.info.data_checksums, self.info.in_recovery, timeline_start, base, &known);
        let chance = u64::from_le_bytes(random());
        let audit = Audit { keyring, base: &ground.base, start, strict_from, chance, cancel: self.cancel };
        match audit.run(&listed.files, self.options).await {
            Err(BackupError::Repository(error)) if error.is_damage() => {
                Ok(vec![format!("what snapshot {} needs is damaged: {error}", base.id)])
            }
            incidents => incidents,
        }
    }

    /// Looks for files of the base that are gone or shorter, and finds out why.
    async fn vanished(
        &self,
        ground: &Ground,
        listed: &Scan,
        feed: &LogFeed,
        (timeline, start): (Timeline, Lsn),
        session: &mut BackupSession,
    ) -> Result<(Vanished, LogRange), BackupError> {
        let nothing = (Vanished::default(), LogRange { start, end: start });
        let Some(log) = self.log() else { return Ok(nothing) };
        let suspects = vanished::suspects(ground.base.files(), listed, &ground.between.map);
        if suspects.is_empty() {
            return Ok(nothing);
        }
        // The listing was made after the backup began; what happened in between is in the log as well.
        let query = |source| BackupError::Query { source_name: self.options.source.clone(), source };
        let end = log_position(session.client()).await.map_err(query)?;
        let reaches = feed.reaches(self.epoch.repository(), self.options, (self.lineage, timeline, end), self.cancel);
        let range = LogRange { start, end };
        let since = if end <= start {
            Some(ChangeMap::default())
        } else if reaches.await? {
            changes::since(&log, timeline, range).await?.ok()
        } else {
            None
        };
        let inquiry = self.inquiry(log.keyring, &ground.base, listed);
        Ok((inquiry.run(suspects, since.as_ref()).await?, range))
    }

    /// Finds out about what could not be judged before, now that the log of the backup is there.
    async fn judge(&self, unclear: Unclear, listed: &Scan, timeline: Timeline) -> Result<Vec<String>, BackupError> {
        let Some(log) = self.log() else { return Ok(Vec::new()) };
        let Unclear { suspects, base, range } = unclear;
        let since = match changes::since(&log, timeline, range).await {
            Err(BackupError::Repository(error)) if error.is_damage() => Err(error.to_string()),
            since => since?,
        };
        match since {
            Ok(since) => Ok(self.inquiry(log.keyring, &base, listed).run(suspects, Some(&since)).await?.incidents),
            Err(why) => {
                let (files, base) = (suspects.len(), &base.summary.id);
                Ok(vec![format!(
                    "{files} files are shorter than in snapshot {base}, and the log does not say why: {why}"
                )])
            }
        }
    }

    fn inquiry<'b>(&'b self, keyring: &'b Keyring, base: &'b Base, listed: &'b Scan) -> Inquiry<'b> {
        let Self { options, data_directory, cancel, .. } = self;
        Inquiry { keyring, base, options, data_directory, listed, cancel }
    }

    fn log(&self) -> Option<changes::Log<'_>> {
        Some(changes::Log {
            keyring: self.keyring?,
            source: &self.options.source,
            lineage: self.lineage,
            major: self.info.version.0 / 10_000,
        })
    }

    /// The snapshot to build on, if one is wanted and there is one.
    async fn find_base(&self, notes: &mut Vec<String>) -> Result<Option<Base>, BackupError> {
        let Some(keyring) = self.keyring else { return Ok(None) };
        if self.options.kind == SnapshotKind::Full {
            self.progress.begin(Phase("looking for an interrupted backup"), 0);
            return match Base::unfinished(keyring, &self.options.source, &self.info).await {
                // A help only: what cannot be used must not keep a full backup from being made.
                Err(BackupError::Repository(error)) => {
                    notes.push(format!("an interrupted backup was begun anew: {error}"));
                    Ok(None)
                }
                found => found,
            };
        }
        self.progress.begin(Phase("reading the snapshot before"), 0);
        let found = match Base::find(keyring, &self.options.source, self.options.kind, &self.info, None).await {
            Err(BackupError::Repository(error)) if error.is_damage() => {
                Err(format!("{error}; `holdfast verify` says more"))
            }
            found => found?,
        };
        match found {
            Ok(base) => Ok(Some(base)),
            Err(why) => {
                notes.push(format!("everything was read: {why}"));
                Ok(None)
            }
        }
    }

    /// What changed since the base; `None` if the log does not tell.
    async fn find_changes(
        &self,
        base: Base,
        log: &LogFeed,
        timeline: Timeline,
        lsn: Lsn,
        notes: &mut Vec<String>,
    ) -> Result<Option<Ground>, BackupError> {
        let Some(changes) = self.log() else { return Ok(None) };
        self.progress.begin(Phase("finding what changed"), 0);
        let needed = changes::end_before(lsn, self.lineage.segment_size);
        let reaches = log.reaches(self.epoch.repository(), self.options, (self.lineage, timeline, needed), self.cancel);
        let base_is_unfinished = base.is_unfinished;
        let outcome = if reaches.await? {
            match self.ground(&changes, base, timeline, lsn, notes).await {
                Err(BackupError::Repository(error)) if error.is_damage() || base_is_unfinished => {
                    Err(error.to_string())
                }
                outcome => outcome?,
            }
        } else {
            Err(format!("the log had not come as far as {lsn} after {} s", self.options.log_wait.as_secs()))
        };
        match outcome {
            Ok(ground) => Ok(Some(ground)),
            Err(why) if base_is_unfinished => {
                notes
                    .push(format!("an interrupted backup was begun anew, because it is not known what changed: {why}"));
                Ok(None)
            }
            Err(why) => {
                notes.push(format!("everything was read, because it is not known what changed: {why}"));
                Ok(None)
            }
        }
    }
}

impl Job<'_> {
    /// What changed since the base, or since an older one where this backup begins before the base ended.
    async fn ground(
        &self,
        changes: &changes::Log<'_>,
        base: Base,
        timeline: Timeline,
        lsn: Lsn,
        notes: &mut Vec<String>,
    ) -> Result<Result<Ground, String>, BackupError> {
        let history = match changes::history(changes, timeline).await? {
            Ok(history) => history,
            Err(why) => return Ok(Err(why)),
        };
        let base = match changes::unfit(&base.summary, &history, lsn) {
            None => base,
            Some(why) if base.is_unfinished => return Ok(Err(why)),
            Some(why) => {
                let begin = Some((&history, lsn));
                let Self { options: BackupOptions { source, kind, .. }, info, .. } = self;
                match Base::find(changes.keyring, source, *kind, info, begin).await? {
                    Ok(older) => {
                        notes.push(format!("an older snapshot than the last is built on: {why}"));
                        older
                    }
                    Err(_) => return Ok(Err(why)),
                }
            }
        };
        let between = changes::between(changes, &base, timeline, lsn).await?;
        Ok(between.map(|between| Ground { base: Arc::new(base), between }))
    }
}

/// Says of every file which of its pages are to be read.
fn choose_pages(listed: &mut Scan, ground: &Ground) {
    let mut damaged: HashMap<&[u8], Vec<u32>> = HashMap::new();
    for page in &ground.base.damage {
        damaged.entry(page.path.as_bytes()).or_default().push(page.block);
    }
    for task in &mut listed.files {
        let (Some(relation), Some((base_size, ..))) = (task.relation, ground.base.file(&task.name)) else { continue };
        let known = Known { relation, size: task.size, base_size, pages_per_file: RELSEG_BLOCKS };
        let damaged = damaged.get(task.name.as_slice()).map_or(&[][..], Vec::as_slice);
        task.reading = select(&known, &ground.between.map, damaged);
    }
}

async fn store_maps(epoch: &Epoch, maps: &[Map]) -> Result<(Vec<MapRef>, u64), BackupError> {
    let mut references = Vec::new();
    let mut bytes = 0;
    for map in maps {
        let entries = map.entries.len() as u64;
        let (id, len) = epoch.put_map(map).await?;
        bytes += len;
        references.push(MapRef { id, bytes: len, entries });
    }
    Ok((references, bytes))
}

/// How long a spread checkpoint may take, for people who wait for one.
fn spread_checkpoint(info: &ServerInfo) -> Option<String> {
    let number = |name| info.setting(name)?.parse::<f64>().ok();
    let seconds = number("checkpoint_completion_target")? * number("checkpoint_timeout")?;
    Some(format!("it may take {seconds:.0} s (checkpoint_completion_target × checkpoint_timeout); --fast hurries"))
}

fn stamp(now: Micros) -> String {
    jiff::Timestamp::from_microsecond(now.get()).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The pages that stayed bad and that the log of the backup does not excuse, with the names of their relations.
async fn damaged_pages(outputs: &[Output], start: Lsn, stop: Lsn, options: &BackupOptions) -> Vec<DamagedPage> {
    let mut damage = Vec::new();
    let mut names = RelationNames::new(options);
    for file in outputs.iter().flat_map(|output| &output.files) {
        let damaged: Vec<_> = file.suspects.iter().filter(|suspect| suspect.is_damaged(start, stop)).collect();
        if damaged.is_empty() {
            continue;
        }
        let relation = match file.task.relation {
            Some(relation) => names.name(relation).await,
            None => None,
        };
        let path = String::from_utf8_lossy(&file.task.name).into_owned();
        damage.extend(damaged.into_iter().map(|suspect| DamagedPage {
            path: path.clone(),
            block: suspect.block,
            reason: suspect.reason.clone(),
            relation: relation.clone(),
        }));
    }
    damage.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    damage
}
