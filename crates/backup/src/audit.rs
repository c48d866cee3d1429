//! Proving that the change map tells the truth.
//!
//! Each backup that builds on another looks at some pages that the log says nothing about, and compares them with what
//! the base has. Which ones is left to chance: whatever is done between two backups, and however files come and go, no
//! page is always passed over. Offline edits, a disk that changes bytes, and a fault in reading the log all show here, where
//! the pages would otherwise be taken on trust.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use holdfast_format::codec::Decompressor;
use holdfast_format::manifest::Summary;
use holdfast_format::map::RunSource;
use holdfast_pgformat::RelationFile;
use holdfast_pgformat::page::{self, PAGE_SIZE};
use holdfast_repository::Keyring;
use holdfast_runtime::{Cancel, Cancelled, read_full_at};
use holdfast_types::Lsn;

use crate::BackupError;
use crate::base::{Base, BaseFrame};
use crate::relation_names::RelationNames;
use crate::scan::FileTask;
use crate::select::Reading;
use crate::snapshot::BackupOptions;

/// Pages looked at together: 8 MiB of one file, or of several.
const REGION: u32 = 1024;
/// One region of so many; but no more than these, or than one for so many that are read anyway, and never more than half a
/// gigabyte: what a backup costs grows with the change, not with the database, and nothing is copied before this is done.
const SHARE: usize = 256;
const MOST: usize = 2;
const FOR_READ: u64 = 8;
const EVER: usize = 64;
/// Pages that are compared in one go: their frames are fetched together, and may all be in memory.
const AT_ONCE: usize = 256;
const FETCHES: usize = 8;
/// Enough to know that something is wrong: everything is read then.
const NAMED: usize = 10;
/// Special spaces of SP-GiST pages end with this (spgist_private.h).
const SPGIST_PAGE: [u8; 2] = [0x82, 0xFF];
/// `SizeOfPageHeaderData`.
const PAGE_HEADER: u16 = 24;

/// What an audit needs to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audit<'a> {
    pub keyring: &'a Keyring,
    pub base: &'a Base,
    /// Where this backup begins: pages with later positions were written since.
    pub start: Lsn,
    /// Pages written at this position or later must be the same byte for byte; see [`strict_from`].
    pub strict_from: Option<Lsn>,
    /// Chooses what is looked at.
    pub chance: u64,
    pub cancel: &'a Cancel,
}

/// A page that changed though the log says that it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub name: Vec<u8>,
    pub relation: Option<RelationFile>,
    /// In the file.
    pub page: u32,
    pub why: &'static str,
}

/// Where the base has a page: at this place of a frame, or nowhere, if it is a page of zeros or of none.
#[derive(Clone, Copy, Debug)]
enum Place {
    Nowhere,
    Zeros,
    Frame(BaseFrame, usize),
}

/// From which position on pages must be the same byte for byte; `None` if none need be.
///
/// With checksums a server logs a hint that makes a page dirty, but not one in a page that is dirty already. On the server
/// that wrote the page this makes no difference, as a backup begins by flushing it. A standby makes the page dirty by
/// replaying, and then its hints, the numbers that a sequence has handed out, and other things that need no record differ
/// from the primary's. So only pages that were written on the timeline of now are the work of the server of now, and only if
/// neither they nor their copies in the repository were read from a standby.
pub(crate) fn strict_from(
    logs_hints: bool,
    in_recovery: bool,
    timeline_start: Option<Lsn>,
    base: &Summary,
    known: &[Summary],
) -> Option<Lsn> {
    (logs_hints && !in_recovery && is_of_primaries(base, known)).then_some(timeline_start).flatten()
}

/// Whether a snapshot and all those that it built on were taken from primaries. What is not known any more may have been
/// taken from a standby.
fn is_of_primaries(base: &Summary, known: &[Summary]) -> bool {
    let mut snapshot = base;
    // Each can build only on one that was there before: more steps than snapshots are a circle, which nobody can make.
    for _ in 0..=known.len() {
        if snapshot.from_standby {
            return false;
        }
        let Some(before) = &snapshot.base else { return true };
        match known.iter().find(|summary| summary.id == *before) {
            Some(summary) => snapshot = summary,
            None => return false,
        }
    }
    false
}

