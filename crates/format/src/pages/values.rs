//! Columns of integers: how each is written as byte planes, and read back.

use super::choose::{Class, Planes, choose, choose_length, choose_mask};
use super::rows::{NO_BYTE, Row};
use super::{Parts, Streams, malformed};
use crate::varint::Malformed;

pub(super) const MODE_RAW: u8 = 0;
pub(super) const MODE_DELTA64: u8 = 1;
/// Differences of both halves on their own.
pub(super) const MODE_DELTA32: u8 = 2;
/// Some bytes of a word, as they are; the others are text.
pub(super) const MODE_BYTES: u8 = 3;
pub(super) const MODE_TEXT: u8 = 4;

/// All planes of a value.
const ALL: u8 = 0xFF;

pub(super) const fn zigzag64(v: u64) -> u64 {
    (v << 1) ^ ((v as i64 >> 63) as u64)
}

pub(super) const fn unzigzag64(v: u64) -> u64 {
    (v >> 1) ^ (v & 1).wrapping_neg()
}

pub(super) const fn zigzag32(v: u32) -> u32 {
    (v << 1) ^ ((v as i32 >> 31) as u32)
}

pub(super) const fn unzigzag32(v: u32) -> u32 {
    (v >> 1) ^ (v & 1).wrapping_neg()
}

const fn halves(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// What is written for `value` after `before`, in a mode of differences.
pub(super) const fn delta(mode: u8, value: u64, before: u64) -> u64 {
    if mode == MODE_DELTA64 {
        zigzag64(value.wrapping_sub(before))
    } else {
        let low = zigzag32((value as u32).wrapping_sub(before as u32));
        let high = zigzag32(((value >> 32) as u32).wrapping_sub((before >> 32) as u32));
        halves(low, high)
    }
}

const fn undelta(mode: u8, coded: u64, before: u64) -> u64 {
    if mode == MODE_DELTA64 {
        before.wrapping_add(unzigzag64(coded))
    } else {
        let low = (before as u32).wrapping_add(unzigzag32(coded as u32));
        let high = ((before >> 32) as u32).wrapping_add(unzigzag32((coded >> 32) as u32));
        halves(low, high)
    }
}

/// The value before `value` if the difference to it were `step`.
const fn base(mode: u8, value: u64, step: u64) -> u64 {
    if mode == MODE_DELTA64 {
        value.wrapping_sub(unzigzag64(step))
    } else {
        let low = (value as u32).wrapping_sub(unzigzag32(step as u32));
        let high = ((value >> 32) as u32).wrapping_sub(unzigzag32((step >> 32) as u32));
        halves(low, high)
    }
}

/// Writes a column of page or tuple headers.
pub(super) fn write_column(col: &mut [u64], out: &mut Streams) {
    if col.is_empty() {
        return;
    }
    let (mode, planes) = choose(col);
    out.meta.push(mode);
    write_values(col, mode, ALL, &planes, out);
}

/// What is known of the words of a group of rows when one of them is written.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The length of the row was found in a word.
    pub(super) length: bool,
    /// The bytes of this word were put into another order, so it goes into planes whole or not at all.
    pub(super) swapped: bool,
}

/// Writes one word of all rows that have it, which are those of at least `need` bytes. Gives the mask of its bytes that
/// went into planes.
pub(super) fn write_word(col: &mut [u64], rows: &[Row], need: usize, seen: &mut Seen, out: &mut Streams) -> u8 {
    let (mode, mut planes) = choose(col);
    let mut mask = choose_mask(&planes);
    if mode != MODE_RAW || mask.count_ones() >= 5 || seen.swapped {
        out.meta.push(mode);
        write_values(col, mode, ALL, &planes, out);
        return ALL;
    }
    let mut length_at = NO_BYTE;
    if !seen.length
        && let Some(byte) = choose_length(col, rows, need, mask, &mut planes)
    {
        seen.length = true;
        length_at = byte;
        mask |= 1 << byte;
        for (v, row) in col.iter_mut().zip(rows.iter().filter(|row| row.len() >= need)) {
            *v = add_to_byte(*v, byte, row.len.wrapping_mul(2).wrapping_neg() as u8);
        }
    }
    if mask == 0 {
        out.meta.push(MODE_TEXT);
        return 0;
    }
    out.meta.extend_from_slice(&[MODE_BYTES, mask, length_at]);
    write_values(col, MODE_RAW, mask, &planes, out);
    mask
}

