//! The sealed object: the one container that everything in a repository but keys and configuration is kept in.
//!
//! ```text
//! header (72 bytes) | frames | frame table | public part | tail (40 bytes)
//! ```
//!
//! Each frame is compressed and sealed on its own with AES-256-GCM, under a key that is derived for this object alone
//! from the epoch key, a random salt, the header and the object's name. So a frame opens only at its own index, in its
//! own object, under its own name, in its own repository. The last 32 bytes are the BLAKE3 hash of all before them:
//! anybody can tell a damaged object from a whole one without a key.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;
use holdfast_types::{EpochId, PackId, RepositoryId};

use crate::block::{BlockHasher, Gathered};
use crate::codec::{Codec, Compressor, Content, DecodeError, Decompressor, FRAME_BYTES_MAX};
use crate::varint::{self, Malformed, Reader};

/// The version of the container; a reader refuses what is newer.
pub const FORMAT_VERSION: u16 = 1;
pub const HEADER_BYTES: usize = 72;
/// Lengths of frame table and public part, then the hash.
pub const TAIL_BYTES: usize = 40;
pub(crate) const TAG_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"HFST";
/// The frame table is sealed as if it were the frame of this index.
const TABLE_INDEX: u32 = u32::MAX;

/// What an object holds; a byte of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectKind {
    Pack = 1,
    Map = 2,
    Manifest = 3,
    WalSegment = 4,
    WalPiece = 5,
    TimelineHistory = 6,
    ChangeMap = 7,
    Unfinished = 8,
}

impl ObjectKind {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Pack),
            2 => Some(Self::Map),
            3 => Some(Self::Manifest),
            4 => Some(Self::WalSegment),
            5 => Some(Self::WalPiece),
            6 => Some(Self::TimelineHistory),
            7 => Some(Self::ChangeMap),
            8 => Some(Self::Unfinished),
            _ => None,
        }
    }

    /// Packs and maps are named by their hash, which their key therefore cannot depend on.
    const fn is_named_by_hash(self) -> bool {
        matches!(self, Self::Pack | Self::Map)
    }
}

/// The random key of one writer epoch.
#[derive(Clone)]
pub struct EpochKey {
    pub id: EpochId,
    key: [u8; 32],
}

impl EpochKey {
    /// The id is a hash of the key: nobody can offer another key under the id of an epoch.
    pub fn new(key: [u8; 32]) -> Self {
        let hash = blake3::derive_key("holdfast epoch id 1", &key);
        let mut id = [0; 16];
        id.copy_from_slice(&hash[..16]);
        Self { id: EpochId::new(id), key }
    }

    pub const fn secret(&self) -> &[u8; 32] {
        &self.key
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EpochKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The first bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: ObjectKind,
    pub repository: RepositoryId,
    pub epoch: EpochId,
    pub salt: [u8; 32],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..24].copy_from_slice(self.repository.as_bytes());
        bytes[24..40].copy_from_slice(self.epoch.as_bytes());
        bytes[40..72].copy_from_slice(&self.salt);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, OpenError> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != MAGIC {
            return Err(OpenError::NotAnObject);
        }
        let version = reader.u16_le()?;
        if version == 0 {
            return Err(OpenError::NotAnObject);
        }
        if version > FORMAT_VERSION {
            return Err(OpenError::NewerFormat { version });
        }
        let kind = reader.byte()?;
        let kind = ObjectKind::from_byte(kind).ok_or(OpenError::UnknownKind(kind))?;
        if reader.byte()? != 0 {
            return Err(reader.malformed("a reserved byte is set").into());
        }
        Ok(Self {
            kind,
            repository: RepositoryId::new(reader.array()?),
            epoch: EpochId::new(reader.array()?),
            salt: reader.array()?,
        })
    }
}

