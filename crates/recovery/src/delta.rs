//! Restoring over a data directory that is there: whose it is, what in it must go, and where its tablespaces are.
//!
//! *Crash.* [`MARKER`] comes first and names the cluster, then the control file goes: from there on the directory cannot
//! be started, and the same restore can be given again. A tablespace's directory gets no marker, because files of other
//! releases may lie in it that nobody may clear.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use holdfast_format::manifest::{Manifest, Tablespace};
use holdfast_format::map::{EntryKind, Map};
use holdfast_pgformat::ControlFile;
use holdfast_types::SystemId;

use crate::RestoreError;
use crate::compare::is_plain_file;
use crate::ready::{directory, file, own_directory};
use crate::restore::{Layout, MARKER, sync};

/// Begins the line of [`MARKER`] that names the cluster.
pub(crate) const SYSTEM_LINE: &[u8] = b"system ";
const CONTROL_FILE: &str = "global/pg_control";

/// A cluster's directory that is to be restored over.
#[derive(Debug)]
pub(crate) struct Old {
    to: PathBuf,
    major: u32,
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub files: u64,
    pub bytes: u64,
    /// Links that were removed while what they led to was left, for people.
    pub links: Vec<String>,
}

impl Old {
    /// Nothing, if a plain restore can have the directory. The server must not run.
    pub(crate) fn look(to: &Path, manifest: &Manifest) -> Result<Option<Self>, RestoreError> {
        let is_empty = match fs::read_dir(to) {
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            entries => entries.map_err(RestoreError::write(to))?.next().is_none(),
        };
        if is_empty {
            return Ok(None);
        }
        let (expected, major) = (manifest.summary.system_id, manifest.summary.server_version / 10_000);
        let old = Self { to: to.to_owned(), major };
        let path = to.join(CONTROL_FILE);
        let control = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return old.unfinished(expected),
            bytes => bytes.map_err(RestoreError::write(&path))?,
        };
        let unknown = |why: String| RestoreError::UnknownCluster { path: to.to_owned(), why };
        let control = ControlFile::parse(&control).map_err(|error| unknown(error.to_string()))?;
        if control.system_id != expected {
            return Err(RestoreError::OtherCluster { path: to.to_owned(), found: control.system_id, expected });
        }
        if control.major_version() != Some(major) {
            let found = control.major_version().map_or_else(|| "an unknown version".to_owned(), |it| it.to_string());
            return Err(RestoreError::OtherVersion { path: to.to_owned(), found, expected: major });
        }
        Ok(Some(old))
    }

    /// What an interrupted restore left.
    fn unfinished(self, expected: SystemId) -> Result<Option<Self>, RestoreError> {
        let marker = self.to.join(MARKER);
        let why = format!("it has neither {CONTROL_FILE} nor {MARKER}");
        let text = match fs::read(&marker) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(RestoreError::UnknownCluster { path: self.to, why });
            }
            text => text.map_err(RestoreError::write(&marker))?,
        };
        let Some(system) = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(SYSTEM_LINE)) else {
            return Ok(None);
        };
        let system = std::str::from_utf8(system).ok().and_then(|text| text.parse::<u64>().ok());
        match system.map(SystemId::new) {
            Some(found) if found == expected => Ok(Some(self)),
            Some(found) => Err(RestoreError::OtherCluster { path: self.to, found, expected }),
            None => Err(RestoreError::UnknownCluster { path: self.to, why: format!("{MARKER} cannot be read") }),
        }
    }

    /// Whether the tablespace of this number lies in a directory: then what is in there belongs to this cluster.
    pub(crate) fn has_tablespace_in(&self, oid: u32, place: &Path) -> bool {
        let link = self.to.join("pg_tblspc").join(oid.to_string());
        let is_link = link.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        let identity = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
        is_link && identity(&link).is_some() && identity(&link) == identity(place)
    }

    /// Makes sure that nobody starts it. The marker is there already.
    pub(crate) fn disable(&self) -> Result<(), RestoreError> {
        let path = self.to.join(CONTROL_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => {
                removed.map_err(RestoreError::write(&path))?;
                sync(&self.to.join("global"))
            }
        }
    }

    /// Removes all that the snapshot does not have, or only counts it. Refuses what it could not do, or must not: to
    /// delete what is mounted somewhere in the directory.
    pub(crate) fn tidy(
        &self,
        layout: &Layout,
        maps: &[Map],
        places: &[(Tablespace, PathBuf)],
        acts: bool,
    ) -> Result<Removed, RestoreError> {
        let mut tidy = Tidy { wanted: wanted(layout, maps, places), acts, removed: Removed::default() };
        // Before the links of tablespaces go: they say what is this cluster's.
        for (space, place) in places {
            if self.has_tablespace_in(space.oid, place) || place.join(MARKER).is_file() {
                tidy.tablespace(place, &layout.to.join("pg_tblspc").join(space.oid.to_string()), self.major)?;
            }
        }
        tidy.directory(&layout.to, &layout.to)?;
        Ok(tidy.removed)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Directory,
    File,
    Link(PathBuf),
}

