//! Codec 2: PostgreSQL pages taken apart into streams that a general compressor handles well, and joined again.
//!
//! Compressed as it is, most of the compressor's time and output on a run of pages goes into things that are hardly
//! information: line pointers that follow from each other, tuple headers that differ from the one before only in their
//! own position, high bytes of integers, index keys in ascending order. [`split::Splitter`] takes those apart by
//! meaning, predicts what can be predicted, turns integers into byte planes, and leaves what is really text together.
//! [`join::join`] is the exact inverse, for every input: a page that is not exactly what we think a page is goes
//! through unchanged.
//!
//! `docs/format-pages.md` is the normative description. The modules, from the outside in:
//!
//! * `stream`: what zstd does to each stream, and the bytes of a frame.
//! * `split` and `join`: pages; with `item` for line pointers and `heap` for tuple headers, in both directions.
//! * `rows`: tuples without their headers, word by word.
//! * `values` and `choose`: columns of integers as byte planes, and how the writer decides for each.

mod choose;
mod heap;
mod item;
mod join;
mod rows;
mod split;
mod stream;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use stream::{Decoder, Encoder};

use crate::varint::{Malformed, Reader};

/// Bytes of a page. Clusters with another block size go through as unknown pages.
const PAGE: usize = 8192;
const HEADER: usize = 24;
/// Bytes of the special space of a B-tree page.
const INDEX_SPECIAL: usize = 16;
/// Page size and layout version as every PostgreSQL since 8.3 writes it.
const SIZE_VERSION: u16 = 0x2004;

/// How a page was coded: a byte each at the start of `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Whole, in `text`.
    Unknown = 0,
    /// Nothing but zeros.
    Zero = 1,
    /// In `text`, without the zeros between line pointers and tuples.
    Hollow = 2,
    Heap = 3,
    /// A B-tree page, or what looks the same.
    Index = 4,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Unknown),
            1 => Some(Self::Zero),
            2 => Some(Self::Hollow),
            3 => Some(Self::Heap),
            4 => Some(Self::Index),
            _ => None,
        }
    }

    /// Where the special space of a page begins that is taken apart.
    const fn special(self) -> usize {
        if matches!(self, Self::Index) { PAGE - INDEX_SPECIAL } else { PAGE }
    }
}

/// What a frame is split into.
#[derive(Debug, Default)]
struct Streams {
    /// Kinds of pages, shapes of tuples, how each column is written.
    meta: Vec<u8>,
    /// Byte planes with hardly any entropy.
    low: Vec<u8>,
    /// Byte planes with some entropy.
    mid: Vec<u8>,
    /// Where each plane in `mid` ends: each has a distribution of its own, and so is compressed on its own.
    mid_ends: Vec<usize>,
    /// Byte planes that look like noise.
    stored: Vec<u8>,
    /// Everything else: what is left of tuples, unknown pages.
    text: Vec<u8>,
}

impl Streams {
    fn clear(&mut self) {
        let Self { meta, low, mid, mid_ends, stored, text } = self;
        for stream in [meta, low, mid, stored, text] {
            stream.clear();
        }
        mid_ends.clear();
    }
}

/// The streams of a frame, as [`join::join`] reads them.
#[derive(Debug)]
struct Parts<'a> {
    meta: Reader<'a>,
    low: Reader<'a>,
    mid: Reader<'a>,
    stored: Reader<'a>,
    text: Reader<'a>,
}

impl<'a> Parts<'a> {
    fn new(meta: &'a [u8], low: &'a [u8], mid: &'a [u8], stored: &'a [u8], text: &'a [u8]) -> Self {
        let [meta, low, mid, stored, text] = [meta, low, mid, stored, text].map(Reader::new);
        Self { meta, low, mid, stored, text }
    }

    fn end(&self) -> Result<(), Malformed> {
        [&self.meta, &self.low, &self.mid, &self.stored, &self.text].into_iter().try_for_each(Reader::end)
    }
}

/// What is wrong with a frame whose streams are long enough.
const fn malformed(what: &'static str) -> Malformed {
    Malformed { at: 0, what }
}

/// Writes into the frame that is put together.
fn put(frame: &mut [u8], at: usize, bytes: &[u8]) -> Result<(), Malformed> {
    let to = at.checked_add(bytes.len()).and_then(|end| frame.get_mut(at..end));
    to.ok_or(malformed("a part lies outside of its frame"))?.copy_from_slice(bytes);
    Ok(())
}

const fn align(len: usize) -> usize {
    (len + 7) & !7
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let b = &bytes[at..at + 4];
    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let b = &bytes[at..at + 8];
    u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
