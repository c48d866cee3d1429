//! Log that is fetched ahead of recovery: along timelines, by processes that are killed, beside what others left.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use holdfast_testkit::{PgVersion, Postgres, own, require, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::chance::Chance;
use crate::kills::find;
use crate::run::{Run, lsn};
use crate::site::{BOUND, Site};

/// Of the log, as the servers here are made.
const SEGMENT: u64 = 1 << 20;

fn name(timeline: u64, number: u64) -> String {
    let per_log = (1 << 32) / SEGMENT;
    format!("{timeline:08X}{:08X}{:08X}", number / per_log, number % per_log)
}

/// Fills segments with rows of `t`; how many rows there are then.
fn fill(server: &Postgres, segments: u32) -> u64 {
    server.sql("create table if not exists t (id int, text text)");
    for _ in 0..segments {
        server.sql("insert into t select i, repeat(md5(i::text), 20) from generate_series(1, 1000) i");
        server.sql("select pg_switch_wal()");
    }
    rows(server)
}

fn rows(server: &Postgres) -> u64 {
    server.sql("select count(*) from t").parse().expect("a count is a number")
}

fn await_recovered(server: &Postgres) {
    wait_until(3 * BOUND, "the end of recovery", || {
        server.try_sql("select pg_is_in_recovery()").is_ok_and(|is| is == "f")
    });
}

/// `wal get` by hand, with a directory for what is fetched ahead.
struct Getter<'a> {
    site: &'a Site,
    lineage: String,
    directory: PathBuf,
}

impl<'a> Getter<'a> {
    fn new(site: &'a Site) -> Self {
        let lineages = std::fs::read_dir(site.repository().join("wal/chat")).expect("there is log");
        let lineage = lineages.flatten().next().expect("there is a lineage").file_name();
        Self { site, lineage: lineage.into_string().expect("it is text"), directory: site.path("ahead") }
    }

    fn run(&self, segment: &str, timeline: &str) -> Run {
        let (to, ahead) = (self.site.path("got").display().to_string(), self.directory.display().to_string());
        let more = ["--partial", "--lineage", &self.lineage, "--prefetch", &ahead, "--timeline", timeline];
        self.site.run(&[&["wal", "get", "chat", segment, &to], &more[..]].concat())
    }

    #[track_caller]
    fn get(&self, segment: &str, timeline: &str) -> Vec<u8> {
        self.run(segment, timeline).expect(0);
        std::fs::read(self.site.path("got")).expect("it was fetched")
    }

    /// The same without anything fetched ahead.
    #[track_caller]
    fn get_directly(&self, segment: &str) -> Vec<u8> {
        let to = self.site.path("got").display().to_string();
        self.site.run(&["wal", "get", "chat", segment, &to, "--lineage", &self.lineage]).expect(0);
        std::fs::read(to).expect("it was fetched")
    }

    #[track_caller]
    fn await_ready(&self, segment: &str) {
        let path = self.directory.join(segment);
        wait_until(BOUND, "a segment to be fetched ahead", || path.exists());
    }
}

#[test]
fn log_is_fetched_ahead_along_timelines_15() {
    log_is_fetched_ahead_along_timelines(&require(15));
}

#[test]
fn log_is_fetched_ahead_along_timelines_18() {
    log_is_fetched_ahead_along_timelines(&require(18));
}

/// A promotion in the middle of the log that is replayed: what is ready is what recovery will ask for.
fn log_is_fetched_ahead_along_timelines(version: &PgVersion) {
    let mut primary = Postgres::build(version).initdb_arg("--wal-segsize=1").start();
    let standby = Postgres::standby_of(&primary).start();
    let site = Site::protecting(&standby);
    let mut receiver = site.start(&["wal", "receive", "chat", "--create-slot", "--json"]);
    site.await_streaming(&standby, &mut receiver);
    fill(&primary, 1);
    site.backup();
    fill(&primary, 20);
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    let has_all = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    wait_until(BOUND, "the standby to have all", || standby.sql(&has_all) == "t");
    primary.kill_9();
    // The control file names the new timeline from the next checkpoint on.
    standby.sql("select pg_promote(); checkpoint");
    let expected = fill(&standby, 5);
    site.await_durable(&standby);
    receiver.stop();
    let history = std::fs::read_to_string(standby.data_directory().join("pg_wal/00000002.history"));
    let history = history.expect("it was promoted");
    let switch = lsn(history.split('\t').nth(1).expect("a history has a position")) / SEGMENT;

    let getter = Getter::new(&site);
    let on_the_way: Vec<_> =
        (switch - 3..=switch + 3).map(|number| name(1 + u64::from(number >= switch), number)).collect();
    let truth: Vec<_> = on_the_way.iter().map(|segment| getter.get_directly(segment)).collect();
    getter.get(&name(1, switch - 4), "2");
    for segment in &on_the_way {
        getter.await_ready(segment);
    }
    assert!(!getter.directory.join(name(1, switch)).exists(), "recovery asks for it by the newer timeline's name");
    // What is ready is taken without the repository, or anything else of the configuration.
    let (repository, away) = (site.repository(), site.path("away"));
    std::fs::rename(&repository, &away).expect("it can be moved");
    std::fs::rename(site.path("identity.txt"), site.path("hidden.txt")).expect("it can be moved");
    for (segment, truth) in on_the_way.iter().zip(&truth) {
        assert!(getter.get(segment, "2") == *truth, "{segment} is not what it was");
    }
    // What is not there is not known to be missing.
    getter.run(&name(2, switch + 100), "2").expect(126);
    std::fs::rename(&away, &repository).expect("it can be moved");
    std::fs::rename(site.path("hidden.txt"), site.path("identity.txt")).expect("it can be moved");

    // Recovery goes back, as it does where the checkpoint is in a later segment than its redo position.
    getter.get(&name(1, switch - 2), "2");
    getter.await_ready(&name(1, switch - 1));
    getter.get(&name(1, switch - 18), "2");
    getter.await_ready(&name(1, switch - 17));
    // What fetches ahead may just be making a file there.
    wait_until(BOUND, "the directory to be gone", || std::fs::remove_dir_all(&getter.directory).is_ok());

    let restored = site.restore("restored", &[]);
    assert_eq!(rows(&restored.server), expected);
    let log = std::fs::read_to_string(site.path("restored/holdfast.start.log")).expect("a server was started");
    for segment in [name(1, switch - 1), name(2, switch), name(2, switch + 1)] {
        assert!(log.contains(&format!("restored log file \"{segment}\" from archive")), "no {segment} in:\n{log}");
    }
    restored.prove_clean();
    site.verify();
}

