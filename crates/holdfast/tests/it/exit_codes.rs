use std::os::unix::fs::PermissionsExt as _;

use crate::sandbox::Sandbox;

#[test]
fn no_repository() {
    let sandbox = Sandbox::new();
    sandbox.run(&["list"]).expect(10).says("hint: Is the right `path` configured");
    std::fs::create_dir(sandbox.path("repository")).unwrap();
    sandbox.run(&["list"]).expect(10).says("there is no repository in");
    sandbox.run(&["verify", "--json"]).expect(10).says("\"exit_code\":10");
}

#[test]
fn wrong_usage() {
    let sandbox = Sandbox::with_repository();
    for arguments in [
        &["restore", "chat"] as &[&str],
        &["restore", "chat", "--to", "/x", "--at", "2026-11-21", "--lsn", "0/1"],
        &["no-such-command"],
        &["backup", "chat", "--level", "99"],
        &["list", "--log-level", "a=b=c"],
    ] {
        sandbox.run(arguments).expect(2);
    }
    sandbox.run(&["restore", "chat", "--to", "/x", "--at", "soon"]).expect(2).says("`soon` is not a time");
    sandbox.run(&["backup", "chat"]).expect(2).says("has no [source.chat]");
    sandbox.run(&["no-such-command", "--json"]).expect(2).says("\"exit_code\":2");
    sandbox.run(&["--help"]).expect(0);
    sandbox.run(&["--version"]).expect(0).says("holdfast 0.");
}

#[test]
fn something_in_the_way() {
    let sandbox = Sandbox::with_repository();
    let identity = sandbox.path("identity.txt").display().to_string();
    let before = std::fs::read(&identity).unwrap();
    sandbox.run(&["init", "--new-identity", &identity]).expect(11).says("exists already");
    let other = sandbox.path("other.txt").display().to_string();
    sandbox.run(&["init", "--new-identity", &other]).expect(11).says("there is a repository in");
    assert!(!sandbox.path("other.txt").exists(), "an identity that opens nothing was left behind");
    assert_eq!(std::fs::read(&identity).unwrap(), before);
    assert_eq!(std::fs::metadata(&identity).unwrap().permissions().mode() & 0o777, 0o600);
    sandbox.run(&["init"]).expect(2).says("--new-identity");
}

#[test]
fn a_repository_of_a_newer_format() {
    let sandbox = Sandbox::with_repository();
    let path = sandbox.path("repository/config/00000001.json");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replacen("\"format\": 1", "\"format\": 99", 1)).unwrap();
    sandbox.run(&["list"]).expect(1).says("format 99, newer").says("Update this program");
}

#[test]
fn nothing_to_restore() {
    let sandbox = Sandbox::with_repository();
    let target = sandbox.path("target").display().to_string();
    sandbox.run(&["restore", "chat", "--to", &target]).expect(4).says("has no snapshot");
    assert!(!sandbox.path("target").exists());
}

#[test]
fn the_database_is_not_there() {
    let sandbox = Sandbox::with_repository();
    let nowhere = sandbox.path("nowhere").display().to_string();
    sandbox.add_to_configuration(&format!("[source.chat]\nconnection = \"host={nowhere}\"\n"));
    sandbox.run(&["backup", "chat"]).expect(14).says("hint: Is the server running");
    let checked = sandbox.run(&["check", "--json"]).expect(1).json();
    let checks = checked["checks"].as_array().unwrap();
    let server = checks.iter().find(|check| check["what"] == "server").unwrap();
    assert_eq!((&checked["ok"], &server["status"], &server["of"]), (&false.into(), &"fail".into(), &"chat".into()));
}

/// PostgreSQL takes 1 for the end of the log and everything up to 125 for the same; whatever else goes wrong has to be
/// above that.
#[test]
fn a_failed_wal_get_never_looks_like_the_end_of_the_log() {
    let get = ["wal", "get", "chat", "000000010000000000000001", "there"];
    let sandbox = Sandbox::new();
    sandbox.run(&get).expect(126);
    sandbox.run(&["wal", "get", "chat"]).expect(127);
    sandbox.run(&["--config", "/nowhere.toml", "wal", "get", "chat", "f", "p"]).expect(127);
    sandbox.run(&["wal", "get", "../chat", "f", "p"]).expect(127);
    sandbox.run(&["wal", "get", "--lineage", "x", "chat", "f", "p"]).expect(127);
    sandbox.run(&["wal", "get", "--help"]).expect(0);
    sandbox.configure("[repository.main]\npath = 1\n");
    sandbox.run(&get).expect(127);

    // A source without any log may be a misspelt one.
    let sandbox = Sandbox::with_repository();
    sandbox.run(&get).expect(126).says("no log of a source");
    let lineage = ["--lineage", "7412345678901234567-16"];
    sandbox.run(&[&get[..], &lineage].concat()).expect(126).says("no log of a source");
    std::fs::remove_file(sandbox.path("identity.txt")).unwrap();
    sandbox.run(&get).expect(126);
    assert!(!sandbox.path("there").exists());
}
