use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nix::unistd::{Gid, Uid, User};
use tokio::process::Command;

use super::binaries::Binaries;
use super::running::{PidFile, Running, is_running};

/// Why a local server could not be started or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClusterError {
    #[error("could not look at the data directory `{}`", data_directory.display())]
    DataDirectory {
        data_directory: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("the data directory `{}` belongs to root, as whom PostgreSQL does not run", data_directory.display())]
    OwnedByRoot { data_directory: PathBuf },

    #[error("the data directory `{}` belongs to user {owner}, and this process is user {user}", data_directory.display())]
    NotOwner { data_directory: PathBuf, owner: u32, user: u32 },

    #[error("could not run `{}`", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },

    #[error("a server runs on `{}` already (process {pid})", data_directory.display())]
    AlreadyRunning { data_directory: PathBuf, pid: i32 },

    #[error("no server runs on `{}`; the end of its log says: {log}", data_directory.display())]
    NotRunning { data_directory: PathBuf, log: String },

    #[error("the server on `{}` did not start: {said}; the end of its log says: {log}", data_directory.display())]
    Start { data_directory: PathBuf, said: String, log: String },

    #[error("the server on `{}` did not stop: {said}", data_directory.display())]
    Stop { data_directory: PathBuf, said: String },

    #[error("the server on `{}` was not {expected} within {after:?}", data_directory.display())]
    Timeout { data_directory: PathBuf, expected: &'static str, after: Duration },

    #[error("it is not known whether a server runs on `{}`: {reason}", data_directory.display())]
    Unknown { data_directory: PathBuf, reason: String },
}

impl ClusterError {
    /// Whether the same may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}

/// How a server is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// When all clients have gone.
    Smart,
    /// At once, in order.
    Fast,
    /// At once, without a checkpoint: the next start recovers as after a crash.
    Immediate,
}

