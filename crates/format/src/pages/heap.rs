//! The headers of heap tuples.
//!
//! A header is predicted from the one before it and from where the tuple lies. What is left is a number for its shape,
//! which is everything from the masks on, and the fields that changed.

use super::item::{Item, Layout};
use super::rows::Row;
use super::values::{unzigzag32, unzigzag64, write_column, zigzag32, zigzag64};
use super::{PAGE, Parts, Streams, malformed, put, u16_at, u32_at};
use crate::varint::Malformed;

/// Bytes of a tuple header before the null bitmap.
const TUPLE_HEADER: usize = 23;
/// Where in the tuple header its shape begins: masks, header length, null bitmap.
const SHAPE_AT: usize = 18;
/// Where in the shape the part begins that decides where columns lie: header length and null bitmap.
const LAYOUT_IN_SHAPE: usize = TUPLE_HEADER - 1 - SHAPE_AT;
/// Shapes a frame may have; tables have a handful.
const SHAPES_MAX: usize = 250;

const XMIN: u8 = 1;
const XMAX: u8 = 2;
const CID: u8 = 4;
const CTID: u8 = 8;

/// The distinct shapes of a frame.
#[derive(Debug, Default)]
struct Shapes {
    shapes: Vec<Shape>,
    /// Rows with the same header length and null bitmap have their columns in the same places: they are a group.
    layouts: Vec<Vec<u8>>,
    last: usize,
}

#[derive(Debug)]
struct Shape {
    bytes: Vec<u8>,
    /// From 1; group 0 is for index tuples.
    group: usize,
}

impl Shapes {
    fn push(&mut self, bytes: Vec<u8>) {
        let layout = bytes.get(LAYOUT_IN_SHAPE..).unwrap_or_default();
        let group = self.layouts.iter().position(|known| known == layout).unwrap_or_else(|| {
            self.layouts.push(layout.to_vec());
            self.layouts.len() - 1
        });
        self.shapes.push(Shape { bytes, group: group + 1 });
    }

    /// The number of a shape, which is new if need be. None if there are too many.
    fn number(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.shapes.get(self.last).is_none_or(|shape| shape.bytes != bytes) {
            self.last = match self.shapes.iter().position(|shape| shape.bytes == bytes) {
                Some(at) => at,
                None if self.shapes.len() < SHAPES_MAX => {
                    self.push(bytes.to_vec());
                    self.shapes.len() - 1
                }
                None => return None,
            };
        }
        Some(self.last)
    }

    fn groups(&self) -> usize {
        self.layouts.len() + 1
    }

    fn clear(&mut self) {
        let Self { shapes, layouts, last } = self;
        shapes.clear();
        layouts.clear();
        *last = 0;
    }
}

/// The fields of the tuple before; most tuples share them.
#[derive(Debug, Default, Clone, Copy)]
struct Before {
    xmin: u32,
    xmax: u32,
    cid: u32,
}

/// Collects the tuple headers of a frame.
#[derive(Debug, Default)]
pub(super) struct HeapWriter {
    shapes: Shapes,
    before: Before,
    /// The block number of the frame's first page, as far as its tuples tell.
    base: Option<u32>,
    changes: Vec<u64>,
    which: Vec<u64>,
    xmin: Vec<u64>,
    xmax: Vec<u64>,
    cid: Vec<u64>,
    ctid: Vec<u64>,
}

impl HeapWriter {
    pub(super) fn clear(&mut self) {
        self.shapes.clear();
        self.before = Before::default();
        self.base = None;
        for column in self.columns() {
            column.clear();
        }
    }

    fn columns(&mut self) -> [&mut Vec<u64>; 6] {
        let Self { changes, which, xmin, xmax, cid, ctid, .. } = self;
        [changes, which, xmin, xmax, cid, ctid]
    }

    pub(super) fn groups(&self) -> usize {
        self.shapes.groups()
    }

