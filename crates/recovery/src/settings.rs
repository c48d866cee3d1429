//! What a restored cluster is told: where its log comes from and where to stop. Pure text.

use holdfast_postgres::cluster::config::quote;
use holdfast_types::Timeline;

use crate::plan::{Target, time};

/// The lines that Holdfast adds to `postgresql.auto.conf` begin here, and end with the file.
const HEADING: &str = "# Recovery settings by holdfast restore";

/// Settings that must not survive from the cluster's former life.
const REPLACED: [&str; 11] = [
    "restore_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "recovery_end_command",
    "archive_cleanup_command",
];

/// What keeps a copy from archiving, from streaming from a primary, and from waiting at every commit for a synchronous
/// standby that only its original has.
const ISOLATING: [(&str, &str); 4] =
    [("archive_mode", "off"), ("primary_conninfo", ""), ("primary_slot_name", ""), ("synchronous_standby_names", "")];

/// What to write.
#[derive(Debug)]
pub(crate) struct Recovery<'a> {
    pub target: &'a Target,
    pub timeline: Timeline,
    pub restore_command: &'a str,
    /// Keep the copy apart from the standbys and the archive of its original.
    pub isolated: bool,
}

impl Recovery<'_> {
    /// The content of `postgresql.auto.conf`, from what the snapshot has of it.
    pub(crate) fn auto_conf(&self, before: &str) -> String {
        let mut text = String::new();
        for line in before.lines() {
            if line == HEADING {
                break;
            }
            let is_dropped = name_of(line).is_some_and(|name| {
                REPLACED.contains(&name.as_str())
                    || self.isolated && ISOLATING.iter().any(|(setting, _)| *setting == name)
            });
            if !is_dropped {
                text.push_str(line);
                text.push('\n');
            }
        }
        let mut set = |name: &str, value: &str| text.extend([name, " = ", &quote(value), "\n"]);
        set("restore_command", self.restore_command);
        set("recovery_target_timeline", &self.timeline.to_string());
        set("recovery_target_action", "promote");
        match self.target {
            // The log that is served ends there.
            Target::Latest | Target::Consistent => {}
            Target::Time(at) => {
                // With a numeric zone: PostgreSQL 15 and older refuse a trailing Z here.
                set("recovery_target_time", &time(*at).replace('T', " ").replace('Z', "+00"));
                set("recovery_target_inclusive", "on");
            }
            Target::Lsn(lsn) => {
                set("recovery_target_lsn", &lsn.to_string());
                set("recovery_target_inclusive", "on");
            }
            Target::Name(name) => set("recovery_target_name", name),
        }
        if self.isolated {
            for (name, value) in ISOLATING {
                set(name, value);
            }
        }
        // The heading goes in front of our lines, behind what was there.
        let ours = text.find("restore_command = ").unwrap_or(text.len());
        text.insert_str(ours, &format!("{HEADING}\n"));
        text
    }
}

/// The setting that a line of a configuration file sets.
fn name_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.')?;
    Some(line.get(..end)?.to_ascii_lowercase()).filter(|name| !name.is_empty())
}

/// A main configuration file that was kept outside the data directory, made to work inside it.
pub(crate) fn adapt_main_conf(before: &str) -> String {
    let moved = ["data_directory", "hba_file", "ident_file", "external_pid_file", "config_file"];
    let mut text = String::new();
    for line in before.lines() {
        if name_of(line).is_some_and(|name| moved.contains(&name.as_str())) {
            text.push_str("#holdfast: the restored copy keeps its files in the data directory: ");
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_types::{Lsn, Micros};

    fn recovery(target: &Target) -> Recovery<'_> {
        Recovery { target, timeline: Timeline::new(3), restore_command: "holdfast wal get 'x' %f %p", isolated: false }
    }

    #[test]
    fn old_targets_do_not_survive() {
        let before = "# auto\nwork_mem = '8MB'\nrecovery_target_time='2020-01-01'\n  Restore_Command = 'cp x'\narchive_mode = 'on'\n";
        let target = Target::Time(Micros::new(1_763_716_500_123_456));
        let text = recovery(&target).auto_conf(before);
        assert_eq!(
            text,
            "# auto\nwork_mem = '8MB'\narchive_mode = 'on'\n# Recovery settings by holdfast restore\n\
             restore_command = 'holdfast wal get ''x'' %f %p'\nrecovery_target_timeline = '3'\n\
             recovery_target_action = 'promote'\nrecovery_target_time = '2025-11-21 09:15:00.123456+00'\n\
             recovery_target_inclusive = 'on'\n"
        );
        // Restoring a restored cluster again gives the same, not more.
        assert_eq!(recovery(&target).auto_conf(&text), text);
    }

    #[test]
    fn only_one_target_is_written() {
        for (target, count) in [
            (Target::Latest, 0),
            (Target::Lsn(Lsn::new(0x1_0000_0028)), 1),
            (Target::Name("before".to_owned()), 1),
            (Target::Consistent, 0),
        ] {
            let text = recovery(&target).auto_conf("");
            let targets = ["recovery_target =", "recovery_target_lsn", "recovery_target_name", "recovery_target_time "];
            assert_eq!(targets.iter().filter(|name| text.contains(**name)).count(), count, "{text}");
        }
    }

    #[test]
    fn an_isolated_copy_does_not_archive() {
        let before = "archive_mode = 'on'\nsynchronous_standby_names = 'holdfast_chat'\n";
        let text = Recovery { isolated: true, ..recovery(&Target::Latest) }.auto_conf(before);
        assert!(text.contains("archive_mode = 'off'") && !text.contains("archive_mode = 'on'"), "{text}");
        // It would take no write: nobody is there to confirm it.
        assert!(text.contains("synchronous_standby_names = ''") && !text.contains("holdfast_chat"), "{text}");
    }

    #[test]
    fn places_of_files_are_taken_out_of_a_moved_configuration() {
        let text = adapt_main_conf("data_directory = '/var/lib/x'\nport = 5433\n hba_file='/etc/x'\n#hba_file = 'y'\n");
        let active: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(active, ["port = 5433"]);
    }
}
