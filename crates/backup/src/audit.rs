//! Proving that the change map tells the truth.
//!
//! Each backup that builds on another looks at some pages that the log says nothing about, and compares them with what
//! the base has. It goes round: after some hundreds of backups every page has been looked at. Offline edits, a disk that
//! changes bytes, and a fault in reading the log all show here, where the pages would otherwise be taken on trust.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Duration;

use holdfast_format::codec::Decompressor;
use holdfast_format::map::RunSource;
use holdfast_pgformat::page::{self, PAGE_SIZE};
use holdfast_repository::Keyring;
use holdfast_runtime::read_full_at;
use holdfast_types::Lsn;

use crate::BackupError;
use crate::base::{Base, BaseFrame};
use crate::scan::FileTask;
use crate::select::Reading;

/// Pages looked at together: 8 MiB of one file, or of several.
const REGION: u32 = 1024;
/// One region of so many, and no more of them than these, so that the cost of a backup does not grow with the database.
const SHARE: usize = 256;
const MOST: usize = 8;
/// Special spaces of SP-GiST pages end with this (spgist_private.h).
const SPGIST_PAGE: [u8; 2] = [0x82, 0xFF];

/// What an audit needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audit<'a> {
    pub keyring: &'a Keyring,
    pub base: &'a Base,
    /// Where this backup begins: pages with later positions were written since.
    pub start: Lsn,
    /// Every change of a page is logged, hints too: the server has checksums.
    pub logs_hints: bool,
    /// How many backups there were: where the round goes on.
    pub turn: u64,
}

/// A page that changed though the log says that it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub name: Vec<u8>,
    /// In the file.
    pub page: u32,
    pub why: &'static str,
}

/// What it is the turn of: parts of files by their number.
pub(crate) fn choose(files: &[FileTask], turn: u64) -> Vec<(usize, Range<u32>)> {
    let mut order: Vec<usize> =
        (0..files.len()).filter(|number| matches!(files[*number].reading, Reading::Pages(_))).collect();
    order.sort_by(|a, b| files[*a].name.cmp(&files[*b].name));
    // All pages in a row, cut into regions: small files share one.
    let mut regions: Vec<Vec<(usize, Range<u32>)>> = Vec::new();
    let mut room = 0;
    for number in order {
        let pages = (files[number].size / PAGE_SIZE as u64) as u32;
        let mut start = 0;
        while start < pages {
            if room == 0 {
                regions.push(Vec::new());
                room = REGION;
            }
            let end = pages.min(start.saturating_add(room));
            room -= end - start;
            if let Some(region) = regions.last_mut() {
                region.push((number, start..end));
            }
            start = end;
        }
    }
    let count = (regions.len() / SHARE).clamp(1, MOST).min(regions.len());
    let first = turn as usize * count;
    (first..first + count).flat_map(|number| regions[number % regions.len()].clone()).collect()
}