/// What is looked at: parts of files by their number. Every region is as likely as any other.
pub(crate) fn choose(files: &[FileTask], chance: u64) -> Vec<(usize, Range<u32>)> {
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
    let read = files.iter().map(FileTask::bytes_to_read).sum::<u64>() / (u64::from(REGION) * PAGE_SIZE as u64);
    let most = MOST.max((read / FOR_READ) as usize).min(EVER);
    let count = (regions.len() / SHARE).clamp(1, most).min(regions.len());
    let mut chance = Chance(chance);
    for place in 0..count {
        let other = place + chance.below(regions.len() - place);
        regions.swap(place, other);
    }
    regions.truncate(count);
    regions.into_iter().flatten().collect()
}

/// SplitMix64: even enough, and the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * bound as u128) >> 64) as usize
    }
}

impl Audit<'_> {
    /// Looks at what chance brings. What it finds, one sentence each.
    pub(crate) async fn run(&self, files: &[FileTask], options: &BackupOptions) -> Result<Vec<String>, BackupError> {
        let mut found = Vec::new();
        for (number, pages) in choose(files, self.chance) {
            if found.len() <= NAMED {
                self.region(&files[number], pages, &mut found).await?;
            }
        }
        let mut names = RelationNames::new(options);
        let base = &self.base.summary.id;
        let mut incidents = Vec::new();
        for Mismatch { name, relation, page, why } in found.iter().take(NAMED) {
            let (name, relation) = (String::from_utf8_lossy(name), names.suffix(*relation).await);
            incidents.push(format!("page {page} of {name}{relation} is not what it was in snapshot {base}: {why}"));
        }
        if found.len() > NAMED {
            incidents.push("and more pages: no others were looked at".to_owned());
        }
        Ok(incidents)
    }

    /// Adds what it finds, and one more than will be named at the most.
    async fn region(&self, task: &FileTask, pages: Range<u32>, found: &mut Vec<Mismatch>) -> Result<(), BackupError> {
        let Reading::Pages(changed) = &task.reading else { return Ok(()) };
        let failed = |source| BackupError::Read { path: task.path.clone(), source };
        let file = match File::open(&task.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(failed)?,
        };
        let mut now = vec![0; pages.len() * PAGE_SIZE];
        let got = read_full_at(&file, &mut now, u64::from(pages.start) * PAGE_SIZE as u64).map_err(failed)?;
        let is_unchanged = |number: &u32| !changed.iter().any(|range| range.contains(number));
        // What is behind a truncation since the start is not there.
        let pages: Vec<_> = pages
            .zip(now.get(..got).unwrap_or_default().chunks_exact(PAGE_SIZE))
            .filter(|(number, _)| is_unchanged(number))
            .collect();
        let mut frames = HashMap::new();
        for pages in pages.chunks(AT_ONCE) {
            let places: Vec<_> = pages.iter().map(|(number, _)| self.place(task, *number)).collect();
            self.fetch_all(&places, &mut frames).await?;
            for ((number, now), place) in pages.iter().zip(places) {
                if found.len() > NAMED {
                    return Ok(());
                }
                let before = match place {
                    Place::Nowhere => continue,
                    Place::Zeros => &[0; PAGE_SIZE],
                    Place::Frame(frame, start) => {
                        let plain = frames.get(&frame).and_then(|plain: &Vec<u8>| plain.get(start..start + PAGE_SIZE));
                        let Some(plain) = plain else { continue };
                        plain
                    }
                };
                let Some(_) = self.compare(before, now) else { continue };
                // It may just be being written.
                tokio::time::sleep(Duration::from_millis(50)).await;
                let mut again = [0; PAGE_SIZE];
                let got = read_full_at(&file, &mut again, u64::from(*number) * PAGE_SIZE as u64).map_err(failed)?;
                if got == PAGE_SIZE
                    && let Some(why) = self.compare(before, &again)
                {
                    found.push(Mismatch { name: task.name.clone(), relation: task.relation, page: *number, why });
                }
            }
        }
        Ok(())
    }

    /// Where the base has a page.
    fn place(&self, task: &FileTask, number: u32) -> Place {
        let Some((_, runs, map)) = self.base.file(&task.name) else { return Place::Nowhere };
        let wanted = u64::from(number) * PAGE_SIZE as u64;
        let mut at = 0;
        for run in runs {
            if wanted >= at + run.len {
                at += run.len;
                continue;
            }
            return match run.source {
                RunSource::Frame { frame, at: start } => {
                    Place::Frame((map, frame), start as usize + (wanted - at) as usize)
                }
                RunSource::Zeros => Place::Zeros,
            };
        }
        Place::Nowhere
    }

    /// Keeps what is needed still, and brings what is missing.
    async fn fetch_all(&self, places: &[Place], frames: &mut HashMap<BaseFrame, Vec<u8>>) -> Result<(), BackupError> {
        let frame = |place: &Place| if let Place::Frame(frame, _) = place { Some(*frame) } else { None };
        let needed: HashSet<BaseFrame> = places.iter().filter_map(frame).collect();
        frames.retain(|frame, _| needed.contains(frame));
        let missing: Vec<BaseFrame> = needed.into_iter().filter(|frame| !frames.contains_key(frame)).collect();
        let fetches = missing
            .into_iter()
            .map(async |frame| fetch(self.keyring, self.base, frame).await.map(|plain| (frame, plain)));
        let fetching = stream::iter(fetches).buffer_unordered(FETCHES).try_collect::<Vec<_>>();
        tokio::select! {
            fetched = fetching => frames.extend(fetched?),
            () = self.cancel.cancelled() => return Err(Cancelled.into()),
        }
        Ok(())
    }

    /// Why the two cannot be the same page without a word in the log.
    fn compare(&self, before: &[u8], now: &[u8]) -> Option<&'static str> {
        compare(before, now, self.start, self.strict_from)
    }
}

