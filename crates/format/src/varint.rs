//! Unsigned LEB128 numbers, and the reader over untrusted bytes that every decoder here uses.

/// The bytes end too early, or a number or length in them is impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed data at byte {at}: {what}")]
pub struct Malformed {
    pub at: usize,
    pub what: &'static str,
}

pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Length, then the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Signed numbers with small magnitudes stay short: 0, -1, 1, -2 become 0, 1, 2, 3.
pub const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Reads from the front of a slice and knows how far it is.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub const fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..len).ok_or_else(|| self.malformed("the data ends too early"))?;
        self.at += len;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.malformed("the data ends too early"))
    }

    pub fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16_le(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub fn u32_le(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7F);
            if shift == 63 && part > 1 {
                return Err(self.malformed("a number is larger than 64 bits"));
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(self.malformed("a number is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(self.malformed("a number is larger than 64 bits"))
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.number()?.try_into().map_err(|_| self.malformed("a number is larger than 32 bits"))
    }

    /// A count of items that take at least `item_bytes` each: bounded by what is left, so that a lie about it cannot
    /// make the decoder allocate.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, Malformed> {
        let count = self.number()?;
        if count > (self.remaining() / item_bytes.max(1)) as u64 {
            return Err(self.malformed("a count is larger than the data"));
        }
        Ok(count as usize)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.count(1)?;
        self.take(len)
    }

    pub fn end(&self) -> Result<(), Malformed> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.malformed("there is data after the end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            put(&mut bytes, zigzag(signed));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.number(), Ok(value));
            prop_assert_eq!(reader.number().map(unzigzag), Ok(signed));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn every_number_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.number() {
                let mut again = Vec::new();
                put(&mut again, value);
                prop_assert_eq!(&again, &bytes[..again.len()]);
            }
        }
    }

    #[test]
    fn a_count_cannot_promise_more_than_there_is() {
        let mut reader = Reader::new(&[0xFF, 0xFF, 0xFF, 0x7F, 0, 0]);
        assert!(reader.count(4).is_err());
    }
}
