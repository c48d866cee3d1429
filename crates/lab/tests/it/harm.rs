//! Every kind of harm that can be done to a database is found and called by its name.

use std::path::PathBuf;
use std::time::Duration;

use holdfast_lab::{CheckOptions, Lab, LoadSummary, Report, RunOptions};
use holdfast_testkit::{Postgres, TempRoot, default_version};

/// A platform that was written to, and stands still.
struct Scene {
    server: Postgres,
    lab: Lab,
    load: LoadSummary,
    journal: PathBuf,
    _root: TempRoot,
}

impl Scene {
    fn new() -> Self {
        let server = Postgres::build(&default_version()).fsync(false).start();
        let lab = Lab::new(server.conninfo_of("im"));
        let load = lab.create_blocking(2, 42).expect("the data set is loaded");
        let root = TempRoot::new();
        let journal = root.join("journal");
        let options = RunOptions { duration: Some(Duration::from_secs(1)), ..RunOptions::new(&journal) };
        lab.start(options).wait().expect("the run works");
        let scene = Self { server, lab, load, journal, _root: root };
        let report = scene.judge();
        assert!(report.well, "{report}");
        scene
    }

    fn judge(&self) -> Report {
        let journals = std::slice::from_ref(&self.journal);
        self.lab.check_blocking(journals, &CheckOptions::default()).expect("it can be judged")
    }

    /// Does harm, lets it be judged, and undoes it. `{messages}` and `{orders}` stand for the last loaded id.
    fn harm(&self, statements: &str) -> Report {
        let statements = statements
            .replace("{messages}", &self.load.messages.to_string())
            .replace("{orders}", &self.load.orders.to_string());
        self.server.sql("drop database if exists aside");
        self.server.sql("create database aside template im");
        // Foreign keys are enforced by triggers, and those are off.
        self.server.sql_in("im", &format!("set session_replication_role = replica;\n{statements}"));
        let report = self.judge();
        assert!(!report.well, "{statements} was not found: {report}");
        self.server.sql("drop database im with (force)");
        self.server.sql("alter database aside rename to im");
        report
    }
}

/// Messages written by the run that have a successor in their conversation, and which nothing refers to.
const MIDDLE: &str = "(select m.id from messages m join conversations c on c.id = m.conversation_id
    where m.id > {messages} and m.seq < c.last_seq and m.kind = 0
      and not exists (select from messages r where r.reply_to = m.id) order by m.id limit 1)";

#[test]
fn every_harm_is_found() {
    let scene = Scene::new();

    let report = scene.harm(&format!("delete from messages where id = {MIDDLE}"));
    assert_eq!((report.lost, report.lost_messages, report.gaps), (1, 1, 1), "{report}");
    assert_eq!((report.holes_in_conversations, report.holes_in_time), (1, 1), "{report}");

    let report = scene.harm(
        "insert into messages select id + 1000000, conversation_id, seq + 1000000, sender_id, sent_at, kind, null, null,
           'nobody wrote this' from messages order by id desc limit 1",
    );
    assert_eq!((report.invented, report.lost, report.gaps), (1, 0, 1), "{report}");

    let report = scene.harm(&format!("update messages set body = 'other' || body where id = {MIDDLE}"));
    assert_eq!((report.altered, report.lost, report.invented), (1, 0, 0), "{report}");
    let report = scene.harm(&format!("update messages set body = 'all other' where id = {MIDDLE}"));
    assert_eq!((report.altered, report.lost, report.invented), (1, 0, 0), "{report}");

    // Two neighbours change places.
    let report = scene.harm(&format!(
        "create temp table pair as select id, conversation_id, seq from messages where id = {MIDDLE};
         update messages m set seq = -1 from pair p where m.id = p.id;
         update messages m set seq = p.seq from pair p
           where m.conversation_id = p.conversation_id and m.seq = p.seq + 1;
         update messages m set seq = p.seq + 1 from pair p where m.id = p.id;"
    ));
    assert!(report.disorder >= 1 && report.altered == 2 && report.gaps == 0, "{report}");

    let report = scene.harm("delete from orders where id = (select max(id) - 10 from orders)");
    assert_eq!((report.lost, report.lost_orders, report.holes_in_time), (1, 1, 1), "{report}");
    let report = scene.harm("update orders set amount = amount + 1 where id = (select max(id) from orders)");
    assert_eq!((report.altered, report.lost), (1, 0), "{report}");
    let report = scene.harm(
        "alter table orders drop constraint orders_idempotency_key_key;
         insert into orders select id + 1000000, user_id, conversation_id, amount, currency, status, idempotency_key,
           created_at, meta from orders order by id desc limit 1",
    );
    assert_eq!((report.duplicates, report.invented, report.missing_constraints), (1, 1, 1), "{report}");

    let report = scene.harm("delete from attachments where id = (select max(id) from attachments)");
    assert_eq!((report.torn, report.lost), (1, 0), "{report}");
    let report = scene.harm("update attachments set sha256 = '\\x00' where id = (select max(id) from attachments)");
    assert_eq!(report.altered, 1, "{report}");
}

#[test]
fn every_harm_to_what_is_around_is_found() {
    let scene = Scene::new();

    let report = scene.harm(
        "update read_markers set updated_at = '2025-01-10', last_read_seq = 0 where (conversation_id, user_id) =
           (select conversation_id, user_id from read_markers order by updated_at desc limit 1)",
    );
    assert!(report.lost_markers + report.torn >= 1, "{report}");
    let report = scene.harm(
        "update read_markers set updated_at = now() + interval '1 hour' where updated_at < '2025-02-01'
           and conversation_id = (select min(conversation_id) from read_markers where updated_at < '2025-02-01')",
    );
    assert!(report.invented >= 1, "{report}");
    let report = scene.harm("update read_markers set last_read_seq = 100000000 where conversation_id = 1");
    assert!(report.disorder >= 1, "{report}");

    let report = scene.harm("delete from users where id = (select max(sender_id) from messages)");
    assert!(report.dangling >= 1 && report.load_changed >= 1, "{report}");
    let report = scene.harm("update messages set reply_to = 123456789 where id = {messages}");
    assert_eq!(report.dangling, 1, "{report}");
    let report = scene.harm("update attachments set message_id = 123456789 where id = 1");
    assert_eq!(report.dangling, 1, "{report}");
    let report = scene.harm("update messages set body = body || '.' where id = {messages} / 2");
    assert_eq!((report.load_changed, report.altered), (1, 0), "{report}");
    let report = scene.harm("update conversations set last_seq = last_seq + 1 where id = 5");
    assert_eq!(report.gaps, 1, "{report}");
    let report = scene.harm("alter table attachments drop constraint attachments_message_id_fkey");
    assert_eq!(report.missing_constraints, 1, "{report}");
}