    /// Finds the shapes of all tuples of a page. False, and nothing remembered, if a header does not fit its tuple or
    /// the frame would have too many shapes.
    pub(super) fn admit(&mut self, page: &[u8], items: &[Item]) -> bool {
        let (which, shapes, layouts) = (self.which.len(), self.shapes.shapes.len(), self.shapes.layouts.len());
        for item in items.iter().filter(|i| i.has_tuple()) {
            let tuple = &page[item.start()..][..usize::from(item.len)];
            let header = tuple.get(TUPLE_HEADER - 1).map_or(0, |header| usize::from(*header));
            let shape = if header < TUPLE_HEADER { None } else { tuple.get(SHAPE_AT..header) };
            let Some(number) = shape.and_then(|shape| self.shapes.number(shape)) else {
                self.which.truncate(which);
                self.shapes.shapes.truncate(shapes);
                self.shapes.layouts.truncate(layouts);
                self.shapes.last = 0;
                return false;
            };
            self.which.push(number as u64);
        }
        true
    }

    /// Takes the headers of a page apart that was admitted just before.
    pub(super) fn page(&mut self, number: usize, page: &[u8], items: &[Item], layout: Layout, groups: &mut [Vec<Row>]) {
        let admitted = self.which.len() - items.iter().filter(|i| i.has_tuple()).count();
        let with_tuple = items.iter().enumerate().filter(|(_, i)| i.has_tuple());
        let mut before = self.before;
        for ((n, item), which) in with_tuple.zip(&self.which[admitted..]) {
            let tuple = &page[item.start()..][..TUPLE_HEADER];
            let (xmin, xmax, cid) = (u32_at(tuple, 0), u32_at(tuple, 4), u32_at(tuple, 8));
            let block = (u32::from(u16_at(tuple, 12)) << 16) | u32::from(u16_at(tuple, 14));
            let ctid = (u64::from(block) << 16) | u64::from(u16_at(tuple, 16));
            let base = *self.base.get_or_insert(block.wrapping_sub(number as u32));
            let own = own_ctid(base, number, layout.item_number(n, items.len()));
            let mut changes = 0;
            if xmin != before.xmin {
                changes |= XMIN;
                self.xmin.push(u64::from(zigzag32(xmin.wrapping_sub(before.xmin))));
                before.xmin = xmin;
            }
            if xmax != before.xmax {
                changes |= XMAX;
                self.xmax.push(u64::from(xmax));
                before.xmax = xmax;
            }
            if cid != before.cid {
                changes |= CID;
                self.cid.push(u64::from(cid));
                before.cid = cid;
            }
            if ctid != own {
                changes |= CTID;
                self.ctid.push(zigzag64(ctid.wrapping_sub(own)));
            }
            self.changes.push(u64::from(changes));
            let shape = &self.shapes.shapes[*which as usize];
            let header = SHAPE_AT + shape.bytes.len();
            let at = number * PAGE + item.start() + header;
            groups[shape.group].push(Row { at: at as u32, len: item.len - header as u16 });
        }
        self.before = before;
    }

    pub(super) fn write_shapes(&self, meta: &mut Vec<u8>) {
        meta.extend_from_slice(&self.base.unwrap_or(0).to_le_bytes());
        meta.push(self.shapes.shapes.len() as u8);
        for shape in &self.shapes.shapes {
            meta.extend_from_slice(&shape.bytes);
        }
    }

    pub(super) fn write_columns(&mut self, out: &mut Streams) {
        for column in self.columns() {
            write_column(column, out);
        }
    }
}

/// Where a tuple points that was never updated: at itself.
fn own_ctid(base: u32, number: usize, position: usize) -> u64 {
    (u64::from(base.wrapping_add(number as u32)) << 16) | position as u64
}

/// Puts the tuple headers of a frame together again.
#[derive(Debug)]
pub(super) struct HeapReader {
    base: u32,
    shapes: Shapes,
}

/// Where the items of one heap page are, for [`HeapReader::tuples`].
pub(super) struct HeapPage<'a> {
    pub(super) number: usize,
    pub(super) layout: Layout,
    pub(super) items: &'a [Item],
}

