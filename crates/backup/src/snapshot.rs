//! A backup of a running server: of everything, or of what changed since an earlier one.
//!
//! *Consistency.* The files are copied while the server writes them; the log from start to stop makes them one state.
//! The manifest is written only after all packs, maps and that log are durable in the repository.
//! *Cancellation, crash.* The server ends the backup with its session. What was stored belongs to no snapshot.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_format::manifest::{
    DamagedPage, Manifest, MapRef, Owner, SnapshotKind, Summary, Tablespace as StoredTablespace,
};
use holdfast_format::map::Map;
use holdfast_pgformat::ControlFile;
use holdfast_postgres::backup_api::{BackupSession, StartCheckpoint};
use holdfast_postgres::client::{Client, Purpose};
use holdfast_postgres::conninfo::ConnInfo;
use holdfast_postgres::server::{Right, ServerInfo, check_rights};
use holdfast_repository::{Epoch, Keyring, Lineage, Repository, random};
use holdfast_runtime::{Cancel, Phase, Progress, RateLimit};
use holdfast_types::{ByteSize, Lsn, Micros, SnapshotId, Timeline};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::BackupError;
use crate::assemble::{assemble, pack_sizes};
use crate::audit::{Audit, Mismatch};
use crate::base::Base;
use crate::changes::{self, Between};
use crate::feed::LogFeed;
use crate::fragmentation;
use crate::scan::{FileTask, Other, Scan, scan};
use crate::select::{Known, Reading, select};
use crate::worker::{FullPack, Output, Shared, work};

/// What to back up and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    pub source: String,
    /// What is asked for. Where the log does not tell what changed, a full backup is made, and says why.
    pub kind: SnapshotKind,
    pub connection: ConnInfo,
    /// Where the server's files are on this machine, if not where the server says.
    pub data_directory: Option<PathBuf>,
    pub checkpoint: StartCheckpoint,
    /// Worker threads.
    pub parallel: usize,
    /// Bytes read a second, over all workers.
    pub rate_limit: Option<ByteSize>,
    /// zstd level.
    pub level: i32,
    /// The slot of a receiver that may be running.
    pub slot: Option<String>,
    /// How long to wait for the log when somebody else brings it.
    pub log_wait: Duration,
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

const OLDEST: u32 = 13;
const NEWEST: u32 = 18;

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
    progress.begin(Phase("connecting"), 0);
    let (client, info) = connect(options).await?;
    let data_directory = find_data_directory(options, &info)?;
    let epoch = repository.begin_epoch().await?;
    let lineage = Lineage { system_id: info.system_id, segment_size: info.wal_segment_size };
    let log = LogFeed::begin(repository, options).await?;
    let job = Job { epoch, keyring, options, info, data_directory, lineage, progress, cancel };
    let outcome = job.run(client, &log).await;
    log.end().await;
    outcome
}

/// All that stays the same while a backup is made.
struct Job<'a> {
    epoch: Epoch,
    keyring: Option<&'a Keyring>,
    options: &'a BackupOptions,
    info: ServerInfo,
    data_directory: PathBuf,
    lineage: Lineage,
    progress: &'a Progress,
    cancel: &'a Cancel,
}

/// What a backup builds on.
struct Ground {
    base: Arc<Base>,
    between: Between,
}

