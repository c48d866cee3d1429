//! Data pages: their checksum and the header checks PostgreSQL makes when it reads one.
//!
//! Rules from checksum_impl.h and bufpage.c (`PageIsVerified`).

use holdfast_types::Lsn;
use multiversion::multiversion;

use crate::bytes::Reader;

/// The size of a data page. PostgreSQL can be compiled with another one; `pg_control` tells, and we refuse it.
pub const PAGE_SIZE: usize = 8192;

/// The checksum runs this many independent hashes side by side, so that it can be computed in vector registers.
const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// Where each hash starts (checksum_impl.h, `checksumBaseOffsets`).
const SEEDS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Which lane of the first row holds `pd_checksum`, in its lower half.
const CHECKSUM_LANE: usize = 2;
/// `PD_VALID_FLAG_BITS`.
const FLAGS: u16 = 0x0007;
/// The page size and, in the low byte, the layout version, which has been 4 since PostgreSQL 8.3.
const SIZE_AND_VERSION: u16 = PAGE_SIZE as u16 | 4;

/// What is to be said of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageVerdict {
    /// All zeros: the file was extended and the page not yet used. PostgreSQL takes it for an empty page.
    New,
    /// Nothing is wrong that could be seen.
    Valid,
    /// The content is not what PostgreSQL wrote, or the page was being written while it was read.
    BadChecksum {
        /// What the page says.
        stored: u16,
        /// What its content gives.
        computed: u16,
    },
    /// The header cannot have been written by PostgreSQL; the text says why.
    BadHeader(&'static str),
}

/// The checksum of a page that is the `block`th of its relation, counted over all segment files
/// (checksum_impl.h, `pg_checksum_page`). The checksum stored in the page is taken as zero.
///
/// Means nothing for a page that is all zeros.
pub fn checksum(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
    let mixed = hash(page) ^ block;
    // Never zero, so that a forgotten checksum is seen.
    (mixed % 65_535) as u16 + 1
}

#[multiversion(targets("x86_64+avx2", "x86_64+sse4.1"))]
fn hash(page: &[u8; PAGE_SIZE]) -> u32 {
    let mut sums = SEEDS;
    let (rows, _) = page.as_chunks::<{ LANES * 4 }>();
    // The first row alone holds the stored checksum, so it alone pays for hiding it.
    let mut hidden = [0xFFFF_FFFFu32; LANES];
    hidden[CHECKSUM_LANE] = 0xFFFF_0000;
    for row in rows {
        let (words, _) = row.as_chunks::<4>();
        for ((sum, word), mask) in sums.iter_mut().zip(words).zip(&hidden) {
            let mixed = *sum ^ (u32::from_le_bytes(*word) & mask);
            *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
        hidden = [0xFFFF_FFFF; LANES];
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = sum.wrapping_mul(FNV_PRIME) ^ (*sum >> 17);
        }
    }
    sums.iter().fold(0, |folded, sum| folded ^ sum)
}

/// The end of the last log record that changed the page (`pd_lsn`). The two halves are stored high one first.
pub fn lsn(page: &[u8; PAGE_SIZE]) -> Lsn {
    let mut reader = Reader(page);
    match (reader.u32(), reader.u32()) {
        (Some(high), Some(low)) => Lsn::new(u64::from(high) << 32 | u64::from(low)),
        _ => Lsn::ZERO,
    }
}

/// Judges a page that is the `block`th of its relation, counted over all segment files.
///
/// The caller decides what a bad page means: one that is being written at this moment looks like a damaged one.
pub fn verify(page: &[u8], block: u32, checksums_enabled: bool) -> PageVerdict {
    let Ok(page) = <&[u8; PAGE_SIZE]>::try_from(page) else {
        return PageVerdict::BadHeader("not a whole page");
    };
    let Some(header) = Header::read(page) else {
        return PageVerdict::BadHeader("not a whole page");
    };
    // PostgreSQL reads the free space pointer first: in a page in use it is never zero.
    if header.upper == 0 {
        return if page.iter().all(|byte| *byte == 0) {
            PageVerdict::New
        } else {
            PageVerdict::BadHeader("pd_upper is zero in a page that is not all zeros")
        };
    }
    if checksums_enabled {
        let computed = checksum(page, block);
        if computed != header.checksum {
            return PageVerdict::BadChecksum { stored: header.checksum, computed };
        }
    }
    header.fault().map_or(PageVerdict::Valid, PageVerdict::BadHeader)
}

