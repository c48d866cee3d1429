//! Backups from a standby, and clusters whose settings lie elsewhere, as Debian keeps them.

use holdfast_testkit::{PgVersion, Postgres, PostgresBuilder, StopMode, TempRoot, own, require, wait_until};

use crate::load::{Load, await_writes};
use crate::site::{BOUND, Site, lsn};

#[test]
fn a_backup_from_a_standby_15() {
    a_backup_from_a_standby(&require(15));
}

#[test]
fn a_backup_from_a_standby_18() {
    a_backup_from_a_standby(&require(18));
}

fn a_backup_from_a_standby(version: &PgVersion) {
    let primary = Postgres::build(version).start();
    let load = Load::on(&primary, 5);
    let standby = Postgres::standby_of(&primary).start();
    let site = Site::protecting(&standby);
    let mut receiver = site.start(&["wal", "receive", "chat", "--create-slot", "--json"]);
    site.await_streaming(&standby, &mut receiver);
    let running = load.start_with(|options| options.rate = Some(300.0));
    let id = site.backup()["snapshot"]["id"].as_str().expect("a backup has an id").to_owned();
    await_writes(&running, 300);
    running.stop().expect("the lab runs");
    let shown = site.run(&["show", "chat", &id, "--json"]).expect(0).json();
    assert_eq!(shown["snapshot"]["from_standby"], true, "{shown}");
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    wait_until(BOUND, "the log to be durable", || site.durable(1) >= lsn(&end));

    let restored = site.restore("restored", &[]);
    assert_eq!(load.expect_loss_within(&restored.server, 0.0).lost, 0);
    // It is a cluster of its own, and follows nobody.
    assert_eq!(restored.server.sql("show primary_conninfo"), "");
    restored.prove_clean();
    receiver.stop();
    site.verify();
}

#[test]
fn settings_outside_the_data_directory_15() {
    settings_outside_the_data_directory(&require(15));
}

#[test]
fn settings_outside_the_data_directory_18() {
    settings_outside_the_data_directory(&require(18));
}

/// `/etc/postgresql/15/main`, as Debian's `pg_createcluster` lays it out.
fn settings_outside_the_data_directory(version: &PgVersion) {
    let root = TempRoot::new();
    let etc = root.make_directory("etc");
    let data = root.join("data");
    // Made by itself, then taken apart.
    drop(Postgres::build(version).data_directory(&data).prepare());
    let moved = |name: &str| std::fs::rename(data.join(name), etc.join(name)).expect("files can be moved");
    ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].into_iter().for_each(moved);
    std::fs::create_dir(etc.join("conf.d")).expect("the sandbox can be written");
    std::fs::write(etc.join("conf.d/ours.conf"), "work_mem = '7MB'\n").expect("the sandbox can be written");
    let main = etc.join("postgresql.conf");
    let text = std::fs::read_to_string(&main).expect("it was moved");
    let (data_name, etc_name) = (data.display(), etc.display());
    let text = format!(
        "{text}\ndata_directory = '{data_name}'\nhba_file = '{etc_name}/pg_hba.conf'\n\
         ident_file = '{etc_name}/pg_ident.conf'\ninclude_dir = 'conf.d'\n"
    );
    std::fs::write(&main, text).expect("the sandbox can be written");
    own(&etc);

    let server = Postgres::open(version, &data).setting("config_file", main.display().to_string()).start();
    server.sql("create table t as select generate_series(1, 1000) as id");
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    site.backup();
    server.sql("insert into t values (1001)");
    site.await_durable(&server);

    let restored = site.restore("restored", &[]);
    assert_eq!(restored.server.sql("select count(*) from t"), "1001");
    assert_eq!(restored.server.sql("show work_mem"), "7MB");
    let inside = restored.server.sql("show hba_file; show config_file; show ident_file");
    let directory = restored.server.data_directory().display().to_string();
    assert!(inside.lines().all(|path| path.starts_with(&directory)), "{inside}");
    restored.prove_clean();
    receiver.stop();
    site.verify();
}

