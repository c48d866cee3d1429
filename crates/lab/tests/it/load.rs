//! Writers at work, and servers that die under them.

use std::time::{Duration, Instant};

use holdfast_lab::{CheckOptions, Depth, Journal, Lab, LabError, OnLoss, RunOptions};
use holdfast_testkit::{Postgres, TempRoot, default_version, wait_until};
use jiff::Timestamp;

/// A server with a small data set in its database `im`.
fn platform() -> (Postgres, Lab, TempRoot) {
    let server = Postgres::build(&default_version()).start();
    let lab = Lab::new(server.conninfo_of("im"));
    lab.create_blocking(4, 42).expect("the data set is loaded");
    (server, lab, TempRoot::new())
}

#[test]
fn what_was_written_in_peace_is_all_there() {
    let (_server, lab, root) = platform();
    let journal = root.join("journal");
    let options = RunOptions { duration: Some(Duration::from_secs(3)), ..RunOptions::new(&journal) };
    let totals = lab.start(options).wait().expect("the run works");
    assert!(totals.rate > 300.0, "{totals:?}");
    assert_eq!((totals.in_doubt, totals.rejected, totals.server_lost), (0, 0, false), "{totals:?}");

    for depth in [Depth::Full, Depth::Written] {
        let options = CheckOptions { depth, ..CheckOptions::default() };
        let report = lab.check_blocking(std::slice::from_ref(&journal), &options).expect("it can be judged");
        assert!(report.well, "{report}");
        assert_eq!(report.acknowledged, totals.acknowledged);
        assert_eq!(report.expected, totals.acknowledged);
        assert_eq!((report.lost, report.behind_seconds, report.loss_window_seconds), (0, 0.0, 0.0), "{report}");
    }

    // A moment in the middle: half of it is too new for a database that was brought back to it.
    let entries = Journal::read(std::slice::from_ref(&journal)).expect("it can be read");
    let middle = entries.entries()[entries.entries().len() / 2].sent_us;
    let at = Some(Timestamp::from_microsecond(middle).expect("it is a time"));
    let options = CheckOptions { at, ..CheckOptions::default() };
    let report = lab.check_blocking(&[journal], &options).expect("it can be judged");
    assert!(report.too_new > 0 && report.expected < report.acknowledged && report.lost == 0, "{report}");
    assert!(!report.well);
}

#[test]
fn a_rate_is_kept() {
    let (_server, lab, root) = platform();
    let options = RunOptions {
        duration: Some(Duration::from_secs(2)),
        rate: Some(200.0),
        writers: 4,
        ..RunOptions::new(root.join("journal"))
    };
    let totals = lab.start(options).wait().expect("the run works");
    assert!((300..=410).contains(&totals.acknowledged), "{totals:?}");
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    let (mut server, lab, root) = platform();
    let journal = root.join("journal");
    for round in 0..3 {
        let running = lab.start(RunOptions { seed: round, ..RunOptions::new(&journal) });
        wait_until(Duration::from_secs(30), "a thousand writes are acknowledged", || running.acknowledged() > 1000);
        server.kill_9();
        let totals = running.wait().expect("writers survive the server");
        assert!(totals.server_lost && totals.in_doubt > 0, "{totals:?}");
        server.start();
    }
    let report = lab.check_blocking(&[journal], &CheckOptions::default()).expect("it can be judged");
    assert!(report.well, "{report}");
    assert!(report.acknowledged > 3000 && report.in_doubt > 0, "{report}");
}

#[test]
fn writers_come_back_with_the_server() {
    let (mut server, lab, root) = platform();
    let journal = root.join("journal");
    let running = lab.start(RunOptions { on_loss: OnLoss::Reconnect, ..RunOptions::new(&journal) });
    wait_until(Duration::from_secs(30), "writes are acknowledged", || running.acknowledged() > 500);
    server.kill_9();
    let before = running.acknowledged();
    server.start();
    wait_until(Duration::from_secs(30), "writes are acknowledged again", || running.acknowledged() > before + 500);
    let totals = running.stop().expect("the run works");
    assert!(totals.server_lost, "{totals:?}");
    let report = lab.check_blocking(&[journal], &CheckOptions::default()).expect("it can be judged");
    assert!(report.well, "{report}");
}

#[test]
fn a_copy_that_stayed_behind_is_measured() {
    let (server, lab, root) = platform();
    let copy = Postgres::standby_of(&server).start();
    let journal = root.join("journal");
    let running = lab.start(RunOptions::new(&journal));
    wait_until(Duration::from_secs(30), "writes are acknowledged", || running.acknowledged() > 500);
    copy.sql("select pg_wal_replay_pause()");
    wait_until(Duration::from_secs(30), "replay stands", || {
        copy.sql("select pg_get_wal_replay_pause_state()") == "paused"
    });
    let paused = (Instant::now(), running.acknowledged());
    wait_until(Duration::from_secs(30), "more is acknowledged", || running.acknowledged() > paused.1 + 1000);
    let elapsed = paused.0.elapsed().as_secs_f64();
    running.stop().expect("the run works");

    let journals = [journal];
    let behind = Lab::new(copy.conninfo_of("im"));
    let report = behind.check_blocking(&journals, &CheckOptions::default()).expect("it can be judged");
    assert!(!report.well && report.lost >= 1000, "{report}");
    assert!(report.faults().iter().all(|(_, count)| *count == 0), "only the end is missing: {report}");
    assert!(report.loss_window_seconds > elapsed - 0.1, "{report}, {elapsed} s");
    assert!(report.behind_seconds > elapsed - 0.2, "{report}, {elapsed} s");
    let tolerant = CheckOptions { allowed_loss_seconds: report.loss_window_seconds + 0.001, ..CheckOptions::default() };
    assert!(behind.check_blocking(&journals, &tolerant).expect("it can be judged").well);
}

