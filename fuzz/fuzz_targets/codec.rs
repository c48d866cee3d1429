//! What a frame holds, decompressed: any bytes, with any length promised.
#![no_main]

use holdfast_format::codec::{Codec, Decompressor, FRAME_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[codec, low, mid, high, before], compressed)) = bytes.split_first_chunk() else { return };
    let Some(codec) = Codec::from_byte(codec % 3) else { return };
    let len = u32::from_le_bytes([low, mid, high, 0]) as usize;
    let before = vec![7; usize::from(before % 4)];
    let mut out = before.clone();
    match Decompressor::new().append(codec, compressed, len, &mut out) {
        Ok(()) => assert!(out.len() == before.len() + len && len <= FRAME_BYTES_MAX),
        Err(_) => assert!(out.len() <= before.len() + FRAME_BYTES_MAX),
    }
    assert!(out.starts_with(&before) || out.is_empty());
});
