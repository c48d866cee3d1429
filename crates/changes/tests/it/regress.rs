//! PostgreSQL's own regression tests write a log, and every record of it is what `pg_waldump` says.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::PathBuf;
use std::process::{ChildStdout, Stdio};

use holdfast_changes::ChangeMap;
use holdfast_pgformat::{Fork, Record, Relation, WalDecoder};
use holdfast_testkit::{PgVersion, Postgres, TempRoot, command_as_server_user, require};
use holdfast_types::{Lsn, Segment, Timeline};

use crate::server::{MIB, Pages, build, checkpoint, compare, recorded, relation};

/// Where `scripts/fetch-regress.sh` puts the tests.
fn regression_tests(major: u32) -> PathBuf {
    let roots = if let Some(root) = std::env::var_os("HOLDFAST_PG_ROOT") {
        vec![PathBuf::from(root)]
    } else {
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/holdfast/postgresql"));
        std::iter::once("/var/cache/holdfast/postgresql".into()).chain(home).collect()
    };
    let folders = roots.into_iter().map(|root| root.join(format!("regress-{major}")));
    let mut there = folders.filter(|folder| folder.join("parallel_schedule").exists());
    there.next().unwrap_or_else(|| panic!("no regression tests: run scripts/fetch-regress.sh {major}"))
}

/// Runs them; how many passed. Some cannot: what they call in C is nowhere compiled.
fn run_regression_tests(server: &Postgres) -> usize {
    let tests = regression_tests(server.version().major());
    let bin = server.version().bin_directory();
    let output = TempRoot::new();
    let output = output.make_directory("output");
    // It only runs psql: that of 15 is at home on this system, where that of 18 may lack its C library.
    let regress = require(15).bin_directory().join("../lib/pgxs/src/test/regress/pg_regress");
    let mut command = command_as_server_user(regress);
    command.current_dir(&output).arg("--inputdir").arg(&tests).arg("--outputdir").arg(&output);
    command.arg("--bindir").arg(bin).arg("--dlpath").arg(bin.join("../lib"));
    command.arg("--host").arg(server.socket_directory()).arg("--port").arg(server.port().to_string());
    command.args(["--user", "postgres", "--max-connections", "10", "--schedule"]);
    command.arg(tests.join("parallel_schedule"));
    let outcome = command.output().unwrap();
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let is_passed = |line: &&str| line.starts_with("ok ") || line.contains("... ok");
    let passed = text.lines().filter(is_passed).count();
    assert!(passed > 100, "{text}\n{}", String::from_utf8_lossy(&outcome.stderr));
    passed
}

/// What is compared of a reference to a page: its number, the page, and whether an image of it is there.
type Reference = (u8, Relation, Fork, u32, bool);

/// What is compared of a record.
#[derive(Debug, PartialEq)]
struct Line {
    lsn: Lsn,
    previous: Lsn,
    length: u32,
    xid: u32,
    references: Vec<Reference>,
}

impl Line {
    fn of(record: &Record<'_>) -> Self {
        let reference = |block: holdfast_pgformat::wal::BlockRef| {
            (block.id, block.relation(), block.fork, block.block, block.has_image)
        };
        let references = record.blocks().map(reference).collect();
        let (lsn, previous, length, xid) = (record.lsn, record.previous, record.length, record.xid);
        Self { lsn, previous, length, xid, references }
    }

    /// `rmgr: Heap len (rec/tot): 54/150, tx: 731, lsn: 0/01500028, prev 0/01500000, desc: INSERT off 3, blkref #0: rel
    /// 1663/5/16384 fork vm blk 7 FPW`
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("rmgr: ")?.split_once(" len (rec/tot):")?.1;
        let (lengths, rest) = rest.split_once(", tx:")?;
        let (xid, rest) = rest.split_once(", lsn: ")?;
        let (lsn, rest) = rest.split_once(", prev ")?;
        let (previous, rest) = rest.split_once(',').unwrap_or((rest, ""));
        // A description may hold anything, such as the name of a restore point or a logical message, but the references
        // come last.
        let at = rest.find("blkref #0: rel ").or_else(|| rest.find("blkref #"));
        let references = at.map(|at| rest.split_at(at).1).unwrap_or_default();
        let references = references.split("blkref #").filter(|text| !text.is_empty()).map(reference);
        Some(Self {
            lsn: lsn.parse().ok()?,
            previous: previous.trim().parse().ok()?,
            length: lengths.split_once('/')?.1.trim().parse().ok()?,
            xid: xid.trim().parse().ok()?,
            references: references.collect::<Option<_>>()?,
        })
    }
}