/// Why an object, or a part of it, was not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("this is no Holdfast object")]
    NotAnObject,
    #[error("the object has format version {version}, newer than this program's {FORMAT_VERSION}")]
    NewerFormat { version: u16 },
    #[error("the object is of the unknown kind {0}")]
    UnknownKind(u8),
    #[error("the object is a {found:?} where a {expected:?} belongs")]
    WrongKind { expected: ObjectKind, found: ObjectKind },
    #[error("the object belongs to repository {found}, not to {expected}")]
    WrongRepository { expected: RepositoryId, found: RepositoryId },
    #[error("the object is sealed with epoch {found}, not {expected}")]
    WrongEpoch { expected: EpochId, found: EpochId },
    #[error("the bytes do not match their BLAKE3 hash: the object is damaged")]
    Damaged,
    #[error("the hash of the object is not its name")]
    WrongName,
    #[error("{part} does not open: it was altered, moved or sealed under another name")]
    NotAuthentic { part: Part },
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("frame {frame} is authentic and yet does not decode")]
    Decode {
        frame: u32,
        #[source]
        source: DecodeError,
    },
}

/// A part of an object, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Frame(u32),
    Table,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(index) => write!(f, "frame {index}"),
            Self::Table => f.write_str("the frame table"),
        }
    }
}

/// The key of one object.
struct ObjectKey(LessSafeKey);

impl ObjectKey {
    fn derive(header: &Header, key: &EpochKey, name: &str) -> Self {
        struct Len;
        impl hkdf::KeyType for Len {
            fn len(&self) -> usize {
                32
            }
        }
        let name = if header.kind.is_named_by_hash() { "" } else { name };
        let header = header.encode();
        let mut derived = [0; 32];
        // Without magic and version: a later version of the container must still open what this one sealed.
        let info = [b"holdfast object 1".as_slice(), &header[6..40], name.as_bytes()];
        hkdf::Salt::new(hkdf::HKDF_SHA256, &header[40..])
            .extract(&key.key)
            .expand(&info, Len)
            .and_then(|okm| okm.fill(&mut derived))
            .expect("32 bytes are within what HKDF can give");
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &derived).expect("AES-256 takes 32 bytes")))
    }

    fn nonce(index: u32) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&index.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal_tail(&self, index: u32, aad: &[u8], buffer: &mut Vec<u8>, start: usize) {
        let tag = self
            .0
            .seal_in_place_separate_tag(Self::nonce(index), Aad::from(aad), &mut buffer[start..])
            .expect("a frame is shorter than GCM's limit");
        buffer.extend_from_slice(tag.as_ref());
    }

    fn open<'a>(&self, index: u32, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        self.0.open_in_place(Self::nonce(index), Aad::from(aad), sealed).ok().map(|plain| &*plain)
    }
}

fn frame_aad(index: u32, raw_len: u32, codec: Codec) -> [u8; 9] {
    let mut aad = [0; 9];
    aad[..4].copy_from_slice(&index.to_le_bytes());
    aad[4..8].copy_from_slice(&raw_len.to_le_bytes());
    aad[8] = codec as u8;
    aad
}

/// The public part is readable without a key and vouched for by the frame table.
fn table_aad(public: &[u8]) -> [u8; 36] {
    let mut aad = [0; 36];
    aad[..4].copy_from_slice(&TABLE_INDEX.to_le_bytes());
    aad[4..].copy_from_slice(blake3::hash(public).as_bytes());
    aad
}

/// Where a frame lies in its object and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameLocation {
    pub index: u32,
    /// From the start of the object.
    pub offset: u64,
    /// With its tag.
    pub sealed_len: u32,
    pub raw_len: u32,
    pub codec: CodecByte,
}

/// A codec as it stands in a table; checked when the frame is opened.
pub type CodecByte = u8;

/// Builds an object in memory, frame by frame.
pub struct ObjectWriter {
    key: ObjectKey,
    buffer: Vec<u8>,
    frames: Vec<FrameLocation>,
    salt: [u8; 32],
    /// Of packs.
    hashes: Option<Gathered>,
}

impl fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWriter")
            .field("bytes", &self.buffer.len())
            .field("frames", &self.frames.len())
            .finish_non_exhaustive()
    }
}

