//! What an interruption leaves behind is neither lost nor in the way.

use holdfast_testkit::{Postgres, default_version, wait_until};

use crate::process::Background;
use crate::site::{BOUND, Site};

#[test]
fn an_interrupted_restore_is_repeated_with_its_tablespace() {
    let server = Postgres::build(&default_version()).start();
    let site = Site::protecting(&server);
    let place = site.path("former");
    std::fs::create_dir(&place).expect("it is ours");
    holdfast_testkit::own(&place);
    server.sql(&format!("create tablespace elsewhere location '{}'", place.display()));
    server.sql(
        "create table placed tablespace elsewhere as select i as id, repeat(md5(i::text), 5) as text \
            from generate_series(1, 100000) i",
    );
    let receiver = site.receive(&server, &[]);
    site.backup();
    site.await_durable(&server);
    receiver.stop();

    let to = site.path("restored");
    let space = site.path("space");
    let (target, remap) = (to.display().to_string(), format!("elsewhere={}", space.display()));
    let arguments = ["restore", "chat", "--to", &target, "--tablespace", &remap];
    let marked = space.join("holdfast.restore");
    // A kill that comes too late tells nothing; then once more.
    let interrupted = (0..20).any(|_| {
        let mut restore: Background = site.start(&arguments);
        wait_until(BOUND, "the restore to begin", || marked.exists() || restore.has_ended().is_some());
        restore.kill_9();
        let is_half = !to.join("global/pg_control").exists();
        if !is_half {
            std::fs::remove_dir_all(&to).and_then(|()| std::fs::remove_dir_all(&space)).expect("they are ours");
        }
        is_half
    });
    assert!(interrupted, "no restore could be interrupted");
    assert!(marked.exists(), "the tablespace is not marked");

    let restored = site.restore("restored", &["--tablespace", &remap]);
    assert_eq!(restored.server.sql("select count(*), min(length(text)) from placed"), "100000|160");
    assert!(!marked.exists() && !to.join("holdfast.restore").exists(), "a marker stayed in a whole cluster");
    // A tablespace in use is in the way, even if what an interrupted restore left names it.
    let forged = site.path("forged");
    std::fs::create_dir(&forged).expect("it is ours");
    holdfast_testkit::own(&forged);
    std::fs::write(forged.join("holdfast.restore"), format!("tablespace {}\n", space.display())).expect("it is ours");
    site.run(&["restore", "chat", "--to", &forged.display().to_string(), "--tablespace", &remap]).expect(11);
    restored.prove_clean();
}

#[test]
fn what_came_before_a_gap_stays() {
    what_came_before_stays(3);
}

/// The receiver goes on in the very next segment, so that to it the one before is its own.
#[test]
fn what_came_before_a_gap_in_one_segment_stays() {
    what_came_before_stays(1);
}

/// A receiver stops in the middle of a segment, and another one begins so many later.
fn what_came_before_stays(segments: u32) {
    let server = Postgres::build(&default_version()).initdb_arg("--wal-segsize=1").start();
    let site = Site::protecting(&server);
    server.sql("create table t (id int)");
    let receiver = site.receive(&server, &[]);
    let before = site.backup();
    server.sql("insert into t values (1)");
    site.await_durable(&server);
    let reached = site.durable(1);
    receiver.stop();
    // The slot goes, and with it the log that nobody took.
    server.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots");
    for _ in 0..segments {
        server.sql("select pg_switch_wal()");
        server.sql("insert into t values (2)");
    }
    server.sql("checkpoint");
    let receiver = site.receive(&server, &[]);
    server.sql("insert into t values (3)");
    site.await_durable(&server);
    server.sql("select pg_switch_wal()");
    server.sql("insert into t values (4)");
    site.await_durable(&server);
    receiver.stop();

    // The open segment of the first receiver has only pieces: they are all there is up to that moment.
    let position = format!("{:X}/{:08X}", reached >> 32, reached & 0xFFFF_FFFF);
    let id = before["snapshot"]["id"].as_str().expect("a backup has an id");
    let restored = site.restore("restored", &["--snapshot", id, "--lsn", &position]);
    assert_eq!(restored.server.sql("select string_agg(id::text, ' ') from t"), "1");
    restored.discard();
}
