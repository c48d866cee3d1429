//! Reading files, and packing them into frames.
//!
//! Each worker thread takes the next file, reads it in frames, checks its pages, compresses and seals, and hands full
//! packs to the uploader. Nothing is shared between workers but the queue.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_format::codec::{Compressor, Content};
use holdfast_format::manifest::PackSize;
use holdfast_format::map::{Map, PackRef, Run, RunSource};
use holdfast_format::object::{FrameLocation, ObjectWriter};
use holdfast_pgformat::page::PAGE_SIZE;
use holdfast_repository::Epoch;
use holdfast_runtime::{ALIGNMENT, AlignedBuffer, Cancel, Pace, Progress, RateLimit, open_direct, read_full_at};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tokio::sync::mpsc;

use crate::BackupError;
use crate::assemble;
use crate::base::{Base, BaseFrame};
use crate::pages::{self, Suspect};
use crate::scan::FileTask;
use crate::select::Reading;

/// Plain bytes of a frame: decided by measurement, see `docs/decisions/0003-frames-and-packs.md`.
pub(crate) const FRAME_BYTES: usize = 256 << 10;
/// How often a read that ends before the file does is made again.
const SHORT_READS: u32 = 3;
/// Read at once: without the page cache nobody reads ahead for us.
const READ_BYTES: usize = 4 * FRAME_BYTES;
/// The same while the backup yields: a commit waits behind what the disk does, and behind what the processor does with it
/// (decision 0012).
const YIELDING_READ_BYTES: usize = FRAME_BYTES;
/// Relations from this size on are read past the page cache.
const DIRECT_BYTES: u64 = 1 << 20;
/// Ranges of changed pages that the kernel is told of in advance.
const READ_AHEAD: usize = 32;
/// Sealed bytes at which a pack is complete.
const PACK_BYTES: usize = 32 << 20;

/// After so many packs, or so much time, what was read is offered as a part.
const PACKS_OF_PART: usize = 4;
const PART_INTERVAL: Duration = Duration::from_secs(30);

/// What workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub queue: Mutex<VecDeque<FileTask>>,
    pub epoch: Epoch,
    /// Whether what is read is offered to a later backup while this one is not done.
    pub offers_parts: bool,
    /// What unchanged pages are taken from.
    pub base: Option<Arc<Base>>,
    pub level: i32,
    /// Pages of a segment file, if the pages are to be checked.
    pub check_pages: Option<u32>,
    pub rate_limit: Option<RateLimit>,
    pub iops_limit: Option<RateLimit>,
    pub pace: Arc<Pace>,
    pub progress: Progress,
    pub cancel: Cancel,
}

/// What goes to the repository, in this order.
#[derive(Debug)]
pub(crate) enum Sealed {
    Pack {
        bytes: Bytes,
        id: holdfast_types::PackId,
    },
    /// Files that were read whole, all in packs that went before.
    Part {
        map: Map,
        packs: Vec<PackSize>,
    },
}

/// A file that was read. Its runs count frames over all packs of its worker; from [`BASE_FRAME`] on they are those that
/// the worker borrowed from the base.
#[derive(Clone, Debug)]
pub(crate) struct ReadFile {
    pub task: FileTask,
    pub size: u64,
    pub runs: Vec<Run>,
    pub suspects: Vec<Suspect>,
    /// Where in a frame that it shares with other files its part begins.
    bundled_at: Option<u32>,
}

impl ReadFile {
    fn new(task: FileTask) -> Self {
        Self { task, size: 0, runs: Vec::new(), suspects: Vec::new(), bundled_at: None }
    }

    fn push(&mut self, run: Run) {
        self.size += run.len;
        match (self.runs.last_mut(), run.source) {
            (Some(Run { len, source: RunSource::Zeros }), RunSource::Zeros) => *len += run.len,
            (
                Some(Run { len, source: RunSource::Frame { frame, at } }),
                RunSource::Frame { frame: next, at: next_at },
            ) if *frame == next && u64::from(*at) + *len == u64::from(next_at) => {
                *len += run.len;
            }
            _ => self.runs.push(run),
        }
    }

    /// What was waiting for a frame is now in this one, from `start` on.
    fn resolve(&mut self, number: u32, start: u32) {
        for run in &mut self.runs {
            if let RunSource::Frame { frame, at } = &mut run.source
                && *frame == BUNDLED
            {
                *frame = number;
                *at += start;
            }
        }
    }
}

/// Numbers from here on count [`Output::borrowed`].
pub(crate) const BASE_FRAME: u32 = 1 << 30;

