//! The page map: which bytes of which file lie in which frame of which pack.
//!
//! A snapshot names one or more map objects; each covers a range of files in the order of their paths. Every file is
//! tiled by runs without a hole, so a byte that is not accounted for is a malformed map and never a silent zero.

use holdfast_types::{EpochId, PackId};

use crate::object::FrameLocation;
use crate::varint::{self, Malformed, Reader, unzigzag, zigzag};

const MAP_VERSION: u64 = 2;
/// Maps of version 1 do not say where a pack's hashes are.
const MAP_VERSION_WITHOUT_HASHES: u64 = 1;

/// A pack that a map refers to: all that is needed to open one of its frames without reading its header first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackRef {
    pub id: PackId,
    pub epoch: EpochId,
    pub salt: [u8; 32],
    /// The frame with the hashes of its blocks, if it has one.
    pub hashes: Option<FrameLocation>,
}

/// A frame that a map refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrameRef {
    /// Index into [`Map::packs`].
    pub pack: u32,
    pub location: FrameLocation,
}

/// Where the bytes of a run come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunSource {
    Zeros,
    /// From byte `at` of the plain bytes of frame `frame` (an index into [`Map::frames`]).
    Frame {
        frame: u32,
        at: u32,
    },
}

/// The next `len` bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub len: u64,
    pub source: RunSource,
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    File { size: u64, runs: Vec<Run> },
    Directory,
    Link { target: Vec<u8> },
}

/// One path of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Raw bytes with `/` between the parts, never absolute and never with `.` or `..`.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: i64,
    pub kind: EntryKind,
}

/// The content of one map object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    pub packs: Vec<PackRef>,
    pub frames: Vec<FrameRef>,
    /// Sorted by path, each once.
    pub entries: Vec<Entry>,
}

/// A path that restoring can join to a folder without leaving it.
pub fn is_safe_path(path: &[u8]) -> bool {
    !path.is_empty() && path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0))
}

/// Links are believed only where PostgreSQL has them: a link anywhere else could lead a restore out of its folder.
pub fn is_tablespace_link(path: &[u8]) -> bool {
    let oid = path.strip_prefix(b"pgdata/pg_tblspc/").unwrap_or_default();
    !oid.is_empty() && oid.len() <= 10 && oid.iter().all(u8::is_ascii_digit)
}

impl Map {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        varint::put(&mut out, MAP_VERSION);
        varint::put(&mut out, self.packs.len() as u64);
        for pack in &self.packs {
            out.extend_from_slice(pack.id.as_bytes());
            out.extend_from_slice(pack.epoch.as_bytes());
            out.extend_from_slice(&pack.salt);
            put_hashes(&mut out, pack.hashes);
        }
        varint::put(&mut out, self.frames.len() as u64);
        let mut last = Previous::default();
        for frame in &self.frames {
            let location = frame.location;
            varint::put(&mut out, zigzag(i64::from(frame.pack) - i64::from(last.pack)));
            varint::put(&mut out, zigzag(i64::from(location.index) - last.index));
            varint::put(&mut out, zigzag(location.offset as i64 - last.offset));
            varint::put(&mut out, u64::from(location.sealed_len));
            varint::put(&mut out, u64::from(location.raw_len));
            out.push(location.codec);
            last = Previous::after(frame);
        }
        varint::put(&mut out, self.entries.len() as u64);
        let mut previous: &[u8] = &[];
        let mut last_frame = 0;
        for entry in &self.entries {
            let shared = entry.path.iter().zip(previous).take_while(|(a, b)| a == b).count();
            varint::put(&mut out, shared as u64);
            varint::put_bytes(&mut out, entry.path.get(shared..).unwrap_or_default());
            varint::put(&mut out, u64::from(entry.mode));
            varint::put(&mut out, zigzag(entry.modified));
            match &entry.kind {
                EntryKind::File { size, runs } => {
                    out.push(0);
                    varint::put(&mut out, *size);
                    varint::put(&mut out, runs.len() as u64);
                    for run in runs {
                        put_run(&mut out, run, &mut last_frame);
                    }
                }
                EntryKind::Directory => out.push(1),
                EntryKind::Link { target } => {
                    out.push(2);
                    varint::put_bytes(&mut out, target);
                }
            }
            previous = &entry.path;
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let has_hashes = match reader.number()? {
            MAP_VERSION => true,
            MAP_VERSION_WITHOUT_HASHES => false,
            _ => return Err(reader.malformed("the map has an unknown version")),
        };
        let mut map = Self::default();
        for _ in 0..reader.count(80)? {
            map.packs.push(PackRef {
                id: PackId::new(reader.array()?),
                epoch: EpochId::new(reader.array()?),
                salt: reader.array()?,
                hashes: if has_hashes { read_hashes(&mut reader)? } else { None },
            });
        }
        let mut last = Previous::default();
        for _ in 0..reader.count(6)? {
            let frame = read_frame(&mut reader, &last, map.packs.len())?;
            last = Previous::after(&frame);
            map.frames.push(frame);
        }
        let mut last_frame = 0;
        for _ in 0..reader.count(5)? {
            let entry = read_entry(&mut reader, &map, &mut last_frame)?;
            map.entries.push(entry);
        }
        reader.end()?;
        Ok(map)
    }
}