/// `0: rel 1663/5/16384 fork vm blk 7 FPW`
fn reference(text: &str) -> Option<Reference> {
    let (id, rest) = text.split_once(": rel ")?;
    let words: Vec<&str> = rest.split([' ', ',', ';']).collect();
    let (fork, block, rest) = match words[1..] {
        ["fork", fork, "blk", block, ..] => (fork, block, &words[5..]),
        ["blk", block, ..] => ("main", block, &words[3..]),
        _ => return None,
    };
    let fork = Fork::ALL.into_iter().find(|known| known.name() == fork)?;
    Some((id.parse().ok()?, relation(words[0]), fork, block.parse().ok()?, rest.contains(&"FPW")))
}

/// Takes `pg_waldump`'s lines as the decoder gives records.
struct Dump {
    lines: Lines<BufReader<ChildStdout>>,
    pages: Pages,
    records: u64,
    references: u64,
    images: u64,
    disagreements: Vec<String>,
}

impl Dump {
    fn next(&mut self) -> Option<(String, Line)> {
        loop {
            let text = self.lines.next()?.unwrap();
            if text.starts_with("rmgr: ") {
                let line = Line::parse(&text).unwrap_or_else(|| panic!("not understood: {text}"));
                return Some((text, line));
            }
        }
    }

    fn take(&mut self, record: &Record<'_>) {
        let ours = Line::of(record);
        let theirs = self.next();
        if let Some((_, line)) = &theirs {
            for (_, relation, fork, block, image) in &line.references {
                self.pages.entry((*relation, *fork)).or_default().insert(*block);
                self.references += 1;
                self.images += u64::from(*image);
            }
        }
        self.records += 1;
        if theirs.as_ref().map(|(_, line)| line) != Some(&ours) {
            self.disagreements.push(format!("{ours:?}\n{theirs:?}"));
            assert!(self.disagreements.len() < 20, "{}", self.disagreements.join("\n"));
        }
    }
}

fn the_log_of_the_regression_tests(version: &PgVersion) {
    let server = build(version).start();
    let start = checkpoint(&server);
    let passed = run_regression_tests(&server);
    let end = checkpoint(&server);

    let wal = server.data_directory().join("pg_wal");
    let mut command = command_as_server_user(version.bin("pg_waldump"));
    command.arg("-p").arg(&wal).args(["-s", &start.to_string(), "-e", &end.to_string()]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut dump = Dump { lines, pages: Pages::new(), records: 0, references: 0, images: 0, disagreements: Vec::new() };
    let mut map = ChangeMap::default();
    let mut decoder = WalDecoder::new(version.major(), MIB, start).unwrap();
    let mut segment = Segment::containing(Timeline::FIRST, start, MIB);
    while decoder.next_byte() < end {
        let bytes = std::fs::read(wal.join(segment.file_name(MIB))).unwrap();
        let skip = decoder.next_byte().bytes_since(segment.start(MIB)) as usize;
        let decoded = decoder.feed(&bytes[skip..], &mut |record| {
            if record.lsn < end {
                map.note(&record);
                dump.take(&record);
            }
        });
        if let Err(error) = decoded {
            assert!(decoder.position() >= end, "{error}");
            break;
        }
        segment = segment.next();
    }
    assert_eq!(dump.next().map(|(text, _)| text), None, "records that were not decoded");
    assert!(child.wait().unwrap().success());
    let Dump { pages, records, references, images, disagreements, .. } = dump;
    println!(
        "PostgreSQL {version}: {passed} regression tests passed; {start} to {end}, {} MiB; {records} records, \
         {references} references to pages, {images} images, {} relations, {} pages changed; {} disagreements",
        end.bytes_since(start) >> 20,
        map.relations(),
        map.pages(),
        disagreements.len()
    );
    assert!(disagreements.is_empty(), "{}", disagreements.join("\n"));
    assert!(records > 100_000 && references > 100_000, "too little to mean anything");
    compare(&recorded(&map), &pages);
    assert_eq!(map.unknown(), None);
}

#[test]
#[ignore = "takes minutes: make soak"]
fn the_log_of_the_regression_tests_15() {
    the_log_of_the_regression_tests(&require(15));
}

#[test]
#[ignore = "takes minutes: make soak"]
fn the_log_of_the_regression_tests_18() {
    the_log_of_the_regression_tests(&require(18));
}
