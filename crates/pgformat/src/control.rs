//! `global/pg_control`: what kind of cluster this is and where its last checkpoint lies.
//!
//! Layout from pg_control.h. Versions 1300 (PostgreSQL 13 to 16), 1700 and 1800 share all offsets up to the checksum
//! version: 1700 put `wal_level` into what was padding, 1800 added one byte that moved the CRC from 288 to 292.

use holdfast_types::{Lsn, Micros, SegmentSize, SystemId, Timeline};

use crate::bytes::Reader;

/// The checkpoint position that [`unstartable`] writes, the one pgBackRest uses.
///
/// It lies in the first segment, which PostgreSQL never writes, so that no archive can supply it; and it is well
/// formed, because a malformed one makes PostgreSQL refuse to start even with a `backup_label` (xlog.c,
/// `StartupXLOG`).
pub const IMPOSSIBLE_CHECKPOINT: Lsn = Lsn::new(0xDEAD);

const CHECKPOINT_AT: usize = 32;

/// The bytes are not a control file we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Cut off.
    #[error("pg_control has {length} bytes, at least {needed} are needed")]
    TooShort {
        /// Bytes given.
        length: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Written while it was read, or damaged. Reading again tells which.
    #[error("pg_control has checksum {stored:08X}, its content gives {computed:08X}")]
    Checksum {
        /// What the file says.
        stored: u32,
        /// What its content gives.
        computed: u32,
    },
    /// From a PostgreSQL that Holdfast does not know, or from a machine of another byte order.
    #[error("pg_control has version {0}, known are 1300 (PostgreSQL 13 to 16), 1700 and 1800")]
    UnknownVersion(u32),
    /// The checksum is right but a value means nothing.
    #[error("pg_control says that {field} is {value}")]
    Invalid {
        /// Which value.
        field: &'static str,
        /// What it is.
        value: u32,
    },
}

/// What the cluster was doing when the file was written (`DBState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterState {
    /// Starting for the first time.
    Startup,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly as a standby.
    ShutDownInRecovery,
    /// On its way down.
    ShuttingDown,
    /// Replaying its log after a crash.
    CrashRecovery,
    /// Replaying an archive, or a standby.
    ArchiveRecovery,
    /// Running.
    Production,
}

impl ClusterState {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::Startup,
            Self::ShutDown,
            Self::ShutDownInRecovery,
            Self::ShuttingDown,
            Self::CrashRecovery,
            Self::ArchiveRecovery,
            Self::Production,
        ]
        .get(number as usize)
        .copied()
    }
}

/// How much the log tells (`wal_level`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WalLevel {
    /// Only enough for crash recovery: new tables may bypass the log, so no backup can be brought forward.
    Minimal,
    /// Enough to restore and replicate.
    Replica,
    /// Enough to decode row changes as well.
    Logical,
}

impl WalLevel {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Minimal, Self::Replica, Self::Logical].get(number as usize).copied()
    }
}

/// The parts of `pg_control` that matter to a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's number for life.
    pub system_id: SystemId,
    /// The version of this file's own format.
    pub pg_control_version: u32,
    /// The version of the system catalogs; names the tablespace directories.
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: ClusterState,
    /// When the file was written, to the second.
    pub modified: Micros,
    /// Where the last checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the checkpoint.
    pub timeline: Timeline,
    /// The timeline before it, if the checkpoint begins a new one.
    pub prev_timeline: Timeline,
    /// Whether whole pages were logged at the checkpoint.
    pub full_page_writes: bool,
    /// When the checkpoint was begun.
    pub checkpoint_time: Micros,
    /// How far replay must go before the cluster may be opened; zero outside recovery.
    pub min_recovery_point: Lsn,
    /// The timeline of that point.
    pub min_recovery_timeline: Timeline,
    /// Where the backup that is being recovered began; zero outside such a recovery.
    pub backup_start: Lsn,
    /// Where it ended, if it was taken from a standby.
    pub backup_end: Lsn,
    /// Whether an end-of-backup record must be replayed before the cluster may be opened.
    pub end_of_backup_required: bool,
    /// How much the log tells.
    pub wal_level: WalLevel,
    /// A standby needs at least this setting.
    pub max_connections: u32,
    /// A standby needs at least this setting.
    pub max_worker_processes: u32,
    /// A standby needs at least this setting.
    pub max_wal_senders: u32,
    /// A standby needs at least this setting (`max_prepared_transactions`).
    pub max_prepared_xacts: u32,
    /// A standby needs at least this setting (`max_locks_per_transaction`).
    pub max_locks_per_xact: u32,
    /// Size of a data page.
    pub block_size: u32,
    /// Pages in one segment file of a large relation.
    pub relseg_size: u32,
    /// Size of a page of the log.
    pub wal_block_size: u32,
    /// Size of a segment of the log.
    pub wal_segment_size: SegmentSize,
    /// Zero: data pages have no checksums.
    pub data_checksum_version: u32,
}

impl ControlFile {
    /// Reads the file; only bytes whose CRC is right are believed.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        verify(bytes)?;
        // The length was checked, so what cannot be read does not exist; the error is there to make that visible.
        Fields::read(bytes)
            .ok_or(ControlError::TooShort { length: bytes.len(), needed: CRC_AT_1800 + 4 })
            .and_then(Self::try_from)
    }

    /// The PostgreSQL release the catalogs belong to, if it is one we know (catversion.h of each release).
    pub const fn major_version(&self) -> Option<u32> {
        match self.catalog_version {
            202_007_201 => Some(13),
            202_107_181 => Some(14),
            202_209_061 => Some(15),
            202_307_071 => Some(16),
            202_406_281 => Some(17),
            202_506_291 => Some(18),
            _ => None,
        }
    }

    /// Whether data pages carry checksums.
    pub const fn checksums_enabled(&self) -> bool {
        self.data_checksum_version != 0
    }
}

