//! Expiry beside backups and copies that know nothing of it, in simulated time: chance says how long each operation of the store
//! takes, which is mostly seconds and now and then days, who dies, and how wrong their clocks are. `HOLDFAST_ROUNDS` and
//! `HOLDFAST_SEED` choose how often and from where.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

mod shared;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_format::manifest::{MapRef, PackSize};
use holdfast_format::map::Map;
use holdfast_repository::{
    Candidate, Expired, Fate, Identities, KeepsLog, Keyring, Names, NewIdentity, Repository, RepositoryError, copy,
    expire, random,
};
use holdfast_runtime::{Clock, Progress};
use holdfast_store::{Cause, Created, Listed, ObjectName, Store, StoreError};
use holdfast_types::{Micros, PackId, SnapshotId};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const BEGIN: Duration = Duration::from_secs(1_795_000_000);

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

struct State {
    objects: BTreeMap<ObjectName, (Bytes, Duration)>,
    chance: Chance,
    /// What the snapshots that were reported as made refer to.
    made: HashMap<ObjectName, Vec<ObjectName>>,
    deleted: u64,
    /// Backups that were made, and those that were refused at their end.
    done: u64,
    refused: u64,
    /// Who still writes.
    writers: usize,
    /// Nothing takes long any more.
    is_calm: bool,
}

impl State {
    /// Of these snapshots, those that exist are whole, and have to stay so.
    fn look(&mut self, snapshots: &HashMap<ObjectName, Vec<ObjectName>>) {
        for (name, needed) in snapshots.iter().filter(|(name, _)| self.objects.contains_key(*name)) {
            let missing = needed.iter().find(|needed| !self.objects.contains_key(*needed));
            assert!(missing.is_none(), "{name} was made, and {} is not there", missing.unwrap());
            self.made.insert(name.clone(), needed.clone());
        }
    }
}

/// The store that all share. The time is Tokio's, which stands still while anybody does something.
#[derive(Clone)]
struct World {
    state: Arc<Mutex<State>>,
    began: Instant,
}

impl World {
    fn new(seed: u64) -> Self {
        let (objects, made) = (BTreeMap::new(), HashMap::new());
        let state =
            State { objects, chance: Chance(seed), made, deleted: 0, done: 0, refused: 0, writers: 0, is_calm: false };
        Self { state: Arc::new(Mutex::new(state)), began: Instant::now() }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap())
    }

    fn below(&self, bound: u64) -> u64 {
        self.with(|state| state.chance.below(bound))
    }

    fn now(&self) -> Duration {
        BEGIN + self.began.elapsed()
    }

    async fn pass(&self, bound: u64) {
        sleep(Duration::from_secs(self.below(bound))).await;
    }

    async fn repository(&self, lives: u64) -> Result<Repository, RepositoryError> {
        let world = self.clone();
        let clock = Clock::simulated(move || world.now());
        Ok(Repository::open(Arc::new(Process { world: self.clone(), lives: Mutex::new(lives) }))
            .await?
            .with_clock(clock))
    }
}

/// The store as one process sees it, which dies after so many operations.
struct Process {
    world: World,
    lives: Mutex<u64>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Process")
    }
}

impl Process {
    fn error(&self, name: &str, cause: Cause) -> StoreError {
        StoreError { operation: "use", name: name.to_owned(), location: self.location(), cause }
    }

    async fn turn(&self, name: &str) -> Result<(), StoreError> {
        let is_calm = self.world.with(|state| state.is_calm);
        let bound = match self.world.below(150) {
            // The machine was put to sleep.
            0 if !is_calm => 3 * DAY,
            1..4 if !is_calm => 11 * HOUR,
            _ if !is_calm => 60,
            _ => 2,
        };
        self.world.pass(bound).await;
        let mut lives = self.lives.lock().unwrap();
        match lives.checked_sub(1) {
            Some(left) => *lives = left,
            None => return Err(self.error(name, Cause::Denied(io::Error::other("dead")))),
        }
        Ok(())
    }

    fn object<T>(&self, name: &ObjectName, read: impl FnOnce(&(Bytes, Duration)) -> T) -> Result<T, StoreError> {
        let found = self.world.with(|state| state.objects.get(name).map(read));
        found.ok_or_else(|| self.error(name.as_str(), Cause::NotFound))
    }
}

