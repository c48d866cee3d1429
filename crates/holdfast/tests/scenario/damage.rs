//! Damage in the repository is found and named, and never becomes a wrong byte; damage in the database is stored as it
//! is, and named.

use std::fs::FileTimes;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_testkit::{Postgres, StopMode, own, require};

use crate::chance::Chance;
use crate::site::{Site, lsn};

/// How an object is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Flip,
    Truncate,
    Delete,
    /// Two of the same class change their content.
    Swap,
}

const HARMS: [Harm; 4] = [Harm::Flip, Harm::Truncate, Harm::Delete, Harm::Swap];

/// Of the log, as the server here is made.
const SEGMENT: u64 = 1 << 20;

/// Where a segment of that size begins, by its name.
fn segment_start(name: &str) -> u64 {
    let part = |at: usize| u64::from_str_radix(&name[at..at + 8], 16).expect("a segment has digits");
    (part(8) << 32) + part(16) * SEGMENT
}

/// Classes of objects, by the folder of their names.
const CLASSES: [&str; 7] = ["config", "keys", "packs", "maps", "snapshots", "wal", "pieces"];

#[test]
fn every_class_of_object_is_damaged() {
    let mut chance = Chance::new("damage");
    let server = Postgres::build(&require(15)).initdb_arg("--wal-segsize=1").start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 5000) i");
    // Two of each class, so that they can be swapped.
    let first = site.backup();
    let start = lsn(first["snapshot"]["start_lsn"].as_str().expect("a backup begins somewhere"));
    server.sql("select pg_switch_wal(); insert into t select i, 'second' from generate_series(1, 1000) i");
    site.backup();
    for number in 0..20 {
        server.sql(&format!("insert into t select {number}, repeat(md5(i::text), 5) from generate_series(1, 500) i"));
        site.await_durable(&server);
    }
    // Some pieces of a segment that stays open.
    server.sql("select pg_switch_wal()");
    for number in 0..3 {
        server.sql(&format!("insert into t values ({number}, 'third')"));
        site.await_durable(&server);
    }
    let digest = server.sql(DIGEST);
    site.await_durable(&server);
    receiver.stop();
    drop(server);
    site.verify();
    let truth = site.restore("truth", &[]);
    assert_eq!(truth.server.sql(DIGEST), digest);
    truth.discard();

    let whole = site.path("whole");
    std::fs::rename(site.repository(), &whole).expect("the repository can be moved");
    let mut silent = Vec::new();
    let whole_segments = objects(&whole, "wal");
    let is_promised = |name: &String| match name.rsplit_once('/') {
        // Log before the first snapshot leads nowhere.
        Some((_, segment)) if name.starts_with("wal/") => segment_start(segment) + SEGMENT > start,
        // What is in a whole segment need not be in pieces.
        Some((folder, _)) if name.starts_with("pieces/") => {
            let (_, segment) = folder.rsplit_once('/').expect("pieces have a folder for each segment");
            !whole_segments.iter().any(|whole| whole.ends_with(segment))
        }
        _ => true,
    };
    for class in CLASSES {
        let mut objects = objects(&whole, class);
        objects.retain(is_promised);
        assert!(!objects.is_empty(), "there is nothing in {class}");
        for harm in HARMS {
            let copy = Command::new("cp").arg("-a").arg(&whole).arg(site.repository()).status();
            assert!(copy.expect("cp can be run").success());
            // Not the last: what ends a little earlier is not damaged, as far as anybody can know.
            let victim = &objects[chance.number(objects.len().max(2) as u64 - 1) as usize];
            let Some(named) = damage(&site.repository(), class, victim, &objects, harm, &mut chance) else { continue };
            let outcome = judge(&site, &digest);
            println!("{harm:?} of {victim}: verify {:?}, restore {:?}", outcome.verify, outcome.restore);
            let Outcome { verify, names, restore, wrong, .. } = &outcome;
            assert!(!wrong, "a wrong byte after {harm:?} of {victim}: {outcome:#?}");
            let is_named = named.iter().any(|name| names.contains(name));
            // A snapshot that is not there was never promised, as far as anybody can know: its removal is no damage.
            let cannot_be_known = class == "snapshots" && harm == Harm::Delete;
            // Without it nothing can be opened, nor named.
            let is_refused = class == "config" && *verify != Some(0) && *restore != Some(0);
            if !(matches!(verify, Some(3)) && is_named || cannot_be_known || is_refused) {
                silent.push(format!("{harm:?} of {victim}: {outcome:#?}"));
            }
            std::fs::remove_dir_all(site.repository()).expect("it is ours");
        }
    }
    assert!(silent.is_empty(), "`verify` did not notice, or did not name:\n{}", silent.join("\n"));
}

