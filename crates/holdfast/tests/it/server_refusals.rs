//! What a server may refuse, and what the operator is told then.

use std::os::unix::fs::PermissionsExt as _;

use holdfast_testkit::{Postgres, default_version};

use crate::sandbox::Sandbox;

fn failed_check(sandbox: &Sandbox, what: &str) -> String {
    let checked = sandbox.run(&["check", "--json"]).expect(1).json();
    let checks = checked["checks"].as_array().unwrap_or_else(|| panic!("{checked}"));
    let failed = checks.iter().find(|check| check["what"] == what && check["status"] == "fail");
    failed.unwrap_or_else(|| panic!("{what} has not failed: {checked:#}"))["hint"].to_string()
}

#[test]
fn a_server_whose_log_says_too_little() {
    let server =
        Postgres::build(&default_version()).setting("wal_level", "minimal").setting("max_wal_senders", "0").start();
    let sandbox = Sandbox::for_servers();
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{}\"\n", server.conninfo()));
    sandbox.run(&["backup", "chat"]).expect(14).says("hint: Set `wal_level = replica`");
    assert!(failed_check(&sandbox, "wal_level").contains("wal_level = replica"));
}

#[test]
fn a_role_that_may_do_nothing() {
    let server = Postgres::build(&default_version()).start();
    server.sql("create role weak login");
    let sandbox = Sandbox::for_servers();
    let connection = server.conninfo().replace("user=postgres", "user=weak");
    assert!(connection.contains("user=weak"), "{connection}");
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"{connection}\"\n"));
    sandbox.run(&["backup", "chat"]).expect(14).says("GRANT EXECUTE ON FUNCTION");
    sandbox.run(&["wal", "receive", "chat", "--create-slot"]).expect(14);
    assert!(failed_check(&sandbox, "rights").contains("as a superuser"));
    assert!(failed_check(&sandbox, "replication").contains("REPLICATION"));
}

#[test]
fn a_data_directory_that_cannot_be_read() {
    let server = Postgres::build(&default_version()).start();
    let sandbox = Sandbox::for_servers();
    let locked = sandbox.path("locked");
    std::fs::create_dir(&locked).expect("the sandbox can be written");
    std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(0o0)).expect("it is ours");
    let connection = server.conninfo();
    sandbox.add_to_configuration(&format!(
        "[source.chat]\nconnection = \"{connection}\"\ndata_directory = \"{}\"\n",
        locked.display()
    ));
    sandbox.run(&["backup", "chat"]).expect(1).says("hint: ").says("locked");
    assert!(failed_check(&sandbox, "data directory").contains("as the user that owns it"));

    // That of another cluster, which a copied configuration may well name.
    let other = Postgres::build(&default_version()).start();
    let config = std::fs::read_to_string(sandbox.config_file()).expect("it was written");
    let theirs = other.data_directory().display().to_string();
    sandbox.configure(&config.replace(&locked.display().to_string(), &theirs));
    sandbox.run(&["backup", "chat"]).expect(2).says("must be of the same cluster");
    assert!(failed_check(&sandbox, "data directory").contains("same cluster"));
}
