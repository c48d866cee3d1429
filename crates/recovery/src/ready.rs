//! Whether a restore can be carried to its end, found out before anything is changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holdfast_format::manifest::{Manifest, Tablespace};
use holdfast_format::map::Map;
use holdfast_repository::Keyring;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Uid, faccessat};

use crate::RestoreError;

/// Makes sure that all packs are in the repository, as long as they should be, and that their keys can be opened.
pub(crate) async fn can_deliver(keyring: &Keyring, manifest: &Manifest, maps: &[Map]) -> Result<(), RestoreError> {
    let used = maps.iter().flat_map(|map| &map.packs);
    let epochs: BTreeSet<_> = used.clone().map(|pack| pack.epoch).collect();
    for epoch in epochs {
        keyring.epoch_key(epoch).await?;
    }
    let mut packs: BTreeMap<_, _> = used.map(|pack| (pack.id, None)).collect();
    packs.extend(manifest.packs.iter().map(|pack| (pack.id, Some(pack.bytes))));
    keyring.repository().require_packs(packs).await?;
    Ok(())
}

/// Makes sure that what is written to one place can be written, and touches no other.
pub(crate) fn can_write(to: &Path, places: &[(Tablespace, PathBuf)]) -> Result<(), RestoreError> {
    let mut known: Vec<(&Path, PathBuf)> = Vec::new();
    for path in [to].into_iter().chain(places.iter().map(|(_, place)| place.as_path())) {
        let real = real(path)?;
        if let Some((other, _)) = known.iter().find(|(_, other)| real.starts_with(other) || other.starts_with(&real)) {
            return Err(RestoreError::Nested { path: path.to_owned(), other: (*other).to_owned() });
        }
        known.push((path, real));
        let existing = path.ancestors().find(|path| fs::symlink_metadata(path).is_ok()).unwrap_or(path);
        if existing == path { own_directory(path)? } else { directory(existing)? }
    }
    Ok(())
}

/// Makes sure that names can be added to a directory, and removed.
pub(crate) fn directory(path: &Path) -> Result<(), RestoreError> {
    if !fs::metadata(path).map_err(RestoreError::write(path))?.is_dir() {
        return Err(RestoreError::write(path)(io::ErrorKind::NotADirectory.into()));
    }
    may(path, AccessFlags::W_OK | AccessFlags::X_OK)
}

/// The same for one that gets another mode as well, which only its owner can give it.
pub(crate) fn own_directory(path: &Path) -> Result<(), RestoreError> {
    let metadata = fs::metadata(path).map_err(RestoreError::write(path))?;
    if is_ours(&metadata) {
        // Whatever its mode is now.
        return may_be_read_only(path, metadata.mode(), directory(path));
    }
    Err(RestoreError::write(path)(io::ErrorKind::PermissionDenied.into()))
}

/// Makes sure that a file can be written, if need be after its mode was changed.
pub(crate) fn file(path: &Path, metadata: &fs::Metadata) -> Result<(), RestoreError> {
    may_be_read_only(path, if is_ours(metadata) { metadata.mode() } else { u32::MAX }, may(path, AccessFlags::W_OK))
}

/// That its own mode forbids it is no obstacle to an owner, who can change it; a file system that is read-only is.
fn may_be_read_only(path: &Path, mode: u32, found: Result<(), RestoreError>) -> Result<(), RestoreError> {
    match found {
        Err(RestoreError::Write { source, .. })
            if source.kind() == io::ErrorKind::PermissionDenied && mode & 0o600 != 0o600 =>
        {
            tracing::debug!(path = %path.display(), "its mode will be changed");
            Ok(())
        }
        found => found,
    }
}

fn is_ours(metadata: &fs::Metadata) -> bool {
    let user = Uid::effective();
    user.is_root() || metadata.uid() == user.as_raw()
}

fn may(path: &Path, flags: AccessFlags) -> Result<(), RestoreError> {
    faccessat(AT_FDCWD, path, flags, AtFlags::AT_EACCESS)
        .map_err(|error| RestoreError::write(path)(io::Error::from_raw_os_error(error as i32)))
}

/// A path without links in it, whose end need not be there yet.
fn real(path: &Path) -> Result<PathBuf, RestoreError> {
    let mut missing = Vec::new();
    let mut existing = path;
    loop {
        match fs::canonicalize(existing) {
            Ok(found) => return Ok(missing.iter().rev().fold(found, |path, name| path.join(name))),
            // A link that leads nowhere is in the way; nothing can be made behind it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(existing).is_err() => {
                let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
                    return Err(RestoreError::write(path)(error));
                };
                missing.push(name);
                existing = parent;
            }
            Err(error) => return Err(RestoreError::write(existing)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn places_do_not_lie_in_one_another() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("data")).unwrap();
        fs::create_dir(at("fast")).unwrap();
        symlink(at("data"), at("link")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        fs::write(at("file"), "").unwrap();
        let check = |to: &str, places: &[&str]| {
            let space =
                |place: &&str| (Tablespace { oid: 7, name: "fast".to_owned(), location: "/old".to_owned() }, at(place));
            can_write(&at(to), &places.iter().map(space).collect::<Vec<_>>())
        };
        check("data", &[]).unwrap();
        check("data", &["fast", "new/deep", "new/other"]).unwrap();
        for places in [
            &["data"][..],
            &["data/space"],
            &["link/space"],
            &["data/../data/space"],
            &["fast", "fast"],
            &["fast", "fast/inner"],
            &["new/deep", "new"],
            &["."],
        ] {
            assert!(matches!(check("data", places), Err(RestoreError::Nested { .. })), "{places:?}");
        }
        for places in [&["dangling"][..], &["dangling/space"], &["file"], &["file/space"]] {
            assert!(matches!(check("data", places), Err(RestoreError::Write { .. })), "{places:?}");
        }
        // A name that only begins like another is another.
        check("data", &["data2"]).unwrap();
    }
}
