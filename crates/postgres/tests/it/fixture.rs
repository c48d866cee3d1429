//! A server for one test, in a directory that goes away with it.

use std::fs;
use std::future::Future;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_postgres::cluster::{Running, is_running};
use holdfast_postgres::{Client, ConnInfo, Purpose};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use tempfile::TempDir;

/// The programs of the newest PostgreSQL that Debian has put here.
pub fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed as Debian does it");
    let newest = versions.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).max();
    PathBuf::from(format!("/usr/lib/postgresql/{}/bin", newest.expect("at least one version")))
}

/// Runs as the user `postgres` if we are root, because PostgreSQL refuses root.
pub fn command(program: &Path) -> Command {
    let mut command = if Uid::effective().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Gives a path to the user that the server runs as.
pub fn hand_over(path: &Path) {
    if Uid::effective().is_root() {
        let user = User::from_name("postgres").unwrap().expect("the user postgres exists");
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    hand_over(path);
}

pub struct Server {
    folder: TempDir,
    pub port: u16,
    process: Option<Child>,
}

impl Server {
    /// A new cluster, not started.
    pub fn prepare() -> Self {
        let server = Self::empty();
        let mut initdb = command(&binaries().join("initdb"));
        initdb.args(["--auth=trust", "--username=postgres", "--data-checksums", "--no-sync", "--encoding=UTF8"]);
        run(initdb.arg("--locale=C").arg("--pgdata").arg(server.data()));
        server
    }

    /// A place for a cluster that comes from elsewhere.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        hand_over(folder.path());
        // Bound and let go: nobody else on this machine is likely to take it within the next second.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { folder, port, process: None }
    }

    /// A new cluster that runs, reachable through its Unix socket.
    pub async fn start() -> Self {
        let mut server = Self::prepare();
        server.launch(&[]).await;
        server
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    pub async fn launch(&mut self, settings: &[&str]) {
        let log = fs::File::options().append(true).create(true).open(self.folder().join("log")).unwrap();
        let mut postgres = command(&binaries().join("postgres"));
        postgres.arg("-D").arg(self.data()).arg("-k").arg(self.folder()).args(["-p", &self.port.to_string()]);
        let common = [
            "listen_addresses=",
            "fsync=off",
            "max_wal_senders=8",
            "wal_level=replica",
            "autovacuum=off",
            // Tests compare what was streamed with the files, so these have to stay.
            "wal_keep_size=1GB",
        ];
        postgres.args(common.iter().chain(settings).flat_map(|setting| ["-c", setting]));
        postgres.stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(postgres.spawn().unwrap());
        let info = self.info("postgres");
        let ready = async || Client::connect(&info, Purpose::Sql).await.is_ok();
        eventually("the server accepts connections", ready).await;
    }

    /// Tells the server to shut down in order, without waiting.
    pub fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().expect("the server runs").id();
        kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    pub fn wait(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.wait().unwrap();
        }
    }

    pub fn info(&self, user: &str) -> ConnInfo {
        let text = format!("host={} port={} user={user}", self.folder().display(), self.port);
        text.parse().unwrap()
    }

    pub async fn sql(&self) -> Client {
        Client::connect(&self.info("postgres"), Purpose::Sql).await.unwrap()
    }

    pub async fn replication(&self) -> Client {
        Client::connect(&self.info("postgres"), Purpose::Replication).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.signal(Signal::SIGQUIT);
            self.wait();
        }
        // One that a failed test has started by other means.
        if let Running::Yes { pid } = is_running(&self.data()) {
            // It may have gone by itself meanwhile.
            kill(Pid::from_raw(pid), Signal::SIGQUIT).ok();
        }
    }
}

/// Waits for a condition, for at most a minute.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < Duration::from_mins(1), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
