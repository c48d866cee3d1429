//! Laying files out: frames from packs to where they belong, in parallel.
//!
//! The unit of work is a stretch of one pack. Whatever lies together there is fetched with one read, and each frame is
//! authenticated before a byte of it is written. Files are synced as they become whole, while others are still written.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use holdfast_format::codec::Decompressor;
use holdfast_format::map::{Map, PackRef, Run, RunSource};
use holdfast_format::object::FrameLocation;
use holdfast_repository::{Keyring, PackReader};
use holdfast_runtime::{ALIGNMENT, AlignedBuffer, Cancel, Progress, leave_direct, open_direct};
use tokio::runtime::Handle;

use crate::RestoreError;

/// At most so much is fetched with one read.
const FETCH_BYTES: u64 = 4 << 20;
/// Frames further apart than this are fetched on their own.
const GAP_BYTES: u64 = 64 << 10;
/// Files that a worker keeps open.
const OPEN_FILES: usize = 64;
/// With parts below this size on average, as after many incremental backups, a file is scattered.
const SCATTERED_BYTES: u64 = 128 << 10;
/// Files from this size on are written past the page cache, so many bytes at a time.
const DIRECT_BYTES: usize = 1 << 20;

/// A file to be made.
#[derive(Debug)]
pub(crate) struct Target {
    pub path: PathBuf,
    pub size: u64,
    pub mode: u32,
    pub owner: Option<(u32, u32)>,
    /// Whether it is written past the page cache, if the file system can do that.
    pub is_direct: bool,
    /// Bytes that are still to be written.
    missing: AtomicU64,
}

impl Target {
    pub(crate) fn new(path: PathBuf, size: u64, mode: u32, owner: Option<(u32, u32)>) -> Self {
        Self { path, size, mode, owner, is_direct: size >= DIRECT_BYTES as u64, missing: AtomicU64::new(0) }
    }

    /// Past the page cache, where there is enough to write; says whether.
    fn open(&self) -> io::Result<(File, bool)> {
        if !self.is_direct {
            return Ok((self.open_buffered()?, false));
        }
        let (file, is_direct) = open_direct(&Self::options(), &self.path)?;
        self.set_size(&file)?;
        Ok((file, is_direct))
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
    fn complete(&self) -> io::Result<()> {
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
struct Stretch {
    pack: Arc<PackReader>,
    start: u64,
    end: u64,
    frames: Vec<(FrameLocation, Vec<Piece>)>,
}

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
    pub(crate) fn add(&mut self, map: &Map, mut target: Target, runs: &[Run]) {
        let index = self.targets.len() as u32;
        let mut at_in_file = 0;
        let mut missing = 0;
        let mut parts = 0;
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
                parts += 1;
            }
            at_in_file += run.len;
        }
        // Small parts come in any order: the page cache puts them together, and the disk would wait for each.
        target.is_direct &= missing >= parts * SCATTERED_BYTES;
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

    /// Stretches that begin in the same file follow each other in one group, which one worker takes: two that write the
    /// same file wait for each other in the kernel.
    async fn groups(&mut self, keyring: &Keyring) -> Result<VecDeque<VecDeque<Stretch>>, RestoreError> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for reference in std::mem::take(&mut self.order) {
            let pack = Arc::new(keyring.pack(&reference).await?);
            let mut frames: Vec<_> = self.packs.remove(&reference).unwrap_or_default().into_iter().collect();
            frames.sort_by_key(|(location, _)| location.offset);
            let mut current: Option<Stretch> = None;
            for (location, pieces) in frames {
                let end = location.offset + u64::from(location.sealed_len);
                match &mut current {
                    Some(stretch)
                        if end - stretch.start <= FETCH_BYTES
                            && location.offset.saturating_sub(stretch.end) <= GAP_BYTES =>
                    {
                        stretch.end = end;
                        stretch.frames.push((location, pieces));
                    }
                    _ => {
                        stretches.extend(current.take());
                        let start = location.offset;
                        let frames = vec![(location, pieces)];
                        current = Some(Stretch { pack: Arc::clone(&pack), start, end, frames });
                    }
                }
            }
            stretches.extend(current);
        }
        let mut groups: VecDeque<VecDeque<Stretch>> = VecDeque::new();
        let mut last = None;
        for stretch in stretches {
            let file = stretch.frames.first().and_then(|(_, pieces)| pieces.first()).map(|piece| piece.target);
            match groups.back_mut() {
                Some(group) if file == last => group.push_back(stretch),
                _ => groups.push_back(VecDeque::from([stretch])),
            }
            last = file;
        }
        // The longest first, so that no worker is left with one at the end.
        groups.make_contiguous().sort_by_key(|group| std::cmp::Reverse(group.len()));
        Ok(groups)
    }
}

