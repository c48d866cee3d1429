//! Carrying a plan out: from the repository to a data directory that is ready to be started.
//!
//! *Crash.* The control file is written last, under a temporary name first: until then PostgreSQL refuses to start.
//! A directory that an interrupted restore left holds [`MARKER`] and no control file, by which a new restore recognises
//! and clears it; so does a tablespace's directory that the first one names. Restoring over an old data directory: see
//! `delta.rs`.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_format::manifest::{DamagedPage, Manifest, Tablespace};
use holdfast_format::map::{EntryKind, Map};
use holdfast_pgformat::{BackupLabel, TablespaceMap, control};
use holdfast_postgres::cluster::{Binaries, Running, prove_stopped};
use holdfast_repository::Keyring;
use holdfast_runtime::{Cancel, Phase, Progress};
use holdfast_types::ByteSize;

use crate::RestoreError;
use crate::compare::{self, Compared};
use crate::delta::{Old, Removed, SYSTEM_LINE, running_owner};
use crate::lay::{Target as FileTarget, Work, lay};
use crate::plan::{Plan, Target};
use crate::ready::{can_deliver, can_write};
use crate::settings::{Recovery, adapt_main_conf};

/// Whether the restored cluster goes on archiving as the old one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveMode {
    Preserve,
    /// For a copy on the side: it neither archives nor connects to a primary.
    Off,
}

/// How to restore.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    pub to: PathBuf,
    /// `to` may be an older, newer or damaged data directory of the same cluster: what is right in it stays.
    pub delta: bool,
    /// Other data directories, of whatever is in them: equal bytes are copied from there instead of being fetched.
    pub reuse: Vec<PathBuf>,
    pub parallel: usize,
    /// Where tablespaces go, by object id, name or former location; the others go where they were.
    pub tablespaces: Vec<(String, PathBuf)>,
    pub archive_mode: ArchiveMode,
    /// With `%f` and `%p` in it.
    pub restore_command: String,
    /// PostgreSQL's programs, if not where they usually are.
    pub bin_directory: Option<PathBuf>,
    /// For a server that is started: its port and the directory of its socket, if not those of its configuration.
    pub port: Option<u16>,
    pub socket_directory: Option<PathBuf>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    pub files: u64,
    pub bytes: u64,
    pub fetched: u64,
    /// Only where something could be reused.
    pub reused: Option<Reused>,
    pub phases: Vec<(Phase, Duration)>,
    pub damage: Vec<DamagedPage>,
    pub notes: Vec<String>,
}

/// What was there already, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reused {
    /// Read here and hashed.
    pub compared: u64,
    /// Right where it was.
    pub kept: u64,
    /// Copied from another directory.
    pub copied: u64,
    /// Written, with what was copied.
    pub written: u64,
    pub deleted_files: u64,
    pub deleted: u64,
}

/// What a restore would do, found out by reading what is there.
#[derive(Clone, Debug)]
pub struct Comparison {
    pub reused: Reused,
    /// Sealed bytes to fetch, beside the lists of hashes that were fetched to find out.
    pub fetch: u64,
    pub notes: Vec<String>,
}

/// Stands in every directory that is being restored. In the data directory it goes after the control file has come: a
/// kill between the two leaves a whole cluster, which a new restore refuses to touch.
pub(crate) const MARKER: &str = "holdfast.restore";
/// Where the files outside the data directory go, under their former paths.
const CONFIG_DIRECTORY: &str = "holdfast.config";
/// Segments fetched ahead of recovery.
pub(crate) const PREFETCH_DIRECTORY: &str = "holdfast.prefetch";

