//! Records with a right checksum and any content, as no bytes by chance would have: what is read of them, what they
//! mean to a change map, and that the map comes back from its bytes.
#![no_main]

#[allow(dead_code, reason = "the tests that it was written for need more of it")]
#[path = "../../crates/pgformat/tests/it/log_writer.rs"]
mod log_writer;

use holdfast_changes::ChangeMap;
use holdfast_pgformat::WalDecoder;
use holdfast_types::{Lsn, SegmentSize};
use libfuzzer_sys::fuzz_target;
use log_writer::{LogWriter, Plain, SYSTEM};

const SIZE: SegmentSize = SegmentSize::new(1 << 20).unwrap();

fuzz_target!(|bytes: &[u8]| {
    let Some((&version, mut rest)) = bytes.split_first() else { return };
    let version = 13 + u32::from(version % 6);
    let mut log = LogWriter::new(version, SIZE, Lsn::new(1 << 20));
    // Each record: manager, kind, length of the body, body.
    while let Some((&[rmgr, info, low, high], more)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([low, high])).min(more.len());
        let (body, later) = more.split_at(len);
        log.record(&Plain { rmgr, info, xid: 7, body: body.to_vec() });
        rest = later;
        if log.bytes.len() > 4 << 20 {
            break;
        }
    }
    let mut map = ChangeMap::default();
    let mut decoder = WalDecoder::new(version, SIZE, Lsn::new(1 << 20)).unwrap();
    decoder = decoder.for_system(holdfast_types::SystemId::new(SYSTEM));
    decoder
        .feed(&log.bytes, &mut |record| {
            record.event();
            map.note(&record);
        })
        .ok();
    let encoded = map.encode();
    assert_eq!(ChangeMap::decode(&encoded).as_ref(), Ok(&map));
});
