use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_changes::{ChangeMap, Changes};
use holdfast_pgformat::{Fork, Relation, WalDecoder};
use holdfast_testkit::{PgVersion, Postgres, PostgresBuilder, command_as_server_user, require, wait_until};
use holdfast_types::{Lsn, Segment, SegmentSize, Timeline};

use crate::workload;

pub const MIB: SegmentSize = SegmentSize::new(1 << 20).unwrap();

pub type Pages = BTreeMap<(Relation, Fork), BTreeSet<u32>>;

pub fn build(version: &PgVersion) -> PostgresBuilder {
    Postgres::build(version)
        .initdb_arg("--wal-segsize=1")
        .fsync(false)
        .setting("wal_keep_size", "4GB")
        .setting("max_prepared_transactions", "5")
        .setting("autovacuum_naptime", "1s")
}

/// Makes a checkpoint; answers where replay from it begins, which is where a record begins.
pub fn checkpoint(server: &Postgres) -> Lsn {
    server.sql("checkpoint");
    server.sql("select redo_lsn from pg_control_checkpoint()").parse().unwrap()
}

/// Hands every record that lies in the range to the map.
pub fn map_of(server: &Postgres, start: Lsn, end: Lsn) -> ChangeMap {
    let mut map = ChangeMap::default();
    let mut sink = |record: holdfast_pgformat::Record<'_>| {
        if record.end <= end {
            map.note(&record);
        }
    };
    let mut decoder = WalDecoder::new(server.version().major(), MIB, start).unwrap();
    let mut segment = Segment::containing(Timeline::FIRST, start, MIB);
    while decoder.next_byte() < end {
        let path = server.data_directory().join("pg_wal").join(segment.file_name(MIB));
        let bytes = std::fs::read(path).unwrap();
        let skip = decoder.next_byte().bytes_since(segment.start(MIB)) as usize;
        if let Err(error) = decoder.feed(&bytes[skip..], &mut sink) {
            assert!(decoder.position() >= end, "{error}");
        }
        segment = segment.next();
    }
    map
}

/// All pages that `pg_waldump` names.
fn dumped(server: &Postgres, start: Lsn, end: Lsn) -> Pages {
    let mut command = command_as_server_user(server.version().bin("pg_waldump"));
    command.arg("-p").arg(server.data_directory().join("pg_wal"));
    command.args(["-s", &start.to_string(), "-e", &end.to_string()]);
    let text = holdfast_testkit::run(&mut command).unwrap();
    let mut pages = Pages::new();
    for reference in text.lines().flat_map(|line| line.split("blkref #").skip(1)) {
        // `0: rel 1663/5/16384 fork vm blk 7 FPW`
        let (_, rest) = reference.split_once(": rel ").unwrap();
        let words: Vec<&str> = rest.split([' ', ',', ';']).collect();
        let (fork, block) = match words[1..] {
            ["fork", fork, "blk", block, ..] => (fork, block),
            ["blk", block, ..] => ("main", block),
            _ => panic!("{reference}"),
        };
        let fork = Fork::ALL.into_iter().find(|known| known.name() == fork).unwrap();
        pages.entry((relation(words[0]), fork)).or_default().insert(block.parse().unwrap());
    }
    pages
}

pub fn relation(text: &str) -> Relation {
    let numbers: Vec<u32> = text.split('/').map(|number| number.parse().unwrap()).collect();
    Relation { tablespace: numbers[0], database: numbers[1], relfilenode: numbers[2] }
}

pub fn recorded(map: &ChangeMap) -> Pages {
    let with_pages = map.recorded().filter_map(|(relation, fork, _, pages)| Some(((relation, fork), pages?)));
    with_pages.map(|(key, pages)| (key, pages.iter().collect())).collect()
}

