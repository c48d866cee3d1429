//! Processes by their id, as `/proc` shows them.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::holds_within;

/// A process, told apart from a later one with the same id by the time at which it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    started_ticks: u64,
}

/// What `/proc/PID/stat` says, as far as we need it.
struct Stat {
    process: Process,
    state: char,
    parent: i32,
}

impl Process {
    /// The process with this id, if there is one that has not ended.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        stat(pid).filter(Stat::is_alive).map(|stat| stat.process)
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Sends a signal; one that has ended meanwhile is no error.
    pub(crate) fn signal(self, signal: Signal) {
        if self.is_alive() {
            // The only failure left is that it has ended since the line above.
            kill(Pid::from_raw(self.pid), signal).ok();
        }
    }

    /// Ends this process and all that descend from it, at one moment, and waits until they are gone: the whole tree
    /// is stopped first, so that nothing is forked while we look, and then killed.
    pub(crate) fn kill_tree(self) {
        let mut stopped = vec![self];
        self.signal(Signal::SIGSTOP);
        for _ in 0..1000 {
            let all_stand = holds_within(Duration::from_secs(10), || stopped.iter().all(|process| process.is_still()));
            assert!(all_stand, "process {} or a descendant could not be stopped", self.pid);
            let new: Vec<Self> = children(&stopped).into_iter().filter(|child| !stopped.contains(child)).collect();
            if new.is_empty() {
                break;
            }
            for child in new {
                child.signal(Signal::SIGSTOP);
                stopped.push(child);
            }
        }
        for process in &stopped {
            process.signal(Signal::SIGKILL);
        }
        let gone = holds_within(Duration::from_secs(30), || !stopped.iter().any(|process| process.is_alive()));
        assert!(gone, "process {} or a descendant survived SIGKILL", self.pid);
    }

    /// Whether it is stopped, or has ended.
    fn is_still(self) -> bool {
        stat(self.pid).is_none_or(|stat| stat.process != self || !stat.is_alive() || matches!(stat.state, 'T' | 't'))
    }
}

impl Stat {
    /// A zombie has ended: it holds no file and no memory, and waits for its parent to look.
    fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

/// The living children of these processes.
pub(crate) fn children(parents: &[Process]) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?))
        .filter(|stat| stat.is_alive() && parents.iter().any(|parent| parent.pid == stat.parent))
        .map(|stat| stat.process)
        .collect()
}

fn stat(pid: i32) -> Option<Stat> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, and a name may hold blanks and parentheses.
    let (_, rest) = line.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Some(Stat {
        process: Process { pid, started_ticks: fields.get(19)?.parse().ok()? },
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
    })
}
