//! Putting a frame together again, from bytes that anybody may have written.

use super::heap::{HeapPage, HeapReader};
use super::item::{FIELD_MAX, ITEM_BYTES, ITEMS_MAX, Item, Layout, NORMAL, Taken};
use super::rows::{Row, read_rows};
use super::split::LITTERED;
use super::values::unzigzag64;
use super::{HEADER, INDEX_SPECIAL, Kind, PAGE, Parts, SIZE_VERSION, align, malformed, put};
use crate::varint::{Malformed, Reader};

/// One page that was taken apart, while it is put together.
#[derive(Debug)]
struct Known {
    number: usize,
    kind: Kind,
    layout: Layout,
    littered: bool,
    upper: usize,
    /// Where its line pointers lie among those of all pages.
    items: std::ops::Range<usize>,
}

impl Known {
    const fn first(&self) -> usize {
        self.number * PAGE
    }

    fn lower(&self) -> usize {
        HEADER + self.items.len() * ITEM_BYTES
    }

    fn items<'a>(&self, all: &'a [Item]) -> &'a [Item] {
        all.get(self.items.clone()).unwrap_or_default()
    }
}

/// Joins what [`super::split::Splitter::split`] took apart into `frame`, which must be zero.
pub(super) fn join(mut parts: Parts<'_>, frame: &mut [u8]) -> Result<(), Malformed> {
    let kinds = parts.meta.take(frame.len() / PAGE)?.iter().map(|kind| Kind::from_byte(*kind));
    let kinds: Vec<Kind> = kinds.collect::<Option<_>>().ok_or(malformed("a page is of an unknown kind"))?;
    let mut known: Vec<Known> = (kinds.iter().enumerate())
        .filter(|(_, kind)| matches!(kind, Kind::Heap | Kind::Index))
        .map(|(number, kind)| Known {
            number,
            kind: *kind,
            layout: Layout::Ordered,
            littered: false,
            upper: 0,
            items: 0..0,
        })
        .collect();
    let mut items = Vec::new();
    let mut groups: Vec<Vec<Row>> = Vec::new();
    if !known.is_empty() {
        let heap = HeapReader::read_shapes(&mut parts)?;
        groups.resize_with(heap.groups(), Vec::new);
        read_pages(&mut parts, frame, &mut known, &mut items)?;
        let heap_pages: Vec<HeapPage<'_>> = (known.iter().filter(|page| page.kind == Kind::Heap))
            .map(|page| HeapPage { number: page.number, layout: page.layout, items: page.items(&items) })
            .collect();
        heap.tuples(&mut parts, frame, &heap_pages, &mut groups)?;
        if let Some(group) = groups.first_mut() {
            for page in known.iter().filter(|page| page.kind == Kind::Index) {
                let row = |item: &Item| Row { at: (page.first() + item.start()) as u32, len: item.len };
                group.extend(page.items(&items).iter().filter(|i| i.has_tuple()).map(row));
            }
        }
    }
    read_text(&mut parts.text, frame, &kinds, &known, &items)?;
    for (group, rows) in groups.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        read_rows(&mut parts, frame, rows, group == 0)?;
    }
    parts.end()
}

/// Page headers and line pointers.
fn read_pages(
    parts: &mut Parts<'_>,
    frame: &mut [u8],
    known: &mut [Known],
    items: &mut Vec<Item>,
) -> Result<(), Malformed> {
    let mut col = Vec::new();
    let count = known.len();
    parts.column(count, u64::MAX, &mut col)?;
    for (page, lsn) in known.iter().zip(&col) {
        put(frame, page.first(), &lsn.rotate_left(32).to_le_bytes())?;
    }
    for field in [8, 10] {
        parts.column(count, u64::from(u16::MAX), &mut col)?;
        for (page, v) in known.iter().zip(&col) {
            put(frame, page.first() + field, &(*v as u16).to_le_bytes())?;
        }
    }
    parts.column(count, ((ITEMS_MAX as u64) << 3) | 7, &mut col)?;
    let mut all_items = 0;
    for (page, v) in known.iter_mut().zip(&col) {
        page.layout = Layout::from_bits(v & 3).ok_or(malformed("a page has an unknown layout"))?;
        page.littered = v & LITTERED != 0;
        let end = all_items + (v >> 3) as usize;
        page.items = all_items..end;
        all_items = end;
    }
    let free = |page: &&Known| page.layout == Layout::Free;
    let free_items = known.iter().filter(free).map(|page| page.items.len()).sum();
    let mut uppers = Vec::new();
    parts.column(known.iter().filter(free).count(), PAGE as u64, &mut uppers)?;
    parts.column(count, u64::from(u32::MAX), &mut col)?;
    for (page, v) in known.iter().zip(&col) {
        put(frame, page.first() + 20, &(*v as u32).to_le_bytes())?;
    }
    let is_index = |page: &&Known| page.kind == Kind::Index;
    for at in [PAGE - INDEX_SPECIAL, PAGE - INDEX_SPECIAL / 2] {
        parts.column(known.iter().filter(is_index).count(), u64::MAX, &mut col)?;
        for (page, v) in known.iter().filter(is_index).zip(&col) {
            put(frame, page.first() + at, &v.to_le_bytes())?;
        }
    }
    let (mut lens, mut flags, mut offs) = (Vec::new(), Vec::new(), Vec::new());
    parts.column(all_items, FIELD_MAX, &mut lens)?;
    parts.column(free_items, 3, &mut flags)?;
    parts.column(free_items, u64::MAX, &mut offs)?;
    let mut lens = lens.into_iter().map(|len| len as u16);
    let mut free = flags.into_iter().zip(offs);
    let mut uppers = uppers.into_iter();
    for page in known {
        let lens = lens.by_ref().take(page.items.len());
        if page.layout == Layout::Free {
            page.upper = uppers.next().unwrap_or_default() as usize;
            place_freely(page, lens.zip(free.by_ref()), items)?;
        } else {
            place_in_order(page, lens, items)?;
        }
        write_page(page, frame, page.items(items))?;
    }
    Ok(())
}

