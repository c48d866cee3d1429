use std::collections::BTreeMap;
use std::fmt;

use holdfast_pgformat::{Fork, Relation};
use roaring::RoaringBitmap;

type Key = (Relation, Fork);

/// What is known of each fork.
///
/// The log goes back and forth between a table and its indexes, so the forks used last are kept at hand: most records
/// find theirs without a search.
#[derive(Clone, Default)]
pub(crate) struct Forks {
    known: Vec<ForkChanges>,
    /// Where each fork is in `known`.
    places: BTreeMap<Key, usize>,
    recent: [Option<(Key, usize)>; RECENT],
}

const RECENT: usize = 16;

impl Forks {
    #[expect(clippy::indexing_slicing, reason = "each place is that of an entry, or the next to be added")]
    pub fn get_or_insert(&mut self, relation: Relation, fork: Fork) -> &mut ForkChanges {
        let key = (relation, fork);
        let slot = (relation.relfilenode as usize).wrapping_add(fork as usize * 5) % RECENT;
        let place = match self.recent.get(slot) {
            Some(Some((known, place))) if *known == key => *place,
            _ => {
                let place = *self.places.entry(key).or_insert(self.known.len());
                if let Some(recent) = self.recent.get_mut(slot) {
                    *recent = Some((key, place));
                }
                place
            }
        };
        if place >= self.known.len() {
            self.known.push(ForkChanges::default());
        }
        &mut self.known[place]
    }

    pub fn get(&self, relation: Relation, fork: Fork) -> Option<&ForkChanges> {
        self.known.get(*self.places.get(&(relation, fork))?)
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// In the order of relation and fork.
    pub fn iter(&self) -> impl Iterator<Item = (Relation, Fork, &ForkChanges)> {
        let known = |place: &usize| self.known.get(*place);
        self.places.iter().filter_map(move |((relation, fork), place)| Some((*relation, *fork, known(place)?)))
    }

    pub fn merge(&mut self, other: &Self) {
        for (relation, fork, known) in other.iter() {
            self.get_or_insert(relation, fork).merge(known);
        }
    }
}

impl PartialEq for Forks {
    /// The order in which the forks were met does not count.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl fmt::Debug for Forks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.iter().map(|(relation, fork, known)| (format!("{relation}{}", fork.suffix()), known));
        f.debug_map().entries(entries).finish()
    }
}

/// What is known of one fork.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForkChanges {
    limit: Option<u32>,
    pages: RoaringBitmap,
    /// The page added last: often the same one is changed many times in a row.
    last: Option<u32>,
}

impl ForkChanges {
    pub fn new(limit: Option<u32>, pages: RoaringBitmap) -> Self {
        Self { limit, pages, last: None }
    }

    pub fn add(&mut self, page: u32) {
        if self.last != Some(page) {
            self.last = Some(page);
            self.pages.insert(page);
        }
    }

    /// Pages from `limit` on are not what they were.
    pub fn cut(&mut self, limit: u32) {
        self.limit = Some(self.limit.map_or(limit, |known| known.min(limit)));
    }

    pub fn merge(&mut self, other: &Self) {
        if let Some(limit) = other.limit {
            self.cut(limit);
        }
        self.pages |= &other.pages;
        // A union keeps to runs even where they have become many.
        self.pages.optimize();
    }

    pub const fn limit(&self) -> Option<u32> {
        self.limit
    }

    pub const fn all_pages(&self) -> &RoaringBitmap {
        &self.pages
    }

    /// `None` for an empty set.
    pub fn pages(&self) -> Option<&RoaringBitmap> {
        (!self.pages.is_empty()).then_some(&self.pages)
    }
}

impl PartialEq for ForkChanges {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit && self.pages == other.pages
    }
}
