use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Whether a server runs on a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Running {
    /// None does.
    No,
    /// This process does: the postmaster, or what an unclean end of one has left.
    Yes { pid: i32 },
    /// It could not be found out. To be treated as "yes" by anybody who would overwrite something.
    Unknown { reason: String },
}

/// What `postmaster.pid` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    /// A single-user server writes its number negated, which is undone here.
    pub(super) pid: i32,
    /// `starting`, `ready`, `standby` or `stopping`; absent at the very beginning.
    pub(super) status: Option<String>,
    /// The segment that every process of the server is attached to; absent at the very beginning.
    pub(super) memory: Option<SharedMemory>,
}

/// A System V shared memory segment. Both numbers are 32 bits with or without a sign, depending on who prints them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SharedMemory {
    key: u32,
    id: u32,
}

impl SharedMemory {
    fn of(key: &str, id: &str) -> Option<Self> {
        // PostgreSQL prints a negative key as an unsigned long.
        let bits = |text: &str| {
            let signed = text.parse::<i64>().ok();
            signed.or_else(|| text.parse::<u64>().ok().map(u64::cast_signed)).map(|number| number as u32)
        };
        Some(Self { key: bits(key)?, id: bits(id)? })
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        Self::of(words.next()?, words.next()?)
    }

    /// How many processes are attached to it, by the kernel's table; nothing if it is not there.
    fn attached(self, table: &str) -> Option<u64> {
        const ATTACHED_COLUMN: usize = 6;
        let rows = table.lines().filter(|line| Self::parse(line) == Some(self));
        rows.map(|row| row.split_whitespace().nth(ATTACHED_COLUMN)?.parse().ok()).next().flatten()
    }
}

impl PidFile {
    pub(super) fn read(data_directory: &Path) -> io::Result<Option<Self>> {
        let text = match fs::read_to_string(data_directory.join("postmaster.pid")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            outcome => outcome?,
        };
        Self::parse(&text).map(Some).ok_or_else(|| {
            // It is written in one piece, but an empty one exists for a moment.
            io::Error::new(io::ErrorKind::InvalidData, "postmaster.pid does not begin with a process number")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        const MEMORY_LINE: usize = 6;
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse::<i32>().ok()?.checked_abs().filter(|pid| *pid > 0)?;
        let memory = lines.nth(MEMORY_LINE - 1).and_then(SharedMemory::parse);
        let status = lines.next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty());
        Some(Self { pid, status, memory })
    }
}

/// Finds out whether a server runs on a data directory.
///
/// It looks at `postmaster.pid` and at the process that it names, whose number may have been given to another since.
/// If that process is gone, any process of PostgreSQL that works in the directory counts: a postmaster in another
/// process namespace, or the children of one that was killed, which still write.
pub fn is_running(data_directory: &Path) -> Running {
    let unknown = |reason: String| Running::Unknown { reason };
    // Whether `postmaster.pid` is absent can be told only in a directory that can be looked into.
    let identity = match fs::metadata(data_directory) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Running::No,
        Err(error) => return unknown(format!("could not look at `{}`: {error}", data_directory.display())),
    };
    let pid = match PidFile::read(data_directory) {
        Ok(None) => return Running::No,
        Ok(Some(file)) => file.pid,
        Err(error) => return unknown(format!("could not read postmaster.pid: {error}")),
    };
    match kill(Pid::from_raw(pid), None) {
        // No right to signal it: it is there.
        Ok(()) | Err(Errno::EPERM) => match inspect(pid, identity) {
            Process::Ours => return Running::Yes { pid },
            Process::Unknown(reason) => return unknown(format!("process {pid} of postmaster.pid: {reason}")),
            Process::Other => {}
        },
        Err(Errno::ESRCH) => {}
        Err(error) => return unknown(format!("could not look for process {pid}: {error}")),
    }
    leftover(identity)
}

/// The same for whoever would overwrite or delete what is in the directory: [`Running::No`] only if that is proved.
///
/// That no process of this number is at work in the directory proves nothing where `postmaster.pid` was written in
/// another container, or on another machine. The shared memory segment that it names does: PostgreSQL keeps one for just
/// this purpose, and a server that was killed leaves it behind. If it is here, the server was here, and if nobody is
/// attached to it, neither the postmaster nor a child of it is left.
pub fn prove_stopped(data_directory: &Path) -> Running {
    match is_running(data_directory) {
        Running::No => {}
        other => return other,
    }
    let unknown = |reason: String| Running::Unknown { reason };
    let file = match PidFile::read(data_directory) {
        Ok(None) => return Running::No,
        Ok(Some(file)) => file,
        // The directory is not there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Running::No,
        Err(error) => return unknown(format!("could not read postmaster.pid: {error}")),
    };
    let Some(memory) = file.memory else {
        return unknown("postmaster.pid names no shared memory, by which it could be proved".to_owned());
    };
    match fs::read_to_string("/proc/sysvipc/shm").map(|table| memory.attached(&table)) {
        Ok(Some(0)) => Running::No,
        Ok(Some(count)) => unknown(format!("{count} processes are attached to the shared memory of postmaster.pid")),
        Ok(None) => unknown(
            "postmaster.pid is not of a server that was stopped cleanly, and nothing of it is left here: it may run in \
             another container or on another machine, or this machine was started anew"
                .to_owned(),
        ),
        Err(error) => unknown(format!("could not look for the shared memory of postmaster.pid: {error}")),
    }
}

