//! The testkit tries itself.

use std::path::Path;
use std::time::Duration;

use holdfast_testkit::{
    Postgres, StartError, StopMode, TempRoot, command_as_server_user, default_version, pg_amcheck, pg_checksums_check,
    pg_controldata, run, versions, wait_until,
};

#[test]
fn every_version_starts_answers_and_survives_a_kill() {
    for version in versions() {
        let mut server = Postgres::build(&version).setting("log_statement", "ddl").start();
        server.sql("create table t (id int); insert into t values (1), (2)");
        assert_eq!(server.sql("select sum(id), count(*) from t"), "3|2");
        assert_eq!(server.sql("show wal_level; show log_statement; show data_checksums"), "replica\nddl\non");
        assert!(server.sql("select version()").contains(&format!("PostgreSQL {version}")));

        let children = server.child_pids();
        let postmaster = server.pid();
        assert!(children.len() >= 4, "a server has background processes: {children:?}");
        server.kill_9();
        for pid in children.iter().chain([&postmaster]) {
            assert!(!Path::new(&format!("/proc/{pid}/stat")).exists() || is_zombie(*pid), "process {pid} is left");
        }
        assert!(server.data_directory().join("postmaster.pid").exists(), "a killed server leaves its pid file");

        server.start();
        assert_ne!(server.pid(), postmaster);
        assert!(server.log().contains("not properly shut down"));
        assert_eq!(server.sql("select count(*) from t"), "2");
        pg_amcheck(&server, "postgres").expect("nothing is damaged");

        server.stop(StopMode::Fast);
        assert!(!server.is_running());
        pg_checksums_check(&version, server.data_directory()).expect("all checksums are right");
        let control = pg_controldata(&version, server.data_directory());
        assert_eq!(control.get("Database cluster state"), "shut down");
    }
}

#[test]
fn a_kill_takes_the_descendants_too() {
    let mut server = Postgres::build(&default_version()).setting("archive_mode", "on").prepare();
    let marker = server.socket_directory().join("archiving");
    let command = format!("echo $$ > {}; sleep 1000", marker.display());
    std::fs::write(server.data_directory().join("postgresql.auto.conf"), format!("archive_command = '{command}'\n"))
        .expect("the file can be written");
    server.start();
    server.sql("create table t (id int); select pg_switch_wal()");
    wait_until(Duration::from_secs(20), "the archive command runs", || {
        std::fs::read_to_string(&marker).is_ok_and(|text| text.ends_with('\n'))
    });
    let pid: i32 = std::fs::read_to_string(&marker).expect("just seen").trim().parse().expect("a pid");
    server.kill_9();
    assert!(!Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid), "the archive command is left");
}

#[test]
fn a_standby_follows_and_can_be_promoted() {
    let mut primary = Postgres::build(&default_version()).fsync(false).start();
    let standby = Postgres::standby_of(&primary).setting("cluster_name", "second").start();
    assert_eq!(standby.sql("select pg_is_in_recovery(); show cluster_name"), "t\nsecond");
    primary.sql("create table t as select generate_series(1, 1000) as id");
    wait_until(Duration::from_secs(20), "the standby has the table", || {
        standby.try_sql("select count(*) from t").is_ok_and(|count| count == "1000")
    });
    primary.kill_9();
    standby.sql("select pg_promote()");
    assert_eq!(standby.sql("insert into t values (0); select count(*) from t"), "1001");
}

#[test]
fn a_copy_is_opened_without_being_changed() {
    let version = default_version();
    let mut server = Postgres::build(&version).initdb_arg("--wal-segsize=1").checksums(false).start();
    server.sql("create table t (id int)");
    assert_eq!(server.sql("show wal_segment_size; show data_checksums"), "1MB\noff");
    server.stop(StopMode::Immediate);

    let root = TempRoot::new();
    let copy = root.join("copy");
    run(command_as_server_user("cp").arg("-a").arg(server.data_directory()).arg(&copy)).expect("it can be copied");
    let configuration = std::fs::read(copy.join("postgresql.conf")).expect("it can be read");
    let mut opened = Postgres::open(&version, &copy).setting("work_mem", "7MB").start();
    server.start();
    assert_eq!(opened.sql("select count(*) from t; show work_mem"), "0\n7MB");
    assert_ne!(opened.conninfo(), server.conninfo());
    opened.stop(StopMode::Fast);
    assert_eq!(std::fs::read(copy.join("postgresql.conf")).expect("it can be read"), configuration);
}

#[test]
fn a_server_that_somebody_else_started_is_taken_over() {
    let version = default_version();
    let mut server = Postgres::build(&version).fsync(false).prepare();
    run(command_as_server_user(version.bin("pg_ctl"))
        .args(["start", "-w", "-D"])
        .arg(server.data_directory())
        .arg("-l")
        .arg(server.socket_directory().join("pg_ctl.log")))
    .expect("pg_ctl starts it");
    let mut other = Postgres::attach(&version, server.data_directory());
    assert_eq!(other.sql("select 1"), "1");
    other.stop(StopMode::Fast);
    server.start();
    assert_eq!(server.sql("select 2"), "2");
}

#[test]
fn a_server_listens_on_loopback_with_passwords_when_asked() {
    let version = default_version();
    let server = Postgres::build(&version).tcp().hba("host all all 127.0.0.1/32 scram-sha-256").start();
    server.sql("alter user postgres password 'secret'");
    let ask = |password: &str| {
        let mut psql = command_as_server_user(version.bin("psql"));
        run(psql.env("PGPASSWORD", password).args(["-XAtqw", "-c", "select 1", "-d", &server.conninfo_tcp()]))
    };
    assert_eq!(ask("secret").expect("the password is right").trim(), "1");
    assert!(ask("wrong").expect_err("the password is wrong").contains("password authentication failed"));
}

#[test]
fn failures_tell_what_postgresql_said() {
    let version = default_version();
    let error = Postgres::build(&version).setting("no_such_setting", "1").try_start().expect_err("it is refused");
    assert!(matches!(&error, StartError::Ended { log, .. } if log.contains("no_such_setting")), "{error}");

    let server = Postgres::build(&version).fsync(false).start();
    assert!(server.try_sql("select * from nowhere").expect_err("no such table").contains("nowhere"));
    // More than a pipe holds, in both directions.
    let wide = "x".repeat(200_000);
    assert_eq!(server.sql(&format!("select '{wide}'")).len(), wide.len());
}

fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|line| line.contains(") Z "))
}
