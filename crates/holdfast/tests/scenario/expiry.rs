//! What is promised stays, what is not goes a day later, whoever writes or dies meanwhile.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use holdfast_testkit::{Postgres, require, run};
use serde_json::Value;

use crate::chance::{Chance, rounds};
use crate::site::Site;

const RETENTION: &str = "[source.chat.retention]\nlast = 2\n";

/// A day passes for what was named.
fn a_day_passes(site: &Site) {
    let folder = site.repository().join("expired");
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("the folder can be read").path();
        run(Command::new("touch").args(["-m", "-d", "-25 hours"]).arg(path)).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn ids(site: &Site) -> Vec<String> {
    let listed = site.run(&["list", "chat", "--json"]).expect(0).json();
    let snapshots = listed["sources"][0]["snapshots"].as_array().cloned().unwrap_or_default();
    snapshots.iter().filter_map(|snapshot| snapshot["id"].as_str().map(str::to_owned)).collect()
}

fn expire(site: &Site, arguments: &[&str]) -> Value {
    let report = site.run(&[&["expire", "--json"], arguments].concat()).expect(0).json();
    report["repositories"][0].clone()
}

fn files(site: &Site, folder: &str) -> BTreeSet<String> {
    let output = Command::new("find").arg(site.repository().join(folder)).args(["-type", "f"]).output();
    let output = output.expect("find runs");
    String::from_utf8(output.stdout).expect("names are plain").lines().map(str::to_owned).collect()
}

#[test]
fn what_is_not_promised_goes_a_day_later() {
    let server = Postgres::build(&require(18)).start();
    let site = Site::with(&server, |_| RETENTION.to_owned());
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) n");
    site.backup();
    for _ in 0..3 {
        server.sql("update t set text = md5(text) where n % 7 = 0; select pg_switch_wal()");
        site.run(&["backup", "chat", "--type", "incremental", "--fast"]).expect(0);
    }
    let all = ids(&site);
    assert_eq!(all.len(), 4);
    let planned = expire(&site, &["--dry-run"]);
    assert_eq!(planned["named"]["snapshots"], 2, "{planned:#}");
    assert!(!site.repository().join("expired").exists(), "a dry run names nothing");
    site.run(&["expire", "--dry-run"]).expect(0).says("would be named").says("number 2 of the newest");

    let named = expire(&site, &[]);
    assert_eq!((&named["named"]["snapshots"], &named["removed"]["objects"]), (&2.into(), &0.into()), "{named:#}");
    assert_eq!(ids(&site), all, "everything is there still");
    let again = expire(&site, &[]);
    assert_eq!((&again["named"]["snapshots"], &again["waiting"]["snapshots"]), (&0.into(), &2.into()), "{again:#}");

    // One that was named is kept after all.
    site.run(&["pin", "chat", &all[1], "--why", "we need it"]).expect(0);
    a_day_passes(&site);
    let log_before = files(&site, "wal").len();
    let removed = expire(&site, &[]);
    assert_eq!(removed["removed"]["snapshots"], 1, "{removed:#}");
    assert_eq!(ids(&site), &all[1..]);
    assert!(files(&site, "wal").len() < log_before, "log that nothing needs goes, too");
    site.verify();
    for id in &all[1..] {
        let restored = site.restore("restored", &["--snapshot", id]);
        restored.prove_clean();
    }
    let restored = site.restore("restored", &[]);
    assert_eq!(restored.server.sql("select count(*) from t"), "20000");
    restored.prove_clean();

    site.run(&["unpin", "chat", &all[1]]).expect(0).says("by the retention only");
    let packs = files(&site, "packs").len();
    expire(&site, &[]);
    a_day_passes(&site);
    expire(&site, &[]);
    assert_eq!(ids(&site), &all[2..]);
    assert!(files(&site, "packs").len() < packs, "packs that nothing needs go");
    // A backup builds on what is left.
    let report = site.run(&["backup", "chat", "--type", "incremental", "--json", "--fast"]).expect(0).json();
    assert_eq!(report["snapshot"]["kind"], "incremental", "{report:#}");
    site.verify();
    let restored = site.restore("restored", &[]);
    restored.prove_clean();
    receiver.stop();
}