/// Restores the files. The server is not started.
pub async fn restore(
    keyring: &Keyring,
    plan: &Plan,
    options: &RestoreOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<RestoreReport, RestoreError> {
    progress.begin(Phase("preparing"), 0);
    let manifest = &plan.manifest;
    let major = manifest.summary.server_version / 10_000;
    if options.bin_directory.is_some() {
        Binaries::find(major, options.bin_directory.as_deref()).await?;
    }
    let label = BackupLabel::parse(&manifest.backup_label)?;
    if label.start_wal != manifest.summary.start_lsn {
        let why = "it begins at another position than the snapshot".to_owned();
        return Err(RestoreError::Snapshot { what: "backup label", why });
    }
    let pg_control = control::unstartable(&manifest.pg_control)?;
    let mut notes = plan.notes.clone();
    let layout = Layout::new(options.to.clone(), owner(manifest, &mut notes));
    let Ground { old, places } = Ground::look(plan, options)?;
    let tablespace_map = remap(&manifest.tablespace_map, &places)?;
    let maps = maps(keyring, manifest).await?;
    can_deliver(keyring, manifest, &maps).await?;
    let (mut work, config) = layout.files(&maps);
    let needed = manifest.summary.bytes.saturating_sub(old.as_ref().map_or(0, |_| bytes_there(&work)));
    require_space(&options.to, needed + plan.log_bytes().min(1 << 30))?;
    if let Some(old) = &old {
        // For its refusals.
        old.tidy(&layout, &maps, &places, false)?;
    }
    // All that speaks against it is known now: from here on there is no way back.
    layout.begin(manifest, &places, old.as_ref())?;
    let mut removed = Removed::default();
    if let Some(old) = &old {
        progress.begin(Phase("deleting what is not in the snapshot"), 0);
        removed = old.tidy(&layout, &maps, &places, true)?;
    }
    layout.prepare(&maps, &places, &config)?;
    let mut compared = None;
    if old.is_some() || !options.reuse.is_empty() {
        progress.begin(Phase("comparing with what is here"), work.missing());
        let comparison = comparison(options, old.is_some(), true);
        compared = Some(compare::compare(&mut work, comparison, keyring, options.parallel, progress, cancel).await?);
    }

    let missing = work.missing();
    progress.begin(Phase("restoring files"), if compared.is_some() { missing } else { manifest.summary.bytes });
    let fetched = lay(work, keyring, options.parallel, progress, cancel).await?;

    progress.begin(Phase("finishing"), 0);
    layout.adopt_configuration(&config, &mut notes)?;
    layout.write("backup_label", &manifest.backup_label)?;
    if !tablespace_map.is_empty() {
        layout.write("tablespace_map", &tablespace_map)?;
    }
    let recovery = Recovery {
        target: &plan.stop_at,
        timeline: plan.timeline,
        restore_command: &options.restore_command,
        isolated: options.archive_mode == ArchiveMode::Off,
    };
    layout.write("postgresql.auto.conf", recovery.auto_conf(&read_auto_conf(&options.to)?).as_bytes())?;
    layout.write("recovery.signal", b"")?;
    cancel.check()?;
    layout.finish(&maps, &places, &pg_control)?;
    add_notes(&mut notes, compared.as_ref(), &removed);
    Ok(RestoreReport {
        files: manifest.summary.files,
        bytes: manifest.summary.bytes,
        fetched: fetched + compared.map_or(0, |compared| compared.fetched),
        reused: compared.map(|compared| reused(&compared, &removed, missing)),
        phases: progress.durations(),
        damage: manifest.damage.clone(),
        notes,
    })
}

/// Finds out what [`restore`] would do where much is there already. Reads all of it, and changes nothing.
pub async fn compare(
    keyring: &Keyring,
    plan: &Plan,
    options: &RestoreOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Comparison, RestoreError> {
    progress.begin(Phase("preparing"), 0);
    let layout = Layout::new(options.to.clone(), None);
    let Ground { old, places } = Ground::look(plan, options)?;
    let maps = maps(keyring, &plan.manifest).await?;
    can_deliver(keyring, &plan.manifest, &maps).await?;
    let (mut work, _) = layout.files(&maps);
    let removed = match &old {
        Some(old) => old.tidy(&layout, &maps, &places, false)?,
        None => Removed::default(),
    };
    progress.begin(Phase("comparing with what is here"), work.missing());
    let comparison = comparison(options, old.is_some(), false);
    let compared = compare::compare(&mut work, comparison, keyring, options.parallel, progress, cancel).await?;
    let mut notes = Vec::new();
    add_notes(&mut notes, Some(&compared), &removed);
    Ok(Comparison { reused: reused(&compared, &removed, work.missing()), fetch: work.sealed(), notes })
}

/// Where a restore goes, once nothing speaks against it.
struct Ground {
    /// The cluster that is restored over.
    old: Option<Old>,
    places: Vec<(Tablespace, PathBuf)>,
}

impl Ground {
    fn look(plan: &Plan, options: &RestoreOptions) -> Result<Self, RestoreError> {
        refuse_running(&options.to)?;
        for reuse in &options.reuse {
            fs::read_dir(reuse).map_err(RestoreError::read(reuse))?;
        }
        let old = if options.delta { Old::look(&options.to, &plan.manifest)? } else { None };
        let unfinished = match &old {
            Some(_) => places_of_marker(&options.to)?,
            None => refuse_what_is_in_the_way(&options.to)?,
        };
        let places = tablespace_places(&plan.manifest, &options.tablespaces, &unfinished, old.as_ref())?;
        refuse_replay_into_other_directories(plan, old.as_ref())?;
        can_write(&options.to, &places)?;
        Ok(Self { old, places })
    }
}

async fn maps(keyring: &Keyring, manifest: &Manifest) -> Result<Vec<Map>, RestoreError> {
    let mut maps = Vec::new();
    for reference in &manifest.maps {
        maps.push(keyring.map(reference.id).await?);
    }
    Ok(maps)
}

fn comparison(options: &RestoreOptions, in_place: bool, writes: bool) -> compare::Comparison {
    compare::Comparison { to: options.to.clone(), in_place, reuse: options.reuse.clone(), writes }
}

fn reused(compared: &Compared, removed: &Removed, missing: u64) -> Reused {
    Reused {
        compared: compared.compared,
        kept: compared.kept,
        copied: compared.reused,
        written: missing + compared.reused + compared.zeroed,
        deleted_files: removed.files,
        deleted: removed.bytes,
    }
}

fn add_notes(notes: &mut Vec<String>, compared: Option<&Compared>, removed: &Removed) {
    notes.extend(removed.links.iter().cloned());
    if let Some(packs) = compared.map(|compared| compared.packs_without_hashes).filter(|packs| *packs > 0) {
        notes.push(format!("{packs} packs have no hashes to compare with; what is needed of them is fetched"));
    }
}

/// What the files that are to be made have on disk already.
fn bytes_there(work: &Work) -> u64 {
    let there =
        |target: &FileTarget| fs::symlink_metadata(&target.path).map_or(0, |found| found.len().min(target.size));
    work.targets.iter().map(there).sum()
}

/// User and group for the files, where we may choose them.
fn owner(manifest: &Manifest, notes: &mut Vec<String>) -> Option<(u32, u32)> {
    if !nix::unistd::Uid::effective().is_root() {
        return None;
    }
    let user = nix::unistd::User::from_name(&manifest.owner.user).ok().flatten();
    let group = nix::unistd::Group::from_name(&manifest.owner.group).ok().flatten();
    if let Some(user) = user {
        Some((user.uid.as_raw(), group.map_or(user.gid.as_raw(), |group| group.gid.as_raw())))
    } else {
        notes.push(format!("there is no user `{}` here; the files belong to root", manifest.owner.user));
        None
    }
}

/// The settings that `ALTER SYSTEM` made. A cluster may do without the file; one that cannot be read is an error, since
/// what is in it would be lost.
fn read_auto_conf(to: &Path) -> Result<String, RestoreError> {
    let path = to.join("postgresql.auto.conf");
    match fs::read(&path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| RestoreError::Snapshot {
            what: "postgresql.auto.conf",
            why: "it is not UTF-8, so that recovery's settings cannot be added to it".to_owned(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(RestoreError::write(&path)(error)),
    }
}

fn refuse_running(to: &Path) -> Result<(), RestoreError> {
    match prove_stopped(to) {
        Running::No => Ok(()),
        Running::Yes { pid } => Err(RestoreError::ServerRunning { path: to.to_owned(), pid }),
        Running::Unknown { reason } => Err(RestoreError::ServerUnknown { path: to.to_owned(), reason }),
    }
}

/// Refuses a directory with anything in it, but for what an interrupted restore left. Gives the tablespaces' directories
/// that such a restore was filling.
fn refuse_what_is_in_the_way(to: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    if !has_entries(to)? {
        return Ok(Vec::new());
    }
    let marker = to.join(MARKER);
    if !marker.is_file() || is_there(&to.join("global/pg_control"))? {
        return Err(RestoreError::NotEmpty { path: to.to_owned() });
    }
    places_of_marker(to)
}

/// The tablespaces' directories that an interrupted restore was filling, if there was one.
fn places_of_marker(to: &Path) -> Result<Vec<PathBuf>, RestoreError> {
    let marker = to.join(MARKER);
    let marker = match fs::read(&marker) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(RestoreError::write(&marker))?,
    };
    let places = marker.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(TABLESPACE_LINE));
    Ok(places.map(|place| PathBuf::from(std::ffi::OsStr::from_bytes(place))).collect())
}

/// Begins the lines of [`MARKER`] that name a tablespace's directory.
const TABLESPACE_LINE: &[u8] = b"tablespace ";

/// Replaying `CREATE TABLESPACE` empties the directory that it names (tablespace.c, `create_tablespace_directories`). On
/// the machine of a live cluster that would be the live cluster's.
fn refuse_replay_into_other_directories(plan: &Plan, old: Option<&Old>) -> Result<(), RestoreError> {
    for created in &plan.created_tablespaces {
        let path = PathBuf::from(&created.location);
        let is_ours = old.is_some_and(|old| old.has_tablespace_in(created.oid, &path));
        if is_ours && running_owner(&path)?.is_none() {
            continue;
        }
        if has_entries(&path)? {
            let name = format!("created at {}", created.lsn);
            return Err(RestoreError::TablespaceInUse { oid: created.oid, name, path });
        }
    }
    Ok(())
}

/// Whether anything is in a directory, which need not be there. That it cannot be looked into does not mean that it is
/// empty.
fn has_entries(path: &Path) -> Result<bool, RestoreError> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        entries => match entries.map_err(RestoreError::read(path))?.next() {
            Some(entry) => entry.map(|_| true).map_err(RestoreError::read(path)),
            None => Ok(false),
        },
    }
}

