//! Bringing a repository up from another one that has the same content (decision 0019), and taking from it what is damaged here.
//!
//! Objects are copied byte for byte, in the order in which a writer writes: what a manifest needs comes before it. Each is proved
//! on the way: packs and maps by their names, all others by being opened. So a copy can be broken off at any moment, and any
//! number of them can run at once.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_format::ObjectKind;
use holdfast_format::object::check_hash;
use holdfast_runtime::{Phase, Progress};
use holdfast_store::{Created, Listed, ObjectName, Store};
use serde::Serialize;

use crate::expiry::LOOK_LASTS;
use crate::{Keyring, Lineage, Names, Repository, RepositoryConfig, RepositoryError};

/// Objects on the way at once; the largest have 32 MiB.
const AT_ONCE: usize = 4;

/// What a copy has brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub snapshots: u64,
    /// All others: keys, packs, maps, log.
    pub objects: u64,
    pub bytes: u64,
    /// What could not be copied, and why.
    pub left: Vec<Left>,
}

/// An object that stays behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    pub object: String,
    pub why: String,
}

impl Copied {
    fn left(&mut self, object: impl ToString, why: impl ToString) {
        self.left.push(Left { object: object.to_string(), why: why.to_string() });
    }
}

impl Repository {
    /// Makes a repository in an empty store that has the identity of another one: what one of them holds, the other can hold.
    pub async fn init_like(store: Arc<dyn Store>, other: &Self) -> Result<Self, RepositoryError> {
        Self::make(store, (*other.config).clone()).await
    }

    pub(crate) async fn names(&self, folder: &str) -> Result<HashSet<ObjectName>, RepositoryError> {
        let mut names = HashSet::new();
        self.each(folder, |listed| {
            names.insert(listed.name);
        })
        .await?;
        Ok(names)
    }
}

/// Copies what `to` lacks. `source`: only of this one; otherwise of all.
pub async fn copy(
    from: &Keyring,
    to: &Repository,
    source: Option<&str>,
    progress: &Progress,
) -> Result<Copied, RepositoryError> {
    bring(from, to, source, false, progress).await
}

/// `is_doubtful`: what a snapshot needs that is there already is looked for as well.
async fn bring(
    from: &Keyring,
    to: &Repository,
    source: Option<&str>,
    is_doubtful: bool,
    progress: &Progress,
) -> Result<Copied, RepositoryError> {
    let ours = from.repository();
    if ours.id() != to.id() {
        return Err(RepositoryError::NotSiblings { one: ours.location(), other: to.location() });
    }
    let mut copied = Copied::default();
    progress.begin(Phase("copying keys"), 0);
    copy_config(ours, to).await?;
    let have = to.names(Names::KEYS).await?;
    let keys = ours.list(Names::KEYS).await?.into_iter().filter(|listed| !have.contains(&listed.name)).collect();
    copy_objects(from, to, keys, &mut copied, progress).await?;
    copy_snapshots(from, to, source, is_doubtful, &mut copied, progress).await?;
    copy_log(from, to, source, &mut copied, progress).await?;
    Ok(copied)
}

/// Generations are numbered without a hole, and a later one may say that the format is newer.
async fn copy_config(from: &Repository, to: &Repository) -> Result<(), RepositoryError> {
    let have = to.names(Names::CONFIG).await?;
    for listed in from.list(Names::CONFIG).await? {
        if have.contains(&listed.name) {
            continue;
        }
        let bytes = from.read(&listed.name).await?;
        let generation = listed.name.file_name().split('.').next().and_then(|digits| digits.parse().ok());
        let broken = |error| RepositoryError::content(&listed.name, error);
        RepositoryConfig::decode(&bytes, generation.unwrap_or(0)).map_err(broken)?;
        to.create(&listed.name, bytes).await?;
    }
    Ok(())
}

