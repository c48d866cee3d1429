use holdfast_pgformat::wal::{FileChange, PageFault, RecordFault};
use holdfast_pgformat::{Event, Fork, Relation, WalDecoder, WalError, WalLevel};
use holdfast_types::{Lsn, Micros, SegmentSize, SystemId, Timeline};
use proptest::prelude::*;

use crate::log_writer::{LogWriter, Plain, SYSTEM};
use crate::waldump::MIB;

const START: Lsn = Lsn::new(5 << 20);

/// Decodes one record of a release and looks at it.
fn look<T>(version: u32, plain: &Plain, look: impl Fn(holdfast_pgformat::Record<'_>) -> T) -> Result<T, WalError> {
    let mut log = LogWriter::new(version, MIB, START);
    log.record(plain);
    let mut decoder = WalDecoder::new(version, MIB, START).unwrap();
    let mut seen = None;
    decoder.feed(&log.bytes, &mut |record| seen = Some(look(record)))?;
    Ok(seen.expect("a record"))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn image_flags_changed_meaning_in_15() {
    // One block with an image of 100 bytes; the byte after the hole's offset holds the flags.
    let block = |flags: u8, hole: &[u8]| {
        let mut body = vec![0, 0x10, 0, 0, 100, 0, 50, 0, flags];
        body.extend_from_slice(hole);
        body.extend_from_slice(&words(&[1663, 5, 16384, 7]));
        body.extend_from_slice(&[0xAA; 100]);
        Plain { rmgr: 10, info: 0, xid: 9, body }
    };
    let applied = |version, plain: &Plain| {
        look(version, plain, |record| {
            let blocks: Vec<_> = record.blocks().collect();
            assert_eq!((blocks.len(), blocks[0].block, blocks[0].has_image), (1, 7, true));
            blocks[0].applies_image
        })
    };
    for version in 13..=18 {
        let (apply, compressed) = if version < 15 { (0x04, 0x02) } else { (0x02, 0x04) };
        assert_eq!(applied(version, &block(apply | 1, &[])), Ok(true), "{version}");
        assert_eq!(applied(version, &block(1, &[])), Ok(false), "{version}");
        assert_eq!(
            applied(version, &block(apply | compressed | 1, &[9, 9])),
            Ok(true),
            "{version}: with a hole's length"
        );
        assert!(applied(version, &block(apply | compressed | 1, &[])).is_err(), "{version}: without");
    }
}

#[test]
fn parts_of_records_that_came_later_are_refused_before() {
    let mut body = vec![253, 1, 0, 252, 1, 0, 0, 0, 255, 3];
    body.extend_from_slice(b"abc");
    let plain = Plain { rmgr: 21, info: 0, xid: 9, body };
    for version in 14..=18 {
        assert_eq!(look(version, &plain, |record| record.main.to_vec()), Ok(b"abc".to_vec()));
    }
    assert!(matches!(look(13, &plain, |_| ()), Err(WalError::EndOfLog { why: RecordFault::Content(_), .. })));
    let custom = Plain::main(130, 0, b"x");
    assert_eq!(look(15, &custom, |record| record.event()), Ok(None));
    let why = RecordFault::ResourceManager(130);
    assert_eq!(look(14, &custom, |_| ()), Err(WalError::EndOfLog { lsn: START.advance(40), why }));
}

#[test]
fn databases_are_created_and_dropped_in_each_release() {
    let changes = |version, info: u8, body: &[u32]| {
        look(version, &Plain::main(4, info | 1, &words(body)), |record| record.file_changes()).unwrap()
    };
    let database = |tablespace| FileChange::Database { tablespace, database: 5 };
    for version in 13..=18 {
        assert_eq!(changes(version, 0x00, &[5, 1663, 1, 1663]), [database(1663)]);
        let drop = if version < 15 { 0x10 } else { 0x20 };
        assert_eq!(changes(version, drop, &[5, 2, 1663, 16400]), [database(1663), database(16400)]);
        assert_eq!(changes(version, drop, &[5, u32::MAX, 1663]), [FileChange::Unknown], "cut off");
        assert_eq!(changes(version, 0x70, &[5, 1663]), [FileChange::Unknown], "never heard of");
    }
    assert_eq!(changes(15, 0x10, &[5, 1663]), [database(1663)], "copied through the log");
}

#[test]
fn relations_are_dropped_behind_statistics_of_each_release() {
    for (version, item) in [(13, 0), (14, 0), (15, 3), (17, 3), (18, 4)] {
        let mut main = 700_000_000_000_000i64.to_le_bytes().to_vec();
        // Database, subtransactions, relations, invalidations, two phases and, where there are any, statistics.
        let flags = 0x1F | if item == 0 { 0 } else { 0x100 };
        main.extend(words(&[flags, 5, 1663, 2, 801, 802, 1, 1663, 5, 16384]));
        if item > 0 {
            main.extend(words(&[2]));
            main.extend(words(&vec![0xFFFF_FFFF; 2 * item]));
        }
        main.extend(words(&[1, 1, 2, 3, 4, 731]));
        let time = Micros::from_postgresql(700_000_000_000_000);
        let plain = Plain::main(1, 0x30 | 0x80 | 1, &main);
        let (event, changes) = look(version, &plain, |record| (record.event(), record.file_changes())).unwrap();
        assert_eq!(event, Some(Event::CommitPrepared { xid: 731, time }), "{version}");
        let relation = Relation { tablespace: 1663, database: 5, relfilenode: 16384 };
        assert_eq!(changes, [FileChange::Dropped { relation }], "{version}");
    }
}

#[test]
fn truncation_counts_map_pages() {
    let body = words(&[32_672 * 3 + 5, 1663, 5, 16384, 7]);
    let changes = look(18, &Plain::main(2, 0x21, &body), |record| record.file_changes()).unwrap();
    let relation = Relation { tablespace: 1663, database: 5, relfilenode: 16384 };
    let cut = |fork, blocks| FileChange::Truncated { relation, fork, blocks };
    assert_eq!(changes, [cut(Fork::Main, 98_021), cut(Fork::Vm, 3), cut(Fork::Fsm, 0)]);
    let unknown = look(18, &Plain::main(99 - 89, 0x01, b"?"), |record| record.file_changes()).unwrap();
    assert_eq!(unknown, [FileChange::Unknown], "flagged, but of a kind that is not known");
}

#[test]
fn changes_of_files_that_are_not_known_are_never_taken_for_none() {
    let changes = |version, rmgr, info, main: &[u32]| {
        look(version, &Plain::main(rmgr, info, &words(main)), |record| record.file_changes()).unwrap()
    };
    for version in 13..=18 {
        for kind in 0..16u8 {
            let (storage, tablespace) = (changes(version, 2, kind << 4, &[]), changes(version, 5, kind << 4, &[1]));
            assert_eq!(storage, [FileChange::Unknown], "{version}: {kind}");
            assert_eq!(tablespace.is_empty(), kind < 2, "{version}: {kind}");
            // The highest bit only says that a transaction's record has more to it.
            let transaction = changes(version, 1, kind << 4, &[0, 0, 0]);
            let known = kind & 7 < if version < 14 { 6 } else { 7 };
            assert_eq!(transaction.is_empty(), known, "{version}: {kind}");
        }
        for (rmgr, info) in [(0, 0xB1), (1, 0x11), (5, 0x01), (5, 0x11), (7, 0x01), (10, 0x01), (21, 0x01)] {
            assert_eq!(changes(version, rmgr, info, &[]), [FileChange::Unknown], "{version}: {rmgr} {info}");
        }
        assert_eq!(changes(version, 2, 0x21, &[7, 1663, 5, 16384, 8]), [FileChange::Unknown], "another fork is cut");
        assert_eq!(changes(version, 2, 0x11, &[1663, 5, 16384, 4]), [FileChange::Unknown], "another fork is made");
    }
    assert_eq!(changes(18, 130, 0x01, &[]), [FileChange::Unknown], "of an extension");
    assert_eq!(changes(18, 130, 0x00, &[]), [], "of an extension that names what it changes");
}

#[test]
fn later_releases_log_the_beginning_of_a_checkpoint() {
    let plain = Plain::main(0, 0xE0, &words(&[1]));
    let event = |version| look(version, &plain, |record| record.event()).unwrap();
    assert_eq!(event(17), Some(Event::CheckpointBegin { wal_level: WalLevel::Replica }));
    assert_eq!(event(16), None);
}

#[test]
fn a_record_lost_in_a_crash_is_given_up_where_its_rest_is_replaced() {
    let mut log = LogWriter::new(15, MIB, START);
    log.record(&Plain::main(21, 0, &[1; 5000]));
    let mut lost = log.bytes.clone();
    let (begin, _) = log.record(&Plain::main(21, 0, &[2; 9000]));
    // The server crashed after the first page and begins the next with a record that says so.
    lost.extend_from_slice(&log.bytes[lost.len()..8192]);
    log.bytes = lost;
    log.page_header(8, 0);
    let mut body = begin.get().to_le_bytes().to_vec();
    body.extend_from_slice(&5i64.to_le_bytes());
    let mut after = LogWriter::new(15, MIB, START);
    after.record(&Plain::main(21, 0, &[1; 5000]));
    after.bytes = log.bytes;
    after.record_here(&Plain::main(0, 0xD0, &body));

    let mut decoder = WalDecoder::new(15, MIB, START).unwrap();
    let mut events = Vec::new();
    decoder.feed(&after.bytes, &mut |record| events.push(record.event())).unwrap();
    assert_eq!(events, [None, Some(Event::Overwritten { lost: begin, time: Micros::from_postgresql(5) })]);
    assert_eq!(decoder.position(), after.at());

    // Without that mark the log ends with the record before.
    let unmarked = 8192 + 2;
    after.bytes[unmarked] = 0;
    let mut decoder = WalDecoder::new(15, MIB, START).unwrap();
    let why = RecordFault::NotContinued(START.advance(8192));
    assert_eq!(decoder.feed(&after.bytes, &mut |_| ()), Err(WalError::EndOfLog { lsn: begin, why }));
}

#[test]
fn a_claimed_length_reserves_no_memory() {
    let mut log = LogWriter::new(15, MIB, START);
    log.record(&Plain::main(21, 0, &[1; 100]));
    for (length, expected) in [
        (23, Err(RecordFault::Length(23))),
        ((1 << 30) + 1, Err(RecordFault::Length((1 << 30) + 1))),
        (1 << 30, Ok(())),
    ] {
        log.bytes[40..44].copy_from_slice(&u32::to_le_bytes(length));
        let mut decoder = WalDecoder::new(15, MIB, START).unwrap();
        let result = decoder.feed(&log.bytes, &mut |_| panic!("no record"));
        assert_eq!(result, expected.map_err(|why| WalError::EndOfLog { lsn: START.advance(40), why }));
    }
}

#[test]
fn starts_that_cannot_be_are_refused() {
    let refused = |start| WalDecoder::new(15, MIB, Lsn::new(start)).err();
    for start in [4, 8, 32, (1 << 20) + 24, 8192 + 16, u64::MAX, u64::MAX - 7] {
        assert_eq!(refused(start), Some(WalError::Start(Lsn::new(start))), "{start}");
    }
    for start in [0, 40, (1 << 20) + 40, 8192, 8192 + 24] {
        assert_eq!(refused(start), None, "{start}");
    }
    assert_eq!(WalDecoder::new(12, MIB, START).err(), Some(WalError::UnknownVersion(12)));
    assert_eq!(WalDecoder::new(19, MIB, START).err(), Some(WalError::UnknownVersion(19)));
}

#[test]
fn a_timeline_never_goes_back() {
    let mut log = LogWriter::new(15, MIB, START);
    log.record(&Plain::main(21, 0, &[1; 9000]));
    let mut decoder = WalDecoder::new(15, MIB, START).unwrap().on_timeline(Timeline::new(2));
    let why = PageFault::Timeline(Timeline::FIRST);
    assert_eq!(decoder.feed(&log.bytes, &mut |_| ()), Err(WalError::Page { lsn: START, why }));
}

fn any_record() -> impl Strategy<Value = Plain> {
    let size = prop_oneof![8 => 0usize..200, 3 => 7000usize..9000, 1 => 0usize..60_000];
    (0u8..=21, 0u8..16, any::<u32>(), size, any::<u8>())
        .prop_map(|(rmgr, kind, xid, size, fill)| Plain { xid, ..Plain::main(rmgr, kind << 4, &vec![fill; size]) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        version in 13u32..=18,
        bits in 20u32..=22,
        records in prop::collection::vec(any_record(), 1..60),
        sizes in prop::collection::vec(1usize..20_000, 1..5),
        page in 0u64..4,
    ) {
        let size = SegmentSize::new(1 << bits).unwrap();
        let start = Lsn::new(size.get() - page * 8192);
        let mut log = LogWriter::new(version, size, start);
        let written: Vec<_> = records.iter().map(|record| log.record(record)).collect();
        let mut decoder = WalDecoder::new(version, size, start).unwrap().for_system(SystemId::new(SYSTEM));
        let mut read = Vec::new();
        let mut rest = log.bytes.as_slice();
        for size in sizes.iter().cycle() {
            let (piece, after) = rest.split_at((*size).min(rest.len()));
            decoder.feed(piece, &mut |record| {
                record.event();
                record.file_changes();
                read.push((record.lsn, record.end, record.xid, record.rmgr, record.info, record.main.to_vec()));
            }).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let expected: Vec<_> = written
            .into_iter()
            .zip(records)
            .map(|((lsn, end), plain)| (lsn, end, plain.xid, plain.rmgr, plain.info, plain.body[5..].to_vec()))
            .collect();
        prop_assert_eq!(read, expected);
        prop_assert_eq!(decoder.next_byte(), log.at());
    }

    #[test]
    fn any_body_with_a_right_crc_is_answered(
        version in 13u32..=18, rmgr in 0u8..=21, info: u8, body in prop::collection::vec(any::<u8>(), 0..120), kind in 0u8..4
    ) {
        let main = Plain::main(rmgr, info, &body);
        let raw = Plain { rmgr, info, xid: 1, body: body.clone() };
        // A block reference to begin with, then chance.
        let block = Plain { body: [&[0, kind][..], &body].concat(), ..raw.clone() };
        for plain in [main, raw, block] {
            look(version, &plain, |record| (record.blocks().count(), record.event(), record.file_changes())).ok();
        }
    }
}
