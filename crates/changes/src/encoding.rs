//! How a change map is stored.
//!
//! *number* is an unsigned LEB128 number in its shortest form. One map has one encoding, and nothing else is accepted.
//!
//! ```text
//! map:
//!   byte     1, the version of this format
//!   number   0; or 1 if everything must be read, then:
//!     number   log position of the first record that was seen to make it so
//!     number   length in bytes of the reason, then the reason in UTF-8
//!   number   count of databases, then for each, ascending by tablespace and database:
//!     number   object id of the tablespace, at most 2^32 - 1
//!     number   object id of the database, at most 2^32 - 1; 0 for what all databases share
//!     number   2 x count of forks, + 1 if the database was created or removed as a whole; never 0
//!     for each fork, ascending:
//!       number   relation number x 4 + fork (0 main, 1 fsm, 2 vm, 3 init), as the difference to that of the
//!                fork before it less 1; for the first of a database, as it is
//!       number   0 if the fork was not cut; else the first page that is not what it was, + 1
//!       number   count of stretches that have a changed page; not 0 unless the fork was cut
//!       for each stretch, ascending: pages 65536 n to 65536 n + 65535 are stretch n
//!         number   n, as the difference to that of the stretch before it less 1; for the first, as it is
//!         number   count of runs, 1 to 4096; or 0 if there are more
//!         if 0:    8192 bytes, a bit for each page, the lowest bit first, set if the page changed
//!         else, for each run of changed pages, as long as can be but within the stretch:
//!           number   2 x its distance, + 1 if it is longer than one page; the distance is the first page of the
//!                    run in the stretch, or after another run the count of unchanged pages between them less 1
//!           number   only if it is longer than one page: its length in pages, less 2
//! nothing follows
//! ```
//!
//! The reader needs memory in proportion to the bytes it is given, below 100 times as much, whatever they say: a long
//! run is not taken apart, and every list is as long as its entries are there to be read.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use holdfast_format::varint::{self, Malformed, Reader};
use holdfast_pgformat::{Fork, Relation};
use holdfast_types::Lsn;
use roaring::RoaringBitmap;

use crate::forks::ForkChanges;
use crate::{ChangeMap, Unknown};

const VERSION: u8 = 1;
/// Pages that are written together; a container of a Roaring bitmap.
const STRETCH: u32 = 1 << 16;
const STRETCH_BYTES: usize = STRETCH as usize / 8;
/// With more, a bit for each page takes less room.
const RUNS_MAX: usize = 4096;

/// The bytes are not a change map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedChanges {
    /// Written by a newer Holdfast, or not a change map at all.
    #[error("the change map has version {0}, known is {VERSION}")]
    UnknownVersion(u8),
    /// Cut off, damaged, or not written by Holdfast.
    #[error("the change map is malformed")]
    Malformed(#[source] Malformed),
}

impl From<Malformed> for MalformedChanges {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

type ForkEntry<'a> = (Relation, Fork, &'a ForkChanges);