#[async_trait]
impl Store for Process {
    fn location(&self) -> String {
        "the model".to_owned()
    }

    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        self.turn(name.as_str()).await?;
        let now = self.world.now();
        Ok(self.world.with(|state| {
            if state.objects.contains_key(name) {
                return Created::Exists;
            }
            state.objects.insert(name.clone(), (bytes, now));
            Created::New
        }))
    }

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.turn(name.as_str()).await?;
        self.object(name, |(bytes, _)| bytes.clone())
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.turn(name.as_str()).await?;
        self.object(name, |(bytes, _)| bytes.slice(range.start as usize..range.end as usize))
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.turn(name.as_str()).await?;
        self.object(name, |(bytes, _)| bytes.len() as u64)
    }

    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.turn(folder).await?;
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        Ok(self.world.with(|state| {
            let here = state.objects.iter().filter(|(name, _)| name.as_str().starts_with(&prefix));
            let listed = here.filter(|(name, _)| after.is_none_or(|after| *name > after)).map(|(name, (bytes, at))| {
                Listed { name: name.clone(), size: bytes.len() as u64, modified: SystemTime::UNIX_EPOCH + *at }
            });
            listed.take(limit).collect()
        }))
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        self.turn(folder).await?;
        let prefix = format!("{folder}/");
        let found: BTreeSet<String> = self.world.with(|state| {
            let below = state.objects.keys().filter_map(|name| name.as_str().strip_prefix(&prefix)?.split_once('/'));
            below.map(|(name, _)| name.to_owned()).collect()
        });
        Ok(found.into_iter().collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.turn(name.as_str()).await?;
        self.world.with(|state| {
            if state.objects.remove(name).is_some() {
                state.deleted += 1;
            }
            state.made.remove(name);
            let needs = state.made.iter().find(|(_, needed)| needed.contains(name));
            assert!(needs.is_none(), "{name} was deleted, and {} needs it", needs.unwrap().0);
        });
        Ok(())
    }
}

fn keyring(repository: &Repository, identities: &Arc<Identities>) -> Keyring {
    Keyring::new(repository.clone(), Arc::clone(identities))
}

