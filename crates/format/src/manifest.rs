//! The manifest: the object whose existence makes a snapshot exist.
//!
//! Its public part, the [`Summary`], can be read without a key, so that an agent that may only write can still plan;
//! it is authenticated together with the sealed part, the [`Manifest`]. Both are JSON; a reader passes over
//! fields that it does not know, so one that must not be passed over comes with a new version of the container.

use holdfast_types::{Lsn, Micros, PackId, SegmentSize, SnapshotId, SystemId, Timeline};
use serde::{Deserialize, Serialize};

/// How much was read and written again when a snapshot was made. Every snapshot is complete whatever its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Everything was read.
    Full,
    /// What changed since the last full one was read.
    Differential,
    /// What changed since the snapshot before was read.
    Incremental,
}

/// What can be known of a snapshot without a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub id: SnapshotId,
    pub source: String,
    pub kind: SnapshotKind,
    /// The snapshot whose files the unchanged parts were taken from. It is not needed to restore this one, only the
    /// packs that both use are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<SnapshotId>,
    /// As PostgreSQL's `server_version_num`, as in 150018.
    pub server_version: u32,
    pub system_id: SystemId,
    /// The timeline at the start of the backup.
    pub timeline: Timeline,
    /// The log from here ...
    pub start_lsn: Lsn,
    /// ... to here is needed to make the snapshot consistent, and is in the repository.
    pub stop_lsn: Lsn,
    pub segment_size: SegmentSize,
    pub started_at: Micros,
    pub stopped_at: Micros,
    pub from_standby: bool,
    /// Plain bytes of all files.
    pub bytes: u64,
    pub files: u64,
    /// Bytes that were read from the server's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes of packs and maps that this snapshot added to the repository.
    pub stored_bytes: u64,
    pub damaged_pages: u64,
    /// The program that made it.
    pub made_by: String,
}

/// The sealed part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Must equal the public part.
    pub summary: Summary,
    /// In the order of their paths.
    pub maps: Vec<MapRef>,
    /// Every pack that the maps refer to.
    pub packs: Vec<PackSize>,
    /// `backup_label` as the server gave it.
    #[serde(with = "hex")]
    pub backup_label: Vec<u8>,
    #[serde(with = "hex", default, skip_serializing_if = "Vec::is_empty")]
    pub tablespace_map: Vec<u8>,
    /// `global/pg_control` as it was at the end of the backup.
    #[serde(with = "hex")]
    pub pg_control: Vec<u8>,
    pub tablespaces: Vec<Tablespace>,
    /// Operating-system user and group that own the data directory.
    pub owner: Owner,
    pub data_directory: String,
    /// The files outside the data directory that make up its configuration, absolute; their content is in the maps
    /// under `config/`.
    pub config_files: Vec<String>,
    /// The settings that a standby or a recovery needs at least as high as they were.
    pub parameters: Vec<(String, String)>,
    pub damage: Vec<DamagedPage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRef {
    pub id: PackId,
    pub bytes: u64,
    pub entries: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackSize {
    pub id: PackId,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    pub oid: u32,
    pub name: String,
    /// Where its link pointed; relative to the data directory for one made in place.
    pub location: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub user: String,
    pub group: String,
}

/// A page whose content the backup could not vouch for. Its bytes are stored as they were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    /// As in the map, `pgdata/base/5/16384.1`.
    pub path: String,
    /// Counted over all segments of the relation.
    pub block: u32,
    pub reason: String,
    /// `schema.relation`, where the catalogue could be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

/// Byte strings in JSON are lower-case hexadecimal.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |b: u8| (b as char).to_digit(16).filter(|_| !b.is_ascii_uppercase()).map(|d| d as u8);
        let pair = |pair: &[u8]| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        text.as_bytes()
            .chunks(2)
            .map(pair)
            .collect::<Option<_>>()
            .ok_or_else(|| serde::de::Error::custom("expected pairs of lower-case hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_travel_as_hexadecimal_text() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        struct Holder {
            #[serde(with = "hex")]
            bytes: Vec<u8>,
        }
        let holder = Holder { bytes: vec![0, 0xAB, 0xFF] };
        let json = serde_json::to_string(&holder).unwrap();
        assert_eq!(json, r#"{"bytes":"00abff"}"#);
        assert_eq!(serde_json::from_str::<Holder>(&json).unwrap(), holder);
        for bad in [r#"{"bytes":"0"}"#, r#"{"bytes":"zz"}"#, r#"{"bytes":"AB"}"#] {
            assert!(serde_json::from_str::<Holder>(bad).is_err(), "{bad}");
        }
    }
}