#[test]
fn the_files_of_another_server_are_refused_15() {
    the_files_of_another_server_are_refused(&require(15));
}

#[test]
fn the_files_of_another_server_are_refused_18() {
    the_files_of_another_server_are_refused(&require(18));
}

/// Two servers of one cluster: the connection leads to one, the directory is the other's, as after a failover where the
/// address has moved and the machine has not.
fn the_files_of_another_server_are_refused(version: &PgVersion) {
    let primary = Postgres::build(version).start();
    primary.sql("create table t as select generate_series(1, 1000) as id");
    let standby = Postgres::standby_of(&primary).start();
    for (asked, other) in [(&primary, &standby), (&standby, &primary)] {
        let site = Site::with(asked, |_| format!("data_directory = \"{}\"\n", other.data_directory().display()));
        let mut receiver = site.start(&["wal", "receive", "chat", "--create-slot", "--json"]);
        site.await_streaming(asked, &mut receiver);
        let refused =
            site.run(&["backup", "chat", "--fast"]).expect(2).says("is not the data directory of the server at");
        refused.says("leads to another server of the same cluster");
        site.run(&["check", "chat"]).expect(1).says("is not the data directory of the server at");
        let own = Site::protecting(asked);
        let checked = own.run(&["check", "chat"]);
        assert!(checked.stdout.contains("is readable and the server's"), "{checked:#?}");
        receiver.stop();
    }
}

fn await_replay(primary: &Postgres, standby: &Postgres) {
    let end = lsn(&primary.sql("select pg_current_wal_flush_lsn()"));
    let is_there = || standby.try_sql("select pg_last_wal_replay_lsn()").is_ok_and(|at| lsn(&at) >= end);
    wait_until(BOUND, "the standby to catch up", is_there);
}

#[test]
fn a_failover_is_no_incident_15() {
    a_failover_is_no_incident(&require(15));
}

#[test]
fn a_failover_is_no_incident_18() {
    a_failover_is_no_incident(&require(18));
}

/// The standby has hints and numbers of sequences that the primary never had, in pages with the same position: no audit may
/// take that for a change without a record.
fn a_failover_is_no_incident(version: &PgVersion) {
    let build = |builder: PostgresBuilder| builder.setting("autovacuum", "off").start();
    let mut primary = build(Postgres::build(version));
    let standby = build(Postgres::standby_of(&primary));
    let site = Site::protecting(&primary);
    let receiver = site.receive(&primary, &[]);
    primary.sql(
        "create table t as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 100000) i; \
         create index on t (id); create sequence numbers; select nextval('numbers') from generate_series(1, 5)",
    );
    primary.sql("delete from t where id % 3 = 0; begin; delete from t where id % 3 = 1; rollback");
    await_replay(&primary, &standby);
    // Replay has made the pages dirty, so that what the readers note in them is written with them.
    standby.sql(
        "select count(text) from t; set enable_seqscan = off; select count(*) from t where id between 1 and 90000",
    );
    primary.sql("checkpoint");
    await_replay(&primary, &standby);
    standby.sql("checkpoint");
    site.backup();
    site.await_durable(&primary);
    await_replay(&primary, &standby);
    primary.stop(StopMode::Fast);
    receiver.stop();
    standby.sql("select pg_promote()");
    let is_promoted = || standby.try_sql("select pg_is_in_recovery()").is_ok_and(|is| is == "f");
    wait_until(BOUND, "the standby to be promoted", is_promoted);
    site.follow(&standby);
    let receiver = site.receive(&standby, &[]);
    for round in 0..8 {
        standby.sql("checkpoint");
        let run = site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"]);
        let report = run.expect(0).json();
        assert_eq!(report["snapshot"]["kind"], "incremental", "round {round}: {report:#}");
    }
    site.await_durable(&standby);
    let restored = site.restore("restored", &[]);
    assert_eq!(restored.server.sql("select count(*) from t"), standby.sql("select count(*) from t"));
    restored.prove_clean();
    receiver.stop();
}
