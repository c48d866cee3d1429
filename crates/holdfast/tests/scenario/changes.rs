//! A backup while everything changes that moves files, compared with a standby that replayed the same log.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_pgformat::{ClusterState, ControlFile};
use holdfast_testkit::{PgVersion, Postgres, StopMode, require, wait_until};

use crate::chance::{Chance, is_soak, rounds};
use crate::pages::{differences, is_same};
use crate::site::{BOUND, Site, lsn};

#[test]
fn a_backup_while_files_move_15() {
    a_backup_while_files_move(&require(15));
}

#[test]
fn a_backup_while_files_move_18() {
    a_backup_while_files_move(&require(18));
}

/// What is there before anything moves.
const BEFORE: &str = "
    create table churned as select i as id, repeat(md5(i::text), 6) as text from generate_series(1, 20000) i;
    create index on churned (text); create index on churned using brin (id);
    create table emptied as select i as id, md5(i::text) as text from generate_series(1, 20000) i;
    create index on emptied (id);
    create table toggled as select i as id, md5(i::text) as text from generate_series(1, 5000) i;
    create table grown (id serial primary key, text text) with (fillfactor = 90);
    create table documents as select i as id, to_tsvector('simple', md5(i::text) || ' ' || i) as words
        from generate_series(1, 2000) i;
    create index on documents using gin (words);
    create unlogged table forgotten as select i as id from generate_series(1, 1000) i;
    create table placed (id int) tablespace elsewhere; insert into placed select generate_series(1, 5000);
";

/// What one session does over and over; `N` is the number of the turn.
const SESSIONS: [&str; 6] = [
    "vacuum full churned; update churned set text = md5(text) where id % 10 = 3; cluster churned using churned_text_idx",
    "truncate emptied; insert into emptied select i, md5(i::text) from generate_series(1, 5000) i; \
     begin; truncate emptied; rollback; delete from emptied where id > 2500; vacuum emptied",
    "create database copied_N strategy file_copy; create database logged_N strategy wal_log; drop database copied_N",
    "create tablespace space_N location ''; create table in_N (id int) tablespace space_N; \
     insert into in_N select generate_series(1, 1000); alter table in_N set tablespace pg_default; \
     drop tablespace space_N; insert into placed select generate_series(1, 100); alter table in_N set tablespace elsewhere",
    "alter table toggled set unlogged; insert into toggled values (N, 'unlogged'); alter table toggled set logged; \
     alter table forgotten set logged; alter table forgotten set unlogged",
    "insert into grown (text) select repeat('x', 400) from generate_series(1, 2000); create table small_N (id serial primary \
     key); insert into small_N default values; create table gone_N as select 1 as id; drop table gone_N; \
     insert into documents select N, to_tsvector('simple', md5('N'))",
];

fn a_backup_while_files_move(version: &PgVersion) {
    let mut chance = Chance::new(&format!("changes on PostgreSQL {version}"));
    for _ in 0..rounds(1, 10) {
        round(version, &mut chance);
    }
}

