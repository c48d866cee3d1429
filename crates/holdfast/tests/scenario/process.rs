//! The program in the background.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process may take to end when asked.
const END_BOUND: Duration = Duration::from_secs(30);

/// A process of the program in the background. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Background {
    child: Child,
    log: PathBuf,
}

impl Background {
    /// Runs a command, with all that it says in a file.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a log can be made");
        let output = file.try_clone().expect("a file can be cloned");
        let child = command.stdin(Stdio::null()).stdout(output).stderr(file).spawn();
        Self { child: child.expect("the program can be run"), log }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log can be read")
    }

    /// How often a line with these words was logged.
    pub(crate) fn said(&self, words: &str) -> usize {
        self.log().lines().filter(|line| line.contains(words)).count()
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    #[track_caller]
    pub(crate) fn expect_running(&mut self) {
        if let Some(status) = self.has_ended() {
            panic!("ended with {status}:\n{}", self.log());
        }
    }

    /// Ends it at once, and says whether it still ran.
    pub(crate) fn kill_9(mut self) -> bool {
        let ran = self.has_ended().is_none();
        self.end();
        ran
    }

    /// Asks it to end, and does not wait for it.
    pub(crate) fn ask_to_end(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("our own child can be signalled");
    }

    /// Asks it to end.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.ask_to_end();
        let log = self.log.clone();
        let code = self.wait(END_BOUND);
        assert_eq!(code, Some(0), "{}", std::fs::read_to_string(log).unwrap_or_default());
    }

    /// Waits until it has ended; its exit code.
    #[track_caller]
    pub(crate) fn wait(mut self, bound: Duration) -> Option<i32> {
        let start = Instant::now();
        while start.elapsed() < bound {
            if let Some(status) = self.has_ended() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("did not end within {bound:?}:\n{}", self.log());
    }

    fn end(&mut self) {
        // The only failure is that it has ended already.
        self.child.kill().ok();
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            // Its directory may have gone already; a second panic would hide the first.
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            eprintln!("---- end of {}:\n{tail}", self.log.display());
        }
    }
}
