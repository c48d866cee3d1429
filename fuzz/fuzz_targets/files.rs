//! The small files of a data directory, and the names in it.
#![no_main]

use holdfast_pgformat::{BackupLabel, RelationFile, TablespaceMap, TimelineHistory, path};
use holdfast_types::{Lsn, SegmentSize, Timeline};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    match which % 4 {
        0 => {
            if let Ok(label) = BackupLabel::parse(bytes) {
                label.segment(SegmentSize::DEFAULT).ok();
            }
        }
        1 => {
            if let Ok(map) = TablespaceMap::parse(bytes) {
                assert_eq!(TablespaceMap::parse(&map.serialize()).as_ref(), Ok(&map));
            }
        }
        2 => {
            let timeline = Timeline::new(u32::from(which / 4) + 1);
            if let Ok(history) = TimelineHistory::parse(timeline, bytes) {
                for entry in history.entries() {
                    assert!(history.contains(entry.timeline, entry.switch));
                    history.span(entry.timeline);
                }
                history.timeline_at(Lsn::new(1 << 24));
            }
        }
        _ => {
            path::inclusion(bytes, false);
            path::inclusion(bytes, true);
            path::never_incremental(bytes);
            path::copied_last(bytes);
            if let Some(file) = RelationFile::parse(bytes) {
                file.first_block(131_072);
                // A relation has one name; that of a temporary one is its session's.
                if let Some(path) = file.path("PG_15_202209061") {
                    assert_eq!(RelationFile::parse(path.as_bytes()), Some(file));
                }
            }
        }
    }
});