/// All that one worker did.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub files: Vec<ReadFile>,
    pub packs: Vec<(PackRef, u64)>,
    /// The pack (an index into `packs`) and place of each frame.
    pub frames: Vec<(u32, FrameLocation)>,
    /// Frames of the base that its files use.
    pub borrowed: Vec<BaseFrame>,
}

struct Worker {
    shared: Arc<Shared>,
    sealed: mpsc::Sender<Sealed>,
    compressor: Compressor,
    pack: Option<ObjectWriter>,
    output: Output,
    /// How many of the output's files and packs were offered as parts, and when the last was.
    offered: (usize, usize, Instant),
    /// Relations share frames with relations only, so that pages stay where the codec looks for them.
    pages: Bundle,
    others: Bundle,
    /// Changed pages of one file on their way into a frame.
    gathered: Vec<u8>,
    /// Since when it has worked without a rest.
    working_since: Instant,
}

/// Small files on their way into a common frame.
#[derive(Default)]
struct Bundle {
    plain: Vec<u8>,
    files: Vec<ReadFile>,
}

/// Works until the queue is empty.
pub(crate) fn work(shared: Arc<Shared>, sealed: mpsc::Sender<Sealed>) -> Result<Output, BackupError> {
    let compressor = Compressor::new(shared.level)?;
    let mut worker = Worker {
        shared,
        sealed,
        compressor,
        pack: None,
        output: Output::default(),
        offered: (0, 0, Instant::now()),
        pages: Bundle::default(),
        others: Bundle::default(),
        gathered: Vec::new(),
        working_since: Instant::now(),
    };
    let mut buffer = AlignedBuffer::new(READ_BYTES);
    loop {
        let next = worker.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(task) = next else { break };
        worker.shared.cancel.check()?;
        worker.read_file(task, &mut buffer)?;
    }
    worker.finish()
}

impl Worker {
    fn read_file(&mut self, mut task: FileTask, buffer: &mut [u8]) -> Result<(), BackupError> {
        let reading = std::mem::replace(&mut task.reading, Reading::Whole);
        let to_read = match &reading {
            Reading::Whole => task.size,
            Reading::Pages(ranges) => ranges.iter().map(|range| range.len() as u64 * PAGE_SIZE as u64).sum(),
        };
        if reading == Reading::Pages(Vec::new()) {
            return self.keep_file(task);
        }
        let file = match open(&task, &reading) {
            // A relation that was dropped since the directory was listed: replay drops it too.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && (may_vanish(&task) || is_database_dropped(&task)) =>
            {
                self.shared.progress.add(to_read);
                return Ok(());
            }
            file => file.map_err(failed(&task.path))?,
        };
        let mut read = ReadFile::new(task);
        match reading {
            Reading::Whole => self.read_whole(&file, &mut read, buffer)?,
            Reading::Pages(ranges) => self.read_pages(&file, &mut read, &ranges, buffer)?,
        }
        self.complete(read);
        Ok(())
    }

    /// Nothing of the file changed.
    fn keep_file(&mut self, task: FileTask) -> Result<(), BackupError> {
        let base = self.shared.base.clone().ok_or(BackupError::Worker)?;
        let (_, runs, map) = base.file(&task.name).ok_or(BackupError::Worker)?;
        let size = task.size;
        let mut read = ReadFile::new(task);
        self.borrow(&mut read, &mut Unchanged { runs, at: 0 }, size, map)?;
        self.complete(read);
        Ok(())
    }

    fn read_whole(&mut self, file: &File, read: &mut ReadFile, buffer: &mut [u8]) -> Result<(), BackupError> {
        let size = read.task.size;
        while read.size < size {
            let want = (size - read.size).min(self.at_once()) as usize;
            let got = self.read(file, read, read.size, want, buffer)?;
            for frame in buffer.get_mut(..got).unwrap_or_default().chunks_mut(FRAME_BYTES) {
                self.check_pages(read, frame, read.size)?;
                self.store(read, frame)?;
                self.shared.progress.add(frame.len() as u64);
            }
            if got < want {
                break;
            }
        }
        Ok(())
    }

