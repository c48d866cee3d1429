//! Writes a log as PostgreSQL would, for the releases and cases the fixtures do not cover.

use holdfast_types::{Lsn, SegmentSize};

const PAGE: usize = 8192;
pub const SYSTEM: u64 = 7_710_553_963_567_600_584;

/// A record's body with its kind.
#[derive(Clone, Debug)]
pub struct Plain {
    pub rmgr: u8,
    pub info: u8,
    pub xid: u32,
    pub body: Vec<u8>,
}

impl Plain {
    /// A record that is nothing but main data.
    pub fn main(rmgr: u8, info: u8, main: &[u8]) -> Self {
        let mut body = vec![254];
        body.extend_from_slice(&(main.len() as u32).to_le_bytes());
        body.extend_from_slice(main);
        Self { rmgr, info, xid: 0, body }
    }
}

/// A log that grows record by record.
pub struct LogWriter {
    magic: u16,
    size: SegmentSize,
    start: u64,
    pub bytes: Vec<u8>,
    previous: u64,
}

impl LogWriter {
    pub fn new(version: u32, size: SegmentSize, start: Lsn) -> Self {
        let magic = match version {
            13 => 0xD106,
            14 => 0xD10D,
            15 => 0xD110,
            16 => 0xD113,
            17 => 0xD116,
            _ => 0xD118,
        };
        Self { magic, size, start: start.get(), bytes: Vec::new(), previous: start.get().saturating_sub(64) }
    }

    pub fn at(&self) -> Lsn {
        Lsn::new(self.start + self.bytes.len() as u64)
    }

    /// Begins a page; `flags` without the one for a long header.
    pub fn page_header(&mut self, flags: u16, remaining: usize) {
        assert_eq!(self.bytes.len() % PAGE, 0);
        let long = self.at().get().is_multiple_of(self.size.get());
        let flags = flags | if long { 2 } else { 0 };
        let address = self.at().get();
        self.bytes.extend_from_slice(&self.magic.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&1u32.to_le_bytes());
        self.bytes.extend_from_slice(&address.to_le_bytes());
        self.bytes.extend_from_slice(&(remaining as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        if long {
            self.bytes.extend_from_slice(&SYSTEM.to_le_bytes());
            self.bytes.extend_from_slice(&(self.size.get() as u32).to_le_bytes());
            self.bytes.extend_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }

    /// Answers where the record begins and where it ends.
    pub fn record(&mut self, record: &Plain) -> (Lsn, Lsn) {
        if self.bytes.len().is_multiple_of(PAGE) {
            self.page_header(0, 0);
        }
        self.record_here(record)
    }

    /// Writes a record where the page header is already there.
    pub fn record_here(&mut self, record: &Plain) -> (Lsn, Lsn) {
        let begin = self.at();
        let mut encoded = Vec::new();
        encoded.extend_from_slice(&(24 + record.body.len() as u32).to_le_bytes());
        encoded.extend_from_slice(&record.xid.to_le_bytes());
        encoded.extend_from_slice(&self.previous.to_le_bytes());
        encoded.extend_from_slice(&[record.info, record.rmgr, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&record.body), &encoded);
        encoded.extend_from_slice(&crc.to_le_bytes());
        encoded.extend_from_slice(&record.body);
        let mut rest = encoded.as_slice();
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE) {
                self.page_header(1, rest.len());
            }
            let (now, later) = rest.split_at(rest.len().min(PAGE - self.bytes.len() % PAGE));
            self.bytes.extend_from_slice(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = begin.get();
        if record.rmgr == 0 && record.info & 0xF0 == 0x40 {
            let end = self.at().get().next_multiple_of(self.size.get());
            self.bytes.resize((end - self.start) as usize, 0);
        }
        (begin, self.at())
    }
}
