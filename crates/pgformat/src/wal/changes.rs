//! What a record does to files as a whole, beyond the pages it names.
//!
//! Follows walsummarizer.c (`SummarizeDbaseRecord`, `SummarizeSmgrRecord`, `SummarizeXactRecord`), but counts
//! visibility map pages where that counts rows' pages.

use holdfast_types::Micros;

use super::record::read_relation;
use super::{Record, rmgr};
use crate::bytes::Reader;
use crate::page::PAGE_SIZE;
use crate::relation::{Fork, Relation};

/// `XLR_SPECIAL_REL_UPDATE`: the record changes relation files in ways its block references do not tell.
const SPECIAL: u8 = 0x01;
/// How many pages one page of the visibility map speaks of: two bits each, after a header of 24 bytes.
const PAGES_PER_MAP_PAGE: u32 = (PAGE_SIZE as u32 - 24) * 4;

/// A change to files that block references do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// A fork begins anew: whatever was known of a file of this name is void.
    Created {
        /// Of which relation.
        relation: Relation,
        /// Which part.
        fork: Fork,
    },
    /// A fork was cut: pages from `blocks` on are void, even if the fork has grown again.
    Truncated {
        /// Of which relation.
        relation: Relation,
        /// Which part.
        fork: Fork,
        /// The first page that is void.
        blocks: u32,
    },
    /// A relation was removed with all its forks; its number may be used again.
    Dropped {
        /// Which.
        relation: Relation,
    },
    /// A database was created or removed in a tablespace, and all its files there with it.
    Database {
        /// Object id of the tablespace.
        tablespace: u32,
        /// Object id of the database.
        database: u32,
    },
    /// Files were changed in a way that is not known: everything must be read.
    Unknown,
}

impl Record<'_> {
    /// What the record does to files as a whole; empty for most.
    pub fn file_changes(&self) -> Vec<FileChange> {
        let changes = match self.rmgr {
            rmgr::STORAGE => self.storage_changes(),
            rmgr::DATABASE => self.database_changes(),
            rmgr::TRANSACTION => self.transaction_changes(),
            rmgr::TABLESPACE => self.tablespace_changes(),
            _ if self.info & SPECIAL != 0 => None,
            _ => Some(Vec::new()),
        };
        changes.unwrap_or_else(|| vec![FileChange::Unknown])
    }

    /// storage_xlog.h.
    fn storage_changes(&self) -> Option<Vec<FileChange>> {
        let mut body = Reader(self.main);
        match self.kind() {
            0x10 => {
                let relation = read_relation(&mut body)?;
                Some(vec![FileChange::Created { relation, fork: Fork::from_number(body.u32()?)? }])
            }
            0x20 => {
                let blocks = body.u32()?;
                let relation = read_relation(&mut body)?;
                let flags = body.u32()?;
                // A flag of a fork that is not known.
                if flags & !0x7 != 0 {
                    return None;
                }
                // The map's last page is cleared in part and not always logged, hence rounded down.
                let map_blocks = blocks / PAGES_PER_MAP_PAGE;
                let forks = [(0x1, Fork::Main, blocks), (0x2, Fork::Vm, map_blocks), (0x4, Fork::Fsm, 0)];
                let cut = forks.into_iter().filter(|(flag, ..)| flags & flag != 0);
                Some(cut.map(|(_, fork, blocks)| FileChange::Truncated { relation, fork, blocks }).collect())
            }
            _ => None,
        }
    }

    /// dbcommands_xlog.h. 15 put a way of creating databases between the two kinds there were.
    fn database_changes(&self) -> Option<Vec<FileChange>> {
        let mut body = Reader(self.main);
        let database = body.u32()?;
        let drop = if self.format.major() >= 15 { 0x20 } else { 0x10 };
        let tablespaces = match self.kind() {
            kind if kind < drop => 1,
            kind if kind == drop => body.u32()? as usize,
            _ => return None,
        };
        let bytes = body.take(tablespaces.checked_mul(4)?)?;
        let tablespaces = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        Some(tablespaces.map(|tablespace| FileChange::Database { tablespace, database }).collect())
    }

    /// tablespace.h. The relations of a tablespace come and go with records of their own, and only an empty one can
    /// be dropped.
    fn tablespace_changes(&self) -> Option<Vec<FileChange>> {
        match self.kind() {
            0x00 | 0x10 if self.info & SPECIAL == 0 => Some(Vec::new()),
            _ => None,
        }
    }

    /// xact.h. A prepared transaction names the relations that go with it only once it is finished; 14 added
    /// invalidations.
    fn transaction_changes(&self) -> Option<Vec<FileChange>> {
        match self.kind() & 0x70 {
            0x00 | 0x20 | 0x30 | 0x40 => {
                let mut dropped = Reader(self.transaction_end()?.dropped);
                let relations = std::iter::from_fn(|| read_relation(&mut dropped));
                Some(relations.map(|relation| FileChange::Dropped { relation }).collect())
            }
            _ if self.info & SPECIAL != 0 => None,
            0x10 | 0x50 => Some(Vec::new()),
            0x60 if self.format.major() >= 14 => Some(Vec::new()),
            _ => None,
        }
    }

    /// Reads a commit or abort (xactdesc.c, `ParseCommitRecord`, `ParseAbortRecord`).
    pub(super) fn transaction_end(&self) -> Option<TransactionEnd<'_>> {
        let mut body = Reader(self.main);
        let time = Micros::from_postgresql(body.i64()?);
        let has = if self.info & 0x80 == 0 { 0 } else { body.u32()? };
        if has & 0x01 != 0 {
            body.u64()?;
        }
        if has & 0x02 != 0 {
            list(&mut body, 4)?;
        }
        let dropped = if has & 0x04 == 0 { &[][..] } else { list(&mut body, 12)? };
        if let Some(size) = self.format.dropped_statistics_size().filter(|_| has & 0x100 != 0) {
            list(&mut body, size)?;
        }
        if has & 0x08 != 0 {
            list(&mut body, 16)?;
        }
        let prepared = if has & 0x10 == 0 { None } else { Some(body.u32()?) };
        Some(TransactionEnd { time, dropped, prepared })
    }
}

/// A counted list of entries of `size` bytes each.
fn list<'a>(body: &mut Reader<'a>, size: usize) -> Option<&'a [u8]> {
    let count = body.u32()? as usize;
    body.take(count.checked_mul(size)?)
}

/// What matters of a commit or abort.
pub(super) struct TransactionEnd<'a> {
    pub time: Micros,
    /// The relations whose files go with it, twelve bytes each.
    dropped: &'a [u8],
    /// The transaction, if it had been prepared.
    pub prepared: Option<u32>,
}