async fn copy_snapshots(
    from: &Keyring,
    to: &Repository,
    only: Option<&str>,
    is_doubtful: bool,
    copied: &mut Copied,
    progress: &Progress,
) -> Result<(), RepositoryError> {
    progress.begin(Phase("looking for what is missing"), 0);
    let mut listed_at = to.clock.now();
    let (mut packs, mut maps) = (to.names(Names::PACKS).await?, to.names(Names::MAPS).await?);
    for source in from.repository().folders(Names::SNAPSHOTS).await? {
        if only.is_some_and(|only| only != source) {
            continue;
        }
        let have = to.names(&Names::snapshots_of(&source)).await?;
        let doomed = to.doomed().await?;
        // Oldest first: what is copied is of use at once.
        for entry in from.repository().snapshots(&source).await? {
            let is_there = have.contains(&entry.name);
            if is_there && !is_doubtful {
                continue;
            }
            // It is about to be removed there, or just was: expiry comes to each place in its own time.
            if entry.summary.as_ref().is_ok_and(|summary| doomed.has_snapshot(&source, &summary.id)) {
                continue;
            }
            let stored = match entry.summary {
                Ok(summary) => from.snapshot(&source, &summary.id).await,
                Err(error) => Err(error),
            };
            let manifest = match stored {
                Ok(stored) => stored.manifest,
                // It has expired since it was listed.
                Err(error) if error.is_not_found() => continue,
                Err(error) if error.is_damage() => {
                    copied.left(&entry.name, error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if to.clock.now().saturating_sub(listed_at) > LOOK_LASTS {
                // What was here then may have been named, removed and forgotten since.
                listed_at = to.clock.now();
                (packs, maps) = (to.names(Names::PACKS).await?, to.names(Names::MAPS).await?);
            }
            let needed_packs = manifest.packs.iter().map(|pack| (Names::pack(pack.id), pack.bytes));
            let needed_maps = manifest.maps.iter().map(|map| (Names::map(map.id), map.bytes));
            let needed: Vec<Listed> = needed_packs
                .filter(|(name, _)| !packs.contains(name))
                .chain(needed_maps.filter(|(name, _)| !maps.contains(name)))
                .map(|(name, size)| Listed { name, size, modified: std::time::SystemTime::UNIX_EPOCH })
                .collect();
            let names: Vec<_> = needed.iter().map(|listed| listed.name.clone()).collect();
            let left_before = copied.left.len();
            copy_objects(from, to, needed, copied, progress).await?;
            if copied.left.len() > left_before {
                copied.left(&entry.name, "some of what it needs could not be copied");
                continue;
            }
            for name in names {
                if name.as_str().starts_with(Names::PACKS) {
                    packs.insert(name)
                } else {
                    maps.insert(name)
                };
            }
            if is_there {
                continue;
            }
            let bytes = from.repository().read(&entry.name).await?;
            check_hash(&bytes).map_err(|error| RepositoryError::object(&entry.name, error))?;
            let len = bytes.len() as u64;
            // What was there when it was looked for may have gone since.
            to.require(&manifest).await?;
            match to.publish(&manifest, bytes, listed_at).await {
                Ok(Created::New) => (copied.snapshots, copied.bytes) = (copied.snapshots + 1, copied.bytes + len),
                Ok(Created::Exists) => {}
                Err(error @ (RepositoryError::Expiring { .. } | RepositoryError::TooLate { .. })) => {
                    copied.left(&entry.name, error);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whole segments come before pieces, and pieces of whole segments not at all.
async fn copy_log(
    from: &Keyring,
    to: &Repository,
    only: Option<&str>,
    copied: &mut Copied,
    progress: &Progress,
) -> Result<(), RepositoryError> {
    let ours = from.repository();
    for source in ours.sources().await? {
        if only.is_some_and(|only| only != source) {
            continue;
        }
        for lineage in ours.lineages(&source).await? {
            for missing in missing_log(ours, to, &source, lineage).await? {
                copy_objects(from, to, missing, copied, progress).await?;
            }
        }
    }
    Ok(())
}

/// What a repository lacks of the log of a cluster, in the order in which it is copied.
async fn missing_log(
    from: &Repository,
    to: &Repository,
    source: &str,
    lineage: Lineage,
) -> Result<Vec<Vec<Listed>>, RepositoryError> {
    let view = from.log(source, lineage).await?;
    let objects = view.timelines().flat_map(|timeline| view.objects(timeline));
    let log: HashSet<ObjectName> = objects.map(|object| object.name.clone()).collect();
    let mut all = Vec::new();
    for folder in [Names::HISTORY, Names::WAL, Names::PARTIAL, Names::CHANGES, Names::PIECES] {
        let path = format!("{folder}/{source}/{lineage}");
        let have = to.names(&path).await?;
        let mut missing = Vec::new();
        from.each(&path, |listed| {
            let is_wanted = folder != Names::PIECES || log.contains(&listed.name);
            if is_wanted && !have.contains(&listed.name) {
                missing.push(listed);
            }
        })
        .await?;
        all.push(missing);
    }
    Ok(all)
}

/// Copies the keys and the log of a source that a repository lacks, by one who can open neither: what the hash at its end does
/// not prove stays behind. Says how many objects it has copied.
pub(crate) async fn copy_log_sealed(from: &Repository, to: &Repository, source: &str) -> Result<u64, RepositoryError> {
    let have = to.names(Names::KEYS).await?;
    let keys: Vec<_> =
        from.list(Names::KEYS).await?.into_iter().filter(|listed| !have.contains(&listed.name)).collect();
    let mut missing = vec![keys];
    for lineage in from.lineages(source).await? {
        missing.extend(missing_log(from, to, source, lineage).await?);
    }
    let mut copied = 0;
    for Listed { name, .. } in missing.into_iter().flatten() {
        let bytes = match from.read(&name).await {
            // Replaced by a whole segment since it was listed.
            Err(error) if error.is_not_found() => continue,
            bytes => bytes?,
        };
        if kind_of(&name).is_some() && check_hash(&bytes).is_err() {
            tracing::warn!(%name, "it is damaged, and stays behind");
            continue;
        }
        to.create(&name, bytes).await?;
        copied += 1;
    }
    Ok(copied)
}

async fn copy_objects(
    from: &Keyring,
    to: &Repository,
    objects: Vec<Listed>,
    copied: &mut Copied,
    progress: &Progress,
) -> Result<(), RepositoryError> {
    if objects.is_empty() {
        return Ok(());
    }
    progress.begin(Phase("copying"), objects.iter().map(|listed| listed.size).sum());
    let copies = objects.into_iter().map(async |listed| {
        let outcome = copy_one(from, to, &listed.name).await;
        progress.add(listed.size);
        match outcome {
            Ok(bytes) => Ok((listed.name, Ok(bytes))),
            Err(error) if error.is_damage() => Ok((listed.name, Err(error))),
            Err(error) => Err(error),
        }
    });
    let done: Vec<_> = stream::iter(copies).buffer_unordered(AT_ONCE).try_collect().await?;
    for (name, outcome) in done {
        match outcome {
            Ok(bytes) => {
                copied.objects += 1;
                copied.bytes += bytes;
            }
            // Log that was replaced, or has expired, since it was listed.
            Err(error) if error.is_not_found() && !name.as_str().starts_with(Names::PACKS) => {
                tracing::debug!(%name, "it went before it was copied");
                if name.as_str().starts_with(Names::MAPS) {
                    copied.left(&name, error);
                }
            }
            Err(error) => copied.left(&name, error),
        }
    }
    Ok(())
}

async fn copy_one(from: &Keyring, to: &Repository, name: &ObjectName) -> Result<u64, RepositoryError> {
    let bytes = from.repository().read(name).await?;
    prove(from, name, &bytes).await?;
    let len = bytes.len() as u64;
    to.create(name, bytes).await?;
    Ok(len)
}

/// What kind of object has this name; `None` for keys and configurations.
fn kind_of(name: &ObjectName) -> Option<ObjectKind> {
    let folder = name.as_str().split('/').next().unwrap_or_default();
    Some(match folder {
        Names::PACKS => ObjectKind::Pack,
        Names::MAPS => ObjectKind::Map,
        Names::SNAPSHOTS => ObjectKind::Manifest,
        Names::WAL | Names::PARTIAL => ObjectKind::WalSegment,
        Names::PIECES => ObjectKind::WalPiece,
        Names::HISTORY => ObjectKind::TimelineHistory,
        Names::CHANGES => ObjectKind::ChangeMap,
        Names::UNFINISHED => ObjectKind::Unfinished,
        _ => return None,
    })
}

/// The bytes are what this name stands for.
async fn prove(keyring: &Keyring, name: &ObjectName, bytes: &Bytes) -> Result<(), RepositoryError> {
    match kind_of(name) {
        Some(ObjectKind::Pack | ObjectKind::Map) => {
            let id = check_hash(bytes).map_err(|error| RepositoryError::object(name, error))?;
            if name.file_name() != id.to_string() {
                return Err(RepositoryError::content(name, "it is another object than its name says"));
            }
            Ok(())
        }
        Some(kind) => keyring.open_bytes(kind, name, bytes.clone()).await.map(drop),
        None if name.as_str().starts_with(Names::KEYS) => {
            let epoch = name.as_str().split('/').nth(1).and_then(|epoch| epoch.parse().ok());
            let epoch = epoch.ok_or_else(|| RepositoryError::content(name, "the name is no key's"))?;
            keyring.prove_key(epoch, name, bytes)
        }
        None => Ok(()),
    }
}

/// What was put right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Objects that were damaged here, and are as they were.
    pub replaced: Vec<String>,
    /// Objects that were missing.
    pub brought: Copied,
    /// Damaged here, and no better there.
    pub left: Vec<Left>,
}

/// Reads all of `here`, replaces what is damaged by what `there` has, and copies what is missing.
pub async fn repair(
    here: &Keyring,
    there: &Keyring,
    is_dry_run: bool,
    progress: &Progress,
) -> Result<Repaired, RepositoryError> {
    let (ours, theirs) = (here.repository(), there.repository());
    if ours.id() != theirs.id() {
        return Err(RepositoryError::NotSiblings { one: ours.location(), other: theirs.location() });
    }
    let mut repaired = Repaired::default();
    for folder in [
        Names::KEYS,
        Names::PACKS,
        Names::MAPS,
        Names::HISTORY,
        Names::WAL,
        Names::PARTIAL,
        Names::PIECES,
        Names::CHANGES,
        Names::SNAPSHOTS,
    ] {
        let listed = ours.list(folder).await?;
        progress.begin(Phase("reading what is here"), listed.iter().map(|listed| listed.size).sum());
        let looks = listed.into_iter().map(async |listed| {
            let found = match ours.read(&listed.name).await {
                // Keys of theirs open what is sealed here, also where a key is damaged here.
                Ok(bytes) => prove(there, &listed.name, &bytes).await,
                Err(error) if error.is_not_found() => Ok(()),
                Err(error) => Err(error),
            };
            progress.add(listed.size);
            match found {
                Ok(()) => Ok(None),
                Err(error) if error.is_damage() || matches!(error, RepositoryError::WrongKey { .. }) => {
                    Ok(Some((listed.name, error)))
                }
                Err(error) => Err(error),
            }
        });
        let damaged: Vec<_> = stream::iter(looks).buffer_unordered(AT_ONCE).try_collect().await?;
        for (name, damage) in damaged.into_iter().flatten() {
            let good = match theirs.read(&name).await {
                Ok(bytes) => prove(there, &name, &bytes).await.map(|()| bytes),
                Err(error) => Err(error),
            };
            match good {
                Ok(bytes) => {
                    if !is_dry_run {
                        ours.delete(&name).await?;
                        ours.create(&name, bytes).await?;
                    }
                    repaired.replaced.push(name.to_string());
                }
                Err(error) if error.is_damage() || matches!(error, RepositoryError::WrongKey { .. }) => {
                    repaired.left.push(Left { object: name.to_string(), why: format!("{damage}; and there: {error}") });
                }
                Err(error) => return Err(error),
            }
        }
    }
    if !is_dry_run {
        repaired.brought = bring(there, ours, None, true, progress).await?;
    }
    Ok(repaired)
}
