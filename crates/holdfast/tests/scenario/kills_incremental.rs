//! Everything that incremental backups and restores over a copy rest on is killed at random moments: what is made and
//! restored next is right, page by page.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_testkit::{Postgres, StopMode, require};

use crate::chance::{Chance, rounds};
use crate::incremental::Story;
use crate::pages::expect_twins;
use crate::process::Background;
use crate::site::{BOUND, Site};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// A backup that builds on another, anywhere on its way.
    Backup,
    /// The receiver, as it stores the change map of what it has seen.
    Receive,
    /// A backup whose snapshot exists, as it merges the change maps.
    Merge,
    /// A restore over a copy.
    Delta,
}

const VICTIMS: [Victim; 4] = [Victim::Merge, Victim::Delta, Victim::Receive, Victim::Backup];

/// Within which time a victim is killed. Finds out by itself how long the victim lives: two of three kills hit, and every
/// moment of its life can be the one, on any machine.
#[derive(Debug)]
struct Window {
    what: &'static str,
    span: Duration,
    tries: u32,
    hits: u32,
}

impl Window {
    fn new(what: &'static str, milliseconds: u64) -> Self {
        Self { what, span: Duration::from_millis(milliseconds), tries: 0, hits: 0 }
    }

    fn pause(&self, chance: &mut Chance) {
        chance.pause(Duration::ZERO, self.span);
    }

    fn note(&mut self, is_hit: bool) {
        self.tries += 1;
        self.hits += u32::from(is_hit);
        self.span = self.span.mul_f64(if is_hit { 1.3 } else { 0.6 }).max(Duration::from_micros(100));
    }

    /// Kills it at a random moment; whether it still ran.
    fn kill(&mut self, process: Background, chance: &mut Chance) -> bool {
        self.pause(chance);
        let is_hit = process.kill_9();
        self.note(is_hit);
        is_hit
    }
}

#[derive(Debug)]
struct Windows {
    backup: Window,
    ending: Window,
    streaming: Window,
    merge: Window,
    delta: Window,
}

/// Rows of a table of which a page changes here and there, and is not touched again: only one map knows of it.
const ASIDE: u64 = 20_000;

#[test]
fn kills_of_what_is_incremental() {
    let mut chance = Chance::new("kills of what is incremental");
    // Small segments: many of them become whole while the others go on.
    let mut story = Story::on(Postgres::build(&require(15)).initdb_arg("--wal-segsize=1"));
    let mut windows = Windows {
        backup: Window::new("backup before its snapshot exists, or after", 300),
        ending: Window::new("receiver that was asked to end", 20),
        streaming: Window::new("receiver before its map of 64 MiB is there", 500),
        merge: Window::new("backup whose snapshot exists", 10),
        delta: Window::new("restore over a copy", 300),
    };
    story.server.sql(&format!(
        "create table aside as select i as id, repeat(md5(i::text), 5) as text from generate_series(0, {ASIDE} - 1) i;
         create index on aside (id); vacuum freeze aside"
    ));
    let mut receiver = story.site.receive(&story.server, &[]);
    story.site.backup();
    let mut unbuilt = 0;
    for round in 0..rounds(4, 1) {
        // All in turn first, then any.
        let turn = if round < 4 { round } else { chance.number(4) };
        let victim = VICTIMS[turn as usize];
        let begun = Instant::now();
        story.deeds(&mut chance, 3);
        for _ in 0..=chance.number(3) {
            match victim {
                Victim::Backup => kill_backup(&mut story, &mut windows.backup, &mut chance),
                Victim::Receive => receiver = kill_receiver(&mut story, receiver, &mut windows, &mut chance),
                Victim::Merge => receiver = kill_merge(&mut story, receiver, &mut windows.merge, &mut chance),
                Victim::Delta => {}
            }
        }
        story.site.await_durable(&story.server);
        // What was merged is read by those that go back to the full backup.
        let kind = if victim == Victim::Merge { "differential" } else { kind(&mut chance) };
        let report = story.site.run(&["backup", "chat", "--json", "--fast", "--type", kind]).expect(0).json();
        let snapshot = &report["snapshot"];
        unbuilt += u64::from(snapshot["kind"] == "full");
        story.site.verify();
        story.deeds(&mut chance, 2);
        story.site.await_durable(&story.server);
        story.server.stop(StopMode::Fast);
        receiver.stop();
        if victim == Victim::Delta {
            for _ in 0..=chance.number(3) {
                kill_restore(&story.site, &mut windows.delta, &mut chance);
            }
        }
        // Over what the round before left, or what the kill left of that.
        let is_delta = victim == Victim::Delta || chance.number(2) == 0;
        let (name, arguments) = if is_delta { ("copy", vec!["--delta"]) } else { ("plain", vec![]) };
        let mut restored = story.site.restore(name, &arguments);
        assert_eq!(restored.report["plan"]["snapshot"]["id"], snapshot["id"], "{:#}", restored.report);
        restored.server.stop(StopMode::Fast);
        expect_twins(restored.server.data_directory(), story.server.data_directory());
        if !is_delta {
            restored.discard();
        }
        story.server.start();
        receiver = story.site.receive(&story.server, &[]);
        println!(
            "round {round}: {victim:?} was killed, all is well: {} of {kind}, read {} of {}, notes {}, {:.1} s",
            snapshot["kind"],
            snapshot["read_bytes"],
            snapshot["bytes"],
            report["notes"],
            begun.elapsed().as_secs_f64()
        );
    }
    receiver.stop();
    story.site.verify();
    let Windows { backup, ending, streaming, merge, delta } = windows;
    for Window { what, span, tries, hits } in [backup, ending, streaming, merge, delta] {
        println!("{hits} of {tries} kills hit a {what}, within {span:?}");
        assert!(tries < 10 || hits * 3 >= tries, "most kills missed the {what}");
    }
    // No accident here excuses one.
    assert_eq!(unbuilt, 0, "backups read everything");
}

