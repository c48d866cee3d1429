//! What a full backup has read and stored before it is done.

use holdfast_types::{Lsn, Micros, SegmentSize, SnapshotId, SystemId, Timeline};
use serde::{Deserialize, Serialize};

use crate::manifest::{MapRef, PackSize};

/// Some whole files of a backup that is not done yet. Each names all that a reader needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The snapshot that it will be, if it is finished.
    pub id: SnapshotId,
    pub source: String,
    /// As PostgreSQL's `server_version_num`, as in 150018.
    pub server_version: u32,
    pub system_id: SystemId,
    pub timeline: Timeline,
    pub segment_size: SegmentSize,
    /// Where the backup began: its files hold all that was written before.
    pub start_lsn: Lsn,
    /// Nothing in the files was written after this.
    pub read_lsn: Lsn,
    pub started_at: Micros,
    pub from_standby: bool,
    /// Whether the pages have checksums.
    pub checksums: bool,
    /// The files.
    pub map: MapRef,
    /// Every pack that the map refers to.
    pub packs: Vec<PackSize>,
}