fn round(version: &PgVersion, chance: &mut Chance) {
    let primary = Postgres::build(version)
        .setting("allow_in_place_tablespaces", "on")
        .setting("autovacuum", "off")
        .setting("wal_keep_size", "8GB")
        .setting("max_wal_size", "8GB")
        .start();
    let mut elsewhere = String::new();
    let mut mapped = String::new();
    let site = Site::with(&primary, |root| {
        elsewhere = root.make_directory("elsewhere").display().to_string();
        mapped = root.join("elsewhere-standby").display().to_string();
        String::new()
    });
    primary.sql(&format!("create tablespace elsewhere location '{elsewhere}'"));
    primary.sql(BEFORE);
    let reference = Postgres::standby_of(&primary).initdb_arg(format!("--tablespace-mapping={elsewhere}={mapped}"));
    let mut reference = reference.prepare();
    let receiver = site.receive(&primary, &[]);

    let positions = move_files(&primary, || {
        if is_soak() {
            // Past the first segment of 1 GiB.
            primary.sql(
                "create table wide (text text); alter table wide alter text set storage plain; \
                 insert into wide select repeat(md5(i::text), 120) from generate_series(1, 260000) i",
            );
        }
        let backup = site.run(&["backup", "chat", "--json", "--fast", "--rate-limit", "30MiB"]).expect(0).json();
        lsn(backup["snapshot"]["stop_lsn"].as_str().expect("a backup ends somewhere"))
    });
    site.await_durable(&primary);

    // Anywhere behind the backup, in the middle of whatever was going on.
    let position = &positions[chance.number(positions.len() as u64) as usize];
    println!("PostgreSQL {version}: restoring to {position}, one of {} positions", positions.len());
    let remap = format!("elsewhere={}", site.path("elsewhere-restored").display());
    let mut restored = site.restore("restored", &["--lsn", position, "--tablespace", &remap]);
    restored.server.stop(StopMode::Fast);

    let settings = format!(
        "recovery_target_lsn = '{position}'\nrecovery_target_timeline = '1'\nrecovery_target_action = 'promote'\n"
    );
    let auto = reference.data_directory().join("postgresql.auto.conf");
    let before = std::fs::read_to_string(&auto).expect("pg_basebackup wrote it");
    std::fs::write(&auto, before + &settings).expect("it can be written");
    reference.start();
    // Nobody asks the server itself: whoever reads a page of the catalogue after the promotion may prune it.
    let control = reference.data_directory().join("global/pg_control");
    let is_promoted = || {
        let control = std::fs::read(&control).ok().and_then(|bytes| ControlFile::parse(&bytes).ok());
        control.is_some_and(|control| control.state == ClusterState::Production)
    };
    wait_until(BOUND, "the reference to be promoted", is_promoted);
    reference.stop(StopMode::Fast);

    let found = unexplained(restored.server.data_directory(), reference.data_directory(), &primary);
    let shown = found.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(found.is_empty(), "{} pages differ:\n{shown}", found.len());
    restored.server.start();
    restored.prove_clean();
    receiver.stop();
    site.verify();
}

/// Where the two clusters differ, but for visibility maps whose bits the log does not have.
///
/// PostgreSQL logs the maps of a database made with `strategy wal_log` as standard pages. To those the bits are unused
/// space, so the images come without them (`RelationCopyStorageUsingBuffer`; mended later, "Fix
/// WAL-logged CREATE DATABASE with nonstandard pages"). Who replays the creation, as the reference does, has no bits. A
/// backup that begins later has the server's. Nobody connects to these databases, so nobody changes their maps: a page
/// that is not as replay leaves it must be exactly the server's.
fn unexplained(restored: &Path, reference: &Path, primary: &Postgres) -> Vec<String> {
    primary.sql("checkpoint");
    let logged = primary.sql("select 'base/' || oid || '/' from pg_database where starts_with(datname, 'logged_')");
    let is_logged_map =
        |page: &str| page.contains("_vm block ") && logged.lines().any(|folder| page.starts_with(folder));
    let mut found = differences(restored, reference);
    found.retain(|page| !(is_logged_map(page) && is_same(page, restored, primary.data_directory())));
    found
}

/// Ends the sessions, also when the story fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets all sessions work while `backup` runs, and some more; the positions at which they were behind its end.
fn move_files(primary: &Postgres, backup: impl FnOnce() -> u64) -> Vec<String> {
    let is_over = AtomicBool::new(false);
    let positions = Mutex::new(Vec::new());
    let turns = Mutex::new(0);
    let stop = std::thread::scope(|scope| {
        let sessions: Vec<_> = SESSIONS
            .iter()
            .map(|statements| {
                let (is_over, positions, turns) = (&is_over, &positions, &turns);
                scope.spawn(move || {
                    for turn in 0.. {
                        if is_over.load(Ordering::Relaxed) {
                            return turn;
                        }
                        primary.sql(&statements.replace('N', &turn.to_string()));
                        let position = primary.sql("select pg_current_wal_insert_lsn()");
                        positions.lock().expect("nobody panics").push(position);
                        *turns.lock().expect("nobody panics") += 1;
                    }
                    0
                })
            })
            .collect();
        let over = Over(&is_over);
        wait_until(BOUND, "all to move", || *turns.lock().expect("nobody panics") >= SESSIONS.len());
        let stop = backup();
        let turns_then = *turns.lock().expect("nobody panics");
        wait_until(Duration::from_mins(2), "some more moves", || {
            *turns.lock().expect("nobody panics") >= turns_then + 2 * SESSIONS.len()
        });
        drop(over);
        for session in sessions {
            assert!(session.join().expect("a session does not panic") > 0);
        }
        stop
    });
    let mut positions = positions.into_inner().expect("nobody panics");
    // Behind the end of the backup, and before the end of the log.
    positions.retain(|position| lsn(position) > stop);
    positions.sort_by_key(|position| lsn(position));
    positions.pop();
    assert!(!positions.is_empty());
    positions
}
