//! Back to any moment: a second, a position, a name, a snapshot, on any timeline.

use std::time::Duration;

use holdfast_lab::CheckOptions;
use holdfast_testkit::{PgVersion, Postgres, require, wait_until};
use jiff::{Timestamp, Unit};

use crate::load::{Load, await_writes};
use crate::site::{BOUND, Restored, Site};

/// One row that says where we are, and what leads back to it.
#[derive(Debug)]
struct Mark {
    number: u64,
    lsn: String,
    at: String,
}

/// Numbers its transactions, so that a restored copy tells where it ends.
fn mark(server: &Postgres, number: u64) -> Mark {
    server.sql("create table if not exists marks (number int)");
    server.sql(&format!("insert into marks values ({number})"));
    let lsn = server.sql("select pg_current_wal_insert_lsn()");
    let at = server.sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    server.sql(&format!("select pg_create_restore_point('mark {number}')"));
    Mark { number, lsn, at }
}

fn marks(restored: &Restored) -> String {
    restored.server.sql("select string_agg(number::text, ' ' order by number) from marks")
}

#[test]
fn any_moment_can_be_reached_15() {
    any_moment_can_be_reached(&require(15));
}

#[test]
fn any_moment_can_be_reached_18() {
    any_moment_can_be_reached(&require(18));
}

fn any_moment_can_be_reached(version: &PgVersion) {
    let server = Postgres::build(version).start();
    let load = Load::on(&server, 5);
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    // All happens under load, but one that leaves the debug build some time to look at the log.
    let running = load.start_with(|options| options.rate = Some(300.0));
    let too_early = mark(&server, 1);
    let first = site.backup()["snapshot"]["id"].as_str().expect("a backup has an id").to_owned();
    let marked: Vec<Mark> = (2..=4).map(|number| mark(&server, number)).collect();
    await_writes(&running, 100);
    // A whole second that writers worked before and after.
    let second = Timestamp::now().round(Unit::Second).expect("it is in range") + Duration::from_secs(1);
    wait_until(BOUND, "a second to pass", || Timestamp::now() > second);
    await_writes(&running, 300);
    site.backup();
    mark(&server, 5);
    await_writes(&running, 100);
    running.stop().expect("the lab runs");
    site.await_durable(&server);

    let at_second = site.restore("second", &["--at", &second.to_string()]);
    let report = load.judge(&at_second.server, &CheckOptions { at: Some(second), ..CheckOptions::default() });
    assert!(report.well && report.lost == 0 && report.expected > 0, "{report}");
    assert!(report.expected < report.acknowledged, "{report}");
    at_second.prove_clean();

    for (arguments, expected) in [
        (["--at", &marked[1].at], "1 2 3"),
        (["--lsn", &marked[1].lsn], "1 2 3"),
        (["--name", "mark 3"], "1 2 3"),
        (["--snapshot", &first], "1"),
        (["--name", "mark 5"], "1 2 3 4 5"),
    ] {
        let restored = site.restore("moment", &arguments);
        assert_eq!(marks(&restored), expected, "{arguments:?}");
        restored.discard();
    }
    // From the old snapshot to the end, as if the newer one were not there.
    let restored = site.restore("moment", &["--snapshot", &first, "--latest"]);
    assert_eq!(load.expect_loss_within(&restored.server, 0.0).lost, 0);
    restored.prove_clean();

    unreachable(&site, &too_early);
    receiver.stop();
    site.verify();
}

#[test]
fn the_end_of_the_log_stays_where_it_was_15() {
    the_end_of_the_log_stays_where_it_was(&require(15));
}

#[test]
fn the_end_of_the_log_stays_where_it_was_18() {
    the_end_of_the_log_stays_where_it_was(&require(18));
}

/// Whoever asks for the last moment before a mistake, and restores while the server still runs, must not get the mistake.
fn the_end_of_the_log_stays_where_it_was(version: &PgVersion) {
    let server = Postgres::build(version).initdb_arg("--wal-segsize=1").start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    mark(&server, 1);
    site.backup();
    mark(&server, 2);
    server.sql("select pg_switch_wal()");
    mark(&server, 3);
    site.await_durable(&server);
    let listed = site.run(&["list", "chat", "--json"]).expect(0).json();
    let newest = &listed["sources"][0]["log"][0]["recoverable"][0]["to"];
    let newest = newest.as_str().expect("there is a commit").to_owned();
    let position = site.durable(1);
    let position = format!("{:X}/{:08X}", position >> 32, position & 0xFFFF_FFFF);
    for (name, arguments) in [("position", ["--lsn", &position]), ("moment", ["--at", &newest])] {
        let to = site.path(name).display().to_string();
        site.run(&[&["restore", "chat", "--to", &to], &arguments[..]].concat()).expect(0);
    }
    // Behind the end in its segment, then in segments after it.
    mark(&server, 4);
    for _ in 0..3 {
        server.sql("select pg_switch_wal()");
        mark(&server, 5);
    }
    site.await_durable(&server);
    for name in ["position", "moment"] {
        let restored = Postgres::open(version, site.path(name)).start();
        wait_until(BOUND, "the end of recovery", || restored.sql("select pg_is_in_recovery()") == "f");
        let found = restored.sql("select string_agg(number::text, ' ' order by number) from marks");
        assert_eq!(found, "1 2 3", "{name}: {}", restored.log());
    }
    // Whoever asks for all of it gets what came since as well.
    let restored = site.restore("newest", &["--latest"]);
    assert_eq!(marks(&restored), "1 2 3 4 5 5 5");
    restored.prove_clean();
    receiver.stop();
}

