//! What is to be laid out, and in which order: windows of large files, one after the other, and small files pack by pack.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_format::map::{Map, PackRef, Run, RunSource};
use holdfast_format::object::FrameLocation;
use holdfast_repository::{Keyring, PackReader};
use holdfast_runtime::open_direct;

use super::region::REGION_BYTES;
use crate::RestoreError;

/// At most so much is fetched with one read.
const FETCH_BYTES: u64 = 4 << 20;
/// Frames further apart than this are fetched on their own.
const GAP_BYTES: u64 = 64 << 10;
/// Files from this size on are written past the page cache.
const DIRECT_BYTES: u64 = 1 << 20;

/// A file to be made.
#[derive(Debug)]
pub(crate) struct Target {
    pub path: PathBuf,
    pub size: u64,
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    /// Whether it is put together in windows and written past the page cache, where that can be.
    pub is_direct: bool,
    /// Bytes that are still to be written.
    pub(super) missing: AtomicU64,
}

impl Target {
    pub(crate) fn new(path: PathBuf, size: u64, mode: u32, owner: Option<(u32, u32)>) -> Self {
        Self { path, size, mode, owner, is_direct: size >= DIRECT_BYTES, missing: AtomicU64::new(0) }
    }

    /// Past the page cache, where the file system can do that.
    pub(super) fn open_direct(&self) -> io::Result<File> {
        let (file, _) = open_direct(&Self::options(), &self.path)?;
        self.set_size(&file)?;
        Ok(file)
    }

    pub(crate) fn open_buffered(&self) -> io::Result<File> {
        let file = Self::options().open(&self.path)?;
        self.set_size(&file)?;
        Ok(file)
    }

    /// Writable for us until it is whole, whatever its mode will be.
    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options
    }

    /// The same for whoever comes first: runs of zeros are holes.
    fn set_size(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.len() == self.size { Ok(()) } else { file.set_len(self.size) }
    }

    /// Makes the finished file durable, with the mode and owner it should have.
    pub(super) fn complete(&self) -> io::Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        file.set_permissions(std::fs::Permissions::from_mode(self.mode))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        file.sync_all()
    }
}

/// Where a part of a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index into the targets.
    pub target: u32,
    pub at_in_file: u64,
    pub at_in_frame: u32,
    pub len: u32,
}

/// Zeros of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZeroRun {
    pub target: u32,
    pub at_in_file: u64,
    pub len: u64,
}

/// Frames of one pack that are fetched together.
#[derive(Debug)]
pub(super) struct Stretch {
    pub pack: Arc<PackReader>,
    pub bytes: Range<u64>,
    pub frames: Vec<(FrameLocation, Vec<Piece>)>,
}

/// What is fetched and opened in one go, at most; one stretch at least. A window that needs more, because what it needs is
/// spread over many frames that hold little else for it, comes in several.
pub(super) const AT_ONCE_BYTES: u64 = 16 << 20;

/// What is put together in memory before it is written, or as much of that as is fetched in one go.
#[derive(Debug)]
pub(super) struct Window {
    /// The file and where the window begins in it; none for small files, which are written as their bytes come.
    pub place: Option<(u32, u64)>,
    pub stretches: Vec<Stretch>,
}

/// Windows of one file, or small files, which one worker takes in this order: two that write the same file wait for each
/// other in the kernel.
pub(super) type Group = VecDeque<Window>;

/// Everything that is to be done.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub targets: Vec<Target>,
    pub packs: HashMap<PackRef, HashMap<FrameLocation, Vec<Piece>>>,
    /// In the order in which they were first needed.
    pub order: Vec<PackRef>,
    /// Nothing to do in a new file.
    pub zeros: Vec<ZeroRun>,
}

impl Work {
    /// Adds a file of `map`.
    pub(crate) fn add(&mut self, map: &Map, target: Target, runs: &[Run]) {
        let index = self.targets.len() as u32;
        let mut at_in_file = 0;
        let mut missing = 0;
        for run in runs {
            if run.source == RunSource::Zeros {
                self.zeros.push(ZeroRun { target: index, at_in_file, len: run.len });
            }
            if let RunSource::Frame { frame, at } = run.source
                && let Some(frame) = map.frames.get(frame as usize)
                && let Some(pack) = map.packs.get(frame.pack as usize)
            {
                let frames = self.packs.entry(*pack).or_insert_with(|| {
                    self.order.push(*pack);
                    HashMap::new()
                });
                let piece = Piece { target: index, at_in_file, at_in_frame: at, len: run.len as u32 };
                frames.entry(frame.location).or_default().push(piece);
                missing += run.len;
            }
            at_in_file += run.len;
        }
        target.missing.store(missing, Ordering::Relaxed);
        self.targets.push(target);
    }

