//! A real SFTP server: OpenSSH's, on loopback, with keys of its own, for the user that runs this.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::daemon::{Daemon, free_port, listens};
use crate::temp_root::TempRoot;
use crate::tools::run;
use crate::user::own;

const BOUND: Duration = Duration::from_secs(30);

/// A running server, and what a client needs to get in.
#[derive(Debug)]
pub struct SshServer {
    port: u16,
    daemon: Daemon,
    root: TempRoot,
}

impl SshServer {
    pub fn start() -> Self {
        let root = TempRoot::new();
        let port = free_port();
        for name in ["host_key", "key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(root.join(name));
            run(&mut command).unwrap_or_else(|error| panic!("{error}"));
        }
        // `ssh` refuses a key that others can read, and the servers' user is to use it.
        own(&root.join("key"));
        let public = |name: &str| std::fs::read_to_string(root.join(name)).expect("ssh-keygen wrote it");
        std::fs::write(root.join("authorized_keys"), public("key.pub")).expect("the directory can be written");
        let known = format!("[127.0.0.1]:{port} {}", public("host_key.pub"));
        std::fs::write(root.join("known_hosts"), known).expect("the directory can be written");
        let folder = root.path().display();
        let configuration = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n\
             PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             MaxStartups 100\nSubsystem sftp internal-sftp\n"
        );
        std::fs::write(root.join("sshd_config"), configuration).expect("the directory can be written");
        if nix::unistd::Uid::effective().is_root() {
            // Where root's sshd leaves its privileges; Debian makes it when the service starts.
            std::fs::create_dir_all("/run/sshd").expect("root can make it");
        }
        // It runs itself again for each connection, by its full name.
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-e").arg("-f").arg(root.join("sshd_config"));
        let mut daemon = Daemon::start("sshd", &mut command, &root.join("sshd.log"));
        daemon.wait_until(BOUND, "an SSH server that listens", || listens(port));
        Self { port, daemon, root }
    }

    /// `ssh://USER@127.0.0.1:PORT`.
    pub fn destination(&self) -> String {
        format!("ssh://{}", self.host())
    }

    /// Of a new directory for one repository.
    pub fn url(&self, name: &str) -> String {
        format!("sftp://{}{}", self.host(), self.make_directory(name).display())
    }

    fn host(&self) -> String {
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
        format!("{}@127.0.0.1:{}", user.map_or_else(|| "root".to_owned(), |user| user.name), self.port)
    }

    pub fn key_file(&self) -> PathBuf {
        self.root.join("key")
    }

    pub fn known_hosts_file(&self) -> PathBuf {
        self.root.join("known_hosts")
    }

    /// A directory of the server for one repository.
    pub fn make_directory(&self, name: &str) -> PathBuf {
        self.root.make_directory(name)
    }

    /// Ends it and all its connections at once.
    pub fn kill(&mut self) {
        self.daemon.kill();
    }
}