/// What cannot be reached is refused before anything is written, with what can be reached instead.
fn unreachable(site: &Site, too_early: &Mark) {
    for (arguments, words) in [
        (["--at", &too_early.at], "the earliest reachable point is"),
        (["--at", "2001-01-01T00:00:00Z"], "the earliest reachable point is"),
        (["--at", "2099-01-01T00:00:00Z"], "the newest reachable point is"),
        (["--lsn", &too_early.lsn], "the earliest reachable point is"),
        (["--lsn", "FF/0"], "the newest reachable point is"),
        (["--name", "nobody made this"], "the newest reachable point is"),
        (["--name", &format!("mark {}", too_early.number)], "the earliest reachable point is"),
        (["--timeline", "9"], "timeline"),
    ] {
        let refused = site.try_restore("refused", &arguments).expect(4).says(words);
        assert!(refused.stderr.contains("hint"), "{refused:#?}");
        assert!(!site.path("refused").exists());
    }
}

#[test]
fn both_sides_of_a_promotion_15() {
    both_sides_of_a_promotion(&require(15));
}

#[test]
fn both_sides_of_a_promotion_18() {
    both_sides_of_a_promotion(&require(18));
}

/// The receiver streams from a standby that is promoted under it, then its server dies, and a second standby takes over.
fn both_sides_of_a_promotion(version: &PgVersion) {
    let mut primary = Postgres::build(version).start();
    let mut standby = Postgres::standby_of(&primary).start();
    let site = Site::protecting(&standby);
    let mut receiver = site.start(&["wal", "receive", "chat", "--create-slot", "--json"]);
    site.await_streaming(&standby, &mut receiver);
    mark(&primary, 1);
    let snapshot = &site.backup()["snapshot"];
    mark(&primary, 2);
    let on_first = mark(&primary, 3);
    let end = primary.sql("select pg_current_wal_flush_lsn()");
    let has_all = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    wait_until(BOUND, "the standby to have all", || standby.sql(&has_all) == "t");
    primary.kill_9();
    standby.sql("select pg_promote()");
    mark(&standby, 4);
    let third = Postgres::standby_of(&standby).start();
    mark(&standby, 5);
    site.await_durable(&standby);
    receiver.expect_running();

    // Another promotion, and this time the receiver has to find its way when it begins.
    let end = standby.sql("select pg_current_wal_flush_lsn()");
    let has_all = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    wait_until(BOUND, "the next standby to have all", || third.sql(&has_all) == "t");
    standby.kill_9();
    third.sql("select pg_promote()");
    receiver.stop();
    site.follow(&third);
    let receiver = site.receive(&third, &[]);
    mark(&third, 6);
    site.await_durable(&third);

    // The one snapshot leads to each of the timelines.
    let listed = site.run(&["list", "chat", "--json"]).expect(0).json();
    let log = listed["sources"][0]["log"].as_array().expect("there is log");
    let ranges: Vec<_> =
        log.iter().flat_map(|stretch| stretch["recoverable"].as_array().expect("it is known")).collect();
    let ends: Vec<_> = ranges.iter().map(|range| range["to"].as_str().expect("there are commits")).collect();
    assert!(ranges.len() == 3 && ends.is_sorted() && ends[0] < ends[2], "{listed:#}");
    assert!(ranges.iter().all(|range| range["from"] == snapshot["stopped_at"]), "{listed:#}");
    site.run(&["list", "chat"]).expect(0).says("\nrecoverable on timeline 3 from ");

    for (arguments, expected, timeline) in [
        (vec![], "1 2 3 4 5 6", 4),
        (vec!["--timeline", "1"], "1 2 3", 4),
        (vec!["--timeline", "1", "--name", "mark 2"], "1 2", 4),
        (vec!["--lsn", &on_first.lsn], "1 2 3", 4),
        (vec!["--timeline", "2"], "1 2 3 4 5", 4),
        (vec!["--timeline", "2", "--name", "mark 4"], "1 2 3 4", 4),
        (vec!["--name", "mark 6"], "1 2 3 4 5 6", 4),
    ] {
        let restored = site.restore("moment", &arguments);
        assert_eq!(marks(&restored), expected, "{arguments:?}");
        assert!(restored.report["reached"]["timeline"].as_u64() <= Some(timeline), "{}", restored.report);
        restored.discard();
    }
    site.try_restore("refused", &["--timeline", "1", "--name", "mark 4"])
        .expect(4)
        .says("the newest reachable point is");
    // The new timeline has a backup of its own.
    site.backup();
    mark(&third, 7);
    site.await_durable(&third);
    let restored = site.restore("moment", &[]);
    assert_eq!(marks(&restored), "1 2 3 4 5 6 7");
    restored.prove_clean();
    receiver.stop();
    site.verify();
}
