//! One worker: it fetches and opens frames, and puts what belongs to a window together; a thread of its own writes the
//! windows, while the worker is at the next one.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{PoisonError, mpsc};
use std::thread;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_format::codec::Decompressor;
use holdfast_runtime::{AlignedBuffer, Cancelled};
use tokio::task::JoinHandle;

use super::region::{REGION_BYTES, Region};
use super::work::{Group, Piece, Window};
use super::{Shared, is_cause};
use crate::RestoreError;

/// Reads of one window that go on at once.
const FETCHES: usize = 8;
/// One window is filled while another is written.
const BUFFERS: usize = 2;
/// Bytes of later windows that are kept; what comes beyond is written at once.
const CARRIED_BYTES: usize = REGION_BYTES;
/// Files that a worker keeps open.
const OPEN_FILES: usize = 64;
/// With parts below this size on average, the page cache puts a window in order.
const SCATTERED_BYTES: u64 = 64 << 10;
/// Written at once, past the page cache.
const WRITE_BYTES: usize = 1 << 20;

/// Works until there is nothing left. Gives the sealed bytes that were fetched.
pub(super) fn work(shared: &Shared, whole: mpsc::SyncSender<u32>) -> Result<u64, RestoreError> {
    let (filled, to_write) = mpsc::sync_channel(BUFFERS);
    let (empty, to_fill) = mpsc::sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        empty.send(AlignedBuffer::new(REGION_BYTES)).map_err(|_| RestoreError::Worker)?;
    }
    thread::scope(|scope| {
        let to_sync = whole.clone();
        let writer = thread::Builder::new()
            .name("write windows".to_owned())
            .spawn_scoped(scope, move || write_windows(shared, &to_write, &empty, &to_sync))
            .map_err(RestoreError::Thread)?;
        let outcome = Worker::new(shared, whole, to_fill, filled).work();
        let written = writer.join().map_err(|_| RestoreError::Worker).flatten();
        match (outcome, written) {
            (Err(error), _) if is_cause(&error) => Err(error),
            (outcome, written) => written.and(outcome),
        }
    })
}

/// Ends when there is no worker any more.
fn write_windows(
    shared: &Shared,
    filled: &mpsc::Receiver<Region>,
    empty: &mpsc::SyncSender<AlignedBuffer>,
    whole: &mpsc::SyncSender<u32>,
) -> Result<(), RestoreError> {
    let mut open: Option<(u32, bool, File)> = None;
    for region in filled {
        shared.cancel.check()?;
        let target = shared.target(region.target)?;
        let failed = RestoreError::write(&target.path);
        let (parts, len) =
            region.parts().fold((0, 0), |(parts, sum), (_, bytes)| (parts + 1, sum + bytes.len() as u64));
        if parts > 0 {
            let is_direct = len >= parts * SCATTERED_BYTES;
            let file = match open.take() {
                Some((index, way, file)) if (index, way) == (region.target, is_direct) => Ok(file),
                _ if is_direct => target.open_direct(),
                _ => target.open_buffered(),
            };
            let file = file.map_err(&failed)?;
            for (at, bytes) in region.parts() {
                for (number, chunk) in bytes.chunks(WRITE_BYTES).enumerate() {
                    file.write_all_at(chunk, at + (number * WRITE_BYTES) as u64).map_err(&failed)?;
                }
            }
            open = Some((region.target, is_direct, file));
            if shared.written(region.target, len, whole)? {
                open = None;
            }
        }
        // The worker may have found that there is no other window.
        empty.send(region.into_buffer()).ok();
    }
    Ok(())
}

/// Sealed bytes of each stretch.
type Fetching = JoinHandle<Result<Vec<Bytes>, RestoreError>>;

/// What was opened together with an earlier window of the same file.
struct Carried {
    target: u32,
    at_in_file: u64,
    bytes: Vec<u8>,
}

struct Worker<'a> {
    shared: &'a Shared,
    whole: mpsc::SyncSender<u32>,
    empty: mpsc::Receiver<AlignedBuffer>,
    filled: mpsc::SyncSender<Region>,
    /// The rest of the group that this worker took.
    group: Group,
    /// What is filled now.
    region: Option<Region>,
    open: HashMap<u32, File>,
    decompressor: Decompressor,
    plain: Vec<u8>,
    carried: VecDeque<Carried>,
    carried_bytes: usize,
    fetched: u64,
}

impl<'a> Worker<'a> {
    fn new(
        shared: &'a Shared,
        whole: mpsc::SyncSender<u32>,
        empty: mpsc::Receiver<AlignedBuffer>,
        filled: mpsc::SyncSender<Region>,
    ) -> Self {
        Self {
            shared,
            whole,
            empty,
            filled,
            group: Group::new(),
            region: None,
            open: HashMap::new(),
            decompressor: Decompressor::new(),
            plain: Vec::new(),
            carried: VecDeque::new(),
            carried_bytes: 0,
            fetched: 0,
        }
    }

