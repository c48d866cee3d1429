//! A store in a directory of another machine, over SFTP as OpenSSH has it.
//!
//! *Consistency.* As in a directory here: an object is written under a temporary name, synced (`fsync@openssh.com`), and
//! hard-linked to its own name (`hardlink@openssh.com`), which fails if the name is taken; then it is synced once more, by
//! which file systems with a journal make the link durable along with it. A server without these extensions is refused.
//!
//! *Connection.* Made by `ssh`, so that its configuration, agent and jump hosts hold; one that is lost is made again at the
//! next operation.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, pin_mut};
use openssh::{KnownHosts, SessionBuilder};
use openssh_sftp_client::error::SftpErrorKind;
use openssh_sftp_client::file::File;
use openssh_sftp_client::fs::Fs;
use openssh_sftp_client::{Error, Sftp, SftpOptions};
use tokio::sync::Mutex;

use crate::{Cause, Created, Listed, ObjectName, Store, StoreError};

const TEMPORARY: &str = ".tmp";
const PATIENCE: Duration = Duration::from_secs(30);
/// What servers give at once, at most (OpenSSH's is 256 KiB).
const READ_BYTES: u32 = 256 << 10;
const SLOWEST_BYTES_A_SECOND: u64 = 128 << 10;

/// How to get there.
#[derive(Clone, Debug)]
pub struct SftpPlace {
    /// `ssh://USER@HOST:PORT`, or a name of the configuration of `ssh`.
    pub destination: String,
    /// Absolute.
    pub path: PathBuf,
    pub key_file: Option<PathBuf>,
    pub known_hosts_file: Option<PathBuf>,
}

impl SftpPlace {
    /// From `sftp://USER@HOST:PORT/PATH`; all but the host and the path may be left out.
    pub fn parse(url: &str) -> Option<Self> {
        let (host, path) = url.strip_prefix("sftp://")?.split_once('/')?;
        let path = PathBuf::from(format!("/{path}"));
        let is_plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.bytes().all(|b| b.is_ascii_graphic() && !b"/?#%'\"".contains(&b))
        };
        let is_straight = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        (is_plain(host) && is_straight && path.parent().is_some()).then(|| Self {
            destination: format!("ssh://{host}"),
            path,
            key_file: None,
            known_hosts_file: None,
        })
    }
}

/// A repository's directory on another machine.
#[derive(Clone, Debug)]
pub struct SftpStore {
    place: Arc<SftpPlace>,
    connection: Arc<Mutex<Option<Arc<Sftp>>>>,
}

impl SftpStore {
    /// Does not connect.
    pub fn new(place: SftpPlace) -> Self {
        Self { place: Arc::new(place), connection: Arc::default() }
    }

    fn failed(&self, operation: &'static str, name: &str, cause: Cause) -> StoreError {
        StoreError { operation, name: name.to_owned(), location: self.location(), cause }
    }

    async fn connect(&self) -> Result<Arc<Sftp>, Cause> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = held.as_ref() {
            return Ok(Arc::clone(connection));
        }
        let temporary = |text: String| Cause::Unavailable(text);
        let mut builder = SessionBuilder::default();
        // An unknown host is never trusted by itself.
        builder.known_hosts_check(KnownHosts::Strict).connect_timeout(PATIENCE);
        if let Some(path) = &self.place.key_file {
            builder.keyfile(path);
        }
        if let Some(path) = &self.place.known_hosts_file {
            builder.user_known_hosts_file(path);
        }
        let session = builder.connect(&self.place.destination).await;
        let session = session.map_err(|error| temporary(format!("no connection: {}", deepest(&error))))?;
        let sftp = Sftp::from_session(session, SftpOptions::default()).await;
        let sftp = sftp.map_err(|error| temporary(format!("no connection: {}", deepest(&error))))?;
        if !sftp.support_hardlink() || !sftp.support_fsync() {
            let text = "the server lacks hardlink@openssh.com or fsync@openssh.com".to_owned();
            return Err(Cause::Service(text));
        }
        let sftp = Arc::new(sftp);
        *held = Some(Arc::clone(&sftp));
        Ok(sftp)
    }

    /// Runs an operation; one that the connection fails under forgets the connection.
    async fn run<T, F: Future<Output = Result<T, Error>>>(
        &self,
        operation: &'static str,
        name: &str,
        bytes: u64,
        work: impl FnOnce(Arc<Sftp>) -> F,
    ) -> Result<T, StoreError> {
        let failed = |cause| self.failed(operation, name, cause);
        let connecting = tokio::time::timeout(2 * PATIENCE, self.connect()).await;
        let no_connection = |_| Err(Cause::Unavailable(format!("no connection within {} s", 2 * PATIENCE.as_secs())));
        let sftp = connecting.unwrap_or_else(no_connection).map_err(failed)?;
        let deadline = PATIENCE + Duration::from_secs(bytes / SLOWEST_BYTES_A_SECOND);
        let outcome = tokio::time::timeout(deadline, work(Arc::clone(&sftp))).await;
        let error = match outcome {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => {
                self.forget(&sftp).await;
                let text = format!("no answer within {} s", deadline.as_secs());
                return Err(failed(Cause::Unavailable(text)));
            }
        };
        Err(failed(match kind(&error) {
            // A missing object and a missing repository must not look alike.
            Some(SftpErrorKind::NoSuchFile) => {
                let root = self.place.path.clone();
                match tokio::time::timeout(PATIENCE, async { sftp.fs().metadata(&root).await }).await {
                    Ok(Ok(_)) => Cause::NotFound,
                    _ => Cause::Away,
                }
            }
            Some(SftpErrorKind::PermDenied) => Cause::Refused(deepest(&error)),
            Some(_) => Cause::Service(deepest(&error)),
            None => {
                self.forget(&sftp).await;
                Cause::Unavailable(deepest(&error))
            }
        }))
    }

    async fn forget(&self, lost: &Arc<Sftp>) {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, lost)) {
            *held = None;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { self.place.path.clone() } else { self.place.path.join(name) }
    }
}

