//! A directory with a configuration, and runs of the program in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use holdfast_testkit::{TempRoot, command_as_server_user};

use crate::run::{Run, install};

pub(crate) struct Sandbox {
    root: TempRoot,
    user: User,
}

/// Who runs the program.
#[derive(Clone, Copy)]
enum User {
    Ours,
    /// The servers' user, who reads data directories and runs `restore_command`. The program is in the sandbox, where
    /// this user can reach it.
    Server,
}

impl Sandbox {
    /// With a repository that is not made yet.
    pub(crate) fn new() -> Self {
        let sandbox = Self { root: TempRoot::new(), user: User::Ours };
        let repository = sandbox.path("repository");
        let identity = sandbox.path("identity.txt");
        sandbox.configure(&format!(
            "[repository.main]\npath = \"{}\"\nidentity_file = \"{}\"\n",
            repository.display(),
            identity.display()
        ));
        sandbox
    }

    /// With a repository, and its identity beside it.
    pub(crate) fn with_repository() -> Self {
        let sandbox = Self::new();
        let identity = sandbox.path("identity.txt").display().to_string();
        sandbox.run(&["init", "--new-identity", &identity]).expect(0);
        sandbox
    }

    /// The same for the servers' user.
    pub(crate) fn for_servers() -> Self {
        let mut sandbox = Self::new();
        install(&sandbox.root);
        sandbox.user = User::Server;
        let identity = sandbox.path("identity.txt").display().to_string();
        sandbox.run(&["init", "--new-identity", &identity]).expect(0);
        sandbox
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.path("holdfast.toml")
    }

    pub(crate) fn configure(&self, content: &str) {
        std::fs::write(self.config_file(), content).expect("the sandbox can be written");
    }

    pub(crate) fn add_to_configuration(&self, content: &str) {
        let before = std::fs::read_to_string(self.config_file()).expect("the configuration was written");
        self.configure(&format!("{before}{content}"));
    }

    /// The program, with nothing of this process's environment that it would listen to.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.user {
            User::Ours => Command::new(env!("CARGO_BIN_EXE_holdfast")),
            User::Server => command_as_server_user(self.path("holdfast")),
        };
        command.args(arguments).stdin(Stdio::null()).current_dir(self.root.path());
        command.env("HOLDFAST_CONFIG", self.config_file()).env_remove("HOLDFAST_LOG").env("HOME", self.root.path());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }
}
