//! Proving that everything a repository promises can be read back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use holdfast_format::ObjectKind;
use holdfast_format::codec::Decompressor;
use holdfast_format::manifest::{Manifest, Summary};
use holdfast_format::map::{FrameRef, Map};
use holdfast_format::object::FrameLocation;
use holdfast_runtime::{Phase, Progress};
use holdfast_store::{Listed, ObjectName};
use holdfast_types::{Micros, PackId, Segment};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::{KeepsLog, Keyring, Ledger, Lineage, LogObject, LogRange, LogView, Names, Prover, RepositoryError};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing that was promised is touched.
    Note,
    /// A snapshot or a stretch of log cannot be recovered, or not wholly.
    Error,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The object, or the stretch of log.
    pub object: String,
    pub problem: String,
    /// The snapshots and files that it touches.
    pub affects: Vec<String>,
}

/// What a verification looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    pub snapshots: u64,
    pub packs: u64,
    pub maps: u64,
    pub log_objects: u64,
    pub bytes: u64,
    /// Within a budget: what it did not suffice for. That was proved more recently than all that was read now.
    pub left: Option<Unread>,
    pub findings: Vec<Finding>,
}

/// What was not read this time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unread {
    pub objects: u64,
    pub bytes: u64,
    /// When the one that waits longest was proved; `None`: never.
    pub oldest: Option<Micros>,
}

/// How much is read in one run, of packs, maps and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    Bytes(u64),
    /// In percent of all that there is.
    Share(u8),
}

/// What this run reads, and what of that was good.
#[derive(Debug, Default)]
struct Run {
    /// `None`: everything.
    chosen: Option<HashSet<ObjectName>>,
    proved: Vec<ObjectName>,
}

impl Run {
    fn is_chosen(&self, name: &ObjectName) -> bool {
        self.chosen.as_ref().is_none_or(|chosen| chosen.contains(name))
    }
}

impl VerifyReport {
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// For a repository that cannot even be opened.
    pub fn unusable(error: &RepositoryError) -> Self {
        let mut report = Self::default();
        report.error(Names::CONFIG, chain(error), vec!["everything in the repository".to_owned()]);
        report
    }

    fn error(&mut self, object: impl ToString, problem: impl ToString, affects: Vec<String>) {
        let (object, problem) = (object.to_string(), problem.to_string());
        self.findings.push(Finding { severity: Severity::Error, object, problem, affects });
    }

    fn note(&mut self, object: impl ToString, problem: impl ToString) {
        let (object, problem) = (object.to_string(), problem.to_string());
        self.findings.push(Finding { severity: Severity::Note, object, problem, affects: Vec::new() });
    }
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Only this source; packs that only others use are left out.
    pub source: Option<String>,
    /// Objects read at once.
    pub parallel: usize,
    /// Looks into the log itself, which the repository keeps without understanding it.
    pub inspect_log: Option<InspectLog>,
    /// What log the promises need: what is missing of other log has expired. `None`: all of it.
    pub keeps_log: Option<KeepsLog>,
    /// How much to read: what was proved longest ago comes first. `None`: everything.
    pub budget: Option<Budget>,
    /// Who says so in the ledger. `None`: nothing is noted.
    pub by: Option<Prover>,
}

/// Says what is wrong with the plain bytes of a log object.
pub type InspectLog = fn(Lineage, &LogObject, &[u8]) -> Result<(), String>;

/// The error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What the maps say of a pack.
#[derive(Default)]
struct PackUse {
    frames: BTreeSet<FrameLocation>,
    snapshots: BTreeSet<String>,
    size: Option<u64>,
}

