//! Finding what need not be fetched: blocks that lie at their place already, or in another data directory here.
//!
//! A block is kept if the hash of its bytes is the one that its pack has of it, and copied from the very memory that was
//! hashed: another directory may be that of a running server.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_format::block::{BLOCK_BYTES, BlockHasher, BlockHashes};
use holdfast_format::map::PackRef;
use holdfast_format::object::FrameLocation;
use holdfast_repository::Keyring;
use holdfast_runtime::{Cancel, Progress, read_full_at};
use tokio::runtime::Handle;

use crate::RestoreError;
use crate::lay::{Piece, Target, Work, ZeroRun};

/// Files that a worker keeps open.
const OPEN_FILES: usize = 64;
/// Zeros are looked for, and written, so many bytes at a time.
const ZERO_BYTES: usize = 256 << 10;

/// What is compared, and whether anything is done about it.
#[derive(Clone, Debug)]
pub(crate) struct Comparison {
    pub to: PathBuf,
    /// Whether what lies in `to` counts.
    pub in_place: bool,
    /// Other data directories.
    pub reuse: Vec<PathBuf>,
    /// Otherwise it only counts.
    pub writes: bool,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Bytes that were read and hashed.
    pub compared: u64,
    /// Bytes that are right where they are.
    pub kept: u64,
    /// Bytes that came, or would come, from another directory.
    pub reused: u64,
    /// Bytes that had to become zeros.
    pub zeroed: u64,
    /// Sealed bytes of lists of hashes.
    pub fetched: u64,
    /// Packs that nothing can be compared with: made without hashes, or the list is damaged.
    pub packs_without_hashes: u64,
}

impl Compared {
    fn add(&mut self, other: &Self) {
        let Self { compared, kept, reused, zeroed, fetched, packs_without_hashes } = *other;
        self.compared += compared;
        self.kept += kept;
        self.reused += reused;
        self.zeroed += zeroed;
        self.fetched += fetched;
        self.packs_without_hashes += packs_without_hashes;
    }
}

type Frames = HashMap<FrameLocation, Vec<Piece>>;

enum Task {
    Pack(Box<PackRef>, Frames),
    Zeros(ZeroRun),
}

struct Shared {
    comparison: Comparison,
    /// The targets, and whether each has a file at its place.
    targets: Vec<Target>,
    is_there: Vec<bool>,
    queue: Mutex<VecDeque<Task>>,
    keyring: Keyring,
    progress: Progress,
    cancel: Cancel,
    handle: Handle,
}

/// Takes out of `work` what lies here already.
pub(crate) async fn compare(
    work: &mut Work,
    comparison: Comparison,
    keyring: &Keyring,
    parallel: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<Compared, RestoreError> {
    let targets = std::mem::take(&mut work.targets);
    let is_there: Vec<bool> = targets.iter().map(|target| comparison.in_place && is_plain_file(&target.path)).collect();
    let mut queue = VecDeque::new();
    for reference in &work.order {
        let frames = work.packs.remove(reference).unwrap_or_default();
        queue.push_back(Task::Pack(Box::new(*reference), frames));
    }
    let zeros = work.zeros.iter().filter(|run| is_there.get(run.target as usize) == Some(&true));
    queue.extend(zeros.copied().map(Task::Zeros));
    let shared = Arc::new(Shared {
        comparison,
        targets,
        is_there,
        queue: Mutex::new(queue),
        keyring: keyring.clone(),
        progress: progress.clone(),
        cancel: cancel.clone(),
        handle: Handle::current(),
    });
    let workers: Vec<_> = (0..parallel.max(1))
        .map(|_| {
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || Worker::new(&shared).work())
        })
        .collect();
    let mut compared = Compared::default();
    let mut outcome = Ok(());
    for worker in workers {
        match worker.await.map_err(|_| RestoreError::Worker).flatten() {
            Ok((found, left)) => {
                compared.add(&found);
                work.packs.extend(left);
            }
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome?;
    let shared = Arc::into_inner(shared).ok_or(RestoreError::Worker)?;
    work.targets = shared.targets;
    for (target, is_there) in work.targets.iter_mut().zip(shared.is_there) {
        // Single pages here and there are left to the page cache to put in order.
        target.is_direct &= !is_there && shared.comparison.reuse.is_empty();
    }
    let Work { order, packs, .. } = work;
    order.retain(|reference| packs.get(reference).is_some_and(|frames| !frames.is_empty()));
    work.count_missing();
    Ok(compared)
}

/// One that can be written in place: a second name elsewhere must not see what is written.
pub(crate) fn is_plain_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
}

/// Where bytes may lie already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Here,
    /// In the directory of this number.
    Reuse(usize),
}

