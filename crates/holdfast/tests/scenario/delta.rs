//! Restoring over what is there: the result is that of a plain restore, byte for byte, and little is fetched for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_testkit::{PgVersion, Postgres, StartError, StopMode, default_version, own, require};
use serde_json::Value;

use crate::chance::{Chance, rounds};
use crate::mount::{SmallDisk, in_private_namespace};
use crate::pages::expect_twins;
use crate::site::Site;

const BEFORE: &str = "
    create table rows as select i as id, md5(i::text) || md5((i * 7)::text) || md5((i * 11)::text) as text
        from generate_series(1, 100000) i;
    create index on rows (id);
    create table gone as select i as id, md5(i::text) as text from generate_series(1, 5000) i;
    create unlogged table forgotten as select i as id from generate_series(1, 1000) i;
";
const AFTER: &str = "
    update rows set text = md5(text) where id % 5000 = 0;
    delete from rows where id between 20000 and 21000;
    insert into rows select i, repeat(md5(i::text), 3) from generate_series(1, 2000) i;
    drop table gone;
    create table made as select i as id from generate_series(1, 1000) i;
";

/// A server and what protects it, with a full backup, and after it some writes and an incremental one.
struct Story {
    server: Postgres,
    site: Site,
}

impl Story {
    fn new(before: impl FnOnce(&Postgres, &Site)) -> Self {
        Self::on(&default_version(), before)
    }

    fn on(version: &PgVersion, before: impl FnOnce(&Postgres, &Site)) -> Self {
        let server = Postgres::build(version).setting("autovacuum", "off").start();
        server.sql(BEFORE);
        let site = Site::protecting(&server);
        before(&server, &site);
        Self { server, site }
    }

    /// A full backup, a cluster that was made of it and went its own way, then writes and an incremental backup.
    fn with_old_copy(self, arguments: &[&str]) -> Self {
        let receiver = self.site.receive(&self.server, &[]);
        self.site.backup();
        self.site.await_durable(&self.server);
        let mut old = self.site.restore("old", arguments);
        old.server.sql("update rows set text = 'other' where id % 7000 = 0; create table other as select 1 as id");
        old.server.sql("create database other");
        old.server.stop(StopMode::Fast);
        drop(old);
        self.server.sql(AFTER);
        self.site.run(&["backup", "chat", "--type", "incremental", "--fast"]).expect(0);
        self.site.await_durable(&self.server);
        receiver.stop();
        self
    }

    /// A restore without a start; its report.
    #[track_caller]
    fn lay(&self, name: &str, arguments: &[&str]) -> Value {
        let to = self.site.path(name).display().to_string();
        self.site.run(&[&["restore", "chat", "--json", "--to", &to], arguments].concat()).expect(0).json()
    }

    #[track_caller]
    fn refuses(&self, name: &str, arguments: &[&str], why: &str) {
        let to = self.site.path(name);
        let before = tree(&to);
        let to = to.display().to_string();
        self.site.run(&[&["restore", "chat", "--to", &to], arguments].concat()).expect(11).says(why);
        expect_same(&before, &tree(Path::new(&to)), "a refused restore");
    }
}

/// All that is in a directory: kind and mode, and content or target.
type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

fn tree(root: &Path) -> Tree {
    fn walk(folder: &Path, root: &Path, found: &mut Tree) {
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            let metadata = path.symlink_metadata().expect("it is there");
            let content = if metadata.is_symlink() {
                path.read_link().expect("it is a link").into_os_string().into_encoded_bytes()
            } else if metadata.is_file() {
                without_mark(fs::read(&path).expect("it can be read"))
            } else {
                walk(&path, root, found);
                Vec::new()
            };
            found.insert(path.strip_prefix(root).expect("it is below").to_owned(), (metadata.mode(), content));
        }
    }
    let mut found = Tree::new();
    walk(root, root, &mut found);
    found
}

/// Each restore has a directory of its own in which its log is fetched ahead, and its settings name it.
fn without_mark(content: Vec<u8>) -> Vec<u8> {
    const BEFORE: &str = "--prefetch holdfast.prefetch/";
    match String::from_utf8(content) {
        Ok(text) => match text.split_once(BEFORE) {
            Some((before, after)) => {
                let after = after.trim_start_matches(|c: char| c.is_ascii_hexdigit());
                format!("{before}{BEFORE}{after}").into_bytes()
            }
            None => text.into_bytes(),
        },
        Err(binary) => binary.into_bytes(),
    }
}

