//! When each object was last proved to be as it was written: present, authentic, and decodable.
//!
//! A ledger is an object `proved/ID` that a verification leaves; all of them together are what is known. They are not sealed, and
//! nothing is trusted on their word but the order in which objects are read again, and which snapshots count as verified.
//!
//! *Concurrency.* Any number may be written at once. Whoever merges many into one writes that before it removes them.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use bytes::Bytes;
use holdfast_format::manifest::Manifest;
use holdfast_store::{Created, ObjectName};
use holdfast_types::{Micros, RepositoryId};
use serde::{Deserialize, Serialize};

use crate::{Names, Repository, RepositoryError, random};

/// As many are merged into one.
const MANY: usize = 16;
const HASH: usize = 32;
const ENTRY: usize = 24;

/// What stands for an object's name.
type Id = [u8; 16];

fn id(name: &str) -> Id {
    let hash = blake3::hash(name.as_bytes());
    let mut id = Id::default();
    id.copy_from_slice(&hash.as_bytes()[..16]);
    id
}

/// Who has proved what a ledger says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prover {
    pub host: String,
    pub version: String,
}

/// One object of the ledger, as it is stored: the BLAKE3 hash of the rest, the length of a header (4 bytes, little-endian), the header in
/// JSON, and 24 bytes for each object: the first 16 of the BLAKE3 hash of its name, and microseconds since 1970 (little-endian).
fn encode(by: &Prover, proved: impl Iterator<Item = (Id, Micros)>) -> Result<Vec<u8>, serde_json::Error> {
    let header = serde_json::to_vec(by)?;
    let mut bytes = vec![0; HASH];
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&header);
    for (id, at) in proved {
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(&at.get().to_le_bytes());
    }
    let hash = blake3::hash(&bytes[HASH..]);
    bytes[..HASH].copy_from_slice(hash.as_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<(Prover, Vec<(Id, Micros)>)> {
    let (hash, rest) = bytes.split_at_checked(HASH)?;
    if blake3::hash(rest).as_bytes() != hash {
        return None;
    }
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (header, entries) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let by = serde_json::from_slice(header).ok()?;
    if entries.len() % ENTRY != 0 {
        return None;
    }
    let entry = |entry: &[u8]| {
        let (id, at) = entry.split_first_chunk::<16>()?;
        Some((*id, Micros::new(i64::from_le_bytes(at.try_into().ok()?))))
    };
    Some((by, entries.chunks_exact(ENTRY).filter_map(entry).collect()))
}

/// What is known of all objects.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    proved: HashMap<Id, Micros>,
    /// Where it stands.
    objects: Vec<ObjectName>,
}

impl Ledger {
    pub fn at(&self, name: &ObjectName) -> Option<Micros> {
        self.proved.get(&id(name.as_str())).copied()
    }

    /// Everything that the snapshot needs was proved at some time. Its log is not looked at here.
    pub fn has_proved(&self, manifest: &Manifest) -> bool {
        let packs = manifest.packs.iter().map(|pack| Names::pack(pack.id));
        let mut needed = packs.chain(manifest.maps.iter().map(|map| Names::map(map.id)));
        needed.all(|name| self.at(&name).is_some())
    }

    fn add(&mut self, entries: Vec<(Id, Micros)>, latest: Micros) {
        for (id, at) in entries {
            // Whoever wrote it cannot have proved anything later.
            let at = at.min(latest);
            let known = self.proved.entry(id).or_insert(at);
            *known = at.max(*known);
        }
    }
}

fn micros(at: SystemTime) -> Micros {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Micros::new(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

impl Repository {
    /// What was proved so far. What cannot be read of it is passed over: then it is proved again.
    pub async fn ledger(&self) -> Result<Ledger, RepositoryError> {
        let mut ledger = Ledger::default();
        for listed in self.list(Names::PROVED).await? {
            match self.read(&listed.name).await {
                Ok(bytes) => {
                    let Some((_, entries)) = decode(&bytes) else {
                        tracing::warn!(name = %listed.name, "this ledger cannot be read");
                        continue;
                    };
                    ledger.add(entries, micros(listed.modified));
                }
                // Merged into another since it was listed.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
            ledger.objects.push(listed.name);
        }
        Ok(ledger)
    }

    /// Adds what was proved now to what was known before. `exists`: all objects there are, if that is known.
    pub(crate) async fn note_proved(
        &self,
        ledger: &Ledger,
        by: &Prover,
        proved: &[ObjectName],
        exists: Option<&HashSet<ObjectName>>,
        now: Micros,
    ) -> Result<(), RepositoryError> {
        if proved.is_empty() {
            return Ok(());
        }
        let mut entries: HashMap<Id, Micros> = proved.iter().map(|name| (id(name.as_str()), now)).collect();
        let is_merging = ledger.objects.len() >= MANY;
        if is_merging {
            let known = exists.map(|exists| exists.iter().map(|name| id(name.as_str())).collect::<HashSet<_>>());
            let is_there = |id: &Id| known.as_ref().is_none_or(|known| known.contains(id));
            for (id, at) in ledger.proved.iter().filter(|(id, _)| is_there(id)) {
                entries.entry(*id).or_insert(*at);
            }
        }
        let name = Names::proved(RepositoryId::new(random()));
        let bytes = encode(by, entries.into_iter()).map_err(|error| RepositoryError::content(&name, error))?;
        if self.create(&name, Bytes::from(bytes)).await? == Created::Exists {
            return Err(RepositoryError::Conflict { name: name.to_string() });
        }
        for merged in ledger.objects.iter().filter(|_| is_merging) {
            self.delete(merged).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by() -> Prover {
        Prover { host: "db1".to_owned(), version: "1".to_owned() }
    }

    proptest! {
        #[test]
        fn ledgers_are_read_as_they_were_written(entries in prop::collection::vec((any::<Id>(), any::<i64>()), 0..20)) {
            let entries: Vec<_> = entries.into_iter().map(|(id, at)| (id, Micros::new(at))).collect();
            let bytes = encode(&by(), entries.iter().copied()).unwrap();
            prop_assert_eq!(decode(&bytes).unwrap(), (by(), entries));
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1;
                prop_assert!(decode(&damaged).is_none(), "byte {}", at);
                prop_assert!(decode(&bytes[..at]).is_none());
            }
        }

        #[test]
        fn whatever_lies_there_is_no_ledger(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes).is_none());
        }

        /// With a checksum that matches.
        #[test]
        fn whatever_was_hashed_is_read_without_panic(rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = blake3::hash(&rest).as_bytes().to_vec();
            bytes.extend_from_slice(&rest);
            decode(&bytes);
        }
    }
}