/// Whether something is there; not being able to look is neither yes nor no.
fn is_there(path: &Path) -> Result<bool, RestoreError> {
    path.try_exists().map_err(RestoreError::read(path))
}

fn require_space(to: &Path, needed: u64) -> Result<(), RestoreError> {
    let mut existing = to;
    while !existing.exists() {
        existing = match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
    }
    // A file system that does not say is not full for that reason.
    let Ok(stat) = nix::sys::statvfs::statvfs(existing) else { return Ok(()) };
    let free = stat.blocks_available() * stat.fragment_size();
    if free < needed {
        let (free, needed) = (ByteSize::new(free), ByteSize::new(needed));
        return Err(RestoreError::NoSpace { path: to.to_owned(), free, needed });
    }
    Ok(())
}

/// Where each tablespace that is not in place goes.
fn tablespace_places(
    manifest: &Manifest,
    wanted: &[(String, PathBuf)],
    unfinished: &[PathBuf],
    old: Option<&Old>,
) -> Result<Vec<(Tablespace, PathBuf)>, RestoreError> {
    let matches =
        |space: &Tablespace, key: &str| space.oid.to_string() == key || space.name == key || space.location == key;
    for (key, _) in wanted {
        if !manifest.tablespaces.iter().any(|space| matches(space, key)) {
            return Err(RestoreError::UnknownTablespace(key.clone()));
        }
    }
    let is_outside = |space: &&Tablespace| space.location.starts_with('/');
    let mut places = Vec::new();
    for space in manifest.tablespaces.iter().filter(is_outside) {
        let wanted = wanted.iter().find(|(key, _)| matches(space, key));
        let place = wanted.map_or_else(|| PathBuf::from(&space.location), |(_, place)| place.clone());
        let place = std::path::absolute(&place).map_err(RestoreError::write(&place))?;
        let is_old = old.is_some_and(|old| old.has_tablespace_in(space.oid, &place));
        if is_old && let Some(server) = running_owner(&place)? {
            return Err(RestoreError::TablespaceOfRunning { name: space.name.clone(), path: place, server });
        }
        let is_ours = is_old || unfinished.contains(&place) && place.join(MARKER).is_file();
        if !is_ours && has_entries(&place)? {
            return Err(RestoreError::TablespaceInUse { oid: space.oid, name: space.name.clone(), path: place });
        }
        places.push((space.clone(), place));
    }
    Ok(places)
}