#[track_caller]
fn expect_same(expected: &Tree, found: &Tree, what: &str) {
    let names: std::collections::BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    let differ: Vec<_> = names.into_iter().filter(|name| expected.get(*name) != found.get(*name)).collect();
    let shown = differ.get(..differ.len().min(20));
    assert!(differ.is_empty(), "{what} left {} files otherwise: {shown:?}", differ.len());
}

#[track_caller]
fn bytes(report: &Value, field: &str) -> u64 {
    let value = if field == "fetched_bytes" { &report[field] } else { &report["reused"][field] };
    value.as_u64().unwrap_or_else(|| panic!("no {field} in {report:#}"))
}

#[test]
fn over_an_older_copy_15() {
    over_an_older_copy(&require(15));
}

#[test]
fn over_an_older_copy_18() {
    over_an_older_copy(&require(18));
}

fn over_an_older_copy(version: &PgVersion) {
    let mut story = Story::on(version, |_, _| {}).with_old_copy(&[]);
    let plain = story.lay("plain", &[]);
    let old = tree(&story.site.path("old"));
    let to = story.site.path("old").display().to_string();
    let shown = story.site.run(&["restore", "chat", "--json", "--to", &to, "--delta", "--dry-run"]).expect(0).json();
    expect_same(&old, &tree(Path::new(&to)), "a dry run");

    let report = story.lay("old", &["--delta"]);
    expect_same(&tree(&story.site.path("plain")), &tree(Path::new(&to)), "a restore over an older copy");
    let (fetched, all) = (bytes(&report, "fetched_bytes"), bytes(&plain, "fetched_bytes"));
    println!("fetched {fetched} instead of {all}; {:#}", report["reused"]);
    assert!(fetched < all / 4, "{fetched} of {all}: {report:#}");
    assert!(bytes(&report, "deleted_files") > 200, "a database was deleted: {report:#}");
    assert_eq!(shown["comparison"]["reused"], report["reused"]);
    let announced = shown["comparison"]["fetch_bytes"].as_u64().expect("a number");
    assert!(announced <= fetched && announced > fetched / 8, "{announced} were announced, {fetched} fetched");

    // Once more, over the finished one: its recovery settings are all that differs, and it becomes the server's twin.
    let mut restored = story.site.restore("old", &["--delta"]);
    assert!(bytes(&restored.report, "fetched_bytes") < all / 20, "{:#}", restored.report);
    restored.server.stop(StopMode::Fast);
    story.server.stop(StopMode::Fast);
    expect_twins(restored.server.data_directory(), story.server.data_directory());
}

/// Does something to a data directory that a disk or a person might do; says what.
fn damage(directory: &Path, chance: &mut Chance) -> String {
    let files: Vec<PathBuf> = tree(directory)
        .into_iter()
        .filter(|(name, _)| !name.ends_with("pg_control") && directory.join(name).is_file())
        .map(|(name, _)| name)
        .collect();
    let name = files[chance.number(files.len() as u64) as usize].clone();
    let path = directory.join(&name);
    let len = path.metadata().expect("it is there").len();
    let open = || fs::File::options().write(true).open(&path).expect("it can be written");
    let what = match chance.number(7) {
        0 | 1 => {
            let at = chance.number(len.max(1));
            open().write_all_at(&[chance.number(256) as u8; 3], at).expect("it can be written");
            format!("other bytes at {at} of")
        }
        2 => {
            open().set_len(chance.number(len.max(1))).expect("it can be cut");
            "cut".to_owned()
        }
        3 => {
            open().set_len(len + chance.number(100_000)).expect("it can be extended");
            "extended".to_owned()
        }
        4 => {
            fs::remove_file(&path).expect("it can be removed");
            fs::create_dir(&path).expect("it is ours");
            "a directory for".to_owned()
        }
        5 => {
            fs::rename(&path, path.with_extension("moved")).expect("it can be renamed");
            "renamed".to_owned()
        }
        _ => {
            fs::remove_file(&path).expect("it can be removed");
            symlink("/etc/passwd", &path).expect("it is ours");
            "a link for".to_owned()
        }
    };
    format!("{what} {}", name.display())
}

