//! What an incremental or differential backup gives back is what a full one would: after any schedule of writes, DDL,
//! vacuum, truncation, crashes and promotions, the restored cluster equals the server page by page.

use holdfast_testkit::{PgVersion, Postgres, PostgresBuilder, StopMode, default_version, require, wait_until};
use serde_json::Value;

use crate::chance::{Chance, rounds};
use crate::pages::expect_twins;
use crate::run::Run;
use crate::site::{BOUND, Site, lsn};

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

/// A pack that the snapshot before needs has lost its end, where no frame lies that an audit would open: a snapshot that
/// took frames from it would be as damaged as it is.
#[test]
fn a_base_whose_packs_are_not_whole_is_not_built_on() {
    let server = Postgres::build(&default_version()).start();
    let site = Site::protecting(&server);
    let receiver = site.receive(&server, &[]);
    server.sql("create table t as select i as id from generate_series(1, 1000) i");
    site.backup();
    let incremental =
        |code| site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"]).expect(code).json();
    let whole = incremental(0);
    assert_eq!(whole["snapshot"]["kind"], "incremental", "{whole:#}");
    let mut folders: Vec<_> = site.repository().join("packs").read_dir().expect("packs").flatten().collect();
    folders.sort_by_key(std::fs::DirEntry::file_name);
    let pack = folders[0].path().read_dir().expect("a folder").flatten().next().expect("a pack").path();
    let size = pack.metadata().expect("it is there").len();
    let file = std::fs::OpenOptions::new().write(true).open(&pack).expect("it can be written");
    file.set_len(size - 1).expect("it can be cut");
    let name = pack.file_name().expect("a name").to_string_lossy().into_owned();

    let cut = incremental(3);
    let incident = cut["incidents"][0].as_str().expect("it says what it found");
    assert!(incident.contains(&name) && incident.contains(&format!("{} bytes", size - 1)), "{incident}");
    assert_eq!((&cut["snapshot"]["kind"], &cut["snapshot"]["base"]), (&Value::from("full"), &Value::Null), "{cut:#}");
    // The next one builds on what is whole.
    assert_eq!(incremental(0)["snapshot"]["kind"], "incremental");
    receiver.stop();
}

#[test]
fn from_a_standby_15() {
    from_a_standby(&require(15));
}

#[test]
fn from_a_standby_18() {
    from_a_standby(&require(18));
}

/// Snapshots of a primary and of its standby build on each other.
fn from_a_standby(version: &PgVersion) {
    let mut chance = Chance::new(&format!("a standby of PostgreSQL {version}"));
    let mut story = Story::new(version);
    let standby = Standby::of(&story.server, &story.site, "");
    let receiver = story.site.receive(&story.server, &[]);
    let mut last = story.site.backup()["snapshot"].clone();
    for round in 0..rounds(3, 1) {
        story.deeds(&mut chance, 6);
        // Nobody writes after this checkpoint: there is no more log to wait for than what the backup needs.
        story.server.sql("checkpoint");
        standby.catch_up(&story.server);
        let kind = if chance.number(4) == 0 { "differential" } else { "incremental" };
        let at_standby = standby.backup(&story.site, kind).expect(0).json();
        println!("round {round}: {kind} at the standby, notes {}", at_standby["notes"]);
        let snapshot = &at_standby["snapshot"];
        assert_eq!((&snapshot["from_standby"], &snapshot["kind"]), (&true.into(), &kind.into()), "{at_standby:#}");
        if kind == "incremental" {
            assert_eq!(snapshot["base"], last["id"], "{at_standby:#}");
        }
        story.deeds(&mut chance, 6);
        let arguments = ["backup", "chat", "--json", "--fast", "--type", "incremental"];
        let at_primary = story.site.run(&arguments).expect(0).json();
        assert_eq!(at_primary["snapshot"]["base"], snapshot["id"], "{at_primary:#}");
        last = at_primary["snapshot"].clone();
    }
    story.deeds(&mut chance, 3);
    story.site.await_durable(&story.server);
    story.server.stop(StopMode::Fast);
    receiver.stop();
    story.compare(&last, "a snapshot of the primary that was built on one of its standby");
    story.site.verify();
}

/// A standby has not the hints that only the primary's readers left in pages: that is no incident.
#[test]
fn hints_of_another_server_are_no_incident() {
    let primary = Postgres::build(&require(18)).setting("autovacuum", "off").start();
    let site = Site::protecting(&primary);
    let standby = Standby::of(&primary, &site, "");
    let receiver = site.receive(&primary, &[]);
    // Written, and read when the page is in the log already.
    primary
        .sql("create table hinted as select i as id, repeat(md5(i::text), 5) as text from generate_series(1, 5000) i");
    primary.sql("select count(text) from hinted");
    primary.sql("checkpoint");
    standby.catch_up(&primary);
    standby.backup(&site, "full").expect(0);
    // A cluster as small as this is audited whole in so many.
    for _ in 0..6 {
        let report = site.run(&["backup", "chat", "--json", "--fast", "--type", "incremental"]).expect(0).json();
        assert_eq!(report["snapshot"]["kind"], "incremental", "{report:#}");
    }
    receiver.stop();
}

