//! Reading files, and packing them into frames.
//!
//! Each worker thread takes the next file, reads it in frames, checks its pages, compresses and seals, and hands full
//! packs to the uploader. Nothing is shared between workers but the queue.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_format::codec::{Compressor, Content};
use holdfast_format::map::{PackRef, Run, RunSource};
use holdfast_format::object::{FrameLocation, ObjectWriter};
use holdfast_pgformat::page::PAGE_SIZE;
use holdfast_repository::Epoch;
use holdfast_runtime::{ALIGNMENT, AlignedBuffer, Cancel, Progress, RateLimit, open_direct};
use tokio::sync::mpsc;

use crate::BackupError;
use crate::pages::{self, Suspect};
use crate::scan::FileTask;

/// Plain bytes of a frame: decided by measurement, see `docs/decisions/0003-frames-and-packs.md`.
pub(crate) const FRAME_BYTES: usize = 256 << 10;
/// Read at once: without the page cache nobody reads ahead for us.
const READ_BYTES: usize = 4 * FRAME_BYTES;
/// Relations from this size on are read past the page cache.
const DIRECT_BYTES: u64 = 1 << 20;
/// Sealed bytes at which a pack is complete.
const PACK_BYTES: usize = 32 << 20;

/// What workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub queue: Mutex<VecDeque<FileTask>>,
    pub epoch: Epoch,
    pub level: i32,
    /// Pages of a segment file, if the pages are to be checked.
    pub check_pages: Option<u32>,
    pub rate_limit: Option<RateLimit>,
    pub progress: Progress,
    pub cancel: Cancel,
}

/// A finished pack on its way to the repository.
#[derive(Debug)]
pub(crate) struct FullPack {
    pub bytes: Bytes,
    pub id: holdfast_types::PackId,
}

/// A file that was read. Its runs count frames over all packs of its worker.
#[derive(Debug)]
pub(crate) struct ReadFile {
    pub task: FileTask,
    pub size: u64,
    pub runs: Vec<Run>,
    pub suspects: Vec<Suspect>,
}

/// All that one worker did.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub files: Vec<ReadFile>,
    pub packs: Vec<(PackRef, u64)>,
    /// The pack (an index into `packs`) and place of each frame.
    pub frames: Vec<(u32, FrameLocation)>,
}

struct Worker {
    shared: Arc<Shared>,
    packs: mpsc::Sender<FullPack>,
    compressor: Compressor,
    pack: Option<ObjectWriter>,
    output: Output,
    /// Relations share frames with relations only, so that pages stay where the codec looks for them.
    pages: Bundle,
    others: Bundle,
}

/// Small files on their way into a common frame.
#[derive(Default)]
struct Bundle {
    plain: Vec<u8>,
    /// The files, and where in the frame each begins.
    files: Vec<(ReadFile, u32)>,
}

