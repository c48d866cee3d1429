//! A private PostgreSQL server.
//!
//! The postmaster is our child and stays in our process group: an interrupt from the terminal, or the end of a test
//! that took too long, reaches it as well. *Crash*: a test that is killed itself leaves a server that nobody stops
//! and a directory `/tmp/holdfast-*`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{Process, children};
use crate::temp_root::TempRoot;
use crate::tools::run;
use crate::user::{command_as_server_user, own};
use crate::version::PgVersion;
use crate::wait::holds_within;

/// How long a server may take to stop before the test is given up.
const STOP_BOUND: Duration = Duration::from_mins(2);
/// How often another free port is tried when somebody was faster.
const PORT_ATTEMPTS: u32 = 5;
/// The port of a server that only has its socket; sockets do not meet, as each has a directory of its own.
const SOCKET_PORT: u16 = 5432;

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Disconnect the clients, write a shutdown checkpoint.
    Fast,
    /// Stop at once; the next start recovers.
    Immediate,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It ended before it was ready: because it refused, or because recovery ended in a shutdown.
    #[error("PostgreSQL ended with {status} before it was ready, and said:\n{log}")]
    Ended {
        /// The exit status.
        status: String,
        /// What this start wrote to the log.
        log: String,
    },
    /// It was not ready in time, and has been stopped.
    #[error("PostgreSQL was not ready within {bound:?}, and said:\n{log}")]
    NotReady {
        /// How long it had.
        bound: Duration,
        /// What this start wrote to the log.
        log: String,
    },
}

/// What a server's data directory is made from.
#[derive(Debug)]
enum Origin {
    New,
    Existing(PathBuf),
    StandbyOf { conninfo: String },
}

/// Describes a server before it is started. Made by [`Postgres::build`], [`Postgres::open`] and
/// [`Postgres::standby_of`].
#[derive(Debug)]
#[must_use = "nothing happens before `start`"]
pub struct PostgresBuilder {
    version: PgVersion,
    origin: Origin,
    data_directory: Option<PathBuf>,
    settings: Vec<(String, String)>,
    arguments: Vec<String>,
    hba: Vec<String>,
    checksums: Checksums,
    reach: Reach,
    start_bound: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Checksums {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Socket,
    SocketAndLoopback,
}

impl PostgresBuilder {
    fn new(version: &PgVersion, origin: Origin) -> Self {
        Self {
            version: version.clone(),
            origin,
            data_directory: None,
            settings: Vec::new(),
            arguments: Vec::new(),
            hba: Vec::new(),
            checksums: Checksums::On,
            reach: Reach::Socket,
            start_bound: Duration::from_mins(2),
        }
    }

    /// A setting. A new server and a standby keep it in `postgresql.conf`; one that is opened gets it on the command
    /// line, so that the directory stays as it was found.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Another argument for `initdb` (or, for a standby, for `pg_basebackup`), such as `--wal-segsize=1`.
    pub fn initdb_arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Whether a new cluster has page checksums; it has, unless told otherwise.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = if on { Checksums::On } else { Checksums::Off };
        self
    }

    /// A line of `pg_hba.conf` that comes before those that trust everybody. Not for opened directories.
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Listens on a free port of 127.0.0.1 as well.
    pub fn tcp(mut self) -> Self {
        self.reach = Reach::SocketAndLoopback;
        self
    }

    /// Whether the server waits for the disk. It does unless told otherwise: what it acknowledges survives.
    pub fn fsync(self, on: bool) -> Self {
        self.setting("fsync", if on { "on" } else { "off" })
    }

