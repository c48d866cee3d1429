//! Every process is killed at random moments: nothing unreadable, nothing half, nothing lost beyond the promise.

use std::time::{Duration, Instant};

use holdfast_testkit::{Postgres, StartError, require, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::chance::{Chance, rounds};
use crate::load::{Load, await_writes};
use crate::process::Background;
use crate::site::{BOUND, Site};

/// What may be lost with the server while the receiver streams.
const LOSS_SECONDS: f64 = 1.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Backup,
    Receive,
    Push,
    Restore,
    Get,
    Server,
}

const VICTIMS: [Victim; 6] =
    [Victim::Backup, Victim::Restore, Victim::Get, Victim::Server, Victim::Receive, Victim::Push];

/// All that is killed, and what it takes to go on.
struct Story {
    chance: Chance,
    server: Postgres,
    load: Load,
    site: Site,
    receiver: Background,
}

#[test]
fn kills_at_random_moments() {
    let version = require(15);
    let chance = Chance::new("kills");
    let server = Postgres::build(&version).setting("archive_mode", "on").start();
    let load = Load::on(&server, 5);
    let site = Site::with_spool(&server);
    let push = site.shell_command("--quiet wal push chat %p");
    server.sql(&format!("alter system set archive_command = '{push}'; select pg_reload_conf()"));
    let receiver = site.receive(&server, &[]);
    site.backup();
    let mut story = Story { chance, server, load, site, receiver };
    for round in 0..rounds(6, 1) {
        // All in turn first, then any.
        let turn = if round < 6 { round } else { story.chance.number(6) };
        let victim = VICTIMS[turn as usize];
        let start = Instant::now();
        story = story.round(victim);
        story.site.verify();
        println!("round {round}: {victim:?} was killed, all is well, {:.1} s", start.elapsed().as_secs_f64());
    }
    // After all that, nothing that was acknowledged is missing.
    story.site.await_durable(&story.server);
    let restored = story.site.restore("restored", &[]);
    assert_eq!(story.load.expect_loss_within(&restored.server, 0.0).lost, 0);
    restored.prove_clean();
    story.receiver.stop();
    story.site.verify();
}

impl Story {
    fn round(mut self, victim: Victim) -> Self {
        let seed = self.chance.number(u64::MAX);
        // No more than an unoptimised build reads back quickly.
        let running = self.load.start_with(|options| (options.seed, options.rate) = (seed, Some(500.0)));
        match victim {
            Victim::Backup => {
                let backup = self.site.start(&["backup", "chat", "--fast"]);
                self.chance.pause(Duration::ZERO, Duration::from_millis(1500));
                backup.kill_9();
            }
            Victim::Receive => {
                self.chance.pause(Duration::ZERO, Duration::from_millis(500));
                assert!(self.receiver.kill_9());
                self.chance.pause(Duration::ZERO, Duration::from_millis(500));
                self.receiver = self.site.receive(&self.server, &[]);
            }
            Victim::Push => self.kill_pushes(),
            Victim::Restore => self.kill_restore(),
            Victim::Get => self.kill_gets(),
            Victim::Server => {
                self.chance.pause(Duration::ZERO, Duration::from_secs(1));
                let interruptions = self.receiver.said("was interrupted");
                self.server.kill_9();
                running.wait().expect("the lab runs");
                let receiver = &self.receiver;
                wait_until(BOUND, "the receiver to notice", || receiver.said("was interrupted") > interruptions);
                let restored = self.site.restore("lost", &[]);
                self.load.expect_loss_within(&restored.server, LOSS_SECONDS);
                restored.prove_clean();
                self.server.start();
                self.site.await_streaming(&self.server, &mut self.receiver);
                return self;
            }
        }
        await_writes(&running, 100);
        running.stop().expect("the lab runs");
        self.receiver.expect_running();
        self
    }

    /// `archive_command` dies, and the server tries again.
    fn kill_pushes(&mut self) {
        let mark = format!("{} --config", self.site.path("holdfast").display());
        self.server.sql("select pg_switch_wal()");
        let begun = Instant::now();
        let pid = loop {
            match find(&[&mark, "wal push"]) {
                Some(pid) => break pid,
                None => assert!(begun.elapsed() < BOUND, "no `wal push` was ever seen"),
            }
        };
        self.chance.pause(Duration::ZERO, Duration::from_millis(30));
        // It may have ended by now, which is another moment to be killed at.
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        // The archiver ends with its command. The server starts another one when it is woken, ten seconds later at best.
        let waiting = "select pg_reload_conf(), count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
        wait_until(BOUND, "all to be archived", || self.server.sql(waiting) == "t|0");
    }

    /// What is left cannot be started; restoring again works, in the same place.
    fn kill_restore(&mut self) {
        let directory = self.site.path("half");
        let to = directory.display().to_string();
        let restore = self.site.start(&["restore", "chat", "--to", &to]);
        self.chance.pause(Duration::ZERO, Duration::from_millis(1500));
        let was_killed = restore.kill_9();
        if was_killed && directory.exists() && !directory.join("global/pg_control").exists() {
            let half = Postgres::open(self.server.version(), &directory).try_start();
            assert!(matches!(half, Err(StartError::Ended { .. })), "a half restore was started: {half:?}");
        } else if directory.exists() {
            // It was complete: then it may be started, and is not overwritten.
            self.site.run(&["restore", "chat", "--to", &to]).expect(11);
            std::fs::remove_dir_all(&directory).expect("it is ours");
        }
        self.site.restore("half", &[]).prove_clean();
    }

    /// `restore_command` dies: recovery may stop then, but never takes it for the end of the log.
    fn kill_gets(&mut self) {
        self.site.await_durable(&self.server);
        let counted = self.server.sql_in("im", "select count(*) from messages");
        let directory = self.site.path("got");
        let to = directory.display().to_string();
        self.site.run(&["restore", "chat", "--to", &to]).expect(0);
        let mark = format!("{} ", self.site.path("holdfast").display());
        let mut opened = Postgres::open(self.server.version(), &directory).prepare();
        let killed = std::thread::scope(|scope| {
            let delay = self.chance.number(20_000);
            let killer = scope.spawn(move || {
                let begun = Instant::now();
                while begun.elapsed() < BOUND {
                    let Some(pid) = find(&[&mark, "wal get"]) else { continue };
                    std::thread::sleep(Duration::from_micros(delay));
                    return kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok();
                }
                false
            });
            let outcome = opened.try_start();
            let killed = killer.join().expect("the killer does not panic");
            if let Err(StartError::Ended { .. }) = outcome {
                opened.start();
            }
            killed
        });
        assert!(killed, "no `wal get` was ever seen");
        let server = opened;
        // The log goes on growing while recovery follows it.
        wait_until(3 * BOUND, "the end of recovery", || {
            server.try_sql("select pg_is_in_recovery()").is_ok_and(|is| is == "f")
        });
        let restored: u64 = server.sql_in("im", "select count(*) from messages").parse().expect("a count");
        assert!(restored >= counted.parse().expect("a count"), "{restored} of {counted} messages:\n{}", server.log());
        drop(server);
        std::fs::remove_dir_all(&directory).expect("it is ours");
    }
}

/// A process whose command line has all these words, but not a shell that only carries them.
pub(crate) fn find(words: &[&str]) -> Option<i32> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with(words[0]) && words.iter().all(|word| line.contains(word)) {
            return Some(pid);
        }
    }
    None
}