/// What a restore puts where, and what has to stay while it does.
fn wanted(layout: &Layout, maps: &[Map], places: &[(Tablespace, PathBuf)]) -> HashMap<PathBuf, Wanted> {
    let mut wanted = HashMap::from([
        (layout.to.join(MARKER), Wanted::File),
        // Counted by nobody: a restore replaces it.
        (layout.to.join(CONTROL_FILE), Wanted::File),
    ]);
    for entry in maps.iter().flat_map(|map| &map.entries) {
        let path = layout.place(&entry.path);
        let kind = match &entry.kind {
            EntryKind::Directory => Wanted::Directory,
            EntryKind::File { .. } => {
                // Settings from outside: the directories on the way to them are in no map.
                for folder in path.ancestors().skip(1).take_while(|folder| *folder != layout.to) {
                    wanted.entry(folder.to_owned()).or_insert(Wanted::Directory);
                }
                Wanted::File
            }
            EntryKind::Link { .. } => {
                let oid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
                match places.iter().find(|(space, _)| Some(space.oid) == oid) {
                    Some((_, place)) => Wanted::Link(place.clone()),
                    None => continue,
                }
            }
        };
        wanted.insert(path, kind);
    }
    wanted
}

struct Tidy {
    wanted: HashMap<PathBuf, Wanted>,
    acts: bool,
    removed: Removed,
}