/// The tablespace map with the new places; recovery makes the links by it.
fn remap(map: &[u8], places: &[(Tablespace, PathBuf)]) -> Result<Vec<u8>, RestoreError> {
    if map.is_empty() {
        return Ok(Vec::new());
    }
    let map = TablespaceMap::parse(map)?;
    let place = |oid: u32| places.iter().find(|(space, _)| space.oid == oid).map(|(_, place)| place);
    Ok(map.remap(|space| place(space.oid).map(|place| place.as_os_str().as_bytes().to_vec())).serialize())
}

/// The target directory.
pub(crate) struct Layout {
    pub to: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Layout {
    pub(crate) fn new(to: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self { to, owner }
    }

    /// From here on nothing can be started here.
    fn begin(
        &self,
        manifest: &Manifest,
        places: &[(Tablespace, PathBuf)],
        old: Option<&Old>,
    ) -> Result<(), RestoreError> {
        if let Some(old) = old {
            self.write(MARKER, &marker(manifest, places))?;
            sync(&self.to)?;
            old.disable()?;
            return places.iter().try_for_each(|(_, place)| self.directory(place, 0o700));
        }
        // Tablespaces first: the marker of the data directory is what says that theirs may be cleared.
        for (_, place) in places {
            clear_unfinished(place)?;
        }
        clear_unfinished(&self.to)?;
        self.directory(&self.to, 0o700)?;
        let text = marker(manifest, places);
        self.write(MARKER, &text)?;
        sync(&self.to)?;
        for (_, place) in places {
            self.directory(place, 0o700)?;
            self.write_to(&place.join(MARKER), &text)?;
            sync(place)?;
        }
        Ok(())
    }

    fn chown(&self, path: &Path) -> Result<(), RestoreError> {
        match self.owner {
            Some((uid, gid)) => {
                std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(RestoreError::write(path))
            }
            None => Ok(()),
        }
    }

    fn directory(&self, path: &Path, mode: u32) -> Result<(), RestoreError> {
        let at = RestoreError::write;
        if !path.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(at(path))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))?;
        self.chown(path)
    }

    /// Writes a small file durably.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), RestoreError> {
        self.write_to(&self.to.join(name), bytes)
    }

    fn write_to(&self, path: &Path, bytes: &[u8]) -> Result<(), RestoreError> {
        let write = || {
            let mut file = fs::File::create(path)?;
            file.write_all(bytes)?;
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.sync_all()
        };
        write().map_err(RestoreError::write(path))?;
        self.chown(path)
    }

    /// Where a path of the snapshot goes.
    pub(crate) fn place(&self, name: &[u8]) -> PathBuf {
        let path = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
        match name.strip_prefix(b"pgdata") {
            Some(rest) => match rest.strip_prefix(b"/") {
                Some(relative) => self.to.join(path(relative)),
                None => self.to.clone(),
            },
            None => self.to.join(CONFIG_DIRECTORY).join(path(name.strip_prefix(b"config/").unwrap_or(name))),
        }
    }

    /// Lists the files, and those of them that are settings from outside.
    fn files(&self, maps: &[Map]) -> (Work, Vec<PathBuf>) {
        let (mut work, mut config) = (Work::default(), Vec::new());
        for (map, entry) in maps.iter().flat_map(|map| map.entries.iter().map(move |entry| (map, entry))) {
            if let EntryKind::File { size, runs } = &entry.kind {
                let path = self.place(&entry.path);
                if entry.path.starts_with(b"config/") {
                    config.push(path.clone());
                }
                work.add(map, FileTarget::new(path, *size, entry.mode, self.owner), runs);
            }
        }
        (work, config)
    }

    /// Makes directories and links.
    fn prepare(&self, maps: &[Map], places: &[(Tablespace, PathBuf)], config: &[PathBuf]) -> Result<(), RestoreError> {
        for entry in maps.iter().flat_map(|map| &map.entries) {
            let path = self.place(&entry.path);
            match &entry.kind {
                EntryKind::Directory => self.directory(&path, entry.mode)?,
                EntryKind::Link { target } => {
                    let oid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
                    let place = places.iter().find(|(space, _)| Some(space.oid) == oid);
                    let target = place.map(|(_, place)| place).ok_or_else(|| RestoreError::Snapshot {
                        what: "map",
                        why: format!("it has a link to {}, which is no tablespace", String::from_utf8_lossy(target)),
                    })?;
                    if fs::read_link(&path).ok().as_ref() != Some(target) {
                        std::os::unix::fs::symlink(target, &path).map_err(RestoreError::write(&path))?;
                    }
                    self.chown(&path)?;
                }
                EntryKind::File { .. } => {}
            }
        }
        for parent in config.iter().filter_map(|path| path.parent()) {
            self.directory(parent, 0o700)?;
        }
        Ok(())
    }

    /// Settings that were kept outside the data directory, as Debian does: what the server needs to start is put inside,
    /// and all of it stays under its former path in [`CONFIG_DIRECTORY`].
    fn adopt_configuration(&self, config: &[PathBuf], notes: &mut Vec<String>) -> Result<(), RestoreError> {
        let at = RestoreError::write;
        if is_there(&self.to.join("postgresql.conf"))? || config.is_empty() {
            return Ok(());
        }
        let Some(main) = config.iter().find(|path| path.ends_with("postgresql.conf")) else { return Ok(()) };
        let folder = main.parent().unwrap_or(&self.to);
        for path in config {
            let Ok(relative) = path.strip_prefix(folder) else { continue };
            let bytes = fs::read(path).map_err(at(path))?;
            let name = relative.to_string_lossy().into_owned();
            if let Some(parent) = self.to.join(relative).parent() {
                self.directory(parent, 0o700)?;
            }
            if path == main {
                self.write(&name, adapt_main_conf(&String::from_utf8_lossy(&bytes)).as_bytes())?;
            } else {
                self.write(&name, &bytes)?;
            }
        }
        notes.push(format!(
            "the configuration was outside the data directory; copies are in it now, the originals in {}",
            self.to.join(CONFIG_DIRECTORY).display()
        ));
        Ok(())
    }

    /// Makes all names durable, then puts the control file in its place.
    fn finish(&self, maps: &[Map], places: &[(Tablespace, PathBuf)], pg_control: &[u8]) -> Result<(), RestoreError> {
        for entry in maps.iter().flat_map(|map| &map.entries) {
            if entry.kind == EntryKind::Directory {
                sync(&self.place(&entry.path))?;
            }
        }
        for (_, place) in places {
            // Where an old cluster had its tablespace there is none.
            if is_there(&place.join(MARKER))? {
                remove_marker(place)?;
            }
            sync(place)?;
        }
        self.write("global/pg_control.holdfast", pg_control)?;
        let (temporary, path) = (self.to.join("global/pg_control.holdfast"), self.to.join("global/pg_control"));
        fs::rename(&temporary, &path).map_err(RestoreError::write(&path))?;
        sync(&self.to.join("global"))?;
        remove_marker(&self.to)
    }
}