struct Shared {
    targets: Vec<Target>,
    queue: Mutex<VecDeque<VecDeque<Stretch>>>,
    progress: Progress,
    cancel: Cancel,
    handle: Handle,
}

/// Writes all files and makes them durable. Gives the sealed bytes that were fetched.
pub(crate) async fn lay(
    mut work: Work,
    keyring: &Keyring,
    parallel: usize,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<u64, RestoreError> {
    let groups = work.groups(keyring).await?;
    // Files without a single frame that is to be written: empty ones, those of zeros only, those that are there already.
    let is_whole = |target: &Target| target.missing.load(Ordering::Relaxed) == 0;
    let whole_already: Vec<u32> =
        (0u32..).zip(&work.targets).filter(|(_, target)| is_whole(target)).map(|(index, _)| index).collect();
    let stop = Cancel::new();
    let shared = Arc::new(Shared {
        targets: work.targets,
        queue: Mutex::new(groups),
        progress: progress.clone(),
        cancel: stop.clone(),
        handle: Handle::current(),
    });
    // Whole files on their way to be synced; bounded by what the queue of a syncer may hold.
    let (whole, to_sync) = mpsc::sync_channel::<u32>(1024);
    let syncer = {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_blocking(move || sync_files(&shared, &to_sync))
    };
    let workers: Vec<_> = (0..parallel.max(1))
        .map(|_| {
            let (shared, whole) = (Arc::clone(&shared), whole.clone());
            tokio::task::spawn_blocking(move || {
                let outcome = Worker::new(&shared, whole).work();
                if outcome.is_err() {
                    shared.cancel.cancel();
                }
                outcome
            })
        })
        .collect();
    let without_frames = {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_blocking(move || {
            for index in whole_already {
                shared.cancel.check()?;
                let target = shared.targets.get(index as usize).ok_or(RestoreError::Worker)?;
                target.open_buffered().map_err(RestoreError::write(&target.path))?;
                whole.send(index).map_err(|_| RestoreError::Worker)?;
            }
            Ok(())
        })
    };
    let watcher = {
        let (cancel, stop) = (cancel.clone(), stop.clone());
        tokio::spawn(async move {
            cancel.cancelled().await;
            stop.cancel();
        })
    };
    let mut fetched = 0;
    let mut failures = Vec::new();
    if let Err(error) = without_frames.await.map_err(|_| RestoreError::Worker).flatten() {
        failures.push(error);
    }
    for worker in workers {
        match worker.await.map_err(|_| RestoreError::Worker).flatten() {
            Ok(bytes) => fetched += bytes,
            Err(error) => failures.push(error),
        }
    }
    watcher.abort();
    if let Err(error) = syncer.await.map_err(|_| RestoreError::Worker).flatten() {
        failures.push(error);
    }
    let is_cause = |error: &RestoreError| !matches!(error, RestoreError::Cancelled(_) | RestoreError::Worker);
    failures.sort_by_key(|error| !is_cause(error));
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(fetched),
    }
}

fn sync_files(shared: &Shared, whole: &mpsc::Receiver<u32>) -> Result<(), RestoreError> {
    let mut outcome = Ok(());
    // Goes on receiving after a failure, so that no worker waits for a place in the queue.
    for index in whole {
        if outcome.is_ok()
            && let Some(target) = shared.targets.get(index as usize)
        {
            outcome = target.complete().map_err(RestoreError::write(&target.path));
            if outcome.is_err() {
                shared.cancel.cancel();
            }
        }
    }
    outcome
}

struct Worker<'a> {
    shared: &'a Shared,
    whole: mpsc::SyncSender<u32>,
    open: HashMap<u32, (File, bool)>,
    decompressor: Decompressor,
    plain: Vec<u8>,
    /// What is to be written next past the page cache: whole blocks that follow each other in one file.
    gathered: AlignedBuffer,
    gathering: Option<Gathering>,
    fetched: u64,
}

