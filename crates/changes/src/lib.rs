//! Which pages of which relation changed between two positions of the log, told from the log alone.
//!
//! A [`ChangeMap`] is shown every record of a stretch of the log ([`ChangeMap::note`]) and remembers the pages that the
//! records name, and what they do to files as a whole. Maps of adjoining stretches are put together with
//! [`ChangeMap::merge`]; the order does not matter, so maps can be made and stored for each segment of the log and
//! united when a backup needs them. Memory grows with the pages that changed, about two bytes for each and less where
//! they lie close together, never with the length of the log.
//!
//! **What may be believed.** The map answers for main and init forks of permanent relations. It records what the log
//! says of the other forks too, but that is not all that happens to them (docs/decisions/0009), so they are copied
//! whole. Two kinds of bytes change in main forks without a word in the log, because any version of them will do: hint bits
//! where neither page checksums nor `wal_log_hints` are on, and the cache in the first page of an SP-GiST index. So a
//! page that is answered to be as it was is as good as it was, though not always equal byte for byte.
//!
//! Three things are not in the log at all, and the caller must see to them:
//!
//! * A file may have grown by pages of zeros, which are logged only when they are first used: pages beyond the file's
//!   old end were never "as they were".
//! * The log tells nothing of what was done while the server was down (`pg_checksums`, `pg_rewind`, `pg_resetwal`).
//! * A relation that is unlogged: its main fork is reset to its init fork at recovery, and must not be taken at all.
//!
//! Records of resource managers that extensions bring (128 and up) name their pages as all others do. They are
//! believed, because replay itself relies on those references to protect the pages from being torn. If such a record
//! is flagged as changing relation files in a special way, everything is [`Unknown`].
//!
//! Pure: no clock, no file. `encoding` says how a map is stored.

#![warn(missing_docs)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

#[cfg(test)]
mod any;
mod encoding;
mod forks;

use std::collections::BTreeSet;

use holdfast_pgformat::wal::{FileChange, rmgr};
use holdfast_pgformat::{Event, Fork, Record, Relation, WalLevel};
use holdfast_types::Lsn;
use roaring::RoaringBitmap;

pub use encoding::MalformedChanges;
use forks::Forks;

/// `XLOG_PARAMETER_CHANGE` and `XLOG_CHECKPOINT_REDO` (pg_control.h).
const PARAMETER_CHANGE: u8 = 0x60;
const CHECKPOINT_BEGIN: u8 = 0xE0;

/// Which pages changed between two positions of the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChangeMap {
    forks: Forks,
    /// Databases that were created or removed, by tablespace and database: their files came and went unnamed.
    databases: BTreeSet<(u32, u32)>,
    unknown: Option<Unknown>,
}

/// What is known of one fork of one relation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Changes<'a> {
    /// Nothing is known to be the same: read it whole. Says why.
    Everything(&'static str),
    /// Pages below `limit` that are not in `pages` are as they were.
    Pages {
        /// The first page that is not the page it was: the file was cut there, or made anew, and may have grown again.
        /// `None`: it was not cut.
        limit: Option<u32>,
        /// The pages that changed; some may lie at or beyond the limit. `None`: none did.
        pages: Option<&'a RoaringBitmap>,
    },
}

/// The log does not tell all that changed: everything must be read.
///
/// Ordered by position, then by reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unknown {
    /// The first record that this was seen at.
    pub lsn: Lsn,
    /// What was seen.
    pub why: String,
}

impl ChangeMap {
    /// Takes in what a record tells.
    pub fn note(&mut self, record: &Record<'_>) {
        for block in record.blocks() {
            self.forks.get_or_insert(block.relation(), block.fork).add(block.block);
        }
        for change in record.file_changes() {
            self.note_file_change(record, change);
        }
        if record.rmgr == rmgr::XLOG {
            self.note_log_record(record);
        }
    }

    fn note_file_change(&mut self, record: &Record<'_>, change: FileChange) {
        match change {
            FileChange::Created { relation, fork } => self.forks.get_or_insert(relation, fork).cut(0),
            FileChange::Truncated { relation, fork, blocks } => self.forks.get_or_insert(relation, fork).cut(blocks),
            FileChange::Dropped { relation } => {
                for fork in Fork::ALL {
                    self.forks.get_or_insert(relation, fork).cut(0);
                }
            }
            FileChange::Database { tablespace, database } => {
                self.databases.insert((tablespace, database));
            }
            FileChange::Unknown => {
                let (rmgr, kind) = (record.rmgr, record.info & 0xF0);
                self.note_unknown(Unknown {
                    lsn: record.lsn,
                    why: format!(
                        "a record of kind {kind:#04X} of resource manager {rmgr} changes files in an unknown way"
                    ),
                });
            }
        }
    }

    /// With `wal_level = minimal`, new relations are filled without a word in the log. The server says that it began
    /// to run so, and since 17 again at each checkpoint. All other records of the log itself change no relation but by
    /// the pages they name.
    fn note_log_record(&mut self, record: &Record<'_>) {
        let kind = record.info & 0xF0;
        if !matches!(kind, PARAMETER_CHANGE | CHECKPOINT_BEGIN) {
            return;
        }
        let why = match record.event() {
            Some(
                Event::ParameterChange { wal_level: WalLevel::Minimal, .. }
                | Event::CheckpointBegin { wal_level: WalLevel::Minimal },
            ) => "the server ran with wal_level = minimal",
            None if kind == PARAMETER_CHANGE => "a record of changed settings cannot be read",
            _ => return,
        };
        self.note_unknown(Unknown { lsn: record.lsn, why: why.to_owned() });
    }

