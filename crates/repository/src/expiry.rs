//! Removing what nobody needs any more, in two steps (decision 0018).
//!
//! What is to go is named in a *notice* first, `expired/GENERATION`. A later run removes it, at least [`GRACE`] later by the
//! store's own clock, if it still is to go and nothing that exists by then refers to it. Whoever writes looks at the notices
//! last of all before a manifest is made, and does not refer to what they name.
//!
//! *Concurrency.* Nobody holds a lock. A manifest that refers to something was made less than half of the grace after a look that
//! did not find it named, so before the grace of any notice that does; it is there when manifests are listed for the removal.
//! Notices stay for as long as a backup may take, so that one which began before them finds them.
//! *Crash.* Manifests are removed first, notices last: what was not removed is removed, or named again, by the next run.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use holdfast_format::manifest::{Manifest, Summary};
use holdfast_runtime::{Phase, Progress};
use holdfast_store::{Created, Listed, ObjectName};
use holdfast_types::{Micros, PackId, Segment, SnapshotId, Timeline};
use serde::{Deserialize, Serialize};

use crate::{Keyring, Lineage, LogRange, Names, Pin, Repository, RepositoryError, random};

/// How long something is named before it is removed.
pub const GRACE: Duration = Duration::from_hours(24);
/// A backup that takes longer fails: what it stored is no longer told from what a writer that died has left.
pub const LONGEST_BACKUP: Duration = Duration::from_hours(7 * 24);
/// A look at the notices is good for so long.
pub(crate) const LOOK_LASTS: Duration = Duration::from_hours(12);

/// The names of what is to go. Not sealed: a writer that can open nothing must be able to read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Notice {
    names: BTreeSet<String>,
}

impl Notice {
    /// A line with the BLAKE3 hash of the rest, which is JSON. It tells of damage, not of forgery.
    fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let text = serde_json::to_string(self)?;
        Ok(format!("{}\n{text}\n", blake3::hash(text.as_bytes()).to_hex()).into_bytes())
    }

    fn decode(bytes: &[u8]) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let text = std::str::from_utf8(bytes)?;
        let (hash, text) = text.split_once('\n').ok_or("it has no checksum")?;
        let text = text.strip_suffix('\n').ok_or("it has no end")?;
        if blake3::hash(text.as_bytes()).to_hex().as_str() != hash {
            return Err("its checksum does not match its content".into());
        }
        Ok(serde_json::from_str(text)?)
    }
}

/// A notice in the repository.
struct Posted {
    name: ObjectName,
    at: SystemTime,
    notice: Notice,
}

/// What is named by any notice.
#[derive(Clone, Debug, Default)]
pub struct Doomed(HashSet<String>);

impl Doomed {
    /// Whether a backup had better not build on a snapshot.
    pub fn has_snapshot(&self, source: &str, id: &SnapshotId) -> bool {
        self.0.contains(Names::snapshot(source, id).as_str())
    }

    fn find(&self, manifest: &Manifest) -> Option<ObjectName> {
        objects_of(manifest).find(|name| self.0.contains(name.as_str()))
    }
}

fn objects_of(manifest: &Manifest) -> impl Iterator<Item = ObjectName> + '_ {
    let packs = manifest.packs.iter().map(|pack| Names::pack(pack.id));
    packs.chain(manifest.maps.iter().map(|map| Names::map(map.id)))
}

impl Repository {
    /// What is named for removal.
    pub async fn doomed(&self) -> Result<Doomed, RepositoryError> {
        let posted = self.posted().await?;
        Ok(Doomed(posted.into_iter().flat_map(|posted| posted.notice.names).collect()))
    }

    pub(crate) async fn refuse_doomed(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        match self.doomed().await?.find(manifest) {
            Some(name) => Err(RepositoryError::Expiring { id: manifest.summary.id.clone(), name: name.to_string() }),
            None => Ok(()),
        }
    }

    /// Everything that a manifest refers to must be there.
    pub(crate) async fn require(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let packs: Vec<_> = manifest.packs.iter().map(|pack| (pack.id, Some(pack.bytes))).collect();
        self.require_packs(packs).await?;
        for map in &manifest.maps {
            self.store.size(&Names::map(map.id)).await?;
        }
        Ok(())
    }

    async fn posted(&self) -> Result<Vec<Posted>, RepositoryError> {
        let mut posted = Vec::new();
        for Listed { name, modified, .. } in self.list(Names::EXPIRED).await? {
            let bytes = match self.read(&name).await {
                // Its time was over since it was listed.
                Err(error) if error.is_not_found() => continue,
                bytes => bytes?,
            };
            let notice = Notice::decode(&bytes).map_err(|error| RepositoryError::content(&name, error))?;
            posted.push(Posted { name, at: modified, notice });
        }
        Ok(posted)
    }