    /// Where a new cluster or standby is made, if not in the server's own temporary directory. It is not removed.
    pub fn data_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_directory = Some(path.into());
        self
    }

    /// How long a start may take; two minutes unless told otherwise.
    pub fn start_bound(mut self, bound: Duration) -> Self {
        self.start_bound = bound;
        self
    }

    /// Makes the data directory if need be and starts the server; panics if it does not get ready.
    pub fn start(self) -> Postgres {
        self.try_start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes the data directory if need be and starts the server.
    pub fn try_start(self) -> Result<Postgres, StartError> {
        let mut server = self.prepare();
        server.try_start()?;
        Ok(server)
    }

    /// Makes the data directory if need be, but does not start the server.
    pub fn prepare(self) -> Postgres {
        let root = TempRoot::new();
        let socket_directory = root.make_directory("socket");
        let own_directory = self.data_directory.clone().unwrap_or_else(|| root.join("data"));
        let data_directory = match &self.origin {
            Origin::New => {
                self.initdb(&own_directory);
                own_directory
            }
            Origin::StandbyOf { conninfo } => {
                self.pg_basebackup(conninfo, &own_directory);
                own_directory
            }
            Origin::Existing(path) => path.clone(),
        };
        let keeps_settings = matches!(self.origin, Origin::Existing(_));
        let mut server = Postgres {
            log_file: root.join("log"),
            version: self.version,
            data_directory,
            socket_directory,
            port: SOCKET_PORT,
            reach: self.reach,
            command_line: if keeps_settings { self.settings.clone() } else { Vec::new() },
            start_bound: self.start_bound,
            log_start: 0,
            running: None,
            _root: root,
        };
        server.choose_port();
        if !keeps_settings {
            server.write_settings(&self.settings, &self.hba);
        }
        server
    }

    fn initdb(&self, data_directory: &Path) {
        let mut command = command_as_server_user(self.version.bin("initdb"));
        command.arg("-D").arg(data_directory);
        command.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        match self.checksums {
            Checksums::On => {
                command.arg("--data-checksums");
            }
            // Version 18 made them the default, and the option to leave them out came with that.
            Checksums::Off if self.version.major() >= 18 => {
                command.arg("--no-data-checksums");
            }
            Checksums::Off => {}
        }
        run(command.args(&self.arguments)).unwrap_or_else(|error| panic!("{error}"));
    }

    fn pg_basebackup(&self, conninfo: &str, data_directory: &Path) {
        let mut command = command_as_server_user(self.version.bin("pg_basebackup"));
        command.arg("-D").arg(data_directory).args(["-d", conninfo]);
        command.args(["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"]);
        run(command.args(&self.arguments)).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A PostgreSQL server of our own. It is stopped, and its temporary directory removed, when it is dropped.
#[derive(Debug)]
pub struct Postgres {
    version: PgVersion,
    data_directory: PathBuf,
    socket_directory: PathBuf,
    log_file: PathBuf,
    port: u16,
    reach: Reach,
    command_line: Vec<(String, String)>,
    start_bound: Duration,
    /// Where in the log the latest start begins.
    log_start: usize,
    running: Option<Running>,
    /// Last, so that the directory goes after the server.
    _root: TempRoot,
}

#[derive(Debug)]
struct Running {
    /// `None` if somebody else started it.
    child: Option<Child>,
    process: Process,
}

impl Postgres {
    /// Describes a server with a new, empty cluster.
    pub fn build(version: &PgVersion) -> PostgresBuilder {
        PostgresBuilder::new(version, Origin::New)
    }

    /// Describes a server on an existing data directory, such as a restored one, which is not removed afterwards. The
    /// directory must belong to the servers' user, see [`own`].
    pub fn open(version: &PgVersion, data_directory: impl Into<PathBuf>) -> PostgresBuilder {
        PostgresBuilder::new(version, Origin::Existing(data_directory.into()))
    }

    /// Describes a streaming standby of a running server, made by `pg_basebackup`.
    pub fn standby_of(primary: &Self) -> PostgresBuilder {
        PostgresBuilder::new(&primary.version, Origin::StandbyOf { conninfo: primary.conninfo() })
    }

    /// Takes over a server that somebody else started on this directory, such as `holdfast restore --start`; panics if
    /// none is ready there. From here on it is stopped like any other, on drop as well; `log` stays empty until it is
    /// started again.
    pub fn attach(version: &PgVersion, data_directory: impl Into<PathBuf>) -> Self {
        let mut server = Self::open(version, data_directory).prepare();
        let pid_file = server.data_directory.join("postmaster.pid");
        let text = std::fs::read_to_string(&pid_file).unwrap_or_else(|error| panic!("no server runs there: {error}"));
        let line = |number: usize| text.lines().nth(number).unwrap_or_default().trim();
        let process = line(0).parse().ok().and_then(Process::find).expect("the pid file names a living process");
        assert!(is_ready(&pid_file, process.pid), "the server is not ready");
        server.port = line(3).parse().expect("the pid file names the port");
        server.socket_directory = line(4).into();
        server.running = Some(Running { child: None, process });
        server
    }

    /// Its version.
    pub fn version(&self) -> &PgVersion {
        &self.version
    }

    /// Its data directory.
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// The directory of its socket.
    pub fn socket_directory(&self) -> &Path {
        &self.socket_directory
    }

    /// Its port: part of the socket's name, and on 127.0.0.1 if the server was built with `tcp`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How to connect to database `postgres` as superuser through the socket.
    pub fn conninfo(&self) -> String {
        self.conninfo_of("postgres")
    }

    /// How to connect to a database as superuser through the socket.
    pub fn conninfo_of(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.socket_directory.display(), self.port)
    }

    /// How to connect to database `postgres` as superuser through the loopback interface; for servers with `tcp`.
    pub fn conninfo_tcp(&self) -> String {
        assert_eq!(self.reach, Reach::SocketAndLoopback, "the server was built without `tcp`");
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// The id of the postmaster; panics if the server does not run.
    pub fn pid(&self) -> i32 {
        self.running.as_ref().expect("the server runs").process.pid
    }

    /// Whether the postmaster runs.
    pub fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.process.is_alive())
    }

    /// The ids of the postmaster's children: backends, walsenders and background processes.
    pub fn child_pids(&self) -> Vec<i32> {
        let parents: Vec<Process> = self.running.iter().map(|running| running.process).collect();
        children(&parents).into_iter().map(|child| child.pid).collect()
    }

    /// All that the server has written to its log so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log_file).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// One of the version's client programs, told where the server is.
    pub fn client(&self, program: &str) -> Command {
        let mut command = command_as_server_user(self.version.bin(program));
        command.arg("--host").arg(&self.socket_directory);
        command.arg("--port").arg(self.port.to_string()).args(["--username", "postgres"]);
        command
    }

    /// Runs SQL in database `postgres` and returns the rows, columns divided by `|`; panics if it fails.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        self.sql_in("postgres", statements)
    }

    /// Runs SQL in a database; panics if it fails.
    #[track_caller]
    pub fn sql_in(&self, database: &str, statements: &str) -> String {
        self.try_sql_in(database, statements).unwrap_or_else(|error| panic!("{statements}\n{error}"))
    }

    /// Runs SQL in database `postgres`; `Err` with what psql said if it fails.
    pub fn try_sql(&self, statements: &str) -> Result<String, String> {
        self.try_sql_in("postgres", statements)
    }

    /// Runs SQL in a database. Each statement is a transaction of its own, so `vacuum` and the like are possible.
    pub fn try_sql_in(&self, database: &str, statements: &str) -> Result<String, String> {
        let mut child = command_as_server_user(self.version.bin("psql"))
            .args(["-XAtq", "--no-password", "-v", "ON_ERROR_STOP=1", "-d"])
            .arg(self.conninfo_of(database))
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("could not run psql: {error}"))?;
        let mut stdin = child.stdin.take().expect("it is piped");
        let statements = statements.to_owned();
        // Written beside, as psql may fill its own pipe before it has read everything. It may also end early.
        let writer = std::thread::spawn(move || stdin.write_all(statements.as_bytes()).ok());
        let output = child.wait_with_output().map_err(|error| format!("could not wait for psql: {error}"))?;
        drop(writer.join());
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Starts the server again; panics if it does not get ready.
    pub fn start(&mut self) {
        self.try_start().unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts the server and waits until it accepts connections, or cannot because it is a standby without them.
    pub fn try_start(&mut self) -> Result<(), StartError> {
        assert!(!self.is_running(), "the server runs already");
        for attempt in 1..=PORT_ATTEMPTS {
            match self.start_once() {
                Err(StartError::Ended { log, .. })
                    if self.reach == Reach::SocketAndLoopback
                        && attempt < PORT_ATTEMPTS
                        && log.contains("Address already in use") =>
                {
                    self.choose_port();
                }
                result => return result,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Stops the server if it runs.
    pub fn stop(&mut self, mode: StopMode) {
        let Some(mut running) = self.running.take() else { return };
        running.process.signal(match mode {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        });
        if !holds_within(STOP_BOUND, || running.has_ended().is_some()) {
            running.end();
            panic!("PostgreSQL did not stop within {STOP_BOUND:?} and was killed; its log:\n{}", self.log());
        }
    }

    /// Kills the server as a power failure would: the postmaster and all its descendants at one moment. Returns when
    /// none of them is left.
    pub fn kill_9(&mut self) {
        self.running.take().expect("the server runs").end();
    }

    /// Stops the server (fast) and starts it again.
    pub fn restart(&mut self) {
        self.stop(StopMode::Fast);
        self.start();
    }

    /// Writes a checkpoint and begins a new WAL segment, so that all that has happened can be archived.
    pub fn switch_wal(&self) {
        self.sql("checkpoint; select pg_switch_wal()");
    }

    fn start_once(&mut self) -> Result<(), StartError> {
        self.log_start = self.log().len();
        let pid_file = self.data_directory.join("postmaster.pid");
        let mut child = self.postgres_command().spawn().expect("postgres can be executed");
        let process = Process::find(child.id() as i32);
        let Some(process) = process else {
            let status = child.wait().expect("a child can be waited for").to_string();
            return Err(StartError::Ended { status, log: self.latest_log() });
        };
        let mut running = Running { child: Some(child), process };
        let mut ended = None;
        let mut ready = false;
        holds_within(self.start_bound, || {
            ended = running.has_ended();
            ready = is_ready(&pid_file, process.pid);
            ready || ended.is_some()
        });
        if let Some(status) = ended {
            return Err(StartError::Ended { status, log: self.latest_log() });
        }
        if !ready {
            running.end();
            return Err(StartError::NotReady { bound: self.start_bound, log: self.latest_log() });
        }
        self.running = Some(running);
        Ok(())
    }

    fn postgres_command(&self) -> Command {
        let log = OpenOptions::new().create(true).append(true).open(&self.log_file).expect("the log can be opened");
        let mut command = command_as_server_user(self.version.bin("postgres"));
        command.arg("-D").arg(&self.data_directory);
        command.arg("-k").arg(&self.socket_directory).arg("-p").arg(self.port.to_string());
        command.arg("-c").arg(format!("listen_addresses={}", self.listen_addresses()));
        for (name, value) in &self.command_line {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a file can be cloned")).stderr(log);
        command
    }

    fn listen_addresses(&self) -> &'static str {
        match self.reach {
            Reach::Socket => "",
            Reach::SocketAndLoopback => "127.0.0.1",
        }
    }

    /// Somebody may take the port before the server does; then another one is tried.
    fn choose_port(&mut self) {
        if self.reach == Reach::SocketAndLoopback {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("127.0.0.1 has a free port");
            self.port = listener.local_addr().expect("a listener has an address").port();
        }
    }

    /// Writes the settings to the files. Port and socket are among them although the command line carries them as
    /// well: who starts a restored copy without us must not meet the system's own server.
    fn write_settings(&self, settings: &[(String, String)], hba: &[String]) {
        let mut text = format!(
            "\nwal_level = replica\nmax_wal_senders = 10\nport = {}\nunix_socket_directories = '{}'\n\
             listen_addresses = '{}'\n",
            self.port,
            self.socket_directory.display(),
            self.listen_addresses()
        );
        for (name, value) in settings {
            text.extend([name, " = '", &value.replace('\'', "''"), "'\n"]);
        }
        let path = self.data_directory.join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(&path).expect("postgresql.conf can be opened");
        file.write_all(text.as_bytes()).expect("postgresql.conf can be written");
        if !hba.is_empty() {
            let path = self.data_directory.join("pg_hba.conf");
            let old = std::fs::read_to_string(&path).expect("pg_hba.conf can be read");
            let mut file = File::create(&path).expect("pg_hba.conf can be opened");
            write!(file, "{}\n{old}", hba.join("\n")).expect("pg_hba.conf can be written");
            own(&path);
        }
    }

    fn latest_log(&self) -> String {
        let log = self.log();
        log.get(self.log_start..).unwrap_or(&log).to_owned()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n");
            #[expect(clippy::print_stderr, reason = "a failing test shows the server's log")]
            {
                eprintln!("---- end of the log of PostgreSQL {}:\n{tail}", self.version);
            }
        }
    }
}

impl Running {
    /// The exit status if the postmaster has ended.
    fn has_ended(&mut self) -> Option<String> {
        match &mut self.child {
            Some(child) => child.try_wait().expect("a child can be waited for").map(|status| status.to_string()),
            None => (!self.process.is_alive()).then(|| "an unknown exit status".to_owned()),
        }
    }

    /// Kills it with all its descendants, and takes its exit status so that no zombie stays.
    fn end(self) {
        self.process.kill_tree();
        if let Some(mut child) = self.child {
            child.wait().expect("a child can be waited for");
        }
    }
}

/// Whether the pid file says that this postmaster is ready, or as ready as it will be. It is what `pg_ctl` looks at.
fn is_ready(pid_file: &Path, pid: i32) -> bool {
    let Ok(text) = std::fs::read_to_string(pid_file) else { return false };
    let mut lines = text.lines();
    let same = lines.next().is_some_and(|line| line.trim() == pid.to_string());
    same && lines.nth(6).is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
}
