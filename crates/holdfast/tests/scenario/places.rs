//! Repositories elsewhere: the server is lost, and comes back from a bucket or from another machine, or from any of three that are
//! written at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_testkit::{Azurite, Ceph, Fault, FaultProxy, Postgres, SshServer, require, wait_until};

use crate::chance::Chance;
use crate::load::{Load, await_writes};
use crate::site::{BOUND, Site};

const LOSS_SECONDS: f64 = 1.0;

fn a_lost_server_comes_back_from(place: String) {
    let mut chance = Chance::new(&place);
    let mut server = Postgres::build(&require(18)).setting("max_connections", "100").start();
    let load = Load::on(&server, 10);
    let site = Site::kept_at(&server, place);
    let receiver = site.receive(&server, &[]);
    let running = load.start(chance.number(u64::MAX));
    site.backup();
    await_writes(&running, 1000);
    let report = site.run(&["backup", "chat", "--type", "incremental", "--json", "--fast"]).expect(0).json();
    assert_eq!(report["snapshot"]["kind"], "incremental", "{report:#}");
    await_writes(&running, 1000);
    let interruptions = receiver.said("was interrupted");
    server.kill_9();
    running.wait().expect("the lab runs");
    wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > interruptions);
    let restored = site.restore("restored", &[]);
    load.expect_loss_within(&restored.server, LOSS_SECONDS);
    restored.prove_clean();
    site.verify();
    receiver.stop();
}

#[test]
fn of_s3() {
    let ceph = Ceph::start();
    ceph.make_bucket("backups");
    let credentials = ceph.credentials_file();
    a_lost_server_comes_back_from(format!(
        "url = \"s3://backups/chat\"\nendpoint = \"{}\"\ncredentials_file = \"{}\"",
        ceph.endpoint(),
        credentials.display()
    ));
}

#[test]
fn of_sftp() {
    let server = SshServer::start();
    a_lost_server_comes_back_from(format!(
        "url = \"{}\"\nssh_key_file = \"{}\"\nknown_hosts_file = \"{}\"",
        server.url("repository"),
        server.key_file().display(),
        server.known_hosts_file().display()
    ));
}

#[test]
fn of_azure() {
    let azurite = Azurite::start();
    azurite.make_container("backups");
    let credentials = azurite.credentials_file();
    a_lost_server_comes_back_from(format!(
        "url = \"azblob://backups/chat\"\nendpoint = \"{}\"\ncredentials_file = \"{}\"",
        azurite.endpoint(),
        credentials.display()
    ));
}

/// A directory, a bucket and another machine at once. The bucket's service fails in the middle of a backup, and comes back.
#[test]
fn three_at_once_of_which_one_dies() {
    let mut chance = Chance::new("three at once");
    let (ceph, ssh) = (Ceph::start(), SshServer::start());
    ceph.make_bucket("backups");
    let is_away = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_away);
    let decide = move |_: &_| if seen.load(Ordering::Relaxed) { Fault::Status(503) } else { Fault::None };
    let proxy = FaultProxy::start(ceph.port(), decide);
    let bucket = format!(
        "url = \"s3://backups/chat\"\nendpoint = \"{}\"\ncredentials_file = \"{}\"",
        proxy.endpoint(),
        ceph.credentials_file().display()
    );
    let machine = format!(
        "url = \"{}\"\nssh_key_file = \"{}\"\nknown_hosts_file = \"{}\"",
        ssh.url("repository"),
        ssh.key_file().display(),
        ssh.known_hosts_file().display()
    );
    let mut server = Postgres::build(&require(18)).setting("max_connections", "100").start();
    let load = Load::on(&server, 40);
    let site = Site::with_copies(&server, &[("bucket", bucket), ("machine", machine)]);
    let mut receiver = site.receive(&server, &[]);
    let running = load.start(chance.number(u64::MAX));
    let report = site.run(&["backup", "chat", "--fast", "--json"]).expect(0).json();
    assert_eq!(kept_in(&report), ["main", "bucket", "machine"], "{report:#}");

    let backup = site.start(&["backup", "chat", "--fast", "--rate-limit", "12MiB", "--json"]);
    let requests = proxy.requests();
    // The log goes through it as well, and a few of these are the backup's.
    wait_until(BOUND, "the backup to write to the bucket", || proxy.requests() > requests + 12);
    is_away.store(true, Ordering::Relaxed);
    assert_eq!(backup.wait(BOUND), Some(5), "one of three lacks it");
    let report = site.run(&["list", "chat", "--repository", "main", "--json"]).expect(0).json();
    assert_eq!(report["sources"][0]["snapshots"].as_array().unwrap().len(), 2);
    // The log goes on, though one place has none of it.
    await_writes(&running, 2000);
    site.await_durable(&server);
    receiver.expect_running();
    site.run(&["check"]).expect(1).says("2 snapshots in fewer places than 3 repositories at 3 sites");
    let refused = site.try_restore("refused", &[]);
    refused.expect(10);

    is_away.store(false, Ordering::Relaxed);
    let report = site.run(&["backup", "chat", "--type", "incremental", "--fast", "--json"]).expect(0).json();
    assert_eq!(report["snapshot"]["kind"], "incremental", "{report:#}");
    assert_eq!(kept_in(&report), ["main", "bucket", "machine"], "{report:#}");
    await_writes(&running, 1000);
    wait_until(BOUND, "the log to be brought to the bucket", || receiver.said("was copied to it") > 0);
    let checked = site.run(&["check"]);
    checked
        .says("every snapshot is in 3 repositories at 3 sites, as promised")
        .says("of timeline 1 it is in 3 repositories");
    let interruptions = receiver.said("was interrupted");
    server.kill_9();
    running.wait().expect("the lab runs");
    wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > interruptions);
    receiver.stop();
    site.verify();
    for name in ["main", "bucket", "machine"] {
        let restored = site.restore(name, &["--repository", name]);
        load.expect_loss_within(&restored.server, LOSS_SECONDS);
        restored.prove_clean();
    }
    let restored = site.restore("all", &[]);
    load.expect_loss_within(&restored.server, LOSS_SECONDS);
    restored.prove_clean();
}

fn kept_in(report: &serde_json::Value) -> Vec<&str> {
    let all = report["repositories"].as_array().expect("it says where it is");
    all.iter().filter(|at| at["trouble"].is_null()).filter_map(|at| at["name"].as_str()).collect()
}
