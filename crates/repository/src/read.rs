//! Reading: keys, whole objects, and single frames of packs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_format::block::{BlockHasher, BlockHashes};
use holdfast_format::codec::Decompressor;
use holdfast_format::map::{Map, PackRef};
use holdfast_format::object::{Expected, Header, ObjectReader, OpenedObject};
use holdfast_format::{EpochKey, ObjectKind};
use holdfast_store::ObjectName;
use holdfast_types::{EpochId, PackId};
use tokio::sync::Mutex;

use crate::{Identities, Names, Repository, RepositoryError, keys};

/// A repository together with the identities that open it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keyring {
    repository: Repository,
    identities: Arc<Identities>,
    opened: Arc<Mutex<HashMap<EpochId, EpochKey>>>,
}

impl Keyring {
    pub fn new(repository: Repository, identities: Arc<Identities>) -> Self {
        Self { repository, identities, opened: Arc::default() }
    }

    /// The same identities for a repository of the same content.
    #[must_use]
    pub fn of(&self, repository: Repository) -> Self {
        Self { repository, ..self.clone() }
    }

    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The data key of an epoch, from its newest sealing that one of the identities opens.
    pub async fn epoch_key(&self, epoch: EpochId) -> Result<EpochKey, RepositoryError> {
        let mut opened = self.opened.lock().await;
        if let Some(key) = opened.get(&epoch) {
            return Ok(key.clone());
        }
        if self.identities.is_empty() {
            return Err(RepositoryError::NoIdentity);
        }
        let mut failure = RepositoryError::KeyMissing { epoch };
        for listed in self.repository.list(&Names::keys_of(epoch)).await?.into_iter().rev() {
            let sealed = match self.repository.read(&listed.name).await {
                // Dropped since it was listed: there is a newer one.
                Err(error) if error.is_not_found() => continue,
                sealed => sealed?,
            };
            match keys::open_epoch_key(self.repository.id(), epoch, &sealed, &self.identities) {
                Ok(key) => {
                    opened.insert(epoch, key.clone());
                    return Ok(key);
                }
                Err(keys::OpenKeyError::NoMatch) => failure = RepositoryError::WrongKey { epoch },
                Err(keys::OpenKeyError::Damaged(why)) => {
                    failure = RepositoryError::KeyDamaged { name: listed.name.to_string(), why };
                }
            }
        }
        Err(failure)
    }

    /// Whether a key object is whole, and of its epoch.
    pub(crate) fn prove_key(&self, epoch: EpochId, name: &ObjectName, sealed: &[u8]) -> Result<(), RepositoryError> {
        match keys::open_epoch_key(self.repository.id(), epoch, sealed, &self.identities) {
            Ok(_) => Ok(()),
            Err(keys::OpenKeyError::NoMatch) => Err(RepositoryError::WrongKey { epoch }),
            Err(keys::OpenKeyError::Damaged(why)) => Err(RepositoryError::KeyDamaged { name: name.to_string(), why }),
        }
    }

    /// Fetches a whole object and authenticates it as far as its table goes.
    pub async fn open(&self, kind: ObjectKind, name: &ObjectName) -> Result<OpenedObject, RepositoryError> {
        let bytes = self.repository.read(name).await?;
        self.open_bytes(kind, name, bytes).await
    }

    pub(crate) async fn open_bytes(
        &self,
        kind: ObjectKind,
        name: &ObjectName,
        bytes: Bytes,
    ) -> Result<OpenedObject, RepositoryError> {
        let broken = |source| RepositoryError::object(name, source);
        let expected = Expected { kind, repository: self.repository.id(), name: name.as_str() };
        let header = Header::decode(&bytes).map_err(broken)?;
        // Before the key, so that an object of another repository is called that and not "wrong key".
        expected.check(&header).map_err(broken)?;
        holdfast_format::object::check_hash(&bytes).map_err(broken)?;
        let key = self.epoch_key(header.epoch).await?;
        OpenedObject::open(bytes.into(), &expected, &key).map_err(broken)
    }

    pub async fn map(&self, id: PackId) -> Result<Map, RepositoryError> {
        let name = Names::map(id);
        let mut object = self.open(ObjectKind::Map, &name).await?;
        let plain = object.concat(&mut Decompressor::new()).map_err(|source| RepositoryError::object(&name, source))?;
        Map::decode(&plain).map_err(|source| RepositoryError::content(&name, source))
    }

    /// The hashes of a pack's blocks, and what makes the same of other bytes; nothing if the pack has none.
    pub async fn block_hashes(&self, pack: &PackRef) -> Result<Option<(BlockHasher, BlockHashes)>, RepositoryError> {
        let Some(location) = pack.hashes else { return Ok(None) };
        let reader = self.pack(pack).await?;
        let sealed = reader.fetch(location.offset..location.offset + u64::from(location.sealed_len)).await?;
        let mut plain = Vec::new();
        reader.open(location, &mut Vec::from(sealed), &mut Decompressor::new(), &mut plain)?;
        let hashes = BlockHashes::decode(&plain).map_err(|source| RepositoryError::content(reader.name(), source))?;
        Ok(Some((BlockHasher::new(&self.epoch_key(pack.epoch).await?, &pack.salt), hashes)))
    }

    /// Opens frames of a pack by what a map says of it, without reading its header.
    pub async fn pack(&self, pack: &PackRef) -> Result<PackReader, RepositoryError> {
        let name = Names::pack(pack.id);
        let header =
            Header { kind: ObjectKind::Pack, repository: self.repository.id(), epoch: pack.epoch, salt: pack.salt };
        let key = self.epoch_key(pack.epoch).await?;
        let reader = ObjectReader::new(&header, &key, "").map_err(|source| RepositoryError::object(&name, source))?;
        Ok(PackReader { repository: self.repository.clone(), name, reader: Arc::new(reader) })
    }
}

/// Reads frames of one pack.
#[derive(Clone, Debug)]
pub struct PackReader {
    repository: Repository,
    name: ObjectName,
    reader: Arc<ObjectReader>,
}

impl PackReader {
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    pub async fn fetch(&self, range: Range<u64>) -> Result<Bytes, RepositoryError> {
        self.repository.read_range(&self.name, range).await
    }

    /// Appends the plain bytes of a frame, whose sealed bytes were fetched, to `out`.
    pub fn open(
        &self,
        frame: holdfast_format::object::FrameLocation,
        sealed: &mut [u8],
        decompressor: &mut Decompressor,
        out: &mut Vec<u8>,
    ) -> Result<(), RepositoryError> {
        self.reader
            .frame(frame, sealed, decompressor, out)
            .map_err(|source| RepositoryError::object(&self.name, source))
    }
}
