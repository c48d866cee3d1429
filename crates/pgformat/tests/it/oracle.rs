//! Reads what `pg_waldump` prints, and prints records the same way, so that the two can be compared line by line.

use std::fmt::Write as _;

use holdfast_pgformat::wal::FileChange;
use holdfast_pgformat::{Event, Fork, Record};
use holdfast_types::Lsn;

/// The names of PostgreSQL's own resource managers (rmgrlist.h).
const RMGRS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// What is compared of one record.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    pub lsn: Lsn,
    prev: Lsn,
    rmgr: String,
    length: u32,
    xid: u32,
    blocks: String,
    /// Events and changes of files, as `pg_waldump` describes them.
    meaning: String,
}

impl Line {
    pub fn of(record: &Record<'_>) -> Self {
        let mut blocks = String::new();
        for block in record.blocks() {
            let fork = if block.fork == Fork::Main { String::new() } else { format!(" fork {}", block.fork.name()) };
            let image = match (block.has_image, block.applies_image) {
                (true, true) => " FPW",
                (true, false) => " FPW for WAL verification",
                (false, _) => "",
            };
            write!(blocks, "#{}: rel {}{fork} blk {}{image};", block.id, block.relation(), block.block).unwrap();
        }
        Self {
            lsn: record.lsn,
            prev: record.previous,
            rmgr: RMGRS.get(usize::from(record.rmgr)).copied().unwrap_or("custom").to_owned(),
            length: record.length,
            xid: record.xid,
            blocks,
            meaning: meaning(record),
        }
    }

    /// Reads one line of `pg_waldump`; `None` for what is no record.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("rmgr: ")?;
        let (rmgr, rest) = rest.split_once(" len (rec/tot):")?;
        let (lengths, rest) = rest.split_once(", tx:")?;
        let (xid, rest) = rest.split_once(", lsn: ")?;
        let (lsn, rest) = rest.split_once(", prev ")?;
        let (prev, rest) = rest.split_once(',').unwrap_or((rest, ""));
        let (description, references) = match rest.find("blkref #0") {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let rmgr = rmgr.trim().to_owned();
        let description = description.trim().trim_start_matches("desc: ").trim_end_matches([',', ' ']);
        let blocks = references
            .split("blkref ")
            .filter(|text| !text.is_empty())
            .fold(String::new(), |blocks, text| blocks + text.trim().trim_end_matches(',') + ";");
        Some(Self {
            lsn: lsn.parse().ok()?,
            prev: prev.trim().parse().ok()?,
            length: lengths.split_once('/')?.1.trim().parse().ok()?,
            xid: xid.trim().parse().ok()?,
            blocks,
            meaning: described(&rmgr, description),
            rmgr,
        })
    }
}

fn meaning(record: &Record<'_>) -> String {
    let mut text = record.event().map_or(String::new(), |event| match event {
        Event::Commit { time, .. } => format!("COMMIT {}", time.get()),
        Event::Abort { time, .. } => format!("ABORT {}", time.get()),
        Event::Prepare { time, .. } => format!("PREPARE {}", time.get()),
        Event::CommitPrepared { xid, time } => format!("COMMIT_PREPARED {xid} {}", time.get()),
        Event::AbortPrepared { xid, time } => format!("ABORT_PREPARED {xid} {}", time.get()),
        Event::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        Event::Checkpoint { redo, online, timeline, previous, full_page_writes, .. } => {
            let kind = if online { "ONLINE" } else { "SHUTDOWN" };
            format!("CHECKPOINT_{kind} redo {redo}; tli {timeline}; prev tli {previous}; fpw {full_page_writes}")
        }
        Event::BackupEnd { start } => format!("BACKUP_END {start}"),
        Event::EndOfRecovery { timeline, previous, time } => {
            format!("END_OF_RECOVERY tli {timeline}; prev tli {previous}; {}", time.get())
        }
        Event::Switch => "SWITCH".to_owned(),
        Event::ParameterChange { wal_level, max_connections, .. } => {
            format!("PARAMETER_CHANGE {max_connections} {wal_level:?}").to_lowercase()
        }
        Event::FullPageWritesChange(on) => format!("FPW_CHANGE {on}"),
        Event::CheckpointBegin { .. } | Event::Overwritten { .. } => "not in PostgreSQL 15".to_owned(),
    });
    for change in record.file_changes() {
        match change {
            FileChange::Created { relation, fork } => write!(text, " CREATE {relation}{}", fork.suffix()),
            FileChange::Truncated { relation, fork: Fork::Main, blocks } => {
                write!(text, " TRUNCATE {relation} to {blocks}")
            }
            FileChange::Truncated { .. } => Ok(()),
            FileChange::Dropped { relation } => write!(text, " DROP {relation}"),
            FileChange::Database { tablespace, database } => write!(text, " DATABASE {tablespace}/{database}"),
            FileChange::Unknown => write!(text, " UNKNOWN"),
        }
        .unwrap();
    }
    text
}

