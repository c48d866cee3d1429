use std::collections::{BTreeMap, BTreeSet};

use holdfast_changes::{ChangeMap, Changes};
use holdfast_pgformat::{Fork, Relation, WalDecoder};
use holdfast_types::{Lsn, SegmentSize};
use proptest::prelude::*;

use crate::log_writer::{LogWriter, Plain};

const SIZE: SegmentSize = SegmentSize::new(1 << 20).unwrap();
const START: Lsn = Lsn::new(5 << 20);

/// What a record does.
#[derive(Clone, Debug)]
enum Deed {
    /// Pages of any resource manager's record, an extension's as well.
    Pages(u8, Vec<(Relation, Fork, u32)>),
    Create(Relation, Fork),
    Truncate(Relation, u32),
    Commit(Vec<Relation>),
    CreateDatabase(u32, u32),
    DropDatabase(Vec<u32>, u32),
    Unknown,
    Minimal,
    /// Something that changes no file.
    Nothing(u8, u8),
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn locator(relation: Relation) -> [u32; 3] {
    [relation.tablespace, relation.database, relation.relfilenode]
}

impl Deed {
    fn record(&self) -> Plain {
        match self {
            Self::Pages(rmgr, pages) => {
                let mut body = Vec::new();
                let mut last = None;
                for (id, (relation, fork, page)) in pages.iter().enumerate() {
                    let same = last.replace(*relation) == Some(*relation);
                    body.extend([id as u8, *fork as u8 | if same { 0x80 } else { 0 }, 0, 0]);
                    if !same {
                        body.extend(words(&locator(*relation)));
                    }
                    body.extend(words(&[*page]));
                }
                Plain { rmgr: *rmgr, info: 0, xid: 3, body }
            }
            Self::Create(relation, fork) => {
                Plain::main(2, 0x11, &words(&[&locator(*relation)[..], &[*fork as u32]].concat()))
            }
            Self::Truncate(relation, blocks) => {
                Plain::main(2, 0x21, &words(&[&[*blocks], &locator(*relation)[..], &[7]].concat()))
            }
            Self::Commit(relations) => {
                let locators: Vec<u32> = relations.iter().flat_map(|relation| locator(*relation)).collect();
                let head = [0, 0, 4, relations.len() as u32];
                Plain::main(1, 0x81, &words(&[&head[..], &locators].concat()))
            }
            Self::CreateDatabase(tablespace, database) => {
                Plain::main(4, 0x01, &words(&[*database, *tablespace, 1, 1663]))
            }
            Self::DropDatabase(tablespaces, database) => {
                let head = [*database, tablespaces.len() as u32];
                Plain::main(4, 0x21, &words(&[&head[..], tablespaces].concat()))
            }
            Self::Unknown => Plain::main(2, 0x71, &[]),
            Self::Minimal => Plain::main(0, 0x60, &words(&[100, 8, 0, 0, 64, 0, 0])),
            Self::Nothing(rmgr, info) => Plain::main(*rmgr, *info, &words(&[1, 0, 1, 0, 1, 1])),
        }
    }
}

/// What the map must answer, by the simplest means.
#[derive(Default)]
struct Model {
    pages: BTreeMap<(Relation, Fork), BTreeSet<u32>>,
    limits: BTreeMap<(Relation, Fork), u32>,
    databases: BTreeSet<(u32, u32)>,
    unknown: Option<&'static str>,
}

impl Model {
    fn note(&mut self, deed: &Deed) {
        let mut cut = |relation, fork, limit| {
            let known = self.limits.entry((relation, fork)).or_insert(limit);
            *known = limit.min(*known);
        };
        match deed {
            Deed::Pages(_, pages) => {
                for (relation, fork, page) in pages {
                    self.pages.entry((*relation, *fork)).or_default().insert(*page);
                }
            }
            Deed::Create(relation, fork) => cut(*relation, *fork, 0),
            Deed::Truncate(relation, blocks) => {
                cut(*relation, Fork::Main, *blocks);
                cut(*relation, Fork::Vm, blocks / 32_672);
                cut(*relation, Fork::Fsm, 0);
            }
            Deed::Commit(relations) => {
                for relation in relations {
                    for fork in Fork::ALL {
                        cut(*relation, fork, 0);
                    }
                }
            }
            Deed::CreateDatabase(tablespace, database) => drop(self.databases.insert((*tablespace, *database))),
            Deed::DropDatabase(tablespaces, database) => {
                self.databases.extend(tablespaces.iter().map(|tablespace| (*tablespace, *database)));
            }
            Deed::Unknown => drop(self.unknown.get_or_insert("resource manager 2")),
            Deed::Minimal => drop(self.unknown.get_or_insert("wal_level = minimal")),
            Deed::Nothing(..) => {}
        }
    }

