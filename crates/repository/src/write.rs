//! Writing: an epoch's key, packs, maps, manifests, log.

use std::time::Duration;

use bytes::Bytes;
use holdfast_format::codec::Compressor;
use holdfast_format::manifest::Manifest;
use holdfast_format::map::Map;
use holdfast_format::object::{Header, ObjectWriter};
use holdfast_format::wal::{LogIndex, LogSummary};
use holdfast_format::{EpochKey, ObjectKind};
use holdfast_store::{Created, ObjectName};
use holdfast_types::{EpochId, PackId};

use crate::expiry::{LONGEST_BACKUP, LOOK_LASTS};
use crate::{Names, Repository, RepositoryError, keys};

/// Bytes from the operating system's random source.
///
/// # Panics
/// If there is none: nothing here can go on without it.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has a random source");
    bytes
}

/// One writer's span of work under one data key, which it made and which nobody else needs to know.
#[derive(Clone, Debug)]
pub struct Epoch {
    repository: Repository,
    key: EpochKey,
    began: Duration,
}

impl Repository {
    /// Begins an epoch: from here on its key is in the repository, sealed to the recipients.
    pub async fn begin_epoch(&self) -> Result<Epoch, RepositoryError> {
        let key = EpochKey::new(random());
        let sealed = keys::seal_epoch_key(self.id(), &key, &self.config().recipients)?;
        let name = Names::key(key.id, 1);
        match self.create(&name, Bytes::from(sealed)).await? {
            Created::New => Ok(Epoch { repository: self.clone(), key, began: self.clock.now() }),
            Created::Exists => Err(RepositoryError::Conflict { name: name.to_string() }),
        }
    }
}

/// A sealed segment, piece, partial segment or timeline history, ready to be put wherever its name belongs.
#[derive(Clone, Debug)]
pub struct SealedLog {
    pub name: ObjectName,
    pub bytes: Bytes,
}

impl Repository {
    /// Makes a snapshot exist, if nothing that it refers to is about to be removed. `since`: when the first of that was stored, or
    /// found here.
    pub(crate) async fn publish(
        &self,
        manifest: &Manifest,
        sealed: Bytes,
        since: Duration,
    ) -> Result<Created, RepositoryError> {
        let Some(fan_out) = &self.fan_out else { return self.publish_here(manifest, sealed, since).await };
        fan_out.settle().await;
        let publish = |store| {
            let (here, sealed) = (self.at(store), sealed.clone());
            async move {
                // What the base has brought may be missing where that never arrived.
                here.require(manifest).await?;
                here.publish_here(manifest, sealed, since).await
            }
        };
        fan_out.in_each(publish).await
    }

    async fn publish_here(
        &self,
        manifest: &Manifest,
        sealed: Bytes,
        since: Duration,
    ) -> Result<Created, RepositoryError> {
        let summary = &manifest.summary;
        let name = Names::snapshot(&summary.source, &summary.id);
        let looked = self.clock.now();
        if looked.saturating_sub(since) > LONGEST_BACKUP {
            return Err(RepositoryError::TooLate { id: summary.id.clone() });
        }
        self.refuse_doomed(manifest).await?;
        if self.create(&name, sealed).await? == Created::Exists {
            return Ok(Created::Exists);
        }
        if self.clock.now().saturating_sub(looked) > LOOK_LASTS {
            // The machine slept between the two. What was named since may have gone before the manifest was there.
            let sound = async {
                self.refuse_doomed(manifest).await?;
                self.require(manifest).await
            };
            if let Err(error) = sound.await {
                self.delete(&name).await?;
                return Err(error);
            }
        }
        Ok(Created::New)
    }
}

impl Epoch {
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    fn header(&self, kind: ObjectKind) -> Header {
        Header { kind, repository: self.repository.id(), epoch: self.key.id, salt: random() }
    }

    pub fn id(&self) -> EpochId {
        self.key.id
    }

    /// An empty pack of about `capacity` bytes.
    pub fn pack(&self, capacity: usize) -> ObjectWriter {
        ObjectWriter::new(&self.header(ObjectKind::Pack), &self.key, "", capacity)
    }

