//! How the writer decides what becomes of a column: by the entropy of its bytes, as measured on a sample.
//!
//! Nothing here is part of the format. A reader follows whatever was decided.

use super::rows::Row;
use super::values::{MODE_DELTA32, MODE_DELTA64, MODE_RAW, add_to_byte, delta};

/// Fewer values than this are not worth measuring.
const MEASURED_MIN: usize = 24;
/// Fewer values than this are not worth the eight bytes that differences begin with.
const DELTA_MIN: usize = 4;
/// Values looked at to choose how a column is written.
const SAMPLE: usize = 128;
/// Bits per byte: below, a plane is nearly constant.
const LOW_BITS: f32 = 0.3;
/// Below, a byte of a word that is otherwise text still goes to a plane.
const STEADY_BITS: f32 = 0.8;
/// Above, a plane is noise: compression would gain less than it costs.
const NOISE_BITS: f32 = 7.3;
/// Differences must be better by so many bits per value to be written instead.
const DELTA_GAIN_BITS: f32 = 0.5;
/// A plane of its own costs a Huffman table; gaining fewer bits than that, it is stored.
const TABLE_BITS: f32 = 640.0;

/// Where a plane is written; two bits in the description of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Class {
    Constant = 0,
    Low = 1,
    Mid = 2,
    Stored = 3,
}

impl Class {
    pub(super) const fn from_bits(bits: u16) -> Self {
        match bits & 3 {
            0 => Self::Constant,
            1 => Self::Low,
            2 => Self::Mid,
            _ => Self::Stored,
        }
    }
}

/// Collision entropy of each byte plane over a sample, in bits.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Planes {
    bits: [f32; 8],
}

impl Planes {
    fn measure(sample: &[u64]) -> Self {
        let mut bits = [0.0; 8];
        let first = sample.first().copied().unwrap_or(0);
        let varies = sample.iter().fold(0, |all, v| all | (v ^ first));
        for (plane, bits) in bits.iter_mut().enumerate() {
            let shift = plane * 8;
            if (varies >> shift) as u8 == 0 {
                continue;
            }
            let mut seen = [0u8; 256];
            let mut pairs = 0u32;
            for v in sample {
                let slot = &mut seen[(v >> shift & 0xFF) as usize];
                pairs += u32::from(*slot);
                *slot += 1;
            }
            let n = sample.len() as f32;
            let share = pairs as f32 * 2.0 / (n * (n - 1.0));
            *bits = (-share.max(1.0 / 256.0).log2()).max(0.0);
        }
        Self { bits }
    }

    fn sum(&self) -> f32 {
        self.bits.iter().sum()
    }

    /// What to do with a plane of `count` bytes that is not constant.
    pub(super) fn class(&self, plane: usize, count: usize) -> Class {
        match self.bits[plane] {
            bits if bits < LOW_BITS => Class::Low,
            bits if bits > NOISE_BITS || (8.0 - bits) * (count as f32) < TABLE_BITS => Class::Stored,
            _ => Class::Mid,
        }
    }
}

/// Two runs of neighbouring values, from the first and the last third. Neighbours, because differences are measured.
fn sample(col: &[u64], mode: u8, into: &mut [u64; SAMPLE]) -> usize {
    let run = SAMPLE / 2;
    let starts = if col.len() > SAMPLE { [col.len() / 3, col.len() - run] } else { [1, 1 + run] };
    let mut n = 0;
    for start in starts {
        for at in start..(start + run).min(col.len()) {
            into[n] = if mode == MODE_RAW { col[at] } else { delta(mode, col[at], col[at - 1]) };
            n += 1;
        }
    }
    n
}

fn measure(col: &[u64], mode: u8) -> Planes {
    let mut values = [0; SAMPLE];
    let n = sample(col, mode, &mut values);
    Planes::measure(&values[..n])
}

/// Best of writing values as they are and as differences.
pub(super) fn choose(col: &[u64]) -> (u8, Planes) {
    if col.len() < MEASURED_MIN {
        return (if col.len() < DELTA_MIN { MODE_RAW } else { MODE_DELTA64 }, Planes::default());
    }
    let mut best = (MODE_RAW, measure(col, MODE_RAW));
    // Counters and times have quiet high bytes. Where there are none this is text or noise: no differences to look for.
    if best.1.bits[7] > 2.0 && best.1.bits[3] > 2.0 {
        return best;
    }
    for mode in [MODE_DELTA64, MODE_DELTA32] {
        if best.1.sum() <= DELTA_GAIN_BITS {
            break;
        }
        let planes = measure(col, mode);
        if planes.sum() + DELTA_GAIN_BITS < best.1.sum() {
            best = (mode, planes);
        }
    }
    best
}

/// The bytes of a word that go to planes if it is not written whole: those that hardly vary, and noise.
pub(super) fn choose_mask(planes: &Planes) -> u8 {
    let chosen = |bits: f32| !(STEADY_BITS..=NOISE_BITS).contains(&bits);
    planes.bits.iter().enumerate().fold(0, |mask, (plane, bits)| mask | u8::from(chosen(*bits)) << plane)
}

/// The length byte of a short text that ends the row is twice its length and one more, so it says nothing that the
/// row's length does not say. Finds the byte of the word that is steady once twice the row's length is taken away.
pub(super) fn choose_length(col: &[u64], rows: &[Row], need: usize, mask: u8, planes: &mut Planes) -> Option<u8> {
    let lens: Vec<u64> = rows.iter().filter(|row| row.len() >= need).map(|row| u64::from(row.len)).collect();
    let (mut words, mut lengths) = ([0; SAMPLE], [0; SAMPLE]);
    let n = sample(col, MODE_RAW, &mut words);
    sample(&lens, MODE_RAW, &mut lengths);
    for (word, len) in words[..n].iter_mut().zip(&lengths) {
        for plane in 0..8 {
            *word = add_to_byte(*word, plane, (len * 2).wrapping_neg() as u8);
        }
    }
    let less = Planes::measure(&words[..n]);
    let found = (0..8).find(|plane| mask >> plane & 1 == 0 && less.bits[*plane] < STEADY_BITS)?;
    planes.bits[found] = less.bits[found];
    Some(found as u8)
}
