//! Hashes of a pack's plain bytes, block by block: what tells a restore which pages lie at their place already.
//!
//! The list is the last frame of the pack, and written with it once: a later snapshot that refers to the same frames
//! repeats nothing. A block is a page, because pages are what changes: of a frame that a later backup refers to in part
//! only, that part can still be compared.
//!
//! A hash is a keyed universal one, GMAC: four to six times as fast as BLAKE3 on blocks of this size. It is good for as
//! long as it is secret: the list is sealed, and the key belongs to the pack alone.

use std::fmt;
use std::ops::Range;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::codec::FRAME_BYTES_MAX;
use crate::object::EpochKey;
use crate::varint::{self, Malformed, Reader};

/// Plain bytes under one hash, counted from the start of a frame: a page.
pub const BLOCK_BYTES: usize = 8192;
const HASH_BYTES: usize = 12;
const VERSION: u64 = 1;

/// The hash of one block: as many bytes as a GCM tag must at least have for general use (SP 800-38D).
pub type BlockHash = [u8; HASH_BYTES];

/// Hashes blocks as one pack does.
pub struct BlockHasher(LessSafeKey);

impl fmt::Debug for BlockHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockHasher").finish_non_exhaustive()
    }
}

impl BlockHasher {
    /// For the pack with this salt.
    pub fn new(key: &EpochKey, salt: &[u8; 32]) -> Self {
        let material = [key.secret().as_slice(), salt].concat();
        let key = blake3::derive_key("holdfast block hash 1", &material);
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).expect("AES-256 takes 32 bytes")))
    }

    /// One nonce for all: equal blocks have equal hashes, and nobody without the key ever sees one.
    pub fn hash(&self, block: &[u8]) -> BlockHash {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(block), &mut [])
            .expect("a block is shorter than GCM's limit");
        let mut hash = [0; HASH_BYTES];
        hash.copy_from_slice(tag.as_ref().get(..HASH_BYTES).expect("a tag has 16 bytes"));
        hash
    }
}

/// The list of a pack that is being written.
#[derive(Debug)]
pub(crate) struct Gathered {
    hasher: BlockHasher,
    encoded: Vec<u8>,
    frames: usize,
    is_full: bool,
}

impl Gathered {
    pub(crate) fn new(hasher: BlockHasher) -> Self {
        let mut encoded = Vec::new();
        varint::put(&mut encoded, VERSION);
        Self { hasher, encoded, frames: 0, is_full: false }
    }

    /// Adds the next frame. A list that has become as long as a frame may be ends; what follows then is so well
    /// compressed that fetching it costs nothing.
    pub(crate) fn add(&mut self, plain: &[u8]) {
        let len = plain.len().div_ceil(BLOCK_BYTES) * HASH_BYTES + 5;
        self.is_full |= self.encoded.len() + len > FRAME_BYTES_MAX;
        if self.is_full {
            return;
        }
        varint::put(&mut self.encoded, plain.len() as u64);
        for block in plain.chunks(BLOCK_BYTES) {
            self.encoded.extend_from_slice(&self.hasher.hash(block));
        }
        self.frames += 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.encoded.len()
    }

    /// Nothing, if there is no frame.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        (self.frames > 0).then_some(self.encoded)
    }
}

/// The list of a pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockHashes {
    /// Plain length of each frame from the first on, and where its hashes are.
    frames: Vec<(u32, Range<usize>)>,
    hashes: Vec<BlockHash>,
}

impl BlockHashes {
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.number()? != VERSION {
            return Err(reader.malformed("the list of hashes has an unknown version"));
        }
        let mut list = Self::default();
        while reader.remaining() > 0 {
            let raw_len = reader.u32()?;
            if raw_len as usize > FRAME_BYTES_MAX {
                return Err(reader.malformed("a frame has an impossible length"));
            }
            let start = list.hashes.len();
            for _ in 0..(raw_len as usize).div_ceil(BLOCK_BYTES) {
                list.hashes.push(reader.array()?);
            }
            list.frames.push((raw_len, start..list.hashes.len()));
        }
        Ok(list)
    }

    /// The hashes of a frame's blocks, if it has that length here. None for a frame that the list does not reach.
    pub fn of(&self, index: u32, raw_len: u32) -> Option<&[BlockHash]> {
        let (listed_len, range) = self.frames.get(index as usize)?;
        if *listed_len == raw_len { self.hashes.get(range.clone()) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hasher(salt: u8) -> BlockHasher {
        BlockHasher::new(&EpochKey::new([4; 32]), &[salt; 32])
    }

    #[test]
    fn the_hash_stays_what_it_is() {
        let hash = hasher(9).hash(b"block");
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "3b3eb1e00e13446d025a5c9f");
        assert_ne!(hash, hasher(8).hash(b"block"));
        // The length counts: zeros behind a block make another one.
        assert_ne!(hasher(9).hash(&[0; 10]), hasher(9).hash(&[0; 11]));
    }

    #[test]
    fn a_list_ends_where_a_frame_must() {
        let mut gathered = Gathered::new(hasher(1));
        let plain = vec![1; FRAME_BYTES_MAX];
        let frames = FRAME_BYTES_MAX / (FRAME_BYTES_MAX / BLOCK_BYTES * HASH_BYTES) + 2;
        for _ in 0..frames {
            gathered.add(&plain);
        }
        // A small one would fit again, and would stand for another frame.
        gathered.add(b"x");
        let bytes = gathered.finish().unwrap();
        assert!(bytes.len() <= FRAME_BYTES_MAX);
        let list = BlockHashes::decode(&bytes).unwrap();
        assert!(list.of(0, FRAME_BYTES_MAX as u32).is_some());
        assert!(list.of(0, 5).is_none() && list.of(frames as u32, 1).is_none());
        assert_eq!(Gathered::new(hasher(1)).finish(), None);
    }

    proptest! {
        #[test]
        fn lists_round_trip(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20_000), 1..5)) {
            let mut gathered = Gathered::new(hasher(1));
            for frame in &frames {
                gathered.add(frame);
            }
            let list = BlockHashes::decode(&gathered.finish().unwrap()).unwrap();
            for (index, frame) in frames.iter().enumerate() {
                let expected: Vec<_> = frame.chunks(BLOCK_BYTES).map(|block| hasher(1).hash(block)).collect();
                prop_assert_eq!(list.of(index as u32, frame.len() as u32), Some(expected.as_slice()));
            }
        }

        #[test]
        fn a_changed_byte_changes_the_hash(mut block in proptest::collection::vec(any::<u8>(), 1..9000), at: prop::sample::Index, change in 1u8..) {
            let before = hasher(1).hash(&block);
            let at = at.index(block.len());
            block[at] ^= change;
            prop_assert_ne!(before, hasher(1).hash(&block));
        }

        #[test]
        fn garbage_is_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            bytes.insert(0, VERSION as u8);
            drop(BlockHashes::decode(&bytes));
        }
    }
}