    fn work(mut self) -> Result<u64, RestoreError> {
        let mut coming = self.begin_next();
        while let Some((window, fetching)) = coming.take() {
            coming = self.begin_next();
            self.shared.cancel.check()?;
            let fetched = self.shared.handle.block_on(fetching).map_err(|_| RestoreError::Worker).flatten()?;
            self.lay_window(&window, fetched)?;
        }
        self.turn_to(None)?;
        Ok(self.fetched)
    }

    /// Begins to fetch the next window.
    fn begin_next(&mut self) -> Option<(Window, Fetching)> {
        while self.group.is_empty() {
            self.group = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        }
        let window = self.group.pop_front()?;
        let ranges: Vec<_> =
            window.stretches.iter().map(|stretch| (stretch.pack.clone(), stretch.bytes.clone())).collect();
        let cancel = self.shared.cancel.clone();
        let fetching = self.shared.handle.spawn(async move {
            let reads = ranges.into_iter().map(|(pack, range)| async move { pack.fetch(range).await });
            tokio::select! {
                fetched = stream::iter(reads).buffered(FETCHES).try_collect() => Ok(fetched?),
                () = cancel.cancelled() => Err(Cancelled.into()),
            }
        });
        Some((window, fetching))
    }

    fn lay_window(&mut self, window: &Window, fetched: Vec<Bytes>) -> Result<(), RestoreError> {
        self.turn_to(window.place)?;
        for (stretch, bytes) in window.stretches.iter().zip(fetched) {
            self.fetched += bytes.len() as u64;
            let mut sealed: Vec<u8> = bytes.into();
            for (location, pieces) in &stretch.frames {
                let start = (location.offset - stretch.bytes.start) as usize;
                let frame = sealed.get_mut(start..start + location.sealed_len as usize).ok_or(RestoreError::Worker)?;
                let mut plain = std::mem::take(&mut self.plain);
                plain.clear();
                stretch.pack.open(*location, frame, &mut self.decompressor, &mut plain)?;
                for Piece { target, at_in_file, at_in_frame, len } in pieces {
                    let bytes = plain.get(*at_in_frame as usize..(*at_in_frame + *len) as usize);
                    self.put(*target, *at_in_file, bytes.ok_or(RestoreError::Worker)?)?;
                }
                self.plain = plain;
            }
        }
        Ok(())
    }

    /// Hands on what was filled, and begins what is next, if that is another window.
    fn turn_to(&mut self, place: Option<(u32, u64)>) -> Result<(), RestoreError> {
        if place.is_some() && place == self.region.as_ref().map(|region| (region.target, region.range().start)) {
            return Ok(());
        }
        if let Some(region) = self.region.take() {
            self.filled.send(region).map_err(|_| RestoreError::Worker)?;
        }
        if let Some((target, start)) = place {
            let buffer = self.empty.recv().map_err(|_| RestoreError::Worker)?;
            self.region = Some(Region::new(target, start, buffer));
        }
        self.carried_bytes = 0;
        for Carried { target, at_in_file, bytes } in std::mem::take(&mut self.carried) {
            self.put(target, at_in_file, &bytes)?;
        }
        Ok(())
    }

    /// Into the window, or kept for a later one, or into the file.
    fn put(&mut self, target: u32, at: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let (mut at, mut bytes) = (at, bytes);
        if let Some(region) = self.region.as_mut().filter(|region| region.target == target) {
            let taken = region.put(at, bytes);
            at += taken as u64;
            bytes = bytes.get(taken..).unwrap_or_default();
            if at >= region.range().end && !bytes.is_empty() && self.carried_bytes + bytes.len() <= CARRIED_BYTES {
                self.carried_bytes += bytes.len();
                self.carried.push_back(Carried { target, at_in_file: at, bytes: bytes.to_vec() });
                return Ok(());
            }
        }
        if bytes.is_empty() { Ok(()) } else { self.write(target, at, bytes) }
    }

    fn write(&mut self, index: u32, at: u64, bytes: &[u8]) -> Result<(), RestoreError> {
        let target = self.shared.target(index)?;
        let failed = RestoreError::write(&target.path);
        if self.open.len() >= OPEN_FILES && !self.open.contains_key(&index) {
            self.open.clear();
        }
        let file = match self.open.entry(index) {
            std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => place.insert(target.open_buffered().map_err(&failed)?),
        };
        file.write_all_at(bytes, at).map_err(&failed)?;
        if self.shared.written(index, bytes.len() as u64, &self.whole)? {
            self.open.remove(&index);
        }
        Ok(())
    }
}
