//! What there is to copy: a walk through the data directory by the rules of `pgformat`.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use holdfast_pgformat::page::PAGE_SIZE;
use holdfast_pgformat::path::{self, Inclusion, RelationFile, copied_last};

use crate::BackupError;
use crate::select::Reading;

/// A regular file to be read.
#[derive(Clone, Debug)]
pub(crate) struct FileTask {
    pub path: PathBuf,
    /// In the snapshot, as in `pgdata/base/5/1259`.
    pub name: Vec<u8>,
    /// When it was listed; more is not read, because the log brings it.
    pub size: u64,
    pub mode: u32,
    pub modified: i64,
    pub relation: Option<RelationFile>,
    pub reading: Reading,
}

impl FileTask {
    pub(crate) fn bytes_to_read(&self) -> u64 {
        match &self.reading {
            Reading::Whole => self.size,
            Reading::Pages(ranges) => ranges.iter().map(|range| range.len() as u64 * PAGE_SIZE as u64).sum(),
        }
    }
}

/// A directory or link.
#[derive(Clone, Debug)]
pub(crate) struct Other {
    pub name: Vec<u8>,
    pub mode: u32,
    pub modified: i64,
    pub target: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub files: Vec<FileTask>,
    pub others: Vec<Other>,
    pub notes: Vec<String>,
    pub version_directory: String,
}

impl Scan {
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|task| task.size).sum()
    }

    pub(crate) fn bytes_to_read(&self) -> u64 {
        self.files.iter().map(FileTask::bytes_to_read).sum()
    }
}

/// The snapshot's name for the data directory.
pub(crate) const PGDATA: &[u8] = b"pgdata";

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// Lists the data directory. `global/pg_control` is left out: it is read at the end.
///
/// `version_directory` is the cluster's own in each tablespace; what else is there belongs to other clusters.
pub(crate) fn scan(data_directory: &Path, version_directory: &str) -> Result<Scan, BackupError> {
    let mut scan = Scan { version_directory: version_directory.to_owned(), ..Scan::default() };
    let metadata = fs::metadata(data_directory)
        .map_err(|source| BackupError::DataDirectory { path: data_directory.to_owned(), source })?;
    scan.others.push(other(PGDATA.to_vec(), &metadata, None));
    walk(data_directory, b"", &mut scan)?;
    Ok(scan)
}

fn other(name: Vec<u8>, metadata: &fs::Metadata, target: Option<Vec<u8>>) -> Other {
    Other { name, mode: metadata.mode() & 0o7777, modified: metadata.mtime(), target }
}

/// `relative` is the folder's path in the data directory, seen through tablespace links.
fn walk(folder: &Path, relative: &[u8], scan: &mut Scan) -> Result<(), BackupError> {
    let read_error = |source| BackupError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        // A database or tablespace that was dropped since its parent was read; replay drops it too.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !relative.is_empty() => return Ok(()),
        entries => entries.map_err(read_error)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(read_error)?;
        let path = entry.path();
        let relative = join(relative, entry.file_name().as_bytes());
        if path::is_of_other_release(&relative, &scan.version_directory) {
            continue;
        }
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(|source| BackupError::Read { path: path.clone(), source })?,
        };
        if metadata.is_symlink() {
            link(&path, &relative, &metadata, scan)?;
        } else if metadata.is_dir() {
            directory(&path, &relative, &metadata, scan)?;
        } else if metadata.is_file() {
            if path::inclusion(&relative, false) == Inclusion::Copy && !copied_last(&relative) {
                files.push(FileTask {
                    path,
                    name: join(PGDATA, &relative),
                    size: metadata.len(),
                    mode: metadata.mode() & 0o7777,
                    modified: metadata.mtime(),
                    relation: RelationFile::parse(&relative),
                    reading: Reading::Whole,
                });
            }
        } else {
            scan.notes.push(format!("{} is neither file nor directory and was left out", path.display()));
        }
    }
    let unlogged = path::unlogged(files.iter().filter_map(|file| file.relation.as_ref()));
    files.retain(|file| !file.relation.is_some_and(|relation| relation.is_reset(&unlogged)));
    scan.files.append(&mut files);
    Ok(())
}