/// What the server answered; `None` if it did not.
fn kind(error: &Error) -> Option<SftpErrorKind> {
    match error {
        Error::SftpError(kind, _) => Some(*kind),
        _ => None,
    }
}

fn is_missing(error: &Error) -> bool {
    matches!(kind(error), Some(SftpErrorKind::NoSuchFile))
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

async fn exists(fs: &mut Fs, path: &Path) -> Result<bool, Error> {
    match fs.metadata(path).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes what is missing between the root and a folder. The root itself is not made: an unmounted disk must stay an error.
async fn make_folders(fs: &mut Fs, root: &Path, folder: &Path) -> Result<(), Error> {
    let mut missing = Vec::new();
    let mut path = folder;
    while path != root && !exists(fs, path).await? {
        missing.push(path);
        match path.parent() {
            Some(parent) => path = parent,
            None => break,
        }
    }
    for path in missing.into_iter().rev() {
        if let Err(error) = fs.create_dir(path).await
            && !exists(fs, path).await?
        {
            return Err(error);
        }
    }
    Ok(())
}

/// Whoever made it may have died before its name was durable.
async fn sync(sftp: &Sftp, path: &Path) -> Result<(), Error> {
    // Only a file that may be written is synced.
    let mut file = sftp.options().write(true).open(path).await?;
    file.sync_all().await?;
    file.close().await
}

async fn create(sftp: Arc<Sftp>, root: PathBuf, name: ObjectName, bytes: Bytes) -> Result<Created, Error> {
    let mut fs = sftp.fs();
    let target = root.join(name.as_str());
    if exists(&mut fs, &target).await? {
        return sync(&sftp, &target).await.map(|()| Created::Exists);
    }
    // Fails where the root is not there.
    fs.metadata(&root).await?;
    make_folders(&mut fs, &root, target.parent().unwrap_or(&root)).await?;
    let folder = root.join(TEMPORARY);
    make_folders(&mut fs, &root, &folder).await?;
    let temporary = folder.join(crate::temporary_name(&name));
    // Never one that is there: it may be the second name of an object, left by whoever died between linking and unlinking.
    let mut file: File = sftp.options().write(true).create_new(true).open(&temporary).await?;
    let written = async {
        file.write_all_zero_copy(&mut [bytes]).await?;
        file.sync_all().await?;
        let linked = match fs.hard_link(&temporary, &target).await {
            Ok(()) => Created::New,
            Err(error) => {
                if kind(&error).is_none() || !exists(&mut fs, &target).await? {
                    return Err(error);
                }
                Created::Exists
            }
        };
        sync(&sftp, &target).await?;
        Ok(linked)
    }
    .await;
    let closed = file.close().await;
    let removed = fs.remove_file(&temporary).await;
    let created = written?;
    closed.and(removed)?;
    Ok(created)
}

async fn read_range(sftp: Arc<Sftp>, path: PathBuf, range: Range<u64>) -> Result<Bytes, Error> {
    use tokio::io::AsyncSeekExt as _;
    let mut file = sftp.open(&path).await?;
    file.seek(std::io::SeekFrom::Start(range.start)).await?;
    let wanted = (range.end - range.start) as usize;
    let mut buffer = BytesMut::with_capacity(wanted);
    while buffer.len() < wanted {
        let have = buffer.len();
        let want = u32::try_from(wanted - have).unwrap_or(u32::MAX).min(READ_BYTES);
        match file.read(want, buffer.split_off(have)).await? {
            Some(more) => buffer.unsplit(more),
            None => break,
        }
    }
    file.close().await?;
    Ok(buffer.freeze())
}

/// What is directly in a folder: names, and whether each is a folder; sorted as full names are.
async fn children(fs: &mut Fs, path: &Path) -> Result<Vec<(String, bool)>, Error> {
    let folder = match fs.open_dir(path).await {
        Ok(folder) => folder.read_dir(),
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    pin_mut!(folder);
    let mut found = Vec::new();
    while let Some(entry) = folder.next().await {
        let entry = entry?;
        if let Some(name) = entry.filename().to_str()
            && ObjectName::new(name).is_ok()
        {
            found.push((name.to_owned(), entry.file_type().is_some_and(|kind| kind.is_dir())));
        }
    }
    found.sort_by(|(a, a_is_folder), (b, b_is_folder)| {
        let key = |name: &str, is_folder: bool| if is_folder { format!("{name}/") } else { name.to_owned() };
        key(a, *a_is_folder).cmp(&key(b, *b_is_folder))
    });
    Ok(found)
}

async fn list(
    sftp: Arc<Sftp>,
    root: PathBuf,
    folder: String,
    after: Option<String>,
    limit: usize,
) -> Result<Vec<Listed>, Error> {
    let mut fs = sftp.fs();
    fs.metadata(&root).await?;
    let mut found = Vec::new();
    let mut waiting: VecDeque<(String, bool)> = VecDeque::from([(folder, true)]);
    while let Some((name, is_folder)) = waiting.pop_front() {
        if found.len() >= limit {
            break;
        }
        let path = if name.is_empty() { root.clone() } else { root.join(&name) };
        if is_folder {
            let prefix = if name.is_empty() { String::new() } else { format!("{name}/") };
            // A whole folder lies before `after` if its prefix is smaller and not the beginning of it.
            if after.as_ref().is_some_and(|after| prefix < *after && !after.starts_with(&prefix)) {
                continue;
            }
            for (child, is_folder) in children(&mut fs, &path).await?.into_iter().rev() {
                waiting.push_front((format!("{prefix}{child}"), is_folder));
            }
        } else if after.as_ref().is_none_or(|after| name > *after) {
            let metadata = match fs.metadata(&path).await {
                Ok(metadata) => metadata,
                Err(error) if is_missing(&error) => continue,
                Err(error) => return Err(error),
            };
            if let Ok(name) = ObjectName::new(name) {
                let modified = metadata
                    .modified()
                    .map_or(SystemTime::UNIX_EPOCH, openssh_sftp_client::UnixTimeStamp::as_system_time);
                found.push(Listed { name, size: metadata.len().unwrap_or(0), modified });
            }
        }
    }
    Ok(found)
}

#[async_trait]
impl Store for SftpStore {
    fn location(&self) -> String {
        format!("{} of {}", self.place.path.display(), self.place.destination)
    }

    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let (root, len) = (self.place.path.clone(), bytes.len() as u64);
        self.run("create", name.as_str(), len, |sftp| create(sftp, root, name.clone(), bytes)).await
    }

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        let path = self.path(name.as_str());
        let reading = |sftp: Arc<Sftp>| async move { sftp.fs().read(&path).await.map(BytesMut::freeze) };
        self.run("read", name.as_str(), 64 << 20, reading).await
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (path, wanted) = (self.path(name.as_str()), range.end.saturating_sub(range.start));
        let bytes = self.run("read", name.as_str(), wanted, |sftp| read_range(sftp, path, range.clone())).await?;
        if bytes.len() as u64 == wanted {
            return Ok(bytes);
        }
        let len = range.start + bytes.len() as u64;
        Err(self.failed("read", name.as_str(), Cause::Truncated { len }))
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        let path = self.path(name.as_str());
        let looking = |sftp: Arc<Sftp>| async move { sftp.fs().metadata(&path).await };
        let metadata = self.run("look up", name.as_str(), 0, looking).await?;
        metadata.len().ok_or_else(|| {
            let text = "the server does not tell its size".to_owned();
            self.failed("look up", name.as_str(), Cause::Service(text))
        })
    }

    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let (root, after) = (self.place.path.clone(), after.map(ToString::to_string));
        self.run("list", folder, 64 << 20, |sftp| list(sftp, root, folder.to_owned(), after, limit)).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let (root, path) = (self.place.path.clone(), self.path(folder));
        let listing = |sftp: Arc<Sftp>| async move {
            let mut fs = sftp.fs();
            fs.metadata(&root).await?;
            children(&mut fs, &path).await
        };
        let children = self.run("list", folder, 0, listing).await?;
        Ok(children.into_iter().filter(|(_, is_folder)| *is_folder).map(|(name, _)| name).collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let path = self.path(name.as_str());
        let deleting = |sftp: Arc<Sftp>| async move { sftp.fs().remove_file(&path).await };
        match self.run("delete", name.as_str(), 0, deleting).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_a_host_and_a_path() {
        let place = SftpPlace::parse("sftp://backup@db2:2222/srv/holdfast").unwrap();
        assert_eq!((place.destination.as_str(), place.path.to_str()), ("ssh://backup@db2:2222", Some("/srv/holdfast")));
        for text in [
            "",
            "sftp://",
            "sftp://host",
            "sftp:///srv",
            "sftp://host/",
            "sftp://-oProxyCommand=x/srv",
            "sftp://h/a/../b",
        ] {
            assert!(SftpPlace::parse(text).is_none(), "{text}");
        }
    }
}
