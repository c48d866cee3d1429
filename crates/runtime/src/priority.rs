use nix::errno::Errno;

/// The kernel's I/O scheduling class of a thread (ioprio_set(2)). Schedulers without priorities pass it over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoClass {
    /// As any other program.
    Normal,
    /// After everybody else of the same class.
    #[default]
    Low,
    /// Only when nobody else wants the disk.
    Idle,
}

/// Lowers the priority of the calling thread, for as long as it lives: nobody may raise it again without privileges.
///
/// `nice` counts from 0 (as any other program) to 19. Both weigh threads of one control group against each other only.
pub fn lower_thread(nice: i32, io: IoClass) -> Result<(), Errno> {
    if nice > 0 {
        set_nice(nice)?;
    }
    // The kernel's IOPRIO_PRIO_VALUE: three bits of class above thirteen of data.
    let (class, level) = match io {
        IoClass::Normal => return Ok(()),
        IoClass::Low => (2, 7),
        IoClass::Idle => (3, 0),
    };
    set_io_priority(class << 13 | level)
}

#[expect(unsafe_code, reason = "no library offers setpriority for a thread without")]
fn set_nice(nice: i32) -> Result<(), Errno> {
    // On Linux 0 stands for the calling thread, not for its process (setpriority(2), "C library/kernel differences").
    // SAFETY: the call takes numbers only and touches no memory of ours.
    Errno::result(unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

#[expect(unsafe_code, reason = "the C library has no wrapper for ioprio_set")]
fn set_io_priority(value: i32) -> Result<(), Errno> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: the call takes numbers only and touches no memory of ours.
    let outcome = unsafe { nix::libc::syscall(nix::libc::SYS_ioprio_set, WHO_PROCESS, 0, value) };
    Errno::result(outcome).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nineteenth field of `stat` (proc_pid_stat(5)).
    fn nice_of_this_thread() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        fields.split_whitespace().nth(16).unwrap().parse().unwrap()
    }

    #[test]
    fn only_the_thread_that_asks_is_lowered() {
        let before = nice_of_this_thread();
        let lowered = std::thread::spawn(|| {
            lower_thread(15, IoClass::Idle).unwrap();
            nice_of_this_thread()
        });
        assert_eq!(lowered.join().unwrap(), 15);
        assert_eq!(nice_of_this_thread(), before);
    }

    #[test]
    fn normal_leaves_everything_as_it_is() {
        let before = nice_of_this_thread();
        lower_thread(0, IoClass::Normal).unwrap();
        assert_eq!(nice_of_this_thread(), before);
    }
}
