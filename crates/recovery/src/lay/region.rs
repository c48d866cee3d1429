//! A part of a file in memory, until it is whole: the pieces of a file that was changed by many backups lie in as many
//! packs, and written one by one they would cost more than all the rest of a restore.

use std::ops::Range;

use holdfast_runtime::{ALIGNMENT, AlignedBuffer};

/// How much of a file is put together before it is written.
pub(crate) const REGION_BYTES: usize = 16 << 20;

pub(crate) struct Region {
    pub target: u32,
    start: u64,
    bytes: AlignedBuffer,
    /// For each block of the buffer.
    is_filled: Vec<bool>,
}

impl Region {
    /// `bytes`: what they are does not matter.
    pub(crate) fn new(target: u32, start: u64, bytes: AlignedBuffer) -> Self {
        let is_filled = vec![false; bytes.len() / ALIGNMENT];
        Self { target, start, bytes, is_filled }
    }

    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes.len() as u64
    }

    /// Takes the whole blocks that belong here from the front; says how many bytes these were.
    pub(crate) fn put(&mut self, at_in_file: u64, bytes: &[u8]) -> usize {
        let range = self.range();
        if !range.contains(&at_in_file) || !at_in_file.is_multiple_of(ALIGNMENT as u64) {
            return 0;
        }
        let at = (at_in_file - range.start) as usize;
        let len = bytes.len().min(self.bytes.len() - at) / ALIGNMENT * ALIGNMENT;
        if let (Some(place), Some(bytes)) = (self.bytes.get_mut(at..at + len), bytes.get(..len))
            && let Some(blocks) = self.is_filled.get_mut(at / ALIGNMENT..(at + len) / ALIGNMENT)
        {
            place.copy_from_slice(bytes);
            blocks.fill(true);
            return len;
        }
        0
    }

    /// What was put here: where it belongs in the file, as long as possible, in order.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut at = 0;
        self.is_filled.chunk_by(|a, b| a == b).filter_map(move |blocks| {
            let from = at;
            at += blocks.len() * ALIGNMENT;
            let bytes = self.bytes.get(from..at)?;
            blocks.first()?.then_some((self.start + from as u64, bytes))
        })
    }

    pub(crate) fn into_buffer(self) -> AlignedBuffer {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = ALIGNMENT as u64;

    #[test]
    fn whole_blocks_that_belong_here_are_taken() {
        let mut region = Region::new(0, 8 * BLOCK, AlignedBuffer::new(4 * ALIGNMENT));
        let bytes = vec![7; 3 * ALIGNMENT];
        assert_eq!(region.put(7 * BLOCK, &bytes), 0, "it begins before");
        assert_eq!(region.put(12 * BLOCK, &bytes), 0, "it is behind");
        assert_eq!(region.put(9 * BLOCK + 1, &bytes), 0, "it begins within a block");
        assert_eq!(region.put(8 * BLOCK, &bytes[..100]), 0, "less than a block");
        assert_eq!(region.put(8 * BLOCK, &bytes[..ALIGNMENT + 100]), ALIGNMENT);
        assert_eq!(region.put(10 * BLOCK, &bytes), 2 * ALIGNMENT, "it goes on behind the end");
        let parts: Vec<_> = region.parts().map(|(at, bytes)| (at, bytes.len())).collect();
        assert_eq!(parts, [(8 * BLOCK, ALIGNMENT), (10 * BLOCK, 2 * ALIGNMENT)]);
    }

    proptest! {
        #[test]
        fn what_was_put_comes_out_in_order(
            puts in prop::collection::vec((0u64..40 * BLOCK, 0usize..5 * ALIGNMENT, any::<u8>(), any::<bool>()), 0..20)
        ) {
            let start = 16 * BLOCK;
            let mut region = Region::new(0, start, AlignedBuffer::new(16 * ALIGNMENT));
            let mut file = vec![None; 40 * ALIGNMENT];
            for (at, len, byte, is_aligned) in puts {
                let at = if is_aligned { at / BLOCK * BLOCK } else { at };
                let taken = region.put(at, &vec![byte; len]);
                prop_assert!(taken <= len);
                file[at as usize..at as usize + taken].fill(Some(byte));
            }
            let mut found = vec![None; 40 * ALIGNMENT];
            let mut end = None;
            for (at, bytes) in region.parts() {
                prop_assert!(end.is_none_or(|end| end < at), "parts that follow each other are one");
                end = Some(at + bytes.len() as u64);
                for (place, byte) in found[at as usize..].iter_mut().zip(bytes) {
                    *place = Some(*byte);
                }
            }
            prop_assert!(found == file);
        }
    }
}
