//! The one promise is that splitting and joining give back the same bytes, so pages here are built to be known, and
//! then damaged in every way that proptest finds.

use proptest::prelude::*;

use super::join::join;
use super::split::Splitter;
use super::{Decoder, Encoder, HEADER, Kind, PAGE, Parts, Streams};
use crate::codec::{Codec, Compressor, Content, Decompressor};
use crate::varint::Malformed;

/// What a page is built from: tuples in the order of their line pointers.
#[derive(Debug, Clone)]
struct Tuple {
    xmin: u32,
    nulls: bool,
    moved: bool,
    body: Vec<u8>,
}

fn heap_page(number: u32, tuples: &[Tuple]) -> Vec<u8> {
    let items = tuples.iter().enumerate().map(|(n, tuple)| {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&tuple.xmin.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let block = if tuple.moved { number + 77 } else { number };
        bytes.extend_from_slice(&((block >> 16) as u16).to_le_bytes());
        bytes.extend_from_slice(&(block as u16).to_le_bytes());
        bytes.extend_from_slice(&(n as u16 + 1).to_le_bytes());
        bytes.extend_from_slice(&[9, 0, u8::from(tuple.nulls), 9]);
        if tuple.nulls {
            bytes.extend_from_slice(&[32, 0x3f, 1, 0, 0, 0, 0, 0, 0, 0]);
        } else {
            bytes.extend_from_slice(&[24, 0]);
        }
        bytes.extend_from_slice(&tuple.body);
        bytes
    });
    page(&items.collect::<Vec<_>>(), PAGE, false)
}

fn index_page(keys: &[(u32, u64)], high_key_last: bool) -> Vec<u8> {
    let items = keys.iter().map(|(tid, key)| {
        let mut bytes = vec![0, 0];
        bytes.extend_from_slice(&tid.to_le_bytes());
        bytes.extend_from_slice(&[16, 0]);
        bytes.extend_from_slice(&key.to_le_bytes());
        bytes
    });
    page(&items.collect::<Vec<_>>(), PAGE - 16, high_key_last)
}

fn page(items: &[Vec<u8>], special: usize, high_key_last: bool) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let (mut lower, mut upper) = (HEADER, special);
    let mut pointers = Vec::new();
    for item in items {
        let room = item.len().next_multiple_of(8);
        if lower + 4 + room > upper {
            break;
        }
        lower += 4;
        upper -= room;
        page[upper..upper + item.len()].copy_from_slice(item);
        pointers.push((upper as u32) | 1 << 15 | (item.len() as u32) << 17);
    }
    if high_key_last && !pointers.is_empty() {
        pointers.rotate_right(1);
    }
    for (n, pointer) in pointers.iter().enumerate() {
        page[HEADER + n * 4..][..4].copy_from_slice(&pointer.to_le_bytes());
    }
    page[..12].copy_from_slice(&[0, 0, 0, 0, 7, 0, 0, 1, 0xaa, 0xbb, 4, 0]);
    page[12..14].copy_from_slice(&(lower as u16).to_le_bytes());
    page[14..16].copy_from_slice(&(upper as u16).to_le_bytes());
    page[16..18].copy_from_slice(&(special as u16).to_le_bytes());
    page[18..20].copy_from_slice(&[4, 32]);
    page
}

fn tuple() -> impl Strategy<Value = Tuple> {
    (700u32..703, any::<bool>(), prop::bool::weighted(0.1), 0u64..1000, prop::collection::vec(any::<u8>(), 0..90))
        .prop_map(|(xmin, nulls, moved, id, text)| {
            let mut body = id.to_le_bytes().to_vec();
            body.push((text.len() as u8 + 1) << 1 | 1);
            body.extend_from_slice(&text);
            Tuple { xmin, nulls, moved, body }
        })
}

fn any_page() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => (0u32..70000, prop::collection::vec(tuple(), 0..150)).prop_map(|(number, tuples)| heap_page(number, &tuples)),
        4 => (prop::collection::vec((any::<u32>(), any::<u64>()), 0..400), any::<bool>()).prop_map(|(keys, last)| index_page(&keys, last)),
        1 => Just(vec![0; PAGE]),
        1 => prop::collection::vec(any::<u8>(), PAGE),
    ]
}

/// Bytes to overwrite: place in the frame (page, place in the page) and value. Half of them hit the page header and the
/// line pointers, where numbers are that everything else depends on.
fn damage() -> impl Strategy<Value = Vec<(usize, usize, u8)>> {
    let place = prop_oneof![0..PAGE, 0..160usize];
    prop::collection::vec((0..4usize, place, any::<u8>()), 0..12)
}

fn damaged(mut frame: Vec<u8>, damage: &[(usize, usize, u8)]) -> Vec<u8> {
    for (page, place, value) in damage {
        if let Some(byte) = frame.get_mut(page * PAGE + place) {
            *byte = *value;
        }
    }
    frame
}

