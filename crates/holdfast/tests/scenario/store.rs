//! The store is away, or full; servers and receivers come and go. Nothing is lost, and all goes on.

use std::path::Path;
use std::time::Duration;

use holdfast_lab::Report;
use holdfast_testkit::{Postgres, StopMode, default_version, wait_until};

use crate::load::{Load, await_writes};
use crate::mount::{SmallDisk, in_private_namespace};
use crate::process::Background;
use crate::site::{BOUND, Site};

/// What may be lost with the server while the receiver streams.
const LOSS_SECONDS: f64 = 1.0;
/// How long the store is away: longer than the promise.
const AWAY: Duration = Duration::from_secs(3);

/// How many objects are in a spool or a repository's folder.
fn objects(folder: &Path) -> usize {
    let Ok(entries) = folder.read_dir() else { return 0 };
    let count = |entry: std::fs::DirEntry| {
        let is_temporary = entry.file_name().to_string_lossy().starts_with('.');
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match (is_temporary, is_folder) {
            (true, _) => 0,
            (false, true) => objects(&entry.path()),
            (false, false) => 1,
        }
    };
    entries.flatten().map(count).sum()
}

fn take_away(site: &Site) {
    std::fs::rename(site.repository(), site.path("away")).expect("the repository can be moved");
}

fn bring_back(site: &Site) {
    std::fs::rename(site.path("away"), site.repository()).expect("the repository can be moved");
}

/// Brings the cluster back with at most so many seconds lost; all that is left is whole.
#[track_caller]
fn recover(site: &Site, load: &Load, receiver: Background, seconds: f64) -> Report {
    let restored = site.restore("restored", &[]);
    let report = load.expect_loss_within(&restored.server, seconds);
    restored.prove_clean();
    receiver.stop();
    site.verify();
    report
}

#[test]
fn the_store_is_away_and_the_spool_takes_the_log() {
    let mut server = Postgres::build(&default_version()).start();
    let load = Load::on(&server, 5);
    let site = Site::with_spool(&server);
    let mut receiver = site.receive(&server, &[]);
    site.backup();
    let running = load.start(1);
    take_away(&site);
    wait_until(BOUND, "the spool to be used", || objects(&site.spool()) > 2);
    std::thread::sleep(AWAY);
    await_writes(&running, 500);
    receiver.expect_running();
    bring_back(&site);
    wait_until(BOUND, "the spool to be empty", || objects(&site.spool()) == 0);
    await_writes(&running, 500);
    server.kill_9();
    running.wait().expect("the lab runs");
    wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > 0);
    wait_until(BOUND, "the spool to be empty", || objects(&site.spool()) == 0);
    recover(&site, &load, receiver, LOSS_SECONDS);
}

/// The worst of days: the store is away, the server dies, the receiver dies. What was spooled is brought to the
/// repository by another receiver, without any server.
#[test]
fn the_server_is_lost_while_the_store_is_away() {
    let mut server = Postgres::build(&default_version()).start();
    let load = Load::on(&server, 5);
    let site = Site::with_spool(&server);
    let mut receiver = site.receive(&server, &[]);
    site.backup();
    let running = load.start(2);
    take_away(&site);
    wait_until(BOUND, "the spool to be used", || objects(&site.spool()) > 2);
    std::thread::sleep(AWAY);
    await_writes(&running, 500);
    server.kill_9();
    running.wait().expect("the lab runs");
    wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > 0);
    receiver.expect_running();
    receiver.kill_9();
    assert!(objects(&site.spool()) > 0);
    bring_back(&site);
    let receiver = site.start(&["wal", "receive", "chat", "--json"]);
    wait_until(BOUND, "the spool to be empty", || objects(&site.spool()) == 0);
    recover(&site, &load, receiver, LOSS_SECONDS);
}

#[test]
fn without_a_spool_the_server_keeps_the_log() {
    let server = Postgres::build(&default_version()).start();
    let load = Load::on(&server, 5);
    let site = Site::protecting(&server);
    let mut receiver = site.receive(&server, &[]);
    site.backup();
    let running = load.start(3);
    take_away(&site);
    wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > 0);
    std::thread::sleep(AWAY);
    await_writes(&running, 500);
    receiver.expect_running();
    bring_back(&site);
    await_writes(&running, 500);
    running.stop().expect("the lab runs");
    site.await_durable(&server);
    assert_eq!(recover(&site, &load, receiver, 0.0).lost, 0);
}

