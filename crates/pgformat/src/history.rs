//! Timeline history files: which timelines a timeline descends from and where each was left.
//!
//! Rules from timeline.c (`readTimeLineHistory`, `tliOfPointInHistory`, `tliSwitchPoint`).

use holdfast_types::{Lsn, Timeline};

/// The bytes are not a timeline history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line that is neither empty, nor a comment, nor an entry.
    #[error("line {line} of the history of timeline {timeline} is not `timeline<TAB>position<TAB>reason`")]
    Syntax {
        /// Whose history.
        timeline: Timeline,
        /// Counted from one.
        line: usize,
    },
    /// Timelines only ever grow, parents before children.
    #[error("line {line} of the history of timeline {timeline} is out of order")]
    Order {
        /// Whose history.
        timeline: Timeline,
        /// Counted from one.
        line: usize,
    },
}

/// One parent and where it was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The parent timeline.
    pub timeline: Timeline,
    /// The first position that is no longer the parent's.
    pub switch: Lsn,
    /// Why it was left, in PostgreSQL's words.
    pub reason: String,
}

/// The ancestry of one timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: Timeline,
    entries: Vec<Entry>,
}

impl TimelineHistory {
    /// The history of a timeline that has no parents; the first one has no history file.
    pub const fn root(timeline: Timeline) -> Self {
        Self { timeline, entries: Vec::new() }
    }

    /// Reads `XXXXXXXX.history` of `timeline`.
    pub fn parse(timeline: Timeline, bytes: &[u8]) -> Result<Self, HistoryError> {
        let mut entries: Vec<Entry> = Vec::new();
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line_number = index + 1;
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let entry = parse_entry(line).ok_or(HistoryError::Syntax { timeline, line: line_number })?;
            if entries.last().is_some_and(|last| entry.timeline <= last.timeline) || entry.timeline >= timeline {
                return Err(HistoryError::Order { timeline, line: line_number });
            }
            // A recovery that was to follow a timeline, and stopped before that one began, left an ancestor of it, but
            // PostgreSQL writes the timeline that was to be followed. To it, as here, all in between is empty.
            for earlier in &mut entries {
                earlier.switch = earlier.switch.min(entry.switch);
            }
            entries.push(entry);
        }
        Ok(Self { timeline, entries })
    }

    /// The timeline whose history this is.
    pub const fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Its ancestors, oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Whether replay towards this timeline comes by `lsn` while on `timeline`.
    ///
    /// A switch point belongs to both sides: it is where the parent's last record ends and the child's first begins.
    pub fn contains(&self, timeline: Timeline, lsn: Lsn) -> bool {
        self.span(timeline).is_some_and(|(begin, end)| begin <= lsn && end.is_none_or(|end| lsn <= end))
    }

    /// The timeline that the byte at `lsn` is read from.
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.entries.iter().find(|entry| lsn < entry.switch).map_or(self.timeline, |entry| entry.timeline)
    }

    /// Where `parent` was left; `None` if it is no ancestor.
    pub fn switch_point(&self, parent: Timeline) -> Option<Lsn> {
        self.entries.iter().find(|entry| entry.timeline == parent).map(|entry| entry.switch)
    }

    /// From where to where the path runs on `timeline`; the last part has no end.
    pub fn span(&self, timeline: Timeline) -> Option<(Lsn, Option<Lsn>)> {
        let mut begin = Lsn::ZERO;
        for entry in &self.entries {
            if entry.timeline == timeline {
                return Some((begin, Some(entry.switch)));
            }
            begin = entry.switch;
        }
        (timeline == self.timeline).then_some((begin, None))
    }
}

fn parse_entry(line: &[u8]) -> Option<Entry> {
    let (number, rest) = word(line);
    let (position, reason) = word(rest);
    Some(Entry {
        timeline: Timeline::new(std::str::from_utf8(number).ok()?.parse().ok().filter(|number| *number > 0)?),
        switch: std::str::from_utf8(position).ok()?.parse().ok()?,
        reason: String::from_utf8_lossy(reason).into_owned(),
    })
}

