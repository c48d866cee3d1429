//! `backup_label` and `tablespace_map`, the two files that `pg_backup_stop` returns.
//!
//! They are stored and restored byte for byte; what is read here only steers Holdfast itself. Rules from
//! xlogbackup.c (`build_backup_content`) and xlogrecovery.c (`read_backup_label`, `read_tablespace_map`).

use holdfast_types::{Lsn, ParseSegmentError, Segment, SegmentSize, Timeline};

mod tablespace_map;

pub use tablespace_map::{Tablespace, TablespaceMap};

/// The bytes are not what `pg_backup_stop` returns.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A line is missing, in the wrong place, or its value cannot be read.
    #[error("backup_label has no valid line `{0}` where one is expected")]
    Line(&'static str),
    /// The file name of the first segment and the timeline line contradict each other.
    #[error("backup_label starts in segment {file} but on timeline {timeline}")]
    Contradiction {
        /// The segment.
        file: String,
        /// What the timeline line says.
        timeline: Timeline,
    },
    /// A line that is not `oid path`, or does not end.
    #[error("line {line} of tablespace_map is not `oid path`")]
    TablespaceMap {
        /// Counted from one, in entries.
        line: usize,
    },
}

/// How the backup was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupMethod {
    /// By the backup API or `pg_basebackup`; replay must come by an end-of-backup record.
    Streamed,
    /// By the exclusive backup of PostgreSQL 13 and 14.
    Exclusive,
    /// Written by `pg_rewind`.
    Rewound,
}

/// What kind of server the backup was taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupFrom {
    /// One that accepts writes; PostgreSQL 13 says `master`.
    Primary,
    /// One in recovery.
    Standby,
}

/// Where replay of a backup must begin, and how the backup came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins.
    pub start_wal: Lsn,
    /// The name of the segment that holds it.
    pub start_segment: String,
    /// Where the checkpoint record lies.
    pub checkpoint: Lsn,
    /// How the backup was made.
    pub method: BackupMethod,
    /// From what kind of server.
    pub from: BackupFrom,
    /// When, in the server's own format and log time zone: for people.
    pub start_time: String,
    /// What the backup was called.
    pub label: String,
    /// The timeline it began on.
    pub start_timeline: Timeline,
    /// Set when the files are an incremental backup of PostgreSQL 17 or later, which cannot be started from.
    pub incremental_from: Option<(Lsn, Timeline)>,
}

impl BackupLabel {
    /// Reads `backup_label`.
    pub fn parse(bytes: &[u8]) -> Result<Self, LabelError> {
        let mut lines = Lines { rest: bytes };
        let (start_wal, start_segment) = lines
            .value("START WAL LOCATION")
            .and_then(|value| {
                let (position, file) = value.strip_suffix(')')?.split_once(" (file ")?;
                Some((position.parse().ok()?, valid_segment_name(file)?))
            })
            .ok_or(LabelError::Line("START WAL LOCATION"))?;
        let checkpoint = lines.parsed("CHECKPOINT LOCATION", |value| value.parse().ok())?;
        let method = lines.parsed("BACKUP METHOD", |value| match value {
            "streamed" => Some(BackupMethod::Streamed),
            "pg_start_backup" => Some(BackupMethod::Exclusive),
            "pg_rewind" => Some(BackupMethod::Rewound),
            _ => None,
        })?;
        let from = lines.parsed("BACKUP FROM", |value| match value {
            "primary" | "master" => Some(BackupFrom::Primary),
            "standby" => Some(BackupFrom::Standby),
            _ => None,
        })?;
        let start_time = lines.parsed("START TIME", |value| Some(value.to_owned()))?;
        // pg_rewind writes neither label nor timeline.
        let (label, start_timeline) = if method == BackupMethod::Rewound {
            (String::new(), None)
        } else {
            let label = lines.parsed("LABEL", |value| Some(value.to_owned()))?;
            // Nothing keeps a label from having several lines.
            lines.skip_to("START TIMELINE");
            (label, Some(lines.parsed("START TIMELINE", |value| value.parse().ok().map(Timeline::new))?))
        };
        let file_timeline = start_segment.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let start_timeline = match (file_timeline.map(Timeline::new), start_timeline) {
            (Some(file), None) => file,
            (Some(file), Some(line)) if file == line => line,
            (_, line) => {
                let timeline = line.unwrap_or(Timeline::new(0));
                return Err(LabelError::Contradiction { file: start_segment, timeline });
            }
        };
        let incremental_from = match lines.value("INCREMENTAL FROM LSN") {
            None => None,
            Some(position) => {
                let position = position.parse().map_err(|_| LabelError::Line("INCREMENTAL FROM LSN"))?;
                let timeline = lines.parsed("INCREMENTAL FROM TLI", |value| value.parse().ok().map(Timeline::new))?;
                Some((position, timeline))
            }
        };
        Ok(Self {
            start_wal,
            start_segment,
            checkpoint,
            method,
            from,
            start_time,
            label,
            start_timeline,
            incremental_from,
        })
    }

