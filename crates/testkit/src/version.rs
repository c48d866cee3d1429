//! Which PostgreSQL versions this machine has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use crate::user::command_as_server_user;

/// Where Debian puts its versions.
const DEBIAN: &str = "/usr/lib/postgresql";
/// Where `scripts/install-postgres-18.sh` unpacks when root runs it.
const SHARED_CACHE: &str = "/var/cache/holdfast/postgresql";

/// An installed PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgVersion {
    major: u32,
    bin: PathBuf,
}

impl PgVersion {
    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The directory of its programs.
    pub fn bin_directory(&self) -> &Path {
        &self.bin
    }

    /// One of its programs, such as `pg_ctl`.
    pub fn bin(&self, program: &str) -> PathBuf {
        self.bin.join(program)
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.major)
    }
}

/// All versions that the servers' user can run here, oldest first. Debian's own are preferred to unpacked ones.
pub fn versions() -> Vec<PgVersion> {
    static VERSIONS: OnceLock<Vec<PgVersion>> = OnceLock::new();
    VERSIONS
        .get_or_init(|| {
            let mut found = BTreeMap::new();
            for (major, folder) in numbered_folders(Path::new(DEBIAN)) {
                add(&mut found, major, folder.join("bin"));
            }
            for root in unpacked_roots() {
                for (major, folder) in numbered_folders(&root) {
                    add(&mut found, major, folder.join(format!("usr/lib/postgresql/{major}/bin")));
                }
            }
            found.into_values().collect()
        })
        .clone()
}

/// The given major version; panics with advice when it is not installed.
pub fn require(major: u32) -> PgVersion {
    versions().into_iter().find(|version| version.major == major).unwrap_or_else(|| {
        panic!("PostgreSQL {major} is not installed: run scripts/install-deps.sh or scripts/install-postgres-18.sh")
    })
}

/// The oldest version here: on Debian, the one that the distribution carries.
pub fn default_version() -> PgVersion {
    versions().into_iter().next().expect("no PostgreSQL is installed: run scripts/install-deps.sh")
}

fn unpacked_roots() -> Vec<PathBuf> {
    if let Some(root) = std::env::var_os("HOLDFAST_PG_ROOT") {
        return vec![root.into()];
    }
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache/holdfast/postgresql"));
    std::iter::once(SHARED_CACHE.into()).chain(home).collect()
}

fn numbered_folders(root: &Path) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = root.read_dir() else { return Vec::new() };
    entries.flatten().filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path()))).collect()
}

/// Adds a version unless there is one already, or its server cannot be run: a folder that only holds the client, or
/// that lies where the servers' user cannot reach it, is no version.
fn add(found: &mut BTreeMap<u32, PgVersion>, major: u32, bin: PathBuf) {
    if found.contains_key(&major) || !bin.join("initdb").exists() {
        return;
    }
    let answer = command_as_server_user(bin.join("postgres"))
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if answer.is_ok_and(|status| status.success()) {
        found.insert(major, PgVersion { major, bin });
    }
}