#[test]
fn a_source_without_rules_keeps_everything() {
    let server = Postgres::build(&require(18)).start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    site.backup();
    site.backup();
    let report = expire(&site, &[]);
    assert_eq!((&report["named"]["snapshots"], &report["named"]["objects"]), (&0.into(), &0.into()), "{report:#}");
    // What cannot be read may need anything.
    let snapshots = files(&site, "snapshots");
    let first = snapshots.first().expect("there are two");
    let mut bytes = std::fs::read(first).expect("it can be read");
    let end = bytes.len() - 40;
    bytes[end] ^= 1;
    std::fs::write(first, bytes).expect("root can write it");
    site.run(&["expire"]).expect(1).says("cannot tell what may go");
    receiver.stop();
}

#[test]
fn kills_of_expiry() {
    let mut chance = Chance::new("kills of expiry");
    let server = Postgres::build(&require(18)).start();
    let site = Site::with(&server, |_| RETENTION.to_owned());
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) n");
    for round in 0..rounds(3, 1) {
        server.sql(&format!("update t set text = md5(text) where n % 11 = {}; select pg_switch_wal()", round % 11));
        let kind = if chance.number(3) == 0 { "full" } else { "incremental" };
        let backup = site.start(&["backup", "chat", "--type", kind, "--fast"]);
        let expiry = site.start(&["expire"]);
        chance.pause(Duration::ZERO, Duration::from_millis(120));
        expiry.kill_9();
        if chance.number(3) == 0 {
            chance.pause(Duration::ZERO, Duration::from_millis(300));
            backup.kill_9();
        } else {
            assert_eq!(backup.wait(crate::site::BOUND), Some(0));
        }
        a_day_passes(&site);
        let killed = site.start(&["expire"]);
        chance.pause(Duration::ZERO, Duration::from_millis(120));
        killed.kill_9();
        if ids(&site).is_empty() {
            continue;
        }
        site.verify();
    }
    site.run(&["backup", "chat", "--fast"]).expect(0);
    site.run(&["backup", "chat", "--fast"]).expect(0);
    expire(&site, &[]);
    a_day_passes(&site);
    expire(&site, &[]);
    assert_eq!(ids(&site).len(), 2);
    site.verify();
    site.restore("restored", &[]).prove_clean();
    receiver.stop();
}

#[test]
fn only_what_is_verified_takes_the_place_of_what_goes() {
    let server = Postgres::build(&require(18)).start();
    let site = Site::with(&server, |_| "[source.chat.retention]\nlast = 1\nminimum_verified = 2\n".to_owned());
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select n, repeat('x', 100) as text from generate_series(1, 20000) n");
    for _ in 0..3 {
        server.sql("update t set text = md5(text) where n % 7 = 0; select pg_switch_wal()");
        site.backup();
    }
    site.run(&["expire", "--dry-run"]).expect(0).says("too few are verified");
    // One object at a time; none twice before all were read once.
    let verify =
        || site.run(&["verify", "--budget", "1B", "--json"]).expect(0).json()["repositories"][0]["left"].clone();
    let first = verify();
    let objects = first["objects"].as_u64().expect("it is a number") + 1;
    assert!((8..60).contains(&objects), "{first:#}");
    for _ in 2..objects {
        assert!(verify()["oldest"].is_null(), "something was never read");
    }
    assert!(!verify()["oldest"].is_null(), "everything was read once");
    assert!(files(&site, "proved").len() <= 17, "ledgers are merged");
    let decided = expire(&site, &["--dry-run"]);
    assert_eq!(decided["named"]["snapshots"], 1, "{decided:#}");
    // Damage is found within the share in which it lies, and is not taken for proved.
    let pack = files(&site, "packs").into_iter().next().expect("there are packs");
    let mut bytes = std::fs::read(&pack).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).expect("root can write it");
    let outcomes: Vec<_> = (0..4).map(|_| site.run(&["verify", "--budget", "40%"]).code).collect();
    assert!(outcomes.contains(&Some(3)), "{outcomes:?}");
    // All else was proved since: it is what waits longest.
    for _ in 0..2 {
        site.run(&["verify", "--budget", "1B"]).expect(3);
    }
    receiver.stop();
}
