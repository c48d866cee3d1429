//! What a backup may cost the server, and when it may run.

use std::process::Stdio;

use holdfast_testkit::{Postgres, require, wait_until};

use crate::site::{BOUND, Site};

fn site(settings: &str) -> (Postgres, Site) {
    let server = Postgres::build(&require(18)).setting("wal_keep_size", "1GB").start();
    server.sql("create table t as select i as id, repeat(md5(i::text), 20) as text from generate_series(1, 20000) i");
    let site = Site::with(&server, |_| format!("[source.chat.backup]\n{settings}\n"));
    (server, site)
}

#[test]
fn a_backup_yields_to_a_slow_database() {
    let (_server, site) = site(
        "latency_limit = \"10ms\"\nlatency_query = \"select pg_sleep(case when random() < 0.3 then 0.03 else 0 end)\"\nrate_limit = \"16MiB\"",
    );
    let report = site.run(&["backup", "chat", "--json", "--fast"]).expect(0).json();
    let notes = report["notes"].to_string();
    assert!(notes.contains("slowed down") && notes.contains("more than 10ms"), "{notes}");
    // A database that answers in time is not yielded to.
    let report = site.run(&["backup", "chat", "--json", "--fast", "--latency-limit", "50s"]).expect(0).json();
    assert_eq!(report["notes"].as_array().map(Vec::len), Some(0), "{report:#}");
}

/// Unless told otherwise, a backup asks how the database does only where that matters to somebody.
#[test]
fn users_are_yielded_to_and_nobody_else() {
    // So slow that the server counts what the backup's own session did at its start.
    let (server, site) = site("rate_limit = \"4MiB\"");
    server.sql("create extension pg_walinspect");
    let probes = || {
        let before = server.sql("select pg_current_wal_insert_lsn()");
        site.run(&["backup", "chat", "--fast"]).expect(0);
        let waldump = format!(
            "select count(*) from pg_get_wal_records_info('{before}', pg_current_wal_flush_lsn()) \
             where resource_manager = 'LogicalMessage'"
        );
        server.sql(&waldump).parse::<u32>().expect("a number")
    };
    let without = probes();
    let pgbench = |arguments: &[&str]| {
        let mut command = server.client("pgbench");
        command.args(arguments).arg("postgres").stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    holdfast_testkit::run(&mut pgbench(&["--initialize", "--quiet"])).expect("tables are made");
    let mut users = pgbench(&["--select-only", "--rate=100", "--time=600"]).spawn().expect("pgbench can be run");
    let with = probes();
    users.kill().expect("it runs");
    users.wait().expect("it was not waited for");
    // The one by which it is proved that the probe works.
    assert_eq!(without, 1);
    assert!(with > 5, "{with}");
}

#[test]
fn a_probe_that_cannot_work_is_refused() {
    let (_server, site) = site("latency_limit = \"10ms\"\nlatency_query = \"selekt 1\"");
    site.run(&["backup", "chat", "--fast"]).expect(14).says("latency_query");
}

/// A server keeps a session for a question that was given up, for as long as it hangs.
#[test]
fn a_question_that_hangs_is_the_only_one() {
    let query = "select pg_sleep(case when nextval('asked') > 1 then 600 else 0 end)";
    let (server, site) = site(&format!("latency_limit = \"10ms\"\nlatency_query = \"{query}\"\nrate_limit = \"8MiB\""));
    server.sql("create sequence asked");
    let report = site.run(&["backup", "chat", "--json", "--fast"]).expect(0).json();
    let notes = report["notes"].to_string();
    assert!(notes.contains("slowed down") && notes.contains("were not answered"), "{notes}");
    assert_eq!(server.sql("select last_value from asked"), "2");
}

/// Longer than anybody waits for one, but there: what is slow is yielded to for as long as it lasts.
#[test]
fn answers_that_come_late_are_answers() {
    let slow = "latency_limit = \"10ms\"\nlatency_query = \"select pg_sleep(1.3)\"\nrate_limit = \"8MiB\"";
    let (_server, site) = site(slow);
    let report = site.run(&["backup", "chat", "--json", "--fast"]).expect(0).json();
    let notes = report["notes"].to_string();
    assert!(notes.contains("the worst took 1.") && !notes.contains("slowed down: 0 of"), "{notes}");
}

/// Commits wait for a standby that is down: the time at which a backup is wanted most.
#[test]
fn commits_that_hang_do_not_keep_backups_from_being_made() {
    let (server, site) = site("");
    let hang = "alter system set synchronous_standby_names = 'nobody'; select pg_reload_conf()";
    server.sql(&format!("set synchronous_commit = off; {hang}"));
    wait_until(BOUND, "commits to wait", || server.sql("show synchronous_standby_names") == "nobody");
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    for limit in ["auto", "10ms"] {
        let report = site.run(&["backup", "chat", "--json", "--fast", "--latency-limit", limit]).expect(0).json();
        assert_eq!(report["snapshot"]["kind"], "full", "{report:#}");
        // Its one session goes with it, though commits still hang: one more each minute would be the end of all.
        wait_until(BOUND, "nobody to wait", || server.sql(waiting) == "0");
    }
    site.verify();
}

#[test]
fn the_default_probe_is_a_commit() {
    let (server, site) = site("latency_limit = \"30s\"");
    let before = server.sql("select pg_current_wal_insert_lsn()");
    site.run(&["backup", "chat", "--fast"]).expect(0);
    let waldump = format!(
        "select count(*) from pg_get_wal_records_info('{before}', pg_current_wal_flush_lsn()) \
         where resource_manager = 'LogicalMessage'"
    );
    server.sql("create extension pg_walinspect");
    assert_ne!(server.sql(&waldump), "0");
}

#[test]
fn the_workers_priority_is_low() {
    let (_server, site) = site("nice = 7\nrate_limit = \"1MiB\"");
    let mut running = site.start(&["backup", "chat", "--fast"]);
    // The third and nineteenth field of `stat` (proc_pid_stat(5)): its name has no blanks.
    let is_lowered = |stat: String| stat.contains("(backup)") && stat.split(' ').nth(18) == Some("7");
    wait_until(BOUND, "a worker of low priority", || {
        running.expect_running();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", running.pid())).expect("it runs");
        tasks.flatten().any(|task| std::fs::read_to_string(task.path().join("stat")).is_ok_and(is_lowered))
    });
    let pid = nix::unistd::Pid::from_raw(running.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    assert_eq!(running.wait(BOUND), Some(130));
}

#[test]
fn outside_its_window_a_backup_is_refused() {
    // The two hours that begin twelve hours from now.
    let (_server, site) = site("");
    let hour = |hours: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
        at.strftime("%H:%M").to_string()
    };
    let path = site.path("holdfast.toml");
    let text = std::fs::read_to_string(&path).expect("it was written");
    let window = format!("{text}windows = [\"{}-{}\"]\ntime_zone = \"UTC\"\n", hour(12), hour(14));
    std::fs::write(&path, window).expect("the sandbox can be written");
    site.run(&["backup", "chat", "--fast"]).expect(11).says("their window opens on").says("--any-time");
    site.run(&["backup", "chat", "--fast", "--any-time"]).expect(0);
    let window = format!("{text}windows = [\"{}-{}\"]\ntime_zone = \"UTC\"\n", hour(-1), hour(2));
    std::fs::write(&path, window).expect("the sandbox can be written");
    site.run(&["backup", "chat", "--fast"]).expect(0);
}