/// A finished object.
#[derive(Debug, Clone)]
pub struct SealedObject {
    pub bytes: Vec<u8>,
    /// The hash of the bytes: the name, where the kind is named by hash.
    pub id: PackId,
    pub salt: [u8; 32],
    pub frames: Vec<FrameLocation>,
    /// Where the hashes of a pack's blocks are: its last frame.
    pub hashes: Option<FrameLocation>,
}

impl ObjectWriter {
    /// `name` is what the object will be called in the repository; kinds that are named by their hash ignore it.
    /// The salt must be random: with the epoch key it decides the object's key, whose nonces count from zero.
    pub fn new(header: &Header, key: &EpochKey, name: &str, capacity: usize) -> Self {
        debug_assert_eq!(header.epoch, key.id);
        let mut buffer = Vec::with_capacity(capacity);
        buffer.extend_from_slice(&header.encode());
        let is_pack = header.kind == ObjectKind::Pack;
        let hashes = is_pack.then(|| Gathered::new(BlockHasher::new(key, &header.salt)));
        Self { key: ObjectKey::derive(header, key, name), buffer, frames: Vec::new(), salt: header.salt, hashes }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.buffer.len() + self.hashes.as_ref().map_or(0, Gathered::len)
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn frame_count(&self) -> usize {
        self.frames.len()
    }

    /// Compresses and seals one more frame.
    ///
    /// # Panics
    /// If `raw` is longer than a frame may be: a caller's mistake.
    pub fn push(&mut self, raw: &[u8], compressor: &mut Compressor) -> FrameLocation {
        self.push_content(raw, Content::Other, compressor)
    }

    /// [`Self::push`] for the pages of relations, which become smaller if that is known.
    pub fn push_pages(&mut self, raw: &[u8], compressor: &mut Compressor) -> FrameLocation {
        self.push_content(raw, Content::Pages, compressor)
    }

    fn push_content(&mut self, raw: &[u8], content: Content, compressor: &mut Compressor) -> FrameLocation {
        assert!(raw.len() <= FRAME_BYTES_MAX, "a frame holds at most {FRAME_BYTES_MAX} bytes");
        let start = self.buffer.len();
        if let Some(hashes) = &mut self.hashes {
            hashes.add(raw);
        }
        let codec = compressor.append(raw, content, &mut self.buffer);
        self.seal_frame(start, raw.len(), codec)
    }

    /// Seals what was appended from `start` on.
    fn seal_frame(&mut self, start: usize, raw_len: usize, codec: Codec) -> FrameLocation {
        let index = self.frames.len() as u32;
        let raw_len = raw_len as u32;
        self.key.seal_tail(index, &frame_aad(index, raw_len, codec), &mut self.buffer, start);
        let frame = FrameLocation {
            index,
            offset: start as u64,
            sealed_len: (self.buffer.len() - start) as u32,
            raw_len,
            codec: codec as u8,
        };
        self.frames.push(frame);
        frame
    }

    /// Adds the hashes of a pack, table, public part and hash.
    pub fn finish(mut self, public: &[u8]) -> SealedObject {
        let hashes = self.hashes.take().and_then(Gathered::finish).map(|encoded| {
            let start = self.buffer.len();
            self.buffer.extend_from_slice(&encoded);
            self.seal_frame(start, encoded.len(), Codec::Stored)
        });
        let start = self.buffer.len();
        varint::put(&mut self.buffer, self.frames.len() as u64);
        for frame in &self.frames {
            varint::put(&mut self.buffer, u64::from(frame.sealed_len));
            varint::put(&mut self.buffer, u64::from(frame.raw_len));
            self.buffer.push(frame.codec);
        }
        self.key.seal_tail(TABLE_INDEX, &table_aad(public), &mut self.buffer, start);
        let table_len = (self.buffer.len() - start) as u32;
        self.buffer.extend_from_slice(public);
        self.buffer.extend_from_slice(&table_len.to_le_bytes());
        self.buffer.extend_from_slice(&(public.len() as u32).to_le_bytes());
        let hash = *blake3::hash(&self.buffer).as_bytes();
        self.buffer.extend_from_slice(&hash);
        SealedObject { bytes: self.buffer, id: PackId::new(hash), salt: self.salt, frames: self.frames, hashes }
    }
}

/// Checks the hash at the end of an object, without a key. Gives the hash.
pub fn check_hash(bytes: &[u8]) -> Result<PackId, OpenError> {
    if bytes.len() < HEADER_BYTES + TAIL_BYTES {
        return Err(OpenError::Damaged);
    }
    let (body, hash) = bytes.split_at(bytes.len() - 32);
    let computed = blake3::hash(body);
    if computed.as_bytes() == hash { Ok(PackId::new(*computed.as_bytes())) } else { Err(OpenError::Damaged) }
}

/// The lengths that the end of an object gives.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    pub table_len: u32,
    pub public_len: u32,
}