struct Worker<'a> {
    shared: &'a Shared,
    open: HashMap<(Place, u32), Option<File>>,
    writing: HashMap<u32, File>,
    plain: Vec<u8>,
    found: Compared,
    left: Vec<(PackRef, Frames)>,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            open: HashMap::new(),
            writing: HashMap::new(),
            plain: Vec::new(),
            found: Compared::default(),
            left: Vec::new(),
        }
    }

    fn work(mut self) -> Result<(Compared, Vec<(PackRef, Frames)>), RestoreError> {
        loop {
            self.shared.cancel.check()?;
            let next = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                None => return Ok((self.found, self.left)),
                Some(Task::Pack(reference, frames)) => {
                    let left = self.compare_pack(&reference, frames)?;
                    self.left.push((*reference, left));
                }
                Some(Task::Zeros(run)) => self.make_zero(run)?,
            }
        }
    }

    /// Gives what is still to be fetched of a pack.
    fn compare_pack(&mut self, reference: &PackRef, frames: Frames) -> Result<Frames, RestoreError> {
        let mut left = Frames::new();
        let bytes = |pieces: &[Piece]| pieces.iter().map(|piece| u64::from(piece.len)).sum::<u64>();
        let all = |frames: &Frames| frames.values().map(|pieces| bytes(pieces)).sum();
        let is_known = |piece: &Piece| self.is_somewhere(piece.target);
        if !frames.values().flatten().any(is_known) {
            self.shared.progress.add(all(&frames));
            return Ok(frames);
        }
        let Some((hasher, hashes)) = self.hashes(reference) else {
            self.found.packs_without_hashes += 1;
            self.shared.progress.add(all(&frames));
            return Ok(frames);
        };
        let mut in_order: Vec<_> = frames.into_iter().collect();
        in_order.sort_by_key(|(location, _)| location.offset);
        for (location, pieces) in in_order {
            self.shared.cancel.check()?;
            self.shared.progress.add(bytes(&pieces));
            let still = self.compare_frame(&location, pieces, &hasher, &hashes)?;
            if !still.is_empty() {
                left.insert(location, still);
            }
        }
        Ok(left)
    }

    fn is_somewhere(&self, target: u32) -> bool {
        !self.shared.comparison.reuse.is_empty() || self.shared.is_there.get(target as usize) == Some(&true)
    }

    /// Without its hashes a pack can be restored all the same. A store that cannot be asked shows when it is fetched.
    fn hashes(&mut self, reference: &PackRef) -> Option<(BlockHasher, BlockHashes)> {
        match self.shared.handle.block_on(self.shared.keyring.block_hashes(reference)) {
            Ok(hashes) => {
                self.found.fetched += reference.hashes.map_or(0, |location| u64::from(location.sealed_len));
                hashes
            }
            Err(error) => {
                tracing::warn!(pack = %reference.id, %error, "could not read the hashes of a pack: all of it is fetched");
                None
            }
        }
    }

    /// Gives the pieces of a frame that lie nowhere here.
    fn compare_frame(
        &mut self,
        location: &FrameLocation,
        mut pieces: Vec<Piece>,
        hasher: &BlockHasher,
        hashes: &BlockHashes,
    ) -> Result<Vec<Piece>, RestoreError> {
        let Some(hashes) = hashes.of(location.index, location.raw_len) else { return Ok(pieces) };
        pieces.sort_by_key(|piece| piece.at_in_frame);
        // Bytes of a frame that stand at two places: one of them is compared, the other fetched.
        let mut twice = Vec::new();
        let mut end = 0;
        pieces.retain(|piece| {
            let is_new = piece.at_in_frame >= end;
            if is_new {
                end = piece.at_in_frame + piece.len;
            } else {
                twice.push(*piece);
            }
            is_new
        });
        self.plain.resize(location.raw_len as usize, 0);
        let places = std::iter::once(Place::Here).chain((0..self.shared.comparison.reuse.len()).map(Place::Reuse));
        for place in places {
            if pieces.is_empty() {
                break;
            }
            let covered = self.read(place, &pieces);
            if covered.is_empty() {
                continue;
            }
            let mut is_equal = Vec::with_capacity(hashes.len());
            for (block, expected) in self.plain.chunks(BLOCK_BYTES).zip(hashes) {
                let start = is_equal.len() * BLOCK_BYTES;
                let is_whole = covers(&covered, start..start + block.len());
                if is_whole {
                    self.found.compared += block.len() as u64;
                }
                is_equal.push(is_whole && hasher.hash(block) == *expected);
            }
            let (equal, different) = split(&pieces, &is_equal);
            for piece in &equal {
                match place {
                    Place::Here => self.found.kept += u64::from(piece.len),
                    Place::Reuse(_) => self.write(piece)?,
                }
            }
            pieces = different;
        }
        pieces.append(&mut twice);
        Ok(pieces)
    }

    /// Reads pieces, in the order of their places in the frame; gives what of the frame is there then. What cannot be
    /// read is as good as absent: it is fetched.
    fn read(&mut self, place: Place, pieces: &[Piece]) -> Vec<Range<usize>> {
        let mut covered: Vec<Range<usize>> = Vec::new();
        for piece in pieces {
            let start = piece.at_in_frame as usize;
            let mut plain = std::mem::take(&mut self.plain);
            let room = plain.get_mut(start..start + piece.len as usize).unwrap_or_default();
            let got = self.file(place, piece.target).map_or(0, |file| read_at(file, room, piece.at_in_file));
            self.plain = plain;
            match covered.last_mut() {
                Some(last) if last.end == start => last.end += got,
                _ if got > 0 => covered.push(start..start + got),
                _ => {}
            }
        }
        covered
    }

    fn file(&mut self, place: Place, target: u32) -> Option<&File> {
        if self.open.len() >= OPEN_FILES && !self.open.contains_key(&(place, target)) {
            self.open.clear();
        }
        let shared = self.shared;
        let open = || {
            let path = &shared.targets.get(target as usize)?.path;
            match place {
                Place::Here if *shared.is_there.get(target as usize)? => File::open(path).ok(),
                Place::Here => None,
                Place::Reuse(number) => {
                    let relative = path.strip_prefix(&shared.comparison.to).ok()?;
                    let path = shared.comparison.reuse.get(number)?.join(relative);
                    // Nothing that could block, such as a pipe.
                    path.metadata().ok().filter(std::fs::Metadata::is_file).and_then(|_| File::open(&path).ok())
                }
            }
        };
        self.open.entry((place, target)).or_insert_with(open).as_ref()
    }

    /// Puts bytes from another directory in their place.
    fn write(&mut self, piece: &Piece) -> Result<(), RestoreError> {
        self.found.reused += u64::from(piece.len);
        if !self.shared.comparison.writes {
            return Ok(());
        }
        let start = piece.at_in_frame as usize;
        let plain = std::mem::take(&mut self.plain);
        let bytes = plain.get(start..start + piece.len as usize).unwrap_or_default();
        let written = self.write_bytes(piece.target, bytes, piece.at_in_file);
        self.plain = plain;
        written
    }

    fn write_bytes(&mut self, index: u32, bytes: &[u8], at: u64) -> Result<(), RestoreError> {
        let target = self.shared.targets.get(index as usize).ok_or(RestoreError::Worker)?;
        let failed = RestoreError::write(&target.path);
        if self.writing.len() >= OPEN_FILES && !self.writing.contains_key(&index) {
            self.writing.clear();
        }
        let file = match self.writing.entry(index) {
            std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => match target.open_buffered() {
                Ok(file) => place.insert(file),
                Err(error) => return Err(failed(error)),
            },
        };
        file.write_all_at(bytes, at).map_err(failed)
    }

    /// Where the snapshot has zeros, an old file may have something else.
    fn make_zero(&mut self, run: ZeroRun) -> Result<(), RestoreError> {
        let zeros = [0; BLOCK_BYTES];
        let mut buffer = vec![0; ZERO_BYTES];
        let mut at = run.at_in_file;
        let end = run.at_in_file + run.len;
        while at < end {
            self.shared.cancel.check()?;
            let want = (end - at).min(ZERO_BYTES as u64) as usize;
            let room = buffer.get_mut(..want).unwrap_or_default();
            let got = self.file(Place::Here, run.target).map_or(0, |file| read_at(file, room, at));
            self.found.compared += got as u64;
            let read = buffer.get(..got).unwrap_or_default();
            for (number, block) in read.chunks(BLOCK_BYTES).enumerate() {
                let len = block.len() as u64;
                if block.iter().all(|byte| *byte == 0) {
                    self.found.kept += len;
                    continue;
                }
                self.found.zeroed += len;
                if self.shared.comparison.writes {
                    let zeros = zeros.get(..block.len()).unwrap_or_default();
                    self.write_bytes(run.target, zeros, at + (number * BLOCK_BYTES) as u64)?;
                }
            }
            self.shared.progress.add(want as u64);
            at += want as u64;
            if got < want {
                // What is missing at the end becomes zeros when the file gets its size. A block that could not be read
                // does not: it is written.
                self.zero_unread(&run, at - (want - got) as u64)?;
                break;
            }
        }
        Ok(())
    }

    fn zero_unread(&mut self, run: &ZeroRun, from: u64) -> Result<(), RestoreError> {
        let path = &self.shared.targets.get(run.target as usize).ok_or(RestoreError::Worker)?.path;
        let len = path.metadata().map_err(RestoreError::write(path))?.len();
        let end = (run.at_in_file + run.len).min(len);
        let zeros = vec![0; ZERO_BYTES];
        let mut at = from;
        while at < end {
            let now = (end - at).min(ZERO_BYTES as u64);
            self.found.zeroed += now;
            if self.shared.comparison.writes {
                self.write_bytes(run.target, zeros.get(..now as usize).unwrap_or_default(), at)?;
            }
            at += now;
        }
        Ok(())
    }
}

