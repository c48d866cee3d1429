//! What a record means to recovery.

use holdfast_types::{Lsn, Micros, Timeline};

use super::{Record, rmgr};
use crate::bytes::Reader;
use crate::control::WalLevel;

/// Something that recovery can be told to stop at, or that a backup must know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A transaction was committed.
    Commit {
        /// Which.
        xid: u32,
        /// When, by the server's clock: later records can have earlier times.
        time: Micros,
    },
    /// A transaction was rolled back.
    Abort {
        /// Which.
        xid: u32,
        /// When.
        time: Micros,
    },
    /// A transaction was prepared for a commit in two phases.
    Prepare {
        /// Which.
        xid: u32,
        /// When.
        time: Micros,
    },
    /// A prepared transaction was committed.
    CommitPrepared {
        /// The one that was prepared.
        xid: u32,
        /// When.
        time: Micros,
    },
    /// A prepared transaction was rolled back.
    AbortPrepared {
        /// The one that was prepared.
        xid: u32,
        /// When.
        time: Micros,
    },
    /// Someone named this position (`pg_create_restore_point`).
    RestorePoint {
        /// The name; bytes that are not UTF-8 are replaced.
        name: String,
        /// When.
        time: Micros,
    },
    /// A checkpoint ended.
    Checkpoint {
        /// Where replay from it begins.
        redo: Lsn,
        /// False: the server was shut down.
        online: bool,
        /// The timeline it is on.
        timeline: Timeline,
        /// The timeline before, if it begins a new one.
        previous: Timeline,
        /// Whether whole pages are logged.
        full_page_writes: bool,
        /// When it was begun, in whole seconds.
        time: Micros,
    },
    /// A checkpoint began; replay from it begins here (PostgreSQL 17).
    CheckpointBegin {
        /// How much the log tells from here on.
        wal_level: WalLevel,
    },
    /// A backup taken with the backup API is consistent from here on (standbys do not write this).
    BackupEnd {
        /// Where the backup began.
        start: Lsn,
    },
    /// A server was promoted.
    EndOfRecovery {
        /// The new timeline.
        timeline: Timeline,
        /// The one it left.
        previous: Timeline,
        /// When.
        time: Micros,
    },
    /// The rest of the segment is unused.
    Switch,
    /// Settings changed that a standby must match.
    ParameterChange {
        /// How much the log tells from here on.
        wal_level: WalLevel,
        /// `max_connections`.
        max_connections: u32,
        /// `max_worker_processes`.
        max_worker_processes: u32,
        /// `max_wal_senders`.
        max_wal_senders: u32,
        /// `max_prepared_transactions`.
        max_prepared_xacts: u32,
        /// `max_locks_per_transaction`.
        max_locks_per_xact: u32,
    },
    /// `full_page_writes` was switched on or off; a standby backup that comes by "off" is void.
    FullPageWritesChange(bool),
    /// A record cut off by a crash was given up.
    Overwritten {
        /// Where that record began.
        lost: Lsn,
        /// When.
        time: Micros,
    },
}

impl Record<'_> {
    /// What the record means to recovery; `None` for most, and for one too short to say.
    pub fn event(&self) -> Option<Event> {
        match self.rmgr {
            rmgr::XLOG => self.log_event(),
            rmgr::TRANSACTION => self.transaction_event(),
            _ => None,
        }
    }

    /// Records of the log itself (pg_control.h, `XLOG_*`; xlog_internal.h for their contents).
    fn log_event(&self) -> Option<Event> {
        let mut body = Reader(self.main);
        Some(match self.kind() {
            kind @ (0x00 | 0x10) => Event::Checkpoint {
                redo: body.lsn()?,
                timeline: Timeline::new(body.u32()?),
                previous: Timeline::new(body.u32()?),
                full_page_writes: body.u8()? != 0,
                online: kind == 0x10,
                time: Micros::new(Reader::at(self.main, 64).i64()?.saturating_mul(1_000_000)),
            },
            0x40 => Event::Switch,
            0x50 => Event::BackupEnd { start: body.lsn()? },
            0x60 => Event::ParameterChange {
                max_connections: body.u32()?,
                max_worker_processes: body.u32()?,
                max_wal_senders: body.u32()?,
                max_prepared_xacts: body.u32()?,
                max_locks_per_xact: body.u32()?,
                wal_level: WalLevel::from_number(body.u32()?)?,
            },
            0x70 => {
                let time = Micros::from_postgresql(body.i64()?);
                let name = body.0.split(|byte| *byte == 0).next()?;
                Event::RestorePoint { name: String::from_utf8_lossy(name).into_owned(), time }
            }
            0x80 => Event::FullPageWritesChange(body.u8()? != 0),
            0x90 => {
                let time = Micros::from_postgresql(body.i64()?);
                let timeline = Timeline::new(body.u32()?);
                Event::EndOfRecovery { timeline, previous: Timeline::new(body.u32()?), time }
            }
            0xD0 => Event::Overwritten { lost: body.lsn()?, time: Micros::from_postgresql(body.i64()?) },
            0xE0 if self.format.major() >= 17 => {
                Event::CheckpointBegin { wal_level: WalLevel::from_number(body.u32()?)? }
            }
            _ => return None,
        })
    }

    /// Ends of transactions (xact.h, `XLOG_XACT_*`).
    fn transaction_event(&self) -> Option<Event> {
        let xid = self.xid;
        Some(match self.kind() & 0x70 {
            0x00 => Event::Commit { xid, time: self.transaction_end()?.time },
            0x10 => {
                // xl_xact_prepare: two words of format, then the transaction and its database.
                let mut body = Reader::at(self.main, 8);
                let xid = body.u32()?;
                body.u32()?;
                Event::Prepare { xid, time: Micros::from_postgresql(body.i64()?) }
            }
            0x20 => Event::Abort { xid, time: self.transaction_end()?.time },
            // Another session may finish a prepared transaction, so the record's own number is not the one meant.
            0x30 => {
                let end = self.transaction_end()?;
                Event::CommitPrepared { xid: end.prepared?, time: end.time }
            }
            0x40 => {
                let end = self.transaction_end()?;
                Event::AbortPrepared { xid: end.prepared?, time: end.time }
            }
            _ => return None,
        })
    }
}
