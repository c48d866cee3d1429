//! From what the workers did to the maps of a snapshot.

use std::collections::HashMap;

use holdfast_format::manifest::PackSize;
use holdfast_format::map::{Entry, EntryKind, FrameRef, Map, Run, RunSource};
use holdfast_types::PackId;

use crate::BackupError;
use crate::base::{Base, BaseFrame};
use crate::scan::Other;
use crate::worker::{BASE_FRAME, Output, ReadFile};

/// A map object describes at most about so many frames and entries, so that a reader who wants one file reads little.
const FRAMES_PER_MAP: usize = 8192;
const ENTRIES_PER_MAP: usize = 50_000;

/// One path, with the worker whose frames its runs count.
struct Item {
    entry: Entry,
    worker: usize,
}

/// Everything sorted by path, cut into maps.
pub(crate) fn assemble(outputs: &mut [Output], others: &[Other], base: Option<&Base>) -> Vec<Map> {
    let mut items: Vec<Item> = others
        .iter()
        .map(|other| {
            let kind = match &other.target {
                Some(target) => EntryKind::Link { target: target.clone() },
                None => EntryKind::Directory,
            };
            let entry = Entry { path: other.name.clone(), mode: other.mode, modified: other.modified, kind };
            Item { entry, worker: 0 }
        })
        .collect();
    for (worker, output) in outputs.iter_mut().enumerate() {
        items.extend(output.files.drain(..).map(|file| Item { entry: entry(file), worker }));
    }
    items.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    // A path can be listed twice if it was made anew while its directory was read.
    items.dedup_by(|a, b| a.entry.path == b.entry.path);

    let mut maps = Vec::new();
    let mut builder = Builder::default();
    for item in items {
        builder.add(item, outputs, base);
        if builder.map.frames.len() >= FRAMES_PER_MAP || builder.map.entries.len() >= ENTRIES_PER_MAP {
            maps.push(std::mem::take(&mut builder).map);
        }
    }
    if !builder.map.entries.is_empty() {
        maps.push(builder.map);
    }
    maps
}

fn entry(file: ReadFile) -> Entry {
    let kind = EntryKind::File { size: file.size, runs: file.runs };
    Entry { path: file.task.name, mode: file.task.mode, modified: file.task.modified, kind }
}

/// A map of some of the files that one worker has read so far, all of whose frames are in packs that are complete; with
/// those packs.
pub(crate) fn part<'a>(
    files: impl Iterator<Item = &'a ReadFile>,
    output: &Output,
    base: Option<&Base>,
) -> Result<(Map, Vec<PackSize>), BackupError> {
    let mut entries: Vec<Entry> = files.map(|file| entry(file.clone())).collect();
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    entries.dedup_by(|a, b| a.path == b.path);
    let mut builder = Builder::default();
    let outputs = std::slice::from_ref(output);
    for entry in entries {
        builder.add(Item { entry, worker: 0 }, outputs, base);
    }
    let packs = pack_sizes(std::slice::from_ref(&builder.map), outputs, base)?;
    Ok((builder.map, packs))
}

/// Where a frame comes from: one that a worker wrote, or one of the base.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    Worker(usize, u32),
    Base(BaseFrame),
}

#[derive(Default)]
struct Builder {
    map: Map,
    packs: HashMap<PackId, u32>,
    frames: HashMap<Origin, u32>,
}

impl Builder {
    fn add(&mut self, mut item: Item, outputs: &[Output], base: Option<&Base>) {
        if let EntryKind::File { runs, .. } = &mut item.entry.kind {
            for Run { source, .. } in runs {
                if let RunSource::Frame { frame, .. } = source {
                    let output = &outputs[item.worker];
                    let origin = match frame.checked_sub(BASE_FRAME) {
                        Some(borrowed) => Origin::Base(output.borrowed[borrowed as usize]),
                        None => Origin::Worker(item.worker, *frame),
                    };
                    *frame = self.frame(origin, outputs, base);
                }
            }
        }
        self.map.entries.push(item.entry);
    }

    fn frame(&mut self, origin: Origin, outputs: &[Output], base: Option<&Base>) -> u32 {
        let Self { map, packs, frames } = self;
        *frames.entry(origin).or_insert_with(|| {
            let (pack, location) = match origin {
                Origin::Worker(worker, frame) => {
                    let output = &outputs[worker];
                    let (pack, location) = output.frames[frame as usize];
                    (output.packs[pack as usize].0, location)
                }
                Origin::Base(frame) => {
                    let (pack, frame) = base.and_then(|base| base.frame(frame)).expect("it was taken from the base");
                    (pack, frame.location)
                }
            };
            let pack = *packs.entry(pack.id).or_insert_with(|| {
                map.packs.push(pack);
                map.packs.len() as u32 - 1
            });
            map.frames.push(FrameRef { pack, location });
            map.frames.len() as u32 - 1
        })
    }
}

/// All packs that the maps use, for the manifest.
pub(crate) fn pack_sizes(maps: &[Map], outputs: &[Output], base: Option<&Base>) -> Result<Vec<PackSize>, BackupError> {
    let own: HashMap<PackId, u64> =
        outputs.iter().flat_map(|output| &output.packs).map(|(pack, bytes)| (pack.id, *bytes)).collect();
    let mut used: Vec<PackId> = maps.iter().flat_map(|map| &map.packs).map(|pack| pack.id).collect();
    used.sort_unstable();
    used.dedup();
    let size = |id: PackId| {
        let bytes = own.get(&id).copied().or_else(|| base?.pack_bytes(id)).ok_or(BackupError::Worker)?;
        Ok(PackSize { id, bytes })
    };
    used.into_iter().map(size).collect()
}