fn join_streams(s: &Streams, raw_len: usize) -> Result<Vec<u8>, Malformed> {
    let mut frame = vec![0; raw_len];
    join(Parts::new(&s.meta, &s.low, &s.mid, &s.stored, &s.text), &mut frame).map(|()| frame)
}

fn same(frame: &[u8], level: i32) {
    let mut splitter = Splitter::default();
    // Twice: nothing may be left over from the frame before.
    for _ in 0..2 {
        if let Some(streams) = splitter.split(frame) {
            let joined = join_streams(streams, frame.len()).expect("what was split can be joined");
            let differs = joined.iter().zip(frame).position(|(a, b)| a != b);
            assert_eq!(differs, None, "first byte that differs");
        }
    }
    let mut bytes = vec![1, 2, 3];
    let codec = Compressor::new(level).unwrap().append(frame, Content::Pages, &mut bytes);
    assert!(bytes.len() - 3 <= frame.len(), "longer than the frame");
    for mut out in [vec![], vec![4, 5]] {
        let start = out.len();
        Decompressor::new().append(codec, &bytes[3..], frame.len(), &mut out).expect("what was encoded can be decoded");
        assert!(out[start..] == *frame, "decoded differs");
    }
}

fn encoded(frame: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    Encoder::new(1).unwrap().append(frame, &mut bytes).then_some(bytes)
}

fn kinds(frame: &[u8]) -> Vec<Kind> {
    let mut splitter = Splitter::default();
    let streams = splitter.split(frame).expect("a page is known");
    streams.meta[..frame.len() / PAGE].iter().map(|kind| Kind::from_byte(*kind).unwrap()).collect()
}

fn tuples(count: u32) -> Vec<Tuple> {
    let text = |n: u32| format!("text {} of a message", n * 7919 % 100).into_bytes();
    let body = |n: u32| [u64::from(n).to_le_bytes().to_vec(), text(n)].concat();
    (0..count).map(|n| Tuple { xmin: 700, nulls: n % 9 == 0, moved: false, body: body(n) }).collect()
}

#[test]
fn kinds_are_told_apart() {
    let heap = heap_page(5, &tuples(80));
    let index = index_page(&[(1, 1), (2, 2), (3, 3)], true);
    let mut torn = heap.clone();
    torn[HEADER..HEADER + 4].copy_from_slice(&[0xff; 4]);
    let mut noise = heap.clone();
    noise[13] = 0xff;
    let frame = [heap, index, torn, noise, vec![0; PAGE]].concat();
    assert_eq!(kinds(&frame), [Kind::Heap, Kind::Index, Kind::Hollow, Kind::Unknown, Kind::Zero]);
    same(&frame, 2);
}

#[test]
fn regular_tuples_cost_little_beside_their_text() {
    let pages: Vec<Vec<u8>> = (0..16).map(|n| heap_page(n, &tuples(120))).collect();
    let frame = pages.concat();
    let mut splitter = Splitter::default();
    let streams = splitter.split(&frame).unwrap();
    let text: usize = 16 * tuples(120).iter().map(|t| t.body.len() - 8).sum::<usize>();
    assert!(streams.text.len() <= text, "{} bytes of text from {text}", streams.text.len());
    assert!(streams.stored.len() < frame.len() / 100);
}

#[test]
fn short_and_odd_frames() {
    for len in [0, 1, 7, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5000] {
        same(&vec![0; len], 2);
        same(&(0..len).map(|n| ((n * n) >> 3) as u8).collect::<Vec<_>>(), 2);
        let mut frame = [heap_page(1, &tuples(90)), index_page(&[(9, 9); 200], false)].concat().repeat(2);
        frame.truncate(len);
        same(&frame, 2);
    }
}

#[test]
fn litter_in_the_hole_is_kept() {
    let mut heap = heap_page(5, &tuples(40));
    let lower = usize::from(heap[12]) + usize::from(heap[13]) * 256;
    heap[lower + 9..lower + 14].copy_from_slice(b"stale");
    let frame = heap.repeat(8);
    assert_eq!(kinds(&frame), [Kind::Heap; 8]);
    same(&frame, 2);
}

#[test]
fn too_many_shapes_fall_back() {
    let mut frame: Vec<u8> = (0..16).flat_map(|n| heap_page(n, &tuples(100))).collect();
    // A different infomask in every tuple.
    let mut mask = 0u16;
    for page in frame.chunks_exact_mut(PAGE) {
        for item in 0..100 {
            let pointer = u32::from_le_bytes(page[HEADER + item * 4..][..4].try_into().expect("four bytes"));
            let at = (pointer & 0x7fff) as usize + 20;
            mask = mask.wrapping_add(1);
            page[at..at + 2].copy_from_slice(&mask.to_le_bytes());
        }
    }
    assert!(kinds(&frame).contains(&Kind::Hollow));
    same(&frame, 2);
}

