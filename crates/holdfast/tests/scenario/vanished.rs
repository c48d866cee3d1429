//! Files that are not there though the log says nothing of it, and those of which it does.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_testkit::{PgVersion, Postgres, StopMode, TempRoot, default_version, own, require};
use serde_json::Value;

use crate::run::Run;
use crate::site::Site;

fn incremental(site: &Site) -> Run {
    site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"])
}

/// Somebody deletes a file, another loses its end, and a tablespace is not mounted: the log says nothing of it.
#[test]
fn files_that_vanish_are_an_incident() {
    let root = TempRoot::new();
    let place = root.make_directory("place");
    own(&place);
    let mut server = Postgres::build(&default_version()).setting("autovacuum", "off").start();
    let site = Site::protecting(&server);
    let mut receiver = site.receive(&server, &[]);
    server.sql(&format!("create tablespace elsewhere location '{}'", place.display()));
    let rows = "as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 5000) i";
    server.sql(&format!(
        "create table gone {rows}; create table cut {rows}; create table placed tablespace elsewhere {rows}; \
         create table dropped {rows}; create table emptied {rows}"
    ));
    let file =
        |table: &str| server.data_directory().join(server.sql(&format!("select pg_relation_filepath('{table}')")));
    let (gone, cut) = (file("gone"), file("cut"));
    server.sql("vacuum freeze; checkpoint");
    site.backup();
    // What the log tells of is none.
    server.sql("drop table dropped; delete from emptied; vacuum emptied; truncate emptied; checkpoint");
    assert_eq!(incremental(&site).expect(0).json()["snapshot"]["kind"], "incremental");

    site.await_durable(&server);
    server.stop(StopMode::Fast);
    std::fs::remove_file(&gone).expect("it can be deleted");
    let short = std::fs::OpenOptions::new().write(true).open(&cut).expect("it can be written");
    short.set_len(8192).expect("it can be cut");
    server.start();
    site.await_streaming(&server, &mut receiver);
    let report = incremental(&site).expect(3).json();
    let said = report["incidents"].to_string();
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(said.contains(&name(&gone)) && said.contains("gone) is gone since snapshot"), "{said}");
    assert!(said.contains(&name(&cut)) && said.contains("cut) has 1 pages of the"), "{said}");
    assert_eq!(report["incidents"].as_array().map(Vec::len), Some(2), "{said}");
    assert_eq!((&report["snapshot"]["kind"], &report["snapshot"]["base"]), (&Value::from("full"), &Value::Null));
    // It is said once: the new snapshot does not have them.
    assert_eq!(incremental(&site).expect(0).json()["snapshot"]["kind"], "incremental");

    site.await_durable(&server);
    server.stop(StopMode::Fast);
    let mounted = place.read_dir().expect("it is there").flatten().next().expect("a directory of the release").path();
    let aside = root.join("aside");
    std::fs::rename(&mounted, &aside).expect("it can be moved");
    server.start();
    site.await_streaming(&server, &mut receiver);
    let report = incremental(&site).expect(3).json();
    let said = report["incidents"].to_string();
    assert!(said.contains("is not there or is empty"), "{said}");
    std::fs::rename(&aside, &mounted).expect("it can be moved back");
    receiver.stop();
}

#[test]
fn files_that_the_server_removes_meanwhile_are_none_15() {
    files_that_the_server_removes_meanwhile_are_none(&require(15));
}

#[test]
fn files_that_the_server_removes_meanwhile_are_none_18() {
    files_that_the_server_removes_meanwhile_are_none(&require(18));
}

/// Files of the base go while the backup begins, lists and audits.
fn files_that_the_server_removes_meanwhile_are_none(version: &PgVersion) {
    let server = Postgres::build(version).setting("autovacuum", "off").start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sessions = [
            "create table t_N as select i as id, repeat('x', 500) as text from generate_series(1, 2000) i; \
             create table u_N as select i as id, repeat('x', 500) as text from generate_series(1, 2000) i; \
             select pg_sleep(0.5); drop table t_N; delete from u_N where id > 50; vacuum u_N; select pg_sleep(0.3); \
             truncate u_N; drop table u_N",
            "create database d_N; select pg_sleep(1); drop database d_N",
        ];
        for (session, sql) in sessions.into_iter().enumerate() {
            let (server, is_over) = (&server, &is_over);
            scope.spawn(move || {
                for number in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let sql = sql.replace('N', &format!("{session}_{number}"));
                    for statement in sql.split(';') {
                        server.sql(statement);
                    }
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            site.backup();
            for _ in 0..12 {
                incremental(&site).expect(0);
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    receiver.stop();
}
