//! The bytes of a frame of codec 2: each stream is compressed on its own.
//!
//! Lengths are unsigned LEB128. A compressed part has its length in front, 0 for bytes that did not become shorter and
//! are kept as they are; no part is written for no bytes.

use std::fmt;

use zstd::zstd_safe::{CParameter, DParameter, FrameFormat, compress_bound};

use super::join::join;
use super::split::Splitter;
use super::{Parts, malformed};
use crate::varint::{self, Malformed, Reader};

/// zstd level for planes and descriptions: short, and regular where they are not noise.
const PLANE_LEVEL: i32 = 1;

/// The plain bytes that the compressed parts of a frame may have together. The planes of a column hold only bytes that
/// vary, so that real pages stay well below; the second term is for the descriptions in very short frames.
const fn plain_max(raw_len: usize) -> usize {
    raw_len * 4 + (128 << 10)
}

/// Compresses pages; holds contexts and buffers that are reused.
pub(crate) struct Encoder {
    splitter: Splitter,
    text: zstd::bulk::Compressor<'static>,
    planes: zstd::bulk::Compressor<'static>,
    joined: Vec<u8>,
    scratch: Vec<u8>,
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// `level` is zstd's for text.
    pub(crate) fn new(level: i32) -> std::io::Result<Self> {
        Ok(Self {
            splitter: Splitter::default(),
            text: context(level)?,
            planes: context(PLANE_LEVEL)?,
            joined: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// Appends `raw` in compressed form to `out`. False, and `out` as it was, if there are no pages in it, or if it does
    /// not become shorter.
    pub(crate) fn append(&mut self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let Some(streams) = self.splitter.split(raw) else { return false };
        let joined = &mut self.joined;
        joined.clear();
        joined.extend_from_slice(&streams.meta);
        joined.extend_from_slice(&streams.low);
        // A reader refuses more than this; so far nothing was found that comes near.
        if joined.len() + streams.mid.len() + streams.text.len() > plain_max(raw.len()) {
            return false;
        }
        varint::put(out, streams.meta.len() as u64);
        varint::put(out, streams.low.len() as u64);
        put_part(&mut self.planes, joined, &mut self.scratch, out);
        varint::put(out, streams.mid_ends.len() as u64);
        let mut rest = streams.mid.as_slice();
        let mut from = 0;
        for to in &streams.mid_ends {
            let (plane, after) = rest.split_at(to - from);
            (rest, from) = (after, *to);
            varint::put(out, plane.len() as u64);
            put_part(&mut self.planes, plane, &mut self.scratch, out);
        }
        varint::put_bytes(out, &streams.stored);
        varint::put(out, streams.text.len() as u64);
        put_part(&mut self.text, &streams.text, &mut self.scratch, out);
        let shorter = out.len() - start < raw.len();
        if !shorter {
            out.truncate(start);
        }
        shorter
    }
}

/// The frame knows every length, and seals what it holds: no magic number, length or checksum is needed here.
fn context(level: i32) -> std::io::Result<zstd::bulk::Compressor<'static>> {
    let mut context = zstd::bulk::Compressor::new(level)?;
    context.set_parameter(CParameter::Format(FrameFormat::Magicless))?;
    context.set_parameter(CParameter::ChecksumFlag(false))?;
    context.set_parameter(CParameter::ContentSizeFlag(false))?;
    Ok(context)
}

fn put_part(zstd: &mut zstd::bulk::Compressor<'_>, plain: &[u8], scratch: &mut Vec<u8>, out: &mut Vec<u8>) {
    if plain.is_empty() {
        return;
    }
    scratch.clear();
    scratch.reserve(compress_bound(plain.len()));
    match zstd.compress_to_buffer(plain, scratch) {
        Ok(len) if len < plain.len() => varint::put_bytes(out, scratch),
        _ => {
            varint::put(out, 0);
            out.extend_from_slice(plain);
        }
    }
}

/// Restores pages; holds what is reused from frame to frame.
pub(crate) struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    joined: Vec<u8>,
    mid: Vec<u8>,
    text: Vec<u8>,
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    pub(crate) fn new() -> std::io::Result<Self> {
        let mut zstd = zstd::bulk::Decompressor::new()?;
        zstd.set_parameter(DParameter::Format(FrameFormat::Magicless))?;
        Ok(Self { zstd, joined: Vec::new(), mid: Vec::new(), text: Vec::new() })
    }

    /// Appends exactly `raw_len` bytes to `out`, or leaves it as it was. Memory is bounded by a multiple of `raw_len`,
    /// whatever the bytes say; the caller bounds `raw_len`.
    pub(crate) fn append(&mut self, bytes: &[u8], raw_len: usize, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut reader = Reader::new(bytes);
        let mut left = plain_max(raw_len);
        let (meta_len, low_len) = (reader.u32()? as usize, reader.u32()? as usize);
        self.joined.clear();
        let joined_len = meta_len.checked_add(low_len).ok_or(TOO_LONG)?;
        take_part(&mut self.zstd, &mut reader, joined_len, &mut left, &mut self.joined)?;
        self.mid.clear();
        for _ in 0..reader.count(2)? {
            let len = reader.u32()? as usize;
            if len == 0 {
                return Err(malformed("a plane is empty"));
            }
            take_part(&mut self.zstd, &mut reader, len, &mut left, &mut self.mid)?;
        }
        let stored_len = reader.u32()? as usize;
        let stored = reader.take(stored_len)?;
        let text_len = reader.u32()? as usize;
        self.text.clear();
        take_part(&mut self.zstd, &mut reader, text_len, &mut left, &mut self.text)?;
        reader.end()?;
        let (meta, low) = self.joined.split_at_checked(meta_len).ok_or(TOO_LONG)?;
        let start = out.len();
        out.resize(start + raw_len, 0);
        let frame = out.get_mut(start..).unwrap_or_default();
        let joined = join(Parts::new(meta, low, &self.mid, stored, &self.text), frame);
        if joined.is_err() {
            out.truncate(start);
        }
        joined
    }
}

#[cfg(test)]
impl Decoder {
    /// Memory that stays allocated between frames.
    pub(super) fn held_bytes(&self) -> usize {
        self.joined.capacity() + self.mid.capacity() + self.text.capacity()
    }
}

const TOO_LONG: Malformed = malformed("the parts of a frame are longer than its pages can need");

/// Appends the `len` plain bytes of one part.
fn take_part(
    zstd: &mut zstd::bulk::Decompressor<'_>,
    reader: &mut Reader<'_>,
    len: usize,
    left: &mut usize,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    if len == 0 {
        return Ok(());
    }
    *left = left.checked_sub(len).ok_or(TOO_LONG)?;
    let compressed_len = reader.u32()? as usize;
    if compressed_len == 0 {
        out.extend_from_slice(reader.take(len)?);
        return Ok(());
    }
    let compressed = reader.take(compressed_len)?;
    let start = out.len();
    out.resize(start + len, 0);
    let target = out.get_mut(start..).unwrap_or_default();
    match zstd.decompress_to_buffer(compressed, target) {
        Ok(decoded) if decoded == len => Ok(()),
        _ => Err(malformed("a part does not decode to its length")),
    }
}