pub fn compare(ours: &Pages, theirs: &Pages) {
    for key in ours.keys().chain(theirs.keys()) {
        let (our, their) = (ours.get(key), theirs.get(key));
        assert_eq!(our, their, "{}{}", key.0, key.1.suffix());
    }
}

fn every_page_that_pg_waldump_names(version: &PgVersion) {
    let mut server = build(version).start();
    let start = checkpoint(&server);
    workload::run(&mut server);
    let end: Lsn = server.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    server.sql("select pg_switch_wal()");

    let map = map_of(&server, start, end);
    let ours = recorded(&map);
    compare(&ours, &dumped(&server, start, end));
    assert_eq!(map.unknown(), None);
    assert!(map.pages() > 3000 && map.relations() > 300, "{} pages, {} relations", map.pages(), map.relations());
    assert_eq!(Fork::ALL.map(|fork| ours.keys().any(|(_, known)| *known == fork)), [true; 4], "all forks");
    assert_eq!(ChangeMap::decode(&map.encode()), Ok(map.clone()));

    let of = |query: &str| server.sql(query).parse::<u32>().unwrap();
    let whole = |tablespace, database| {
        let relation = Relation { tablespace, database, relfilenode: 1259 };
        matches!(map.changes(relation, Fork::Main), Changes::Everything(_))
    };
    let elsewhere = of("select oid from pg_tablespace where spcname = 'elsewhere'");
    let database = |name| of(&format!("select oid from pg_database where datname = '{name}'"));
    assert!(whole(1663, database("by_log")) && whole(1663, database("copied_by_file")));
    assert!(whole(1663, database("by_file")) && whole(elsewhere, database("by_file")), "it was moved");
    assert!(!whole(1663, database("postgres")) && !whole(1663, database("template0")));
    // `kept` was made by the workload; `pg_proc` was only written to.
    let location = |name: &str| {
        let database = database("postgres");
        let relfilenode = of(&format!("select pg_relation_filenode('{name}')"));
        Relation { tablespace: 1663, database, relfilenode }
    };
    let limit = |name| match map.changes(location(name), Fork::Main) {
        Changes::Pages { limit, .. } => limit,
        Changes::Everything(why) => panic!("{why}"),
    };
    assert_eq!((limit("kept"), limit("pg_proc")), (Some(0), None));
}

#[test]
fn every_page_that_pg_waldump_names_15() {
    every_page_that_pg_waldump_names(&require(15));
}

#[test]
fn every_page_that_pg_waldump_names_18() {
    every_page_that_pg_waldump_names(&require(18));
}

/// What PostgreSQL's own summaries say of a range: pages, and limits.
fn summarized(server: &Postgres, start: Lsn, end: Lsn) -> (Pages, BTreeMap<(Relation, Fork), u32>) {
    let range = format!("s.start_lsn >= '{start}' and s.end_lsn <= '{end}'");
    let gaps = server.sql(&format!(
        "select coalesce(sum(end_lsn - start_lsn), 0) - ('{end}'::pg_lsn - '{start}'::pg_lsn)
         from pg_available_wal_summaries() s where {range}"
    ));
    assert_eq!(gaps, "0", "bytes without a summary");
    let rows = server.sql(&format!(
        "select c.reltablespace || '/' || c.reldatabase || '/' || c.relfilenode, c.relforknumber,
                c.relblocknumber, c.is_limit_block
         from pg_available_wal_summaries() s, pg_wal_summary_contents(s.tli, s.start_lsn, s.end_lsn) c
         where {range}"
    ));
    let (mut pages, mut limits) = (Pages::new(), BTreeMap::new());
    for row in rows.lines() {
        let columns: Vec<&str> = row.split('|').collect();
        let key = (relation(columns[0]), Fork::from_number(columns[1].parse().unwrap()).unwrap());
        let block: u32 = columns[2].parse().unwrap();
        if columns[3] == "t" {
            let limit = limits.entry(key).or_insert(block);
            *limit = block.min(*limit);
        } else {
            pages.entry(key).or_default().insert(block);
        }
    }
    (pages, limits)
}