/// Brings a description by `pg_waldump` into the form of [`meaning`].
fn described(rmgr: &str, description: &str) -> String {
    let (kind, rest) = description.split_once(' ').unwrap_or((description, ""));
    let before = |text: &str, end: &str| text.split(end).next().unwrap_or_default().to_owned();
    let dropped = || {
        let list = rest.split("; ").find_map(|part| part.strip_prefix("rels: ")).unwrap_or_default();
        list.split_whitespace().fold(String::new(), |text, path| text + " DROP " + &numbers(path))
    };
    match (rmgr, kind) {
        ("Transaction", "COMMIT" | "ABORT") => format!("{kind} {}{}", timestamp(rest), dropped()),
        ("Transaction", "PREPARE") => format!("PREPARE {}", timestamp(rest.split_once(": ").unwrap().1)),
        ("Transaction", "COMMIT_PREPARED" | "ABORT_PREPARED") => {
            let (xid, time) = rest.split_once(": ").unwrap();
            format!("{kind} {xid} {}{}", timestamp(time), dropped())
        }
        ("XLOG", "RESTORE_POINT" | "BACKUP_END" | "FPW_CHANGE") => description.to_owned(),
        ("XLOG", "SWITCH") => kind.to_owned(),
        ("XLOG", "CHECKPOINT_ONLINE" | "CHECKPOINT_SHUTDOWN") => before(description, "; xid"),
        ("XLOG", "END_OF_RECOVERY") => {
            let (timelines, time) = description.split_once("time ").unwrap();
            format!("{timelines}{}", timestamp(time))
        }
        ("XLOG", "PARAMETER_CHANGE") => {
            let value = |name| before(rest.split_once(name).unwrap().1, " ");
            format!("PARAMETER_CHANGE {} {}", value("max_connections="), value("wal_level=")).to_lowercase()
        }
        ("Storage", "CREATE") => format!(" CREATE {}", numbers(rest)),
        ("Storage", "TRUNCATE") => {
            let (path, to) = rest.split_once(" to ").unwrap();
            format!(" TRUNCATE {} to {}", numbers(path), before(to, " "))
        }
        ("Database", "CREATE_FILE_COPY") => format!(" DATABASE {}", rest.split(" to ").last().unwrap()),
        ("Database", _) => {
            let places = rest.split_whitespace().filter(|word| word.contains('/'));
            places.fold(String::new(), |text, place| text + " DATABASE " + place)
        }
        _ => String::new(),
    }
}

/// `base/5/16384_init` as `1663/5/16384_init`.
fn numbers(path: &str) -> String {
    let file = holdfast_pgformat::RelationFile::parse(path.as_bytes()).expect("a relation's path");
    format!("{}{}", file.relation(), file.fork.suffix())
}

/// `2026-11-21 09:49:28.023326 UTC` as microseconds since 1970.
fn timestamp(text: &str) -> i64 {
    let mut words = text.split([' ', ';']);
    let date: Vec<i64> = words.next().unwrap().split('-').map(|part| part.parse().unwrap()).collect();
    let mut clock = words.next().unwrap().split([':', '.']);
    let mut next = || clock.next().unwrap();
    let seconds = next().parse::<i64>().unwrap() * 3600 + next().parse::<i64>().unwrap() * 60;
    let seconds = seconds + next().parse::<i64>().unwrap();
    let micros: i64 = format!("{:0<6}", clock.next().unwrap_or("0")).parse().unwrap();
    (days_since_1970(date[0], date[1], date[2]) * 86400 + seconds) * 1_000_000 + micros
}

/// `Sat Nov 21 09:49:41 2026` as microseconds since 1970.
pub fn day_of_month_time(text: &str) -> i64 {
    let words: Vec<_> = text.split_whitespace().collect();
    let month = "JanFebMarAprMayJunJulAugSepOctNovDec".find(words[1]).unwrap() / 3 + 1;
    timestamp(&format!("{}-{month}-{} {} UTC", words[4], words[2], words[3]))
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that a leap day is the last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + (153 * month + 2) / 5 + day - 1 - 719_468
}
