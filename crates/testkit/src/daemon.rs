//! Servers other than PostgreSQL: processes that end with the value that holds them.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::process::Process;
use crate::wait::holds_within;

/// A running server. It and whatever it started are killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it; what it says goes to a file.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let file = File::create(log).unwrap_or_else(|error| panic!("could not make {}: {error}", log.display()));
        let both = file.try_clone().expect("a file can be opened twice");
        let spawned = command.stdin(Stdio::null()).stdout(file).stderr(both).spawn();
        let child = spawned.unwrap_or_else(|error| panic!("could not run {command:?}: {error}"));
        Self { name: name.to_owned(), log: log.to_owned(), child }
    }

    /// Waits until it is as it should be.
    pub(crate) fn wait_until(&mut self, bound: Duration, what: &str, mut condition: impl FnMut() -> bool) {
        let mut ended = None;
        let holds = holds_within(bound, || {
            ended = self.child.try_wait().expect("it is our child");
            ended.is_some() || condition()
        });
        assert!(
            holds && ended.is_none(),
            "{} is not there ({what}; ended: {ended:?}). It says:\n{}",
            self.name,
            std::fs::read_to_string(&self.log).unwrap_or_default()
        );
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are small")
    }

    pub(crate) fn kill(&mut self) {
        if let Some(process) = Process::find(self.pid()) {
            process.kill_tree();
        }
        // It is dead: the status says no more.
        self.child.wait().ok();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of loopback that nobody has at the moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a port");
    listener.local_addr().expect("it is bound").port()
}

/// Whether somebody listens there.
pub(crate) fn listens(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1)).is_ok()
}
