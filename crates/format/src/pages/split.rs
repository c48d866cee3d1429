//! Taking a frame apart.

use super::heap::HeapWriter;
use super::item::{ITEM_BYTES, Item, Layout, Taken, read_items};
use super::rows::{Row, write_rows};
use super::values::{write_column, zigzag64};
use super::{HEADER, INDEX_SPECIAL, Kind, PAGE, SIZE_VERSION, Streams, align, is_zero, u16_at, u32_at, u64_at};

/// Set in the description of a page whose hole is not zero and is kept.
pub(super) const LITTERED: u64 = 4;

/// Values that are collected page by page, and written at the end as columns.
#[derive(Debug, Default)]
struct Columns {
    lsn: Vec<u64>,
    checksum: Vec<u64>,
    flags: Vec<u64>,
    items: Vec<u64>,
    upper: Vec<u64>,
    prune: Vec<u64>,
    links: Vec<u64>,
    level: Vec<u64>,
    lens: Vec<u64>,
    item_flags: Vec<u64>,
    offs: Vec<u64>,
}

impl Columns {
    /// In the order of the format.
    fn all(&mut self) -> [&mut Vec<u64>; 11] {
        let Self { lsn, checksum, flags, items, upper, prune, links, level, lens, item_flags, offs } = self;
        [lsn, checksum, flags, items, upper, prune, links, level, lens, item_flags, offs]
    }
}

/// The numbers in a page header that say where things are.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    lower: usize,
    upper: usize,
    special: usize,
    /// Pruning and vacuum move tuples together and leave what lay in the hole.
    littered: bool,
}

/// Splits frames; holds what is reused from frame to frame.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    out: Streams,
    columns: Columns,
    heap: HeapWriter,
    items: Vec<Item>,
    /// Index tuples, then heap tuples by layout.
    groups: Vec<Vec<Row>>,
    col: Vec<u64>,
}

impl Splitter {
    /// Splits `frame`, if there is a page in it that can be taken apart. The result is valid until the next call.
    pub(super) fn split(&mut self, frame: &[u8]) -> Option<&Streams> {
        self.clear();
        let mut pages = frame.chunks_exact(PAGE);
        let mut apart = false;
        for (number, page) in pages.by_ref().enumerate() {
            let kind = self.page(number, page);
            apart |= kind != Kind::Unknown;
            self.out.meta.push(kind as u8);
        }
        if !apart {
            return None;
        }
        self.out.text.extend_from_slice(pages.remainder());
        if self.columns.lsn.is_empty() {
            return Some(&self.out);
        }
        self.heap.write_shapes(&mut self.out.meta);
        for column in self.columns.all() {
            write_column(column, &mut self.out);
        }
        self.heap.write_columns(&mut self.out);
        for (group, rows) in self.groups.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            write_rows(frame, rows, group == 0, &mut self.col, &mut self.out);
        }
        Some(&self.out)
    }

    fn clear(&mut self) {
        self.out.clear();
        self.heap.clear();
        for column in self.columns.all() {
            column.clear();
        }
        for rows in &mut self.groups {
            rows.clear();
        }
    }

    /// Takes one page apart, or puts it into `text` as it is.
    fn page(&mut self, number: usize, page: &[u8]) -> Kind {
        let [lower, upper, special] = [12, 14, 16].map(|at| usize::from(u16_at(page, at)));
        if lower < HEADER || lower > upper || upper > special || special > PAGE {
            if is_zero(page) {
                return Kind::Zero;
            }
            self.out.text.extend_from_slice(page);
            return Kind::Unknown;
        }
        let bounds = Bounds { lower, upper, special, littered: !is_zero(&page[lower..upper]) };
        if let Some((kind, layout)) = self.recognize(page, bounds) {
            self.known_page(number, page, bounds, kind, layout);
            return kind;
        }
        if bounds.littered {
            self.out.text.extend_from_slice(page);
            return Kind::Unknown;
        }
        self.out.text.extend_from_slice(&page[..lower]);
        self.out.text.extend_from_slice(&page[upper..]);
        Kind::Hollow
    }

    /// Whether the page can be taken apart; its line pointers are then in `items`.
    fn recognize(&mut self, page: &[u8], bounds: Bounds) -> Option<(Kind, Layout)> {
        let Bounds { lower, upper, special, littered } = bounds;
        let kind = [Kind::Heap, Kind::Index].into_iter().find(|kind| kind.special() == special)?;
        let used = lower > HEADER || !littered;
        let regular = u16_at(page, 18) == SIZE_VERSION && lower.is_multiple_of(ITEM_BYTES) && upper.is_multiple_of(8);
        if !used || !regular {
            return None;
        }
        let layout = read_items(page, &page[HEADER..lower], upper, special, &mut self.items)?;
        (kind == Kind::Index || self.heap.admit(page, &self.items)).then_some((kind, layout))
    }

    fn known_page(&mut self, number: usize, page: &[u8], bounds: Bounds, kind: Kind, layout: Layout) {
        let Bounds { lower, upper, special, littered } = bounds;
        let c = &mut self.columns;
        c.lsn.push(u64_at(page, 0).rotate_left(32));
        c.checksum.push(u64::from(u16_at(page, 8)));
        c.flags.push(u64::from(u16_at(page, 10)));
        c.items.push(((self.items.len() as u64) << 3) | layout as u64 | if littered { LITTERED } else { 0 });
        c.prune.push(u64::from(u32_at(page, 20)));
        if kind == Kind::Index {
            c.links.push(u64_at(page, special));
            c.level.push(u64_at(page, special + INDEX_SPECIAL / 2));
        }
        if littered {
            self.out.text.extend_from_slice(&page[lower..upper]);
        }
        c.lens.extend(self.items.iter().map(|item| u64::from(item.len)));
        if layout == Layout::Free {
            c.upper.push(upper as u64);
            let mut taken = Taken::default();
            let mut next = special as u64;
            for item in &self.items {
                // Where the tuple would lie if it came right below the one before.
                next = next.wrapping_sub(align(usize::from(item.len)) as u64);
                c.item_flags.push(u64::from(item.flags));
                c.offs.push(zigzag64(next.wrapping_sub(u64::from(item.off))));
                if item.has_tuple() {
                    next = u64::from(item.off);
                    taken.take(*item);
                }
            }
            for at in taken.gaps(upper, special) {
                self.out.text.extend_from_slice(&page[at..at + 8]);
            }
        }
        let groups = self.heap.groups().max(self.groups.len());
        self.groups.resize_with(groups, Vec::new);
        if kind == Kind::Heap {
            self.heap.page(number, page, &self.items, layout, &mut self.groups);
        } else {
            let row = |item: &Item| Row { at: (number * PAGE + item.start()) as u32, len: item.len };
            self.groups[0].extend(self.items.iter().filter(|i| i.has_tuple()).map(row));
        }
    }
}
