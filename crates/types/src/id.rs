use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The text is not an identifier of this kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} (expected {digits} hexadecimal digits)")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    digits: usize,
}

fn parse_hex<const N: usize>(text: &str, kind: &'static str) -> Result<[u8; N], ParseIdError> {
    let error = || ParseIdError { text: text.to_owned(), kind, digits: N * 2 };
    let nibble = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return Err(error());
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0]).ok_or_else(error)? << 4 | nibble(pair[1]).ok_or_else(error)?;
    }
    Ok(bytes)
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; $bytes]);

        impl $name {
            pub const fn new(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text, $kind).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

identifier!(
    /// A repository, drawn at random by `holdfast init`.
    RepositoryId, 16, "repository id"
);
identifier!(
    /// A writer epoch: one random data key, kept in the repository sealed to its recipients.
    EpochId, 16, "epoch id"
);
identifier!(
    /// An object that is named by the BLAKE3 hash of its sealed bytes (a pack or a page map).
    PackId, 32, "pack id"
);

/// A snapshot: the time it was begun and four random bytes, `20261121T101500Z-5f0c2a9b`.
///
/// The time comes first so that names sort as they were made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

impl SnapshotId {
    /// `stamp` is the time as `%Y%m%dT%H%M%SZ`.
    pub fn new(stamp: &str, random: [u8; 4]) -> Result<Self, ParseIdError> {
        format!("{stamp}-{:08x}", u32::from_be_bytes(random)).parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The alphabet is checked place by place because the text becomes part of an object's name.
        let shape = b"00000000T000000Z-xxxxxxxx";
        let fits = text.len() == shape.len()
            && text.bytes().zip(shape).all(|(byte, expected)| match expected {
                b'0' => byte.is_ascii_digit(),
                b'x' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
                _ => byte == *expected,
            });
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseIdError {
                text: text.to_owned(),
                kind: "snapshot id (as in 20261121T101500Z-5f0c2a9b)",
                digits: 8,
            })
        }
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = ParseIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_refuse_other_text() {
        let id = EpochId::new([0xA5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("A5".repeat(16).parse::<EpochId>().is_err(), "upper case is another object name");
        assert!("../../../../etc/passwd0000000000".parse::<EpochId>().is_err());
    }

    #[test]
    fn snapshot_ids_cannot_leave_their_folder() {
        let id = SnapshotId::new("20261121T101500Z", [0x5f, 0x0c, 0x2a, 0x9b]).unwrap();
        assert_eq!(id.as_str(), "20261121T101500Z-5f0c2a9b");
        assert!("20261121T101500Z-../../..".parse::<SnapshotId>().is_err());
        assert!(SnapshotId::new("2026-11-21", [0; 4]).is_err());
    }
}
