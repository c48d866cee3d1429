//! A repository, a configuration, and the program, for one server.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use holdfast_testkit::{
    PgVersion, Postgres, StopMode, TempRoot, command_as_server_user, own, pg_amcheck, pg_checksums_check, wait_until,
};
use serde_json::Value;

use crate::process::Background;
pub(crate) use crate::run::lsn;
use crate::run::{Run, install};

/// How long anything may take that is waited for.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// The name under which `wal receive` is known to the server: its slot's.
pub(crate) const RECEIVER: &str = "holdfast_chat";

/// All that protects one server. Everything runs as the servers' user, as a real installation would.
#[derive(Debug)]
pub(crate) struct Site {
    root: TempRoot,
    version: PgVersion,
    /// The lines of the repository's table that say where it is.
    place: String,
    settings: String,
    logs: AtomicU32,
}

impl Site {
    /// With a new repository for a server.
    pub(crate) fn protecting(server: &Postgres) -> Self {
        Self::with(server, |_| String::new())
    }

    /// With a spool as well.
    pub(crate) fn with_spool(server: &Postgres) -> Self {
        Self::with(server, |root| {
            let spool = root.make_directory("spool");
            format!("spool = \"{}\"\n", spool.display())
        })
    }

    /// With more settings of the source.
    pub(crate) fn with(server: &Postgres, settings: impl FnOnce(&TempRoot) -> String) -> Self {
        let root = TempRoot::new();
        install(&root);
        let settings = settings(&root);
        let place = format!("path = \"{}\"", root.join("repository").display());
        Self::make(root, server, place, settings)
    }

    /// With the repository elsewhere.
    pub(crate) fn kept_at(server: &Postgres, place: String) -> Self {
        let root = TempRoot::new();
        install(&root);
        Self::make(root, server, place, String::new())
    }

    /// With several repositories of one content: the first in a directory, the others by name and place.
    pub(crate) fn with_copies(server: &Postgres, copies: &[(&str, String)]) -> Self {
        let root = TempRoot::new();
        install(&root);
        let place = format!("path = \"{}\"", root.join("repository").display());
        let names: Vec<String> = copies.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let mut settings = format!("repository = \"main\"\ncopies = [{}]\n", names.join(", "));
        settings.push_str("\n[source.chat.places]\ncopies = 3\nsites = 3\n");
        for (name, place) in copies {
            let identity = root.join("identity.txt");
            writeln!(settings, "\n[repository.{name}]\n{place}\nidentity_file = \"{}\"", identity.display())
                .expect("a text grows");
        }
        let site = Self::make(root, server, place, settings);
        for (name, _) in copies {
            site.run(&["init", name, "--like", "main"]).expect(0);
        }
        site
    }

    fn make(root: TempRoot, server: &Postgres, place: String, settings: String) -> Self {
        let site = Self { root, version: server.version().clone(), place, settings, logs: AtomicU32::new(0) };
        site.follow(server);
        let identity = site.path("identity.txt").display().to_string();
        site.run(&["init", "main", "--new-identity", &identity]).expect(0);
        site
    }

    /// Protects this server from now on, such as one that took over.
    pub(crate) fn follow(&self, server: &Postgres) {
        let text = format!(
            "[repository.main]\n{}\nidentity_file = \"{}\"\n\n[source.chat]\nconnection = \"{}\"\n{}",
            self.place,
            self.path("identity.txt").display(),
            server.conninfo(),
            self.settings
        );
        let path = self.path("holdfast.toml");
        std::fs::write(&path, text).expect("the sandbox can be written");
        own(&path);
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path("spool")
    }