/// What cannot be read is not there: it is fetched.
fn read_at(file: &File, room: &mut [u8], at: u64) -> usize {
    read_full_at(file, room, at).unwrap_or_else(|error| {
        tracing::debug!(%error, "a file that could be kept cannot be read");
        0
    })
}

/// Whether one of the ranges holds all of it.
fn covers(ranges: &[Range<usize>], wanted: Range<usize>) -> bool {
    ranges.iter().any(|range| range.start <= wanted.start && wanted.end <= range.end)
}

/// Cuts pieces where blocks begin: those in blocks that are equal, and the others.
fn split(pieces: &[Piece], is_equal: &[bool]) -> (Vec<Piece>, Vec<Piece>) {
    let (mut equal, mut different): (Vec<Piece>, Vec<Piece>) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut done = 0;
        let mut last = None;
        while done < piece.len {
            let at = piece.at_in_frame + done;
            let block = at as usize / BLOCK_BYTES;
            let len = (((block + 1) * BLOCK_BYTES) as u32 - at).min(piece.len - done);
            let is_this = is_equal.get(block).copied().unwrap_or(false);
            let list = if is_this { &mut equal } else { &mut different };
            match list.last_mut() {
                Some(previous) if last == Some(is_this) => previous.len += len,
                _ => list.push(Piece {
                    target: piece.target,
                    at_in_file: piece.at_in_file + u64::from(done),
                    at_in_frame: at,
                    len,
                }),
            }
            last = Some(is_this);
            done += len;
        }
    }
    (equal, different)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces() -> impl Strategy<Value = Vec<Piece>> {
        proptest::collection::vec((0u32..3, 0u32..20_000, 1u32..40_000), 1..6).prop_map(|parts| {
            let mut at_in_frame = 0;
            let piece = |(target, gap, len)| {
                at_in_frame += gap;
                let piece = Piece { target, at_in_file: u64::from(at_in_frame) * 3, at_in_frame, len };
                at_in_frame += len;
                piece
            };
            parts.into_iter().map(piece).collect()
        })
    }

    proptest! {
        #[test]
        fn every_byte_is_in_one_part(pieces in pieces(), is_equal in proptest::collection::vec(any::<bool>(), 0..40)) {
            let (equal, different) = split(&pieces, &is_equal);
            let mut bytes = std::collections::BTreeMap::new();
            for (part, value) in [(&equal, true), (&different, false)] {
                for piece in part {
                    for byte in 0..piece.len {
                        let at = piece.at_in_frame + byte;
                        let place = (piece.target, piece.at_in_file + u64::from(byte));
                        prop_assert!(bytes.insert(at, (place, value)).is_none());
                    }
                }
            }
            for piece in &pieces {
                for byte in 0..piece.len {
                    let at = piece.at_in_frame + byte;
                    let expected = is_equal.get(at as usize / BLOCK_BYTES).copied().unwrap_or(false);
                    let place = (piece.target, piece.at_in_file + u64::from(byte));
                    prop_assert_eq!(bytes.remove(&at), Some((place, expected)));
                }
            }
            prop_assert!(bytes.is_empty());
        }
    }

    #[test]
    fn a_block_is_compared_only_as_a_whole() {
        let ranges = [0..8191, 9000..9010];
        assert!(covers(&ranges, 9000..9010) && covers(&ranges, 0..8191) && covers(&ranges, 5..6));
        assert!(!covers(&ranges, 0..8192) && !covers(&ranges, 8000..9005) && !covers(&[], 0..1));
    }

    #[test]
    fn a_file_with_a_second_name_is_not_written_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other, link) = (folder.path().join("1"), folder.path().join("2"), folder.path().join("3"));
        std::fs::write(&one, b"x").unwrap();
        assert!(is_plain_file(&one));
        std::os::unix::fs::symlink(&one, &link).unwrap();
        assert!(!is_plain_file(&link) && !is_plain_file(folder.path()) && !is_plain_file(&other));
        std::fs::hard_link(&one, &other).unwrap();
        assert!(!is_plain_file(&one));
    }
}