enum Process {
    /// PostgreSQL, at work in the data directory.
    Ours,
    /// Something else, or nothing any more.
    Other,
    Unknown(String),
}

fn inspect(pid: i32, data_directory: (u64, u64)) -> Process {
    let folder = Path::new("/proc").join(pid.to_string());
    match fs::read_to_string(folder.join("comm")) {
        Ok(name) if matches!(name.trim(), "postgres" | "postmaster") => {}
        Ok(_) => return Process::Other,
        Err(error) if is_gone(&error) && Path::new("/proc/self").exists() => {
            // With /proc mounted to hide other users' processes this looks the same as a process that has ended.
            return match kill(Pid::from_raw(pid), None) {
                Err(Errno::ESRCH) => Process::Other,
                _ => Process::Unknown("its name is hidden".to_owned()),
            };
        }
        Err(error) => return Process::Unknown(format!("could not find out its name: {error}")),
    }
    // A zombie no longer works anywhere; it still has its name.
    match fs::metadata(folder.join("cwd")) {
        Ok(metadata) if (metadata.dev(), metadata.ino()) == data_directory => Process::Ours,
        Ok(_) => Process::Other,
        Err(error) if is_gone(&error) => Process::Other,
        Err(error) => Process::Unknown(format!("could not find out where it works: {error}")),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// Looks through all processes for one of PostgreSQL that works in the directory.
fn leftover(data_directory: (u64, u64)) -> Running {
    let entries = match fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(error) => return Running::Unknown { reason: format!("could not list processes: {error}") },
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut unknown = None;
    for pid in pids {
        match inspect(pid, data_directory) {
            Process::Ours => return Running::Yes { pid },
            Process::Unknown(reason) => unknown = Some(format!("process {pid}: {reason}")),
            Process::Other => {}
        }
    }
    unknown.map_or(Running::No, |reason| Running::Unknown { reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_pid_files() {
        let text = "4711\n/data\n1700000000\n5432\n/run/postgresql\n*\n  5432001    131072\nready   \n";
        let memory = Some(SharedMemory { key: 5_432_001, id: 131_072 });
        assert_eq!(PidFile::parse(text), Some(PidFile { pid: 4711, status: Some("ready".to_owned()), memory }));
        assert_eq!(PidFile::parse("-4711\n/data\n"), Some(PidFile { pid: 4711, status: None, memory: None }));
        assert_eq!(PidFile::parse(""), None);
        assert_eq!(PidFile::parse("0\n"), None);
        assert_eq!(PidFile::parse("-2147483648\n"), None);
    }

    #[test]
    fn a_number_that_was_given_to_another_process_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(is_running(folder.path()), Running::No);
        assert_eq!(is_running(&folder.path().join("absent")), Running::No);
        fs::write(folder.path().join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
        // Other users' servers may be hidden from us, but never a "yes".
        assert!(!matches!(is_running(folder.path()), Running::Yes { .. }));
        fs::write(folder.path().join("postmaster.pid"), "").unwrap();
        assert!(matches!(is_running(folder.path()), Running::Unknown { .. }));
    }

    #[test]
    fn the_kernels_table_says_who_is_attached() {
        let table = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid\n\
                     \x20 10259885      32768   600                    56 21772 21803      3   101   104\n\
                     -100259885     -32769   600                    56 21772 21803      0   101   104\n";
        let attached = |line: &str| SharedMemory::parse(line).and_then(|memory| memory.attached(table));
        assert_eq!(attached(" 10259885     32768"), Some(3));
        assert_eq!(attached("18446744073609291731  4294934527"), Some(0));
        assert_eq!(attached(&format!("{} {}", -100_259_885_i64 as u64, -32769_i64 as u64)), Some(0));
        // A segment of this number that was made for something else.
        assert_eq!(attached(" 10259886     32768"), None);
        assert_eq!(attached(""), None);
    }

    #[test]
    fn a_server_that_is_nowhere_to_be_seen_is_not_proved_to_have_stopped() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(prove_stopped(folder.path()), Running::No);
        assert_eq!(prove_stopped(&folder.path().join("absent")), Running::No);
        // As a container beside a server's sees it: number 1 is there, and not PostgreSQL.
        for (pid, memory) in [("1", "  12345678  87654321"), ("1", ""), ("2147483647", "  12345678  87654321")] {
            let text = format!("{pid}\n/data\n1700000000\n5432\n/run/postgresql\n*\n{memory}\nready   \n");
            fs::write(folder.path().join("postmaster.pid"), text).unwrap();
            assert!(matches!(prove_stopped(folder.path()), Running::Unknown { .. }), "{pid} {memory}");
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        // Not a directory: neither "not found" nor readable, for root as well.
        assert!(matches!(is_running(&file.join("data")), Running::Unknown { .. }));
    }

    proptest! {
        #[test]
        fn no_pid_file_makes_it_panic(text in "[-0-9\n a-z]{0,60}") {
            if let Some(file) = PidFile::parse(&text) {
                prop_assert!(file.pid > 0);
            }
        }
    }
}