    /// What is left, after some of it turned out to be there already.
    pub(crate) fn count_missing(&mut self) {
        for target in &mut self.targets {
            *target.missing.get_mut() = 0;
        }
        for piece in self.packs.values().flat_map(HashMap::values).flatten() {
            if let Some(target) = self.targets.get_mut(piece.target as usize) {
                *target.missing.get_mut() += u64::from(piece.len);
            }
        }
    }

    /// Bytes to write.
    pub(crate) fn missing(&self) -> u64 {
        self.targets.iter().map(|target| target.missing.load(Ordering::Relaxed)).sum()
    }

    /// Sealed bytes to fetch for them, without what lies between.
    pub(crate) fn sealed(&self) -> u64 {
        self.packs.values().flat_map(HashMap::keys).map(|location| u64::from(location.sealed_len)).sum()
    }

    pub(super) async fn groups(&mut self, keyring: &Keyring) -> Result<VecDeque<Group>, RestoreError> {
        // By file and window: a frame is of the first window that it has anything for.
        let mut windows: BTreeMap<(u32, u64), Vec<Stretch>> = BTreeMap::new();
        let mut small: Vec<Stretch> = Vec::new();
        for reference in std::mem::take(&mut self.order) {
            let pack = Arc::new(keyring.pack(&reference).await?);
            let mut frames: Vec<_> = self.packs.remove(&reference).unwrap_or_default().into_iter().collect();
            frames.sort_by_key(|(location, _)| location.offset);
            for frame in frames {
                let stretches = match self.window_of(&frame.1) {
                    Some(window) => windows.entry(window).or_default(),
                    None => &mut small,
                };
                add_frame(stretches, &pack, frame);
            }
        }
        let mut groups: VecDeque<Group> = VecDeque::new();
        let mut last = None;
        for ((target, window), stretches) in windows {
            let place = Some((target, window * REGION_BYTES as u64));
            let windows = in_turns(stretches).map(|stretches| Window { place, stretches });
            match groups.back_mut() {
                Some(group) if last == Some(target) => group.extend(windows),
                _ => groups.push_back(windows.collect()),
            }
            last = Some(target);
        }
        let mut last = None;
        for stretch in small {
            let file = stretch.frames.first().and_then(|(_, pieces)| pieces.first()).map(|piece| piece.target);
            let window = Window { place: None, stretches: vec![stretch] };
            match groups.back_mut() {
                Some(group) if file == last => group.push_back(window),
                _ => groups.push_back(VecDeque::from([window])),
            }
            last = file;
        }
        // The longest first, so that no worker is left with one at the end.
        let stretches = |group: &Group| group.iter().map(|window| window.stretches.len()).sum::<usize>();
        groups.make_contiguous().sort_by_key(|group| std::cmp::Reverse(stretches(group)));
        Ok(groups)
    }

    fn window_of(&self, pieces: &[Piece]) -> Option<(u32, u64)> {
        let is_large = |piece: &&Piece| self.targets.get(piece.target as usize).is_some_and(|target| target.is_direct);
        let first = pieces.iter().filter(is_large).map(|piece| (piece.target, piece.at_in_file)).min();
        first.map(|(target, at)| (target, at / REGION_BYTES as u64))
    }
}

/// Cut into what is fetched in one go.
fn in_turns(stretches: Vec<Stretch>) -> impl Iterator<Item = Vec<Stretch>> {
    let mut stretches = stretches.into_iter().peekable();
    std::iter::from_fn(move || {
        let first = stretches.next()?;
        let size = |stretch: &Stretch| stretch.bytes.end - stretch.bytes.start;
        let mut bytes = size(&first);
        let mut turn = vec![first];
        while let Some(next) = stretches.next_if(|next| bytes + size(next) <= AT_ONCE_BYTES) {
            bytes += size(&next);
            turn.push(next);
        }
        Some(turn)
    })
}

/// In the last stretch, if it is not too far from that.
fn add_frame(stretches: &mut Vec<Stretch>, pack: &Arc<PackReader>, frame: (FrameLocation, Vec<Piece>)) {
    let location = frame.0;
    let end = location.offset + u64::from(location.sealed_len);
    match stretches.last_mut() {
        Some(Stretch { pack: same, bytes, frames })
            if Arc::ptr_eq(same, pack)
                && end - bytes.start <= FETCH_BYTES
                && location.offset.saturating_sub(bytes.end) <= GAP_BYTES =>
        {
            bytes.end = end;
            frames.push(frame);
        }
        _ => stretches.push(Stretch { pack: Arc::clone(pack), bytes: location.offset..end, frames: vec![frame] }),
    }
}