#[test]
fn what_cannot_be_judged_is_no_verdict() {
    let (server, lab, root) = platform();
    let journal = root.join("journal");
    lab.start(RunOptions { duration: Some(Duration::from_millis(100)), ..RunOptions::new(&journal) })
        .wait()
        .expect("the run works");
    assert!(matches!(lab.create_blocking(4, 42), Err(LabError::AlreadyLoaded)));

    let options = CheckOptions::default();
    let missing = lab.check_blocking(&[root.join("missing")], &options);
    assert!(matches!(missing, Err(LabError::Journal { .. })), "{missing:?}");
    let empty = Lab::new(server.conninfo()).check_blocking(std::slice::from_ref(&journal), &options);
    assert!(matches!(empty, Err(LabError::NoDataSet)), "{empty:?}");
    let other = Lab::new(server.conninfo_of("other"));
    other.create_blocking(1, 7).expect("the data set is loaded");
    let foreign = other.check_blocking(std::slice::from_ref(&journal), &options);
    assert!(matches!(foreign, Err(LabError::ForeignJournal { .. })), "{foreign:?}");
    let nobody = Lab::new("host=/nonexistent user=postgres").check_blocking(std::slice::from_ref(&journal), &options);
    assert!(matches!(nobody, Err(LabError::Connect { .. })), "{nobody:?}");

    let mut bytes = std::fs::read(&journal).expect("it can be read");
    bytes[200] ^= 1;
    std::fs::write(&journal, bytes).expect("it can be written");
    let damaged = lab.check_blocking(&[journal], &options);
    assert!(matches!(damaged, Err(LabError::JournalDamaged { offset: 160, .. })), "{damaged:?}");
}

#[test]
fn a_database_brought_back_to_a_moment_has_what_was_before_it_and_nothing_after() {
    let root = TempRoot::new();
    let archive = root.make_directory("archive").display().to_string();
    let server = Postgres::build(&default_version())
        .setting("archive_mode", "on")
        .setting("archive_command", format!("cp %p {archive}/%f"))
        .start();
    let lab = Lab::new(server.conninfo_of("im"));
    lab.create_blocking(4, 42).expect("the data set is loaded");
    let mut copy = Postgres::standby_of(&server)
        .setting("archive_mode", "off")
        .setting("restore_command", format!("cp {archive}/%f %p"))
        .prepare();

    let journal = root.join("journal");
    let running = lab.start(RunOptions::new(&journal));
    wait_until(Duration::from_secs(30), "writes are acknowledged", || running.acknowledged() > 1000);
    let moment = Timestamp::now();
    wait_until(Duration::from_secs(30), "more is acknowledged", || running.acknowledged() > 2000);
    running.stop().expect("the run works");
    let last = server.sql("select pg_walfile_name(pg_current_wal_lsn())");
    server.switch_wal();
    let archived = root.join("archive").join(last);
    wait_until(Duration::from_secs(30), "the last segment is archived", || archived.exists());

    // An offset in figures: PostgreSQL does not know the abbreviation `Z` yet when it reads this setting.
    let target = moment.strftime("%F %T%.6f+00");
    let directory = copy.data_directory().to_owned();
    std::fs::remove_file(directory.join("standby.signal")).expect("pg_basebackup made it");
    std::fs::write(directory.join("recovery.signal"), "").expect("it can be written");
    std::fs::write(
        directory.join("postgresql.auto.conf"),
        format!("recovery_target_time = '{target}'\nrecovery_target_action = 'promote'\n"),
    )
    .expect("it can be written");
    copy.start();
    wait_until(Duration::from_mins(1), "recovery has ended", || copy.sql("select pg_is_in_recovery()") == "f");

    let recovered = Lab::new(copy.conninfo_of("im"));
    let journals = [journal];
    let options = CheckOptions { at: Some(moment), ..CheckOptions::default() };
    let report = recovered.check_blocking(&journals, &options).expect("it can be judged");
    assert!(report.well && report.expected > 900 && report.expected < report.acknowledged, "{report}");
    // A moment too early or too late is told apart.
    let wide = jiff::SignedDuration::from_secs(2);
    for (wrong, lost) in [(moment - wide, false), (moment + wide, true)] {
        let options = CheckOptions { at: Some(wrong), ..CheckOptions::default() };
        let report = recovered.check_blocking(&journals, &options).expect("it can be judged");
        assert_eq!((report.lost > 0, report.too_new > 0), (lost, !lost), "{report}");
    }
}