#[test]
fn over_a_damaged_copy() {
    let mut chance = Chance::new("damaged copies");
    let story = Story::new(|_, _| {}).with_old_copy(&[]);
    let all = bytes(&story.lay("plain", &[]), "fetched_bytes");
    let expected = tree(&story.site.path("plain"));
    story.lay("copy", &["--delta"]);
    let copy = story.site.path("copy");
    expect_same(&expected, &tree(&copy), "--delta into a directory that is not there");
    let passwd = fs::read("/etc/passwd").expect("it can be read");
    for round in 0..rounds(4, 4) {
        let done: Vec<_> = (0..=chance.number(12)).map(|_| damage(&copy, &mut chance)).collect();
        // A second name for a file: what is behind the other must not change.
        let other = story.site.path(format!("other-{round}"));
        fs::hard_link(copy.join("PG_VERSION"), &other).ok();
        // Where the snapshot has zeros, nothing is fetched.
        let zeros = PathBuf::from("pg_multixact/offsets/0000");
        assert!(expected[&zeros].1.iter().all(|byte| *byte == 0), "the file was chosen for its zeros");
        fs::write(copy.join(&zeros), [1; 9000]).ok();
        own(&copy);
        println!("round {round}: {done:?}");
        let report = story.lay("copy", &["--delta"]);
        expect_same(&expected, &tree(&copy), "a restore over a damaged copy");
        assert!(bytes(&report, "fetched_bytes") < all / 2, "{report:#}");
    }
    assert_eq!(fs::read("/etc/passwd").expect("it can be read"), passwd);
}

#[test]
fn whose_directory_it_is() {
    let story = Story::new(|_, _| {}).with_old_copy(&[]);
    story.refuses("old", &[], "is not empty");
    // Another cluster, a running one, and one that nobody can tell.
    let mut stranger = Postgres::build(&default_version()).start();
    let strange = stranger.data_directory().to_owned();
    let to = strange.display().to_string();
    let refused = || story.site.run(&["restore", "chat", "--to", &to, "--delta"]).expect(11);
    refused().says("a server is running");
    stranger.stop(StopMode::Fast);
    let before = tree(&strange);
    refused().says("another cluster");
    expect_same(&before, &tree(&strange), "a refused restore");
    stranger.start();
    let to = story.server.data_directory().display().to_string();
    story.site.run(&["restore", "chat", "--to", &to, "--delta"]).expect(11).says("a server is running");

    // One that ran here and was killed is known to be gone; one that may run where we cannot see it is not.
    let mut killed = Postgres::open(story.server.version(), story.site.path("old")).start();
    killed.sql("select 1");
    let pid_file = story.site.path("old/postmaster.pid");
    let text = fs::read_to_string(&pid_file).expect("it runs");
    killed.kill_9();
    assert!(pid_file.exists(), "a killed server leaves its file");
    let (_, rest) = text.split_once('\n').expect("it has lines");
    let memory = rest.lines().nth(5).expect("it names shared memory");
    for elsewhere in [rest.replace(memory, "  12345678  87654321"), rest.replace(memory, "")] {
        fs::write(&pid_file, format!("1\n{elsewhere}")).expect("it can be written");
        story.refuses("old", &["--delta"], "remove its postmaster.pid");
    }
    fs::write(&pid_file, text).expect("it can be written");
    own(&pid_file);
    story.lay("old", &["--delta"]);

    let control = story.site.path("old/global/pg_control");
    let bytes = fs::read(&control).expect("it can be read");
    let mut damaged = bytes.clone();
    damaged[20] ^= 1;
    fs::write(&control, damaged).expect("it can be written");
    story.refuses("old", &["--delta"], "cannot be told");
    fs::remove_file(&control).expect("it is ours");
    story.refuses("old", &["--delta"], "cannot be told");
    fs::write(&control, bytes).expect("it can be written");
    own(&control);
    story.lay("old", &["--delta"]);
}