impl ChangeMap {
    /// The map as bytes: equal maps give equal bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        varint::put(&mut out, self.unknown.is_some().into());
        if let Some(Unknown { lsn, why }) = &self.unknown {
            varint::put(&mut out, lsn.get());
            varint::put_bytes(&mut out, why.as_bytes());
        }
        let mut databases: BTreeMap<(u32, u32), Vec<ForkEntry<'_>>> =
            self.databases.iter().map(|database| (*database, Vec::new())).collect();
        for entry in self.forks.iter() {
            databases.entry((entry.0.tablespace, entry.0.database)).or_default().push(entry);
        }
        varint::put(&mut out, databases.len() as u64);
        for (database, forks) in databases {
            varint::put(&mut out, database.0.into());
            varint::put(&mut out, database.1.into());
            varint::put(&mut out, forks.len() as u64 * 2 + u64::from(self.databases.contains(&database)));
            let mut distance = Distance::default();
            for (relation, fork, known) in forks {
                varint::put(&mut out, distance.to(u64::from(relation.relfilenode) * 4 + fork as u64));
                varint::put(&mut out, known.limit().map_or(0, |limit| u64::from(limit) + 1));
                put_pages(&mut out, known.all_pages());
            }
        }
        out
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// Refuses everything else, never panics, and takes memory in proportion to `bytes`, below 100 times as much.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedChanges> {
        let mut reader = Reader::new(bytes);
        let version = reader.byte()?;
        if version != VERSION {
            return Err(MalformedChanges::UnknownVersion(version));
        }
        let mut map = Self { unknown: read_unknown(&mut reader)?, ..Self::default() };
        let mut last = None;
        for _ in 0..reader.count(3)? {
            let database = (reader.u32()?, reader.u32()?);
            if last.replace(database).is_some_and(|last| last >= database) {
                return Err(reader.malformed("databases are out of order").into());
            }
            map.read_database(&mut reader, database)?;
        }
        reader.end()?;
        Ok(map)
    }

    fn read_database(&mut self, reader: &mut Reader<'_>, database: (u32, u32)) -> Result<(), Malformed> {
        let number = reader.number()?;
        if number == 0 {
            return Err(reader.malformed("nothing is said of a database"));
        }
        if number % 2 == 1 {
            self.databases.insert(database);
        }
        let mut distance = Distance::default();
        // Every fork takes bytes, so a count that is a lie runs into the end.
        for _ in 0..number / 2 {
            let number = distance.from(reader.number()?);
            let relfilenode = number.and_then(|number| u32::try_from(number / 4).ok());
            let fork = number.and_then(|number| Fork::from_number((number % 4) as u32));
            let (Some(relfilenode), Some(fork)) = (relfilenode, fork) else {
                return Err(reader.malformed("the number of a relation is larger than 32 bits"));
            };
            let limit = match reader.number()?.checked_sub(1) {
                None => None,
                Some(limit) => match u32::try_from(limit) {
                    Ok(limit) => Some(limit),
                    Err(_) => return Err(reader.malformed("a page number is larger than 32 bits")),
                },
            };
            let pages = read_pages(reader)?;
            if limit.is_none() && pages.is_empty() {
                return Err(reader.malformed("nothing is said of a fork"));
            }
            let relation = Relation { tablespace: database.0, database: database.1, relfilenode };
            *self.forks.get_or_insert(relation, fork) = ForkChanges::new(limit, pages);
        }
        Ok(())
    }
}

fn read_unknown(reader: &mut Reader<'_>) -> Result<Option<Unknown>, Malformed> {
    match reader.number()? {
        0 => Ok(None),
        1 => {
            let lsn = Lsn::new(reader.number()?);
            let why = std::str::from_utf8(reader.bytes()?).map_err(|_| reader.malformed("a reason is not UTF-8"))?;
            Ok(Some(Unknown { lsn, why: why.to_owned() }))
        }
        _ => Err(reader.malformed("it neither can nor cannot be believed")),
    }
}

/// Numbers that only grow, written as what lies between each and the one before it.
#[derive(Default)]
struct Distance {
    /// The least that the next number can be.
    next: u64,
}

impl Distance {
    fn to(&mut self, number: u64) -> u64 {
        let distance = number - self.next;
        self.next = number + 1;
        distance
    }

    fn from(&mut self, distance: u64) -> Option<u64> {
        let number = self.next.checked_add(distance)?;
        self.next = number.checked_add(1)?;
        Some(number)
    }
}

fn put_pages(out: &mut Vec<u8>, pages: &RoaringBitmap) {
    let stretches = stretches(pages);
    varint::put(out, stretches.len() as u64);
    let mut distance = Distance::default();
    for stretch in stretches {
        varint::put(out, distance.to(stretch.into()));
        let first = stretch * STRETCH;
        let mut part = pages.range(first..=first + (STRETCH - 1));
        let runs = std::iter::from_fn(|| part.next_range());
        let runs: Vec<_> = runs.map(|run| run.start() - first..=run.end() - first).collect();
        if runs.len() <= RUNS_MAX {
            put_runs(out, &runs);
        } else {
            varint::put(out, 0);
            put_bits(out, runs);
        }
    }
}

/// The stretches that have a page in the set, ascending.
fn stretches(pages: &RoaringBitmap) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pages = pages.iter();
    while let Some(page) = pages.next() {
        let stretch = page / STRETCH;
        found.push(stretch);
        match (stretch + 1).checked_mul(STRETCH) {
            Some(next) => pages.advance_to(next),
            None => break,
        }
    }
    found
}

fn put_runs(out: &mut Vec<u8>, runs: &[RangeInclusive<u32>]) {
    varint::put(out, runs.len() as u64);
    let mut distance = Distance::default();
    for run in runs {
        let between = distance.to((*run.start()).into());
        let more = u64::from(run.end() - run.start());
        varint::put(out, between * 2 + u64::from(more > 0));
        if more > 0 {
            varint::put(out, more - 1);
        }
        // The page after a run is not changed, so the next cannot begin there.
        distance.next = u64::from(*run.end()) + 2;
    }
}