/// Works until the queue is empty.
pub(crate) fn work(shared: Arc<Shared>, packs: mpsc::Sender<FullPack>) -> Result<Output, BackupError> {
    let compressor = Compressor::new(shared.level)?;
    let mut worker = Worker {
        shared,
        packs,
        compressor,
        pack: None,
        output: Output::default(),
        pages: Bundle::default(),
        others: Bundle::default(),
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
    fn read_file(&mut self, task: FileTask, buffer: &mut [u8]) -> Result<(), BackupError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| BackupError::Read { path, source }
        };
        let file = match open(&task) {
            // A relation that was dropped since the directory was listed: replay drops it too.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && (may_vanish(&task) || is_database_dropped(&task)) =>
            {
                self.shared.progress.add(task.size);
                return Ok(());
            }
            file => file.map_err(failed(&task.path))?,
        };
        let mut read = ReadFile { task, size: 0, runs: Vec::new(), suspects: Vec::new() };
        while read.size < read.task.size {
            self.shared.cancel.check()?;
            // Asked for in full, because direct I/O reads whole blocks only; what is beyond the size is not taken.
            let want = (read.task.size - read.size).min(READ_BYTES as u64) as usize;
            let got = read_at(&file, buffer, read.size).map_err(failed(&read.task.path))?.min(want);
            if let Some(limit) = &self.shared.rate_limit {
                limit.wait(got as u64);
            }
            for frame in buffer.get_mut(..got).unwrap_or_default().chunks_mut(FRAME_BYTES) {
                self.check_pages(&mut read, frame)?;
                self.store(&mut read, frame)?;
                read.size += frame.len() as u64;
                self.shared.progress.add(frame.len() as u64);
            }
            if got < want {
                // Truncated since it was listed; the log does the same again.
                break;
            }
        }
        self.complete(read);
        Ok(())
    }

    fn check_pages(&self, read: &mut ReadFile, part: &mut [u8]) -> Result<(), BackupError> {
        let (Some(pages_per_file), Some(relation)) = (self.shared.check_pages, read.task.relation) else {
            return Ok(());
        };
        let Some(first_block) = relation.first_block(pages_per_file) else { return Ok(()) };
        pages::check(&read.task.path, part, read.size, first_block, &mut read.suspects)
            .map_err(|source| BackupError::Read { path: read.task.path.clone(), source })
    }

    /// Adds the next bytes of a file.
    fn store(&mut self, read: &mut ReadFile, part: &[u8]) -> Result<(), BackupError> {
        let len = part.len() as u64;
        if is_zero(part) {
            match read.runs.last_mut() {
                Some(Run { len: before, source: RunSource::Zeros }) => *before += len,
                _ => read.runs.push(Run { len, source: RunSource::Zeros }),
            }
            return Ok(());
        }
        let content = content(&read.task);
        // A file of less than half a frame shares one with others; the rest of a large file gets its own.
        if read.size == 0 && part.len() < FRAME_BYTES / 2 && read.task.size == len {
            if self.bundle(content).plain.len() + part.len() > FRAME_BYTES {
                self.flush_bundle(content)?;
            }
            // The place in the bundle waits in the run until the bundle is a frame.
            let bundle = self.bundle(content);
            let at = bundle.plain.len() as u32;
            bundle.plain.extend_from_slice(part);
            read.runs.push(Run { len, source: RunSource::Frame { frame: BUNDLED, at } });
            return Ok(());
        }
        let frame = self.push_frame(part, content)?;
        read.runs.push(Run { len, source: RunSource::Frame { frame, at: 0 } });
        Ok(())
    }

    fn bundle(&mut self, content: Content) -> &mut Bundle {
        match content {
            Content::Pages => &mut self.pages,
            Content::Other => &mut self.others,
        }
    }

    fn complete(&mut self, read: ReadFile) {
        match read.runs.as_slice() {
            [Run { source: RunSource::Frame { frame: BUNDLED, at }, .. }] => {
                let at = *at;
                self.bundle(content(&read.task)).files.push((read, at));
            }
            _ => self.output.files.push(read),
        }
    }

    fn flush_bundle(&mut self, content: Content) -> Result<(), BackupError> {
        let Bundle { plain, files } = std::mem::take(self.bundle(content));
        if plain.is_empty() {
            return Ok(());
        }
        let frame = self.push_frame(&plain, content)?;
        for (mut read, at) in files {
            for run in &mut read.runs {
                run.source = RunSource::Frame { frame, at };
            }
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
        let reference = PackRef { id: sealed.id, epoch: self.shared.epoch.id(), salt: sealed.salt };
        self.output.packs.push((reference, sealed.bytes.len() as u64));
        // The channel is closed only when uploading failed, which the caller hears from the uploader.
        self.packs
            .blocking_send(FullPack { bytes: Bytes::from(sealed.bytes), id: sealed.id })
            .map_err(|_| BackupError::Worker)
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

/// Stands for the frame that a bundle will become.
const BUNDLED: u32 = u32::MAX;

fn open(task: &FileTask) -> io::Result<File> {
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

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..)
        && !rest.is_empty()
    {
        match file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            // Behind a part of a block there is nothing more, and direct I/O could not ask for it.
            Ok(len) if !len.is_multiple_of(ALIGNMENT) => return Ok(got + len),
            Ok(len) => got += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn is_zero(part: &[u8]) -> bool {
    // Most pages show in their first bytes that they are not.
    part.chunks(PAGE_SIZE).all(|page| page.iter().all(|byte| *byte == 0))
}
