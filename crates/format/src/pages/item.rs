//! Line pointers, and the order in which the tuples of a page lie.

use super::{PAGE, align, is_zero, u32_at};

/// Line pointers that fit in a page.
pub(super) const ITEMS_MAX: usize = (PAGE - super::HEADER) / ITEM_BYTES;
pub(super) const ITEM_BYTES: usize = 4;
/// The widest offset or length in a line pointer.
pub(super) const FIELD_MAX: u64 = 0x7FFF;
/// The state of a line pointer that has a tuple.
pub(super) const NORMAL: u8 = 1;

/// One line pointer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) off: u16,
    pub(super) len: u16,
    pub(super) flags: u8,
}

impl Item {
    const fn parse(raw: u32) -> Self {
        Self { off: (raw & 0x7FFF) as u16, flags: (raw >> 15 & 3) as u8, len: (raw >> 17) as u16 }
    }

    pub(super) fn raw(self) -> u32 {
        u32::from(self.off) | (u32::from(self.flags) << 15) | (u32::from(self.len) << 17)
    }

    pub(super) const fn start(self) -> usize {
        self.off as usize
    }

    /// With the padding.
    pub(super) const fn end(self) -> usize {
        self.off as usize + align(self.len as usize)
    }

    pub(super) const fn has_tuple(self) -> bool {
        self.len > 0
    }
}

/// How the line pointers of a page follow from the lengths of its tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Layout {
    /// Each tuple lies right below the one before, the first at the end.
    Ordered = 0,
    /// The same, but the first line pointer comes last: a B-tree page writes its high key when all else is there.
    HighKeyLast = 1,
    /// Anything else; offsets and flags are kept.
    Free = 2,
}

impl Layout {
    pub(super) const fn from_bits(bits: u64) -> Option<Self> {
        match bits {
            0 => Some(Self::Ordered),
            1 => Some(Self::HighKeyLast),
            2 => Some(Self::Free),
            _ => None,
        }
    }

    /// Number of a line pointer (from 1) given its place in the order in which items are coded.
    pub(super) const fn item_number(self, n: usize, count: usize) -> usize {
        match self {
            Self::HighKeyLast if n + 1 == count => 1,
            Self::HighKeyLast => n + 2,
            Self::Ordered | Self::Free => n + 1,
        }
    }
}

/// Reads line pointers into `items` in the order of their layout. None if tuples leave `upper..special`, overlap, are
/// not aligned, or are padded with something.
pub(super) fn read_items(
    page: &[u8],
    pointers: &[u8],
    upper: usize,
    special: usize,
    items: &mut Vec<Item>,
) -> Option<Layout> {
    let layout = if ordered(pointers, &[], upper, special, items) {
        Layout::Ordered
    } else if let Some((high_key, rest)) = pointers.split_at_checked(ITEM_BYTES)
        && !rest.is_empty()
        && ordered(rest, high_key, upper, special, items)
    {
        Layout::HighKeyLast
    } else {
        items.clear();
        items.extend(pointers.chunks_exact(ITEM_BYTES).map(|pointer| Item::parse(u32_at(pointer, 0))));
        let mut taken = Taken::default();
        let sane = |item: &Item| item.start() >= upper && item.end() <= special && item.off.is_multiple_of(8);
        if !items.iter().filter(|i| i.has_tuple()).all(|item| sane(item) && taken.take(*item)) {
            return None;
        }
        Layout::Free
    };
    let padded = |item: &Item| is_zero(&page[item.start() + usize::from(item.len)..item.end()]);
    items.iter().filter(|i| i.has_tuple()).all(padded).then_some(layout)
}

/// Whether the tuples of `pointers`, and then of `last`, lie one below the other from `special` to `upper`.
fn ordered(pointers: &[u8], last: &[u8], upper: usize, special: usize, items: &mut Vec<Item>) -> bool {
    items.clear();
    let mut next = special;
    let mut fits = |pointer: &[u8]| {
        let item = Item::parse(u32_at(pointer, 0));
        let fits = item.flags == NORMAL && item.has_tuple() && item.end() == next && item.off.is_multiple_of(8);
        next = item.start();
        items.push(item);
        fits
    };
    pointers.chunks_exact(ITEM_BYTES).all(&mut fits) && last.chunks_exact(ITEM_BYTES).all(&mut fits) && next == upper
}

/// Eight-byte units of a page that belong to a tuple.
#[derive(Debug, Default)]
pub(super) struct Taken {
    units: [u64; PAGE / 8 / 64],
}

impl Taken {
    /// False when a unit is taken already, or lies outside of the page.
    pub(super) fn take(&mut self, item: Item) -> bool {
        let mut free = true;
        for unit in item.start() / 8..item.end() / 8 {
            let bit = 1 << (unit % 64);
            let Some(units) = self.units.get_mut(unit / 64) else { return false };
            free &= *units & bit == 0;
            *units |= bit;
        }
        free
    }

    /// Where the units between `from` and `to` begin that belong to no tuple.
    pub(super) fn gaps(&self, from: usize, to: usize) -> impl Iterator<Item = usize> + '_ {
        let free = |unit: &usize| self.units.get(unit / 64).is_some_and(|units| units >> (unit % 64) & 1 == 0);
        (from / 8..to / 8).filter(free).map(|unit| unit * 8)
    }
}
