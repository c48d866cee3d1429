//! A full backup that was interrupted is gone on with.

use std::path::Path;

use holdfast_testkit::{PgVersion, Postgres, StopMode, default_version, require, wait_until};

use crate::chance::is_soak;
use crate::pages::differences;
use crate::site::{BOUND, Site};

/// It takes a minute: on more than one version in the long run only.
#[test]
fn an_interrupted_backup_is_gone_on_with() {
    let versions = if is_soak() { vec![require(15), require(18)] } else { vec![default_version()] };
    versions.iter().for_each(interrupted_twice);
}

/// Tables of some megabytes that hardly compress: parts are offered between packs, and a pack is 32 MiB.
const TABLES: u32 = 60;

fn interrupted_twice(version: &PgVersion) {
    let mut server = Postgres::build(version)
        .setting("autovacuum", "off")
        .setting("wal_keep_size", "4GB")
        .setting("max_wal_size", "4GB")
        .start();
    for table in 0..TABLES {
        server.sql(&format!(
            "create table t{table} as select i as id, string_agg(sha512((i::text || j || {table})::bytea), '') as bytes \
             from generate_series(1, 8000) i, generate_series(1, 15) j group by i"
        ));
    }
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    site.await_durable(&server);
    let folder = site.repository().join("unfinished/chat");
    let entries = |folder: &Path| folder.read_dir().map_or(0, |entries| entries.flatten().count());
    let unfinished =
        || folder.read_dir().map_or(0, |all| all.flatten().map(|backup| entries(&backup.path())).sum::<usize>());

    // Twice, so that parts of a backup that went on itself are used, too.
    let mut parts = 0;
    for attempt in 0..2 {
        let limit = if attempt == 0 { "40MiB" } else { "25MiB" };
        // A probe that slows nothing down writes log all the time, as users would: a part waits until the repository has it.
        let pace = ["--rate-limit", limit, "--latency-limit", "60s"];
        let mut backup = site.start(&[&["backup", "chat", "--fast", "--parallel", "1"][..], &pace].concat());
        wait_until(BOUND, "part of the backup to be stored", || {
            backup.expect_running();
            unfinished() > parts
        });
        // Not in what was read already alone: changed, emptied, removed, made anew.
        server.sql("update t0 set bytes = 'changed' where id % 100 = 1; truncate t1; drop table if exists t2");
        server.sql("delete from t3 where id > 100; vacuum t3; create table if not exists anew as select 1 as id");
        assert!(backup.kill_9(), "it was still running");
        parts = unfinished();
        let listed = site.run(&["list", "chat", "--json"]).expect(0).json();
        assert_eq!(listed["sources"][0]["snapshots"].as_array().map(Vec::len), Some(0), "{listed:#}");
    }
    site.run(&["verify"]).expect(0);

    let report = site.run(&["backup", "chat", "--fast", "--json"]).expect(0).json();
    let snapshot = &report["snapshot"];
    assert_eq!((&snapshot["kind"], &snapshot["base"]), (&"full".into(), &serde_json::Value::Null), "{report:#}");
    let (read, all) = (snapshot["read_bytes"].as_u64().unwrap(), snapshot["bytes"].as_u64().unwrap());
    assert!(read < all * 9 / 10, "{read} of {all}");
    assert!(report["notes"].to_string().contains("goes on from an interrupted backup"), "{report:#}");
    assert_eq!(unfinished(), 0, "nobody needs them any more");

    site.await_durable(&server);
    server.stop(StopMode::Fast);
    receiver.stop();
    let mut restored = site.restore("restored", &[]);
    restored.server.stop(StopMode::Fast);
    let found = differences(restored.server.data_directory(), server.data_directory());
    assert!(found.is_empty(), "{} pages differ: {:#?}", found.len(), found.iter().take(20).collect::<Vec<_>>());
    site.verify();
    restored.discard();

    // What was done before is no ground for the next one.
    server.start();
    let report = site.run(&["backup", "chat", "--fast", "--json"]).expect(0).json();
    assert_eq!(report["snapshot"]["read_bytes"], report["snapshot"]["bytes"], "{report:#}");
}
