//! Any bytes that are called pages come back as they were.
#![no_main]

use holdfast_format::codec::{Compressor, Content, Decompressor, FRAME_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

const PAGE: usize = 8192;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[shape, times], bytes)) = bytes.split_first_chunk() else { return };
    let mut raw = bytes.to_vec();
    if shape % 4 > 0 {
        // Whole pages: what there is lies at both ends, where the parts of a page are that mean something.
        let mut page = vec![0; PAGE];
        let head = bytes.len().min(PAGE / 2);
        page[..head].copy_from_slice(&bytes[..head]);
        let tail = &bytes[head..(head + PAGE / 2).min(bytes.len())];
        page[PAGE - tail.len()..].copy_from_slice(tail);
        if shape % 4 > 1 {
            // A header that can be believed.
            page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
            let special: u16 = if shape % 4 == 2 { 8192 } else { 8176 };
            page[16..18].copy_from_slice(&special.to_le_bytes());
        }
        raw = page.repeat(usize::from(times % 4) + 1);
    }
    raw.truncate(FRAME_BYTES_MAX);
    let mut packed = Vec::new();
    let codec = Compressor::new(1).unwrap().append(&raw, Content::Pages, &mut packed);
    let mut again = Vec::new();
    Decompressor::new().append(codec, &packed, raw.len(), &mut again).unwrap();
    assert!(again == raw, "{} bytes", raw.len());
});
