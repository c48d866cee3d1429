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
    use std::collections::BTreeSet;
    use std::ops::RangeInclusive;

    use holdfast_format::varint;
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

    const RELATION: Relation = Relation { tablespace: 1663, database: 5, relfilenode: 16384 };

    /// A map that says this of the main fork, as bytes tell it: only the log and stored bytes make maps.
    fn map(limit: Option<u32>, pages: &BTreeSet<u32>) -> ChangeMap {
        let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
        for page in pages {
            match runs.last_mut() {
                Some(last) if *last.end() + 1 == *page => *last = *last.start()..=*page,
                _ => runs.push(*page..=*page),
            }
        }
        let mut bytes = vec![1, 0];
        let mut put = |number: u32| varint::put(&mut bytes, number.into());
        // One database with one fork.
        for number in [1, RELATION.tablespace, RELATION.database, 2, RELATION.relfilenode * 4] {
            put(number);
        }
        put(limit.map_or(0, |limit| limit + 1));
        put(u32::from(!runs.is_empty()));
        if !runs.is_empty() {
            put(0);
            put(runs.len() as u32);
        }
        let mut next = 0;
        for run in runs {
            let more = run.end() - run.start();
            put((run.start() - next) * 2 + u32::from(more > 0));
            if more > 0 {
                put(more - 1);
            }
            next = run.end() + 2;
        }
        let map = if limit.is_none() && pages.is_empty() {
            ChangeMap::default()
        } else {
            ChangeMap::decode(&bytes).expect("it is encoded as the format says")
        };
        let Changes::Pages { limit: known, pages: changed } = map.changes(RELATION, Fork::Main) else {
            panic!("{map:?}")
        };
        assert_eq!((known, changed.into_iter().flatten().collect::<BTreeSet<_>>()), (limit, pages.clone()));
        map
    }

    fn pages(numbers: &[u32]) -> BTreeSet<u32> {
        numbers.iter().copied().collect()
    }

    #[test]
    fn what_was_cut_off_is_read_even_where_it_grew_again() {
        assert_eq!(select(&known(100, 100, 0), &map(Some(60), &pages(&[])), &[]), Reading::Pages(vec![60..100]));
        assert_eq!(
            select(&known(100, 100, 0), &map(Some(60), &pages(&[7, 80])), &[]),
            Reading::Pages(vec![7..8, 60..100])
        );
        // It is shorter now, and all that stayed is as it was.
        assert_eq!(select(&known(60, 100, 0), &map(Some(60), &pages(&[80])), &[]), Reading::Pages(Vec::new()));
        assert_eq!(select(&known(100, 100, 0), &map(Some(100), &pages(&[])), &[]), Reading::Pages(Vec::new()));
        // Made anew.
        assert_eq!(select(&known(100, 100, 0), &map(Some(0), &pages(&[])), &[]), Reading::Whole);
    }

    #[test]
    fn a_limit_counts_pages_of_the_relation_and_not_of_the_file() {
        let of_second = Known { pages_per_file: 100, ..known(100, 100, 1) };
        assert_eq!(select(&of_second, &map(Some(160), &pages(&[59, 107])), &[]), Reading::Pages(vec![7..8, 60..100]));
        assert_eq!(select(&of_second, &map(Some(200), &pages(&[])), &[]), Reading::Pages(Vec::new()));
        // The cut went through an earlier file: this one was removed, and is another now.
        assert_eq!(select(&of_second, &map(Some(60), &pages(&[])), &[]), Reading::Whole);
        assert_eq!(select(&of_second, &map(Some(100), &pages(&[])), &[]), Reading::Whole);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The same, asked of each page by itself.
        #[test]
        fn exactly_those_pages_are_read_that_may_differ(
            size in 0u32..120,
            base in 0u32..120,
            segment in 0u32..3,
            limit in prop::option::of(0u32..400),
            changed in prop::collection::btree_set(0u32..400, 0..40),
            damaged in prop::collection::vec(0u32..400, 0..6),
        ) {
            let of_file = Known { pages_per_file: 120, ..known(size.into(), base.into(), segment) };
            let may_differ = |page: u32| {
                let block = segment * 120 + page;
                page >= base || limit.is_some_and(|limit| block >= limit) || changed.contains(&block) || damaged.contains(&block)
            };
            let differing: Vec<u32> = (0..size).filter(|page| may_differ(*page)).collect();
            match select(&of_file, &map(limit, &changed), &damaged) {
                Reading::Pages(ranges) => prop_assert_eq!(ranges.into_iter().flatten().collect::<Vec<_>>(), differing),
                Reading::Whole => {
                    let is_nearly_all = differing.len() * 10 > size as usize * 9;
                    prop_assert!(is_nearly_all, "{differing:?} of {size}");
                }
            }
        }

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