fn kind(chance: &mut Chance) -> &'static str {
    if chance.number(2) == 0 { "differential" } else { "incremental" }
}

/// While the server works.
fn kill_backup(story: &mut Story, window: &mut Window, chance: &mut Chance) {
    let deeds: Vec<_> = (0..3).map(|_| story.choose(chance)).collect();
    let backup = story.site.start(&["backup", "chat", "--fast", "--type", kind(chance)]);
    let server = &story.server;
    std::thread::scope(|scope| {
        scope.spawn(|| deeds.iter().for_each(|deed| drop(server.sql(deed))));
        window.kill(backup, chance);
    });
}

/// A map is stored when the receiver ends, and after each 64 MiB.
fn kill_receiver(story: &mut Story, receiver: Background, windows: &mut Windows, chance: &mut Chance) -> Background {
    story.deeds(chance, 2);
    if chance.number(2) == 0 {
        receiver.ask_to_end();
        windows.ending.kill(receiver, chance);
    } else {
        let before = change_maps(&story.site);
        story.server.sql(
            "select count(pg_logical_emit_message(false, 'long', repeat('x', 1 << 20))) from generate_series(1, 66)",
        );
        windows.streaming.pause(chance);
        windows.streaming.note(change_maps(&story.site) == before);
        assert!(receiver.kill_9());
    }
    story.site.receive(&story.server, &[])
}

/// Every run of the receiver leaves a map, so there is something to merge.
fn kill_merge(story: &mut Story, mut receiver: Background, window: &mut Window, chance: &mut Chance) -> Background {
    for _ in 0..4 {
        story.server.switch_wal();
        story.server.sql(&format!("update aside set text = md5(text) where id = {}", chance.number(ASIDE)));
        story.deeds(chance, 1);
        story.site.await_durable(&story.server);
        receiver.stop();
        receiver = story.site.receive(&story.server, &[]);
    }
    let (maps, snapshots) = (change_maps(&story.site), snapshots(&story.site));
    let mut backup = story.site.start(&["backup", "chat", "--fast", "--type", kind(chance)]);
    let begun = Instant::now();
    while self::snapshots(&story.site) == snapshots {
        assert!(begun.elapsed() < BOUND, "no snapshot was made");
        assert!(backup.has_ended().is_none_or(|status| status.success()), "{}", backup.log());
    }
    let was_killed = window.kill(backup, chance);
    let after = change_maps(&story.site);
    let (made, gone) = (after.difference(&maps).count(), maps.difference(&after).count());
    println!("merge: killed {was_killed}, {made} maps made, {gone} of {} gone", maps.len());
    receiver
}

fn kill_restore(site: &Site, window: &mut Window, chance: &mut Chance) {
    let copy = site.path("copy").display().to_string();
    window.kill(site.start(&["restore", "chat", "--to", &copy, "--delta"]), chance);
}

fn change_maps(site: &Site) -> BTreeSet<String> {
    names(&site.repository().join("changes"))
}

fn snapshots(site: &Site) -> BTreeSet<String> {
    names(&site.repository().join("snapshots"))
}

/// Of all files below a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(names(&entry.path()));
        } else {
            found.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found
}