/// The first word and what follows it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (word, rest.trim_ascii_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &[u8] = b"1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t0/5000000\tbefore transaction 731 2026-11-21 09:00:00+00\n";

    fn history() -> TimelineHistory {
        TimelineHistory::parse(Timeline::new(4), FILE).unwrap()
    }

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn follows_the_ancestry() {
        let history = history();
        let line = Timeline::new;
        assert_eq!(history.entries().len(), 2);
        assert_eq!(history.entries()[1].reason, "before transaction 731 2026-11-21 09:00:00+00");
        assert_eq!(history.switch_point(line(2)), Some(lsn("0/5000000")));
        assert_eq!(history.switch_point(line(3)), None, "a timeline may be skipped: another promotion took its number");
        assert_eq!(history.switch_point(line(4)), None);
        assert_eq!(history.timeline_at(lsn("0/3000147")), line(1));
        assert_eq!(history.timeline_at(lsn("0/3000148")), line(2));
        assert_eq!(history.timeline_at(lsn("0/5000000")), line(4));
        assert!(history.contains(line(1), lsn("0/3000148")), "the switch point is on the path of both");
        assert!(history.contains(line(2), lsn("0/3000148")));
        assert!(!history.contains(line(1), lsn("0/3000149")), "the parent went on without us");
        assert!(!history.contains(line(2), lsn("0/3000000")), "before the child was born");
        assert!(!history.contains(line(3), lsn("0/4000000")));
        assert!(history.contains(line(4), lsn("FF/0")));
    }

    #[test]
    fn the_first_timeline_has_no_file() {
        let root = TimelineHistory::root(Timeline::FIRST);
        assert!(root.contains(Timeline::FIRST, lsn("0/0")));
        assert!(!root.contains(Timeline::new(2), lsn("0/0")));
        assert_eq!(TimelineHistory::parse(Timeline::FIRST, b""), Ok(root));
    }

    #[test]
    fn refuses_what_postgresql_refuses() {
        let parse = |text: &str| TimelineHistory::parse(Timeline::new(4), text.as_bytes());
        let timeline = Timeline::new(4);
        assert_eq!(parse("x\t0/1\n"), Err(HistoryError::Syntax { timeline, line: 1 }));
        assert_eq!(parse("1\n"), Err(HistoryError::Syntax { timeline, line: 1 }));
        assert_eq!(parse("1\t0/9\n1\t0/9\n"), Err(HistoryError::Order { timeline, line: 2 }));
        assert_eq!(parse("2\t0/9\n1\t0/9\n"), Err(HistoryError::Order { timeline, line: 2 }));
        assert_eq!(parse("4\t0/9\n"), Err(HistoryError::Order { timeline, line: 1 }));
        assert_eq!(parse("3 0/9").unwrap().switch_point(Timeline::new(3)), Some(lsn("0/9")), "spaces do as well");
    }

    #[test]
    fn a_recovery_may_stop_before_the_timeline_it_follows() {
        let text = b"1\t0/500\tno recovery target specified\n\n2\t0/700\t\n\n3\t0/300\tafter LSN 0/300\n";
        let history = TimelineHistory::parse(Timeline::new(4), text).unwrap();
        assert_eq!(history.timeline_at(lsn("0/299")), Timeline::new(1));
        assert_eq!(history.timeline_at(lsn("0/300")), Timeline::new(4));
        assert!(!history.contains(Timeline::new(1), lsn("0/400")) && !history.contains(Timeline::new(2), lsn("0/600")));
        assert_eq!(history.entries().last().unwrap().switch, lsn("0/300"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            TimelineHistory::parse(Timeline::new(9), &bytes).ok();
        }

        #[test]
        fn what_is_on_a_timeline_is_contained(steps in prop::collection::vec((1u32..3, 0u64..1 << 40), 0..6), at: u64) {
            let (mut timeline, mut switch, mut lines) = (0, 0, Vec::new());
            for (up, bytes) in steps {
                timeline += up;
                switch += bytes;
                lines.push(format!("{timeline}\t{}\treason\n", Lsn::new(switch)));
            }
            let text = lines.concat();
            let history = TimelineHistory::parse(Timeline::new(timeline + 1), text.as_bytes()).unwrap();
            let at = Lsn::new(at >> 20);
            prop_assert!(history.contains(history.timeline_at(at), at));
        }
    }
}
