//! The binary: what it prints, its exit codes, and its journal when it is killed.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use holdfast_testkit::{Postgres, TempRoot, default_version, wait_until};

fn lab(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lab")).args(arguments).output().expect("lab can be run")
}

fn code_and_text(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

#[test]
fn a_journal_survives_the_death_of_the_lab() {
    let server = Postgres::build(&default_version()).start();
    let root = TempRoot::new();
    let path = root.join("journal");
    let (conninfo, journal) = (server.conninfo_of("im"), path.to_str().expect("it is text"));

    let created = lab(&["create", "--conninfo", &conninfo, "--size-mib", "2"]);
    assert!(created.status.success(), "{created:?}");

    let mut running = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["run", "--until-killed", "--conninfo", &conninfo, "--journal", journal])
        .stdout(Stdio::null())
        .spawn()
        .expect("lab can be run");
    wait_until(Duration::from_secs(30), "the journal has grown", || length(&path) > 200_000);
    running.kill().expect("it can be killed");
    running.wait().expect("it can be waited for");
    // What was sent before may still be under way.
    wait_until(Duration::from_secs(30), "the writers' backends are gone", || {
        server.sql("select count(*) from pg_stat_activity where application_name = 'holdfast-lab'") == "0"
    });
    let (code, text) = code_and_text(&lab(&["check", "--conninfo", &conninfo, "--journal", journal, "--json"]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\"well\": true"), "{text}");

    // The same journal goes on.
    let (code, text) = code_and_text(&lab(&[
        "run",
        "--conninfo",
        &conninfo,
        "--journal",
        journal,
        "--seconds",
        "0.5",
        "--rate",
        "500",
    ]));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\"acknowledged\":"), "{text}");
    let (code, text) = code_and_text(&lab(&["check", "--conninfo", &conninfo, "--journal", journal]));
    assert_eq!(code, Some(0), "{text}");

    server.sql_in("im", "delete from orders where id = (select max(id) from orders)");
    let (code, text) = code_and_text(&lab(&["check", "--conninfo", &conninfo, "--journal", journal]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("Lost: order"), "{text}");
    let (code, _) = code_and_text(&lab(&["check", "--conninfo", &server.conninfo(), "--journal", journal]));
    assert_eq!(code, Some(2));
}