    /// Reads some pages of a file, and takes all others from the base.
    fn read_pages(
        &mut self,
        file: &File,
        read: &mut ReadFile,
        ranges: &[Range<u32>],
        buffer: &mut [u8],
    ) -> Result<(), BackupError> {
        let base = self.shared.base.clone().ok_or(BackupError::Worker)?;
        let (_, runs, map) = base.file(&read.task.name).ok_or(BackupError::Worker)?;
        let mut before = Unchanged { runs, at: 0 };
        let bytes = |page: u32| u64::from(page) * PAGE_SIZE as u64;
        let mut announced = 0;
        'ranges: for (number, range) in ranges.iter().enumerate() {
            // Several reads are under way at once, though they are asked for one after the other.
            for ahead in ranges.get(announced..(number + READ_AHEAD).min(ranges.len())).unwrap_or_default() {
                announced += 1;
                let (start, len) = (bytes(ahead.start), bytes(ahead.end - ahead.start));
                advise(file, start, len, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
            }
            self.borrow(read, &mut before, bytes(range.start), map)?;
            before.skip_bytes(bytes(range.end - range.start));
            while read.size < bytes(range.end) {
                let want = (bytes(range.end) - read.size).min(self.at_once()) as usize;
                let got = self.read(file, read, read.size, want, buffer)?;
                for part in buffer.get_mut(..got).unwrap_or_default().chunks_mut(FRAME_BYTES) {
                    self.check_pages(read, part, read.size)?;
                    self.gather(read, part)?;
                    self.shared.progress.add(part.len() as u64);
                }
                if got < want {
                    break 'ranges;
                }
            }
        }
        let is_cut = ranges.last().is_some_and(|last| read.size < bytes(last.end));
        if !is_cut {
            self.borrow(read, &mut before, read.task.size, map)?;
        }
        self.flush_gathered(read)
    }

    fn at_once(&self) -> u64 {
        if self.shared.pace.get() < 1.0 { YIELDING_READ_BYTES as u64 } else { READ_BYTES as u64 }
    }

    fn read(
        &mut self,
        file: &File,
        read: &ReadFile,
        at: u64,
        want: usize,
        buffer: &mut [u8],
    ) -> Result<usize, BackupError> {
        self.shared.cancel.check()?;
        self.shared.pace.rest(self.working_since.elapsed(), &self.shared.cancel)?;
        if let Some(limit) = &self.shared.iops_limit {
            limit.wait(1);
        }
        if let Some(limit) = &self.shared.rate_limit {
            limit.wait(want as u64);
        }
        self.working_since = Instant::now();
        // Direct I/O reads whole blocks only: asked for in full, and what is beyond the size is not taken.
        let ask = want.next_multiple_of(ALIGNMENT).min(buffer.len());
        let room = buffer.get_mut(..ask).unwrap_or_default();
        let mut got = 0;
        for _ in 0..SHORT_READS {
            got = read_full_at(file, room, at).map_err(failed(&read.task.path))?.min(want);
            let end = file.metadata().map_err(failed(&read.task.path))?.len();
            // A file that ends there was cut since it was listed, and the log does the same again. It may have grown
            // between the two looks; what is read short again and again would be missing from the snapshot.
            if got == want || end <= at + got as u64 {
                return Ok(got);
            }
        }
        let short = format!("only {got} of {want} bytes at {at} could be read, and the file is longer");
        Err(failed(&read.task.path)(io::Error::new(io::ErrorKind::UnexpectedEof, short)))
    }

    /// Takes the base's bytes up to `end`.
    fn borrow(
        &mut self,
        read: &mut ReadFile,
        before: &mut Unchanged<'_>,
        end: u64,
        map: u32,
    ) -> Result<(), BackupError> {
        while read.size < end {
            let mut run = before.next(end - read.size).ok_or(BackupError::Worker)?;
            if let RunSource::Frame { frame, .. } = &mut run.source {
                let borrowed = &mut self.output.borrowed;
                if borrowed.last() != Some(&(map, *frame)) {
                    borrowed.push((map, *frame));
                }
                *frame = BASE_FRAME + borrowed.len() as u32 - 1;
            }
            read.push(run);
        }
        Ok(())
    }

    /// Adds changed pages.
    fn gather(&mut self, read: &mut ReadFile, part: &[u8]) -> Result<(), BackupError> {
        let len = part.len() as u64;
        if is_zero(part) {
            read.push(Run { len, source: RunSource::Zeros });
            return Ok(());
        }
        if self.gathered.len() + part.len() > FRAME_BYTES {
            self.flush_frame(read)?;
        }
        let at = self.gathered.len() as u32;
        self.gathered.extend_from_slice(part);
        read.push(Run { len, source: RunSource::Frame { frame: BUNDLED, at } });
        Ok(())
    }

    fn flush_frame(&mut self, read: &mut ReadFile) -> Result<(), BackupError> {
        let plain = std::mem::take(&mut self.gathered);
        let frame = self.push_frame(&plain, content(&read.task))?;
        read.resolve(frame, 0);
        self.gathered = plain;
        self.gathered.clear();
        Ok(())
    }

