//! A real S3 server: Ceph's object gateway, with a monitor and an object store of its own. Everything is in a temporary
//! directory and on loopback, and ends with the value.

use std::process::Command;
use std::time::Duration;

use crate::azurite::secret_file;
use crate::daemon::{Daemon, free_port, listens};
use crate::temp_root::TempRoot;
use crate::tools::run;

/// A machine that is busy starts it slowly.
const BOUND: Duration = Duration::from_mins(2);
const MEMORY_BYTES: u64 = 8 << 30;

/// A running gateway with one user, who owns all buckets.
#[derive(Debug)]
pub struct Ceph {
    pub access_key: String,
    pub secret_key: String,
    port: u16,
    // In the order in which they end.
    _gateway: Daemon,
    _store: Daemon,
    _monitor: Daemon,
    root: TempRoot,
}

impl Ceph {
    pub fn start() -> Self {
        let root = TempRoot::new();
        let folder = root.path().display().to_string();
        let (monitor_port, port) = (free_port(), free_port());
        let fsid = "5d3a7f0e-6c1b-4f0a-9d55-0b9a3c8f7e21";
        let configuration = format!(
            "[global]\n\
             fsid = {fsid}\n\
             mon host = [v2:127.0.0.1:{monitor_port}/0]\n\
             public network = 127.0.0.0/8\n\
             auth cluster required = none\n\
             auth service required = none\n\
             auth client required = none\n\
             ms mon client mode = crc\n\
             osd pool default size = 1\n\
             osd pool default min size = 1\n\
             osd pool default pg num = 4\n\
             osd pool default pgp num = 4\n\
             osd crush chooseleaf type = 0\n\
             mon allow pool size one = true\n\
             mon data avail crit = 0\n\
             mon data avail warn = 0\n\
             osd objectstore = memstore\n\
             memstore device bytes = {MEMORY_BYTES}\n\
             run dir = {folder}\n\
             admin socket = {folder}/$name.asok\n\
             log file =\n\
             log to stderr = true\n\
             keyring = {folder}/keyring\n\
             rgw data = {folder}/gateway\n\
             rgw dynamic resharding = false\n"
        );
        let path = root.join("ceph.conf");
        std::fs::write(&path, configuration).expect("the directory can be written");
        let ceph = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.arg("--conf").arg(&path).args(arguments).env("LC_ALL", "C").current_dir("/");
            command
        };
        let done = |command: &mut Command| run(command).unwrap_or_else(|error| panic!("{error}"));

        let (map, monitor_data) = (format!("{folder}/monmap"), format!("{folder}/monitor"));
        let address = format!("[v2:127.0.0.1:{monitor_port}]");
        done(Command::new("monmaptool").args(["--create", "--addv", "a", &address, "--fsid", fsid, &map]));
        done(&mut ceph("ceph-mon", &["-i", "a", "--mkfs", "--monmap", &map, "--mon-data", &monitor_data]));
        let mut command = ceph("ceph-mon", &["-i", "a", "--mon-data", &monitor_data, "-f"]);
        let mut monitor = Daemon::start("ceph-mon", &mut command, &root.join("monitor.log"));
        monitor.wait_until(BOUND, "a quorum of one", || {
            run(&mut ceph("ceph", &["--connect-timeout", "2", "quorum_status"])).is_ok()
        });

        let (uuid, store_data) = ("0f0e0d0c-0b0a-4908-8706-050403020100", format!("{folder}/store"));
        std::fs::create_dir(&store_data).expect("the directory can be written");
        done(&mut ceph("ceph", &["osd", "new", uuid]));
        done(&mut ceph("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", uuid, "--osd-data", &store_data]));
        let mut command = ceph("ceph-osd", &["-i", "0", "--osd-data", &store_data, "-f"]);
        let mut store = Daemon::start("ceph-osd", &mut command, &root.join("store.log"));
        store.wait_until(BOUND, "an object store that is up", || {
            run(&mut ceph("ceph", &["--connect-timeout", "2", "osd", "stat"])).is_ok_and(|said| said.contains("1 up"))
        });

        std::fs::create_dir(format!("{folder}/gateway")).expect("the directory can be written");
        // Without that it waits for 40 ms now and then, as no service does.
        let frontend = format!("beast endpoint=127.0.0.1:{port} tcp_nodelay=1");
        let mut command = ceph("radosgw", &["-n", "client.gateway", "-f", "--rgw-frontends", &frontend]);
        let mut gateway = Daemon::start("radosgw", &mut command, &root.join("gateway.log"));
        gateway.wait_until(BOUND, "a gateway that listens", || listens(port));
        let (access_key, secret_key) =
            ("holdfastaccess".to_owned(), "holdfastsecretforteststhatnobodyelseuses".to_owned());
        let mut user = ceph("radosgw-admin", &["-n", "client.gateway", "user", "create", "--uid=holdfast"]);
        user.args(["--display-name=holdfast", "--access-key", &access_key, "--secret-key", &secret_key]);
        done(&mut user);
        Self { access_key, secret_key, port, _gateway: gateway, _store: store, _monitor: monitor, root }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) {
        let mut command = Command::new("curl");
        // It signs as S3 wants it, and is on every machine that builds this.
        command.args(["--silent", "--show-error", "--fail-with-body", "--request", "PUT"]);
        command.args([
            "--header",
            "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ]);
        command.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user"]);
        command.arg(format!("{}:{}", self.access_key, self.secret_key)).arg(format!("{}/{name}", self.endpoint()));
        run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The file of credentials for `credentials_file`.
    pub fn credentials_file(&self) -> std::path::PathBuf {
        let text = format!("access_key_id = \"{}\"\nsecret_access_key = \"{}\"\n", self.access_key, self.secret_key);
        secret_file(&self.root.join("credentials.toml"), &text)
    }
}