    /// The program as a command line that PostgreSQL can run.
    pub(crate) fn shell_command(&self, words: &str) -> String {
        format!("{} --config {} {words}", self.path("holdfast").display(), self.path("holdfast.toml").display())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command_as_server_user(self.path("holdfast"));
        command.args(arguments).stdin(Stdio::null()).current_dir(self.root.path());
        command.env("HOLDFAST_CONFIG", self.path("holdfast.toml")).env("HOME", self.root.path());
        command.env("HOLDFAST_LOG", "info").env("NO_COLOR", "1");
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    /// The program in the background.
    pub(crate) fn start(&self, arguments: &[&str]) -> Background {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        Background::start(&mut self.command(arguments), self.path(format!("{}-{number}.log", arguments[0])))
    }

    /// `wal receive`, streaming.
    #[track_caller]
    pub(crate) fn receive(&self, server: &Postgres, more: &[&str]) -> Background {
        let mut receiver = self.start(&[&["wal", "receive", "chat", "--create-slot", "--json"], more].concat());
        self.await_streaming(server, &mut receiver);
        receiver
    }

    #[track_caller]
    pub(crate) fn await_streaming(&self, server: &Postgres, receiver: &mut Background) {
        let streams = format!(
            "select count(*) from pg_stat_replication where application_name = '{RECEIVER}' and state = 'streaming'"
        );
        wait_until(BOUND, "the receiver to stream", || {
            receiver.expect_running();
            server.try_sql(&streams).is_ok_and(|count| count == "1")
        });
    }

    /// Takes a backup; what it reports.
    #[track_caller]
    pub(crate) fn backup(&self) -> Value {
        self.run(&["backup", "chat", "--json", "--fast"]).expect(0).json()
    }

    /// How far the log of a timeline is in the repository.
    #[track_caller]
    pub(crate) fn durable(&self, timeline: u64) -> u64 {
        let listed = self.run(&["list", "chat", "--repository", "main", "--json"]).expect(0).json();
        let stretches = listed["sources"][0]["log"].as_array().cloned().unwrap_or_default();
        let stretch = stretches.iter().find(|stretch| stretch["timeline"] == timeline);
        let end = stretch.and_then(|stretch| stretch["ranges"].as_array()?.last()?["end"].as_str().map(lsn));
        end.unwrap_or(0)
    }

    /// Waits until all that the server has written is in the repository.
    #[track_caller]
    pub(crate) fn await_durable(&self, server: &Postgres) {
        let current = server.sql("select pg_current_wal_flush_lsn(), (pg_control_checkpoint()).timeline_id");
        let (end, timeline) = current.split_once('|').expect("two columns");
        let (end, timeline) = (lsn(end), timeline.parse().expect("a timeline is a number"));
        wait_until(BOUND, "the log to be durable", || self.durable(timeline) >= end);
    }

    /// `verify`, which must find nothing.
    #[track_caller]
    pub(crate) fn verify(&self) {
        self.run(&["verify"]).expect(0).says("everything can be read back");
    }

    /// The arguments with which a restored cluster is started beside all others.
    fn start_arguments(&self) -> Vec<String> {
        let bin = self.version.bin_directory().display().to_string();
        // Each has a directory for its socket: one that was killed leaves a lock.
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        let socket = self.root.make_directory(format!("socket-{number}")).display().to_string();
        ["--start", "--bin-dir", &bin, "--socket-dir", &socket, "--port", "5439"].map(str::to_owned).to_vec()
    }

    /// `restore --start`, without judging how it ended.
    pub(crate) fn try_restore(&self, name: &str, arguments: &[&str]) -> Run {
        let to = self.path(name).display().to_string();
        let start = self.start_arguments();
        let start: Vec<&str> = start.iter().map(String::as_str).collect();
        self.run(&[&["restore", "chat", "--json", "--to", &to], &start[..], arguments].concat())
    }

    /// Restores and starts a cluster, to be taken down when dropped.
    #[track_caller]
    pub(crate) fn restore(&self, name: &str, arguments: &[&str]) -> Restored {
        let report = self.try_restore(name, arguments);
        let directory = self.path(name);
        if report.code != Some(0) {
            let log = std::fs::read_to_string(directory.join("holdfast.start.log")).unwrap_or_default();
            panic!("{report:#?}\n{log}");
        }
        let server = Postgres::attach(&self.version, &directory);
        Restored { server, report: report.json(), directory }
    }
}

/// A cluster that was brought back and runs.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) server: Postgres,
    pub(crate) report: Value,
    directory: PathBuf,
}

impl Restored {
    /// PostgreSQL's own judges find nothing. The server is stopped, and its directory removed.
    #[track_caller]
    pub(crate) fn prove_clean(mut self) {
        // Without those whose removal has begun.
        let databases = "select datname from pg_database where datallowconn and datconnlimit <> -2 order by 1";
        for database in self.server.sql(databases).lines() {
            pg_amcheck(&self.server, database).unwrap_or_else(|error| panic!("{database}: {error}"));
        }
        self.server.stop(StopMode::Fast);
        pg_checksums_check(self.server.version(), &self.directory).unwrap_or_else(|error| panic!("{error}"));
        self.discard();
    }

    /// Takes it down and removes it.
    pub(crate) fn discard(self) {
        let Self { mut server, directory, .. } = self;
        server.stop(StopMode::Immediate);
        std::fs::remove_dir_all(&directory).expect("it is ours");
    }
}
