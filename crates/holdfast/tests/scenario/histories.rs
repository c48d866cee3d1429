//! Log of two histories at the same positions.

use std::path::Path;
use std::process::Command;

use holdfast_testkit::{Postgres, StopMode, default_version, wait_until};
use serde_json::Value;

use crate::run::Run;
use crate::site::{BOUND, Site, lsn};

fn incremental(site: &Site) -> Run {
    site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"])
}

fn copy(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).expect("it is ours");
    }
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp can be run").success());
}

/// A volume is taken back to an earlier state: the server goes on from there on the same timeline, and writes other log at
/// positions that the repository has log of.
#[test]
fn a_server_that_was_set_back_is_not_believed() {
    let mut server = Postgres::build(&default_version()).setting("autovacuum", "off").start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 5000) i");
    site.backup();
    site.await_durable(&server);
    server.stop(StopMode::Fast);
    let volume = site.path("volume");
    copy(server.data_directory(), &volume);
    server.start();
    receiver.stop();
    let receiver = site.receive(&server, &[]);
    server.sql("update t set text = md5(text) where id < 500");
    assert_eq!(incremental(&site).expect(0).json()["snapshot"]["kind"], "incremental");
    server.sql("update t set text = md5(text) where id > 4500");
    site.await_durable(&server);
    receiver.stop();
    server.stop(StopMode::Fast);
    let had = site.durable(1);

    copy(&volume, server.data_directory());
    server.start();
    site.run(&["wal", "receive", "chat"]).expect(1).says("the server was set back").says("pg_promote");
    let mut number = 0;
    while lsn(&server.sql("select pg_current_wal_flush_lsn()")) <= had + (1 << 16) {
        number += 1;
        server.sql(&format!("update t set text = 'another history' || id || '/' || {number}"));
    }
    // Nobody saw it being behind.
    let receiver = site.receive(&server, &[]);
    server.sql("update t set text = 'the end' where id = 1");
    site.await_durable(&server);
    let report = incremental(&site).expect(0).json();
    assert_eq!(
        (&report["snapshot"]["kind"], &report["snapshot"]["base"]),
        (&Value::from("full"), &Value::Null),
        "{report:#}"
    );
    let notes = report["notes"].to_string();
    assert!(notes.contains("it is not known what changed: the log of timeline 1"), "{notes}");
    receiver.stop();
}

/// The same where the archiver brings the log: it is refused, which only the server sees, and the log that is there would
/// look like the backup's own.
#[test]
fn a_server_that_was_set_back_makes_no_backups_beside_its_archiver() {
    let mut server =
        Postgres::build(&default_version()).setting("autovacuum", "off").setting("archive_mode", "on").start();
    let site = Site::protecting(&server);
    let push = site.shell_command("--quiet wal push chat %p");
    server.sql(&format!("alter system set archive_command = '{push}'; select pg_reload_conf()"));
    server.sql("create table t as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 5000) i");
    site.backup();
    server.stop(StopMode::Fast);
    let volume = site.path("volume");
    copy(server.data_directory(), &volume);
    server.start();
    for _ in 0..3 {
        server.sql("update t set text = md5(text) where id < 500; select pg_switch_wal()");
    }
    let archived = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
    wait_until(BOUND, "all to be archived", || server.sql(archived) == "0");
    // A full backup, so that nothing else may notice.
    site.backup();
    server.stop(StopMode::Fast);

    copy(&volume, server.data_directory());
    server.start();
    server.sql("update t set text = 'another history' where id < 500");
    for kind in ["full", "incremental"] {
        let refused = site.run(&["backup", "chat", "--fast", "--type", kind]);
        refused.expect(1).says("the server was set back").says("pg_promote");
    }
}

/// The log of the old timeline may go on behind where a standby left it: that one was not set back.
#[test]
fn a_failover_that_left_log_behind_keeps_no_backup_from_being_made() {
    let mut primary = Postgres::build(&default_version()).setting("archive_mode", "on").start();
    let prepared = Postgres::standby_of(&primary).start();
    let site = Site::protecting(&prepared);
    let push = site.shell_command("--quiet wal push chat %p");
    let mut standby = prepared;
    for server in [&primary, &standby] {
        server.sql(&format!("alter system set archive_command = '{push}'; select pg_reload_conf()"));
    }
    primary.sql("create table t as select i as id from generate_series(1, 1000) i");
    let position = primary.sql("select pg_current_wal_flush_lsn()");
    let has_all = format!("select pg_last_wal_replay_lsn() >= '{position}'");
    wait_until(BOUND, "the standby to have all", || standby.sql(&has_all) == "t");
    standby.stop(StopMode::Fast);
    for _ in 0..3 {
        primary.sql("insert into t select i as id from generate_series(1, 1000) i; select pg_switch_wal()");
    }
    let archived = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
    wait_until(BOUND, "all to be archived", || primary.sql(archived) == "0");
    let left_behind = site.durable(1);
    primary.kill_9();
    standby.start();
    standby.sql("select pg_promote()");
    assert!(lsn(&standby.sql("select pg_current_wal_flush_lsn()")) < left_behind);
    site.backup();
    site.verify();
}