impl HeapReader {
    pub(super) fn read_shapes(parts: &mut Parts<'_>) -> Result<Self, Malformed> {
        let base = parts.meta.u32_le()?;
        let count = usize::from(parts.meta.byte()?);
        if count > SHAPES_MAX {
            return Err(malformed("a frame has too many shapes of tuples"));
        }
        let mut shapes = Shapes::default();
        for _ in 0..count {
            let fixed = parts.meta.array::<{ TUPLE_HEADER - SHAPE_AT }>()?;
            let [.., header] = fixed;
            let bitmap = usize::from(header).checked_sub(TUPLE_HEADER);
            let bitmap = parts.meta.take(bitmap.ok_or(malformed("a tuple header is too short"))?)?;
            shapes.push([&fixed, bitmap].concat());
        }
        Ok(Self { base, shapes })
    }

    pub(super) fn groups(&self) -> usize {
        self.shapes.groups()
    }

    /// Reads the columns and writes the headers of all tuples; adds what follows them to their groups.
    pub(super) fn tuples(
        &self,
        parts: &mut Parts<'_>,
        frame: &mut [u8],
        pages: &[HeapPage<'_>],
        groups: &mut [Vec<Row>],
    ) -> Result<(), Malformed> {
        const MISSING: Malformed = malformed("a column of tuple headers is too short");
        let count = pages.iter().map(|page| page.items.iter().filter(|i| i.has_tuple()).count()).sum();
        let (mut changes, mut which) = (Vec::new(), Vec::new());
        parts.column(count, u64::from(XMIN | XMAX | CID | CTID), &mut changes)?;
        parts.column(count, SHAPES_MAX as u64, &mut which)?;
        let mut fields: [Vec<u64>; 4] = Default::default();
        for (field, bit) in fields.iter_mut().zip([XMIN, XMAX, CID, CTID]) {
            let changed = changes.iter().filter(|changes| **changes & u64::from(bit) != 0).count();
            parts.column(changed, if bit == CTID { u64::MAX } else { u64::from(u32::MAX) }, field)?;
        }
        let [mut xmins, mut xmaxs, mut cids, mut ctids] = fields.each_ref().map(|field| field.iter().copied());
        let mut tuples = changes.iter().zip(&which);
        let mut before = Before::default();
        for page in pages {
            for (n, item) in page.items.iter().enumerate().filter(|(_, i)| i.has_tuple()) {
                let (changes, which) = tuples.next().ok_or(MISSING)?;
                let changes = *changes as u8;
                let shape = self.shapes.shapes.get(*which as usize).ok_or(malformed("a tuple has an unknown shape"))?;
                if changes & XMIN != 0 {
                    before.xmin = before.xmin.wrapping_add(unzigzag32(xmins.next().ok_or(MISSING)? as u32));
                }
                if changes & XMAX != 0 {
                    before.xmax = xmaxs.next().ok_or(MISSING)? as u32;
                }
                if changes & CID != 0 {
                    before.cid = cids.next().ok_or(MISSING)? as u32;
                }
                let mut ctid = own_ctid(self.base, page.number, page.layout.item_number(n, page.items.len()));
                if changes & CTID != 0 {
                    ctid = ctid.wrapping_add(unzigzag64(ctids.next().ok_or(MISSING)?));
                    if ctid >> 48 != 0 {
                        return Err(malformed("a tuple points out of any relation"));
                    }
                }
                let header = SHAPE_AT + shape.bytes.len();
                let len = usize::from(item.len).checked_sub(header);
                let len = len.ok_or(malformed("a tuple is shorter than its header"))?;
                let at = page.number * PAGE + item.start();
                let mut fixed = [0; SHAPE_AT];
                fixed[..4].copy_from_slice(&before.xmin.to_le_bytes());
                fixed[4..8].copy_from_slice(&before.xmax.to_le_bytes());
                fixed[8..12].copy_from_slice(&before.cid.to_le_bytes());
                fixed[12..14].copy_from_slice(&((ctid >> 32) as u16).to_le_bytes());
                fixed[14..16].copy_from_slice(&((ctid >> 16) as u16).to_le_bytes());
                fixed[16..].copy_from_slice(&(ctid as u16).to_le_bytes());
                put(frame, at, &fixed)?;
                put(frame, at + SHAPE_AT, &shape.bytes)?;
                let group = groups.get_mut(shape.group).ok_or(malformed("a tuple has an unknown shape"))?;
                group.push(Row { at: (at + header) as u32, len: len as u16 });
            }
        }
        Ok(())
    }
}