/// A standby that lags begins its backup before those that were taken from the primary meanwhile.
#[test]
fn a_standby_that_lags() {
    let primary = Postgres::build(&require(18)).setting("autovacuum", "off").setting("wal_keep_size", "1GB").start();
    let site = Site::protecting(&primary);
    let standby = Standby::of(&primary, &site, "replay_target = \"1s\"\nreplay_rate = \"10B\"\n");
    let receiver = site.receive(&primary, &[]);
    primary.sql("create table t as select i as id from generate_series(1, 1000) i");
    let before = site.backup();
    primary.sql("insert into t values (1001)");
    primary.sql("checkpoint");
    standby.catch_up(&primary);
    standby.server.sql("select pg_wal_replay_pause()");
    let is_paused = || standby.server.sql("select pg_get_wal_replay_pause_state()") == "paused";
    wait_until(BOUND, "replay to pause", is_paused);
    primary.sql("insert into t select i from generate_series(2001, 3000) i");
    let ahead = site.backup();

    // What is due by the log is not where nothing can be won.
    let decided = standby.run(&site, &["--if-due", "--type", "incremental"]).expect(0).json();
    assert_eq!((&decided["due"], &decided["in_vain"]), (&false.into(), &true.into()), "{decided:#}");
    let lagging = standby.backup(&site, "incremental").expect(0).json();
    assert_eq!(lagging["snapshot"]["base"], before["snapshot"]["id"], "{lagging:#}");
    let notes = lagging["notes"].to_string();
    assert!(notes.contains("an older snapshot than the last is built on"), "{notes}");
    let id = lagging["snapshot"]["id"].as_str().expect("a snapshot has an id");
    let restored = site.restore("restored", &["--snapshot", id]);
    assert_eq!(restored.server.sql("select count(*) from t"), "1001");
    restored.prove_clean();

    // A recovery takes the snapshot with the least log behind it, which is not the one that was taken last.
    standby.server.sql("select pg_wal_replay_resume()");
    let restored = site.restore("restored", &[]);
    assert_eq!(restored.report["plan"]["snapshot"]["id"], ahead["snapshot"]["id"], "{:#}", restored.report);
    assert_eq!(restored.server.sql("select count(*) from t"), "2001");
    restored.discard();
    primary.sql("checkpoint");
    standby.catch_up(&primary);
    // Nobody receives and nobody writes: the standby's own log will do.
    receiver.stop();
    let caught_up = standby.backup(&site, "incremental").expect(0).json();
    assert_eq!(caught_up["snapshot"]["base"], ahead["snapshot"]["id"], "{caught_up:#}");

    // Promoted, it is another server, until the source is where it is.
    standby.server.sql("select pg_promote()");
    standby.backup(&site, "incremental").expect(2).says("is no standby (timeline 2)");
    let checked = standby.holdfast(&site, &["check", "chat"]).expect(1);
    assert!(checked.stdout.contains("no standby: it is on timeline 2 by itself"), "{}", checked.stdout);
    site.follow(&standby.server);
    standby.configure(&site);
    standby.backup(&site, "full").expect(0);
    site.verify();
}

/// A standby of the server of a site, and a configuration beside the site's that takes backups from it.
struct Standby {
    server: Postgres,
    settings: &'static str,
}

impl Standby {
    fn of(primary: &Postgres, site: &Site, settings: &'static str) -> Self {
        let standby = Self { server: Postgres::standby_of(primary).start(), settings };
        standby.configure(site);
        standby
    }

    fn configure(&self, site: &Site) {
        let of_primary = std::fs::read_to_string(site.path("holdfast.toml")).expect("the site has one");
        let Self { server, settings } = self;
        let text = format!("{of_primary}\n[source.chat.backup]\nconnection = \"{}\"\n{settings}", server.conninfo());
        std::fs::write(site.path("standby.toml"), text).expect("the sandbox can be written");
        holdfast_testkit::own(&site.path("standby.toml"));
    }

    fn catch_up(&self, primary: &Postgres) {
        let end = lsn(&primary.sql("select pg_current_wal_flush_lsn()"));
        let replayed = || lsn(&self.server.sql("select pg_last_wal_replay_lsn()"));
        wait_until(BOUND, "the standby to catch up", || replayed() >= end);
    }

    #[track_caller]
    fn holdfast(&self, site: &Site, arguments: &[&str]) -> Run {
        let config = site.path("standby.toml").display().to_string();
        site.run(&[arguments, &["--config", &config]].concat())
    }

    #[track_caller]
    fn run(&self, site: &Site, arguments: &[&str]) -> Run {
        self.holdfast(site, &[&["backup", "chat", "--json", "--fast"], arguments].concat())
    }

    #[track_caller]
    fn backup(&self, site: &Site, kind: &str) -> Run {
        self.run(site, &["--type", kind])
    }
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
        self.compare(snapshot, &format!("round {round}"));
        self.server.start();
        report
    }

    /// Restores from a snapshot, the newest, to the newest point, and compares with the server, which has stopped.
    fn compare(&self, snapshot: &Value, what: &str) {
        let mut restored = self.site.restore("restored", &[]);
        assert_eq!(restored.report["plan"]["snapshot"]["id"], snapshot["id"], "{:#}", restored.report);
        restored.server.stop(StopMode::Fast);
        println!("comparing {what}");
        expect_twins(restored.server.data_directory(), self.server.data_directory());
        restored.discard();
    }
}
