//! Backups as often as the log calls for them, and gentle to the server.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use holdfast_testkit::{Postgres, default_version, wait_until};

use crate::sandbox::Sandbox;

const ARGUMENTS: [&str; 6] = ["backup", "chat", "--fast", "--type", "incremental", "--if-due"];

#[test]
fn a_backup_is_made_when_it_is_due() {
    let server = Postgres::build(&default_version()).setting("autovacuum", "off").start();
    let sandbox = Sandbox::for_servers();
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{}\"\n", server.conninfo()));
    sandbox.run(&ARGUMENTS).expect(2).says("hint: Add `replay_target = \"30s\"` to [source.chat.backup]");

    sandbox.add_to_configuration("[source.chat.backup]\nreplay_target = \"4s\"\nreplay_rate = \"1MiB\"\n");
    let due = |json: bool| sandbox.run(&[&ARGUMENTS[..], if json { &["--json"] } else { &[] }].concat()).expect(0);
    let first = due(true).json();
    assert_eq!((&first["due"], &first["replay"]["kept"]), (&true.into(), &true.into()), "{first:#}");
    let id = first["snapshot"]["id"].as_str().expect("a snapshot has an id");
    due(false)
        .says("not due: ")
        .says(&format!("of log since snapshot {id} would replay in about"))
        .says("; the target is 4 s");
    let not_due = due(true).json();
    assert_eq!((&not_due["due"], &not_due["snapshot"]), (&false.into(), &id.into()), "{not_due:#}");

    // More than half of the target, and less than all of it.
    server.sql("select pg_logical_emit_message(true, 'much', repeat('x', 2500000))");
    sandbox.run(&["check", "chat"]).expect(0).says("log to replay").says("about 2 s (target 4 s: kept)");
    let run = due(false).says("due: 2.4 MiB of log since snapshot").says("log to replay");
    assert!(run.stdout.contains("(target 4 s: kept)"), "{run:#?}");
    due(false).says("not due: ");
    sandbox.run(&["list", "chat"]).expect(0).says("\nlog to replay: ").says("(target 4 s: kept)");
    sandbox.run(&["restore", "chat", "--to", "nowhere", "--dry-run"]).expect(0).says("B, about 0 s: ");

    // Where the backup's own log is too much, more backups do not help.
    let config = std::fs::read_to_string(sandbox.config_file()).expect("it was written");
    sandbox.configure(&config.replace("1MiB", "10B"));
    due(false).says("(target 4 s: NOT kept)").says("note: the log that was written while the backup was made would");
    sandbox.run(&["check", "chat"]).expect(0).says("NOT kept").says("--if-due` every minute");
}

#[test]
fn none_is_begun_while_one_is_being_made() {
    let server = Postgres::build(&default_version()).start();
    let sandbox = Sandbox::for_servers();
    let settings = "[source.chat.backup]\nreplay_target = \"4s\"\n";
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{}\"\n{settings}", server.conninfo()));
    let mut slow = sandbox.command(&["backup", "chat", "--fast", "--rate-limit", "1MiB"]);
    let mut slow = slow.stderr(Stdio::null()).spawn().expect("the program can be run");
    wait_until(Duration::from_secs(30), "the backup to begin", || {
        assert!(slow.try_wait().expect("it was not waited for").is_none(), "the backup has ended");
        server.sql("select count(*) from pg_locks where locktype = 'advisory'") == "1"
    });
    sandbox.run(&ARGUMENTS).expect(0).says("not due: another backup of `chat` is being made");
    // Whoever asks for one gets it.
    sandbox.run(&["backup", "chat", "--fast"]).expect(0);
    slow.kill().expect("it runs");
    slow.wait().expect("it was not waited for");
    let ended = || server.sql("select count(*) from pg_locks where locktype = 'advisory'") == "0";
    wait_until(Duration::from_secs(30), "the session to end", ended);
    sandbox.run(&ARGUMENTS).expect(0).says("of log since snapshot");
}

#[test]
fn a_spread_checkpoint_says_how_long_it_may_take() {
    let server = Postgres::build(&default_version()).setting("checkpoint_timeout", "50s").start();
    let sandbox = Sandbox::for_servers();
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{}\"\n", server.conninfo()));
    // Enough dirty pages that a checkpoint is spread.
    server.sql("create table t as select repeat(md5(i::text), 30) as text from generate_series(1, 40000) i");
    let mut command = sandbox.command(&["backup", "chat", "--json"]);
    let mut backup = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program can be run");
    let said = BufReader::new(backup.stderr.take().expect("it is a pipe"));
    let remark = said.lines().map_while(Result::ok).find(|line| line.contains("remark"));
    let remark = remark.expect("it says why it waits");
    assert!(remark.contains("it may take 45 s (checkpoint_completion_target × checkpoint_timeout)"), "{remark}");
    assert!(remark.contains("--fast hurries"), "{remark}");
    holdfast_testkit::run(std::process::Command::new("kill").arg("-INT").arg(backup.id().to_string()))
        .expect("it runs");
    assert_eq!(backup.wait().expect("it was not waited for").code(), Some(130));
}
