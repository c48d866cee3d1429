use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Lsn;

/// A PostgreSQL timeline: it grows by one at each promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(u32);

impl Timeline {
    pub const FIRST: Self = Self(1);

    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    /// The name of the file that records where this timeline left its parents, `00000002.history`.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number that `initdb` gives a cluster for life (`system_identifier` in `pg_control`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemId(u64);

impl SystemId {
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SystemId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

// JSON numbers lose precision above 2^53 in many readers, so the identifier travels as text.
impl TryFrom<String> for SystemId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SystemId> for String {
    fn from(id: SystemId) -> Self {
        id.to_string()
    }
}

/// The size of a WAL segment: a power of two from 1 MiB to 1 GiB, fixed by `initdb --wal-segsize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

impl SegmentSize {
    pub const DEFAULT: Self = Self(16 << 20);

    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30 { Some(Self(bytes)) } else { None }
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    const fn segments_per_4_gib(self) -> u64 {
        (1 << 32) / self.0
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes).ok_or_else(|| format!("{bytes} is not a WAL segment size"))
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

/// One WAL segment of one timeline, named by PostgreSQL with 24 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    timeline: Timeline,
    /// Counted from the start of the log in units of the segment size.
    number: u64,
}

impl Segment {
    pub const fn new(timeline: Timeline, number: u64) -> Self {
        Self { timeline, number }
    }

    /// The segment that holds the byte at `lsn`.
    pub const fn containing(timeline: Timeline, lsn: Lsn, size: SegmentSize) -> Self {
        Self { timeline, number: lsn.get() / size.0 }
    }

    pub const fn timeline(self) -> Timeline {
        self.timeline
    }

    pub const fn number(self) -> u64 {
        self.number
    }

    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.number * size.0)
    }

    pub const fn end(self, size: SegmentSize) -> Lsn {
        Lsn::new((self.number + 1) * size.0)
    }

    #[must_use]
    pub const fn next(self) -> Self {
        Self { timeline: self.timeline, number: self.number + 1 }
    }

    /// The file name, as in `000000010000001A00000042`.
    pub fn file_name(self, size: SegmentSize) -> String {
        let per = size.segments_per_4_gib();
        format!("{:08X}{:08X}{:08X}", self.timeline.get(), self.number / per, self.number % per)
    }

    /// Reads a file name made by PostgreSQL for segments of `size`.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, ParseSegmentError> {
        let error = || ParseSegmentError(name.to_owned());
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
            return Err(error());
        }
        let part = |range: std::ops::Range<usize>| {
            name.get(range).and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or_else(error)
        };
        let (timeline, high, low) = (part(0..8)?, part(8..16)?, part(16..24)?);
        if u64::from(low) >= size.segments_per_4_gib() || timeline == 0 {
            return Err(error());
        }
        Ok(Self::new(Timeline::new(timeline), u64::from(high) * size.segments_per_4_gib() + u64::from(low)))
    }
}

/// The text is not the name of a WAL segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a WAL segment (expected 24 hexadecimal digits, as in 000000010000001A00000042)")]
pub struct ParseSegmentError(String);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_round_trip(timeline in 1u32.., lsn: u64, bits in 20u32..=30) {
            let size = SegmentSize::new(1 << bits).expect("a power of two in range");
            let segment = Segment::containing(Timeline::new(timeline), Lsn::new(lsn), size);
            prop_assert_eq!(Segment::parse(&segment.file_name(size), size), Ok(segment));
            prop_assert!(segment.start(size) <= Lsn::new(lsn));
        }
    }

    #[test]
    fn prints_as_postgresql_does() {
        let lsn: Lsn = "1A/42000028".parse().unwrap();
        let segment = Segment::containing(Timeline::new(3), lsn, SegmentSize::DEFAULT);
        assert_eq!(segment.file_name(SegmentSize::DEFAULT), "000000030000001A00000042");
        assert!(Segment::parse("000000030000001A00000142", SegmentSize::DEFAULT).is_err());
    }
}
