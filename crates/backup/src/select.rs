//! Which pages of a file must be read, and which are as they were in the snapshot before.
//!
//! The rules are those of PostgreSQL's `GetFileBackupMethod` (basebackup_incremental.c), narrowed where the log does not
//! tell all (docs/decisions/0009). Pure: what is known comes in, what is to be done goes out.

use std::ops::Range;

use holdfast_changes::{ChangeMap, Changes};
use holdfast_pgformat::page::PAGE_SIZE;
use holdfast_pgformat::path::RelationFile;
use holdfast_pgformat::{Fork, Relation};

/// How a file gets into the snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    Whole,
    /// These pages of the file, in order, are read; all others are taken from the base.
    Pages(Vec<Range<u32>>),
}

/// What is known of a file that the base has too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub relation: RelationFile,
    /// Bytes now.
    pub size: u64,
    /// Bytes in the base.
    pub base_size: u64,
    /// Pages of a full file of a relation.
    pub pages_per_file: u32,
}

/// More than nine pages of ten: then reading all of it in one go is cheaper (as in PostgreSQL).
const MOST: u64 = 9;
const OF: u64 = 10;

/// Pages of one file that changed since the base, besides those that the base itself calls damaged.
pub(crate) fn select(known: &Known, map: &ChangeMap, damaged: &[u32]) -> Reading {
    let Known { relation, size, base_size, pages_per_file } = *known;
    let page = PAGE_SIZE as u64;
    if relation.temporary || relation.fork != Fork::Main || size % page != 0 || base_size % page != 0 {
        return Reading::Whole;
    }
    let Some(first) = relation.first_block(pages_per_file) else { return Reading::Whole };
    let pages = (size / page) as u32;
    let in_base = ((base_size / page) as u32).min(pages);
    let located =
        Relation { tablespace: relation.tablespace, database: relation.database, relfilenode: relation.relfilenode };
    let Changes::Pages { limit, pages: changed } = map.changes(located, relation.fork) else {
        return Reading::Whole;
    };
    // From here on nothing is as it was: cut by the log, or not there in the base.
    let kept = limit.map_or(in_base, |limit| limit.saturating_sub(first).min(in_base));
    if kept == 0 && pages > 0 {
        return Reading::Whole;
    }
    let mut numbers: Vec<u32> = Vec::new();
    if let Some(changed) = changed {
        numbers.extend(changed.range(first..first.saturating_add(kept)).map(|block| block - first));
    }
    numbers.extend(damaged.iter().filter_map(|block| block.checked_sub(first)).filter(|page| *page < kept));
    numbers.sort_unstable();
    numbers.dedup();
    let to_read = numbers.len() as u64 + u64::from(pages - kept);
    if to_read * OF > u64::from(pages) * MOST {
        return Reading::Whole;
    }
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let single = numbers.into_iter().map(|page| page..page + 1);
    for range in single.chain((kept < pages).then_some(kept..pages)) {
        match ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => ranges.push(range),
        }
    }
    Reading::Pages(ranges)
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn known(size: u64, base_size: u64, segment: u32) -> Known {
        let relation = RelationFile {
            tablespace: 1663,
            database: 5,
            relfilenode: 16384,
            fork: Fork::Main,
            segment,
            temporary: false,
        };
        Known { relation, size: size * 8192, base_size: base_size * 8192, pages_per_file: 131_072 }
    }

    #[test]
    fn an_untouched_file_is_not_read() {
        assert_eq!(select(&known(100, 100, 0), &ChangeMap::default(), &[]), Reading::Pages(Vec::new()));
    }

    #[test]
    fn what_lies_behind_the_old_end_is_read() {
        // Pages of zeros are added without a word in the log.
        assert_eq!(select(&known(100, 90, 3), &ChangeMap::default(), &[]), Reading::Pages(vec![90..100]));
        assert_eq!(select(&known(100, 0, 0), &ChangeMap::default(), &[]), Reading::Whole);
    }

    #[test]
    fn a_damaged_page_is_looked_at_again() {
        let first = 131_072;
        assert_eq!(
            select(&known(100, 100, 1), &ChangeMap::default(), &[first + 7, first + 8, 3, first + 100]),
            Reading::Pages(vec![7..9])
        );
    }

    #[test]
    fn other_forks_and_odd_sizes_are_read_whole() {
        let mut vm = known(10, 10, 0);
        vm.relation.fork = Fork::Vm;
        assert_eq!(select(&vm, &ChangeMap::default(), &[]), Reading::Whole);
        let mut odd = known(10, 10, 0);
        odd.size += 1;
        assert_eq!(select(&odd, &ChangeMap::default(), &[]), Reading::Whole);
    }

    proptest! {
        #[test]
        fn ranges_are_in_order_and_within_the_file(size in 1u64..300, base in 0u64..300, damaged in prop::collection::vec(0u32..300, 0..40)) {
            if let Reading::Pages(ranges) = select(&known(size, base, 0), &ChangeMap::default(), &damaged) {
                let mut end = 0;
                for range in &ranges {
                    prop_assert!(range.start < range.end && (range.start > end || end == 0));
                    end = range.end;
                }
                prop_assert!(u64::from(end) <= size);
                let is_read = |page: u32| ranges.iter().any(|range| range.contains(&page));
                for page in (base..size).map(|page| page as u32).chain(damaged.into_iter().filter(|d| u64::from(*d) < size)) {
                    prop_assert!(is_read(page));
                }
            }
        }
    }
}
