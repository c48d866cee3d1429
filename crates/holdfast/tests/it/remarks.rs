//! What the program says besides its results.

use holdfast_testkit::{Postgres, default_version};

use crate::sandbox::Sandbox;

#[test]
fn nobody_receives_and_the_restored_server_does_not_come_up() {
    let version = default_version();
    let server = Postgres::build(&version).start();
    let sandbox = Sandbox::for_servers();
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{}\"\n", server.conninfo()));
    sandbox.run(&["backup", "chat", "--fast"]).expect(0).says("`holdfast wal receive chat --create-slot`");
    sandbox.run(&["list", "chat"]).expect(0).says("\nrecoverable as of ").says("the log has no later commit");
    sandbox.run(&["verify"]).expect(0).says(": 1 snapshot, ");

    // There is no such directory for its socket.
    let target = sandbox.path("restored").display().to_string();
    let bin = version.bin_directory().display().to_string();
    let nowhere = ["--start", "--bin-dir", &bin, "--socket-dir", "nowhere", "--port", "5439"];
    let failed = sandbox.run(&[&["restore", "chat", "--to", &target], &nowhere[..]].concat()).expect(1);
    for words in [
        " files with ",
        "  restoring files  ",
        &format!("\nstart it with: pg_ctl -D {target} start\n"),
        &format!("\nthe server's log: {target}/holdfast.start.log\n"),
    ] {
        assert!(failed.stdout.contains(words), "no `{words}` in:\n{failed:#?}");
    }
    assert!(failed.stderr.contains("could not start it"), "{failed:#?}");
    // The socket's directory is looked for where the command was given.
    assert!(failed.stderr.contains(&sandbox.path("nowhere").display().to_string()), "{failed:#?}");

    let target = sandbox.path("another").display().to_string();
    let failed = sandbox.run(&[&["restore", "chat", "--json", "--to", &target], &nowhere[..]].concat()).expect(1);
    let report = failed.json();
    assert!(report["files"].as_u64() > Some(0) && report["reached"].is_null(), "{report:#}");
    assert_eq!(report["server_log"], format!("{target}/holdfast.start.log"));
}