    /// What the store's clock says: it stamps an object that is made for that.
    async fn store_time(&self) -> Result<SystemTime, RepositoryError> {
        let name = Names::probe(holdfast_types::RepositoryId::new(random()));
        self.create(&name, Bytes::from_static(b"what time is it?")).await?;
        let listed = self.list(Names::PROBE).await?;
        let now = listed.iter().find(|listed| listed.name == name).map(|listed| listed.modified);
        let now = now.ok_or_else(|| RepositoryError::content(&name, "it was made and is not listed"))?;
        for listed in listed {
            // Those who died between the two leave theirs.
            let is_left = now.duration_since(listed.modified).is_ok_and(|age| age > LONGEST_BACKUP);
            if is_left || listed.name == name {
                self.delete(&listed.name).await?;
            }
        }
        Ok(now)
    }
}

/// A snapshot on whose fate is to be decided.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub source: String,
    pub name: ObjectName,
    pub summary: Summary,
    /// By the store's clock, or by that of the writer if it says earlier, as for what was copied.
    pub taken_at: Micros,
    pub pin: Option<Pin>,
    /// Everything that it needs was proved by a verification. Not looked for unless somebody asks.
    pub is_verified: bool,
}

/// Says whether log has to stay: of which source and cluster, on which timeline, from where to where.
#[derive(Clone)]
pub struct KeepsLog(Arc<Says>);

type Says = dyn Fn(&str, Lineage, Timeline, LogRange) -> bool + Send + Sync;

impl KeepsLog {
    pub fn new(keeps: impl Fn(&str, Lineage, Timeline, LogRange) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(keeps))
    }

    pub fn says(&self, source: &str, lineage: Lineage, timeline: Timeline, range: LogRange) -> bool {
        (self.0)(source, lineage, timeline, range)
    }
}

impl std::fmt::Debug for KeepsLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeepsLog")
    }
}

/// What was decided.
#[derive(Clone, Debug)]
pub struct Fate {
    /// The manifests of the snapshots that go.
    pub goes: HashSet<ObjectName>,
    pub keeps_log: KeepsLog,
}

/// How much of something there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub snapshots: u64,
    /// All others: packs, maps, log.
    pub objects: u64,
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, name: &ObjectName, bytes: u64) {
        let is_snapshot = name.as_str().starts_with(Names::SNAPSHOTS);
        self.snapshots += u64::from(is_snapshot);
        self.objects += u64::from(!is_snapshot);
        self.bytes += bytes;
    }
}

/// What a run has done, or would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Expired {
    /// Named now, to be removed after the grace.
    pub named: Tally,
    /// Named before, and not for long enough yet.
    pub waiting: Tally,
    pub removed: Tally,
}

/// Packs and maps.
#[derive(Default)]
struct Uses {
    packs: HashSet<PackId>,
    maps: HashSet<PackId>,
}

impl Uses {
    fn add(&mut self, manifest: &Manifest) {
        self.packs.extend(manifest.packs.iter().map(|pack| pack.id));
        self.maps.extend(manifest.maps.iter().map(|map| map.id));
    }
}

/// What is known of everything that may go.
struct Sorting {
    now: SystemTime,
    /// Named for long enough, and named for less.
    due: HashSet<String>,
    waiting: HashSet<String>,
    /// What this run names, and removes.
    named: BTreeSet<String>,
    removed: Vec<ObjectName>,
    report: Expired,
}

impl Sorting {
    fn is_older(&self, listed: &Listed, than: Duration) -> bool {
        self.now.duration_since(listed.modified).is_ok_and(|age| age > than)
    }

    /// Something that nobody needs any more: it is removed if it was named for long enough, and if what still refers to it goes
    /// with it.
    fn goes(&mut self, name: &ObjectName, bytes: u64, is_free: bool) {
        if is_free && self.due.contains(name.as_str()) {
            self.report.removed.add(name, bytes);
            self.removed.push(name.clone());
        } else if self.due.contains(name.as_str()) || self.waiting.contains(name.as_str()) {
            self.report.waiting.add(name, bytes);
        } else if self.named.insert(name.to_string()) {
            self.report.named.add(name, bytes);
        }
    }
}

