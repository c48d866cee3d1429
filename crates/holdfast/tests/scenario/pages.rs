//! Two stopped clusters, relation by relation, page by page, as `wal_consistency_checking` compares: what replay does
//! not promise is masked (bufmask.c, heapam_xlog.c, nbtxlog.c).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PAGE: usize = 8192;
const HEADER: usize = 24;
/// Committed and invalid, of `xmin` and `xmax`, and `HEAP_COMBOCID`, which belongs to the number of the command.
const TUPLE_HINTS: u16 = 0x0F20;
/// `PD_HAS_FREE_LINES`, `PD_PAGE_FULL`, `PD_ALL_VISIBLE`.
const PAGE_HINTS: u16 = 0x0007;
const SEQUENCE_MAGIC: u32 = 0x1717;
/// `BTP_HAS_GARBAGE`.
const HAS_GARBAGE: u16 = 1 << 6;
/// What pages of these indexes end with (hash.h, gist.h, spgist_private.h).
const HASH_PAGE: u16 = 0xFF80;
const GIST_PAGE: u16 = 0xFF81;
const SPGIST_PAGE: u16 = 0xFF82;
const SPGIST_META: u32 = 0xBA0B_ABEE;
/// `LH_PAGE_HAS_DEAD_TUPLES`.
const HASH_HAS_DEAD: u16 = 1 << 7;
/// `F_FOLLOW_RIGHT` and `F_HAS_GARBAGE`.
const GIST_HINTS: u16 = 1 << 3 | 1 << 4;
/// The largest vacuum cycle id; other index methods have larger page ids in its place.
const MAX_CYCLE: u16 = 0xFF7F;

/// Where two clusters differ, one line each.
pub(crate) fn differences(one: &Path, other: &Path) -> Vec<String> {
    let (ours, theirs) = (relation_files(one), relation_files(other));
    let mut found = Vec::new();
    let names: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    assert!(names.len() > 500, "a cluster has more relations than {}", names.len());
    for name in names {
        let read = |files: &BTreeMap<String, PathBuf>| {
            files.get(name).map_or_else(Vec::new, |path| std::fs::read(path).expect("it can be read"))
        };
        let (ours, theirs) = (read(&ours), read(&theirs));
        if ours == theirs {
            continue;
        }
        for block in 0..ours.len().max(theirs.len()).div_ceil(PAGE) {
            let (one, other) = (masked(&ours, block, name), masked(&theirs, block, name));
            if one != other {
                let at = one.iter().zip(&other).position(|(one, other)| one != other).unwrap_or_default();
                let (one, other) = (one.get(at..at + 16), other.get(at..at + 16));
                found.push(format!("{name} block {block}, byte {at}: {one:02x?} and {other:02x?}"));
            }
        }
    }
    found
}

/// A restored cluster and the server that it was made of are the same, but for unlogged relations: recovery empties them.
#[track_caller]
pub(crate) fn expect_twins(restored: &Path, server: &Path) {
    let mut found = differences(restored, server);
    let is_unlogged = |line: &String| {
        let file = line.split([' ', '.']).next().unwrap_or_default();
        server.join(format!("{file}_init")).exists()
    };
    found.retain(|line| !is_unlogged(line));
    let shown = found.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "{} pages differ:\n{shown}", found.len());
}

/// Whether a page that `differences` names is there in both of these clusters, and the same.
pub(crate) fn is_same(difference: &str, one: &Path, other: &Path) -> bool {
    let (name, rest) = difference.split_once(" block ").expect("a difference names a page");
    let block = rest.split(',').next().and_then(|number| number.parse().ok()).expect("a page has a number");
    let page = |cluster: &Path| {
        let file = std::fs::read(cluster.join(name)).ok()?;
        (file.len() > block * PAGE).then(|| masked(&file, block, name))
    };
    page(one).is_some_and(|one| page(other) == Some(one))
}

/// Main forks, visibility maps and init forks by their paths.
fn relation_files(cluster: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![cluster.join("base"), cluster.join("global"), cluster.join("pg_tblspc")];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("it can be read").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            // A tablespace is a link or a directory.
            if path.is_dir() {
                folders.push(path);
            } else if is_compared(&name) {
                let relative = path.strip_prefix(cluster).expect("it is below").display().to_string();
                found.insert(relative, path);
            }
        }
    }
    found
}