impl Tail {
    /// From the last bytes of an object, at least [`TAIL_BYTES`] of them.
    pub fn decode(end: &[u8]) -> Result<Self, OpenError> {
        let start = end.len().checked_sub(TAIL_BYTES).ok_or(OpenError::Damaged)?;
        let mut reader = Reader::new(end.get(start..).unwrap_or_default());
        Ok(Self { table_len: reader.u32_le()?, public_len: reader.u32_le()? })
    }

    /// How many bytes at the end hold table, public part and tail.
    pub const fn len(self) -> u64 {
        self.table_len as u64 + self.public_len as u64 + TAIL_BYTES as u64
    }

    pub const fn is_empty(self) -> bool {
        false
    }
}

/// The public part, from the end of an object. Not authenticated: only opening the table does that.
pub fn public_part(end: &[u8]) -> Result<&[u8], OpenError> {
    let tail = Tail::decode(end)?;
    let stop = end.len() - TAIL_BYTES;
    let start = stop.checked_sub(tail.public_len as usize).ok_or(OpenError::Damaged)?;
    end.get(start..stop).ok_or(OpenError::Damaged)
}

/// Opens the frames of one object.
pub struct ObjectReader {
    key: ObjectKey,
}

impl fmt::Debug for ObjectReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectReader").finish_non_exhaustive()
    }
}

impl ObjectReader {
    pub fn new(header: &Header, key: &EpochKey, name: &str) -> Result<Self, OpenError> {
        if header.epoch != key.id {
            return Err(OpenError::WrongEpoch { expected: key.id, found: header.epoch });
        }
        Ok(Self { key: ObjectKey::derive(header, key, name) })
    }

    /// Decrypts `sealed` in place and appends its plain bytes to `out`.
    pub fn frame(
        &self,
        frame: FrameLocation,
        sealed: &mut [u8],
        decompressor: &mut Decompressor,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let not_authentic = OpenError::NotAuthentic { part: Part::Frame(frame.index) };
        let codec = Codec::from_byte(frame.codec).ok_or_else(|| not_authentic.clone())?;
        let aad = frame_aad(frame.index, frame.raw_len, codec);
        let compressed = self.key.open(frame.index, &aad, sealed).ok_or(not_authentic)?;
        decompressor
            .append(codec, compressed, frame.raw_len as usize, out)
            .map_err(|source| OpenError::Decode { frame: frame.index, source })
    }

    /// The frame table, from the end of an object (table, public part and tail).
    pub fn table(&self, end: &[u8], object_len: u64) -> Result<Vec<FrameLocation>, OpenError> {
        let tail = Tail::decode(end)?;
        let public = public_part(end)?;
        let stop = end.len() - TAIL_BYTES - public.len();
        let start = stop.checked_sub(tail.table_len as usize).ok_or(OpenError::Damaged)?;
        let mut sealed = end.get(start..stop).ok_or(OpenError::Damaged)?.to_vec();
        let plain = self
            .key
            .open(TABLE_INDEX, &table_aad(public), &mut sealed)
            .ok_or(OpenError::NotAuthentic { part: Part::Table })?;
        let frames = decode_table(plain)?;
        let frames_end = frames.last().map_or(HEADER_BYTES as u64, |last| last.offset + u64::from(last.sealed_len));
        if frames_end + tail.len() == object_len {
            Ok(frames)
        } else {
            Err(OpenError::Malformed(Malformed { at: 0, what: "the frames do not fill the object" }))
        }
    }
}

