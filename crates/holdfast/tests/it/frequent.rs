//! Backups that are gentle to the server.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use holdfast_testkit::{Postgres, default_version};

use crate::sandbox::Sandbox;

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
