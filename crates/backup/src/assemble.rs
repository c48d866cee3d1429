//! From what the workers did to the maps of a snapshot.

use std::collections::HashMap;

use holdfast_format::manifest::PackSize;
use holdfast_format::map::{Entry, EntryKind, FrameRef, Map, PackRef, Run, RunSource};

use crate::scan::Other;
use crate::worker::Output;

/// A map object describes at most about so many frames and entries, so that a reader who wants one file reads little.
const FRAMES_PER_MAP: usize = 8192;
const ENTRIES_PER_MAP: usize = 50_000;

/// One path, with the worker whose frames its runs count.
struct Item {
    entry: Entry,
    worker: usize,
}

/// Everything sorted by path, cut into maps.
pub(crate) fn assemble(outputs: &mut [Output], others: &[Other]) -> Vec<Map> {
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
        items.extend(output.files.drain(..).map(|file| {
            let kind = EntryKind::File { size: file.size, runs: file.runs };
            let entry = Entry { path: file.task.name, mode: file.task.mode, modified: file.task.modified, kind };
            Item { entry, worker }
        }));
    }
    items.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    // A path can be listed twice if it was made anew while its directory was read.
    items.dedup_by(|a, b| a.entry.path == b.entry.path);

    let mut maps = Vec::new();
    let mut builder = Builder::default();
    for item in items {
        builder.add(item, outputs);
        if builder.map.frames.len() >= FRAMES_PER_MAP || builder.map.entries.len() >= ENTRIES_PER_MAP {
            maps.push(std::mem::take(&mut builder).map);
        }
    }
    if !builder.map.entries.is_empty() {
        maps.push(builder.map);
    }
    maps
}

#[derive(Default)]
struct Builder {
    map: Map,
    packs: HashMap<(usize, u32), u32>,
    frames: HashMap<(usize, u32), u32>,
}

impl Builder {
    fn add(&mut self, mut item: Item, outputs: &[Output]) {
        if let EntryKind::File { runs, .. } = &mut item.entry.kind {
            for Run { source, .. } in runs {
                if let RunSource::Frame { frame, .. } = source {
                    *frame = self.frame(item.worker, *frame, outputs);
                }
            }
        }
        self.map.entries.push(item.entry);
    }

    fn frame(&mut self, worker: usize, frame: u32, outputs: &[Output]) -> u32 {
        let Self { map, packs, frames } = self;
        *frames.entry((worker, frame)).or_insert_with(|| {
            let (pack, location) = outputs[worker].frames[frame as usize];
            let pack = *packs.entry((worker, pack)).or_insert_with(|| {
                map.packs.push(outputs[worker].packs[pack as usize].0);
                map.packs.len() as u32 - 1
            });
            map.frames.push(FrameRef { pack, location });
            map.frames.len() as u32 - 1
        })
    }
}

/// All packs, for the manifest.
pub(crate) fn pack_sizes(outputs: &[Output]) -> Vec<PackSize> {
    let size = |(pack, bytes): &(PackRef, u64)| PackSize { id: pack.id, bytes: *bytes };
    outputs.iter().flat_map(|output| output.packs.iter().map(size)).collect()
}
