//! Reading little-endian numbers without ever reading past the end.

use holdfast_types::Lsn;

/// Takes values off the front of a slice; `None` once there are too few bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn at(bytes: &'a [u8], offset: usize) -> Self {
        Self(bytes.get(offset..).unwrap_or_default())
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub fn lsn(&mut self) -> Option<Lsn> {
        self.u64().map(Lsn::new)
    }
}

/// A decimal number as PostgreSQL writes it in names: digits only, no sign, no leading zero.
pub(crate) fn decimal(digits: &[u8]) -> Option<u32> {
    match digits {
        [b'0', _, ..] => None,
        _ if digits.iter().all(u8::is_ascii_digit) => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_up_to_the_end_and_no_further() {
        let mut reader = Reader(&[1, 2, 0, 3]);
        assert_eq!((reader.u8(), reader.u16(), reader.u16(), reader.u8()), (Some(1), Some(2), None, Some(3)));
        assert_eq!(Reader::at(&[1], 9).u8(), None);
    }

    #[test]
    fn one_number_has_one_spelling() {
        assert_eq!(decimal(b"4294967295"), Some(u32::MAX));
        assert_eq!(decimal(b"0"), Some(0));
        for digits in ["", "00", "017", "+1", "4294967296", "1 ", "x"] {
            assert_eq!(decimal(digits.as_bytes()), None, "{digits}");
        }
    }
}