/// The text of [`MARKER`].
fn marker(manifest: &Manifest, places: &[(Tablespace, PathBuf)]) -> Vec<u8> {
    let id = &manifest.summary.id;
    let mut text = format!("Snapshot {id} is being restored here; this directory is not complete.\n").into_bytes();
    text.extend_from_slice(SYSTEM_LINE);
    text.extend_from_slice(format!("{}\n", manifest.summary.system_id).as_bytes());
    for (_, place) in places {
        text.extend_from_slice(TABLESPACE_LINE);
        text.extend_from_slice(place.as_os_str().as_bytes());
        text.push(b'\n');
    }
    text
}

/// Removes what an interrupted restore left in a directory. The marker goes last: until then the directory stays
/// recognisable.
fn clear_unfinished(directory: &Path) -> Result<(), RestoreError> {
    let at = RestoreError::write;
    if !directory.join(MARKER).is_file() {
        return Ok(());
    }
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        if path.file_name().is_none_or(|name| name != MARKER) {
            let is_folder = fs::symlink_metadata(&path).map_err(RestoreError::write(&path))?.is_dir();
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(RestoreError::write(&path))?;
        }
    }
    Ok(())
}

fn remove_marker(directory: &Path) -> Result<(), RestoreError> {
    let marker = directory.join(MARKER);
    fs::remove_file(&marker).map_err(RestoreError::write(&marker))?;
    sync(directory)
}

