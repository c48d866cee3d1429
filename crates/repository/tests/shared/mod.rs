//! What tests of the repository have in common.

use holdfast_format::manifest::{Manifest, MapRef, Owner, PackSize, SnapshotKind, Summary};
use holdfast_types::{Lsn, Micros, SegmentSize, SnapshotId, SystemId, Timeline};

/// Of a snapshot of the source `chat` that refers to these.
pub fn manifest(id: SnapshotId, now: Micros, packs: Vec<PackSize>, maps: Vec<MapRef>) -> Manifest {
    let summary = Summary {
        id,
        source: "chat".to_owned(),
        kind: SnapshotKind::Incremental,
        base: None,
        server_version: 150_000,
        system_id: SystemId::new(7),
        timeline: Timeline::FIRST,
        start_lsn: Lsn::new(40),
        stop_lsn: Lsn::new(500),
        segment_size: SegmentSize::DEFAULT,
        started_at: now,
        stopped_at: now,
        from_standby: false,
        bytes: 1,
        files: 1,
        read_bytes: None,
        stored_bytes: 1,
        damaged_pages: 0,
        made_by: "test".to_owned(),
    };
    Manifest {
        summary,
        maps,
        packs,
        backup_label: Vec::new(),
        tablespace_map: Vec::new(),
        pg_control: Vec::new(),
        tablespaces: Vec::new(),
        owner: Owner { user: "postgres".to_owned(), group: "postgres".to_owned() },
        data_directory: "/data".to_owned(),
        config_files: Vec::new(),
        parameters: Vec::new(),
        damage: Vec::new(),
    }
}
