//! From a running server to a restored one, with nothing but the program.

use std::io::Read as _;
use std::process::Stdio;
use std::time::Duration;

use holdfast_testkit::{Postgres, StopMode, default_version, wait_until};
use jiff::{SignedDuration, Timestamp};

use crate::run::lsn;
use crate::sandbox::Sandbox;

#[test]
fn a_cluster_is_protected_lost_and_brought_back() {
    let version = default_version();
    let mut server = Postgres::build(&version).start();
    server.sql("create table t (id int); insert into t select generate_series(1, 1000)");
    let sandbox = Sandbox::for_servers();
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{}\"\n", server.conninfo()));

    // Nothing is there yet, and nothing is broken.
    let checked =
        sandbox.run(&["check"]).expect(0).says("there is no slot `holdfast_chat`").says("readable and the server's");
    assert!(!checked.stdout.contains("FAIL"), "{}", checked.stdout);
    sandbox.run(&["wal", "receive", "chat"]).expect(14).says("--create-slot");

    let mut receiver = sandbox.command(&["wal", "receive", "chat", "--create-slot", "--json"]);
    let mut receiver = receiver.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_active = || server.sql("select count(*) from pg_replication_slots where active") == "1";
    wait_until(Duration::from_secs(30), "the receiver to stream", is_active);

    cancelled_backups_end_cleanly(&sandbox, &server);
    let backup = sandbox.run(&["backup", "chat", "--json", "--fast"]).expect(0).json();
    let id = backup["snapshot"]["id"].as_str().unwrap().to_owned();
    server.sql("insert into t values (1001)");
    server.sql("select pg_create_restore_point('before')");
    server.sql("drop table t");
    let end = server.sql("select pg_current_wal_lsn()");
    let is_durable = || {
        let listed = sandbox.run(&["list", "chat", "--json"]).expect(0).json();
        let last = listed["sources"][0]["log"][0]["ranges"].as_array().and_then(|ranges| ranges.last().cloned());
        last.is_some_and(|last| lsn(last["end"].as_str().unwrap()) >= lsn(&end))
    };
    wait_until(Duration::from_secs(30), "the log to be durable", is_durable);
    sandbox.run(&["check", "chat"]).expect(0).says("`holdfast_chat` is in use");

    // A clean end, asked for by SIGTERM.
    holdfast_testkit::run(std::process::Command::new("kill").arg(receiver.id().to_string())).unwrap();
    let status = receiver.wait().unwrap();
    let mut said = String::new();
    receiver.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let mut logged = String::new();
    receiver.stderr.take().unwrap().read_to_string(&mut logged).unwrap();
    assert!(status.success() && said.contains("\"durable\""), "{status}: {said}{logged}");
    server.stop(StopMode::Immediate);

    sandbox.run(&["list", "chat"]).expect(0).says(&id).says("before").says("\nrecoverable from ");
    sandbox.run(&["show", "chat", &id]).expect(0).says("PostgreSQL").says("data directory");
    sandbox.run(&["show", "chat", "20200101T000000Z-00000000"]).expect(1).says("holdfast list chat");
    sandbox.run(&["verify"]).expect(0).says("everything can be read back");

    let target = sandbox.path("restored").display().to_string();
    let restore = |more: &[&str]| sandbox.run(&[&["restore", "chat", "--to", &target], more].concat());
    restore(&["--at", "2099-01-01T00:00:00Z"]).expect(4).says("the newest reachable point is");
    restore(&["--name", "after", "--json"]).expect(4);
    restore(&["--name", "before", "--dry-run"]).expect(0).says(&id).says("restore point `before`");
    // Both ends of what is said to be recoverable are, and not a microsecond more.
    let listed = sandbox.run(&["list", "chat", "--json"]).expect(0).json();
    let range = &listed["sources"][0]["log"][0]["recoverable"][0];
    for (end, beyond) in [("from", -1), ("to", 1)] {
        let end: Timestamp = range[end].as_str().unwrap_or_else(|| panic!("{listed}")).parse().unwrap();
        let planned = restore(&["--at", &end.to_string(), "--dry-run"]).expect(0).says("everything committed up to ");
        assert!(planned.stdout.contains("could reach    up to "), "{planned:#?}");
        // The zone was given.
        assert!(!planned.stderr.contains("is taken as"), "{planned:#?}");
        let beyond = end + SignedDuration::from_micros(beyond);
        restore(&["--at", &beyond.to_string(), "--dry-run"]).expect(4);
    }
    assert!(!sandbox.path("restored").exists());
    let bin = version.bin_directory().display().to_string();
    let socket = sandbox.path("").display().to_string();
    // Where this runs is the directory of the socket.
    let start = ["--start", "--bin-dir", &bin, "--socket-dir", ".", "--port", "5439"];
    restore(&[&["--name", "before"], &start[..]].concat())
        .expect(0)
        .says("now on timeline 2")
        .says("PostgreSQL says: at restore point \"before\"")
        .says("`holdfast wal receive chat --create-slot`");
    restore(&[]).expect(11).says("a server is running");
    let mut psql = std::process::Command::new(version.bin("psql"));
    psql.args(["-h", &socket, "-p", "5439", "-U", "postgres", "-d", "postgres", "-Atc", "select count(*) from t"]);
    let mut psql_as = holdfast_testkit::command_as_server_user(psql.get_program());
    let counted = holdfast_testkit::run(psql_as.args(psql.get_args()));
    let mut stop = holdfast_testkit::command_as_server_user(version.bin("pg_ctl"));
    holdfast_testkit::run(stop.args(["stop", "-m", "immediate", "-D", &target])).unwrap();
    assert_eq!(counted.unwrap().trim(), "1001");
    restore(&[]).expect(11).says("is not empty");

    // One damaged byte in any pack.
    let packs = sandbox.path("repository/packs");
    let folder = packs.read_dir().unwrap().next().unwrap().unwrap().path();
    let pack = folder.read_dir().unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    sandbox.run(&["verify", "--json"]).expect(3).says("affects");
}

fn cancelled_backups_end_cleanly(sandbox: &Sandbox, server: &Postgres) {
    let mut backup = sandbox.command(&["backup", "chat", "--fast", "--rate-limit", "2MB"]);
    let mut backup = backup.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program can be run");
    let sessions = "select count(*) from pg_stat_activity where application_name = 'holdfast' \
                    and query ~ 'pg_(backup_start|start_backup)'";
    let has_begun = || server.sql(sessions) == "1";
    wait_until(Duration::from_secs(30), "the backup to begin", has_begun);
    holdfast_testkit::run(std::process::Command::new("kill").arg("-INT").arg(backup.id().to_string()))
        .expect("it runs");
    let status = backup.wait().expect("it was not waited for");
    assert_eq!(status.code(), Some(130), "{status}");
    let listed = sandbox.run(&["list", "chat", "--json"]).expect(0).json();
    assert_eq!(listed["sources"][0]["snapshots"].as_array().map(Vec::len), Some(0), "{listed}");
}
