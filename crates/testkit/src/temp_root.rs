//! Temporary directories that the servers can use.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::user::own;

/// A temporary directory owned by the OS user of the servers and readable by everyone; removed when dropped.
///
/// It is always under `/tmp`: its path is short enough for a socket, and no parent bars the other user.
#[derive(Debug)]
pub struct TempRoot {
    directory: TempDir,
}

impl TempRoot {
    /// Makes a new one.
    #[expect(clippy::new_without_default, reason = "it makes a directory, which no default should do")]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("holdfast-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .expect("a directory can be made in /tmp");
        own(directory.path());
        Self { directory }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path inside it; nothing is made there.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a directory inside it, owned by the servers' user.
    pub fn make_directory(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("could not make {}: {error}", path.display()));
        own(&path);
        path
    }
}