impl Tidy {
    /// The files of a release in a tablespace's directory; those of others stay. `name` is what leads there.
    fn tablespace(&mut self, place: &Path, name: &Path, major: u32) -> Result<(), RestoreError> {
        let prefix = format!("PG_{major}_");
        let device = fs::metadata(place).map_err(RestoreError::write(place))?.dev();
        for entry in fs::read_dir(place).map_err(RestoreError::write(place))? {
            let entry = entry.map_err(RestoreError::write(place))?;
            if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                self.entry(&entry.path(), &name.join(entry.file_name()), device)?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, name: &Path) -> Result<(), RestoreError> {
        own_directory(path)?;
        let metadata = fs::metadata(path).map_err(RestoreError::write(path))?;
        let (device, mode) = (metadata.dev(), metadata.mode() & 0o7777);
        if self.acts && mode & 0o700 != 0o700 {
            let permissions = fs::Permissions::from_mode(mode | 0o700);
            fs::set_permissions(path, permissions).map_err(RestoreError::write(path))?;
        }
        for entry in fs::read_dir(path).map_err(RestoreError::write(path))? {
            let entry = entry.map_err(RestoreError::write(path))?;
            self.entry(&entry.path(), &name.join(entry.file_name()), device)?;
        }
        Ok(())
    }

    /// Keeps or removes what lies at `path`, in a directory on `device`, and is called `name` in the data directory.
    /// Follows no link.
    fn entry(&mut self, path: &Path, name: &Path, device: u64) -> Result<(), RestoreError> {
        let metadata = fs::symlink_metadata(path).map_err(RestoreError::write(path))?;
        match self.wanted.get(name) {
            Some(Wanted::Directory) if metadata.is_dir() => self.directory(path, name),
            // With a second name elsewhere, writing here would change it there as well.
            Some(Wanted::File) if is_plain_file(path) => {
                file(path, &metadata)?;
                let mode = metadata.mode() & 0o7777;
                if self.acts && mode & 0o600 != 0o600 {
                    let permissions = fs::Permissions::from_mode(mode | 0o600);
                    fs::set_permissions(path, permissions).map_err(RestoreError::write(path))?;
                }
                Ok(())
            }
            Some(Wanted::Link(place)) if fs::read_link(path).is_ok_and(|target| target == *place) => Ok(()),
            _ => self.remove(path, &metadata, device),
        }
    }

    fn remove(&mut self, path: &Path, metadata: &fs::Metadata, device: u64) -> Result<(), RestoreError> {
        if metadata.is_dir() {
            // Files are no sign: an overlay gives them the devices of its layers.
            if metadata.dev() != device {
                return Err(RestoreError::MountPoint { path: path.to_owned() });
            }
            let mut entries = fs::read_dir(path).map_err(RestoreError::write(path))?.peekable();
            if entries.peek().is_some() {
                directory(path)?;
            }
            for entry in entries {
                let below = entry.map_err(RestoreError::write(path))?.path();
                let metadata = fs::symlink_metadata(&below).map_err(RestoreError::write(&below))?;
                self.remove(&below, &metadata, device)?;
            }
            return if self.acts { fs::remove_dir(path).map_err(RestoreError::write(path)) } else { Ok(()) };
        }
        if metadata.is_symlink() {
            let target = fs::read_link(path).unwrap_or_default();
            let (path, target) = (path.display(), target.display());
            self.removed.links.push(format!("{path} was a link to {target}, which was left as it is"));
        } else {
            self.removed.files += 1;
            self.removed.bytes += metadata.len();
        }
        if self.acts { fs::remove_file(path).map_err(RestoreError::write(path)) } else { Ok(()) }
    }
}

/// The data directory of a running server that has a tablespace in this directory: a copy of a data directory brings
/// the links of its original along.
pub(crate) fn running_owner(place: &Path) -> Result<Option<PathBuf>, RestoreError> {
    let identity = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    let Some(wanted) = unless_gone(place, identity(place))? else { return Ok(None) };
    // A server owns what it makes in its tablespaces: those of other users, as in containers, need not be looked into,
    // where only root may do that.
    let mut owners = vec![place.metadata().map_err(RestoreError::read(place))?.uid()];
    for entry in fs::read_dir(place).map_err(RestoreError::read(place))?.flatten() {
        owners.extend(entry.metadata().ok().map(|metadata| metadata.uid()));
    }
    let processes = Path::new("/proc");
    for process in fs::read_dir(processes).map_err(RestoreError::read(processes))? {
        let process = process.map_err(RestoreError::read(processes))?;
        if !process.file_name().as_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = process.path();
        let name = process.join("comm");
        let name = unless_gone(&name, fs::read(&name))?.unwrap_or_default();
        if !matches!(name.trim_ascii(), b"postgres" | b"postmaster") {
            continue;
        }
        let Some(metadata) = unless_gone(&process, process.metadata())? else { continue };
        let directory = process.join("cwd");
        let links = directory.join("pg_tblspc");
        let listed = match fs::read_dir(&links) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied && !owners.contains(&metadata.uid()) => continue,
            listed => unless_gone(&links, listed)?,
        };
        for link in listed.into_iter().flatten() {
            let link = link.map_err(RestoreError::read(&links))?.path();
            let Some(target) = unless_gone(&link, fs::symlink_metadata(&link))?
                .filter(fs::Metadata::is_symlink)
                .and_then(|_| unless_gone(&link, fs::read_link(&link)).transpose())
                .transpose()?
            else {
                continue;
            };
            // In a container the same path leads elsewhere.
            let target = process.join("root").join(target.strip_prefix("/").unwrap_or(&target));
            for seen in [&link, &target] {
                if unless_gone(seen, identity(seen))? == Some(wanted) {
                    return Ok(Some(fs::read_link(&directory).unwrap_or(directory)));
                }
            }
        }
    }
    Ok(None)
}