    fn check(&self, map: &ChangeMap) {
        let recorded = map.recorded().filter_map(|(relation, fork, limit, _)| Some(((relation, fork), limit?)));
        assert_eq!(recorded.collect::<BTreeMap<_, _>>(), self.limits);
        let recorded = map.recorded().filter_map(|(relation, fork, _, pages)| Some(((relation, fork), pages?)));
        let recorded: BTreeMap<_, BTreeSet<u32>> = recorded.map(|(key, pages)| (key, pages.iter().collect())).collect();
        assert_eq!(recorded, self.pages);
        let why = map.unknown().map(|unknown| unknown.why.as_str());
        assert_eq!(why.is_some(), self.unknown.is_some());
        assert!(self.unknown.is_none_or(|expected| why.is_some_and(|why| why.contains(expected))), "{why:?}");
        for (relation, fork) in self.limits.keys().chain(self.pages.keys()) {
            let everything =
                self.unknown.is_some() || self.databases.contains(&(relation.tablespace, relation.database));
            match map.changes(*relation, *fork) {
                Changes::Everything(_) => assert!(everything),
                Changes::Pages { limit, pages } => {
                    assert!(!everything);
                    assert_eq!(limit, self.limits.get(&(*relation, *fork)).copied());
                    assert_eq!(pages.is_some(), self.pages.contains_key(&(*relation, *fork)));
                }
            }
        }
    }
}

fn relation() -> impl Strategy<Value = Relation> {
    let numbers = (1663..1665u32, 5..7u32, 16384..16405u32);
    numbers.prop_map(|(tablespace, database, relfilenode)| Relation { tablespace, database, relfilenode })
}

fn deed() -> impl Strategy<Value = Deed> {
    let fork = || prop::sample::select(&Fork::ALL[..]);
    let page = prop_oneof![0..50u32, 65530..65540u32, any::<u32>()];
    let rmgr = prop::sample::select(&[0u8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 20, 128, 255][..]);
    // Kinds of the log itself, of a transaction and of tablespaces that say nothing of files.
    const NOTHING: [(u8, u8); 9] =
        [(0, 0x20), (0, 0x60), (0, 0x90), (0, 0xE0), (1, 0x10), (1, 0x50), (1, 0x60), (5, 0x00), (5, 0x10)];
    prop_oneof![
        12 => (rmgr, prop::collection::vec((relation(), fork(), page), 1..33))
            .prop_map(|(rmgr, pages)| Deed::Pages(rmgr, pages)),
        2 => (relation(), fork()).prop_map(|(relation, fork)| Deed::Create(relation, fork)),
        2 => (relation(), prop_oneof![0..9u32, any::<u32>()]).prop_map(|(relation, to)| Deed::Truncate(relation, to)),
        2 => prop::collection::vec(relation(), 0..4).prop_map(Deed::Commit),
        1 => (1663..1665u32, 5..8u32).prop_map(|(tablespace, database)| Deed::CreateDatabase(tablespace, database)),
        1 => (prop::collection::vec(1663..1665u32, 0..3), 5..8u32)
            .prop_map(|(tablespaces, database)| Deed::DropDatabase(tablespaces, database)),
        2 => prop::sample::select(&NOTHING[..]).prop_map(|(rmgr, info)| Deed::Nothing(rmgr, info)),
    ]
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let rare = prop_oneof![Just(Deed::Unknown), Just(Deed::Minimal)];
    (prop::collection::vec(deed(), 0..80), prop::collection::vec((any::<prop::sample::Index>(), rare), 0..6)).prop_map(
        |(mut deeds, rare)| {
            // Seldom, as they leave nothing else to be seen.
            for (at, deed) in rare.into_iter().skip(4) {
                deeds.insert(at.index(deeds.len() + 1), deed);
            }
            deeds
        },
    )
}

/// Hands each record of a log of these deeds to `note`, with its number.
fn read(deeds: &[Deed], mut note: impl FnMut(usize, &holdfast_pgformat::Record<'_>)) {
    let mut log = LogWriter::new(18, SIZE, START);
    for deed in deeds {
        log.record(&deed.record());
    }
    let mut number = 0;
    let mut decoder = WalDecoder::new(18, SIZE, START).unwrap();
    let mut sink = |record: holdfast_pgformat::Record<'_>| {
        note(number, &record);
        number += 1;
    };
    decoder.feed(&log.bytes, &mut sink).unwrap();
    assert_eq!(number, deeds.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_map_is_what_the_records_say(deeds in deeds()) {
        let (mut map, mut model) = (ChangeMap::default(), Model::default());
        read(&deeds, |_, record| map.note(record));
        for deed in &deeds {
            model.note(deed);
        }
        model.check(&map);
        model.check(&ChangeMap::decode(&map.encode()).unwrap());
    }

    #[test]
    fn a_log_says_what_its_parts_say(
        deeds in deeds(),
        parts in prop::collection::vec(0..5usize, 80 + 6),
        stored in prop::collection::vec(any::<bool>(), 5),
    ) {
        let mut whole = ChangeMap::default();
        let mut maps = vec![ChangeMap::default(); 5];
        read(&deeds, |number, record| {
            whole.note(record);
            // A map that was stored can go on.
            let map = &mut maps[parts[number]];
            if stored[parts[number]] {
                *map = ChangeMap::decode(&map.encode()).unwrap();
            }
            map.note(record);
        });
        let mut merged = ChangeMap::default();
        for map in &maps {
            merged.merge(map);
        }
        prop_assert_eq!(merged, whole);
    }
}

#[test]
fn a_setting_that_cannot_be_read_is_not_taken_for_a_good_one() {
    let mut map = ChangeMap::default();
    let deeds = [Deed::Nothing(0, 0x60)];
    read(&deeds, |_, record| map.note(record));
    assert!(map.is_empty(), "wal_level = replica");
    let mut log = LogWriter::new(13, SIZE, START);
    let (lsn, _) = log.record(&Plain::main(0, 0x60, &words(&[100, 8, 0, 0, 64])));
    let mut decoder = WalDecoder::new(13, SIZE, START).unwrap();
    decoder.feed(&log.bytes, &mut |record| map.note(&record)).unwrap();
    assert_eq!(map.unknown().map(|unknown| unknown.lsn), Some(lsn));
}