/// PostgreSQL reads ahead of what it replays.
#[test]
fn recovery_to_a_backups_end_fetches_nothing_behind_it() {
    let (_server, site, _) = with_log(8);
    let listed = site.run(&["list", "chat", "--json"]).expect(0).json();
    let snapshot = &listed["sources"][0]["snapshots"][0];
    let text = |field: &str| snapshot[field].as_str().expect("it is a text").to_owned();
    let last = lsn(&text("stop_lsn")) >> 20;
    let restored = site.restore("restored", &["--snapshot", &text("id")]);
    let log = std::fs::read_to_string(site.path("restored/holdfast.start.log")).expect("a server was started");
    assert!(log.contains(&format!("restored log file \"{}\"", name(1, last))), "{log}");
    assert!(!log.contains(&format!("restored log file \"{}\"", name(1, last + 1))), "{log}");
    restored.prove_clean();
}

/// A server and its site with so much log after the only backup; how many rows there are.
fn with_log(segments: u32) -> (Postgres, Site, u64) {
    let server = Postgres::build(&require(15)).initdb_arg("--wal-segsize=1").start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    fill(&server, 1);
    site.backup();
    let expected = fill(&server, segments);
    site.await_durable(&server);
    receiver.stop();
    (server, site, expected)
}

/// Restored, and not started.
fn laid_down(site: &Site) -> PathBuf {
    let directory = site.path("restored");
    site.run(&["restore", "chat", "--to", &directory.display().to_string()]).expect(0);
    directory
}

/// Whatever fetches ahead dies again and again, at any moment.
#[test]
fn what_fetches_ahead_is_killed() {
    let mut chance = Chance::new("replay");
    let (server, site, expected) = with_log(60);
    let directory = laid_down(&site);
    let mut opened = Postgres::open(server.version(), &directory).prepare();
    let mark = format!("{} ", site.path("holdfast").display());
    let (killed, is_over) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let Some(pid) = find(&[&mark, "wal prefetch"]) else { continue };
                chance.pause(Duration::ZERO, Duration::from_millis(30));
                // It may have ended by now.
                killed.fetch_add(u32::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()), Ordering::Relaxed);
            }
        });
        opened.start();
        await_recovered(&opened);
        is_over.store(true, Ordering::Relaxed);
    });
    let killed = killed.into_inner();
    println!("{killed} were killed");
    assert!(killed >= 3, "only {killed} were killed");
    assert_eq!(rows(&opened), expected);
    site.verify();
}

/// Where segments are fetched ahead to, by the restored settings.
fn ahead(data_directory: &Path) -> PathBuf {
    let settings = std::fs::read_to_string(data_directory.join("postgresql.auto.conf")).expect("there are settings");
    let (_, rest) = settings.split_once("--prefetch ").expect("it fetches ahead");
    data_directory.join(rest.split([' ', '\'']).next().expect("it names a directory"))
}

/// What a process left that died with the machine lies under the names of segments, and is none: zeros, as a file system
/// may make them of what was not synced. Taken for log, they would be its end.
#[test]
fn what_was_left_is_not_served() {
    let (server, site, expected) = with_log(10);
    let directory = laid_down(&site);
    let ahead = ahead(&directory);
    std::fs::create_dir_all(&ahead).expect("the sandbox can be written");
    let current = lsn(&server.sql("select pg_current_wal_flush_lsn()")) / SEGMENT;
    let mut left: Vec<_> = (0..=current + 1).map(|number| ahead.join(name(1, number))).collect();
    left.extend((0..=current + 1).map(|number| ahead.join(format!("{}.coming", name(1, number)))));
    for path in &left {
        std::fs::write(path, vec![0; SEGMENT as usize]).expect("the sandbox can be written");
    }
    for file in ["holdfast.lock", "serving", "wanted"] {
        std::fs::write(ahead.join(file), name(1, 1)).expect("the sandbox can be written");
    }
    own(&directory);
    let mut opened = Postgres::open(server.version(), &directory).prepare();
    opened.start();
    await_recovered(&opened);
    assert_eq!(rows(&opened), expected);

    // A restore over it has a directory of its own, and nothing of this one.
    opened.stop(holdfast_testkit::StopMode::Fast);
    let to = directory.display().to_string();
    site.run(&["restore", "chat", "--delta", "--to", &to]).expect(0);
    assert!(!ahead.exists() && self::ahead(&directory) != ahead, "{}", ahead.display());
    site.verify();
}