/// Reads, authenticates and decodes every object, and checks that nothing that a snapshot needs is missing.
pub async fn verify(
    keyring: &Keyring,
    options: &VerifyOptions,
    progress: &Progress,
) -> Result<VerifyReport, RepositoryError> {
    let repository = keyring.repository();
    let mut report = VerifyReport::default();
    progress.begin(Phase("reading manifests and maps"), 0);
    check_keys(keyring, &mut report).await?;
    let sources = match &options.source {
        Some(source) => vec![source.clone()],
        None => repository.sources().await?,
    };
    let ledger = repository.ledger().await?;
    let mut run = Run::default();
    let all = candidates(keyring, &sources).await?;
    if let Some(budget) = options.budget {
        let (chosen, left) = choose(&all, &ledger, budget);
        (run.chosen, report.left) = (Some(chosen), Some(left));
    }
    let mut uses = HashMap::new();
    for source in &sources {
        let mut summaries = Vec::new();
        for entry in repository.snapshots(source).await? {
            report.snapshots += 1;
            if let Some(manifest) =
                check_snapshot(keyring, &entry.name, source, &mut run, &mut uses, &mut report).await?
            {
                summaries.push(manifest.summary);
            }
        }
        check_log(keyring, source, &summaries, (options, progress), &mut run, &mut report).await?;
    }
    check_packs(keyring, uses, (options, progress), &mut run, &mut report).await?;
    if let Some(by) = &options.by {
        let exists: HashSet<ObjectName> = all.into_keys().collect();
        let exists = options.source.is_none().then_some(&exists);
        let now = Micros::new(jiff::Timestamp::now().as_microsecond());
        // Whoever may only read can prove things all the same.
        if let Err(error) = repository.note_proved(&ledger, by, &run.proved, exists, now).await {
            report.note(Names::PROVED, format!("what was proved could not be noted: {}", chain(&error)));
        }
    }
    report.findings.sort_by(|a, b| (b.severity, &a.object).cmp(&(a.severity, &b.object)));
    Ok(report)
}

/// Everything that may be read, with its size: what manifests that can be read refer to, and the log.
async fn candidates(keyring: &Keyring, sources: &[String]) -> Result<HashMap<ObjectName, u64>, RepositoryError> {
    let repository = keyring.repository();
    let mut all = HashMap::new();
    for source in sources {
        for entry in repository.snapshots(source).await? {
            let Ok(id) = entry.name.file_name().parse() else { continue };
            // What is wrong with it is found out below.
            let Ok(stored) = keyring.snapshot(source, &id).await else { continue };
            all.extend(stored.manifest.packs.iter().map(|pack| (Names::pack(pack.id), pack.bytes)));
            all.extend(stored.manifest.maps.iter().map(|map| (Names::map(map.id), map.bytes)));
        }
        for lineage in repository.lineages(source).await? {
            let view = repository.log(source, lineage).await?;
            let objects = view.timelines().flat_map(|timeline| view.objects(timeline));
            all.extend(objects.map(|object| (object.name.clone(), object.size)));
        }
    }
    Ok(all)
}

/// What was proved longest ago, as far as the budget goes; at least one object. Also says what is left.
fn choose(all: &HashMap<ObjectName, u64>, ledger: &Ledger, budget: Budget) -> (HashSet<ObjectName>, Unread) {
    let budget = match budget {
        Budget::Bytes(bytes) => bytes,
        Budget::Share(share) => (u128::from(all.values().sum::<u64>()) * u128::from(share) / 100) as u64,
    };
    let mut sorted: Vec<_> = all.iter().map(|(name, size)| (ledger.at(name), name, *size)).collect();
    // What was never proved is `None`, which is the smallest.
    sorted.sort_unstable();
    let (mut chosen, mut left, mut spent) = (HashSet::new(), Unread::default(), 0u64);
    for (proved, name, size) in sorted {
        if chosen.is_empty() || (left.objects == 0 && spent.saturating_add(size) <= budget) {
            spent += size;
            chosen.insert(name.clone());
        } else {
            if left.objects == 0 {
                left.oldest = proved;
            }
            (left.objects, left.bytes) = (left.objects + 1, left.bytes + size);
        }
    }
    (chosen, left)
}

/// An error that is about one object becomes a finding; one that keeps us from looking ends the verification.
fn finding_or_failure(error: RepositoryError) -> Result<String, RepositoryError> {
    match &error {
        _ if error.is_not_found() => Ok("the object is missing".to_owned()),
        _ if error.is_damage() => Ok(chain(&error)),
        // That the identities open nothing at all was found out before.
        RepositoryError::WrongKey { .. } => {
            Ok(format!("{error}, though they open others: it is damaged, or was sealed for somebody else"))
        }
        _ => Err(error),
    }
}

async fn check_keys(keyring: &Keyring, report: &mut VerifyReport) -> Result<(), RepositoryError> {
    let (mut opens_any, mut not_opened) = (false, Vec::new());
    for epoch in keyring.repository().folders(Names::KEYS).await? {
        let Ok(epoch) = epoch.parse() else { continue };
        match keyring.epoch_key(epoch).await {
            Ok(_) => opens_any = true,
            // A directory keeps the folder of a writer that was killed before it stored its key. What needs a key that
            // is gone says so itself.
            Err(RepositoryError::KeyMissing { .. }) => report
                .note(Names::keys_of(epoch), "there is no key: whoever began to write was interrupted, or it is gone"),
            Err(error) if error.is_damage() || matches!(error, RepositoryError::WrongKey { .. }) => {
                not_opened.push((epoch, error));
            }
            Err(error) => return Err(error),
        }
    }
    for (epoch, error) in not_opened {
        if !opens_any && matches!(error, RepositoryError::WrongKey { .. }) {
            return Err(error);
        }
        let problem = finding_or_failure(error)?;
        report.error(Names::keys_of(epoch), problem, vec!["everything sealed in this epoch".to_owned()]);
    }
    Ok(())
}

