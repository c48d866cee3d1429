//! The client's own record of what it wrote.
//!
//! A file of records of 80 bytes, appended to by all writers of a run, and by later runs. A record goes to the kernel
//! in one `write` before the writer goes on, so the file survives the death of the lab at any moment: whatever was
//! sent has its attempt in it. It is not flushed to the disk; it is not made for the death of the machine.
//!
//! Layout, little-endian: byte 0 the tag, byte 1 the kind, byte 2 whether there is an attachment, byte 3 zero, bytes
//! 4 to 8 the first four of the BLAKE3 hash of the record with these four zero, then nine words of eight bytes.
//! *Crash*: a record that was cut is cut off by the next run, and ignored at the end of a file by the reader.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::LabError;

const RECORD: usize = 80;
const TAG_START: u8 = 1;
const TAG_ATTEMPT: u8 = 2;
const TAG_ACKNOWLEDGED: u8 = 3;
const TAG_REJECTED: u8 = 4;

/// What kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A message was sent, perhaps with an attachment.
    Message,
    /// Somebody has read a conversation up to its end.
    Marker,
    /// Something was bought.
    Order,
}

/// One write, as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The number of the write: unique over runs, and part of what is written.
    pub operation: u64,
    /// Its kind.
    pub kind: Kind,
    /// The conversation.
    pub conversation: i64,
    /// The user who wrote.
    pub user: i64,
    /// A hash over all that was sent; zero for a marker, which carries nothing.
    pub digest: [u8; 16],
    /// Whether the message has an attachment.
    pub attachment: bool,
    /// When it was sent (first), in microseconds since 1970.
    pub sent_us: i64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What the client knows of the end of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it may be there or not.
    InDoubt,
    /// The server said no; it must not be there.
    Rejected,
    /// The server acknowledged the commit; it must be there.
    Acknowledged(Acknowledgement),
}

/// What the server answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledgement {
    /// When the answer came, in microseconds since 1970.
    pub at_us: i64,
    /// The id of the message or order; zero for a marker.
    pub id: i64,
    /// The message's number in its conversation, or the number up to which the marker was moved.
    pub seq: i64,
    /// The time in the row: `sent_at`, `created_at`; zero for a marker.
    pub row_us: i64,
    /// The time that the read marker of the user got, or zero if it was not touched.
    pub marker_us: i64,
    /// The message that this one answers, or zero.
    pub reply_to: i64,
    /// The id of the attachment, or zero.
    pub attachment: i64,
}

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Start { load_id: i64, at_us: i64 },
    Attempt(Entry),
    Acknowledged { operation: u64, kind: Kind, acknowledgement: Acknowledgement },
    Rejected { operation: u64, kind: Kind, at_us: i64 },
}

/// A journal that is being written.
#[derive(Debug)]
pub(crate) struct JournalWriter {
    file: File,
    path: PathBuf,
}

impl JournalWriter {
    /// Opens a journal to append to it, making it if it is missing.
    pub(crate) fn open(path: &Path) -> Result<Self, LabError> {
        let failed = |source| LabError::Journal { path: path.to_owned(), source };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        file.set_len(length - length % RECORD as u64).map_err(failed)?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Hands a record to the kernel. The file is open for appending, so records of several writers do not mix.
    pub(crate) fn append(&self, record: &Record) -> Result<(), LabError> {
        let written = (&self.file).write_all(&encode(record));
        written.map_err(|source| LabError::Journal { path: self.path.clone(), source })
    }
}

/// All that one or more journals say.
#[derive(Debug, Default)]
pub struct Journal {
    entries: Vec<Entry>,
    by_operation: HashMap<u64, usize>,
    load_ids: Vec<(i64, PathBuf)>,
}

impl Journal {
    /// Reads journals.
    pub fn read(paths: &[PathBuf]) -> Result<Self, LabError> {
        let mut journal = Self::default();
        for path in paths {
            journal.add_file(path)?;
        }
        Ok(journal)
    }

    /// The writes, in the order in which they were first attempted.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn position(&self, operation: u64) -> Option<usize> {
        self.by_operation.get(&operation).copied()
    }

