//! Maps for property tests.

use holdfast_pgformat::{Fork, Relation};
use holdfast_types::Lsn;
use proptest::prelude::*;

use crate::{ChangeMap, Unknown};

/// Few numbers, so that maps have relations in common.
pub(crate) fn relation() -> impl Strategy<Value = Relation> {
    let small = (0..3u32, 0..3u32, prop_oneof![1 => Just(0), 4 => 16384..16390u32, 1 => Just(u32::MAX)]);
    small.prop_map(|(tablespace, database, relfilenode)| Relation { tablespace, database, relfilenode })
}

pub(crate) fn fork() -> impl Strategy<Value = Fork> {
    prop::sample::select(&Fork::ALL[..])
}

/// Pages at a distance of each other, around where stretches begin and end.
pub(crate) fn pages() -> impl Strategy<Value = Vec<u32>> {
    let first = prop_oneof![
        4 => 0..200u32,
        3 => (1..4u32, 0..200u32).prop_map(|(stretch, before)| stretch * 65536 - before),
        1 => u32::MAX - 200..=u32::MAX,
        1 => any::<u32>(),
    ];
    let count = prop_oneof![4 => 1..5u32, 4 => 1..300u32, 1 => 1..9000u32, 1 => 65000..140_000u32];
    let step = prop_oneof![3 => Just(1u32), 2 => Just(2u32), 1 => 3..5000u32];
    (first, count, step).prop_map(|(first, count, step)| {
        (0..count).map_while(|number| first.checked_add(number.checked_mul(step)?)).collect()
    })
}

pub(crate) fn map() -> impl Strategy<Value = ChangeMap> {
    let limit = prop_oneof![Just(0), 0..100_000u32, Just(u32::MAX)];
    let pages = prop::collection::vec((relation(), fork(), pages()), 0..5);
    let cuts = prop::collection::vec((relation(), fork(), limit), 0..5);
    let databases = prop::collection::vec((0..4u32, 0..4u32), 0..3);
    let unknown = prop::option::weighted(0.2, (0..3u64, "[a-c]?").prop_map(|(lsn, why)| (Lsn::new(lsn), why)));
    (pages, cuts, databases, unknown, any::<bool>()).prop_map(|(pages, cuts, databases, unknown, stored)| {
        let mut map = ChangeMap::default();
        for (relation, fork, pages) in pages {
            let known = map.forks.get_or_insert(relation, fork);
            for page in pages {
                known.add(page);
            }
        }
        for (relation, fork, limit) in cuts {
            map.forks.get_or_insert(relation, fork).cut(limit);
        }
        map.databases.extend(databases);
        map.unknown = unknown.map(|(lsn, why)| Unknown { lsn, why });
        // One that was stored keeps its pages in another form.
        if stored { ChangeMap::decode(&map.encode()).unwrap() } else { map }
    })
}