#[test]
fn servers_restart_and_receivers_are_killed() {
    let mut server = Postgres::build(&default_version()).start();
    let load = Load::on(&server, 5);
    let site = Site::with_spool(&server);
    let mut receiver = site.receive(&server, &[]);
    site.backup();
    for (round, mode) in [StopMode::Fast, StopMode::Immediate].into_iter().enumerate() {
        let running = load.start(round as u64);
        server.stop(mode);
        running.wait().expect("the lab runs");
        server.start();
        site.await_streaming(&server, &mut receiver);
        let running = load.start(round as u64 + 10);
        receiver.kill_9();
        await_writes(&running, 500);
        receiver = site.receive(&server, &[]);
        await_writes(&running, 500);
        running.stop().expect("the lab runs");
    }
    site.await_durable(&server);
    assert_eq!(recover(&site, &load, receiver, 0.0).lost, 0);
}

#[test]
fn the_repository_is_full() {
    in_private_namespace(|| {
        let server = Postgres::build(&default_version()).start();
        let load = Load::on(&server, 5);
        let mut disk = None;
        let site = Site::with(&server, |root| {
            disk = Some(SmallDisk::mount(root.join("disk"), 12));
            String::new()
        });
        let disk = disk.expect("it was mounted");
        // The repository moves to the small disk.
        std::fs::rename(site.repository(), site.path("old")).expect("the repository can be moved");
        std::os::unix::fs::symlink(disk.path().join("repository"), site.repository()).expect("a link can be made");
        let moved = std::process::Command::new("cp")
            .arg("-a")
            .arg(site.path("old"))
            .arg(disk.path().join("repository"))
            .status();
        assert!(moved.expect("cp can be run").success());

        let mut receiver = site.receive(&server, &[]);
        let running = load.start(5);
        wait_until(BOUND, "the disk to be full", || receiver.said("No space left") > 0);
        receiver.expect_running();
        await_writes(&running, 200);
        site.run(&["backup", "chat", "--fast"]).expect(13).says("hint: Make room in");
        disk.resize(512);
        await_writes(&running, 200);
        running.stop().expect("the lab runs");
        site.await_durable(&server);
        receiver.expect_running();
        site.backup();
        assert_eq!(recover(&site, &load, receiver, 0.0).lost, 0);
    });
}

#[test]
fn the_spool_is_full() {
    in_private_namespace(|| {
        let server = Postgres::build(&default_version()).start();
        let load = Load::on(&server, 5);
        let mut disk = None;
        let site = Site::with(&server, |root| {
            let mounted = disk.insert(SmallDisk::mount(root.join("spool"), 1));
            format!("spool = \"{}\"\n", mounted.path().display())
        });
        let disk = disk.expect("it was mounted");
        let mut receiver = site.receive(&server, &[]);
        site.backup();
        let running = load.start(6);
        take_away(&site);
        wait_until(BOUND, "the spool to be full", || receiver.said("No space left") > 0);
        receiver.expect_running();
        await_writes(&running, 500);
        bring_back(&site);
        wait_until(BOUND, "the spool to be empty", || objects(disk.path()) == 0);
        await_writes(&running, 200);
        running.stop().expect("the lab runs");
        site.await_durable(&server);
        receiver.expect_running();

        assert_eq!(recover(&site, &load, receiver, 0.0).lost, 0);
    });
}

#[test]
fn the_target_is_full() {
    in_private_namespace(|| {
        let server = Postgres::build(&default_version()).start();
        // Long enough to restore that there is a middle.
        server.sql("create table t as select i as id, repeat(md5(i::text), 15) from generate_series(1, 100000) i");
        let site = Site::protecting(&server);
        let receiver = site.receive(&server, &[]);
        site.backup();
        site.await_durable(&server);

        // Seen beforehand.
        let disk = SmallDisk::mount(site.path("disk"), 10);
        site.try_restore("disk/restored", &[]).expect(13).says("Make room");
        // Filled by somebody else meanwhile.
        disk.resize(1024);
        let mut restore = site.start(&["restore", "chat", "--to", &disk.path().join("restored").display().to_string()]);
        wait_until(BOUND, "files to be restored", || {
            disk.path().join("restored/holdfast.restore").exists() || restore.has_ended().is_some()
        });
        disk.fill_up();
        let log = restore.log();
        assert_eq!(restore.wait(BOUND), Some(13), "{log}");
        assert!(!disk.path().join("restored/global/pg_control").exists());
        disk.resize(1024);
        let restored = site.restore("disk/restored", &[]);
        assert_eq!(restored.server.sql("select count(*) from t"), "100000");
        restored.prove_clean();
        receiver.stop();
    });
}
