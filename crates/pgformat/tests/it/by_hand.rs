//! Comparisons with a whole cluster, run by hand:
//!
//! ```text
//! tests/fixtures/make.sh /usr/lib/postgresql/15/bin /tmp/scratch /tmp/out      (as an unprivileged user)
//! HOLDFAST_SCRATCH=/tmp/scratch cargo test --release -p holdfast-pgformat -- --ignored --nocapture
//! ```

use std::path::{Path, PathBuf};
use std::time::Instant;

use holdfast_pgformat::page::{checksum, verify};
use holdfast_pgformat::{ControlFile, PAGE_SIZE, PageVerdict, RelationFile, WalDecoder};
use holdfast_types::Segment;

use crate::oracle::Line;
use crate::waldump::MIB;

fn scratch() -> PathBuf {
    std::env::var_os("HOLDFAST_SCRATCH").expect("HOLDFAST_SCRATCH names the directory that make.sh filled").into()
}

fn megabytes_per_second(bytes: usize, begun: Instant) -> f64 {
    bytes as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

#[test]
#[ignore = "needs a cluster made by make.sh"]
fn all_of_the_log_is_what_pg_waldump_says() {
    let directory = scratch().join("primary/pg_wal");
    let mut segments: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("00000001"))
        .filter(|path| path.extension().is_none())
        .collect();
    segments.sort();
    let first = Segment::parse(&segments[0].file_name().unwrap().to_string_lossy(), MIB).unwrap();
    let log: Vec<u8> = segments.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();

    let mut decoder = WalDecoder::new(15, MIB, first.start(MIB)).unwrap();
    let mut lines = Vec::new();
    let end = decoder.feed(&log, &mut |record| lines.push(Line::of(&record))).unwrap_err();
    println!("{} records, end: {end}", lines.len());
    assert!(end.may_be_end());
    let text = std::fs::read_to_string(scratch().join("all.txt")).unwrap();
    let expected: Vec<_> = text.lines().filter_map(Line::parse).collect();
    for (line, expected) in lines.iter().zip(&expected) {
        assert_eq!(line, expected);
    }
    assert_eq!(lines.len(), expected.len());

    for piece in [usize::MAX, 1 << 20, 8192, 1000] {
        let (mut blocks, mut events, mut changes, begun) = (0, 0, 0, Instant::now());
        for _ in 0..10 {
            let mut decoder = WalDecoder::new(15, MIB, first.start(MIB)).unwrap();
            for piece in log.chunks(piece.min(log.len())) {
                let result = decoder.feed(piece, &mut |record| {
                    blocks += record.blocks().count();
                    events += usize::from(record.event().is_some());
                    changes += record.file_changes().len();
                });
                if result.is_err() {
                    break;
                }
            }
        }
        let rate = megabytes_per_second(log.len() * 10, begun);
        println!("pieces of {piece}: {rate:.0} MB/s, {blocks} blocks, {events} events, {changes} changes");
    }
}

fn relation_files(root: &Path, below: &Path, found: &mut Vec<(PathBuf, RelationFile)>) {
    for entry in std::fs::read_dir(root.join(below)).unwrap() {
        let path = below.join(entry.unwrap().file_name());
        if root.join(&path).is_dir() {
            relation_files(root, &path, found);
        } else if let Some(file) = RelationFile::parse(path.as_os_str().as_encoded_bytes()) {
            found.push((path, file));
        }
    }
}

#[test]
#[ignore = "needs a cluster made by make.sh"]
fn all_pages_of_a_cluster_are_valid() {
    let root = scratch().join("primary");
    let control = ControlFile::parse(&std::fs::read(root.join("global/pg_control")).unwrap()).unwrap();
    let mut files = Vec::new();
    relation_files(&root, Path::new(""), &mut files);
    let (mut valid, mut new) = (0, 0);
    for (path, file) in &files {
        let bytes = std::fs::read(root.join(path)).unwrap();
        let first = file.first_block(control.relseg_size).unwrap();
        for (block, page) in (first..).zip(bytes.chunks(PAGE_SIZE)) {
            match verify(page, block, control.checksums_enabled()) {
                PageVerdict::Valid => valid += 1,
                PageVerdict::New => new += 1,
                bad => panic!("{}: page {block}: {bad:?}", path.display()),
            }
        }
    }
    println!("{} files, {valid} valid pages, {new} new ones", files.len());
    assert!(valid > 1000);
}

#[test]
#[ignore = "a measurement"]
fn how_fast_checksums_are() {
    let pages: Vec<[u8; PAGE_SIZE]> = (0..1024u32).map(|seed| [seed as u8 | 1; PAGE_SIZE]).collect();
    for (name, rounds) in [("warm up", 20), ("8 MiB of pages", 400)] {
        let begun = Instant::now();
        let mut sum = 0u64;
        for round in 0..rounds {
            for (block, page) in pages.iter().enumerate() {
                sum += u64::from(checksum(page, block as u32 ^ round));
            }
        }
        let rate = megabytes_per_second(pages.len() * PAGE_SIZE * rounds as usize, begun) / 1000.0;
        println!("{name}: {rate:.1} GB/s ({sum})");
    }
}