fn is_compared(name: &str) -> bool {
    name == "pg_filenode.map"
        || name.starts_with(|first: char| first.is_ascii_digit()) && !name.contains("_fsm") && !name.starts_with('t')
}

/// A page with zeros for all that replay does not promise; a page behind the end is all zeros, as an extension is.
fn masked(file: &[u8], block: usize, name: &str) -> Vec<u8> {
    let mut page = file.get(block * PAGE..).unwrap_or_default().to_vec();
    page.truncate(PAGE);
    page.resize(PAGE, 0);
    if name.ends_with("pg_filenode.map") || page.iter().all(|byte| *byte == 0) {
        return page;
    }
    // The checksum follows from the rest.
    page[8..10].fill(0);
    if name.contains("_vm") {
        // Bits are cleared together with a change of the table, and that does not touch the position.
        page[0..8].fill(0);
        return page;
    }
    clear(&mut page, 10, PAGE_HINTS);
    // The hint when to prune.
    page[20..24].fill(0);
    let (lower, upper, special) = (word(&page, 12), word(&page, 14), word(&page, 16));
    let is_sane = HEADER <= lower && lower <= upper && upper <= special && special <= PAGE;
    if !is_sane {
        return page;
    }
    page[lower..upper].fill(0);
    let is_sequence = PAGE - special == 8 && double(&page, special) == SEQUENCE_MAGIC;
    let id = if PAGE - special >= 2 { word(&page, PAGE - 2) as u16 } else { 0 };
    let has_id = |wanted| special < PAGE && id == wanted;
    let is_btree = PAGE - special == 16 && (word(&page, PAGE - 2) as u16) <= MAX_CYCLE;
    if is_sequence {
        // The log holds a value that lies ahead, so that not each number needs a record.
        page[upper..special].fill(0);
    } else if special == PAGE {
        mask_tuples(&mut page, lower);
    } else if has_id(SPGIST_PAGE) && double(&page, HEADER) == SPGIST_META {
        // Where there was room last, which every server remembers for itself.
        page[HEADER + 4..lower].fill(0);
    } else if has_id(GIST_PAGE) {
        mask_dead(&mut page, lower);
        // The position of the last split, and what only a scan that is under way needs.
        page[special..special + 8].fill(0);
        clear(&mut page, PAGE - 4, GIST_HINTS);
    } else if has_id(HASH_PAGE) {
        mask_dead(&mut page, lower);
        clear(&mut page, PAGE - 4, HASH_HAS_DEAD);
    } else if is_btree {
        mask_dead(&mut page, lower);
        clear(&mut page, PAGE - 4, HAS_GARBAGE);
        page[PAGE - 2..].fill(0);
    }
    page
}

/// Only that an entry is dead, which a reader may note.
fn mask_dead(page: &mut [u8], lower: usize) {
    for item in (HEADER..lower).step_by(4) {
        let pointer = double(page, item);
        page[item..item + 4].copy_from_slice(&(pointer & !(0b11 << 15)).to_le_bytes());
    }
}

fn mask_tuples(page: &mut [u8], lower: usize) {
    for item in (HEADER..lower).step_by(4) {
        let pointer = double(page, item);
        let (offset, flags, length) = ((pointer & 0x7FFF) as usize, (pointer >> 15) & 0b11, (pointer >> 17) as usize);
        // Only a normal one has storage.
        if flags != 1 || length < 23 || offset + length > page.len() {
            continue;
        }
        // The number of the command, which replay does not know.
        page[offset + 8..offset + 12].fill(0);
        clear(page, offset + 20, TUPLE_HINTS);
        let end = (offset + length.next_multiple_of(8)).min(page.len());
        page[offset + length..end].fill(0);
    }
}

fn word(page: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([page[at], page[at + 1]]))
}

fn double(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
}

fn clear(page: &mut [u8], at: usize, bits: u16) {
    let rest = word(page, at) as u16 & !bits;
    page[at..at + 2].copy_from_slice(&rest.to_le_bytes());
}
