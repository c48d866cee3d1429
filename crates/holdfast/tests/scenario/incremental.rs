//! What an incremental or differential backup gives back is what a full one would: after any schedule of writes, DDL,
//! vacuum, truncation, crashes and promotions, the restored cluster equals the server page by page.

use holdfast_testkit::{PgVersion, Postgres, PostgresBuilder, StopMode, require, wait_until};
use serde_json::Value;

use crate::chance::{Chance, rounds};
use crate::pages::expect_twins;
use crate::site::{BOUND, Site};

#[test]
fn any_schedule_15() {
    any_schedule(&require(15));
}

#[test]
fn any_schedule_18() {
    any_schedule(&require(18));
}

const BEFORE: &str = "
    create table rows as select i as id, i % 17 as part, repeat(md5(i::text), 5) as text from generate_series(1, 20000) i;
    create index on rows (id); create index on rows using hash (id); create index on rows using brin (id);
    create table shrinking as select i as id, repeat('x', 200) as text from generate_series(1, 5000) i;
    create table toggled as select i as id from generate_series(1, 1000) i;
    create table words as select i as id, to_tsvector('simple', md5(i::text)) as words from generate_series(1, 1000) i;
    create index on words using gin (words);
    create table spots as select i as id, point(i, i % 100) as at from generate_series(1, 2000) i;
    create index on spots using gist (at); create index on spots using spgist (at);
    create unlogged table forgotten as select i as id from generate_series(1, 1000) i;
    create table churn as select i as id, md5(i::text) as text from generate_series(1, 3000) i;
    create sequence numbers;
";

/// What may happen between two backups. `N` is a number that is used once, `R` a random one below 20000.
const DEEDS: [&str; 30] = [
    "update rows set text = md5(text) where id = R",
    "update rows set part = part + 1 where id between R and R + 50",
    "delete from rows where id between R and R + 200",
    "insert into rows select i, 1, repeat(md5(i::text), 5) from generate_series(1, 3000) i",
    "begin; insert into rows select i, 2, repeat('y', 300) from generate_series(1, 5000) i; rollback",
    "vacuum rows",
    "vacuum freeze rows",
    "vacuum full churn",
    "create index if not exists churn_text on churn (text); cluster churn using churn_text",
    "create index if not exists churn_text on churn (text)",
    "drop index if exists churn_text",
    "reindex table rows",
    "delete from shrinking where id > R; vacuum shrinking",
    "insert into shrinking select i, repeat('z', 200) from generate_series(1, 3000) i",
    "truncate shrinking",
    "begin; truncate shrinking; insert into shrinking values (1, 'gone'); rollback",
    "alter table toggled set unlogged",
    "alter table toggled set logged; insert into toggled values (N)",
    "alter table forgotten set logged; insert into forgotten values (N); alter table forgotten set unlogged",
    "create table made_N as select i as id from generate_series(1, 500) i",
    "create table gone_N as select i as id from generate_series(1, 500) i; drop table gone_N",
    "create database copied_N strategy file_copy",
    "create database logged_N strategy wal_log; drop database logged_N",
    "insert into words select N, to_tsvector('simple', md5('N'))",
    "insert into spots select N, point(R, N) from generate_series(1, 300); delete from spots where id < R / 20",
    "select nextval('numbers'); select lo_from_bytea(0, decode(repeat('ab', 10000), 'hex'))",
    "begin; insert into churn values (N, 'prepared'); prepare transaction 'p_N'; commit prepared 'p_N'",
    "select id, text from rows where part = 3; analyze rows",
    "checkpoint",
    "create tablespace space_N location ''; create table in_N (id int) tablespace space_N; \
     insert into in_N select generate_series(1, 1000); alter table in_N set tablespace pg_default; drop tablespace space_N",
];

fn any_schedule(version: &PgVersion) {
    let mut chance = Chance::new(&format!("schedules on PostgreSQL {version}"));
    let mut skipped = 0;
    let all = rounds(5, 1);
    // Each story adds relations and databases: a new one now and then keeps the rounds short.
    for first in (0..all).step_by(ROUNDS_OF_A_STORY) {
        let mut story = Story::new(version);
        for round in 0..(all - first).min(ROUNDS_OF_A_STORY as u64) {
            let done = story.round(&mut chance, round);
            skipped += u64::from(done["snapshot"]["kind"] == "full");
        }
        story.site.verify();
    }
    // All but those that a promotion or crash made necessary.
    assert!(skipped <= all / 4 + 1, "{skipped} backups read everything");
}

const ROUNDS_OF_A_STORY: usize = 20;

/// Somebody writes to a file while the server is down: no log says so, and the audit finds it.
#[test]
fn an_offline_edit_is_found() {
    let mut server = Postgres::build(&require(18)).setting("autovacuum", "off").start();
    let site = Site::protecting(&server);
    let mut receiver = site.receive(&server, &[]);
    server
        .sql("create table edited as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 5000) i");
    let file = server.data_directory().join(server.sql("select pg_relation_filepath('edited')"));
    server.sql("vacuum freeze edited; checkpoint");
    site.backup();
    site.await_durable(&server);
    server.stop(StopMode::Fast);
    // A whole page, so that its checksum stays right.
    let mut bytes = std::fs::read(&file).expect("it can be read");
    let last = bytes[5 * 8192..6 * 8192].to_vec();
    bytes[3 * 8192..4 * 8192].copy_from_slice(&last);
    // The checksum counts the block's number: the page is another's, and is repaired by its own reader's rules.
    let block = holdfast_pgformat::page::checksum(bytes[3 * 8192..4 * 8192].first_chunk().expect("a page"), 3);
    bytes[3 * 8192 + 8..3 * 8192 + 10].copy_from_slice(&block.to_le_bytes());
    std::fs::write(&file, &bytes).expect("it can be written");
    server.start();
    site.await_streaming(&server, &mut receiver);

    let found = (0..40).find_map(|_| {
        let run = site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"]);
        (run.code == Some(3)).then(|| run.json())
    });
    let report = found.expect("40 audits cover a small cluster");
    let incident = report["incidents"][0].as_str().expect("it says what it found");
    assert!(incident.contains("edited"), "{incident}");
    assert_eq!(report["snapshot"]["kind"], "full", "{report:#}");
    assert_eq!(report["snapshot"]["base"], Value::Null);
}

