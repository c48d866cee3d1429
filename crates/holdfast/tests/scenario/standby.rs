//! Backups from a standby, and clusters whose settings lie elsewhere, as Debian keeps them.

use holdfast_testkit::{PgVersion, Postgres, TempRoot, own, require, wait_until};

use crate::load::{Load, await_writes};
use crate::site::{BOUND, Site};

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
    wait_until(BOUND, "the log to be durable", || site.durable(1) >= crate::site::lsn(&end));

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