    /// The segment that replay begins in.
    pub fn segment(&self, size: SegmentSize) -> Result<Segment, ParseSegmentError> {
        Segment::parse(&self.start_segment, size)
    }
}

fn valid_segment_name(file: &str) -> Option<String> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    (file.len() == 24 && file.bytes().all(digits)).then(|| file.to_owned())
}

/// Takes `name: value` lines off the front; the server, too, insists on their order.
struct Lines<'a> {
    rest: &'a [u8],
}

impl Lines<'_> {
    fn value(&mut self, name: &str) -> Option<String> {
        let value = self.rest.strip_prefix(name.as_bytes())?.strip_prefix(b": ")?;
        let end = value.iter().position(|byte| *byte == b'\n')?;
        let (value, rest) = value.split_at(end);
        let value = String::from_utf8_lossy(value).into_owned();
        self.rest = rest.get(1..).unwrap_or_default();
        Some(value)
    }

    fn parsed<T>(&mut self, name: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, LabelError> {
        self.value(name).and_then(|value| parse(&value)).ok_or(LabelError::Line(name))
    }

    fn skip_to(&mut self, name: &str) {
        while !self.rest.is_empty() && !self.rest.starts_with(name.as_bytes()) {
            let end = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |end| end + 1);
            self.rest = self.rest.get(end..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAMED: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-21 09:14:50 UTC\nLABEL: holdfast 20261121T091450Z\nSTART TIMELINE: 1\n";

    #[test]
    fn reads_what_the_backup_api_returns() {
        let label = BackupLabel::parse(STREAMED.as_bytes()).unwrap();
        assert_eq!(label.start_wal.to_string(), "0/2000028");
        assert_eq!(label.checkpoint.to_string(), "0/2000060");
        assert_eq!((label.method, label.from), (BackupMethod::Streamed, BackupFrom::Primary));
        assert_eq!(label.label, "holdfast 20261121T091450Z");
        assert_eq!(label.start_time, "2026-11-21 09:14:50 UTC");
        assert_eq!(label.incremental_from, None);
        let segment = label.segment(SegmentSize::DEFAULT).unwrap();
        assert_eq!(segment, Segment::containing(Timeline::FIRST, label.start_wal, SegmentSize::DEFAULT));
    }

    #[test]
    fn reads_the_other_kinds() {
        let text = STREAMED.replace("primary", "master").replace("METHOD: streamed", "METHOD: pg_start_backup");
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!((label.method, label.from), (BackupMethod::Exclusive, BackupFrom::Primary));

        let text = format!("{STREAMED}INCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(label.incremental_from, Some((Lsn::new(0x0100_0028), Timeline::FIRST)));

        let label = BackupLabel::parse(STREAMED.replace("LABEL: holdfast", "LABEL: two\nlines").as_bytes()).unwrap();
        assert_eq!((label.label.as_str(), label.start_timeline), ("two", Timeline::FIRST));

        let rewound = STREAMED.split("LABEL").next().unwrap().replace("METHOD: streamed", "METHOD: pg_rewind");
        let label = BackupLabel::parse(rewound.as_bytes()).unwrap();
        assert_eq!((label.method, label.start_timeline), (BackupMethod::Rewound, Timeline::FIRST));
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        for (old, new) in [
            ("0/2000028", "0-2000028"),
            ("(file 000000010000000000000002)", "(file 2)"),
            ("CHECKPOINT LOCATION", "checkpoint location"),
            ("streamed", "guessed"),
            ("primary", "somewhere"),
            ("START TIMELINE: 1", "START TIMELINE: 2"),
            ("START TIMELINE: 1\n", "START TIMELINE: 1"),
        ] {
            assert!(BackupLabel::parse(STREAMED.replace(old, new).as_bytes()).is_err(), "{new}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300, at: usize) {
            BackupLabel::parse(&bytes).ok();
            let mut text = STREAMED.as_bytes().to_vec();
            text.truncate(cut);
            BackupLabel::parse(&text).ok();
            if let (Some(byte), Some(other)) = (text.get(at % 300).copied(), bytes.first()) {
                text[at % 300] = byte ^ other;
                BackupLabel::parse(&text).ok();
            }
        }
    }
}