/// Makes snapshots, some of them on top of others.
async fn write(world: World, identities: Arc<Identities>) {
    // Its clock is wrong by so much.
    let skew = world.below(6 * DAY) as i64 - 3 * DAY as i64;
    for _ in 0..3 + world.below(4) {
        world.pass(DAY).await;
        let dies = world.below(4) == 0;
        match backup(&world, &identities, skew, dies).await {
            Ok(()) => world.with(|state| state.done += u64::from(!dies)),
            Err(RepositoryError::Expiring { .. } | RepositoryError::TooLate { .. }) => {
                world.with(|state| state.refused += 1);
            }
            // The base went while it was read.
            Err(error) if error.is_damage() => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    world.with(|state| state.writers -= 1);
}

/// Brings what another repository has.
async fn copy_often(there: World, here: World, identities: Arc<Identities>) {
    for _ in 0..6 {
        here.pass(2 * DAY).await;
        let lives = if here.below(3) == 0 { here.below(40) } else { u64::MAX };
        let brought = async {
            let from = keyring(&there.repository(u64::MAX).await?, &identities);
            copy(&from, &here.repository(lives).await?, None, &Progress::new()).await
        };
        match brought.await {
            Ok(_) => here.with(|state| state.look(&there.with(|there| there.made.clone()))),
            Err(error) => assert!(lives < u64::MAX || error.is_damage(), "{error:?}"),
        }
    }
    here.with(|state| state.writers -= 1);
}

async fn backup(world: &World, identities: &Arc<Identities>, skew: i64, dies: bool) -> Result<(), RepositoryError> {
    let repository = world.repository(u64::MAX).await?;
    let epoch = repository.begin_epoch().await?;
    let doomed = repository.doomed().await?;
    let mut packs = Vec::new();
    let bases: Vec<_> =
        repository.snapshots("chat").await?.into_iter().filter_map(|entry| entry.summary.ok()).collect();
    let bases: Vec<_> = bases.into_iter().filter(|base| !doomed.has_snapshot("chat", &base.id)).collect();
    if !bases.is_empty() && world.below(4) > 0 {
        let base = &bases[world.below(bases.len() as u64) as usize];
        let manifest = keyring(&repository, identities).snapshot("chat", &base.id).await?.manifest;
        packs.extend(manifest.packs.into_iter().filter(|_| world.below(3) > 0));
    }
    for _ in 0..=world.below(3) {
        let (id, bytes) = (PackId::new(random()), Bytes::from_static(b"a pack"));
        packs.push(PackSize { id, bytes: bytes.len() as u64 });
        epoch.put_pack(bytes, id).await?;
        if world.below(3) == 0 {
            world.pass(4 * DAY).await;
        }
    }
    if dies {
        return Ok(());
    }
    let (map, map_bytes) = epoch.put_map(&Map::default()).await?;
    let now = Micros::new(world.now().as_micros() as i64 + skew * 1_000_000);
    let stamp = jiff::Timestamp::from_microsecond(now.get()).unwrap().strftime("%Y%m%dT%H%M%SZ").to_string();
    let id = SnapshotId::new(&stamp, random()).unwrap();
    let maps = vec![MapRef { id: map, bytes: map_bytes, entries: 0 }];
    let manifest = shared::manifest(id, now, packs, maps);
    epoch.commit(&manifest).await?;
    let needed: Vec<_> = manifest.packs.iter().map(|pack| Names::pack(pack.id)).chain([Names::map(map)]).collect();
    let name = Names::snapshot("chat", &manifest.summary.id);
    world.with(|state| state.look(&[(name, needed)].into()));
    Ok(())
}

/// Keeps so many of the newest.
fn decide(kept: usize, candidates: &[Candidate]) -> Fate {
    let mut sorted: Vec<_> = candidates.iter().collect();
    sorted.sort_by_key(|candidate| std::cmp::Reverse((candidate.taken_at, candidate.summary.id.clone())));
    let goes = sorted.into_iter().skip(kept).map(|candidate| candidate.name.clone());
    Fate { goes: goes.collect::<HashSet<_>>(), keeps_log: KeepsLog::new(|_, _, _, _| true) }
}

async fn expire_once(
    world: &World,
    identities: &Arc<Identities>,
    lives: u64,
    kept: usize,
) -> Result<Expired, RepositoryError> {
    let repository = world.repository(lives).await?;
    expire(&keyring(&repository, identities), |candidates, _| decide(kept, candidates), false, false, &Progress::new())
        .await
}

async fn expire_often(world: World, identities: Arc<Identities>) {
    while world.with(|state| state.writers > 0) {
        // Two may follow each other at once.
        world.pass(if world.below(3) == 0 { 60 } else { 16 * HOUR }).await;
        let lives = if world.below(3) == 0 { world.below(60) } else { u64::MAX };
        // People change their minds.
        let kept = 1 + world.below(2) as usize;
        match expire_once(&world, &identities, lives, kept).await {
            Ok(_) | Err(RepositoryError::Conflict { .. } | RepositoryError::Slept) => {}
            // It stood still for so long that another has tidied up.
            Err(RepositoryError::Content { name, .. }) if name.starts_with("probe/") => {}
            Err(error) if lives < u64::MAX => drop(error),
            // Somebody else has removed it since it was listed.
            Err(error) if error.is_not_found() => {}
            Err(RepositoryError::Unreadable { source, .. }) if source.is_not_found() => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn round(seed: u64, identity: &NewIdentity, identities: &Arc<Identities>) -> (u64, u64, u64) {
    let (world, there) = (World::new(seed), World::new(!seed));
    let process = |world: &World| Arc::new(Process { world: world.clone(), lives: Mutex::new(u64::MAX) });
    let made = Repository::init(process(&world), vec![identity.recipient.clone()], Micros::new(1)).await.unwrap();
    Repository::init_like(process(&there), &made).await.unwrap();
    let mut actors = tokio::task::JoinSet::new();
    for _ in 0..2 {
        world.with(|state| state.writers += 1);
        actors.spawn(write(world.clone(), Arc::clone(identities)));
        actors.spawn(expire_often(world.clone(), Arc::clone(identities)));
    }
    world.with(|state| state.writers += 1);
    actors.spawn(write(there.clone(), Arc::clone(identities)));
    actors.spawn(copy_often(there.clone(), world.clone(), Arc::clone(identities)));
    there.with(|state| state.writers += 1);
    while let Some(ended) = actors.join_next().await {
        ended.unwrap();
    }
    world.with(|state| state.is_calm = true);
    // Nobody writes any more: what is not needed goes, and the notices after it.
    for _ in 0..4 {
        sleep(Duration::from_secs(9 * DAY)).await;
        expire_once(&world, identities, u64::MAX, 1).await.unwrap();
    }
    world.with(|state| {
        let left = |folder: &str| -> BTreeSet<ObjectName> {
            state.objects.keys().filter(|name| name.as_str().starts_with(folder)).cloned().collect()
        };
        let needed: BTreeSet<ObjectName> = state.made.values().flatten().cloned().collect();
        assert_eq!(&left("packs/") | &left("maps/"), needed, "what is left is what is needed");
        assert_eq!(left("snapshots/"), state.made.keys().cloned().collect());
        assert!(state.made.len() <= 1, "{}", state.made.len());
        assert!(left("expired/").is_empty() && left("probe/").is_empty());
        (state.deleted, state.done, state.refused)
    })
}

#[test]
fn nothing_that_is_needed_goes_and_everything_else_does() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (rounds, first): (u64, u64) = (number("HOLDFAST_ROUNDS").unwrap_or(50), number("HOLDFAST_SEED").unwrap_or(1));
    let identity = NewIdentity::generate(None).unwrap();
    let mut identities = Identities::default();
    identities.add_file(&identity.file, || None).unwrap();
    let identities = Arc::new(identities);
    let (mut deleted, mut done, mut refused) = (0, 0, 0);
    for seed in first..first + rounds {
        println!("HOLDFAST_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let counts = runtime.block_on(round(seed, &identity, &identities));
        (deleted, done, refused) = (deleted + counts.0, done + counts.1, refused + counts.2);
    }
    println!("{deleted} deletions, {done} backups, {refused} refused");
    assert!(deleted > rounds * 10, "{deleted} deletions say little");
    // A backup is refused only if its base goes meanwhile, or if it takes more than days.
    assert!(refused * 3 < done, "{refused} backups were refused, {done} made");
}