impl Audit<'_> {
    /// Looks at what it is the turn of; the first mismatches.
    pub(crate) async fn run(&self, files: &[FileTask]) -> Result<Vec<Mismatch>, BackupError> {
        let mut found = Vec::new();
        for (number, pages) in choose(files, self.turn) {
            found.extend(self.region(&files[number], pages).await?);
        }
        Ok(found)
    }

    async fn region(&self, task: &FileTask, pages: Range<u32>) -> Result<Vec<Mismatch>, BackupError> {
        let Reading::Pages(changed) = &task.reading else { return Ok(Vec::new()) };
        let failed = |source| BackupError::Read { path: task.path.clone(), source };
        let file = match File::open(&task.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.map_err(failed)?,
        };
        let mut now = vec![0; pages.len() * PAGE_SIZE];
        let got = read_full_at(&file, &mut now, u64::from(pages.start) * PAGE_SIZE as u64).map_err(failed)?;
        let mut frames: HashMap<BaseFrame, Vec<u8>> = HashMap::new();
        let mut found = Vec::new();
        // What is behind a truncation since the start is not there.
        for (number, now) in pages.zip(now.get(..got).unwrap_or_default().chunks_exact(PAGE_SIZE)) {
            if changed.iter().any(|range| range.contains(&number)) {
                continue;
            }
            let Some(before) = self.page(task, number, &mut frames).await? else { continue };
            let Some(_) = self.compare(&before, now) else { continue };
            // It may just be being written.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut again = [0; PAGE_SIZE];
            let got = read_full_at(&file, &mut again, u64::from(number) * PAGE_SIZE as u64).map_err(failed)?;
            if got == PAGE_SIZE
                && let Some(why) = self.compare(&before, &again)
            {
                found.push(Mismatch { name: task.name.clone(), page: number, why });
            }
        }
        Ok(found)
    }

    /// A page of the base; `None` where it has none.
    async fn page(
        &self,
        task: &FileTask,
        number: u32,
        frames: &mut HashMap<BaseFrame, Vec<u8>>,
    ) -> Result<Option<Vec<u8>>, BackupError> {
        let Some((_, runs, map)) = self.base.file(&task.name) else { return Ok(None) };
        let wanted = u64::from(number) * PAGE_SIZE as u64;
        let mut at = 0;
        for run in runs {
            if wanted >= at + run.len {
                at += run.len;
                continue;
            }
            let RunSource::Frame { frame, at: start } = run.source else { return Ok(Some(vec![0; PAGE_SIZE])) };
            let plain = match frames.entry((map, frame)) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.fetch((map, frame)).await?),
            };
            let start = start as usize + (wanted - at) as usize;
            return Ok(plain.get(start..start + PAGE_SIZE).map(<[u8]>::to_vec));
        }
        Ok(None)
    }

    async fn fetch(&self, key: BaseFrame) -> Result<Vec<u8>, BackupError> {
        let (pack, frame) = self.base.frame(key).ok_or(BackupError::Worker)?;
        let reader = self.keyring.pack(&pack).await?;
        let location = frame.location;
        let range = location.offset..location.offset + u64::from(location.sealed_len);
        let mut sealed = reader.fetch(range).await?.to_vec();
        let mut plain = Vec::new();
        reader.open(location, &mut sealed, &mut Decompressor::new(), &mut plain)?;
        Ok(plain)
    }

    /// Why the two cannot be the same page without a word in the log.
    fn compare(&self, before: &[u8], now: &[u8]) -> Option<&'static str> {
        let lsn = |page: &[u8]| page.first_chunk::<PAGE_SIZE>().map(page::lsn);
        if before == now || lsn(now) >= Some(self.start) {
            return None;
        }
        if lsn(before) != lsn(now) {
            return Some("it was written again, and the log does not say so");
        }
        if self.logs_hints && !is_spgist_meta(now) {
            return Some("its content changed, and its position in the log did not");
        }
        // Lower, upper, special, size and version: hints change none of them.
        (before.get(12..20) != now.get(12..20)).then_some("its layout changed, and its position in the log did not")
    }
}

/// Where there was room last is noted there without a record, on purpose (`SpGistUpdateMetaPage`).
fn is_spgist_meta(page: &[u8]) -> bool {
    page.ends_with(&SPGIST_PAGE)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn task(name: &str, pages: u32) -> FileTask {
        FileTask {
            path: PathBuf::new(),
            name: name.as_bytes().to_vec(),
            size: u64::from(pages) * PAGE_SIZE as u64,
            mode: 0o600,
            modified: 0,
            relation: None,
            reading: Reading::Pages(Vec::new()),
        }
    }

    #[test]
    fn the_round_looks_at_every_page() {
        let files = [task("b", 5000), task("a", 3), task("c", 131_072), task("d", 1024)];
        let mut seen = vec![Vec::new(); files.len()];
        for turn in 0..200 {
            for (number, pages) in choose(&files, turn) {
                seen[number].extend(pages);
            }
        }
        for (file, mut seen) in files.iter().zip(seen) {
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len() as u64 * PAGE_SIZE as u64, file.size);
        }
        assert!(choose(&[], 7).is_empty());
    }
}