async fn check_snapshot(
    keyring: &Keyring,
    name: &ObjectName,
    source: &str,
    run: &mut Run,
    uses: &mut HashMap<PackId, PackUse>,
    report: &mut VerifyReport,
) -> Result<Option<Manifest>, RepositoryError> {
    let affects = vec![format!("snapshot {}", name.file_name())];
    let Ok(id) = name.file_name().parse() else {
        report.error(name, "the name is no snapshot id", affects);
        return Ok(None);
    };
    let manifest = match keyring.snapshot(source, &id).await {
        Ok(stored) => stored.manifest,
        Err(error) => {
            report.error(name, finding_or_failure(error)?, affects);
            return Ok(None);
        }
    };
    for pack in &manifest.packs {
        let usage = uses.entry(pack.id).or_default();
        usage.size = Some(pack.bytes);
        usage.snapshots.insert(format!("snapshot {id}"));
    }
    for map in &manifest.maps {
        let map_name = Names::map(map.id);
        report.maps += 1;
        if !run.is_chosen(&map_name) {
            if let Err(error) = keyring.repository().store().size(&map_name).await {
                report.error(&map_name, finding_or_failure(error.into())?, affects.clone());
            }
            continue;
        }
        report.bytes += map.bytes;
        match keyring.map(map.id).await {
            Ok(map) => {
                run.proved.push(map_name);
                note_uses(&map, &manifest, uses, name, report);
            }
            Err(error) => report.error(map_name, finding_or_failure(error)?, affects.clone()),
        }
    }
    for page in &manifest.damage {
        let problem =
            format!("block {} of {} was damaged in the database already: {}", page.block, page.path, page.reason);
        report.note(name, problem);
    }
    Ok(Some(manifest))
}

fn note_uses(
    map: &Map,
    manifest: &Manifest,
    uses: &mut HashMap<PackId, PackUse>,
    name: &ObjectName,
    report: &mut VerifyReport,
) {
    let known: BTreeSet<PackId> = manifest.packs.iter().map(|pack| pack.id).collect();
    for FrameRef { pack, location } in &map.frames {
        let Some(pack) = map.packs.get(*pack as usize) else { continue };
        if !known.contains(&pack.id) {
            let affects = vec![format!("snapshot {}", manifest.summary.id)];
            report.error(name, format!("a map uses pack {}, which the manifest does not list", pack.id), affects);
        }
        let frames = &mut uses.entry(pack.id).or_default().frames;
        frames.insert(*location);
        frames.extend(pack.hashes);
    }
}

async fn check_packs(
    keyring: &Keyring,
    mut uses: HashMap<PackId, PackUse>,
    (options, progress): (&VerifyOptions, &Progress),
    run: &mut Run,
    report: &mut VerifyReport,
) -> Result<(), RepositoryError> {
    let stored: BTreeMap<ObjectName, Listed> = keyring
        .repository()
        .list(Names::PACKS)
        .await?
        .into_iter()
        .map(|listed| (listed.name.clone(), listed))
        .collect();
    let mut work = Vec::new();
    let mut unused = (0, 0);
    for (name, listed) in &stored {
        let usage = name.file_name().parse().ok().and_then(|id: PackId| uses.remove(&id));
        match usage {
            Some(usage) if run.is_chosen(name) => work.push((listed.clone(), usage)),
            Some(_) => report.packs += 1,
            None => unused = (unused.0 + 1, unused.1 + listed.size),
        }
    }
    for (id, usage) in uses {
        report.error(Names::pack(id), "the pack is missing", usage.snapshots.into_iter().collect());
    }
    if unused.0 > 0 && options.source.is_none() {
        let size = holdfast_types::ByteSize::new(unused.1);
        let problem = format!(
            "packs that belong to no snapshot: {} ({size}); of a backup under way, or of one that failed",
            unused.0
        );
        report.note(Names::PACKS, problem);
    }
    progress.begin(Phase("verifying packs"), work.iter().map(|(listed, _)| listed.size).sum());
    let gate = Arc::new(Semaphore::new(options.parallel.max(1)));
    let mut tasks = JoinSet::new();
    for (listed, usage) in work {
        report.packs += 1;
        report.bytes += listed.size;
        let (keyring, gate, progress) = (keyring.clone(), Arc::clone(&gate), progress.clone());
        tasks.spawn(async move {
            let _permit = gate.acquire_owned().await;
            let outcome = check_pack(&keyring, &listed, &usage).await;
            progress.add(listed.size);
            (listed, usage, outcome)
        });
    }
    while let Some(finished) = tasks.join_next().await {
        let Ok((listed, usage, outcome)) = finished else { continue };
        match outcome {
            Ok(()) => run.proved.push(listed.name),
            Err(error) => {
                report.error(&listed.name, finding_or_failure(error)?, usage.snapshots.into_iter().collect());
            }
        }
    }
    Ok(())
}