fn directory(path: &Path, relative: &[u8], metadata: &fs::Metadata, scan: &mut Scan) -> Result<(), BackupError> {
    match path::inclusion(relative, true) {
        Inclusion::Skip => Ok(()),
        Inclusion::EmptyDirectory => {
            scan.others.push(other(join(PGDATA, relative), metadata, None));
            // `pg_wal/archive_status` is kept empty as well; what is not is skipped by the same rules.
            walk(path, relative, scan)
        }
        Inclusion::Copy => {
            scan.others.push(other(join(PGDATA, relative), metadata, None));
            walk(path, relative, scan)
        }
    }
}

fn link(path: &Path, relative: &[u8], metadata: &fs::Metadata, scan: &mut Scan) -> Result<(), BackupError> {
    let read_error = |source| BackupError::Read { path: path.to_owned(), source };
    let target = match fs::read_link(path) {
        // A tablespace that was dropped since the folder was read; replay drops it too.
        Err(error) if error.kind() == io::ErrorKind::NotFound && relative.starts_with(b"pg_tblspc/") => return Ok(()),
        target => target.map_err(read_error)?.into_os_string().into_vec(),
    };
    if relative.starts_with(b"pg_tblspc/") {
        let followed = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            followed => followed.map_err(read_error)?,
        };
        if !followed.is_dir() {
            let problem = "a tablespace is not a directory".to_owned();
            return Err(BackupError::Layout { path: path.to_owned(), problem });
        }
        scan.others.push(other(join(PGDATA, relative), metadata, Some(target)));
        return walk(path, relative, scan);
    }
    match fs::metadata(path) {
        // `pg_wal` on another disk, or `log`: restored as a directory.
        Ok(followed) if followed.is_dir() => match path::inclusion(relative, true) {
            Inclusion::Skip => Ok(()),
            Inclusion::EmptyDirectory => directory(path, relative, &followed, scan),
            Inclusion::Copy => {
                scan.notes.push(format!("{} is a link to a directory; its content was copied", path.display()));
                directory(path, relative, &followed, scan)
            }
        },
        // Settings that are kept elsewhere and linked here: the content is what counts.
        Ok(followed) if followed.is_file() && path::inclusion(relative, false) == Inclusion::Copy => {
            scan.files.push(FileTask {
                path: path.to_owned(),
                name: join(PGDATA, relative),
                size: followed.len(),
                mode: followed.mode() & 0o7777,
                modified: followed.mtime(),
                relation: RelationFile::parse(relative),
                reading: Reading::Whole,
            });
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            scan.notes.push(format!("{} is a link to nowhere and was left out", path.display()));
            Ok(())
        }
        Err(error) => Err(read_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_clusters_keep_in_a_tablespace_is_left_out() {
        let data = tempfile::tempdir().unwrap();
        let space = tempfile::tempdir().unwrap();
        let make = |path: PathBuf| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, [1; PAGE_SIZE]).unwrap();
        };
        for name in ["base/5/1259", "global/pg_control", "holdfast.restore", "holdfast.prefetch/x"] {
            make(data.path().join(name));
        }
        for name in ["PG_18_202506291/5/16402", "PG_15_202209061/5/16402", "PG_18_1/5/16402", "mine/16402"] {
            make(space.path().join(name));
        }
        fs::create_dir(data.path().join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(space.path(), data.path().join("pg_tblspc/16400")).unwrap();
        let scan = scan(data.path(), "PG_18_202506291").unwrap();
        let mut names: Vec<_> = scan.files.iter().map(|task| String::from_utf8_lossy(&task.name)).collect();
        names.sort();
        assert_eq!(names, ["pgdata/base/5/1259", "pgdata/pg_tblspc/16400/PG_18_202506291/5/16402"]);
    }
}