pub(super) const fn add_to_byte(word: u64, byte: u8, add: u8) -> u64 {
    let shift = byte as u32 * 8;
    let sum = ((word >> shift) as u8).wrapping_add(add);
    word & !(0xFF << shift) | (sum as u64) << shift
}

fn write_values(col: &mut [u64], mode: u8, mask: u8, planes: &Planes, out: &mut Streams) {
    let [first, ..] = *col else { return };
    if mode != MODE_RAW {
        // The base is chosen so that the first difference repeats the second: a constant step stays constant.
        let step = col.get(1).map_or(0, |second| delta(mode, *second, first));
        let mut before = base(mode, first, step);
        out.meta.extend_from_slice(&before.to_le_bytes());
        for v in col.iter_mut() {
            let value = *v;
            *v = delta(mode, value, before);
            before = value;
        }
    }
    let first = col[0];
    let varies = col.iter().fold(0, |all, v| all | (v ^ first));
    let used = || (0..8).filter(|plane| mask >> plane & 1 != 0);
    let class = |plane: u32| {
        if (varies >> (plane * 8)) as u8 == 0 { Class::Constant } else { planes.class(plane as usize, col.len()) }
    };
    let classes = used().fold(0, |all, plane| all | (class(plane) as u16) << (plane * 2));
    out.meta.extend_from_slice(&classes.to_le_bytes());
    for plane in used() {
        let shift = plane * 8;
        let bytes = col.iter().map(|v| (v >> shift) as u8);
        match class(plane) {
            Class::Constant => out.meta.push((first >> shift) as u8),
            Class::Low => out.low.extend(bytes),
            Class::Mid => {
                out.mid.extend(bytes);
                out.mid_ends.push(out.mid.len());
            }
            Class::Stored => out.stored.extend(bytes),
        }
    }
}

impl Parts<'_> {
    /// Reads a column of page or tuple headers, none of whose values may be above `max`.
    pub(super) fn column(&mut self, count: usize, max: u64, into: &mut Vec<u64>) -> Result<(), Malformed> {
        into.clear();
        if count == 0 {
            return Ok(());
        }
        let mode = self.meta.byte()?;
        if mode > MODE_DELTA32 {
            return Err(malformed("a column is written in an unknown way"));
        }
        self.values(count, mode, ALL, into)?;
        if into.iter().any(|v| *v > max) {
            return Err(malformed("a value of a column is too large"));
        }
        Ok(())
    }

    pub(super) fn values(&mut self, count: usize, mode: u8, mask: u8, into: &mut Vec<u64>) -> Result<(), Malformed> {
        let base = if mode == MODE_RAW { 0 } else { u64::from_le_bytes(self.meta.array()?) };
        let classes = self.meta.u16_le()?;
        let mut constant = 0;
        let mut planes: [&[u8]; 8] = [&[]; 8];
        for (plane, bytes) in planes.iter_mut().enumerate() {
            let class = classes >> (plane * 2) & 3;
            if mask >> plane & 1 == 0 {
                if class != 0 {
                    return Err(malformed("a plane has a class and is not there"));
                }
                continue;
            }
            match Class::from_bits(class) {
                Class::Constant => constant |= u64::from(self.meta.byte()?) << (plane * 8),
                Class::Low => *bytes = self.low.take(count)?,
                Class::Mid => *bytes = self.mid.take(count)?,
                Class::Stored => *bytes = self.stored.take(count)?,
            }
        }
        into.clear();
        into.resize(count, constant);
        for (plane, bytes) in planes.iter().enumerate() {
            for (v, byte) in into.iter_mut().zip(*bytes) {
                *v |= u64::from(*byte) << (plane * 8);
            }
        }
        if mode != MODE_RAW {
            let mut before = base;
            for v in into.iter_mut() {
                *v = undelta(mode, *v, before);
                before = *v;
            }
        }
        Ok(())
    }
}