/// The plain bytes of a frame of the base.
pub(crate) async fn fetch(keyring: &Keyring, base: &Base, key: BaseFrame) -> Result<Vec<u8>, BackupError> {
    let (pack, frame) = base.frame(key).ok_or(BackupError::Worker)?;
    let reader = keyring.pack(&pack).await?;
    let location = frame.location;
    let range = location.offset..location.offset + u64::from(location.sealed_len);
    let mut sealed = reader.fetch(range).await?.to_vec();
    let mut plain = Vec::new();
    reader.open(location, &mut sealed, &mut Decompressor::new(), &mut plain)?;
    Ok(plain)
}

fn lsn(page: &[u8]) -> Lsn {
    page.first_chunk::<PAGE_SIZE>().map_or(Lsn::ZERO, page::lsn)
}

fn compare(before: &[u8], now: &[u8], start: Lsn, strict_from: Option<Lsn>) -> Option<&'static str> {
    if before == now || lsn(now) >= start || is_unused(before) && is_unused(now) {
        return None;
    }
    if lsn(before) != lsn(now) {
        return Some("it was written again, and the log does not say so");
    }
    if strict_from.is_some_and(|from| lsn(now) >= from) && !is_spgist_meta(now) {
        return Some("its content changed, and its position in the log did not");
    }
    // Lower, upper, special, size and version: hints change none of them.
    (before.get(12..20) != now.get(12..20)).then_some("its layout changed, and its position in the log did not")
}

/// A file grows by pages that hold nothing, and to prepare one for use needs no record: it is all zeros or a header, and
/// which of the two differs from server to server, and after a crash.
pub(crate) fn is_unused(page: &[u8]) -> bool {
    let word = |at| page.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
    let is_empty = || word(12) == Some(PAGE_HEADER) && word(14) == word(16) && lsn(page) == Lsn::ZERO;
    page.iter().all(|byte| *byte == 0) || is_empty()
}