fn decode_table(plain: &[u8]) -> Result<Vec<FrameLocation>, Malformed> {
    let mut reader = Reader::new(plain);
    let count = reader.count(3)?;
    let mut frames = Vec::with_capacity(count);
    let mut offset = HEADER_BYTES as u64;
    for index in 0..count as u32 {
        let (sealed_len, raw_len, codec) = (reader.u32()?, reader.u32()?, reader.byte()?);
        if (sealed_len as usize) < TAG_BYTES || raw_len as usize > FRAME_BYTES_MAX {
            return Err(reader.malformed("a frame has an impossible length"));
        }
        frames.push(FrameLocation { index, offset, sealed_len, raw_len, codec });
        offset += u64::from(sealed_len);
    }
    reader.end()?;
    Ok(frames)
}

/// A whole object in memory, authenticated as far as hash, header and table go.
#[derive(Debug)]
pub struct OpenedObject {
    bytes: Vec<u8>,
    reader: ObjectReader,
    pub frames: Vec<FrameLocation>,
    public_len: usize,
}

/// What the reader of an object expects it to be.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    pub kind: ObjectKind,
    pub repository: RepositoryId,
    pub name: &'a str,
}

impl Expected<'_> {
    pub fn check(&self, header: &Header) -> Result<(), OpenError> {
        if header.repository != self.repository {
            return Err(OpenError::WrongRepository { expected: self.repository, found: header.repository });
        }
        if header.kind != self.kind {
            return Err(OpenError::WrongKind { expected: self.kind, found: header.kind });
        }
        Ok(())
    }
}

impl OpenedObject {
    pub fn open(bytes: Vec<u8>, expected: &Expected<'_>, key: &EpochKey) -> Result<Self, OpenError> {
        let header = Header::decode(&bytes)?;
        expected.check(&header)?;
        let hash = check_hash(&bytes)?;
        if expected.kind.is_named_by_hash() && !expected.name.ends_with(&hash.to_string()) {
            return Err(OpenError::WrongName);
        }
        let reader = ObjectReader::new(&header, key, expected.name)?;
        let frames = reader.table(&bytes, bytes.len() as u64)?;
        let public_len = public_part(&bytes)?.len();
        Ok(Self { bytes, reader, frames, public_len })
    }

    /// Authenticated, because the table is.
    pub fn public(&self) -> &[u8] {
        let stop = self.bytes.len() - TAIL_BYTES;
        self.bytes.get(stop - self.public_len..stop).unwrap_or_default()
    }

    /// Appends the plain bytes of one frame to `out`.
    pub fn frame(&mut self, index: usize, decompressor: &mut Decompressor, out: &mut Vec<u8>) -> Result<(), OpenError> {
        let absent = OpenError::Malformed(Malformed { at: 0, what: "a frame is missing" });
        let frame = *self.frames.get(index).ok_or(absent.clone())?;
        let start = frame.offset as usize;
        // Opening decrypts in place; a copy keeps the object whole for a second look at the same frame.
        let mut sealed = self.bytes.get(start..start + frame.sealed_len as usize).ok_or(absent)?.to_vec();
        self.reader.frame(frame, &mut sealed, decompressor, out)
    }

    /// The plain bytes of all frames, one after the other.
    pub fn concat(&mut self, decompressor: &mut Decompressor) -> Result<Vec<u8>, OpenError> {
        let mut out = Vec::new();
        for index in 0..self.frames.len() {
            self.frame(index, decompressor, &mut out)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: ObjectKind) -> Header {
        Header { kind, repository: RepositoryId::new([1; 16]), epoch: key().id, salt: [3; 32] }
    }

    fn key() -> EpochKey {
        EpochKey::new([4; 32])
    }

    fn expected(name: &str) -> Expected<'_> {
        Expected { kind: ObjectKind::WalPiece, repository: RepositoryId::new([1; 16]), name }
    }

