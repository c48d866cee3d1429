use std::collections::HashMap;

use holdfast_pgformat::control::{IMPOSSIBLE_CHECKPOINT, unstartable};
use holdfast_pgformat::{ClusterState, ControlError, ControlFile, WalLevel};
use holdfast_types::{Lsn, Micros};
use proptest::prelude::*;

use crate::{fixture, text_fixture};

/// What `pg_controldata` printed, by name.
fn printed(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect()
}

/// Holds a control file against what `pg_controldata` prints of it.
pub fn assert_agrees(control: &ControlFile, text: &str) {
    let printed = printed(text);
    let number = |name: &str| printed[name].parse::<u64>().unwrap();
    let lsn = |name: &str| printed[name].parse::<Lsn>().unwrap();
    let state = match control.state {
        ClusterState::Startup => "starting up",
        ClusterState::ShutDown => "shut down",
        ClusterState::ShutDownInRecovery => "shut down in recovery",
        ClusterState::ShuttingDown => "shutting down",
        ClusterState::CrashRecovery => "in crash recovery",
        ClusterState::ArchiveRecovery => "in archive recovery",
        ClusterState::Production => "in production",
    };
    assert_eq!(state, printed["Database cluster state"]);
    let wal_level = match control.wal_level {
        WalLevel::Minimal => "minimal",
        WalLevel::Replica => "replica",
        WalLevel::Logical => "logical",
    };
    assert_eq!(wal_level, printed["wal_level setting"]);
    assert_eq!(control.system_id.get(), number("Database system identifier"));
    assert_eq!(control.checkpoint, lsn("Latest checkpoint location"));
    assert_eq!(control.redo, lsn("Latest checkpoint's REDO location"));
    assert_eq!(control.min_recovery_point, lsn("Minimum recovery ending location"));
    assert_eq!(control.backup_start, lsn("Backup start location"));
    assert_eq!(control.backup_end, lsn("Backup end location"));
    assert_eq!(control.full_page_writes, printed["Latest checkpoint's full_page_writes"] == "on");
    assert_eq!(control.end_of_backup_required, printed["End-of-backup record required"] == "yes");
    for (value, name) in [
        (control.pg_control_version, "pg_control version number"),
        (control.catalog_version, "Catalog version number"),
        (control.timeline.get(), "Latest checkpoint's TimeLineID"),
        (control.prev_timeline.get(), "Latest checkpoint's PrevTimeLineID"),
        (control.min_recovery_timeline.get(), "Min recovery ending loc's timeline"),
        (control.max_connections, "max_connections setting"),
        (control.max_worker_processes, "max_worker_processes setting"),
        (control.max_wal_senders, "max_wal_senders setting"),
        (control.max_prepared_xacts, "max_prepared_xacts setting"),
        (control.max_locks_per_xact, "max_locks_per_xact setting"),
        (control.block_size, "Database block size"),
        (control.relseg_size, "Blocks per segment of large relation"),
        (control.wal_block_size, "WAL block size"),
        (control.wal_segment_size.get() as u32, "Bytes per WAL segment"),
        (control.data_checksum_version, "Data page checksum version"),
    ] {
        assert_eq!(u64::from(value), number(name), "{name}");
    }
}

#[test]
fn agrees_with_pg_controldata() {
    let control = ControlFile::parse(&fixture("pg_control")).unwrap();
    let text = text_fixture("pg_controldata.txt");
    assert_agrees(&control, &text);
    assert_eq!(control.major_version(), Some(15));
    assert!(control.checksums_enabled());
    let time = crate::oracle::day_of_month_time(printed(&text)["Time of latest checkpoint"]);
    assert_eq!(control.checkpoint_time, Micros::new(time));
    let time = crate::oracle::day_of_month_time(printed(&text)["pg_control last modified"]);
    assert_eq!(control.modified, Micros::new(time));
}

/// The layout of another version, with the CRC where that version has it.
fn as_version(version: u32, crc_at: usize) -> Vec<u8> {
    let mut bytes = fixture("pg_control");
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..crc_at]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn later_versions_differ_in_where_the_crc_lies() {
    let old = ControlFile::parse(&fixture("pg_control")).unwrap();
    for (version, crc_at) in [(1700, 288), (1800, 292)] {
        let control = ControlFile::parse(&as_version(version, crc_at)).unwrap();
        assert_eq!(control, ControlFile { pg_control_version: version, ..old.clone() });
    }
    assert_eq!(ControlFile::parse(&as_version(1201, 288)), Err(ControlError::UnknownVersion(1201)));
    assert!(matches!(ControlFile::parse(&as_version(1800, 288)), Err(ControlError::Checksum { .. })));
}

#[test]
fn the_unstartable_copy_differs_in_the_checkpoint_alone() {
    for bytes in [fixture("pg_control"), as_version(1800, 292)] {
        let before = ControlFile::parse(&bytes).unwrap();
        let copy = unstartable(&bytes).unwrap();
        assert_eq!(copy.len(), bytes.len());
        let after = ControlFile::parse(&copy).unwrap();
        assert_eq!(after, ControlFile { checkpoint: IMPOSSIBLE_CHECKPOINT, ..before });
        let changed: Vec<_> = (0..copy.len()).filter(|index| copy[*index] != bytes[*index]).collect();
        assert!(changed.iter().all(|at| (32..40).contains(at) || (288..296).contains(at)), "{changed:?}");
    }
    let mut torn = fixture("pg_control");
    torn[100] ^= 1;
    assert!(unstartable(&torn).is_err(), "a torn file must not be made to look whole");
}

proptest! {
    #[test]
    fn damage_is_noticed(at in 0usize..292, bit in 0u8..8, keep in 0usize..8192) {
        let mut bytes = fixture("pg_control");
        bytes[at] ^= 1 << bit;
        prop_assert!(ControlFile::parse(&bytes).is_err());
        let mut bytes = fixture("pg_control");
        bytes.truncate(keep);
        prop_assert_eq!(ControlFile::parse(&bytes).is_ok(), keep >= 292);
        prop_assert_eq!(unstartable(&bytes).is_ok(), keep >= 292);
    }

    #[test]
    fn any_content_with_a_right_crc_is_answered(content in prop::collection::vec(any::<u8>(), 288)) {
        for version in [1300u32, 1700] {
            let mut bytes = content.clone();
            bytes[8..12].copy_from_slice(&version.to_le_bytes());
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            ControlFile::parse(&bytes).ok();
        }
    }
}
