//! What objects that hold write-ahead log say of themselves besides the log's own bytes.
//!
//! A WAL segment is one object whose frames hold the bytes of the segment in order; its last frame is the
//! [`LogIndex`] as JSON. A piece is the same for a part of a segment. The public part is a [`LogSummary`].

use holdfast_types::{Lsn, Micros};
use serde::{Deserialize, Serialize};

/// The public part of a segment or piece.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogSummary {
    pub start: Lsn,
    pub end: Lsn,
    /// Of whole segments: BLAKE3 of the plain bytes, keyed with the repository's id (twice, to fill 32 bytes). It tells
    /// an archiver that pushes a segment again whether it is the same, without a key that opens it. Pieces have none:
    /// a piece can be so small that somebody who sees the store could guess its content and test the guess.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// Which moments and names the log of a segment or piece can be recovered to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIndex {
    pub commits: u64,
    pub aborts: u64,
    /// Some commits in the order of the log: the first, the last, and at least one for each second between.
    pub moments: Vec<Moment>,
    pub restore_points: Vec<RestorePoint>,
    /// `CREATE TABLESPACE` in this log: replay makes the directory where it was, and empties what is in its way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tablespaces: Vec<CreatedTablespace>,
}

/// A tablespace that replay will create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreatedTablespace {
    pub oid: u32,
    pub location: String,
    pub lsn: Lsn,
}

/// A commit or abort record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub at: Micros,
    /// Where the record ends.
    pub lsn: Lsn,
}

/// What `pg_create_restore_point()` left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    pub name: String,
    pub at: Micros,
    pub lsn: Lsn,
}

/// Closer moments than this are left out of the index.
const MOMENT_STEP_MICROS: i64 = 1_000_000;

impl LogIndex {
    pub fn transaction(&mut self, at: Micros, lsn: Lsn, committed: bool) {
        *(if committed { &mut self.commits } else { &mut self.aborts }) += 1;
        let moment = Moment { at, lsn };
        // The last place always holds the newest; it becomes permanent once it is a step away from the one before.
        if let [.., before, last] = self.moments.as_mut_slice()
            && (last.at.get() - before.at.get()).abs() < MOMENT_STEP_MICROS
        {
            *last = moment;
        } else {
            self.moments.push(moment);
        }
    }

    pub fn restore_point(&mut self, name: String, at: Micros, lsn: Lsn) {
        self.restore_points.push(RestorePoint { name, at, lsn });
    }
}

/// The digest of [`LogSummary`].
pub fn digest(repository: holdfast_types::RepositoryId, plain: &[u8]) -> String {
    let mut hasher = digester(repository);
    hasher.update(plain);
    hasher.finalize().to_string()
}

/// The same, fed in parts.
pub fn digester(repository: holdfast_types::RepositoryId) -> blake3::Hasher {
    let mut key = [0; 32];
    key[..16].copy_from_slice(repository.as_bytes());
    key[16..].copy_from_slice(repository.as_bytes());
    blake3::Hasher::new_keyed(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_keeps_first_last_and_one_a_second() {
        let mut index = LogIndex::default();
        for n in 0..10_000 {
            index.transaction(Micros::new(n * 1_000), Lsn::new(n as u64), n % 10 != 0);
        }
        assert_eq!((index.commits, index.aborts), (9_000, 1_000));
        assert_eq!(index.moments.first().map(|m| m.lsn), Some(Lsn::new(0)));
        assert_eq!(index.moments.last().map(|m| m.lsn), Some(Lsn::new(9_999)));
        assert!((10..=12).contains(&index.moments.len()), "{}", index.moments.len());
        assert!(index.moments.windows(2).all(|w| w[1].at.get() - w[0].at.get() <= 2_000_000));
    }
}