/// What the snapshot before needs is damaged: then nothing is taken from it, and the backup is made all the same.
#[test]
fn a_damaged_base_is_not_built_on() {
    let server = Postgres::build(&require(15)).start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select i as id from generate_series(1, 1000) i");
    let incremental = || {
        let run = site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"]);
        (run.code, run.json())
    };
    let none_yet = incremental();
    assert_eq!((none_yet.0, &none_yet.1["snapshot"]["kind"]), (Some(0), &Value::from("full")), "{none_yet:#?}");
    let (code, built) = incremental();
    assert_eq!((code, &built["snapshot"]["base"]), (Some(0), &none_yet.1["snapshot"]["id"]), "{built:#}");

    let maps = site.repository().join("maps");
    for folder in maps.read_dir().expect("there are maps").flatten() {
        std::fs::remove_dir_all(folder.path()).expect("it is ours");
    }
    let (code, report) = incremental();
    assert_eq!((code, &report["snapshot"]["kind"]), (Some(0), &Value::from("full")), "{report:#}");
    let note = report["notes"][0].as_str().expect("it says why");
    assert!(note.contains("everything was read"), "{note}");
    site.await_durable(&server);
    let restored = site.restore("restored", &[]);
    assert_eq!(restored.server.sql("select count(*) from t"), "1000");
    restored.prove_clean();
    receiver.stop();
}

/// A server that deeds are done on, and what protects it.
pub(crate) struct Story {
    pub(crate) server: Postgres,
    pub(crate) site: Site,
    number: u64,
}

impl Story {
    fn new(version: &PgVersion) -> Self {
        Self::on(Postgres::build(version))
    }

    pub(crate) fn on(server: PostgresBuilder) -> Self {
        let server = server
            .setting("allow_in_place_tablespaces", "on")
            .setting("autovacuum", "off")
            .setting("max_prepared_transactions", "5")
            .setting("wal_keep_size", "4GB")
            .start();
        server.sql(BEFORE);
        let site = Site::protecting(&server);
        Self { server, site, number: 0 }
    }

    pub(crate) fn deeds(&mut self, chance: &mut Chance, most: u64) {
        for _ in 0..=chance.number(most) {
            let deed = self.choose(chance);
            self.server.sql(&deed);
        }
    }

    /// What is to be done next.
    pub(crate) fn choose(&mut self, chance: &mut Chance) -> String {
        self.number += 1;
        let deed = DEEDS[chance.number(DEEDS.len() as u64) as usize];
        let deed = deed.replace('N', &self.number.to_string());
        deed.replace('R', &chance.number(20_000).to_string())
    }

    /// Some deeds, a backup, some more; then the server is stopped, and what is restored is compared with it.
    fn round(&mut self, chance: &mut Chance, round: u64) -> Value {
        let receiver = self.site.receive(&self.server, &[]);
        if round == 0 {
            self.site.backup();
        }
        self.deeds(chance, 6);
        let accident = chance.number(6);
        if accident == 0 {
            println!("round {round}: a crash");
            self.server.stop(StopMode::Immediate);
            self.server.start();
        }
        if accident == 1 {
            println!("round {round}: a promotion");
            self.site.await_durable(&self.server);
            self.server.stop(StopMode::Fast);
            let signal = self.server.data_directory().join("standby.signal");
            std::fs::write(&signal, "").expect("it can be written");
            holdfast_testkit::own(&signal);
            self.server.start();
            self.server.sql("select pg_promote()");
            wait_until(BOUND, "the server to be promoted", || {
                self.server.try_sql("select pg_is_in_recovery()").is_ok_and(|is| is == "f")
            });
            self.server.sql("checkpoint");
        }
        self.site.await_durable(&self.server);
        let kind = if chance.number(4) == 0 { "differential" } else { "incremental" };
        let report = self.site.run(&["backup", "chat", "--json", "--fast", "--type", kind]).expect(0).json();
        let snapshot = &report["snapshot"];
        println!(
            "round {round}: {} of {kind}, read {} of {}, stored {}, notes {}",
            snapshot["kind"], snapshot["read_bytes"], snapshot["bytes"], snapshot["stored_bytes"], report["notes"]
        );
        self.deeds(chance, 3);
        self.site.await_durable(&self.server);
        self.server.stop(StopMode::Fast);
        receiver.stop();

        let mut restored = self.site.restore("restored", &[]);
        assert_eq!(restored.report["plan"]["snapshot"]["id"], snapshot["id"], "{:#}", restored.report);
        restored.server.stop(StopMode::Fast);
        expect_twins(restored.server.data_directory(), self.server.data_directory());
        restored.discard();
        self.server.start();
        report
    }
}