/// Names what is to go by now, and removes what was named before and still is to go.
///
/// `decide` is asked once, with all snapshots and the time. `needs_proof`: it wants to know which are verified.
pub async fn expire(
    keyring: &Keyring,
    decide: impl Fn(&[Candidate], Micros) -> Fate,
    needs_proof: bool,
    is_dry_run: bool,
    progress: &Progress,
) -> Result<Expired, RepositoryError> {
    let repository = keyring.repository();
    progress.begin(Phase("reading manifests"), 0);
    let began = repository.clock.now();
    let now = if is_dry_run { SystemTime::now() } else { repository.store_time().await? };
    let posted = repository.posted().await?;
    // Behind the time: what refers to something that was named for long enough by then is there.
    let mut candidates = candidates(repository).await?;
    if needs_proof {
        let ledger = repository.ledger().await?;
        for candidate in &mut candidates {
            let stored = keyring.snapshot(&candidate.source, &candidate.summary.id).await;
            let manifest = stored.map_err(unreadable(&candidate.name))?.manifest;
            candidate.is_verified = ledger.has_proved(&manifest);
        }
    }
    let fate = decide(&candidates, micros(now));
    let mut sorting = Sorting {
        now,
        due: HashSet::new(),
        waiting: HashSet::new(),
        named: BTreeSet::new(),
        removed: Vec::new(),
        report: Expired::default(),
    };
    let age = |at: SystemTime| now.duration_since(at).unwrap_or_default();
    for Posted { at, notice, .. } in &posted {
        let names = if age(*at) >= GRACE { &mut sorting.due } else { &mut sorting.waiting };
        names.extend(notice.names.iter().cloned());
    }
    let (mut kept, mut going) = (Uses::default(), Uses::default());
    for candidate in &candidates {
        let stored =
            keyring.snapshot(&candidate.source, &candidate.summary.id).await.map_err(unreadable(&candidate.name))?;
        if fate.goes.contains(&candidate.name) {
            if !sorting.due.contains(candidate.name.as_str()) {
                going.add(&stored.manifest);
            }
            sorting.goes(&candidate.name, 0, true);
        } else {
            kept.add(&stored.manifest);
        }
    }
    let sources = repository.sources().await?;
    for source in &sources {
        // One that goes on with an interrupted backup will refer to all of this.
        for part in keyring.unfinished(source).await? {
            kept.packs.extend(part.packs.iter().map(|pack| pack.id));
            kept.maps.insert(part.map.id);
        }
        for listed in repository.list(&Names::unfinished_of(source)).await? {
            if sorting.is_older(&listed, LONGEST_BACKUP + GRACE) {
                sorting.goes(&listed.name, listed.size, true);
            }
        }
    }
    for (folder, kept, going) in [(Names::PACKS, &kept.packs, &going.packs), (Names::MAPS, &kept.maps, &going.maps)] {
        let sort = |listed: Listed| {
            // What has another name is not ours.
            let Ok(id) = listed.name.file_name().parse::<PackId>() else { return };
            if kept.contains(&id) {
                return;
            }
            let is_going = going.contains(&id);
            let is_named = sorting.due.contains(listed.name.as_str()) || sorting.waiting.contains(listed.name.as_str());
            // What no manifest refers to may be of a backup under way.
            if is_going || is_named || sorting.is_older(&listed, LONGEST_BACKUP + GRACE) {
                sorting.goes(&listed.name, listed.size, !is_going);
            }
        };
        repository.each(folder, sort).await?;
    }
    for source in &sources {
        sort_log(repository, source, &fate.keeps_log, &mut sorting).await?;
    }
    if is_dry_run {
        return Ok(sorting.report);
    }
    carry_out(repository, sorting, &posted, age, began, progress).await
}

async fn carry_out(
    repository: &Repository,
    sorting: Sorting,
    posted: &[Posted],
    age: impl Fn(SystemTime) -> Duration,
    began: Duration,
    progress: &Progress,
) -> Result<Expired, RepositoryError> {
    let Sorting { mut named, mut removed, report, .. } = sorting;
    // Named again: who found it before this run must find the notice for as long as it may take to refer to it.
    named.extend(removed.iter().map(ToString::to_string));
    if !named.is_empty() {
        let newest = posted.iter().filter_map(|posted| posted.name.file_name().parse::<u32>().ok()).max().unwrap_or(0);
        let name = Names::expired(newest + 1);
        let bytes = Notice { names: named }.encode().map_err(|error| RepositoryError::content(&name, error))?;
        if repository.create(&name, Bytes::from(bytes)).await? == Created::Exists {
            // Somebody else does the same at this moment.
            return Err(RepositoryError::Conflict { name: name.to_string() });
        }
    }
    progress.begin(Phase("removing"), removed.len() as u64);
    // Manifests first: a snapshot that lacks something must not exist.
    removed.sort_by_key(|name| !name.as_str().starts_with(Names::SNAPSHOTS));
    for name in removed {
        // What was decided long ago, before this machine slept, may have changed.
        if repository.clock.now().saturating_sub(began) > LOOK_LASTS {
            return Err(RepositoryError::Slept);
        }
        repository.delete(&name).await?;
        progress.add(1);
    }
    for Posted { name, at, .. } in posted {
        if age(*at) > LONGEST_BACKUP + GRACE {
            repository.delete(name).await?;
        }
    }
    Ok(report)
}