const DIGEST: &str = "select count(*), md5(string_agg(t::text, ',' order by id, text)) from t";

#[derive(Debug)]
struct Outcome {
    verify: Option<i32>,
    /// What `verify` said.
    names: String,
    restore: Option<i32>,
    /// And what it said, for people.
    #[expect(dead_code, reason = "shown when the test fails")]
    said: String,
    /// The restored cluster is not what it claims to be.
    wrong: bool,
}

fn judge(site: &Site, digest: &str) -> Outcome {
    let verified = site.run(&["verify", "--json"]);
    let restored = site.try_restore("restored", &[]);
    let directory = site.path("restored");
    let mut wrong = false;
    if restored.code == Some(0) {
        let server = Postgres::attach(&require(15), &directory);
        wrong = server.try_sql(DIGEST).as_deref() != Ok(digest);
    } else if directory.join("postmaster.pid").exists() {
        // It was started, and stopped by itself or left running; it must not have been opened.
        drop(stop_what_runs(&directory));
    }
    if directory.exists() {
        std::fs::remove_dir_all(&directory).expect("it is ours");
    }
    Outcome {
        verify: verified.code,
        names: verified.stdout + &verified.stderr,
        restore: restored.code,
        said: restored.stderr.lines().last().unwrap_or_default().chars().take(400).collect(),
        wrong,
    }
}

fn stop_what_runs(directory: &Path) -> Result<String, String> {
    let mut stop = holdfast_testkit::command_as_server_user(require(15).bin("pg_ctl"));
    holdfast_testkit::run(stop.args(["stop", "-m", "immediate", "-D"]).arg(directory))
}

/// The objects of a class by name, sorted.
fn objects(root: &Path, class: &str) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root.join(class), &mut found);
    let name = |path: PathBuf| path.strip_prefix(root).expect("it is below").display().to_string();
    let mut names: Vec<String> = found.into_iter().map(name).collect();
    names.sort();
    names
}