fn put_bits(out: &mut Vec<u8>, runs: Vec<RangeInclusive<u32>>) {
    let mut bits = vec![0u8; STRETCH_BYTES];
    for page in runs.into_iter().flatten() {
        if let Some(byte) = bits.get_mut(page as usize / 8) {
            *byte |= 1 << (page % 8);
        }
    }
    out.extend_from_slice(&bits);
}

fn read_pages(reader: &mut Reader<'_>) -> Result<RoaringBitmap, Malformed> {
    let mut pages = RoaringBitmap::new();
    let mut distance = Distance::default();
    for _ in 0..reader.count(3)? {
        let stretch = distance.from(reader.number()?).filter(|stretch| *stretch < STRETCH.into());
        let Some(stretch) = stretch else {
            return Err(reader.malformed("a page number is larger than 32 bits"));
        };
        let first = stretch as u32 * STRETCH;
        let count = reader.count(1)?;
        let mut part = match count {
            0 => read_bits(reader, first)?,
            1..=RUNS_MAX => read_runs(reader, first, count)?,
            _ => return Err(reader.malformed("there are too many runs to be written one by one")),
        };
        // At once, so that a few bytes that stand for many pages never take more room than a stretch.
        part.optimize();
        pages |= &part;
    }
    Ok(pages)
}

fn read_bits(reader: &mut Reader<'_>, first: u32) -> Result<RoaringBitmap, Malformed> {
    let part = RoaringBitmap::from_lsb0_bytes(first, reader.take(STRETCH_BYTES)?);
    let mut pages = part.iter();
    if std::iter::from_fn(|| pages.next_range()).nth(RUNS_MAX).is_none() {
        return Err(reader.malformed("there are too few runs to be written as bits"));
    }
    Ok(part)
}