fn place_in_order(page: &mut Known, lens: impl Iterator<Item = u16>, items: &mut Vec<Item>) -> Result<(), Malformed> {
    let mut next = page.kind.special();
    for len in lens {
        let off = next.checked_sub(align(usize::from(len))).filter(|off| len > 0 && *off >= page.lower());
        next = off.ok_or(malformed("the tuples of a page do not fit"))?;
        items.push(Item { off: next as u16, len, flags: NORMAL });
    }
    page.upper = next;
    if page.upper < page.lower() {
        return Err(malformed("the line pointers of a page do not fit"));
    }
    Ok(())
}

fn place_freely(
    page: &Known,
    coded: impl Iterator<Item = (u16, (u64, u64))>,
    items: &mut Vec<Item>,
) -> Result<(), Malformed> {
    let special = page.kind.special();
    if page.upper < page.lower() || page.upper > special || !page.upper.is_multiple_of(8) {
        return Err(malformed("the hole of a page lies outside of it"));
    }
    let mut next = special as u64;
    let mut taken = Taken::default();
    for (len, (flags, off)) in coded {
        next = next.wrapping_sub(align(usize::from(len)) as u64);
        let off = next.wrapping_sub(unzigzag64(off));
        if off > FIELD_MAX {
            return Err(malformed("a line pointer is too large"));
        }
        let item = Item { off: off as u16, len, flags: flags as u8 };
        if item.has_tuple() {
            next = off;
            let inside = item.start() >= page.upper && item.end() <= special && item.off.is_multiple_of(8);
            if !inside || !taken.take(item) {
                return Err(malformed("the tuples of a page overlap, or lie outside of it"));
            }
        }
        items.push(item);
    }
    Ok(())
}

/// Line pointers, and the part of the header that follows from them.
fn write_page(page: &Known, frame: &mut [u8], items: &[Item]) -> Result<(), Malformed> {
    let first = page.first();
    let numbers = [page.lower() as u16, page.upper as u16, page.kind.special() as u16, SIZE_VERSION];
    for (n, number) in numbers.into_iter().enumerate() {
        put(frame, first + 12 + n * 2, &number.to_le_bytes())?;
    }
    for (n, item) in items.iter().enumerate() {
        let slot = page.layout.item_number(n, items.len()) - 1;
        put(frame, first + HEADER + slot * ITEM_BYTES, &item.raw().to_le_bytes())?;
    }
    Ok(())
}

/// Pages that were not taken apart, what lies between the tuples of the others, and the end that is no whole page.
fn read_text(
    text: &mut Reader<'_>,
    frame: &mut [u8],
    kinds: &[Kind],
    known: &[Known],
    items: &[Item],
) -> Result<(), Malformed> {
    let mut known = known.iter();
    for (number, kind) in kinds.iter().enumerate() {
        let first = number * PAGE;
        match kind {
            Kind::Zero => {}
            Kind::Unknown => put(frame, first, text.take(PAGE)?)?,
            Kind::Hollow => {
                let header = text.array::<HEADER>()?;
                let lower = usize::from(u16::from_le_bytes([header[12], header[13]]));
                let upper = usize::from(u16::from_le_bytes([header[14], header[15]]));
                if lower < HEADER || lower > upper || upper > PAGE {
                    return Err(malformed("the hole of a page lies outside of it"));
                }
                put(frame, first, &header)?;
                put(frame, first + HEADER, text.take(lower - HEADER)?)?;
                put(frame, first + upper, text.take(PAGE - upper)?)?;
            }
            Kind::Heap | Kind::Index => {
                let page = known.next().ok_or(malformed("a page is missing"))?;
                let lower = page.lower();
                if page.littered {
                    put(frame, first + lower, text.take(page.upper.saturating_sub(lower))?)?;
                }
                if page.layout == Layout::Free {
                    let mut taken = Taken::default();
                    for item in page.items(items).iter().filter(|i| i.has_tuple()) {
                        taken.take(*item);
                    }
                    for at in taken.gaps(page.upper, page.kind.special()) {
                        put(frame, first + at, text.take(8)?)?;
                    }
                }
            }
        }
    }
    let tail = kinds.len() * PAGE;
    put(frame, tail, text.take(frame.len().saturating_sub(tail))?)
}
