//! PostgreSQL's own judges.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::postgres::Postgres;
use crate::user::command_as_server_user;
use crate::version::PgVersion;

/// Runs a command to its end: `Ok` with its standard output if it exits with 0, `Err` with the command line, its exit
/// status and all that it said otherwise.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output =
        command.stdin(Stdio::null()).output().map_err(|error| format!("could not run {command:?}: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} ended with {}\n{stderr}{stdout}", output.status))
}

/// Checks all tables and indexes of a database: `Ok` when nothing is found, `Err` with the findings.
///
/// Creates the extension `amcheck` where it is missing, so the server must accept writes.
pub fn pg_amcheck(server: &Postgres, database: &str) -> Result<String, String> {
    let mut command = server.client("pg_amcheck");
    command.args(["--heapallindexed", "--parent-check", "--install-missing", "--no-password"]);
    run(command.args(["--database", database]))
}

/// Checks the page checksums of a stopped cluster: `Ok` when all are right, `Err` with the findings.
pub fn pg_checksums_check(version: &PgVersion, data_directory: &Path) -> Result<String, String> {
    run(command_as_server_user(version.bin("pg_checksums")).arg("--check").arg("-D").arg(data_directory))
}

/// What `pg_control` says, by the names that `pg_controldata` gives.
#[derive(Clone, Debug)]
pub struct ControlData(BTreeMap<String, String>);

impl ControlData {
    /// The value of a line; panics if there is none of that name.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("pg_controldata has no line `{name}`, only {:?}", self.0.keys()))
    }
}

/// Reads the control file of a cluster.
pub fn pg_controldata(version: &PgVersion, data_directory: &Path) -> ControlData {
    let output = run(command_as_server_user(version.bin("pg_controldata")).arg("-D").arg(data_directory))
        .unwrap_or_else(|error| panic!("{error}"));
    let lines = output.lines().filter_map(|line| line.split_once(':'));
    ControlData(lines.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect())
}