/// What the next frame is coded against: the place right behind the one before it.
#[derive(Default)]
struct Previous {
    pack: u32,
    index: i64,
    offset: i64,
}

impl Previous {
    fn after(frame: &FrameRef) -> Self {
        Self {
            pack: frame.pack,
            index: i64::from(frame.location.index) + 1,
            offset: (frame.location.offset + u64::from(frame.location.sealed_len)) as i64,
        }
    }
}

fn put_hashes(out: &mut Vec<u8>, hashes: Option<FrameLocation>) {
    out.push(u8::from(hashes.is_some()));
    if let Some(location) = hashes {
        varint::put(out, u64::from(location.index));
        varint::put(out, location.offset);
        varint::put(out, u64::from(location.sealed_len));
        varint::put(out, u64::from(location.raw_len));
        out.push(location.codec);
    }
}

fn read_hashes(reader: &mut Reader<'_>) -> Result<Option<FrameLocation>, Malformed> {
    match reader.byte()? {
        0 => return Ok(None),
        1 => {}
        _ => return Err(reader.malformed("a pack has hashes of an unknown kind")),
    }
    let location = FrameLocation {
        index: reader.u32()?,
        offset: reader.number()?,
        sealed_len: reader.u32()?,
        raw_len: reader.u32()?,
        codec: reader.byte()?,
    };
    if is_possible(&location) {
        Ok(Some(location))
    } else {
        Err(reader.malformed("a pack's hashes lie outside what is possible"))
    }
}

fn is_possible(location: &FrameLocation) -> bool {
    location.raw_len as usize <= crate::codec::FRAME_BYTES_MAX
        && location.offset >= crate::object::HEADER_BYTES as u64
        && location.offset < 1 << 48
        && location.sealed_len as usize >= crate::object::TAG_BYTES
}

fn read_frame(reader: &mut Reader<'_>, last: &Previous, packs: usize) -> Result<FrameRef, Malformed> {
    let beyond = reader.malformed("a frame lies outside what is possible");
    let pack = i64::from(last.pack).checked_add(unzigzag(reader.number()?)).ok_or(beyond)?;
    let index = last.index.checked_add(unzigzag(reader.number()?)).ok_or(beyond)?;
    let offset = last.offset.checked_add(unzigzag(reader.number()?)).ok_or(beyond)?;
    let frame = FrameRef {
        pack: u32::try_from(pack).map_err(|_| beyond)?,
        location: FrameLocation {
            index: u32::try_from(index).map_err(|_| beyond)?,
            offset: u64::try_from(offset).map_err(|_| beyond)?,
            sealed_len: reader.u32()?,
            raw_len: reader.u32()?,
            codec: reader.byte()?,
        },
    };
    let possible = (frame.pack as usize) < packs && is_possible(&frame.location);
    if possible { Ok(frame) } else { Err(beyond) }
}

fn read_entry(reader: &mut Reader<'_>, map: &Map, last_frame: &mut i64) -> Result<Entry, Malformed> {
    let previous = map.entries.last().map_or(&[][..], |entry| &entry.path);
    let shared = reader.number()? as usize;
    let mut path = previous.get(..shared).ok_or_else(|| reader.malformed("a path shares too much"))?.to_vec();
    path.extend_from_slice(reader.bytes()?);
    if !is_safe_path(&path) {
        return Err(reader.malformed("a path leads out of its folder"));
    }
    if path.as_slice() <= previous {
        return Err(reader.malformed("the paths are not in order"));
    }
    let mode = reader.u32()?;
    let modified = unzigzag(reader.number()?);
    let kind = match reader.byte()? {
        0 => {
            let size = reader.number()?;
            let mut runs = Vec::new();
            let mut covered = 0u64;
            for _ in 0..reader.count(2)? {
                let run = read_run(reader, &map.frames, last_frame)?;
                covered = covered.checked_add(run.len).ok_or_else(|| reader.malformed("a file is too long"))?;
                runs.push(run);
            }
            if covered != size {
                return Err(reader.malformed("the runs of a file do not add up to its size"));
            }
            EntryKind::File { size, runs }
        }
        1 => EntryKind::Directory,
        2 if is_tablespace_link(&path) => EntryKind::Link { target: reader.bytes()?.to_vec() },
        2 => return Err(reader.malformed("a link stands where none may be")),
        _ => return Err(reader.malformed("an entry is of an unknown kind")),
    };
    Ok(Entry { path, mode, modified, kind })
}

// Runs mostly go through the frames one after the other: the distance to the next expected frame is coded, plus one so
// that zero can say "zeros".
fn put_run(out: &mut Vec<u8>, run: &Run, next_frame: &mut i64) {
    match run.source {
        RunSource::Zeros => varint::put(out, 0),
        RunSource::Frame { frame, at } => {
            varint::put(out, zigzag(i64::from(frame) - *next_frame) + 1);
            varint::put(out, u64::from(at));
            *next_frame = i64::from(frame) + 1;
        }
    }
    varint::put(out, run.len);
}