/// All snapshots of a repository.
pub async fn candidates(repository: &Repository) -> Result<Vec<Candidate>, RepositoryError> {
    let mut candidates = Vec::new();
    for source in repository.folders(Names::SNAPSHOTS).await? {
        let pins = repository.pins(&source).await?;
        for entry in repository.snapshots(&source).await? {
            let summary = entry.summary.map_err(unreadable(&entry.name))?;
            candidates.push(Candidate {
                source: source.clone(),
                taken_at: summary.stopped_at.min(micros(entry.stored_at)),
                pin: pins.get(&summary.id).cloned(),
                is_verified: false,
                name: entry.name,
                summary,
            });
        }
    }
    Ok(candidates)
}

fn unreadable(name: &ObjectName) -> impl FnOnce(RepositoryError) -> RepositoryError {
    let name = name.to_string();
    |error| {
        if error.is_damage() { RepositoryError::Unreadable { name, source: Box::new(error) } } else { error }
    }
}

fn micros(at: SystemTime) -> Micros {
    let since = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    match at.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(time) => Micros::new(since(time)),
        Err(before) => Micros::new(-since(before.duration())),
    }
}

async fn sort_log(
    repository: &Repository,
    source: &str,
    keeps_log: &KeepsLog,
    sorting: &mut Sorting,
) -> Result<(), RepositoryError> {
    for lineage in repository.lineages(source).await? {
        for folder in [Names::WAL, Names::PIECES, Names::PARTIAL, Names::CHANGES] {
            let sort = |listed: Listed| {
                // What has another name is not ours.
                if let Some((timeline, range)) = place(folder, lineage, &listed.name)
                    && !keeps_log.says(source, lineage, timeline, range)
                {
                    sorting.goes(&listed.name, listed.size, true);
                }
            };
            repository.each(&format!("{folder}/{source}/{lineage}"), sort).await?;
        }
    }
    Ok(())
}

/// The log that an object is of.
fn place(folder: &str, lineage: Lineage, name: &ObjectName) -> Option<(Timeline, LogRange)> {
    let size = lineage.segment_size;
    let parent = || name.as_str().rsplit('/').nth(1);
    let whole = |file: &str| {
        let segment = Segment::parse(file, size).ok()?;
        Some((segment.timeline(), LogRange { start: segment.start(size), end: segment.end(size) }))
    };
    match folder {
        Names::WAL => whole(name.file_name()),
        Names::PARTIAL => whole(name.file_name().strip_suffix(".partial")?),
        folder => {
            let (start, end) = Names::parse_range(name.file_name())?;
            let timeline = if folder == Names::PIECES {
                Segment::parse(parent()?, size).ok()?.timeline()
            } else {
                Timeline::new(u32::from_str_radix(parent()?, 16).ok()?)
            };
            Some((timeline, LogRange { start, end }))
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_types::{Lsn, SegmentSize, SystemId};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn log_is_known_by_its_name() {
        let lineage = Lineage { system_id: SystemId::new(7), segment_size: SegmentSize::DEFAULT };
        let (timeline, segment) = (Timeline::new(3), Segment::new(Timeline::new(3), 5));
        let (start, end) = (Lsn::new(0x500_1000), Lsn::new(0x500_2000));
        let whole = LogRange { start: segment.start(SegmentSize::DEFAULT), end: segment.end(SegmentSize::DEFAULT) };
        for (folder, name, range) in [
            (Names::WAL, Names::segment("chat", lineage, segment), whole),
            (Names::PARTIAL, Names::partial("chat", lineage, segment), whole),
            (Names::PIECES, Names::piece("chat", lineage, segment, start, end), LogRange { start, end }),
            (Names::CHANGES, Names::changes("chat", lineage, timeline, start, end), LogRange { start, end }),
        ] {
            assert_eq!(place(folder, lineage, &name), Some((timeline, range)), "{name}");
            assert_eq!(place(folder, lineage, &"wal/chat/x/other".parse().unwrap()), None);
        }
    }

    proptest! {
        #[test]
        fn notices_are_read_as_they_were_written(names in prop::collection::btree_set("[a-z/0-9]{1,20}", 0..20)) {
            let notice = Notice { names };
            let bytes = notice.encode().unwrap();
            prop_assert_eq!(Notice::decode(&bytes).unwrap(), notice);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                prop_assert!(Notice::decode(&damaged).is_err(), "byte {}", at);
            }
        }

        #[test]
        fn whatever_lies_there_is_no_notice(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Notice::decode(&bytes).is_err());
        }
    }
}