/// Damages an object; what may be named for it, or nothing if there are not enough objects.
fn damage(
    root: &Path,
    class: &str,
    victim: &str,
    objects: &[String],
    harm: Harm,
    chance: &mut Chance,
) -> Option<Vec<String>> {
    let path = root.join(victim);
    let mut bytes = std::fs::read(&path).expect("it can be read");
    let named = vec![victim.to_owned()];
    match harm {
        Harm::Flip => {
            let at = chance.number(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << chance.number(8);
            std::fs::write(&path, bytes).expect("it can be written");
        }
        Harm::Truncate => {
            bytes.truncate(chance.number(bytes.len() as u64) as usize);
            std::fs::write(&path, bytes).expect("it can be written");
        }
        Harm::Delete => std::fs::remove_file(&path).expect("it can be deleted"),
        Harm::Swap => {
            let other = objects.iter().find(|name| *name != victim)?;
            let of_other = std::fs::read(root.join(other)).expect("it can be read");
            std::fs::write(&path, of_other).expect("it can be written");
            std::fs::write(root.join(other), bytes).expect("it can be written");
            own(root);
            return Some(vec![victim.to_owned(), other.clone()]);
        }
    }
    own(root);
    // A stretch of log that is missing is named by its position, a key by its epoch, the configuration by its folder.
    match (class, harm) {
        ("wal" | "pieces", Harm::Delete) => Some(vec!["GAP".into(), "gap".into(), "missing".into(), "lacks".into()]),
        ("keys", Harm::Delete) => Some(vec![victim.rsplit_once('/')?.0.to_owned()]),
        _ => Some(named),
    }
}

/// A change map saves work and proves nothing: where one is damaged, the log is read in its place, the backup says so, and
/// has the same pages.
#[test]
fn damaged_change_maps() {
    let mut chance = Chance::new("damaged change maps");
    let server = Postgres::build(&require(15)).initdb_arg("--wal-segsize=1").setting("autovacuum", "off").start();
    let site = Site::protecting(&server);
    server.sql(
        "create table t as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 20000) i;
         create index on t (id); vacuum freeze t",
    );
    let mut receiver = site.receive(&server, &[]);
    site.backup();
    for harm in HARMS {
        let before = objects(&site.repository(), "changes");
        // Each run of the receiver leaves a map, of a segment of its own, with a page that no other names.
        for _ in 0..4 {
            server.switch_wal();
            server.sql(&format!("update t set text = md5(text) where id = {}", 1 + chance.number(20_000)));
            site.await_durable(&server);
            receiver.stop();
            receiver = site.receive(&server, &[]);
        }
        let mut maps = objects(&site.repository(), "changes");
        maps.retain(|map| !before.contains(map));
        // The first one begins before the backup that is built on, so the log itself is read there in any case.
        maps.remove(0);
        let victim = maps[chance.number(maps.len() as u64) as usize].clone();
        let named =
            damage(&site.repository(), "changes", &victim, &maps, harm, &mut chance).expect("there are several");
        let made = site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"]).expect(0);
        let report = made.json();
        let (size, read) = (report["snapshot"]["bytes"].as_u64(), report["snapshot"]["read_bytes"].as_u64());
        println!("{harm:?} of {victim}: read {read:?} of {size:?}, notes {}", report["notes"]);
        assert_eq!(report["snapshot"]["kind"], "incremental", "{report:#}");
        // Nobody knows of a map that is not there.
        let is_known = harm != Harm::Delete;
        let is_said = |name: &String| {
            let mut lines = made.stderr.lines();
            lines.any(|line| line.contains(name.as_str()) && line.contains("the log is read instead"))
        };
        assert_eq!(named.iter().map(is_said).collect::<Vec<_>>(), vec![is_known; named.len()], "{made:#?}");
        let verified = site.run(&["verify"]).expect(0).says("everything can be read back");
        assert_eq!(verified.stdout.contains(&victim), is_known, "{verified:#?}");
        site.await_durable(&server);
        let restored = site.restore("restored", &[]);
        assert_eq!(restored.server.sql(DIGEST), server.sql(DIGEST), "{harm:?} of {victim}");
        restored.prove_clean();
    }
    receiver.stop();
}

/// Garbage in a table's file: the backup has it as it is, and says so, and so does all that comes of it.
#[test]
fn a_damaged_page_in_the_database_15() {
    a_damaged_page_in_the_database(15);
}

#[test]
fn a_damaged_page_in_the_database_18() {
    a_damaged_page_in_the_database(18);
}

fn a_damaged_page_in_the_database(major: u32) {
    let mut server = Postgres::build(&require(major)).start();
    server.sql("create table victim as select i as id, repeat('x', 500) as text from generate_series(1, 1000) i");
    server.sql("create table bystander as select i as id from generate_series(1, 1000) i");
    let file = server.data_directory().join(server.sql("select pg_relation_filepath('victim')"));
    server.stop(StopMode::Fast);
    let times = std::fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("it is there");
    let open = std::fs::OpenOptions::new().write(true).open(&file).expect("it can be written");
    open.write_all_at(b"garbage", 8192 * 3 + 4000).expect("it can be written");
    // As a disk does it: no time tells.
    open.set_times(FileTimes::new().set_modified(times)).expect("it is ours");
    server.start();

    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    let backup = site.run(&["backup", "chat", "--json", "--fast"]).expect(3).json();
    let damage = backup["damage"].as_array().expect("a backup lists damage");
    assert!(damage.len() == 1 && damage[0]["block"] == 3, "{backup:#}");
    assert!(damage[0]["relation"].as_str().is_some_and(|relation| relation.contains("victim")), "{backup:#}");
    let id = backup["snapshot"]["id"].as_str().expect("a backup has an id");
    site.run(&["show", "chat", id]).expect(0).says("DAMAGED PAGES").says("victim").says("block 3");
    site.run(&["list", "chat"]).expect(0).says("1 page\n");
    site.verify();
    site.await_durable(&server);
    let to = site.path("restored").display().to_string();
    site.run(&["restore", "chat", "--to", &to]).expect(3).says("DAMAGED").says("block 3");
    let copy = Postgres::open(server.version(), &to).start();
    assert_eq!(copy.sql("select count(*) from bystander"), "1000");
    assert!(copy.try_sql("select count(text) from victim").is_err());
    receiver.stop();
}
