//! Rows: heap tuples without their headers, and index tuples. Their leading words go into byte planes, the rest is text.

use super::values::{MODE_BYTES, MODE_DELTA32, MODE_DELTA64, MODE_RAW, MODE_TEXT, Seen, add_to_byte, write_word};
use super::{Parts, Streams, malformed, put, u64_at};
use crate::varint::Malformed;

/// Words of eight bytes at the start of a row that are tried as columns.
const WORDS_MAX: usize = 24;
/// After so many words of nothing but text, the rest of the row is not looked at.
const DULL_MAX: usize = 6;
/// Fewer rows than this do not pay for a description of a word.
const ROWS_MIN: usize = 24;
/// Stands for no byte of a word.
pub(super) const NO_BYTE: u8 = 8;

/// A stretch of the frame that is coded as a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) at: u32,
    pub(super) len: u16,
}

impl Row {
    pub(super) fn len(self) -> usize {
        usize::from(self.len)
    }

    fn start(self) -> usize {
        self.at as usize
    }
}

/// Writes the rows of one group: leading words as columns, the rest as text.
pub(super) fn write_rows(frame: &[u8], rows: &[Row], index: bool, col: &mut Vec<u64>, out: &mut Streams) {
    let mut masks: Vec<u8> = Vec::new();
    let mut dull = 0;
    let mut seen = Seen::default();
    let count_at = out.meta.len();
    out.meta.push(0);
    let shortest = rows.iter().map(|row| row.len()).min().unwrap_or(0);
    while masks.len() < WORDS_MAX && dull < DULL_MAX {
        let word = masks.len();
        let (from, need) = (word * 8, (word + 1) * 8);
        col.clear();
        let word_of = |row: &Row| u64_at(frame, row.start() + from);
        if need <= shortest {
            // The same without a question for every row.
            col.extend(rows.iter().map(word_of));
        } else {
            col.extend(rows.iter().filter(|row| row.len() >= need).map(word_of));
        }
        if col.len() < ROWS_MIN || col.len() < rows.len() / 4 {
            break;
        }
        seen.swapped = index && word == 0;
        if seen.swapped {
            for v in col.iter_mut() {
                *v = swap_tid(*v);
            }
        }
        let mask = write_word(col, rows, need, &mut seen, out);
        masks.push(mask);
        dull = if mask == 0 { dull + 1 } else { 0 };
    }
    out.meta[count_at] = masks.len() as u8;
    let pieces = Pieces::new(&masks);
    for row in rows {
        let body = &frame[row.start()..][..row.len()];
        pieces.of(*row, |from, to| out.text.extend_from_slice(&body[from..to]));
    }
}

/// The inverse of [`write_rows`].
pub(super) fn read_rows(parts: &mut Parts<'_>, frame: &mut [u8], rows: &[Row], index: bool) -> Result<(), Malformed> {
    let words = usize::from(parts.meta.byte()?);
    if words > WORDS_MAX {
        return Err(malformed("rows have too many words"));
    }
    let mut masks = Vec::new();
    let mut col = Vec::new();
    for word in 0..words {
        let (from, need) = (word * 8, (word + 1) * 8);
        let swapped = index && word == 0;
        let mode = parts.meta.byte()?;
        let (mask, length_at) = match mode {
            MODE_TEXT if !swapped => (0, NO_BYTE),
            MODE_BYTES if !swapped => (parts.meta.byte()?, parts.meta.byte()?),
            MODE_RAW | MODE_DELTA64 | MODE_DELTA32 => (0xFF, NO_BYTE),
            _ => return Err(malformed("a word of rows is written in an unknown way")),
        };
        masks.push(mask);
        if mode == MODE_TEXT {
            continue;
        }
        let count = rows.iter().filter(|row| row.len() >= need).count();
        let subtracted = length_at < NO_BYTE;
        if count == 0 || mask == 0 || length_at > NO_BYTE || subtracted && mask >> length_at & 1 == 0 {
            return Err(malformed("a word of rows is described in an impossible way"));
        }
        parts.values(count, if mode == MODE_BYTES { MODE_RAW } else { mode }, mask, &mut col)?;
        for (row, v) in rows.iter().filter(|row| row.len() >= need).zip(&col) {
            let mut v = *v;
            if swapped {
                v = swap_tid(v);
            }
            if subtracted {
                v = add_to_byte(v, length_at, row.len.wrapping_mul(2) as u8);
            }
            put(frame, row.start() + from, &v.to_le_bytes())?;
        }
    }
    let pieces = Pieces::new(&masks);
    let mut outcome = Ok(());
    for row in rows {
        pieces.of(*row, |from, to| {
            let copied = parts.text.take(to - from).and_then(|bytes| put(frame, row.start() + from, bytes));
            if outcome.is_ok() {
                outcome = copied;
            }
        });
    }
    outcome
}

/// An index tuple begins with block (high half first), position, and its own size. As one number in this order,
/// neighbours in the heap are neighbours in value. Its own inverse.
const fn swap_tid(word: u64) -> u64 {
    word & 0xFFFF_0000_FFFF_0000 | word >> 32 & 0xFFFF | (word & 0xFFFF) << 32
}

/// Which parts of a row are left for `text`, once some bytes of its leading words went into planes.
#[derive(Debug)]
struct Pieces {
    /// The end of the words that have a mask.
    covered: usize,
    /// Ranges within them whose bytes are in no plane.
    whole: Vec<(usize, usize)>,
}

impl Pieces {
    fn new(masks: &[u8]) -> Self {
        let mut whole: Vec<(usize, usize)> = Vec::new();
        for (word, mask) in masks.iter().enumerate() {
            for at in (0..8).filter(|byte| mask >> byte & 1 == 0).map(|byte| word * 8 + byte) {
                match whole.last_mut() {
                    Some(last) if last.1 == at => last.1 += 1,
                    _ => whole.push((at, at + 1)),
                }
            }
        }
        Self { covered: masks.len() * 8, whole }
    }

    /// Calls `each` with the ranges of a row, in order. Words that it does not have whole are text.
    fn of(&self, row: Row, mut each: impl FnMut(usize, usize)) {
        let len = row.len();
        let words = (len & !7).min(self.covered);
        let mut last = words;
        for (from, to) in self.whole.iter().take_while(|(from, _)| *from < words) {
            if *to >= words {
                last = *from;
            } else {
                each(*from, *to);
            }
        }
        if last < len {
            each(last, len);
        }
    }
}