proptest! {
    #[test]
    fn split_and_join(pages in prop::collection::vec(any_page(), 1..4), damage in damage(), cut in 0..3 * PAGE, whole in any::<bool>()) {
        let mut frame = damaged(pages.concat(), &damage);
        if !whole {
            frame.truncate(cut);
        }
        same(&frame, 1);
    }

    /// Line pointers in any order, with holes and dead ones, as after updates and vacuum.
    #[test]
    fn shuffled_line_pointers(tuples in prop::collection::vec(tuple(), 2..60), swaps in prop::collection::vec((0..60usize, 0..60usize), 0..30), dead in prop::collection::vec((0..60usize, any::<bool>()), 0..8)) {
        let mut page = heap_page(3, &tuples);
        let count = (usize::from(page[12]) + usize::from(page[13]) * 256 - HEADER) / 4;
        for (a, b) in swaps {
            let (a, b) = (HEADER + a % count * 4, HEADER + b % count * 4);
            for n in 0..4 {
                page.swap(a + n, b + n);
            }
        }
        for (n, redirect) in dead {
            let pointer: u32 = if redirect { 5 | 2 << 15 } else { 3 << 15 };
            page[HEADER + n % count * 4..][..4].copy_from_slice(&pointer.to_le_bytes());
        }
        prop_assert_eq!(kinds(&page), [Kind::Heap]);
        same(&page.repeat(2), 1);
    }

    /// Whatever the streams hold, joining ends, in an error or in a frame.
    #[test]
    fn join_survives_damage(
        pages in prop::collection::vec(any_page(), 1..4),
        hits in prop::collection::vec((0..5usize, any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of((0..5usize, any::<prop::sample::Index>())),
        more in 0..3usize,
    ) {
        let frame = pages.concat();
        let mut splitter = Splitter::default();
        let Some(s) = splitter.split(&frame) else { return Ok(()) };
        let mut streams = [s.meta.clone(), s.low.clone(), s.mid.clone(), s.stored.clone(), s.text.clone()];
        for (stream, at, value) in hits {
            let stream = &mut streams[stream];
            if !stream.is_empty() {
                let at = at.index(stream.len());
                stream[at] = value;
            }
        }
        if let Some((stream, at)) = cut {
            let stream = &mut streams[stream];
            if !stream.is_empty() {
                stream.truncate(at.index(stream.len()));
            }
        }
        let [meta, low, mid, stored, text] = streams;
        let damaged = Streams { meta, low, mid, stored, text, mid_ends: Vec::new() };
        join_streams(&damaged, frame.len() + more * 4096).ok();
    }

    #[test]
    fn decoding_survives_damage(
        pages in prop::collection::vec(any_page(), 1..3),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let frame = pages.concat();
        let Some(mut bytes) = encoded(&frame) else { return Ok(()) };
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let mut out = vec![1];
        let decoded = Decompressor::new().append(Codec::Pages, &bytes, frame.len(), &mut out).is_ok();
        prop_assert_eq!(out.len() - 1, if decoded { frame.len() } else { 0 });
    }

    #[test]
    fn garbage_is_refused_without_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
        kinds in prop::collection::vec(0..6u8, 0..6),
        len in 0..6 * PAGE,
    ) {
        let meta = [kinds, bytes.clone()].concat();
        let [low, mid, stored, text] = [(); 4].map(|()| bytes.clone());
        join_streams(&Streams { meta, low, mid, stored, text, mid_ends: Vec::new() }, len).ok();
        let mut out = Vec::new();
        let decoded = Decompressor::new().append(Codec::Pages, &bytes, len, &mut out).is_ok();
        prop_assert_eq!(out.len(), if decoded { len } else { 0 });
    }
}

/// The lengths in a frame are claims: none may cost memory that the frame cannot be worth.
#[test]
fn claims_do_not_allocate() {
    let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
    let cases = [
        [&huge[..], &huge, &[0]].concat(),
        [&[0, 0, 0xFF, 0xFF, 0x03][..], &[0; 40]].concat(),
        [&[0, 0, 1][..], &huge, &[1, 0]].concat(),
        [&[0, 0, 0][..], &huge].concat(),
        [&[0, 0, 0, 0][..], &huge, &[9, 1]].concat(),
    ];
    for bytes in cases {
        let mut decoder = Decoder::new().unwrap();
        assert!(decoder.append(&bytes, PAGE, &mut Vec::new()).is_err());
        assert!(decoder.held_bytes() <= 5 * PAGE + (256 << 10), "{} bytes", decoder.held_bytes());
    }
}

#[test]
fn bytes_that_are_left_over_are_refused() {
    let frame = heap_page(3, &tuples(100));
    let mut bytes = encoded(&frame).unwrap();
    bytes.push(0);
    assert!(Decoder::new().unwrap().append(&bytes, frame.len(), &mut Vec::new()).is_err());
}
