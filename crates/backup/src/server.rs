//! What a snapshot holds of the server besides its files: who it is, where it lives, whose it is, how it is set.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_format::manifest::{Owner, Tablespace as StoredTablespace};
use holdfast_pgformat::ControlFile;
use holdfast_postgres::client::{Client, Purpose, literal};
use holdfast_postgres::server::{Right, ServerInfo, check_rights};
use holdfast_repository::Lineage;
use holdfast_types::SystemId;

use crate::BackupError;
use crate::copy::RELSEG_BLOCKS;
use crate::scan::{FileTask, Other, Scan};
use crate::select::Reading;
use crate::snapshot::BackupOptions;

const OLDEST: u32 = 13;
const NEWEST: u32 = 18;

/// Where restores keep settings that were outside the data directory. A server may be told to read them there.
const SET_ASIDE: &str = "holdfast.config";

/// Under which the log of a server is kept.
pub fn lineage(info: &ServerInfo) -> Lineage {
    Lineage { system_id: info.system_id, segment_size: info.wal_segment_size }
}

/// The name of what stands between us and the server, if anything does. A pooler gives each statement another session, and
/// both the backup and the lock belong to one.
pub(crate) async fn is_pooled(client: &mut Client, source: &str) -> Result<Option<String>, BackupError> {
    let failed = |error| BackupError::Query { source_name: source.to_owned(), source: error };
    let row = client.query_one("SELECT pg_catalog.pg_backend_pid() AS pid").await.map_err(failed)?;
    let is_same = row.parse::<i32>("pid").map_or(true, |pid| pid == client.backend_pid());
    Ok((!is_same).then(|| client.server().to_owned()))
}

/// "HOLD", before the hash of the source's name.
const LOCK: u32 = 0x484f_4c44;

/// Says by an advisory lock, which goes with the session, that a backup is being made; whether it is the only one.
pub(crate) async fn is_only_one(client: &mut Client, source: &str) -> Result<bool, BackupError> {
    let sql =
        format!("SELECT pg_catalog.pg_try_advisory_lock({LOCK}, pg_catalog.hashtext({})) AS only", literal(source));
    let failed = |error| BackupError::Query { source_name: source.to_owned(), source: error };
    let row = client.query_one(&sql).await.map_err(failed)?;
    // What cannot be read is no reason to make none.
    Ok(row.truth("only").unwrap_or(true))
}

pub(crate) async fn connect(options: &BackupOptions) -> Result<(Client, ServerInfo), BackupError> {
    let source_name = || options.source.clone();
    let query = |source| BackupError::Query { source_name: source_name(), source };
    let mut client = Client::connect(&options.connection, Purpose::Sql)
        .await
        .map_err(|source| BackupError::Connect { source_name: source_name(), source })?;
    let major = client.major();
    if !(OLDEST..=NEWEST).contains(&major) {
        return Err(BackupError::UnsupportedVersion { version: major });
    }
    let findings = check_rights(&mut client).await.map_err(query)?;
    let needed: Vec<_> = findings.into_iter().filter(|finding| is_needed(finding.right)).collect();
    if !needed.is_empty() {
        return Err(BackupError::Rights {
            missing: needed.iter().map(|finding| finding.right.to_string()).collect(),
            hints: needed.into_iter().map(|finding| finding.hint).collect(),
        });
    }
    let info = ServerInfo::read(&mut client).await.map_err(query)?;
    if info.block_size != 8192 {
        return Err(BackupError::UnsupportedBlockSize { block_size: info.block_size });
    }
    if info.wal_level == "minimal" {
        return Err(BackupError::WalLevel { wal_level: info.wal_level });
    }
    Ok((client, info))
}

/// Without replication a receiver or the archiver has to bring the log; that shows when it is looked for.
const fn is_needed(right: Right) -> bool {
    matches!(right, Right::BackupStart | Right::BackupStop | Right::ReadSettings)
}

/// The server's files on this machine, of a kind that can be copied, and of this cluster.
pub(crate) async fn find_data_directory(options: &BackupOptions, info: &ServerInfo) -> Result<PathBuf, BackupError> {
    let told = info.files.data_directory.as_ref().map(PathBuf::from);
    let path = options.data_directory.clone().or(told).ok_or(BackupError::DataDirectoryUnknown)?;
    std::fs::File::open(path.join("global/pg_control"))
        .map_err(|source| BackupError::DataDirectory { path: path.clone(), source })?;
    let control = ControlFile::parse(&read_control_file(&path).await?)
        .map_err(|error| BackupError::ControlFile { path: path.clone(), problem: error.to_string() })?;
    fit(path, &control, info.system_id)
}

fn fit(path: PathBuf, control: &ControlFile, system_id: SystemId) -> Result<PathBuf, BackupError> {
    if control.system_id != system_id {
        return Err(BackupError::OtherCluster { path, expected: system_id, found: control.system_id });
    }
    // Where a page lies in which file follows from it: which pages changed, and what their checksums count from.
    if control.relseg_size != RELSEG_BLOCKS {
        return Err(BackupError::UnsupportedSegmentFiles { pages: control.relseg_size });
    }
    Ok(path)
}

