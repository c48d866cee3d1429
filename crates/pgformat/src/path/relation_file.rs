use std::collections::HashSet;

use crate::bytes::decimal;
use crate::relation::{DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Relation};

/// A file that holds pages of a relation: one segment of one fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFile {
    /// Object id of the tablespace: 1663 under `base/`, 1664 under `global/`.
    pub tablespace: u32,
    /// Object id of the database; zero under `global/`.
    pub database: u32,
    /// The relation's number.
    pub relfilenode: u32,
    /// Which part of the relation.
    pub fork: Fork,
    /// Which file of the fork, each but the last full.
    pub segment: u32,
    /// Whether it belongs to one session's temporary table.
    pub temporary: bool,
}

impl RelationFile {
    /// Reads a path relative to the data directory; `None` if it is not a relation's.
    pub fn parse(path: &[u8]) -> Option<Self> {
        let slash = path.iter().rposition(|byte| *byte == b'/')?;
        let (directory, name) = path.split_at_checked(slash)?;
        let Place { tablespace, database } = Place::parse(directory)?;
        let Name { relfilenode, fork, segment, temporary } = Name::parse(name.get(1..)?)?;
        // Temporary tables are never shared between databases.
        (!temporary || database != 0).then_some(Self { tablespace, database, relfilenode, fork, segment, temporary })
    }

    /// The relation it belongs to.
    pub const fn relation(&self) -> Relation {
        Relation { tablespace: self.tablespace, database: self.database, relfilenode: self.relfilenode }
    }

    /// The block number, within the fork, of the file's first page; checksums count from there.
    /// `relseg_size` is what `pg_control` says. `None` past the largest block number.
    pub fn first_block(&self, relseg_size: u32) -> Option<u32> {
        self.segment.checked_mul(relseg_size)
    }

    /// Whether recovery will replace the file by its relation's init fork.
    pub fn is_reset(&self, unlogged: &HashSet<Relation>) -> bool {
        self.fork != Fork::Init && unlogged.contains(&self.relation())
    }

    /// The path relative to the data directory; `version_directory` is used in tablespaces, see
    /// [`tablespace_version_directory`](super::tablespace_version_directory). `None` for a temporary relation, whose
    /// name holds a session's number as well.
    pub fn path(&self, version_directory: &str) -> Option<String> {
        if self.temporary {
            return None;
        }
        let directory = match self.tablespace {
            GLOBAL_TABLESPACE => "global".to_owned(),
            DEFAULT_TABLESPACE => format!("base/{}", self.database),
            other => format!("pg_tblspc/{other}/{version_directory}/{}", self.database),
        };
        let segment = if self.segment == 0 { String::new() } else { format!(".{}", self.segment) };
        Some(format!("{directory}/{}{}{segment}", self.relfilenode, self.fork.suffix()))
    }
}

/// A directory that holds relations (relpath.c, `GetDatabasePath`).
pub(super) struct Place {
    tablespace: u32,
    database: u32,
}

impl Place {
    pub(super) fn parse(directory: &[u8]) -> Option<Self> {
        let mut parts = directory.split(|byte| *byte == b'/');
        let place = match parts.next()? {
            b"global" => Self { tablespace: GLOBAL_TABLESPACE, database: 0 },
            b"base" => Self { tablespace: DEFAULT_TABLESPACE, database: object_id(parts.next()?)? },
            b"pg_tblspc" => {
                let tablespace = object_id(parts.next()?)?;
                parts.next().filter(|version| version.starts_with(b"PG_"))?;
                Self { tablespace, database: object_id(parts.next()?)? }
            }
            _ => return None,
        };
        parts.next().is_none().then_some(place)
    }
}

/// A file name (reinit.c, `parse_filename_for_nontemp_relation`; fd.c, `looks_like_temp_rel_name`).
struct Name {
    relfilenode: u32,
    fork: Fork,
    segment: u32,
    temporary: bool,
}

impl Name {
    fn parse(name: &[u8]) -> Option<Self> {
        let (rest, temporary) = match name.strip_prefix(b"t") {
            None => (name, false),
            Some(rest) => {
                let end = rest.iter().position(|byte| *byte == b'_')?;
                let (session, rest) = rest.split_at_checked(end)?;
                decimal(session)?;
                (rest.get(1..)?, true)
            }
        };
        let (rest, segment) = match rest.iter().position(|byte| *byte == b'.') {
            None => (rest, 0),
            Some(dot) => {
                let (rest, segment) = rest.split_at_checked(dot)?;
                (rest, object_id(segment.get(1..)?)?)
            }
        };
        let (number, fork) = match rest.iter().position(|byte| *byte == b'_') {
            None => (rest, Fork::Main),
            Some(underscore) => {
                let (number, suffix) = rest.split_at_checked(underscore)?;
                let named = |fork: &Fork| *fork != Fork::Main && fork.suffix().as_bytes() == suffix;
                (number, Fork::ALL.into_iter().find(named)?)
            }
        };
        Some(Self { relfilenode: object_id(number)?, fork, segment, temporary })
    }
}

/// A number that is never zero.
fn object_id(digits: &[u8]) -> Option<u32> {
    decimal(digits).filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(path: &str) -> Option<RelationFile> {
        RelationFile::parse(path.as_bytes())
    }

    #[test]
    fn reads_every_place() {
        let file = parse("base/5/16402_vm.2").unwrap();
        assert_eq!((file.tablespace, file.database, file.relfilenode), (1663, 5, 16402));
        assert_eq!((file.fork, file.segment, file.temporary), (Fork::Vm, 2, false));
        assert_eq!(file.first_block(131_072), Some(262_144));

        let file = parse("global/1262").unwrap();
        assert_eq!((file.tablespace, file.database, file.fork), (1664, 0, Fork::Main));

        let file = parse("pg_tblspc/16400/PG_15_202209061/5/16402_init").unwrap();
        assert_eq!((file.tablespace, file.database, file.fork), (16400, 5, Fork::Init));

        assert!(parse("base/5/t12_16402_fsm.1").unwrap().temporary);
    }

    #[test]
    fn refuses_names_postgresql_does_not_make() {
        for path in [
            "16402",
            "base/16402",
            "base/5/",
            "base/5/0",
            "base/5/016402",
            "base/5/16402.0",
            "base/5/16402.01",
            "base/5/16402.",
            "base/5/16402_main",
            "base/5/16402_",
            "base/5/16402_vm_fsm",
            "base/5/4294967296",
            "base/5/16402.1.2",
            "base/5/sub/16402",
            "base/five/16402",
            "global/t3_1262",
            "base/5/t_16402",
            "pg_tblspc/16400/5/16402",
            "pg_tblspc/16400/PG_15_202209061/16402",
            "/base/5/16402",
            "base/5/pg_filenode.map",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn paths_round_trip(
            tablespace in prop_oneof![Just(1663), Just(1664), 16384u32..],
            database in 1u32..,
            relfilenode in 1u32..,
            fork in prop::sample::select(&Fork::ALL[..]),
            segment: u32,
        ) {
            let database = if tablespace == GLOBAL_TABLESPACE { 0 } else { database };
            let file = RelationFile { tablespace, database, relfilenode, fork, segment, temporary: false };
            prop_assert_eq!(parse(&file.path("PG_18_202506291").unwrap()), Some(file));
        }
    }
}