/// What is not there, or was of a process that has ended, is nothing; that something cannot be looked at is an error.
fn unless_gone<T>(path: &Path, found: std::io::Result<T>) -> Result<Option<T>, RestoreError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(None),
        Err(error) => Err(RestoreError::read(path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_format::map::Entry;

    #[test]
    fn only_what_the_snapshot_has_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (to, fast) = (folder.path().join("data"), folder.path().join("fast"));
        let layout = Layout::new(to.clone(), None);
        for directory in ["base/5", "base/6", "pg_wal", "pg_tblspc", "global"] {
            fs::create_dir_all(to.join(directory)).unwrap();
        }
        for directory in ["PG_15_2/5", "PG_15_2/6", "PG_14_1/5"] {
            fs::create_dir_all(fast.join(directory)).unwrap();
            fs::write(fast.join(directory).join("1"), "1234").unwrap();
        }
        std::os::unix::fs::symlink(&fast, to.join("pg_tblspc/77")).unwrap();
        std::os::unix::fs::symlink("/elsewhere", to.join("pg_tblspc/78")).unwrap();
        for file in ["base/5/1", "base/6/1", "pg_wal/1", "postmaster.pid", "global/pg_control", MARKER] {
            fs::write(to.join(file), "123").unwrap();
        }
        // A directory where a file belongs, and a file with a second name.
        fs::create_dir(to.join("base/5/2")).unwrap();
        fs::write(folder.path().join("original"), "12").unwrap();
        fs::hard_link(folder.path().join("original"), to.join("base/5/3")).unwrap();

        let entry = |path: &str, kind| Entry { path: path.as_bytes().to_vec(), mode: 0o600, modified: 0, kind };
        let file = || EntryKind::File { size: 0, runs: Vec::new() };
        let directory = || EntryKind::Directory;
        let map = Map {
            entries: vec![
                entry("pgdata", directory()),
                entry("pgdata/base", directory()),
                entry("pgdata/base/5", directory()),
                entry("pgdata/base/5/1", file()),
                entry("pgdata/base/5/2", file()),
                entry("pgdata/base/5/3", file()),
                entry("pgdata/global", directory()),
                entry("pgdata/pg_tblspc", directory()),
                entry("pgdata/pg_tblspc/77", EntryKind::Link { target: b"/old".to_vec() }),
                entry("pgdata/pg_tblspc/77/PG_15_2", directory()),
                entry("pgdata/pg_tblspc/77/PG_15_2/5", directory()),
                entry("pgdata/pg_tblspc/77/PG_15_2/5/1", file()),
                entry("pgdata/pg_wal", directory()),
            ],
            ..Map::default()
        };
        let old = Old { to: to.clone(), major: 15 };
        let space = Tablespace { oid: 77, name: "fast".to_owned(), location: "/old".to_owned() };
        let places = [(space, fast.clone())];
        let counted = old.tidy(&layout, std::slice::from_ref(&map), &places, false).unwrap();
        assert!(to.join("base/6/1").exists() && fast.join("PG_15_2/6/1").exists());
        let removed = old.tidy(&layout, &[map], &places, true).unwrap();
        assert_eq!(counted, removed);
        // base/6/1, pg_wal/1, postmaster.pid, base/5/3 and the tablespace's 6/1; a directory without files is none.
        assert_eq!((removed.files, removed.bytes), (5, 15));
        assert!(removed.links.len() == 1 && removed.links[0].contains("/elsewhere"), "{:?}", removed.links);
        for gone in ["base/6", "base/5/2", "base/5/3", "pg_wal/1", "postmaster.pid", "pg_tblspc/78"] {
            assert!(to.join(gone).symlink_metadata().is_err(), "{gone}");
        }
        for kept in ["base/5/1", "pg_wal", "global/pg_control", MARKER, "pg_tblspc/77/PG_15_2/5/1"] {
            assert!(to.join(kept).exists(), "{kept}");
        }
        assert!(fast.join("PG_14_1/5/1").exists() && !fast.join("PG_15_2/6").exists());
        assert_eq!(fs::read(folder.path().join("original")).unwrap(), b"12");
    }
}