/// `pg_control` is rewritten in place at any time; the file is good when its checksum is.
pub(crate) async fn read_control_file(data_directory: &Path) -> Result<Vec<u8>, BackupError> {
    let path = data_directory.join("global/pg_control");
    let mut problem = String::new();
    for _ in 0..50 {
        let bytes = std::fs::read(&path).map_err(|source| BackupError::Read { path: path.clone(), source })?;
        match ControlFile::parse(&bytes) {
            Ok(_) => return Ok(bytes),
            Err(error) => problem = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(BackupError::ControlFile { path, problem })
}

/// Settings outside the data directory, as Debian has them: without them a restored cluster does not start.
pub(crate) fn config_files(info: &ServerInfo, data_directory: &Path) -> Vec<PathBuf> {
    let files = &info.files;
    let named = [&files.config_file, &files.hba_file, &files.ident_file].into_iter().flatten();
    let mut paths: Vec<PathBuf> = named.chain(files.loaded.iter().flatten()).map(PathBuf::from).collect();
    // What a restore set aside in the data directory is left out there, so it counts as outside.
    let is_inside = |path: &Path| path.starts_with(data_directory) && !path.starts_with(data_directory.join(SET_ASIDE));
    paths.retain(|path| path.is_absolute() && !is_inside(path));
    paths.sort();
    paths.dedup();
    paths
}

pub(crate) fn add_config_files(listed: &mut Scan, config: &[PathBuf]) {
    use std::os::unix::ffi::OsStrExt as _;
    for path in config {
        // `include` can give paths with `..` in them, which no map may contain.
        let Ok(path) = std::fs::canonicalize(path) else {
            listed.notes.push(format!("{} was left out: it is not there", path.display()));
            continue;
        };
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                let name = [b"config".as_slice(), path.as_os_str().as_bytes()].concat();
                listed.files.push(FileTask {
                    path: path.clone(),
                    name,
                    size: metadata.len(),
                    mode: metadata.mode() & 0o7777,
                    modified: metadata.mtime(),
                    relation: None,
                    reading: Reading::Whole,
                });
            }
            Ok(_) => listed.notes.push(format!("{} is not a file and was left out", path.display())),
            Err(error) => listed.notes.push(format!("{} was left out: {error}", path.display())),
        }
    }
}

/// Those whose links were copied, also if they were made since the server was asked.
pub(crate) fn tablespaces(info: &ServerInfo, listed: &Scan) -> Vec<StoredTablespace> {
    let stored = |other: &Other| {
        let oid = std::str::from_utf8(other.name.rsplit(|byte| *byte == b'/').next()?).ok()?.parse().ok()?;
        let name = info.tablespaces.iter().find(|space| space.oid == oid).map(|space| space.name.clone());
        let location = String::from_utf8_lossy(other.target.as_ref()?).into_owned();
        Some(StoredTablespace { oid, name: name.unwrap_or_default(), location })
    };
    listed.others.iter().filter_map(stored).collect()
}

pub(crate) fn parameters(info: &ServerInfo) -> Vec<(String, String)> {
    let floors = &info.floors;
    [
        ("max_connections", floors.max_connections),
        ("max_worker_processes", floors.max_worker_processes),
        ("max_wal_senders", floors.max_wal_senders),
        ("max_prepared_transactions", floors.max_prepared_transactions),
        ("max_locks_per_transaction", floors.max_locks_per_transaction),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_string()))
    .into()
}

pub(crate) fn owner(data_directory: &Path) -> Result<Owner, BackupError> {
    let metadata = std::fs::metadata(data_directory)
        .map_err(|source| BackupError::DataDirectory { path: data_directory.to_owned(), source })?;
    let user = nix::unistd::User::from_uid(metadata.uid().into()).ok().flatten();
    let group = nix::unistd::Group::from_gid(metadata.gid().into()).ok().flatten();
    Ok(Owner {
        user: user.map_or_else(|| metadata.uid().to_string(), |user| user.name),
        group: group.map_or_else(|| metadata.gid().to_string(), |group| group.name),
    })
}

/// What the catalogue calls a damaged relation. A help for people: nothing depends on it.
pub(crate) async fn relation_name(options: &BackupOptions, file: holdfast_pgformat::RelationFile) -> Option<String> {
    let mut client = Client::connect(&options.connection, Purpose::Sql).await.ok()?;
    let sql = format!("SELECT datname FROM pg_catalog.pg_database WHERE oid = {}", file.database);
    let database = client.query(&sql).await.ok()?.first()?.get("datname")?.to_owned();
    client.close().await;
    let connection = options.connection.clone().with_dbname(&database);
    let mut client = Client::connect(&connection, Purpose::Sql).await.ok()?;
    let sql = format!(
        "SELECT pg_catalog.pg_filenode_relation({}, {})::pg_catalog.regclass::pg_catalog.text AS name",
        if file.tablespace == holdfast_pgformat::DEFAULT_TABLESPACE { 0 } else { file.tablespace },
        file.relfilenode
    );
    let name = client.query(&sql).await.ok()?.first()?.get("name")?.to_owned();
    client.close().await;
    Some(format!("{database}: {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_in_files_of_another_size_are_refused() {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../pgformat/tests/fixtures/15/pg_control");
        let control = ControlFile::parse(&std::fs::read(fixture).unwrap()).unwrap();
        let path = PathBuf::from("data");
        assert!(fit(path.clone(), &control, control.system_id).is_ok());
        let small = ControlFile { relseg_size: 16_384, ..control.clone() };
        let error = fit(path.clone(), &small, control.system_id).unwrap_err();
        assert!(matches!(error, BackupError::UnsupportedSegmentFiles { pages: 16_384 }), "{error}");
        let other = SystemId::new(control.system_id.get() + 1);
        assert!(matches!(fit(path, &control, other), Err(BackupError::OtherCluster { .. })));
    }
}