fn read_runs(reader: &mut Reader<'_>, first: u32, count: usize) -> Result<RoaringBitmap, Malformed> {
    let mut part = RoaringBitmap::new();
    let mut next = 0;
    for _ in 0..count {
        let number = reader.number()?;
        let more = if number % 2 == 1 { reader.number()?.checked_add(1) } else { Some(0) };
        let start = u64::checked_add(next, number / 2);
        let end = start.zip(more).and_then(|(start, more)| start.checked_add(more));
        let (Some(start), Some(end)) = (start, end.filter(|end| *end < STRETCH.into())) else {
            return Err(reader.malformed("a run goes beyond its stretch"));
        };
        if start == end {
            part.insert(first + start as u32);
        } else {
            part.insert_range(first + start as u32..=first + end as u32);
        }
        next = end + 2;
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Changes, any};

    const RELATION: Relation = Relation { tablespace: 1663, database: 5, relfilenode: 16384 };

    fn with_pages(pages: impl IntoIterator<Item = u32>) -> ChangeMap {
        let mut map = ChangeMap::default();
        for page in pages {
            map.forks.get_or_insert(RELATION, Fork::Main).add(page);
        }
        map
    }

    /// Bytes that are accepted are the one encoding of what they are read as.
    fn is_answered(bytes: &[u8]) {
        if let Ok(map) = ChangeMap::decode(bytes) {
            assert_eq!(map.encode(), bytes, "{map:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        #[test]
        fn what_is_written_is_read(map in any::map()) {
            let bytes = map.encode();
            let read = ChangeMap::decode(&bytes);
            prop_assert_eq!(read.as_ref(), Ok(&map));
            prop_assert_eq!(read.unwrap().encode(), bytes);
        }

        #[test]
        fn what_is_cut_off_or_goes_on_is_refused(map in any::map(), at: prop::sample::Index, more: u8) {
            let mut bytes = map.encode();
            prop_assert!(ChangeMap::decode(&bytes[..at.index(bytes.len())]).is_err());
            bytes.push(more);
            prop_assert!(ChangeMap::decode(&bytes).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(prop_oneof![0..8u8, any::<u8>()], 0..60)) {
            is_answered(&bytes);
            is_answered(&[&[VERSION, 0], &bytes[..]].concat());
            is_answered(&[&[VERSION, 0, 1, 1, 5, 2, 1], &bytes[..]].concat());
        }

        #[test]
        fn damage_is_answered(
            pages in prop::collection::vec(any::<u16>(), 0..8),
            limit: Option<u32>,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..4),
        ) {
            let mut map = with_pages(pages.into_iter().map(|page| u32::from(page) * 9));
            map.forks.get_or_insert(RELATION, Fork::Init).cut(limit.unwrap_or(7));
            map.databases.insert((1, 2));
            map.unknown = limit.map(|limit| Unknown { lsn: Lsn::new(limit.into()), why: "no reason".to_owned() });
            let mut bytes = map.encode();
            for (at, byte, kind) in changes {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] ^= byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            is_answered(&bytes);
        }
    }

    #[test]
    fn the_bytes_of_version_1_stay_readable() {
        let mut map = with_pages([3, 7, 8, 9, 65535, 65536, 65537, 200_000]);
        map.forks.get_or_insert(RELATION, Fork::Main).cut(300);
        map.forks.get_or_insert(RELATION, Fork::Vm).cut(0);
        map.forks.get_or_insert(Relation { relfilenode: 16385, ..RELATION }, Fork::Main).add(0);
        map.databases.insert((1663, 16400));
        map.unknown = Some(Unknown { lsn: Lsn::new(0x1_0000), why: "why".to_owned() });
        let bytes = [
            1, 1, 0x80, 0x80, 0x04, 3, b'w', b'h', b'y', 2, // version, unknown at 0/10000, two databases
            0xFF, 0x0C, 5, 6, // 1663/5, three forks
            0x80, 0x80, 0x04, 0xAD, 0x02, 3, // 16384, main fork, cut to 300, three stretches
            0, 3, 6, 5, 1, 0xE8, 0xFF, 0x07, // 3; 7 to 9; 65535
            0, 1, 1, 0, // 65536 and 65537
            1, 1, 0x80, 0x35, // 200000
            1, 1, 0, // 16384, visibility map, cut to 0, no pages
            1, 0, 1, 0, 1, 0, // 16385, main fork, page 0
            0xFF, 0x0C, 0x90, 0x80, 0x01, 1, // 1663/16400, as a whole
        ];
        assert_eq!(map.encode(), bytes);
        assert_eq!(ChangeMap::decode(&bytes), Ok(map));
        assert_eq!(ChangeMap::decode(&[2]), Err(MalformedChanges::UnknownVersion(2)));
    }

    #[test]
    fn many_runs_are_written_as_bits() {
        let few = with_pages((0..4096).map(|number| 65536 + number * 2));
        let many = with_pages((0..4097).map(|number| 65536 + number * 2));
        let overhead = [VERSION, 0, 1, 0xFF, 0x0C, 5, 2, 0x80, 0x80, 0x04, 0, 1, 1].len();
        assert_eq!(few.encode().len(), overhead + 2 + 4096);
        assert_eq!(many.encode().len(), overhead + 1 + 8192);
        assert_eq!(ChangeMap::decode(&few.encode()), Ok(few.clone()));
        assert_eq!(ChangeMap::decode(&many.encode()), Ok(many.clone()));

        // The same as bits where runs would do, and as runs where there are too many.
        let mut bytes = few.encode();
        bytes.truncate(overhead);
        bytes.push(0);
        bytes.extend([0x55; 1024]);
        bytes.extend([0; 8192 - 1024]);
        assert!(ChangeMap::decode(&bytes).is_err());
        let mut bytes = many.encode();
        bytes.truncate(overhead);
        bytes.extend([0x81, 0x20, 0]);
        bytes.extend([0; 4096]);
        assert!(ChangeMap::decode(&bytes).is_err());
    }

    #[test]
    fn a_few_bytes_that_stand_for_many_pages_take_little_room() {
        let mut pages = RoaringBitmap::new();
        // Two long runs in every stretch of the largest fork there can be.
        for stretch in 0..65536u32 {
            pages.insert_range(stretch * STRETCH..=stretch * STRETCH + 30_000);
            pages.insert_range(stretch * STRETCH + 30_002..=stretch * STRETCH + 65_000);
        }
        let mut map = ChangeMap::default();
        *map.forks.get_or_insert(RELATION, Fork::Main) = ForkChanges::new(None, pages);
        let bytes = map.encode();
        assert!(bytes.len() < 1 << 20, "{}", bytes.len());
        let read = ChangeMap::decode(&bytes).unwrap();
        let Changes::Pages { pages: Some(pages), .. } = read.changes(RELATION, Fork::Main) else { panic!() };
        assert_eq!(pages.len(), 65536 * 65000);
        let statistics = pages.statistics();
        assert_eq!((statistics.n_bitset_containers, statistics.n_array_containers), (0, 0), "only runs");
    }
}
