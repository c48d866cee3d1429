//! The log decoder: any bytes, in any pieces, give the same records and end the same way.
#![no_main]

use holdfast_pgformat::wal::check_segment_start;
use holdfast_pgformat::{WalDecoder, WalError};
use holdfast_types::{Lsn, Segment, SegmentSize, SystemId, Timeline};
use libfuzzer_sys::fuzz_target;

const SIZE: SegmentSize = SegmentSize::new(1 << 20).unwrap();

/// What came of it: each record, where the last one ended, and the error.
type Decoded = (Vec<(Lsn, Lsn, usize)>, Lsn, Result<(), WalError>);

fn decode(bytes: &[u8], version: u32, start: Lsn, mut size: impl FnMut() -> usize) -> Option<Decoded> {
    let mut decoder = WalDecoder::new(version, SIZE, start).ok()?;
    let mut records = Vec::new();
    let mut rest = bytes;
    loop {
        let (piece, later) = rest.split_at(size().clamp(1, rest.len().max(1)).min(rest.len()));
        rest = later;
        let outcome = decoder.feed(piece, &mut |record| {
            record.event();
            records.push((record.lsn, record.end, record.blocks().count() + record.file_changes().len()));
        });
        if outcome.is_err() || rest.is_empty() {
            return Some((records, decoder.position(), outcome));
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((head, log)) = bytes.split_at_checked(5) else { return };
    let version = 13 + u32::from(head[0] % 6);
    let page = u16::from_le_bytes([head[1], head[2]]);
    let start = Lsn::new(u64::from(page) << 13);
    let whole = decode(log, version, start, || usize::MAX);
    let (mut seed, most) = (u32::from(head[3]) + 1, usize::from(head[4]) * 37 + 1);
    let pieces = decode(log, version, start, || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % most + 1
    });
    assert_eq!(whole, pieces);
    let segment = Segment::new(Timeline::new(1), u64::from(page >> 7));
    check_segment_start(log, SystemId::new(7), segment, SIZE).ok();
});
