//! Repositories elsewhere: the server is lost, and comes back from a bucket or from another machine.

use holdfast_testkit::{Azurite, Ceph, Postgres, SshServer, require, wait_until};

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