/// A copy from which PostgreSQL cannot start unless a `backup_label` tells it where to begin.
///
/// Without this, a restored directory that lost its label would start from whatever checkpoint was the newest when
/// `pg_control` was copied, skip the log before it, and be corrupt without a word.
pub fn unstartable(bytes: &[u8]) -> Result<Vec<u8>, ControlError> {
    let crc_at = verify(bytes)?;
    let mut copy = bytes.to_vec();
    replace(&mut copy, CHECKPOINT_AT, &IMPOSSIBLE_CHECKPOINT.get().to_le_bytes());
    let crc = crc32c::crc32c(copy.get(..crc_at).unwrap_or_default());
    replace(&mut copy, crc_at, &crc.to_le_bytes());
    Ok(copy)
}

fn replace(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

const CRC_AT_1300: usize = 288;
const CRC_AT_1800: usize = 292;

/// Checks version and CRC, and says where the CRC lies.
fn verify(bytes: &[u8]) -> Result<usize, ControlError> {
    let short = |needed| ControlError::TooShort { length: bytes.len(), needed };
    let version = Reader::at(bytes, 8).u32().ok_or(short(12))?;
    let crc_at = match version {
        1300 | 1700 => CRC_AT_1300,
        1800 => CRC_AT_1800,
        other => return Err(ControlError::UnknownVersion(other)),
    };
    let content = bytes.get(..crc_at).ok_or(short(crc_at + 4))?;
    let stored = Reader::at(bytes, crc_at).u32().ok_or(short(crc_at + 4))?;
    let computed = crc32c::crc32c(content);
    if stored == computed { Ok(crc_at) } else { Err(ControlError::Checksum { stored, computed }) }
}

/// The values as they lie in the file.
struct Fields {
    system_id: u64,
    versions: [u32; 2],
    state: u32,
    modified: i64,
    checkpoint: Lsn,
    redo: Lsn,
    timelines: [u32; 2],
    full_page_writes: u8,
    checkpoint_time: i64,
    min_recovery_point: Lsn,
    min_recovery_timeline: u32,
    backup_start: Lsn,
    backup_end: Lsn,
    end_of_backup_required: u8,
    wal_level: u32,
    limits: [u32; 5],
    sizes: [u32; 4],
    data_checksum_version: u32,
}

impl Fields {
    fn read(bytes: &[u8]) -> Option<Self> {
        let at = |offset| Reader::at(bytes, offset);
        Some(Self {
            system_id: at(0).u64()?,
            versions: [at(8).u32()?, at(12).u32()?],
            state: at(16).u32()?,
            modified: at(24).i64()?,
            checkpoint: at(CHECKPOINT_AT).lsn()?,
            // The copy of the checkpoint record is 88 bytes from 40 on.
            redo: at(40).lsn()?,
            timelines: [at(48).u32()?, at(52).u32()?],
            full_page_writes: at(56).u8()?,
            checkpoint_time: at(104).i64()?,
            min_recovery_point: at(136).lsn()?,
            min_recovery_timeline: at(144).u32()?,
            backup_start: at(152).lsn()?,
            backup_end: at(160).lsn()?,
            end_of_backup_required: at(168).u8()?,
            wal_level: at(172).u32()?,
            limits: [at(180).u32()?, at(184).u32()?, at(188).u32()?, at(192).u32()?, at(196).u32()?],
            sizes: [at(216).u32()?, at(220).u32()?, at(224).u32()?, at(228).u32()?],
            data_checksum_version: at(252).u32()?,
        })
    }
}

impl TryFrom<Fields> for ControlFile {
    type Error = ControlError;

    fn try_from(fields: Fields) -> Result<Self, ControlError> {
        let invalid = |field, value| ControlError::Invalid { field, value };
        let [pg_control_version, catalog_version] = fields.versions;
        let [timeline, prev_timeline] = fields.timelines.map(Timeline::new);
        let [max_connections, max_worker_processes, max_wal_senders, max_prepared_xacts, max_locks_per_xact] =
            fields.limits;
        let [block_size, relseg_size, wal_block_size, wal_segment_size] = fields.sizes;
        for (field, value) in [("the block size", block_size), ("the size of a relation segment", relseg_size)] {
            if value == 0 {
                return Err(invalid(field, value));
            }
        }
        Ok(Self {
            system_id: SystemId::new(fields.system_id),
            pg_control_version,
            catalog_version,
            state: ClusterState::from_number(fields.state).ok_or(invalid("the cluster state", fields.state))?,
            modified: Micros::new(fields.modified.saturating_mul(1_000_000)),
            checkpoint: fields.checkpoint,
            redo: fields.redo,
            timeline,
            prev_timeline,
            full_page_writes: fields.full_page_writes != 0,
            checkpoint_time: Micros::new(fields.checkpoint_time.saturating_mul(1_000_000)),
            min_recovery_point: fields.min_recovery_point,
            min_recovery_timeline: Timeline::new(fields.min_recovery_timeline),
            backup_start: fields.backup_start,
            backup_end: fields.backup_end,
            end_of_backup_required: fields.end_of_backup_required != 0,
            wal_level: WalLevel::from_number(fields.wal_level).ok_or(invalid("wal_level", fields.wal_level))?,
            max_connections,
            max_worker_processes,
            max_wal_senders,
            max_prepared_xacts,
            max_locks_per_xact,
            block_size,
            relseg_size,
            wal_block_size,
            wal_segment_size: SegmentSize::new(wal_segment_size.into())
                .ok_or(invalid("the WAL segment size", wal_segment_size))?,
            data_checksum_version: fields.data_checksum_version,
        })
    }
}