/// Where there was room last is noted there without a record, on purpose (`SpGistUpdateMetaPage`).
fn is_spgist_meta(page: &[u8]) -> bool {
    page.ends_with(&SPGIST_PAGE)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use holdfast_types::SnapshotId;

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
    fn chance_passes_over_no_page() {
        let read = FileTask { reading: Reading::Whole, ..task("f", 24 * REGION) };
        let files = [task("b", 500_000), task("a", 3), task("c", 131_072), task("d", 1024), task("e", 400_000), read];
        let regions = 1008;
        let mut hits = vec![0_u32; regions];
        let pages: Vec<u32> = files.iter().map(|file| (file.size / PAGE_SIZE as u64) as u32).collect();
        // As they lie in a row: by name.
        let first = |number: usize| -> u32 {
            let before = |other: &usize| files[*other].name < files[number].name;
            (0..files.len()).filter(before).map(|other| pages[other]).sum()
        };
        // Three regions of 1008 each time, as 24 are read: 8192 audits are 24 looks at each.
        for seed in 0..8192 {
            let chosen = choose(&files, seed * 97);
            let mut seen: Vec<u32> = chosen
                .iter()
                .flat_map(|(number, part)| [part.start, part.end - 1].map(|page| (first(*number) + page) / REGION))
                .collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 3, "regions are chosen without repetition");
            for region in seen {
                hits[region as usize] += 1;
            }
        }
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(*least >= 5 && *most <= 60, "between {least} and {most} looks at a region");
        let looked_at = |files: &[FileTask]| choose(files, 7).iter().map(|(_, part)| part.len()).sum::<usize>();
        assert_eq!(looked_at(&files[..5]), 2 * REGION as usize, "where nothing is read");
        assert!(choose(&[], 7).is_empty());
        assert_eq!(choose(&[task("a", 3)], 7), [(0, 0..3)]);
    }

    fn page_at(lsn: u64) -> Vec<u8> {
        let mut page = vec![7; PAGE_SIZE];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page
    }

    #[test]
    fn hints_are_let_pass_where_another_server_may_have_set_them() {
        let start = Lsn::new(1000);
        let (before, mut now) = (page_at(500), page_at(500));
        now[4000] ^= 1;
        // The server that wrote the page would have logged it.
        assert!(compare(&before, &now, start, Some(Lsn::new(500))).is_some());
        // Written on the timeline before, or read from a standby.
        assert_eq!(compare(&before, &now, start, Some(Lsn::new(501))), None);
        assert_eq!(compare(&before, &now, start, None), None);
        // No hint touches the layout or the position.
        now[13] ^= 1;
        assert!(compare(&before, &now, start, None).is_some());
        assert!(compare(&before, &page_at(600), start, None).is_some());
        assert_eq!(compare(&before, &page_at(1000), start, Some(Lsn::ZERO)), None);
    }

    #[test]
    fn a_page_that_holds_nothing_may_be_prepared_without_a_record() {
        let zeros = vec![0; PAGE_SIZE];
        let mut prepared = zeros.clone();
        prepared[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
        prepared[8..10].copy_from_slice(&[1, 2]);
        let strict = Some(Lsn::ZERO);
        assert_eq!(compare(&zeros, &prepared, Lsn::new(9), strict), None);
        assert_eq!(compare(&prepared, &zeros, Lsn::new(9), strict), None);
        let mut filled = prepared.clone();
        filled[12] = 28;
        assert!(compare(&zeros, &filled, Lsn::new(9), strict).is_some());
        prepared[7] = 1;
        assert!(compare(&zeros, &prepared, Lsn::new(1 << 30), strict).is_some());
    }

    #[test]
    fn only_what_came_from_primaries_is_compared_byte_for_byte() {
        let summary = |number: u8, base: Option<u8>, from_standby| {
            let id = |number| SnapshotId::new("20260101T000000Z", [number; 4]).unwrap();
            Summary { id: id(number), base: base.map(id), from_standby, ..crate::changes::tests::summary(1, 0, 0) }
        };
        let at = Some(Lsn::new(5));
        let known = [summary(1, None, false), summary(2, Some(1), false), summary(3, Some(2), false)];
        assert_eq!(strict_from(true, false, at, &known[2], &known), at);
        assert_eq!(strict_from(false, false, at, &known[2], &known), None);
        assert_eq!(strict_from(true, true, at, &known[2], &known), None);
        assert_eq!(strict_from(true, false, None, &known[2], &known), None);
        assert_eq!(strict_from(true, false, at, &known[2], &known[1..]), None, "what it began with is gone");
        let known = [summary(1, None, true), summary(2, Some(1), false), summary(3, Some(2), false)];
        assert_eq!(strict_from(true, false, at, &known[2], &known), None, "its pages may be of a standby");
        let circle = [summary(1, Some(2), false), summary(2, Some(1), false)];
        assert_eq!(strict_from(true, false, at, &circle[0], &circle), None);
    }
}