/// PostgreSQL's summaries differ from the map on purpose:
///
/// * They leave the free space map out.
/// * A page that is cut off after it changed is forgotten; the map remembers it, beyond the limit.
/// * A database as a whole is a limit of relation 0.
/// * Releases before 2026 give the visibility map the limit of the rows' fork, counted in pages of rows.
#[test]
fn no_page_that_the_summaries_of_18_name_is_missing() {
    let mut server = build(&require(18)).setting("summarize_wal", "on").start();
    let start = checkpoint(&server);
    workload::run(&mut server);
    let end = checkpoint(&server);
    wait_until(Duration::from_mins(1), "the log is summarized", || {
        server.sql(&format!("select max(end_lsn) >= '{end}' from pg_available_wal_summaries()")) == "t"
    });
    let map = map_of(&server, start, end);
    let ours = recorded(&map);
    let (pages, mut limits) = summarized(&server, start, end);
    assert!(pages.values().map(BTreeSet::len).sum::<usize>() > 2000);

    let whole: BTreeSet<_> = limits.keys().filter(|(relation, _)| relation.relfilenode == 0).copied().collect();
    assert!(whole.len() >= 6, "{whole:?}");
    for (relation, fork) in whole {
        assert!(matches!(map.changes(relation, fork), Changes::Everything(_)), "{relation}");
        limits.remove(&(relation, fork));
    }
    for ((relation, fork), pages) in &pages {
        assert!(ours.get(&(*relation, *fork)).is_some_and(|ours| pages.is_subset(ours)), "{relation}{}", fork.suffix());
    }
    let believed = |fork: &Fork| matches!(fork, Fork::Main | Fork::Init);
    let our_limits = map.recorded().filter_map(|(relation, fork, limit, _)| Some(((relation, fork), limit?)));
    let our_limits: BTreeMap<_, _> = our_limits.filter(|((_, fork), _)| believed(fork)).collect();
    limits.retain(|(_, fork), _| believed(fork));
    assert_eq!(our_limits, limits);
    for ((relation, fork), ours) in ours.iter().filter(|((_, fork), _)| believed(fork)) {
        let limit = limits.get(&(*relation, *fork)).copied();
        let theirs = pages.get(&(*relation, *fork));
        let known = |page: &u32| theirs.is_some_and(|theirs| theirs.contains(page));
        let more = ours.iter().find(|page| !known(page) && limit.is_none_or(|limit| **page < limit));
        assert_eq!(more, None, "{relation}{}: named by us alone", fork.suffix());
    }
}

fn a_time_of_little_logging(version: &PgVersion) {
    let mut server = build(version).start();
    let start = checkpoint(&server);
    server.sql("create table t as select generate_series(1, 100)");
    let before: Lsn = server.sql("select pg_current_wal_insert_lsn()").parse().unwrap();
    server.sql("alter system set wal_level = minimal; alter system set max_wal_senders = 0");
    server.restart();
    server.sql("create table unseen as select i from generate_series(1, 10000) i");
    server.sql("alter system reset wal_level; alter system reset max_wal_senders");
    server.restart();
    let end = checkpoint(&server);
    assert_eq!(map_of(&server, start, before).unknown(), None);
    let map = map_of(&server, start, end);
    let unknown = map.unknown().unwrap();
    assert!(unknown.lsn >= before && unknown.why.contains("wal_level = minimal"), "{unknown:?}");
    let relation = Relation { tablespace: 1663, database: 1, relfilenode: 1259 };
    assert!(matches!(map.changes(relation, Fork::Main), Changes::Everything(_)));
}

#[test]
fn a_time_of_little_logging_is_noticed_15() {
    a_time_of_little_logging(&require(15));
}

#[test]
fn a_time_of_little_logging_is_noticed_18() {
    a_time_of_little_logging(&require(18));
}