    /// The last of a file's changed pages; few of them share a frame with those of other files.
    fn flush_gathered(&mut self, read: &mut ReadFile) -> Result<(), BackupError> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        if self.gathered.len() >= FRAME_BYTES / 2 {
            return self.flush_frame(read);
        }
        let plain = std::mem::take(&mut self.gathered);
        self.put_in_bundle(read, &plain)?;
        self.gathered = plain;
        self.gathered.clear();
        Ok(())
    }

    fn put_in_bundle(&mut self, read: &mut ReadFile, part: &[u8]) -> Result<(), BackupError> {
        let content = content(&read.task);
        if self.bundle(content).plain.len() + part.len() > FRAME_BYTES {
            self.flush_bundle(content)?;
        }
        let bundle = self.bundle(content);
        read.bundled_at = Some(bundle.plain.len() as u32);
        bundle.plain.extend_from_slice(part);
        Ok(())
    }

    fn check_pages(&self, read: &mut ReadFile, part: &mut [u8], at: u64) -> Result<(), BackupError> {
        let (Some(pages_per_file), Some(relation)) = (self.shared.check_pages, read.task.relation) else {
            return Ok(());
        };
        let Some(first_block) = relation.first_block(pages_per_file) else { return Ok(()) };
        pages::check(&read.task.path, part, at, first_block, &mut read.suspects)
            .map_err(|source| BackupError::Read { path: read.task.path.clone(), source })
    }

    /// Adds the next bytes of a file that is read whole.
    fn store(&mut self, read: &mut ReadFile, part: &[u8]) -> Result<(), BackupError> {
        let len = part.len() as u64;
        if is_zero(part) {
            read.push(Run { len, source: RunSource::Zeros });
            return Ok(());
        }
        // A file of less than half a frame shares one with others; the rest of a large file gets its own.
        if read.size == 0 && part.len() < FRAME_BYTES / 2 && read.task.size == len {
            self.put_in_bundle(read, part)?;
            read.push(Run { len, source: RunSource::Frame { frame: BUNDLED, at: 0 } });
            return Ok(());
        }
        let frame = self.push_frame(part, content(&read.task))?;
        read.push(Run { len, source: RunSource::Frame { frame, at: 0 } });
        Ok(())
    }

    fn bundle(&mut self, content: Content) -> &mut Bundle {
        match content {
            Content::Pages => &mut self.pages,
            Content::Other => &mut self.others,
        }
    }

    fn complete(&mut self, read: ReadFile) {
        if read.bundled_at.is_some() {
            self.bundle(content(&read.task)).files.push(read);
        } else {
            self.output.files.push(read);
        }
    }

    fn flush_bundle(&mut self, content: Content) -> Result<(), BackupError> {
        let Bundle { plain, files } = std::mem::take(self.bundle(content));
        if plain.is_empty() {
            return Ok(());
        }
        let frame = self.push_frame(&plain, content)?;
        for mut read in files {
            read.resolve(frame, read.bundled_at.unwrap_or_default());
            self.output.files.push(read);
        }
        Ok(())
    }

    /// Seals one frame; gives its number among this worker's frames.
    fn push_frame(&mut self, plain: &[u8], content: Content) -> Result<u32, BackupError> {
        let epoch = &self.shared.epoch;
        let pack = self.pack.get_or_insert_with(|| epoch.pack(PACK_BYTES + FRAME_BYTES));
        let location = match content {
            Content::Pages => pack.push_pages(plain, &mut self.compressor),
            Content::Other => pack.push(plain, &mut self.compressor),
        };
        let number = self.output.frames.len() as u32;
        self.output.frames.push((self.output.packs.len() as u32, location));
        if pack.len() >= PACK_BYTES {
            self.flush_pack()?;
        }
        Ok(number)
    }

    fn flush_pack(&mut self) -> Result<(), BackupError> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let sealed = pack.finish(b"");
        let (id, epoch) = (sealed.id, self.shared.epoch.id());
        let reference = PackRef { id, epoch, salt: sealed.salt, hashes: sealed.hashes };
        self.output.packs.push((reference, sealed.bytes.len() as u64));
        // The channel is closed only when uploading failed, which the caller hears from the uploader.
        self.send(Sealed::Pack { bytes: Bytes::from(sealed.bytes), id: sealed.id })?;
        self.offer_part()
    }

    /// Between packs now and then: should this backup be interrupted, another one goes on with what is offered.
    fn offer_part(&mut self) -> Result<(), BackupError> {
        let (files, packs, since) = self.offered;
        let is_due = self.output.packs.len() - packs >= PACKS_OF_PART || since.elapsed() >= PART_INTERVAL;
        if !self.shared.offers_parts || !is_due || self.output.files.len() == files {
            return Ok(());
        }
        let new = self.output.files.get(files..).unwrap_or_default().iter();
        // Pages that looked bad are judged by the whole log of their backup, which there may never be.
        let good = new.filter(|file| file.suspects.is_empty());
        let (map, packs) = assemble::part(good, &self.output, self.shared.base.as_deref())?;
        self.offered = (self.output.files.len(), self.output.packs.len(), Instant::now());
        self.send(Sealed::Part { map, packs })
    }

    fn send(&mut self, sealed: Sealed) -> Result<(), BackupError> {
        let begun = Instant::now();
        self.sealed.blocking_send(sealed).map_err(|_| BackupError::Worker)?;
        // While a slow store is waited for the database is left in peace anyway.
        self.working_since += begun.elapsed();
        Ok(())
    }

    fn finish(mut self) -> Result<Output, BackupError> {
        self.flush_bundle(Content::Pages)?;
        self.flush_bundle(Content::Other)?;
        self.flush_pack()?;
        Ok(self.output)
    }
}

