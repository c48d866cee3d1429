//! The promise: how much is lost when the server is.

use std::time::Duration;

use holdfast_testkit::{PgVersion, Postgres, require, wait_until};

use crate::chance::{Chance, is_soak, rounds};
use crate::load::{Load, await_writes};
use crate::site::{BOUND, RECEIVER, Site};

/// What streaming promises.
const LOSS_SECONDS: f64 = 1.0;
/// Acknowledged writes a second that the promise is made for.
const LOAD: f64 = 1000.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Streaming,
    Synchronous,
}

#[test]
fn streaming_loses_a_second_at_most_15() {
    the_server_is_lost(&require(15), Mode::Streaming);
}

#[test]
fn streaming_loses_a_second_at_most_18() {
    the_server_is_lost(&require(18), Mode::Streaming);
}

#[test]
fn synchronous_loses_nothing_15() {
    the_server_is_lost(&require(15), Mode::Synchronous);
}

#[test]
fn synchronous_loses_nothing_18() {
    the_server_is_lost(&require(18), Mode::Synchronous);
}

fn the_server_is_lost(version: &PgVersion, mode: Mode) {
    let mut chance = Chance::new(&format!("{mode:?} on PostgreSQL {version}"));
    let mut server = Postgres::build(version).setting("max_connections", "100").start();
    let load = Load::on(&server, 10);
    let site = Site::protecting(&server);
    let more: &[&str] = if mode == Mode::Synchronous { &["--synchronous"] } else { &[] };
    let mut receiver = site.receive(&server, more);
    if mode == Mode::Synchronous {
        // The name that `wal receive --help` says.
        let named = format!("alter system set synchronous_standby_names = '{RECEIVER}'; select pg_reload_conf()");
        server.sql(&named);
        let is_synchronous = "select sync_state from pg_stat_replication";
        wait_until(BOUND, "the server to count on the receiver", || server.sql(is_synchronous) == "sync");
    }
    for round in 0..rounds(2, 5) {
        if round > 0 {
            server.start();
            site.await_streaming(&server, &mut receiver);
        }
        let running = load.start(chance.number(u64::MAX));
        if round == 0 || chance.number(3) == 0 {
            site.backup();
        }
        await_writes(&running, 1000);
        chance.pause(Duration::ZERO, Duration::from_secs(2));
        let interruptions = receiver.said("was interrupted");
        server.kill_9();
        let totals = running.wait().expect("the lab runs");
        wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > interruptions);
        receiver.expect_running();

        let restored = site.restore("restored", &[]);
        let allowed = if mode == Mode::Synchronous { 0.0 } else { LOSS_SECONDS };
        let report = load.expect_loss_within(&restored.server, allowed);
        println!(
            "{mode:?} on PostgreSQL {version}, round {round}: {:.0} writes/s, {} of {} lost, {:.3} s",
            totals.rate, report.lost, report.acknowledged, report.loss_window_seconds
        );
        if mode == Mode::Synchronous {
            assert_eq!(report.lost, 0, "{report}");
            // Nobody confirms what is written to the copy: it must not wait for that.
            assert_eq!(restored.server.sql("show synchronous_standby_names"), "");
        }
        // A machine that is shared may be slower; the long run has one of its own.
        assert!(!is_soak() || totals.rate >= LOAD, "only {:.0} writes a second", totals.rate);
        restored.prove_clean();
    }
    site.verify();
    receiver.stop();
}