    /// Stores a finished pack; returns when it is durable.
    pub async fn put_pack(&self, pack: Bytes, id: PackId) -> Result<(), RepositoryError> {
        // The name is the hash of the content: one that exists is the same.
        self.repository.create(&Names::pack(id), pack).await.map(drop)
    }

    /// Seals and stores a map; gives its name and length.
    pub async fn put_map(&self, map: &Map) -> Result<(PackId, u64), RepositoryError> {
        let plain = map.encode();
        // What a reader would refuse must not become part of a snapshot.
        match Map::decode(&plain) {
            Ok(read) if read == *map => {}
            Ok(_) => return Err(RepositoryError::content(Names::MAPS, "the map would be read as another one")),
            Err(error) => {
                let problem = format!("the map would not be readable: {error}");
                return Err(RepositoryError::content(Names::MAPS, problem));
            }
        }
        let mut writer = ObjectWriter::new(&self.header(ObjectKind::Map), &self.key, "", plain.len() / 2);
        let mut compressor = compressor();
        for part in plain.chunks(1 << 20) {
            writer.push(part, &mut compressor);
        }
        let sealed = writer.finish(b"");
        let len = sealed.bytes.len() as u64;
        self.repository.create(&Names::map(sealed.id), Bytes::from(sealed.bytes)).await?;
        Ok((sealed.id, len))
    }

    /// Makes the snapshot exist, if nothing that it refers to is about to be removed.
    pub async fn commit(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let summary = &manifest.summary;
        let name = Names::snapshot(&summary.source, &summary.id);
        let content = |error| RepositoryError::content(&name, error);
        let public = serde_json::to_vec(summary).map_err(content)?;
        let plain = serde_json::to_vec(manifest).map_err(content)?;
        let header = self.header(ObjectKind::Manifest);
        let mut writer = ObjectWriter::new(&header, &self.key, name.as_str(), plain.len());
        let mut compressor = compressor();
        for part in plain.chunks(1 << 20) {
            writer.push(part, &mut compressor);
        }
        let sealed = Bytes::from(writer.finish(&public).bytes);
        match self.repository.publish(manifest, sealed, self.began).await? {
            Created::New => Ok(()),
            Created::Exists => Err(RepositoryError::Conflict { name: name.to_string() }),
        }
    }

    /// Begins a segment or piece; frames are pushed as log arrives.
    pub fn log_writer(&self, kind: ObjectKind, name: &ObjectName, capacity: usize) -> ObjectWriter {
        ObjectWriter::new(&self.header(kind), &self.key, name.as_str(), capacity)
    }

    /// Ends a segment or piece: adds its index and summary.
    pub fn finish_log(
        mut writer: ObjectWriter,
        name: ObjectName,
        index: &LogIndex,
        summary: &LogSummary,
        compressor: &mut Compressor,
    ) -> Result<SealedLog, RepositoryError> {
        let content = |error| RepositoryError::content(&name, error);
        let index = serde_json::to_vec(index).map_err(content)?;
        let public = serde_json::to_vec(summary).map_err(content)?;
        writer.push(&index, compressor);
        let bytes = Bytes::from(writer.finish(&public).bytes);
        Ok(SealedLog { name, bytes })
    }

    /// Seals a timeline history.
    pub fn seal_history(&self, name: ObjectName, plain: &[u8]) -> Result<SealedLog, RepositoryError> {
        let mut writer = self.log_writer(ObjectKind::TimelineHistory, &name, plain.len());
        writer.push(plain, &mut compressor());
        let digest = holdfast_format::wal::digest(self.repository.id(), plain);
        let public = serde_json::to_vec(&HistorySummary { digest }).map_err(|e| RepositoryError::content(&name, e))?;
        Ok(SealedLog { bytes: Bytes::from(writer.finish(&public).bytes), name })
    }
}

/// The public part of a timeline history.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct HistorySummary {
    pub(crate) digest: String,
}

fn compressor() -> Compressor {
    Compressor::new(3).expect("zstd knows level 3")
}