/// What the codec may expect in a file.
const fn content(task: &FileTask) -> Content {
    if task.relation.is_some() { Content::Pages } else { Content::Other }
}

/// Stands for the frame that what is gathered or bundled will become.
const BUNDLED: u32 = u32::MAX;

/// The runs of a file of the base, from `at` bytes on.
struct Unchanged<'a> {
    runs: &'a [Run],
    /// Bytes of the first run that are behind us.
    at: u64,
}

impl Unchanged<'_> {
    /// The next run, of at most so many bytes; `None` behind the last.
    fn next(&mut self, most: u64) -> Option<Run> {
        let first = self.runs.first()?;
        let len = (first.len - self.at).min(most);
        let source = match first.source {
            RunSource::Zeros => RunSource::Zeros,
            RunSource::Frame { frame, at } => RunSource::Frame { frame, at: at + self.at as u32 },
        };
        self.skip_bytes(len);
        Some(Run { len, source })
    }

    fn skip_bytes(&mut self, mut bytes: u64) {
        while let Some(first) = self.runs.first()
            && bytes > 0
        {
            let now = bytes.min(first.len - self.at);
            bytes -= now;
            self.at += now;
            if self.at == first.len {
                self.runs = self.runs.get(1..).unwrap_or_default();
                self.at = 0;
            }
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Read { path, source }
}

/// Nothing but speed depends on it.
fn advise(file: &File, start: u64, len: u64, advice: PosixFadviseAdvice) {
    if let Err(error) = posix_fadvise(file, start as i64, len as i64, advice) {
        tracing::trace!(%error, "the kernel takes no advice");
    }
}

fn open(task: &FileTask, reading: &Reading) -> io::Result<File> {
    if let Reading::Pages(_) = reading {
        // Pages that changed lately are in the page cache, and must not push others out by reading ahead.
        let file = File::open(&task.path)?;
        advise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
        return Ok(file);
    }
    if task.relation.is_some() && task.size >= DIRECT_BYTES {
        let (file, _) = open_direct(File::options().read(true), &task.path)?;
        Ok(file)
    } else {
        File::open(&task.path)
    }
}

/// Files of relations come and go while the server runs, and so do those of the server's own bookkeeping.
fn may_vanish(task: &FileTask) -> bool {
    let must_stay = [b"PG_VERSION".as_slice(), b"pg_filenode.map"];
    task.relation.is_some() || !must_stay.iter().any(|name| task.name.ends_with(name))
}

/// How long removing the folder of a database may take.
const DROP_BOUND: Duration = Duration::from_mins(1);

/// `DROP DATABASE` removes a folder file by file. A folder that loses what it cannot do without must follow.
fn is_database_dropped(task: &FileTask) -> bool {
    let is_of_database = [b"pgdata/base/".as_slice(), b"pgdata/pg_tblspc/"].iter().any(|at| task.name.starts_with(at));
    let Some(folder) = task.path.parent().filter(|_| is_of_database) else { return false };
    let start = Instant::now();
    while folder.exists() {
        if start.elapsed() >= DROP_BOUND {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn is_zero(part: &[u8]) -> bool {
    // Most pages show in their first bytes that they are not.
    part.chunks(PAGE_SIZE).all(|page| page.iter().all(|byte| *byte == 0))
}