fn read_run(reader: &mut Reader<'_>, frames: &[FrameRef], next_frame: &mut i64) -> Result<Run, Malformed> {
    let outside = reader.malformed("a run lies outside its frame");
    let code = reader.number()?;
    if code == 0 {
        let len = reader.number()?;
        return if len > 0 { Ok(Run { len, source: RunSource::Zeros }) } else { Err(outside) };
    }
    let frame = next_frame.checked_add(unzigzag(code - 1)).ok_or(outside)?;
    let frame = u32::try_from(frame).map_err(|_| outside)?;
    let at = reader.u32()?;
    let len = reader.number()?;
    let raw_len = frames.get(frame as usize).ok_or(outside)?.location.raw_len;
    if len == 0 || len > u64::from(raw_len) || u64::from(at) + len > u64::from(raw_len) {
        return Err(outside);
    }
    *next_frame = i64::from(frame) + 1;
    Ok(Run { len, source: RunSource::Frame { frame, at } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Vec<FrameRef>> {
        let frame = (0u32..3, any::<u32>(), 72u64..1 << 40, 16u32..300_000, 1u32..262_145, 0u8..2);
        proptest::collection::vec(frame, 1..20).prop_map(|frames| {
            let frame = |(pack, index, offset, sealed_len, raw_len, codec)| FrameRef {
                pack,
                location: FrameLocation { index, offset, sealed_len, raw_len, codec },
            };
            frames.into_iter().map(frame).collect()
        })
    }

    fn maps() -> impl Strategy<Value = Map> {
        let paths = proptest::collection::btree_set("[a-z]{1,3}(/[a-z0-9]{1,4}){0,3}", 0..15);
        let runs = proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u32>()), 0..6);
        (frames(), paths, proptest::collection::vec((0u8..3, runs, any::<i64>()), 15)).prop_map(
            |(frames, paths, kinds)| {
                let entries = paths.into_iter().zip(kinds).map(|(path, (kind, runs, modified))| {
                    let kind = match kind {
                        0 => {
                            let runs: Vec<Run> = runs
                                .into_iter()
                                .map(|(index, zeros, at)| {
                                    let frame = index.index(frames.len());
                                    let raw_len = frames[frame].location.raw_len;
                                    let at = at % raw_len;
                                    let source = if zeros {
                                        RunSource::Zeros
                                    } else {
                                        RunSource::Frame { frame: frame as u32, at }
                                    };
                                    Run { len: u64::from(raw_len - at), source }
                                })
                                .collect();
                            EntryKind::File { size: runs.iter().map(|run| run.len).sum(), runs }
                        }
                        1 => EntryKind::Directory,
                        _ => EntryKind::Link { target: b"/mnt/fast".to_vec() },
                    };
                    let path = match kind {
                        EntryKind::Link { .. } => format!("pgdata/pg_tblspc/{}", 16384 + path.len()),
                        _ => path,
                    };
                    Entry { path: path.into_bytes(), mode: 0o600, modified, kind }
                });
                let mut entries: Vec<Entry> = entries.collect();
                entries.sort_by(|a, b| a.path.cmp(&b.path));
                entries.dedup_by(|a, b| a.path == b.path);
                let pack = |n: u8, hashes| PackRef {
                    id: PackId::new([n; 32]),
                    epoch: EpochId::new([n; 16]),
                    salt: [n; 32],
                    hashes,
                };
                let hashes = frames.first().map(|frame| frame.location);
                Map { packs: vec![pack(1, hashes), pack(2, None), pack(3, hashes)], entries, frames }
            },
        )
    }

    proptest! {
        #[test]
        fn maps_round_trip(map in maps()) {
            prop_assert_eq!(Map::decode(&map.encode()), Ok(map));
        }

        #[test]
        fn a_mutated_map_is_refused_or_still_tiles_its_files(map in maps(), at: prop::sample::Index, byte: u8) {
            let mut bytes = map.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(map) = Map::decode(&bytes) {
                for entry in &map.entries {
                    prop_assert!(is_safe_path(&entry.path));
                    if let EntryKind::File { size, runs } = &entry.kind {
                        prop_assert_eq!(*size, runs.iter().map(|run| run.len).sum::<u64>());
                    }
                }
            }
        }

        #[test]
        fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = bytes;
            for version in [MAP_VERSION_WITHOUT_HASHES, MAP_VERSION] {
                bytes.insert(0, version as u8);
                drop(Map::decode(&bytes));
                bytes.remove(0);
            }
        }
    }

    #[test]
    fn paths_that_leave_the_folder_are_refused() {
        for path in ["", "/etc/passwd", "a/../b", "..", "a//b", "a/.", "a/"] {
            assert!(!is_safe_path(path.as_bytes()), "{path}");
        }
        assert!(is_safe_path(b"pgdata/base/5/1259_fsm"));
    }
}