/// What cannot be carried to its end is refused while the old directory is still whole.
#[test]
fn nothing_is_touched_without_need() {
    in_private_namespace(|| {
        let story = Story::new(|_, _| {}).with_old_copy(&[]);
        let old = story.site.path("old");
        let before = tree(&old);
        let to = old.display().to_string();

        let folders = story.site.repository().join("packs").read_dir().expect("there are packs");
        let folder = folders.flatten().next().expect("there are packs").path();
        let pack = folder.read_dir().expect("it can be listed").flatten().next().expect("a pack").path();
        let content = fs::read(&pack).expect("it can be read");
        fs::remove_file(&pack).expect("it is ours");
        let new = story.site.path("new");
        for _ in 0..2 {
            let plain = new.display().to_string();
            for arguments in [&["--to", &to, "--delta"][..], &["--to", &to, "--delta", "--dry-run"], &["--to", &plain]]
            {
                story.site.run(&[&["restore", "chat"], arguments].concat()).expect(1).says("packs/");
            }
            expect_same(&before, &tree(&old), "a restore whose pack was missing or cut");
            assert!(!new.exists(), "a restore was begun whose pack was missing or cut");
            fs::write(&pack, &content[1..]).expect("it can be written");
            own(&pack);
        }
        fs::write(&pack, content).expect("it can be written");

        // What somebody has mounted in the directory is not the snapshot's, and not the old cluster's either.
        let disk = SmallDisk::mount(old.join("base/extra/disk"), 4);
        let kept = disk.path().join("kept");
        fs::write(&kept, "of somebody").expect("it can be written");
        own(&old);
        let before = tree(&old);
        story.refuses("old", &["--delta"], "another file system");
        story.refuses("old", &["--delta", "--dry-run"], "another file system");
        expect_same(&before, &tree(&old), "a restore over a mount point");
        fs::remove_file(&kept).expect("it is ours");
        drop(disk);
        story.lay("old", &["--delta"]);
    });
}

#[test]
fn killed_at_random_moments() {
    let mut chance = Chance::new("kills of restores over a copy");
    let story = Story::new(|_, _| {}).with_old_copy(&[]);
    let begun = Instant::now();
    story.lay("plain", &[]);
    let whole = begun.elapsed();
    let expected = tree(&story.site.path("plain"));
    let copy = story.site.path("old");
    let to = copy.display().to_string();
    let mut halves = 0;
    for round in 0..rounds(12, 4) {
        if copy.join("global/pg_control").exists() {
            for _ in 0..20 {
                damage(&copy, &mut chance);
            }
            own(&copy);
        }
        let restore = story.site.start(&["restore", "chat", "--to", &to, "--delta"]);
        chance.pause(Duration::ZERO, whole.mul_f64(1.5));
        let was_killed = restore.kill_9();
        let is_half = !copy.join("global/pg_control").exists();
        println!("round {round}: killed {was_killed}, half {is_half}");
        if is_half {
            halves += 1;
            let half = Postgres::open(story.server.version(), &copy).try_start();
            assert!(matches!(half, Err(StartError::Ended { .. })), "a half restore was started: {half:?}");
        } else if !was_killed {
            expect_same(&expected, &tree(&copy), "a restore over a copy");
        }
    }
    assert!(halves > 0, "no restore could be interrupted");
    story.lay("old", &["--delta"]);
    expect_same(&expected, &tree(&copy), "a repeated restore");
    story.site.verify();

    // One into an empty directory can be gone on with as well.
    let to = story.site.path("new").display().to_string();
    let restore = story.site.start(&["restore", "chat", "--to", &to]);
    chance.pause(whole / 10, whole);
    restore.kill_9();
    story.lay("new", &["--delta"]);
    expect_same(&expected, &tree(&story.site.path("new")), "a restore that was gone on with");
}

#[test]
fn from_another_directory() {
    let story = Story::new(|_, _| {}).with_old_copy(&[]);
    let all = bytes(&story.lay("plain", &[]), "fetched_bytes");
    let expected = tree(&story.site.path("plain"));
    let old = story.site.path("old").display().to_string();
    let before = tree(&story.site.path("old"));
    let report = story.lay("beside", &["--reuse", &old]);
    expect_same(&expected, &tree(&story.site.path("beside")), "a restore with another directory");
    expect_same(&before, &tree(&story.site.path("old")), "being reused");
    assert!(bytes(&report, "fetched_bytes") < all / 4, "{report:#}");
    assert!(bytes(&report, "copied_bytes") > 10 << 20 && bytes(&report, "kept_bytes") == 0, "{report:#}");

    // Two, one of them of the running server, and one that has nothing.
    let live = story.server.data_directory().display().to_string();
    let stranger = Postgres::build(&default_version()).start();
    let strange = stranger.data_directory().display().to_string();
    let report = story.lay("third", &["--reuse", &strange, "--reuse", &old, "--reuse", &live]);
    expect_same(&expected, &tree(&story.site.path("third")), "a restore with three directories");
    assert!(bytes(&report, "fetched_bytes") < all / 4, "{report:#}");
    let report = story.lay("old", &["--delta", "--reuse", &live]);
    expect_same(&expected, &tree(&story.site.path("old")), "a restore over a copy with another directory");
    assert!(bytes(&report, "kept_bytes") > 0 && bytes(&report, "copied_bytes") > 0, "{report:#}");
}