impl StopMode {
    const fn name(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

/// How far a running server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Recovering or starting; it accepts nobody yet.
    Starting,
    /// It accepts connections.
    Ready,
    /// In recovery and, without `hot_standby`, accepting nobody.
    Standby,
    Stopping,
}

/// Starts and stops the server of one data directory.
#[derive(Clone, Debug)]
pub struct PgCtl {
    binaries: Binaries,
    data_directory: PathBuf,
    /// Where the server's own output goes.
    log_file: PathBuf,
}

/// How long `pg_ctl` itself watches a start, to see it fail.
const START_WATCH_SECONDS: u32 = 5;
/// How often a state is looked at that announces itself to nobody.
const POLL: Duration = Duration::from_millis(50);

impl PgCtl {
    /// The log file must be one that the owner of the data directory may write.
    pub fn new(binaries: Binaries, data_directory: &Path, log_file: &Path) -> Self {
        Self { binaries, data_directory: data_directory.to_owned(), log_file: log_file.to_owned() }
    }

    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// Starts the server with settings of its command line, which override its files. It returns when the server
    /// is ready, or after five seconds if it is still on its way; see [`PgCtl::wait_ready`].
    pub async fn start(&self, settings: &[(&str, &str)]) -> Result<Readiness, ClusterError> {
        match is_running(&self.data_directory) {
            Running::No => {}
            Running::Yes { pid } => {
                return Err(ClusterError::AlreadyRunning { data_directory: self.data_directory.clone(), pid });
            }
            Running::Unknown { reason } => return Err(self.unknown(reason)),
        }
        let mut command = self.pg_ctl()?;
        command.arg("start").arg("--wait").arg(format!("--timeout={START_WATCH_SECONDS}"));
        command.arg("--log").arg(&self.log_file);
        if !settings.is_empty() {
            command.arg("--options").arg(shell_options(settings));
        }
        let limit = Duration::from_secs(u64::from(START_WATCH_SECONDS) + 30);
        let output = self.run(command, limit, "started").await?;
        // A server that is still recovering makes pg_ctl fail just as one that has ended, so look again.
        match self.readiness() {
            Ok(readiness) => Ok(readiness),
            Err(ClusterError::NotRunning { data_directory, log }) => {
                Err(ClusterError::Start { data_directory, said: said(&output), log })
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until the server accepts connections, or is a standby that never will.
    pub async fn wait_ready(&self, deadline: Duration) -> Result<Readiness, ClusterError> {
        let wait = async {
            loop {
                match self.readiness()? {
                    Readiness::Starting => tokio::time::sleep(POLL).await,
                    readiness => return Ok(readiness),
                }
            }
        };
        let outcome = tokio::time::timeout(deadline, wait).await;
        outcome.unwrap_or_else(|_| Err(self.timeout("ready", deadline)))
    }

    /// How far the server is now; [`ClusterError::NotRunning`] with the end of its log if there is none.
    pub fn readiness(&self) -> Result<Readiness, ClusterError> {
        match is_running(&self.data_directory) {
            Running::No => {
                let log = log_tail(&self.log_file);
                return Err(ClusterError::NotRunning { data_directory: self.data_directory.clone(), log });
            }
            Running::Unknown { reason } => return Err(self.unknown(reason)),
            Running::Yes { .. } => {}
        }
        let file = PidFile::read(&self.data_directory).map_err(|error| self.unknown(error.to_string()))?;
        Ok(match file.and_then(|file| file.status).as_deref() {
            Some("ready") => Readiness::Ready,
            Some("standby") => Readiness::Standby,
            Some("stopping") => Readiness::Stopping,
            _ => Readiness::Starting,
        })
    }

    /// Stops the server and waits until it is gone. No server is as good as a stopped one.
    pub async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), ClusterError> {
        match is_running(&self.data_directory) {
            Running::No => return Ok(()),
            Running::Unknown { reason } => return Err(self.unknown(reason)),
            Running::Yes { .. } => {}
        }
        let mut command = self.pg_ctl()?;
        command.arg("stop").arg("--no-wait").arg("--mode").arg(mode.name());
        let output = self.run(command, deadline, "stopped").await?;
        if !output.status.success() && is_running(&self.data_directory) != Running::No {
            return Err(ClusterError::Stop { data_directory: self.data_directory.clone(), said: said(&output) });
        }
        let gone = async {
            loop {
                match is_running(&self.data_directory) {
                    Running::No => return Ok(()),
                    Running::Unknown { reason } => return Err(self.unknown(reason)),
                    Running::Yes { .. } => tokio::time::sleep(POLL).await,
                }
            }
        };
        let outcome = tokio::time::timeout(deadline, gone).await;
        outcome.unwrap_or_else(|_| Err(self.timeout("gone", deadline)))
    }

    /// A command for one of the installation's programs, to be run as the owner of the data directory.
    pub fn command(&self, program: &str) -> Result<Command, ClusterError> {
        let program = self.binaries.program(program);
        let metadata = fs::metadata(&self.data_directory)
            .map_err(|source| ClusterError::DataDirectory { data_directory: self.data_directory.clone(), source })?;
        let (owner, user) = (metadata.uid(), Uid::effective());
        if owner == 0 {
            return Err(ClusterError::OwnedByRoot { data_directory: self.data_directory.clone() });
        }
        let mut command = match user {
            user if user.is_root() => as_user(&program, owner, metadata.gid()),
            user if user.as_raw() == owner => Command::new(&program),
            user => {
                let data_directory = self.data_directory.clone();
                return Err(ClusterError::NotOwner { data_directory, owner, user: user.as_raw() });
            }
        };
        // Variables such as PGPORT would become settings of the server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        // Our own directory may be closed to the owner. Messages are read by people who know English error texts.
        command.current_dir("/").env("LC_MESSAGES", "C").kill_on_drop(true).stdin(std::process::Stdio::null());
        Ok(command)
    }

    fn pg_ctl(&self) -> Result<Command, ClusterError> {
        let mut command = self.command("pg_ctl")?;
        command.arg("--pgdata").arg(&self.data_directory);
        Ok(command)
    }

    async fn run(&self, mut command: Command, limit: Duration, expected: &'static str) -> Result<Output, ClusterError> {
        let program = PathBuf::from(command.as_std().get_program());
        match tokio::time::timeout(limit, command.output()).await {
            Ok(output) => output.map_err(|source| ClusterError::Run { program, source }),
            Err(_) => Err(self.timeout(expected, limit)),
        }
    }

    fn unknown(&self, reason: String) -> ClusterError {
        ClusterError::Unknown { data_directory: self.data_directory.clone(), reason }
    }

    fn timeout(&self, expected: &'static str, after: Duration) -> ClusterError {
        ClusterError::Timeout { data_directory: self.data_directory.clone(), expected, after }
    }
}

/// A command that gives up root. With `setpriv` of util-linux it has the user's own groups as after a login; without
/// it, or for a user that has no name, the data directory's group alone.
fn as_user(program: &Path, uid: u32, directory_gid: u32) -> Command {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let gid = user.as_ref().map_or(Gid::from_raw(directory_gid), |user| user.gid);
    // Where `setpriv` is a part of BusyBox it cannot look up groups.
    let setpriv = fs::canonicalize("/usr/bin/setpriv").ok().filter(|path| path.ends_with("setpriv"));
    if let (Some(user), Some(setpriv)) = (user, setpriv) {
        let mut command = Command::new(setpriv);
        command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--init-groups");
        command.arg("--").arg(program).env("HOME", user.dir).env("USER", &user.name).env("LOGNAME", user.name);
        command
    } else {
        // Setting the user as root also clears the supplementary groups.
        let mut command = Command::new(program);
        command.uid(uid).gid(gid.as_raw());
        command
    }
}

/// `-c name=value` for each setting, quoted for the shell by which `pg_ctl` starts the server.
fn shell_options(settings: &[(&str, &str)]) -> String {
    let quote = |text: String| format!("'{}'", text.replace('\'', r"'\''"));
    let options = settings.iter().map(|(name, value)| format!("-c {}", quote(format!("{name}={value}"))));
    options.collect::<Vec<_>>().join(" ")
}

fn said(output: &Output) -> String {
    let text = [&output.stderr, &output.stdout].map(|bytes| String::from_utf8_lossy(bytes).trim().to_owned());
    let text = text.into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| "nothing was said".to_owned());
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// The last lines of a log, for an error message.
fn log_tail(path: &Path) -> String {
    const TAIL_BYTES: u64 = 2048;
    const TAIL_LINES: usize = 6;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut tail)?;
        Ok(tail)
    };
    match read() {
        Ok(tail) => {
            let text = String::from_utf8_lossy(&tail);
            let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join(" | ")
        }
        Err(error) => format!("({} cannot be read: {error})", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_shell() {
        let options = shell_options(&[("port", "5433"), ("restore_command", "cp 'a b' \"$x\" \\%p")]);
        let output = std::process::Command::new("sh").arg("-c").arg(format!("printf '%s\\n' {options}")).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(text, "-c\nport=5433\n-c\nrestore_command=cp 'a b' \"$x\" \\%p\n");
    }

    #[test]
    fn the_end_of_a_log_is_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let lines: Vec<_> = (0..1000).map(|number| format!("line {number}")).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        assert_eq!(log_tail(&path), "line 994 | line 995 | line 996 | line 997 | line 998 | line 999");
        assert!(log_tail(&folder.path().join("absent")).contains("cannot be read"));
    }
}