    /// The first journal that was written on another data set than this one.
    pub(crate) fn foreign_to(&self, load_id: i64) -> Option<&Path> {
        self.load_ids.iter().find(|(id, _)| *id != load_id).map(|(_, path)| path.as_path())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), LabError> {
        let failed = |source| LabError::Journal { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let count = file.metadata().map_err(failed)?.len() / RECORD as u64;
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut bytes = [0; RECORD];
        for index in 0..count {
            reader.read_exact(&mut bytes).map_err(failed)?;
            let damaged = || LabError::JournalDamaged { path: path.to_owned(), offset: index * RECORD as u64 };
            let record = decode(&bytes).ok_or_else(damaged)?;
            self.add(record, path).ok_or_else(damaged)?;
        }
        Ok(())
    }

    /// `None` if the record does not go with those before it.
    fn add(&mut self, record: Record, path: &Path) -> Option<()> {
        let (operation, kind, outcome) = match record {
            Record::Start { load_id, .. } => {
                self.load_ids.push((load_id, path.to_owned()));
                return Some(());
            }
            Record::Attempt(entry) => {
                let position = *self.by_operation.entry(entry.operation).or_insert(self.entries.len());
                match self.entries.get(position) {
                    // An order that was in doubt is attempted again under the same number.
                    Some(first) => return (first.digest == entry.digest).then_some(()),
                    None => self.entries.push(entry),
                }
                return Some(());
            }
            Record::Acknowledged { operation, kind, acknowledgement } => {
                (operation, kind, Outcome::Acknowledged(acknowledgement))
            }
            Record::Rejected { operation, kind, .. } => (operation, kind, Outcome::Rejected),
        };
        let entry = &mut self.entries[self.by_operation.get(&operation).copied()?];
        if entry.kind != kind {
            return None;
        }
        entry.outcome = outcome;
        Some(())
    }
}

fn encode(record: &Record) -> [u8; RECORD] {
    let (tag, kind, attachment, words) = match record {
        Record::Start { load_id, at_us } => (TAG_START, Kind::Message, false, [0, *load_id, *at_us, 0, 0, 0, 0, 0, 0]),
        Record::Attempt(entry) => {
            let (high, low) = entry.digest.split_at(8);
            let word = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("it is half of sixteen bytes"));
            let operation = entry.operation as i64;
            let words = [operation, entry.sent_us, entry.conversation, entry.user, word(high), word(low), 0, 0, 0];
            (TAG_ATTEMPT, entry.kind, entry.attachment, words)
        }
        Record::Acknowledged { operation, kind, acknowledgement: a } => {
            let words = [*operation as i64, a.at_us, a.id, a.seq, a.row_us, a.marker_us, a.reply_to, a.attachment, 0];
            (TAG_ACKNOWLEDGED, *kind, a.attachment != 0, words)
        }
        Record::Rejected { operation, kind, at_us } => {
            (TAG_REJECTED, *kind, false, [*operation as i64, *at_us, 0, 0, 0, 0, 0, 0, 0])
        }
    };
    let mut bytes = [0; RECORD];
    bytes[0] = tag;
    bytes[1] = match kind {
        Kind::Message => 0,
        Kind::Marker => 1,
        Kind::Order => 2,
    };
    bytes[2] = attachment.into();
    for (slot, word) in bytes[8..].chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum);
    bytes
}

/// `None` if the record is not whole.
fn decode(bytes: &[u8; RECORD]) -> Option<Record> {
    let mut unsigned = *bytes;
    unsigned[4..8].fill(0);
    if checksum(&unsigned) != bytes[4..8] {
        return None;
    }
    let mut words = [0; 9];
    for (word, slot) in words.iter_mut().zip(bytes[8..].chunks_exact(8)) {
        *word = i64::from_le_bytes(slot.try_into().expect("a chunk has eight bytes"));
    }
    let kind = match bytes[1] {
        0 => Kind::Message,
        1 => Kind::Marker,
        2 => Kind::Order,
        _ => return None,
    };
    let operation = words[0] as u64;
    Some(match bytes[0] {
        TAG_START => Record::Start { load_id: words[1], at_us: words[2] },
        TAG_ATTEMPT => {
            let mut digest = [0; 16];
            digest.copy_from_slice(&bytes[40..56]);
            Record::Attempt(Entry {
                operation,
                kind,
                conversation: words[2],
                user: words[3],
                digest,
                attachment: bytes[2] != 0,
                sent_us: words[1],
                outcome: Outcome::InDoubt,
            })
        }
        TAG_ACKNOWLEDGED => {
            let [_, at_us, id, seq, row_us, marker_us, reply_to, attachment, _] = words;
            let acknowledgement = Acknowledgement { at_us, id, seq, row_us, marker_us, reply_to, attachment };
            Record::Acknowledged { operation, kind, acknowledgement }
        }
        TAG_REJECTED => Record::Rejected { operation, kind, at_us: words[1] },
        _ => return None,
    })
}

fn checksum(bytes: &[u8; RECORD]) -> [u8; 4] {
    let hash = blake3::hash(bytes);
    let mut sum = [0; 4];
    sum.copy_from_slice(&hash.as_bytes()[..4]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            operation: u64::MAX - 7,
            kind: Kind::Order,
            conversation: 3,
            user: 4,
            digest: *b"0123456789abcdef",
            attachment: false,
            sent_us: 1_700_000_000_000_000,
            outcome: Outcome::InDoubt,
        }
    }

    #[test]
    fn records_come_back_as_they_were() {
        let acknowledgement =
            Acknowledgement { at_us: 1, id: 2, seq: 3, row_us: 4, marker_us: 5, reply_to: 6, attachment: 7 };
        for record in [
            Record::Start { load_id: -5, at_us: 9 },
            Record::Attempt(entry()),
            Record::Acknowledged { operation: 8, kind: Kind::Message, acknowledgement },
            Record::Rejected { operation: 9, kind: Kind::Marker, at_us: 10 },
        ] {
            let bytes = encode(&record);
            assert_eq!(decode(&bytes), Some(record));
            for byte in 0..RECORD {
                let mut damaged = bytes;
                damaged[byte] ^= 0x10;
                assert_eq!(decode(&damaged), None, "byte {byte}");
            }
        }
    }

    #[test]
    fn an_acknowledgement_without_attempt_does_not_go() {
        let mut journal = Journal::default();
        let acknowledged =
            Record::Acknowledged { operation: 1, kind: Kind::Order, acknowledgement: Acknowledgement::default() };
        assert_eq!(journal.add(acknowledged, Path::new("")), None);
    }

    #[test]
    fn an_order_attempted_again_keeps_its_first_time() {
        let mut journal = Journal::default();
        let again = Entry { sent_us: entry().sent_us + 1, ..entry() };
        journal.add(Record::Attempt(entry()), Path::new("")).expect("it goes");
        journal.add(Record::Attempt(again), Path::new("")).expect("it goes");
        assert_eq!(journal.entries(), [entry()]);
    }
}