/// `PageHeaderData` without the parts nothing is checked of.
struct Header {
    checksum: u16,
    flags: u16,
    lower: u16,
    upper: u16,
    special: u16,
    size_and_version: u16,
}

impl Header {
    fn read(page: &[u8; PAGE_SIZE]) -> Option<Self> {
        let mut reader = Reader::at(page, 8);
        Some(Self {
            checksum: reader.u16()?,
            flags: reader.u16()?,
            lower: reader.u16()?,
            upper: reader.u16()?,
            special: reader.u16()?,
            size_and_version: reader.u16()?,
        })
    }

    fn fault(&self) -> Option<&'static str> {
        if self.flags & !FLAGS != 0 {
            Some("pd_flags has bits that mean nothing")
        } else if self.lower > self.upper {
            Some("pd_lower is beyond pd_upper")
        } else if self.upper > self.special {
            Some("pd_upper is beyond pd_special")
        } else if usize::from(self.special) > PAGE_SIZE {
            Some("pd_special is beyond the page")
        } else if !self.special.is_multiple_of(8) {
            Some("pd_special is not aligned")
        } else if self.size_and_version != SIZE_AND_VERSION {
            Some("pd_pagesize_version is not 8192 bytes, version 4")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same rule, written as plainly as it can be, to hold against the fast one.
    fn slow_checksum(page: &[u8; PAGE_SIZE], block: u32) -> u16 {
        let mut page = *page;
        page[8..10].fill(0);
        let mut sums = SEEDS;
        for (index, word) in page.chunks(4).chain([&[0u8; 4][..]; 64]).enumerate() {
            let sum = &mut sums[index % LANES];
            let mixed = *sum ^ u32::from_le_bytes(word.try_into().unwrap());
            *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
        }
        ((sums.iter().fold(0, |folded, sum| folded ^ sum) ^ block) % 65535 + 1) as u16
    }

    /// An empty page as `PageInit` makes it, with its checksum.
    fn empty(block: u32) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        for (offset, value) in [(12, 24u16), (14, 8192), (16, 8192), (18, SIZE_AND_VERSION)] {
            page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        }
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    proptest! {
        #[test]
        fn fast_and_slow_checksums_agree(seed: [u8; 32], block: u32) {
            let mut page = [0; PAGE_SIZE];
            for (index, byte) in page.iter_mut().enumerate() {
                *byte = seed[index % 32].wrapping_mul(index as u8 | 1).wrapping_add((index >> 8) as u8);
            }
            prop_assert_eq!(checksum(&page, block), slow_checksum(&page, block));
        }

        #[test]
        fn every_flipped_bit_is_noticed(bit in 0..PAGE_SIZE * 8, block: u32) {
            let mut page = empty(block);
            prop_assert_eq!(verify(&page, block, true), PageVerdict::Valid);
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(verify(&page, block, true), PageVerdict::Valid);
        }

        #[test]
        fn any_bytes_get_a_verdict(bytes in prop::collection::vec(any::<u8>(), 0..64), enabled: bool) {
            prop_assert_eq!(verify(&bytes, 0, enabled), PageVerdict::BadHeader("not a whole page"));
            let mut page = [0; PAGE_SIZE];
            page[..bytes.len()].copy_from_slice(&bytes);
            verify(&page, 7, enabled);
        }
    }

    #[test]
    fn the_block_number_is_part_of_the_checksum() {
        assert!(matches!(verify(&empty(5), 6, true), PageVerdict::BadChecksum { .. }), "a page in another's place");
        assert_eq!(verify(&empty(5), 6, false), PageVerdict::Valid);
    }

    #[test]
    fn headers_that_postgresql_refuses_are_refused() {
        assert_eq!(verify(&[0; PAGE_SIZE], 0, true), PageVerdict::New);
        let mut torn = [0; PAGE_SIZE];
        torn[8191] = 1;
        assert!(matches!(verify(&torn, 0, true), PageVerdict::BadHeader(_)), "a zero header is no new page");
        for (offset, value) in [(10, 8u16), (12, 8193), (14, 8200), (16, 8200), (16, 8191), (18, 0x2003)] {
            let mut page = empty(0);
            page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
            assert!(matches!(verify(&page, 0, false), PageVerdict::BadHeader(_)), "{offset}");
        }
    }

    #[test]
    fn the_position_is_stored_high_half_first() {
        let mut page = [0; PAGE_SIZE];
        page[..8].copy_from_slice(&[0x1A, 0, 0, 0, 0xB8, 0xD2, 0xF3, 0x41]);
        assert_eq!(lsn(&page).to_string(), "1A/41F3D2B8");
    }
}
