//! Sealed objects: any bytes, and objects of ours with any of their bytes changed, which never open as something else.
#![no_main]

use holdfast_format::ObjectKind;
use holdfast_format::block::BlockHashes;
use holdfast_format::codec::{Compressor, Decompressor};
use holdfast_format::object::{
    EpochKey, Expected, Header, ObjectReader, ObjectWriter, OpenedObject, Tail, check_hash, public_part,
};
use holdfast_types::RepositoryId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let key = EpochKey::new([4; 32]);
    let expected = Expected { kind: ObjectKind::WalPiece, repository: RepositoryId::new([1; 16]), name: "a/b" };
    if let Ok(header) = Header::decode(bytes) {
        expected.check(&header).ok();
        if let Ok(reader) = ObjectReader::new(&header, &key, "a/b") {
            reader.table(bytes, bytes.len() as u64).ok();
        }
    }
    Tail::decode(bytes).ok();
    public_part(bytes).ok();
    check_hash(bytes).ok();
    BlockHashes::decode(bytes).ok();
    OpenedObject::open(bytes.to_vec(), &expected, &key).ok();

    let Some((&[low, high, flip, cut], content)) = bytes.split_first_chunk() else { return };
    let header = Header { kind: expected.kind, repository: expected.repository, epoch: key.id, salt: [3; 32] };
    let mut writer = ObjectWriter::new(&header, &key, expected.name, 0);
    let mut compressor = Compressor::new(1).unwrap();
    for frame in content.chunks(usize::from(cut) + 1) {
        writer.push(frame, &mut compressor);
    }
    let mut sealed = writer.finish(b"public").bytes;
    let at = usize::from(u16::from_le_bytes([low, high])) % sealed.len();
    sealed[at] ^= flip;
    // As somebody would who can make hashes, and has no key.
    let end = sealed.len() - 32;
    let hash = check_hash_of(&sealed[..end]);
    sealed[end..].copy_from_slice(&hash);
    let changed = flip != 0 && at < end;
    let opened =
        OpenedObject::open(sealed, &expected, &key).and_then(|mut object| object.concat(&mut Decompressor::new()));
    match opened {
        // Magic and version are not part of what is sealed, and are checked by themselves.
        Ok(plain) => assert!(plain == content && (!changed || at < 6), "byte {at} was changed by {flip}"),
        Err(error) => assert!(changed, "{error}"),
    }
});

fn check_hash_of(body: &[u8]) -> [u8; 32] {
    *blake3::hash(body).as_bytes()
}
