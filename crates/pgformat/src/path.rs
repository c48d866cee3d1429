//! What a file in a data directory is, told from its path, and whether a backup takes it.
//!
//! Paths are relative to the data directory, raw bytes, parts separated by `/`, without a leading `./`. Rules from
//! basebackup.c (`excludeFiles`, `excludeDirContents`, `sendDir`), relpath.c and fd.c (`looks_like_temp_rel_name`).

mod relation_file;

use std::collections::HashSet;

pub use relation_file::RelationFile;

use crate::relation::{Fork, Relation};

/// What a backup does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inclusion {
    /// Take it; a directory is walked.
    Copy,
    /// Leave it out, with all that is below.
    Skip,
    /// Take the directory but nothing in it: the server empties it at start, or fills it from the log.
    EmptyDirectory,
}

/// Directories that are kept empty. The server rebuilds their contents, or they belong to this server alone.
const EMPTIED: [&[u8]; 8] = [
    b"pg_dynshmem",
    b"pg_notify",
    // A restored slot would hold back the log for a consumer that follows another server.
    b"pg_replslot",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_stat_tmp",
    b"pg_subtrans",
    // The log is kept in its own place, complete and checked.
    b"pg_wal",
];

/// What the server expects to find in `pg_wal` although it is empty.
const EMPTIED_BELOW: [&[u8]; 2] = [b"pg_wal/archive_status", b"pg_wal/summaries"];

/// Files at the top of the data directory that belong to the running server or to an earlier recovery.
const SKIPPED: [&[u8]; 13] = [
    b"backup_label",
    b"backup_label.old",
    b"backup_manifest",
    b"backup_manifest.tmp",
    b"current_logfiles",
    b"current_logfiles.tmp",
    b"postgresql.auto.conf.tmp",
    b"postmaster.opts",
    b"postmaster.pid",
    b"recovery.signal",
    b"standby.signal",
    b"tablespace_map",
    b"tablespace_map.old",
];

/// What Holdfast's own restores leave at the top of a data directory: what was fetched ahead, what the settings outside
/// were, how far a restore had come, what the server said when it was started. None of it is the cluster's, and the marker
/// of a restore under way would make a later one take a whole cluster for half of one.
const OURS: [&[u8]; 4] = [b"holdfast.config", b"holdfast.prefetch", b"holdfast.restore", b"holdfast.start.log"];

/// Decides what happens to a path.
///
/// PostgreSQL skips these names at any depth; here they are skipped only where the server puts them, so that a file
/// of an extension that happens to share a name is kept. Unlogged relations need a view of the whole directory, see
/// [`unlogged`].
pub fn inclusion(path: &[u8], is_directory: bool) -> Inclusion {
    let mut parts = path.split(|byte| *byte == b'/');
    if parts.clone().any(|part| part.starts_with(b"pgsql_tmp")) {
        return Inclusion::Skip;
    }
    let top = parts.next().unwrap_or_default();
    let is_top = parts.next().is_none();
    if EMPTIED.contains(&top) {
        // `pg_wal` may be a link to another disk; what is restored is a directory all the same.
        let kept = is_top || is_directory && EMPTIED_BELOW.contains(&path);
        return if kept { Inclusion::EmptyDirectory } else { Inclusion::Skip };
    }
    if is_top && !is_directory && SKIPPED.contains(&path) || OURS.contains(&top) {
        return Inclusion::Skip;
    }
    if is_relation_cache(path) || is_foreign_to_tablespace(path) {
        return Inclusion::Skip;
    }
    match RelationFile::parse(path) {
        Some(file) if file.temporary => Inclusion::Skip,
        _ => Inclusion::Copy,
    }
}

/// Whether the path must be stored whole each time, because the log does not tell all its changes.
///
/// Only main and init forks of permanent relations may be stored as changed pages. The free space map is barely
/// logged. The visibility map is not fully logged either: a row change clears bits in it without naming the page
/// (heapam_xlog.c, `XLH_INSERT_ALL_VISIBLE_CLEARED`), and both maps together are below 0.1 % of a table. All else
/// (`pg_control`, `PG_VERSION`, `pg_filenode.map`, transaction status) is written without page references.
pub fn never_incremental(path: &[u8]) -> bool {
    match RelationFile::parse(path) {
        Some(file) => file.temporary || !matches!(file.fork, Fork::Main | Fork::Init),
        None => true,
    }
}

/// Whether the path must be copied after all others: recovery trusts that nothing in the backup is newer than what
/// `pg_control` says (basebackup.c sends it last).
pub fn copied_last(path: &[u8]) -> bool {
    path == b"global/pg_control"
}

/// The relations that have an init fork. Their other forks are not worth copying: recovery replaces them by the init
/// fork (reinit.c). Use with [`RelationFile::is_reset`].
pub fn unlogged<'a>(files: impl IntoIterator<Item = &'a RelationFile>) -> HashSet<Relation> {
    let has_init = |file: &&RelationFile| file.fork == Fork::Init && !file.temporary;
    files.into_iter().filter(has_init).map(RelationFile::relation).collect()
}