    /// The earliest reason stays.
    fn note_unknown(&mut self, unknown: Unknown) {
        if self.unknown.as_ref().is_none_or(|known| unknown < *known) {
            self.unknown = Some(unknown);
        }
    }

    /// Adds what another map knows. Commutative, associative, idempotent.
    pub fn merge(&mut self, other: &Self) {
        self.forks.merge(&other.forks);
        self.databases.extend(&other.databases);
        if let Some(unknown) = &other.unknown {
            self.note_unknown(unknown.clone());
        }
    }

    /// What is known of a fork. Whether the answer may be believed depends on the fork: see the crate's notes.
    pub fn changes(&self, relation: Relation, fork: Fork) -> Changes<'_> {
        if self.unknown.is_some() {
            return Changes::Everything("the log does not tell all that changed");
        }
        if self.databases.contains(&(relation.tablespace, relation.database)) {
            return Changes::Everything("its database was created or dropped");
        }
        match self.forks.get(relation, fork) {
            Some(known) => Changes::Pages { limit: known.limit(), pages: known.pages() },
            None => Changes::Pages { limit: None, pages: None },
        }
    }

    /// Whether nothing changed at all.
    pub fn is_empty(&self) -> bool {
        self.forks.is_empty() && self.databases.is_empty() && self.unknown.is_none()
    }

    /// Why everything must be read, if it must.
    pub const fn unknown(&self) -> Option<&Unknown> {
        self.unknown.as_ref()
    }

    /// How many relations anything is recorded of.
    pub fn relations(&self) -> usize {
        let mut last = None;
        self.recorded().filter(|(relation, ..)| last.replace(*relation) != Some(*relation)).count()
    }

    /// How many changed pages are recorded, of all forks.
    pub fn pages(&self) -> u64 {
        self.recorded().map(|(_, _, _, pages)| pages.map_or(0, RoaringBitmap::len)).sum()
    }

    /// All that is recorded of forks, in order: their limit and their changed pages. Unlike [`changes`](Self::changes)
    /// it leaves out of account what is known only of whole databases, or not at all.
    pub fn recorded(&self) -> impl Iterator<Item = (Relation, Fork, Option<u32>, Option<&RoaringBitmap>)> {
        self.forks.iter().map(|(relation, fork, known)| (relation, fork, known.limit(), known.pages()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn merged(mut map: ChangeMap, other: &ChangeMap) -> ChangeMap {
        map.merge(other);
        map
    }

    type Plain = BTreeMap<(Relation, Fork), (Option<u32>, BTreeSet<u32>)>;

    /// The same by the simplest means.
    fn plain(maps: &[&ChangeMap]) -> Plain {
        let mut plain = Plain::new();
        for (relation, fork, limit, pages) in maps.iter().flat_map(|map| map.recorded()) {
            let known = plain.entry((relation, fork)).or_default();
            known.0 = known.0.into_iter().chain(limit).min();
            known.1.extend(pages.into_iter().flatten());
        }
        plain
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn the_order_of_merging_does_not_matter(a in any::map(), b in any::map(), c in any::map()) {
            let all = merged(merged(a.clone(), &b), &c);
            prop_assert_eq!(&all, &merged(a.clone(), &merged(b.clone(), &c)), "associative");
            prop_assert_eq!(merged(a.clone(), &b), merged(b.clone(), &a), "commutative");
            prop_assert_eq!(merged(all.clone(), &b), all.clone(), "idempotent");
            prop_assert_eq!(merged(a.clone(), &ChangeMap::default()), a.clone());
            prop_assert_eq!(merged(ChangeMap::default(), &a), a.clone());
            prop_assert_eq!(all.encode(), merged(merged(c.clone(), &b), &a).encode(), "equal maps, equal bytes");
        }

        #[test]
        fn merging_is_union(a in any::map(), b in any::map()) {
            let both = merged(a.clone(), &b);
            prop_assert_eq!(plain(&[&both]), plain(&[&a, &b]));
            prop_assert_eq!(both.pages(), plain(&[&both]).values().map(|(_, pages)| pages.len() as u64).sum::<u64>());
            let relations: BTreeSet<_> = plain(&[&both]).into_keys().map(|(relation, _)| relation).collect();
            prop_assert_eq!(both.relations(), relations.len());
            prop_assert_eq!(both.is_empty(), a.is_empty() && b.is_empty());
            prop_assert_eq!(both.unknown(), [a.unknown(), b.unknown()].into_iter().flatten().min());
        }

        #[test]
        fn nothing_is_answered_to_be_the_same_that_a_part_knows_to_have_changed(a in any::map(), b in any::map()) {
            let both = merged(a.clone(), &b);
            for (relation, fork, limit, pages) in a.recorded() {
                match both.changes(relation, fork) {
                    Changes::Everything(_) => {}
                    Changes::Pages { limit: known, pages: all } => {
                        prop_assert!(limit.is_none() || known.is_some_and(|known| Some(known) <= limit));
                        prop_assert!(pages.is_none_or(|pages| all.is_some_and(|all| pages.is_subset(all))));
                        prop_assert!(a.unknown.is_none());
                    }
                }
            }
            for (tablespace, database) in &a.databases {
                let relation = Relation { tablespace: *tablespace, database: *database, relfilenode: 1 };
                prop_assert!(matches!(both.changes(relation, Fork::Main), Changes::Everything(_)));
            }
        }
    }
}