impl Job<'_> {
    async fn run(&self, client: Client, log: &LogFeed) -> Result<BackupReport, BackupError> {
        let Self { epoch, options, info, progress, cancel, .. } = self;
        let id = SnapshotId::new(&stamp(info.now), random()).map_err(|_| BackupError::Worker)?;
        let mut notes = Vec::new();
        let base = self.find_base(&mut notes).await?;
        progress.begin(Phase("waiting for the checkpoint"), 0);
        let label = format!("holdfast {id}");
        let start = tokio::select! {
            outcome = BackupSession::start(client, &label, options.checkpoint) => outcome,
            () = cancel.cancelled() => return Err(holdfast_runtime::Cancelled.into()),
        };
        let (mut session, start) = start.map_err(BackupError::Api)?;
        tracing::info!(snapshot = %id, lsn = %start.lsn, "the backup began");
        let timeline = start.timeline.unwrap_or(info.timeline);
        let mut ground = match base {
            Some(base) => self.find_changes(base, log, timeline, start.lsn, &mut notes).await?,
            None => None,
        };

        let config = config_files(info, &self.data_directory);
        let mut listed = scan(&self.data_directory)?;
        add_config_files(&mut listed, &config);
        let mut incidents = Vec::new();
        if let Some(known) = &ground {
            choose_pages(&mut listed, known);
            incidents = self.audit(known, &listed, start.lsn).await?;
            if !incidents.is_empty() {
                notes.push("everything was read, because what changed is not what the log says".to_owned());
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
        let mut outputs = self.copy(base.clone(), &mut listed, &mut session).await?;

        progress.begin(Phase("ending the backup"), 0);
        let pg_control = read_control_file(&self.data_directory).await?;
        let stop = session.stop().await.map_err(BackupError::Api)?;
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
        let summary = Summary {
            id,
            source: options.source.clone(),
            kind: if ground.is_some() { options.kind } else { SnapshotKind::Full },
            base: base.as_ref().map(|base| base.manifest.summary.id.clone()),
            server_version: info.version.0,
            system_id: info.system_id,
            timeline: stop.start_timeline,
            start_lsn: start.lsn,
            stop_lsn: stop.lsn,
            segment_size: info.wal_segment_size,
            started_at: start.started_at,
            stopped_at: stop.stopped_at,
            from_standby: info.in_recovery,
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
        if let (Some(ground), Some(log)) = (&ground, self.log())
            && let Err(error) = changes::merge(epoch, &log, &ground.between).await
        {
            // They are merged next time.
            tracing::warn!(%error, "change maps could not be merged");
        }
        Ok(BackupReport { summary, damage, incidents, notes, phases: progress.durations() })
    }

    /// Compares some pages that are said to be unchanged with what the base has.
    async fn audit(&self, ground: &Ground, listed: &Scan, start: Lsn) -> Result<Vec<String>, BackupError> {
        let Some(keyring) = self.keyring else { return Ok(Vec::new()) };
        self.progress.begin(Phase("auditing"), 0);
        let turn = keyring.repository().snapshots(&self.options.source).await?.len() as u64;
        let logs_hints = self.info.data_checksums;
        let audit = Audit { keyring, base: &ground.base, start, logs_hints, turn };
        let mut incidents = Vec::new();
        let mismatches = match audit.run(&listed.files).await {
            Err(BackupError::Repository(error)) if error.is_damage() => {
                let base = &ground.base.manifest.summary.id;
                return Ok(vec![format!("what snapshot {base} needs is damaged: {error}")]);
            }
            found => found?,
        };
        for Mismatch { name, page, why } in mismatches {
            let relation = listed.files.iter().find(|task| task.name == name).and_then(|task| task.relation);
            let relation = match relation {
                Some(relation) => relation_name(self.options, relation).await,
                None => None,
            };
            let relation = relation.map(|relation| format!(" ({relation})")).unwrap_or_default();
            let base = &ground.base.manifest.summary.id;
            let name = String::from_utf8_lossy(&name);
            incidents.push(format!("page {page} of {name}{relation} is not what it was in snapshot {base}: {why}"));
        }
        Ok(incidents)
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
        let Some(keyring) = self.keyring.filter(|_| self.options.kind != SnapshotKind::Full) else { return Ok(None) };
        self.progress.begin(Phase("reading the snapshot before"), 0);
        let found = match Base::find(keyring, &self.options.source, self.options.kind, &self.info).await {
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
        let reaches = log.reaches(self.epoch.repository(), self.options, (self.lineage, timeline, lsn), self.cancel);
        let outcome = if reaches.await? {
            match changes::between(&changes, &base.manifest.summary, timeline, lsn).await {
                Err(BackupError::Repository(error)) if error.is_damage() => Err(error.to_string()),
                outcome => outcome?,
            }
        } else {
            Err(format!("the log had not come as far as {lsn} after {} s", self.options.log_wait.as_secs()))
        };
        match outcome {
            Ok(between) => Ok(Some(Ground { base: Arc::new(base), between })),
            Err(why) => {
                notes.push(format!("everything was read, because it is not known what changed: {why}"));
                Ok(None)
            }
        }
    }
}

/// Says of every file which of its pages are to be read.
fn choose_pages(listed: &mut Scan, ground: &Ground) {
    let mut damaged: HashMap<&[u8], Vec<u32>> = HashMap::new();
    for page in &ground.base.manifest.damage {
        damaged.entry(page.path.as_bytes()).or_default().push(page.block);
    }
    for task in &mut listed.files {
        let (Some(relation), Some((base_size, ..))) = (task.relation, ground.base.file(&task.name)) else { continue };
        let known = Known { relation, size: task.size, base_size, pages_per_file: RELSEG_BLOCKS };
        let damaged = damaged.get(task.name.as_slice()).map_or(&[][..], Vec::as_slice);
        task.reading = select(&known, &ground.between.map, damaged);
    }
}

async fn connect(options: &BackupOptions) -> Result<(Client, ServerInfo), BackupError> {
    let source_name = || options.source.clone();
    let query = |source| BackupError::Query { source_name: source_name(), source };
    let mut client = Client::connect(&options.connection, Purpose::Sql)
        .await
        .map_err(|source| BackupError::Connect { source_name: source_name(), source })?;
    let major = client.major();
    if !(OLDEST..=NEWEST).contains(&major) {
        return Err(BackupError::UnsupportedVersion { version: major });
    }
    let findings = check_rights(&mut client).await.map_err(query)?;
    let needed: Vec<_> = findings.into_iter().filter(|finding| is_needed(finding.right)).collect();
    if !needed.is_empty() {
        return Err(BackupError::Rights {
            missing: needed.iter().map(|finding| finding.right.to_string()).collect(),
            hints: needed.into_iter().map(|finding| finding.hint).collect(),
        });
    }
    let info = ServerInfo::read(&mut client).await.map_err(query)?;
    if info.block_size != 8192 {
        return Err(BackupError::UnsupportedBlockSize { block_size: info.block_size });
    }
    if info.wal_level == "minimal" {
        return Err(BackupError::WalLevel { wal_level: info.wal_level });
    }
    Ok((client, info))
}

/// Without replication a receiver or the archiver has to bring the log; that shows when it is looked for.
const fn is_needed(right: Right) -> bool {
    matches!(right, Right::BackupStart | Right::BackupStop | Right::ReadSettings)
}

/// The server's files on this machine, proved to be this server's.
fn find_data_directory(options: &BackupOptions, info: &ServerInfo) -> Result<PathBuf, BackupError> {
    let told = info.files.data_directory.as_ref().map(PathBuf::from);
    let path = options.data_directory.clone().or(told).ok_or(BackupError::DataDirectoryUnknown)?;
    let control = path.join("global/pg_control");
    let bytes = std::fs::read(&control).map_err(|source| BackupError::DataDirectory { path: path.clone(), source })?;
    // It may be torn at this moment; the identifier stands at its very beginning and never changes.
    if let Ok(parsed) = ControlFile::parse(&bytes)
        && parsed.system_id != info.system_id
    {
        return Err(BackupError::OtherCluster { path, expected: info.system_id, found: parsed.system_id });
    }
    Ok(path)
}

/// `pg_control` is rewritten in place at any time; the file is good when its checksum is.
async fn read_control_file(data_directory: &Path) -> Result<Vec<u8>, BackupError> {
    let path = data_directory.join("global/pg_control");
    let mut problem = String::new();
    for _ in 0..50 {
        let bytes = std::fs::read(&path).map_err(|source| BackupError::Read { path: path.clone(), source })?;
        match ControlFile::parse(&bytes) {
            Ok(_) => return Ok(bytes),
            Err(error) => problem = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(BackupError::ControlFile { path, problem })
}

impl Job<'_> {
    async fn copy(
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

/// Pages of a relation's segment file, 1 GiB: PostgreSQL's default, which every distribution keeps.
const RELSEG_BLOCKS: u32 = 131_072;

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

/// Settings outside the data directory, as Debian has them: without them a restored cluster does not start.
fn config_files(info: &ServerInfo, data_directory: &Path) -> Vec<PathBuf> {
    let files = &info.files;
    let named = [&files.config_file, &files.hba_file, &files.ident_file].into_iter().flatten();
    let mut paths: Vec<PathBuf> = named.chain(files.loaded.iter().flatten()).map(PathBuf::from).collect();
    paths.retain(|path| path.is_absolute() && !path.starts_with(data_directory));
    paths.sort();
    paths.dedup();
    paths
}

fn add_config_files(listed: &mut Scan, config: &[PathBuf]) {
    use std::os::unix::ffi::OsStrExt as _;
    for path in config {
        // `include` can give paths with `..` in them, which no map may contain.
        let Ok(path) = std::fs::canonicalize(path) else {
            listed.notes.push(format!("{} was left out: it is not there", path.display()));
            continue;
        };
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                let name = [b"config".as_slice(), path.as_os_str().as_bytes()].concat();
                listed.files.push(FileTask {
                    path: path.clone(),
                    name,
                    size: metadata.len(),
                    mode: metadata.mode() & 0o7777,
                    modified: metadata.mtime(),
                    relation: None,
                    reading: Reading::Whole,
                });
            }
            Ok(_) => listed.notes.push(format!("{} is not a file and was left out", path.display())),
            Err(error) => listed.notes.push(format!("{} was left out: {error}", path.display())),
        }
    }
}

/// Those whose links were copied, also if they were made since the server was asked.
fn tablespaces(info: &ServerInfo, listed: &Scan) -> Vec<StoredTablespace> {
    let stored = |other: &Other| {
        let oid = std::str::from_utf8(other.name.rsplit(|byte| *byte == b'/').next()?).ok()?.parse().ok()?;
        let name = info.tablespaces.iter().find(|space| space.oid == oid).map(|space| space.name.clone());
        let location = String::from_utf8_lossy(other.target.as_ref()?).into_owned();
        Some(StoredTablespace { oid, name: name.unwrap_or_default(), location })
    };
    listed.others.iter().filter_map(stored).collect()
}

fn parameters(info: &ServerInfo) -> Vec<(String, String)> {
    let floors = &info.floors;
    [
        ("max_connections", floors.max_connections),
        ("max_worker_processes", floors.max_worker_processes),
        ("max_wal_senders", floors.max_wal_senders),
        ("max_prepared_transactions", floors.max_prepared_transactions),
        ("max_locks_per_transaction", floors.max_locks_per_transaction),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_string()))
    .into()
}

fn owner(data_directory: &Path) -> Result<Owner, BackupError> {
    let metadata = std::fs::metadata(data_directory)
        .map_err(|source| BackupError::DataDirectory { path: data_directory.to_owned(), source })?;
    let user = nix::unistd::User::from_uid(metadata.uid().into()).ok().flatten();
    let group = nix::unistd::Group::from_gid(metadata.gid().into()).ok().flatten();
    Ok(Owner {
        user: user.map_or_else(|| metadata.uid().to_string(), |user| user.name),
        group: group.map_or_else(|| metadata.gid().to_string(), |group| group.name),
    })
}

fn stamp(now: Micros) -> String {
    jiff::Timestamp::from_microsecond(now.get()).unwrap_or_default().strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The pages that stayed bad and that the log of the backup does not excuse, with the names of their relations.
async fn damaged_pages(outputs: &[Output], start: Lsn, stop: Lsn, options: &BackupOptions) -> Vec<DamagedPage> {
    let mut damage = Vec::new();
    for file in outputs.iter().flat_map(|output| &output.files) {
        let damaged: Vec<_> = file.suspects.iter().filter(|suspect| suspect.is_damaged(start, stop)).collect();
        if damaged.is_empty() {
            continue;
        }
        let relation = match file.task.relation {
            Some(relation) => relation_name(options, relation).await,
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

/// What the catalogue calls a damaged relation. A help for people: nothing depends on it.
async fn relation_name(options: &BackupOptions, file: holdfast_pgformat::RelationFile) -> Option<String> {
    let mut client = Client::connect(&options.connection, Purpose::Sql).await.ok()?;
    let sql = format!("SELECT datname FROM pg_catalog.pg_database WHERE oid = {}", file.database);
    let database = client.query(&sql).await.ok()?.first()?.get("datname")?.to_owned();
    client.close().await;
    let connection = options.connection.clone().with_dbname(&database);
    let mut client = Client::connect(&connection, Purpose::Sql).await.ok()?;
    let sql = format!(
        "SELECT pg_catalog.pg_filenode_relation({}, {})::pg_catalog.regclass::pg_catalog.text AS name",
        if file.tablespace == holdfast_pgformat::DEFAULT_TABLESPACE { 0 } else { file.tablespace },
        file.relfilenode
    );
    let name = client.query(&sql).await.ok()?.first()?.get("name")?.to_owned();
    client.close().await;
    Some(format!("{database}: {name}"))
}