    fn sealed(frames: &[Vec<u8>], name: &str) -> SealedObject {
        let mut writer = ObjectWriter::new(&header(ObjectKind::WalPiece), &key(), name, 0);
        let mut compressor = Compressor::new(1).unwrap();
        for frame in frames {
            writer.push(frame, &mut compressor);
        }
        writer.finish(b"{\"public\":true}")
    }

    proptest! {
        #[test]
        fn frames_come_back(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6)) {
            let object = sealed(&frames, "a/b");
            let mut opened = OpenedObject::open(object.bytes, &expected("a/b"), &key()).unwrap();
            prop_assert_eq!(opened.public(), b"{\"public\":true}");
            prop_assert_eq!(opened.concat(&mut Decompressor::new()).unwrap(), frames.concat());
        }

        #[test]
        fn any_change_is_noticed(at: prop::sample::Index, bit in 0u8..8, rehash: bool) {
            let object = sealed(&[b"hello hello hello".to_vec(), vec![7; 100]], "a/b");
            let mut bytes = object.bytes;
            let limit = if rehash { bytes.len() - 32 } else { bytes.len() };
            bytes[at.index(limit)] ^= 1 << bit;
            if rehash {
                // An attacker can recompute the hash; only the seal stands against that.
                let hash = *blake3::hash(&bytes[..limit]).as_bytes();
                bytes[limit..].copy_from_slice(&hash);
            }
            let outcome = OpenedObject::open(bytes, &expected("a/b"), &key())
                .and_then(|mut opened| opened.concat(&mut Decompressor::new()));
            prop_assert!(outcome.is_err());
        }

        #[test]
        fn garbage_is_refused_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), prefix: bool) {
            if prefix {
                let head = header(ObjectKind::WalPiece).encode();
                let len = bytes.len().min(head.len());
                bytes[..len].copy_from_slice(&head[..len]);
            }
            if bytes.len() > 32 {
                let split = bytes.len() - 32;
                let hash = *blake3::hash(&bytes[..split]).as_bytes();
                bytes[split..].copy_from_slice(&hash);
            }
            prop_assert!(OpenedObject::open(bytes, &expected("a/b"), &key()).is_err());
        }
    }

    #[test]
    fn an_object_opens_under_its_own_name_only() {
        let object = sealed(&[b"hello".to_vec()], "wal/1");
        let error = OpenedObject::open(object.bytes, &expected("wal/2"), &key()).unwrap_err();
        assert_eq!(error, OpenError::NotAuthentic { part: Part::Table });
    }

    #[test]
    fn frames_cannot_be_exchanged() {
        let object = sealed(&[vec![5; 64], vec![6; 64]], "x");
        let reader = ObjectReader::new(&header(ObjectKind::WalPiece), &key(), "x").unwrap();
        let (first, second) = (object.frames[0], object.frames[1]);
        let mut bytes = object.bytes[second.offset as usize..][..second.sealed_len as usize].to_vec();
        let error = reader.frame(first, &mut bytes, &mut Decompressor::new(), &mut Vec::new()).unwrap_err();
        assert_eq!(error, OpenError::NotAuthentic { part: Part::Frame(0) });
    }

    #[test]
    fn another_key_or_a_newer_format_is_told_apart() {
        let object = sealed(&[b"hello".to_vec()], "x");
        let other = EpochKey::new([9; 32]);
        assert!(matches!(
            OpenedObject::open(object.bytes.clone(), &expected("x"), &other),
            Err(OpenError::WrongEpoch { .. })
        ));
        let mut newer = object.bytes;
        newer[4] = 2;
        assert_eq!(
            OpenedObject::open(newer, &expected("x"), &key()).unwrap_err(),
            OpenError::NewerFormat { version: 2 }
        );
    }
}