#[derive(Clone, Copy)]
struct Gathering {
    target: u32,
    at_in_file: u64,
    len: usize,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, whole: mpsc::SyncSender<u32>) -> Self {
        Self {
            shared,
            whole,
            open: HashMap::new(),
            decompressor: Decompressor::new(),
            plain: Vec::new(),
            gathered: AlignedBuffer::new(DIRECT_BYTES),
            gathering: None,
            fetched: 0,
        }
    }

    fn work(mut self) -> Result<u64, RestoreError> {
        loop {
            let next = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(group) = next else { return Ok(self.fetched) };
            for stretch in group {
                self.shared.cancel.check()?;
                self.lay_stretch(&stretch)?;
            }
            self.write_gathered()?;
        }
    }

    fn lay_stretch(&mut self, stretch: &Stretch) -> Result<(), RestoreError> {
        let bytes = self.shared.handle.block_on(stretch.pack.fetch(stretch.start..stretch.end))?;
        self.fetched += bytes.len() as u64;
        let mut sealed: Vec<u8> = bytes.into();
        for (location, pieces) in &stretch.frames {
            let start = (location.offset - stretch.start) as usize;
            let frame = sealed.get_mut(start..start + location.sealed_len as usize).ok_or(RestoreError::Worker)?;
            self.plain.clear();
            stretch.pack.open(*location, frame, &mut self.decompressor, &mut self.plain)?;
            for piece in pieces {
                self.write(*piece)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, piece: Piece) -> Result<(), RestoreError> {
        let start = piece.at_in_frame as usize;
        let len = piece.len as usize;
        let is_direct = self.open(piece.target)?.1;
        let bytes = self.plain.get(start..start + len).ok_or(RestoreError::Worker)?;
        let blocks = ALIGNMENT as u64;
        if is_direct && piece.at_in_file.is_multiple_of(blocks) && len.is_multiple_of(ALIGNMENT) && len <= DIRECT_BYTES
        {
            let follows = self.gathering.is_some_and(|gathering| {
                gathering.target == piece.target
                    && gathering.at_in_file + gathering.len as u64 == piece.at_in_file
                    && gathering.len + len <= DIRECT_BYTES
            });
            if !follows {
                self.write_gathered()?;
            }
            let gathering =
                self.gathering.get_or_insert(Gathering { target: piece.target, at_in_file: piece.at_in_file, len: 0 });
            let bytes = self.plain.get(start..start + len).ok_or(RestoreError::Worker)?;
            self.gathered[gathering.len..gathering.len + len].copy_from_slice(bytes);
            gathering.len += len;
            return if gathering.len == DIRECT_BYTES { self.write_gathered() } else { Ok(()) };
        }
        let target = self.shared.targets.get(piece.target as usize).ok_or(RestoreError::Worker)?;
        if is_direct {
            // The end of a file that is no whole block: through the page cache, as the rest of such a file then is.
            let (file, is_direct) = self.open.get_mut(&piece.target).ok_or(RestoreError::Worker)?;
            leave_direct(file).map_err(RestoreError::write(&target.path))?;
            *is_direct = false;
        }
        let (file, _) = self.open.get(&piece.target).ok_or(RestoreError::Worker)?;
        file.write_all_at(bytes, piece.at_in_file).map_err(RestoreError::write(&target.path))?;
        self.written(piece.target, u64::from(piece.len))
    }

    fn open(&mut self, index: u32) -> Result<&(File, bool), RestoreError> {
        if self.open.len() >= OPEN_FILES && !self.open.contains_key(&index) {
            self.write_gathered()?;
            self.open.clear();
        }
        match self.open.entry(index) {
            std::collections::hash_map::Entry::Occupied(file) => Ok(file.into_mut()),
            std::collections::hash_map::Entry::Vacant(place) => {
                let target = self.shared.targets.get(index as usize).ok_or(RestoreError::Worker)?;
                Ok(place.insert(target.open().map_err(RestoreError::write(&target.path))?))
            }
        }
    }

    fn write_gathered(&mut self) -> Result<(), RestoreError> {
        let Some(Gathering { target: index, at_in_file, len }) = self.gathering.take() else { return Ok(()) };
        let target = self.shared.targets.get(index as usize).ok_or(RestoreError::Worker)?;
        let (file, _) = self.open.get(&index).ok_or(RestoreError::Worker)?;
        let bytes = self.gathered.get(..len).ok_or(RestoreError::Worker)?;
        file.write_all_at(bytes, at_in_file).map_err(RestoreError::write(&target.path))?;
        self.written(index, len as u64)
    }

    /// Hands a file that is whole now to whoever syncs it.
    fn written(&mut self, index: u32, len: u64) -> Result<(), RestoreError> {
        self.shared.progress.add(len);
        let target = self.shared.targets.get(index as usize).ok_or(RestoreError::Worker)?;
        if target.missing.fetch_sub(len, Ordering::AcqRel) == len {
            self.open.remove(&index);
            self.whole.send(index).map_err(|_| RestoreError::Worker)?;
        }
        Ok(())
    }
}
