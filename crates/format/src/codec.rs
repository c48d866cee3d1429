//! How the plain bytes of a frame become smaller before they are sealed.

use std::fmt;

use crate::pages;
use crate::varint::Malformed;

/// No frame holds more plain bytes than this, so that a reader knows what it may have to hold.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

/// What was done to a frame; the byte in the frame table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// The plain bytes themselves.
    Stored = 0,
    /// One zstd frame (RFC 8878) without a dictionary.
    Zstd = 1,
    /// PostgreSQL pages, taken apart as `docs/format-pages.md` says.
    Pages = 2,
}

impl Codec {
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Stored),
            1 => Some(Self::Zstd),
            2 => Some(Self::Pages),
            _ => None,
        }
    }
}

/// What the bytes of a frame are, so that they can be compressed by their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Pages of PostgreSQL's relations, the first at the first byte. A hint and no promise: what is no page after all
    /// comes back as well, it only does not become as small.
    Pages,
    Other,
}

/// Compresses frames; keeps its working memory from one to the next.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    pages: pages::Encoder,
    scratch: Vec<u8>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

/// The level is not one that zstd knows.
#[derive(Debug, thiserror::Error)]
#[error("compression level {level} is not known to zstd")]
pub struct LevelError {
    level: i32,
    #[source]
    source: std::io::Error,
}

impl Compressor {
    /// The level is zstd's; of pages, it is that for what remains as text.
    pub fn new(level: i32) -> Result<Self, LevelError> {
        let make = || {
            let mut zstd = zstd::bulk::Compressor::new(level)?;
            // The frame table already carries the length, and the seal authenticates: neither is needed twice.
            zstd.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(false))?;
            zstd.set_parameter(zstd::zstd_safe::CParameter::ContentSizeFlag(false))?;
            Ok(Self { zstd, pages: pages::Encoder::new(level)?, scratch: Vec::new() })
        };
        make().map_err(|source| LevelError { level, source })
    }

    /// Appends the smaller of the compressed and the plain form of `raw` to `out`.
    pub fn append(&mut self, raw: &[u8], content: Content, out: &mut Vec<u8>) -> Codec {
        debug_assert!(raw.len() <= FRAME_BYTES_MAX);
        if content == Content::Pages && self.pages.append(raw, out) {
            return Codec::Pages;
        }
        // Room for less than the plain bytes only: zstd stops by itself where compression does not pay.
        let room = raw.len().saturating_sub(1);
        if self.scratch.capacity() != room {
            self.scratch = Vec::with_capacity(room);
        }
        self.scratch.clear();
        if room > 0 && self.zstd.compress_to_buffer(raw, &mut self.scratch).is_ok() {
            out.extend_from_slice(&self.scratch);
            Codec::Zstd
        } else {
            out.extend_from_slice(raw);
            Codec::Stored
        }
    }
}

/// The compressed bytes of a frame do not decode to what its table entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the frame does not decode to its {expected} bytes")]
    Corrupt { expected: usize },
    #[error("the frame claims {0} bytes, more than any frame may hold")]
    TooLarge(usize),
    #[error("the pages of the frame cannot be put together")]
    Pages(#[source] Malformed),
}

/// Restores frames; keeps its working memory from one to the next.
pub struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
    pages: pages::Decoder,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// # Panics
    /// Only if memory for the decoder cannot be had.
    pub fn new() -> Self {
        let zstd = zstd::bulk::Decompressor::new().expect("zstd allocates its decoder");
        let pages = pages::Decoder::new().expect("zstd allocates its decoder");
        Self { zstd, pages }
    }

    /// Appends the `raw_len` plain bytes of a frame to `out`.
    pub fn append(
        &mut self,
        codec: Codec,
        compressed: &[u8],
        raw_len: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), DecodeError> {
        if raw_len > FRAME_BYTES_MAX {
            return Err(DecodeError::TooLarge(raw_len));
        }
        let corrupt = DecodeError::Corrupt { expected: raw_len };
        let start = out.len();
        match codec {
            Codec::Stored if compressed.len() == raw_len => out.extend_from_slice(compressed),
            Codec::Stored => return Err(corrupt),
            // Into an empty vector zstd writes directly, which spares clearing the memory first.
            Codec::Zstd if start == 0 => {
                out.reserve(raw_len);
                if self.zstd.decompress_to_buffer(compressed, out).ok() != Some(raw_len) {
                    out.clear();
                    return Err(corrupt);
                }
            }
            Codec::Zstd => {
                out.resize(start + raw_len, 0);
                let target = out.get_mut(start..).ok_or(corrupt)?;
                if self.zstd.decompress_to_buffer(compressed, target).ok() != Some(raw_len) {
                    out.truncate(start);
                    return Err(corrupt);
                }
            }
            Codec::Pages => self.pages.append(compressed, raw_len, out).map_err(DecodeError::Pages)?,
        }
        Ok(())
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_frame_comes_back(raw in proptest::collection::vec(0u8..8, 0..5000), noise: bool, pages: bool) {
            let raw: Vec<u8> = if noise { raw.iter().scan(7u32, |s, b| {
                *s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223 + u32::from(*b));
                Some((*s >> 24) as u8)
            }).collect() } else { raw };
            let mut packed = Vec::new();
            let codec = Compressor::new(1).unwrap().append(&raw, if pages { Content::Pages } else { Content::Other }, &mut packed);
            prop_assert!(packed.len() <= raw.len());
            let mut again = vec![1, 2, 3];
            Decompressor::new().append(codec, &packed, raw.len(), &mut again).unwrap();
            prop_assert_eq!(&again[3..], &raw[..]);
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500), len in 0usize..9_000_000) {
            let mut out = Vec::new();
            if Decompressor::new().append(Codec::Zstd, &bytes, len, &mut out).is_ok() {
                prop_assert_eq!(out.len(), len);
            }
        }
    }
}