async fn check_pack(keyring: &Keyring, listed: &Listed, usage: &PackUse) -> Result<(), RepositoryError> {
    let name = listed.name.clone();
    if usage.size.is_some_and(|size| size != listed.size) {
        return Err(RepositoryError::content(name, "the size is not what the manifest says"));
    }
    let mut object = keyring.open(ObjectKind::Pack, &name).await?;
    if let Some(stray) = usage.frames.iter().find(|frame| object.frames.get(frame.index as usize) != Some(frame)) {
        let problem =
            format!("a map expects frame {} at byte {}, where the pack has another", stray.index, stray.offset);
        return Err(RepositoryError::content(name, problem));
    }
    let decoded = tokio::task::spawn_blocking(move || {
        let mut decompressor = Decompressor::new();
        let mut plain = Vec::new();
        for index in 0..object.frames.len() {
            plain.clear();
            object.frame(index, &mut decompressor, &mut plain)?;
        }
        Ok(())
    });
    match decoded.await {
        Ok(outcome) => outcome.map_err(|source| RepositoryError::object(listed.name.clone(), source)),
        Err(panic) => Err(RepositoryError::content(listed.name.clone(), panic)),
    }
}

async fn check_log(
    keyring: &Keyring,
    source: &str,
    snapshots: &[Summary],
    (options, progress): (&VerifyOptions, &Progress),
    run: &mut Run,
    report: &mut VerifyReport,
) -> Result<(), RepositoryError> {
    let repository = keyring.repository();
    let mut lineages = repository.lineages(source).await?;
    for snapshot in snapshots {
        let lineage = Lineage { system_id: snapshot.system_id, segment_size: snapshot.segment_size };
        if !lineages.contains(&lineage) {
            lineages.push(lineage);
        }
    }
    for lineage in lineages {
        let view = repository.log(source, lineage).await?;
        let damaged = read_all_log(keyring, &view, (options, progress), run, report).await?;
        check_reach(&view, snapshots, &damaged, options.keeps_log.as_ref(), report);
        check_partials(keyring, source, lineage, report).await?;
        check_changes(keyring, source, lineage, &view, report).await?;
        for timeline in &view.histories {
            if let Err(error) = keyring.history(source, lineage, *timeline).await {
                let name = Names::history(source, lineage, *timeline);
                report.error(name, finding_or_failure(error)?, vec![format!("recovery along timeline {timeline}")]);
            }
        }
    }
    Ok(())
}

/// Change maps save work, and the log tells the same: a damaged one is no loss.
async fn check_changes(
    keyring: &Keyring,
    source: &str,
    lineage: Lineage,
    view: &LogView,
    report: &mut VerifyReport,
) -> Result<(), RepositoryError> {
    for timeline in view.timelines() {
        for stored in keyring.repository().change_maps(source, lineage, timeline).await? {
            report.log_objects += 1;
            match keyring.changes(&stored).await {
                Ok(plain) => report.bytes += plain.len() as u64,
                // Merged into another since it was listed.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    let problem = finding_or_failure(error)?;
                    report.note(&stored.name, format!("{problem}; backups read the log in its place"));
                }
            }
        }
    }
    Ok(())
}