pub(crate) fn sync(directory: &Path) -> Result<(), RestoreError> {
    fs::File::open(directory).and_then(|file| file.sync_all()).map_err(RestoreError::write(directory))
}

/// A target that leaves nothing to replay but what makes the snapshot consistent.
pub(crate) fn replays_little(plan: &Plan) -> bool {
    plan.target == Target::Consistent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_empty() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("empty")).unwrap();
        fs::write(at("file"), "").unwrap();
        assert!(!has_entries(&at("absent")).unwrap() && !has_entries(&at("empty")).unwrap());
        assert!(has_entries(folder.path()).unwrap());
        // Neither "not there" nor readable, for root as well.
        std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
        for hidden in ["file", "file/below", "loop"] {
            assert!(matches!(has_entries(&at(hidden)), Err(RestoreError::Read { .. })), "{hidden}");
        }
    }

    #[test]
    fn a_marker_is_no_licence_where_the_control_file_cannot_be_seen() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MARKER), "").unwrap();
        assert_eq!(refuse_what_is_in_the_way(folder.path()).unwrap(), Vec::<PathBuf>::new());
        let global = folder.path().join("global");
        std::os::unix::fs::symlink(&global, &global).unwrap();
        assert!(matches!(refuse_what_is_in_the_way(folder.path()), Err(RestoreError::Read { .. })));
    }
}