/// The directory inside a tablespace that holds this release's files; releases can share a tablespace
/// (relpath.h, `TABLESPACE_VERSION_DIRECTORY`).
pub fn tablespace_version_directory(major: u32, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// Whether the path is in a tablespace, but not in the directory there that is this cluster's: of another release that
/// shares the place, as after `pg_upgrade`, or of nobody's.
pub fn is_of_other_release(path: &[u8], version_directory: &str) -> bool {
    let mut parts = path.split(|byte| *byte == b'/').skip(2);
    path.starts_with(b"pg_tblspc/") && parts.next().is_some_and(|part| part != version_directory.as_bytes())
}

/// The cache of the system catalogs' shape and its temporary versions (relcache.c, `RELCACHE_INIT_FILENAME`).
/// A copy of a running server's may be stale, and the server makes it anew.
fn is_relation_cache(path: &[u8]) -> bool {
    let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else { return false };
    let (directory, name) = path.split_at(slash);
    let name = name.strip_prefix(b"/").unwrap_or_default();
    let ours = name == b"pg_internal.init" || name.starts_with(b"pg_internal.init.");
    ours && relation_file::Place::parse(directory).is_some()
}

/// A tablespace directory can hold anything beside what PostgreSQL puts there.
fn is_foreign_to_tablespace(path: &[u8]) -> bool {
    let mut parts = path.split(|byte| *byte == b'/').skip(2);
    path.starts_with(b"pg_tblspc/") && parts.next().is_some_and(|part| !part.starts_with(b"PG_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_what_postgresql_takes() {
        for path in [
            "PG_VERSION",
            "base/1/1259",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "global/pg_control",
            "global/1262",
            "log/pg_notify",
            "my_extension/postmaster.pid",
            "pg_hba.conf",
            "pg_logical/replorigin_checkpoint",
            "pg_multixact/members/0000",
            "pg_stat/pgstat.stat",
            "pg_tblspc/16400/PG_15_202209061/5/16402_vm.2",
            "pg_twophase/000002DB",
            "pg_xact/0000",
            "pg_walking",
            // Settings of an operator who likes the name.
            "holdfast.conf",
            "my_extension/holdfast.restore",
        ] {
            assert_eq!(inclusion(path.as_bytes(), false), Inclusion::Copy, "{path}");
        }
        for path in ["", "base", "base/5", "pg_tblspc", "pg_tblspc/16400", "pg_tblspc/16400/PG_15_202209061"] {
            assert_eq!(inclusion(path.as_bytes(), true), Inclusion::Copy, "{path}");
        }
    }

    #[test]
    fn skips_what_postgresql_skips() {
        for path in [
            "postmaster.pid",
            "backup_label",
            "standby.signal",
            "base/5/pg_internal.init",
            "global/pg_internal.init.4711",
            "pg_tblspc/16400/PG_15_202209061/5/pg_internal.init",
            "base/pgsql_tmp/pgsql_tmp123.0",
            "base/5/t3_16402",
            "base/5/t3_16402_fsm",
            "base/5/t3_16402.1",
            "pg_notify/0000",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.done",
            "pg_replslot/slot/state",
            "pg_stat_tmp/global.stat",
            "pg_tblspc/16400/lost+found",
            "holdfast.restore",
            "holdfast.start.log",
            "holdfast.prefetch/000000010000000000000001",
            "holdfast.config/etc/postgresql/15/main/postgresql.conf",
        ] {
            assert_eq!(inclusion(path.as_bytes(), false), Inclusion::Skip, "{path}");
        }
        for path in [
            "holdfast.prefetch",
            "holdfast.config",
            "pg_replslot/slot",
            "base/pgsql_tmp",
            "pg_tblspc/16400/PG_15_202209061/pgsql_tmp",
        ] {
            assert_eq!(inclusion(path.as_bytes(), true), Inclusion::Skip, "{path}");
        }
        for path in ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries", "pg_replslot", "pg_subtrans"] {
            assert_eq!(inclusion(path.as_bytes(), true), Inclusion::EmptyDirectory, "{path}");
        }
    }

    #[test]
    fn other_releases_in_a_tablespace_are_told_apart() {
        let ours = tablespace_version_directory(18, 202_506_291);
        for path in ["base/5/1259", "pg_tblspc/16400", "pg_tblspc/16400/PG_18_202506291/5/16402", "PG_VERSION"] {
            assert!(!is_of_other_release(path.as_bytes(), &ours), "{path}");
        }
        for path in ["pg_tblspc/16400/PG_15_202209061", "pg_tblspc/16400/PG_18_202506290/5/16402", "pg_tblspc/16400/x"]
        {
            assert!(is_of_other_release(path.as_bytes(), &ours), "{path}");
        }
    }

    #[test]
    fn only_logged_forks_are_stored_in_pages() {
        for path in ["base/5/16402", "base/5/16402.1", "base/5/16402_init", "global/1262"] {
            assert!(!never_incremental(path.as_bytes()), "{path}");
        }
        for path in [
            "base/5/16402_vm",
            "base/5/16402_fsm",
            "base/5/t3_16402",
            "global/pg_control",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "pg_xact/0000",
        ] {
            assert!(never_incremental(path.as_bytes()), "{path}");
        }
        assert!(copied_last(b"global/pg_control") && !copied_last(b"global/pg_filenode.map"));
    }

    #[test]
    fn unlogged_relations_keep_their_init_fork_only() {
        let files: Vec<_> = ["16402", "16402_init", "16402_vm", "16402.1", "16500"]
            .iter()
            .map(|name| RelationFile::parse(format!("base/5/{name}").as_bytes()).unwrap())
            .collect();
        let unlogged = unlogged(&files);
        let reset: Vec<_> = files.iter().map(|file| file.is_reset(&unlogged)).collect();
        assert_eq!(reset, [true, false, true, true, false]);
    }

    proptest! {
        #[test]
        fn any_path_gets_an_answer(path in prop::collection::vec(any::<u8>(), 0..60), is_directory: bool) {
            inclusion(&path, is_directory);
            never_incremental(&path);
        }
    }
}