/// The unfinished last segments of timelines, which recovery takes where there is nothing better.
async fn check_partials(
    keyring: &Keyring,
    source: &str,
    lineage: Lineage,
    report: &mut VerifyReport,
) -> Result<(), RepositoryError> {
    for listed in keyring.repository().list(&format!("{}/{source}/{lineage}", Names::PARTIAL)).await? {
        let file = listed.name.file_name().strip_suffix(".partial").unwrap_or_default();
        let Ok(segment) = Segment::parse(file, lineage.segment_size) else {
            report.error(&listed.name, "the name is no partial segment's", Vec::new());
            continue;
        };
        report.log_objects += 1;
        report.bytes += listed.size;
        let size = lineage.segment_size;
        let range = LogRange { start: segment.start(size), end: segment.end(size) };
        let object = LogObject { name: listed.name, kind: ObjectKind::WalSegment, segment, range, size: listed.size };
        if let Err(error) = keyring.read_log(&object).await {
            let affects = vec![format!("recovery to the end of timeline {}", segment.timeline())];
            report.error(&object.name, finding_or_failure(error)?, affects);
        }
    }
    Ok(())
}

async fn read_all_log(
    keyring: &Keyring,
    view: &LogView,
    (options, progress): (&VerifyOptions, &Progress),
    run: &mut Run,
    report: &mut VerifyReport,
) -> Result<BTreeSet<ObjectName>, RepositoryError> {
    let objects = view.timelines().flat_map(|timeline| view.objects(timeline));
    let (objects, others): (Vec<LogObject>, Vec<_>) = objects.cloned().partition(|object| run.is_chosen(&object.name));
    report.log_objects += others.len() as u64;
    progress.begin(Phase("verifying log"), objects.iter().map(|object| object.size).sum());
    let gate = Arc::new(Semaphore::new(options.parallel.max(1)));
    let mut tasks = JoinSet::new();
    for object in objects {
        report.log_objects += 1;
        report.bytes += object.size;
        let (keyring, gate, progress) = (keyring.clone(), Arc::clone(&gate), progress.clone());
        let (lineage, inspect) = (view.lineage, options.inspect_log);
        tasks.spawn(async move {
            let _permit = gate.acquire_owned().await;
            let outcome = match keyring.read_log(&object).await {
                // A piece may have gone because its segment became whole since the listing.
                Err(error) if error.is_not_found() && object.kind == ObjectKind::WalPiece => Ok(()),
                Ok((plain, _)) => match inspect.map_or(Ok(()), |inspect| inspect(lineage, &object, &plain)) {
                    Ok(()) => Ok(()),
                    Err(problem) => Err(RepositoryError::content(&object.name, problem)),
                },
                Err(error) => Err(error),
            };
            progress.add(object.size);
            (object, outcome)
        });
    }
    let mut damaged = BTreeSet::new();
    while let Some(finished) = tasks.join_next().await {
        let Ok((object, outcome)) = finished else { continue };
        match outcome {
            Ok(()) => run.proved.push(object.name),
            Err(error) => {
                let affects =
                    vec![format!("recovery on timeline {} past {}", object.segment.timeline(), object.range.start)];
                report.error(&object.name, finding_or_failure(error)?, affects);
                damaged.insert(object.name);
            }
        }
    }
    Ok(damaged)
}

fn check_reach(
    view: &LogView,
    snapshots: &[Summary],
    damaged: &BTreeSet<ObjectName>,
    keeps_log: Option<&KeepsLog>,
    report: &mut VerifyReport,
) {
    for timeline in view.timelines() {
        for gap in view.coverage(timeline).gaps() {
            let what = format!("log of {} timeline {timeline} from {} to {}", view.source, gap.start, gap.end);
            if keeps_log.is_some_and(|keeps| !keeps.says(&view.source, view.lineage, timeline, gap)) {
                report.note(what, "this stretch of log has gone, and no promise needs it");
                continue;
            }
            let affects = vec![format!("recovery past {} from snapshots before it", gap.start)];
            report.error(what, "this stretch of log is missing", affects);
        }
    }
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.system_id == view.lineage.system_id) {
        let affects = vec![format!("snapshot {}", snapshot.id)];
        let what = format!("log of {} from {} to {}", view.source, snapshot.start_lsn, snapshot.stop_lsn);
        // Recovery reads whole segments: the one in which the snapshot began from its beginning.
        let size = view.lineage.segment_size;
        let first = Segment::containing(snapshot.timeline, snapshot.start_lsn, size).start(size);
        if !view.coverage(snapshot.timeline).covers(first, snapshot.stop_lsn) {
            report.error(&what, "the log that makes the snapshot consistent is missing", affects.clone());
        }
        let needed = view
            .objects(snapshot.timeline)
            .iter()
            .filter(|object| object.range.end > snapshot.start_lsn && object.range.start < snapshot.stop_lsn);
        if needed.into_iter().any(|object| damaged.contains(&object.name)) {
            report.error(&what, "the log that makes the snapshot consistent is damaged", affects);
        }
    }
}
