//! A store in a directory of a POSIX file system.
//!
//! *Consistency.* An object is written under a temporary name, synced, and hard-linked to its own name, which fails if
//! the name is taken; then the folder is synced. Where a file system has no hard links, `renameat2` with
//! `RENAME_NOREPLACE` does the same.
//!
//! *Crash.* A process or machine that dies on the way leaves a file in `.tmp`, which nobody lists; [`Directory::sweep`]
//! removes those of more than a day ago.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_runtime::{ALIGNMENT, AlignedBuffer, leave_direct, open_direct};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::{Cause, Created, Listed, ObjectName, Store, StoreError, temporary_name};

const TEMPORARY: &str = ".tmp";

/// A repository's directory.
#[derive(Clone, Debug)]
pub struct Directory {
    root: Arc<PathBuf>,
}

impl Directory {
    /// Does not touch the file system: whether the place is there shows at the first operation.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: Arc::new(root.into()) }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn error(&self, operation: &'static str, name: &str, error: io::Error) -> StoreError {
        let cause = match error.kind() {
            // A missing object and a missing repository must not look alike: an unmounted disk is no deleted backup.
            io::ErrorKind::NotFound if !self.root.is_dir() => Cause::Away,
            io::ErrorKind::NotFound => Cause::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Cause::Full(error),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Cause::Denied(error),
            _ => Cause::Io(error),
        };
        StoreError { operation, name: name.to_owned(), location: self.location(), cause }
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        name: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = Arc::clone(&self.root);
        let outcome = tokio::task::spawn_blocking(move || work(&root)).await;
        outcome.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|error| self.error(operation, name, error))
    }

    /// Removes what writers that died left behind more than a day ago.
    pub async fn sweep(&self) -> Result<(), StoreError> {
        self.run("sweep", TEMPORARY, |root| {
            let entries = match fs::read_dir(root.join(TEMPORARY)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let age = SystemTime::now().duration_since(entry.metadata()?.modified()?).unwrap_or_default();
                if age > Duration::from_hours(24) {
                    fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// How often a folder may vanish that was just made: somebody who deletes the last object of a folder removes that, too.
const VANISHED: u32 = 100;

/// Creates `path` and what is missing above it, down from `root`, each made durable in its parent.
fn create_folders(root: &Path, path: &Path) -> io::Result<()> {
    for _ in 0..VANISHED {
        match try_create_folders(root, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && root.is_dir() => {}
            outcome => return outcome,
        }
    }
    try_create_folders(root, path)
}

fn try_create_folders(root: &Path, path: &Path) -> io::Result<()> {
    if path == root || path.is_dir() {
        return Ok(());
    }
    let Some(parent) = path.parent() else { return Ok(()) };
    try_create_folders(root, parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // Synced also when somebody else was first: their sync may still be under way.
        _ => sync_directory(parent),
    }
}

fn create(root: &Path, name: &ObjectName, bytes: &[u8]) -> io::Result<Created> {
    // Only what is in the repository's directory is made, never that directory: an unmounted disk must stay an error.
    if !root.is_dir() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let target = root.join(name.as_str());
    let folder = target.parent().unwrap_or(root);
    if target.exists() {
        // Whoever made it may have died before it was durable, and our caller will rely on that.
        match sync_directory(folder) {
            // It was deleted meanwhile, and its folder with it: it is made anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            synced => return synced.map(|()| Created::Exists),
        }
    }
    create_folders(root, folder)?;
    let temporary_folder = root.join(TEMPORARY);
    create_folders(root, &temporary_folder)?;
    let temporary = temporary_folder.join(temporary_name(name));
    let outcome = write_durably(&temporary, bytes).and_then(|()| publish_in(root, folder, &temporary, &target));
    let removed = fs::remove_file(&temporary);
    let created = outcome?;
    match removed {
        // Renaming has already taken the temporary name away.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The folder may be one that somebody else has just made anew.
    let synced = match folder.parent() {
        Some(parent) if folder != root => sync_directory(folder).and_then(|()| sync_directory(parent)),
        _ => sync_directory(folder),
    };
    match synced {
        // Somebody has deleted the object already.
        Err(error) if error.kind() == io::ErrorKind::NotFound && root.is_dir() => Ok(created),
        synced => synced.map(|()| created),
    }
}

fn publish_in(root: &Path, folder: &Path, temporary: &Path, target: &Path) -> io::Result<Created> {
    for _ in 0..VANISHED {
        match publish(temporary, target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && root.is_dir() => create_folders(root, folder)?,
            outcome => return outcome,
        }
    }
    publish(temporary, target)
}

fn delete(root: &Path, name: &ObjectName) -> io::Result<()> {
    let path = root.join(name.as_str());
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && root.is_dir() => return Ok(()),
        outcome => outcome?,
    }
    // Every listing would look into empty ones: there is one for each segment of log that ever was.
    if let Some(folder) = path.parent().filter(|folder| *folder != root)
        && let Err(error) = fs::remove_dir(folder)
        && !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound)
    {
        tracing::debug!(%error, folder = %folder.display(), "an empty folder stays");
    }
    Ok(())
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Never one that is there: it may be the second name of an object, left by whoever died between linking and unlinking.
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o640);
    if bytes.len() < DIRECT_BYTES {
        let mut file = options.open(path)?;
        file.write_all(bytes)?;
        return file.sync_all();
    }
    let (mut file, is_direct) = match open_direct(&options, path) {
        // Some file systems make the file before they find that they have no direct I/O.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::remove_file(path)?;
            (options.open(path)?, false)
        }
        opened => opened?,
    };
    let mut rest = bytes;
    if is_direct {
        let mut buffer = AlignedBuffer::new(DIRECT_BYTES);
        while let Some((now, later)) = rest.split_at_checked(rest.len().min(DIRECT_BYTES) / ALIGNMENT * ALIGNMENT)
            && !now.is_empty()
        {
            buffer[..now.len()].copy_from_slice(now);
            file.write_all(&buffer[..now.len()])?;
            rest = later;
        }
        leave_direct(&file)?;
    }
    file.write_all(rest)?;
    file.sync_all()
}

/// Objects of this size and more are written past the page cache, so many bytes at a time.
const DIRECT_BYTES: usize = 1 << 20;

fn publish(temporary: &Path, target: &Path) -> io::Result<Created> {
    match fs::hard_link(temporary, target) {
        Ok(()) => Ok(Created::New),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Created::Exists),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied)
                || error.raw_os_error() == Some(nix::errno::Errno::EMLINK as i32) =>
        {
            match renameat2(AT_FDCWD, temporary, AT_FDCWD, target, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => Ok(Created::New),
                Err(nix::errno::Errno::EEXIST) => Ok(Created::Exists),
                Err(_) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn read_range(path: &Path, range: &Range<u64>) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(range.start))?;
    let len = range.end.saturating_sub(range.start);
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Walks `folder` in the order of full names: a folder `a` sorts as `a/`, so files and folders are ordered together.
fn walk(root: &Path, folder: &str, after: Option<&str>, limit: usize, found: &mut Vec<Listed>) -> io::Result<()> {
    for (name, is_folder) in children(root, folder)? {
        if found.len() >= limit {
            return Ok(());
        }
        let full = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        if is_folder {
            let prefix = format!("{full}/");
            // A whole folder lies before `after` if its prefix is smaller and not the beginning of it.
            if after.is_some_and(|after| prefix.as_str() < after && !after.starts_with(&prefix)) {
                continue;
            }
            walk(root, &full, after, limit, found)?;
        } else if after.is_none_or(|after| full.as_str() > after) {
            let metadata = match fs::metadata(root.join(&full)) {
                // Deleted since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if let Ok(name) = ObjectName::new(full) {
                found.push(Listed { name, size: metadata.len(), modified: metadata.modified()? });
            }
        }
    }
    Ok(())
}

/// What is directly in a folder, folders marked, sorted as their full names are.
fn children(root: &Path, folder: &str) -> io::Result<Vec<(String, bool)>> {
    let entries = match fs::read_dir(root.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && root.is_dir() => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && ObjectName::new(name.as_str()).is_ok()
        {
            children.push((name, entry.file_type()?.is_dir()));
        }
    }
    children.sort_by(|(a, a_is_folder), (b, b_is_folder)| {
        let key = |name: &str, is_folder: bool| if is_folder { format!("{name}/") } else { name.to_owned() };
        key(a, *a_is_folder).cmp(&key(b, *b_is_folder))
    });
    Ok(children)
}

#[async_trait]
impl Store for Directory {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let owned = name.clone();
        self.run("create", name.as_str(), move |root| create(root, &owned, &bytes)).await
    }

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let owned = name.clone();
        self.run("read", name.as_str(), move |root| fs::read(root.join(owned.as_str())).map(Bytes::from)).await
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (owned, asked) = (name.clone(), range.clone());
        let bytes = self.run("read", name.as_str(), move |root| read_range(&root.join(owned.as_str()), &asked)).await?;
        if bytes.len() as u64 == range.end - range.start {
            Ok(Bytes::from(bytes))
        } else {
            let cause = Cause::Truncated { len: range.start + bytes.len() as u64 };
            Err(StoreError { operation: "read", name: name.to_string(), location: self.location(), cause })
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        let owned = name.clone();
        self.run("look up", name.as_str(), move |root| Ok(fs::metadata(root.join(owned.as_str()))?.len())).await
    }

    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let (owned, after) = (folder.to_owned(), after.map(ToString::to_string));
        self.run("list", folder, move |root| {
            let mut found = Vec::new();
            walk(root, &owned, after.as_deref(), limit, &mut found)?;
            found.truncate(limit);
            Ok(found)
        })
        .await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let owned = folder.to_owned();
        self.run("list", folder, move |root| {
            let children = children(root, &owned)?;
            Ok(children.into_iter().filter(|(_, is_folder)| *is_folder).map(|(name, _)| name).collect())
        })
        .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let owned = name.clone();
        self.run("delete", name.as_str(), move |root| delete(root, &owned)).await
    }
}