#[test]
fn with_a_tablespace() {
    let story = Story::new(|server, site| {
        let place = site.path("former");
        fs::create_dir(&place).expect("it is ours");
        own(&place);
        server.sql(&format!("create tablespace elsewhere location '{}'", place.display()));
        server.sql(
            "create table placed tablespace elsewhere as select i as id, md5(i::text) as text \
             from generate_series(1, 50000) i",
        );
    });
    let remap = |name: &str| format!("elsewhere={}", story.site.path(name).display());
    let (old, plain, third) = (remap("old-space"), remap("plain-space"), remap("third-space"));
    let story = story.with_old_copy(&["--tablespace", &old]);
    let all = bytes(&story.lay("plain", &["--tablespace", &plain]), "fetched_bytes");

    // Files of another release share the directory.
    let foreign = story.site.path("old-space/PG_14_202107181");
    fs::create_dir(&foreign).expect("it is ours");
    fs::write(foreign.join("file"), "of another release").expect("it is ours");
    let space = |name: &str| {
        let mut space = tree(&story.site.path(name));
        space.retain(|name, _| !name.starts_with("PG_14_202107181"));
        space
    };
    let report = story.lay("old", &["--delta", "--tablespace", &old]);
    expect_same(&space("plain-space"), &space("old-space"), "a tablespace");
    assert!(bytes(&report, "fetched_bytes") < all / 4, "{report:#}");
    assert_eq!(fs::read(foreign.join("file")).expect("it stays"), b"of another release");

    // One that is full and not this cluster's stays what it is; an empty one is filled.
    let before = tree(&story.site.path("plain-space"));
    story.refuses("old", &["--delta", "--tablespace", &plain], "not empty");
    expect_same(&before, &tree(&story.site.path("plain-space")), "a refused restore");
    story.lay("old", &["--delta", "--tablespace", &third]);
    expect_same(&space("plain-space"), &space("third-space"), "a new tablespace");

    // Places that lie in one another, or cannot be written.
    let locked = story.site.path("locked");
    fs::create_dir(&locked).expect("it is ours");
    own(&locked);
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).expect("it is ours");
    for (place, why) in
        [("old", "in one another"), ("old/inner", "in one another"), ("locked/space", "ermission denied")]
    {
        let to = story.site.path("old").display().to_string();
        let space = format!("elsewhere={}", story.site.path(place).display());
        let before = tree(Path::new(&to));
        let refused = story.site.run(&["restore", "chat", "--to", &to, "--delta", "--tablespace", &space]);
        assert!(refused.code != Some(0), "{place}: {refused:#?}");
        expect_same(&before, &tree(Path::new(&to)), "a refused restore");
        if place != "old" {
            refused.says(why);
        }
    }

    // A copy that leads to the tablespace of the server that runs.
    let link =
        story.site.path("old/pg_tblspc").read_dir().expect("it is there").flatten().next().expect("a link").path();
    fs::remove_file(&link).expect("it is ours");
    symlink(story.site.path("former"), &link).expect("it is ours");
    let before = tree(&story.site.path("former"));
    story.refuses("old", &["--delta"], "the running server");
    expect_same(&before, &tree(&story.site.path("former")), "a refused restore");

    fs::remove_file(&link).expect("it is ours");
    symlink(story.site.path("third-space"), &link).expect("it is ours");
    let restored = story.site.restore("old", &["--delta", "--tablespace", &third]);
    assert_eq!(restored.server.sql("select count(*), min(length(text)) from placed"), "50000|32");
    restored.prove_clean();
}
