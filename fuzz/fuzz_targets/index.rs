//! What objects of log say of themselves, and the names that positions and segments have.
#![no_main]

use holdfast_format::wal::{LogIndex, LogSummary};
use holdfast_types::{ByteSize, Lsn, Segment, SegmentSize, SnapshotId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(index) = serde_json::from_slice::<LogIndex>(bytes) {
        let again = serde_json::to_vec(&index).unwrap();
        assert_eq!(serde_json::from_slice::<LogIndex>(&again).unwrap(), index);
    }
    if let Ok(summary) = serde_json::from_slice::<LogSummary>(bytes) {
        let again = serde_json::to_vec(&summary).unwrap();
        assert_eq!(serde_json::from_slice::<LogSummary>(&again).unwrap(), summary);
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(lsn) = text.parse::<Lsn>() {
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
    }
    for size in [SegmentSize::DEFAULT, SegmentSize::new(1 << 20).unwrap(), SegmentSize::new(1 << 30).unwrap()] {
        if let Ok(segment) = Segment::parse(text, size) {
            assert_eq!(segment.file_name(size), text);
        }
    }
    text.parse::<ByteSize>().ok();
    text.parse::<SnapshotId>().ok();
});
