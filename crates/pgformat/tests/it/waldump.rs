use holdfast_pgformat::wal::{PageFault, RecordFault, check_segment_start};
use holdfast_pgformat::{ControlFile, WalDecoder, WalError};
use holdfast_types::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use proptest::prelude::*;

use crate::oracle::Line;
use crate::{fixture, text_fixture};

pub const MIB: SegmentSize = SegmentSize::new(1 << 20).unwrap();

/// An excerpt of the log: its name and where it begins.
fn excerpts() -> Vec<(String, Lsn)> {
    let parse = |line: &str| {
        let (name, start) = line.split_once(' ').unwrap();
        (name.to_owned(), start.parse().unwrap())
    };
    text_fixture("excerpts.txt").lines().map(parse).collect()
}

fn start(name: &str) -> Lsn {
    excerpts().into_iter().find(|(known, _)| known == name).unwrap().1
}

fn system_id() -> SystemId {
    ControlFile::parse(&fixture("pg_control")).unwrap().system_id
}

/// Feeds pieces of the given sizes in turn; answers the records, where the last ended, and the first error.
fn decode(bytes: &[u8], start: Lsn, sizes: &[usize]) -> (Vec<Line>, Lsn, Result<(), WalError>) {
    let mut decoder = WalDecoder::new(15, MIB, start).unwrap().for_system(system_id());
    let mut lines = Vec::new();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        rest = after;
        let result = decoder.feed(piece, &mut |record| lines.push(Line::of(&record)));
        if result.is_err() || rest.is_empty() {
            return (lines, decoder.position(), result);
        }
    }
    unreachable!("sizes cycle until the bytes are used up")
}

#[test]
fn every_record_is_what_pg_waldump_says() {
    for (name, start) in excerpts() {
        let bytes = fixture(&format!("{name}.wal"));
        let (lines, position, result) = decode(&bytes, start, &[usize::MAX]);
        let text = text_fixture(&format!("{name}.txt"));
        let expected: Vec<_> = text.lines().filter_map(Line::parse).collect();
        assert!(expected.len() > 5, "{name}");
        for (line, expected) in lines.iter().zip(&expected) {
            assert_eq!(line, expected, "{name}");
        }
        assert_eq!(lines.len(), expected.len(), "{name}");
        // Those that are not cut off by the excerpt's end run into zeros or end with a switch.
        if let Err(error) = result {
            assert_eq!(error, WalError::EndOfLog { lsn: position, why: RecordFault::Zero }, "{name}");
        }
    }
}

#[test]
fn a_promotion_changes_the_timeline_within_a_segment() {
    let mut decoder = WalDecoder::new(15, MIB, start("promoted")).unwrap();
    let mut timelines = Vec::new();
    decoder.feed(&fixture("promoted.wal"), &mut |record| timelines.push(record.timeline.get())).unwrap();
    assert!(timelines.is_sorted() && timelines.first() == Some(&1) && timelines.last() == Some(&2), "{timelines:?}");
    assert_eq!(decoder.timeline(), Timeline::new(2));
    assert_eq!(decoder.system_id(), Some(system_id()));
}

#[test]
fn reading_can_go_on_at_any_record_and_page() {
    let (bytes, start) = (fixture("workload.wal"), start("workload"));
    let (all, ..) = decode(&bytes, start, &[usize::MAX]);
    let positions =
        all.iter().map(|line| line.lsn).chain((0..bytes.len() as u64).step_by(8192).map(|at| start.advance(at)));
    for from in positions {
        let rest = &bytes[from.bytes_since(start) as usize..];
        let (lines, ..) = decode(rest, from, &[usize::MAX]);
        let expected: Vec<_> = all.iter().filter(|line| line.lsn >= from).collect();
        assert_eq!(lines.iter().collect::<Vec<_>>(), expected, "{from}");
    }
}

