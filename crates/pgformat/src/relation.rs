//! What a table or index is called on disk and in the log.

use std::fmt;

/// The tablespace of everything under `base/` (`pg_default`, pg_tablespace_d.h).
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace of what all databases share, under `global/` (`pg_global`).
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// One table, index, sequence or materialised view, by the numbers that name its files (relfilelocator.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    /// Object id of the tablespace.
    pub tablespace: u32,
    /// Object id of the database; zero for what all databases share.
    pub database: u32,
    /// The number in the file name; changes when the relation is rewritten.
    pub relfilenode: u32,
}

impl fmt::Display for Relation {
    /// As `pg_waldump` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relfilenode)
    }
}

/// The parts a relation is stored in (relpath.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The rows or index entries themselves.
    Main,
    /// The free space map, which is not fully logged.
    Fsm,
    /// The visibility map.
    Vm,
    /// What an unlogged relation is reset to after a crash.
    Init,
}

impl Fork {
    /// All of them, in PostgreSQL's order.
    pub const ALL: [Self; 4] = [Self::Main, Self::Fsm, Self::Vm, Self::Init];

    /// From the number in a log record.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Main),
            1 => Some(Self::Fsm),
            2 => Some(Self::Vm),
            3 => Some(Self::Init),
            _ => None,
        }
    }

    /// What a file name carries after the relation's number.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Fsm => "_fsm",
            Self::Vm => "_vm",
            Self::Init => "_init",
        }
    }

    /// The fork's name, as `pg_waldump` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Fsm => "fsm",
            Self::Vm => "vm",
            Self::Init => "init",
        }
    }
}
