use holdfast_pgformat::page::{checksum, lsn, verify};
use holdfast_pgformat::{BackupLabel, PAGE_SIZE, PageVerdict, TimelineHistory};
use holdfast_types::{Lsn, Segment, SegmentSize, Timeline};

use crate::fixture;

#[test]
fn a_page_of_postgresql_is_valid_in_its_place_only() {
    let bytes = fixture("pg_class-block-1.page");
    let page: &[u8; PAGE_SIZE] = bytes.as_slice().try_into().unwrap();
    assert_eq!(verify(page, 1, true), PageVerdict::Valid);
    let stored = u16::from_le_bytes([page[8], page[9]]);
    assert_eq!(checksum(page, 1), stored);
    assert!(lsn(page) > Lsn::ZERO);
    let computed = checksum(page, 2);
    assert_eq!(verify(page, 2, true), PageVerdict::BadChecksum { stored, computed });
}

#[test]
fn reads_the_label_of_a_backup() {
    let label = BackupLabel::parse(&fixture("backup_label")).unwrap();
    assert_eq!(label.label, "holdfast");
    let size = SegmentSize::new(1 << 20).unwrap();
    assert_eq!(label.segment(size), Ok(Segment::containing(Timeline::FIRST, label.start_wal, size)));
    assert!(label.checkpoint > label.start_wal);
}

#[test]
fn reads_the_history_of_a_promotion() {
    let history = TimelineHistory::parse(Timeline::new(2), &fixture("00000002.history")).unwrap();
    assert_eq!(history.entries().len(), 1);
    assert_eq!(history.entries()[0].reason, "no recovery target specified");
}