#[test]
fn the_log_of_another_cluster_is_refused() {
    let bytes = fixture("workload.wal");
    let segment = Segment::containing(Timeline::FIRST, start("workload"), MIB);
    let other = SystemId::new(1);
    assert_eq!(check_segment_start(&bytes, system_id(), segment, MIB), Ok(15));
    assert_eq!(
        check_segment_start(&bytes, other, segment, MIB),
        Err(PageFault::SystemId(system_id())),
        "another cluster"
    );
    let start = segment.start(MIB);
    assert_eq!(check_segment_start(&bytes, system_id(), segment.next(), MIB), Err(PageFault::Address(start)));
    assert_eq!(
        check_segment_start(&bytes, system_id(), segment, SegmentSize::DEFAULT),
        Err(PageFault::SegmentSize(1 << 20))
    );
    assert_eq!(check_segment_start(&bytes[..39], system_id(), segment, MIB), Err(PageFault::TooShort));
    assert_eq!(check_segment_start(&[0; 40], system_id(), segment, MIB), Err(PageFault::Magic(0)));

    let promoted = fixture("promoted.wal");
    let second = Segment::containing(Timeline::new(2), self::start("promoted"), MIB);
    assert_eq!(check_segment_start(&promoted, system_id(), second, MIB), Ok(15), "copied from the parent");

    let mut decoder = WalDecoder::new(15, MIB, start).unwrap().for_system(other);
    let fault = WalError::Page { lsn: start, why: PageFault::SystemId(system_id()) };
    assert_eq!(decoder.feed(&bytes, &mut |_| panic!("no record may come of it")), Err(fault));
    assert!(!fault.may_be_end());
    assert_eq!(decoder.feed(&bytes, &mut |_| panic!("nor later")), Err(fault), "an error stays");
}

#[test]
fn a_page_of_an_older_segment_may_be_the_end() {
    let (mut bytes, start) = (fixture("workload.wal"), start("workload"));
    let older = (start.get() - MIB.get() + 3 * 8192).to_le_bytes();
    bytes[3 * 8192 + 8..3 * 8192 + 16].copy_from_slice(&older);
    let (lines, position, result) = decode(&bytes, start, &[usize::MAX]);
    let error = result.unwrap_err();
    assert!(matches!(error, WalError::Page { why: PageFault::Address(_), .. }) && error.may_be_end(), "{error}");
    assert!(position < start.advance(3 * 8192) && lines.last().unwrap().lsn < position);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_size_of_pieces_does_not_matter(sizes in prop::collection::vec(1usize..9000, 1..6)) {
        for (name, start) in excerpts() {
            let bytes = fixture(&format!("{name}.wal"));
            prop_assert_eq!(decode(&bytes, start, &sizes), decode(&bytes, start, &[usize::MAX]));
        }
    }

    #[test]
    fn damage_ends_the_log_before_it(at in 0usize..112_000, bit in 0u8..8, size in 1usize..9000) {
        let (mut bytes, start) = (fixture("workload.wal"), start("workload"));
        let (whole, ..) = decode(&bytes, start, &[usize::MAX]);
        bytes[at] ^= 1 << bit;
        let (lines, position, result) = decode(&bytes, start, &[size]);
        prop_assert!(lines.iter().zip(&whole).all(|(line, expected)| line == expected), "no record is made up");
        // Padding and two flags of a page say nothing that could contradict the rest; a page's timeline is only
        // found too great when the next page goes back.
        let noticed = if at % 8192 < 24 { at.next_multiple_of(8192) + 8192 } else { at + 8 };
        if result.is_err() && lines.len() < whole.len() {
            prop_assert!(position <= start.advance(noticed as u64));
        } else {
            prop_assert_eq!(lines.len(), whole.len());
        }
    }

    #[test]
    fn any_bytes_are_answered(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        start in (0u64..1 << 40).prop_map(|at| Lsn::new(at * 8)),
        version in 12u32..20,
    ) {
        if let Ok(mut decoder) = WalDecoder::new(version, MIB, start) {
            decoder.feed(&bytes, &mut |record| { Line::of(&record); }).ok();
        }
        let segment = Segment::new(Timeline::new(u32::from(bytes.len() as u16)), start.get());
        check_segment_start(&bytes, SystemId::new(7), segment, MIB).ok();
    }
}
