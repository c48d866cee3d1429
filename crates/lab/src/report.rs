//! What the judge says.

use std::fmt;

use serde::Serialize;

/// How many findings of one kind are kept as examples.
const EXAMPLES: u64 = 10;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Acknowledged and not there, further back than is allowed.
    Lost,
    /// Acknowledged and not there, while something written after the acknowledgement is there.
    Hole,
    /// Sent after the moment that the database was brought back to, and there.
    TooNew,
    /// There, and written by nobody, or refused, or written once and there twice.
    Invented,
    /// There with other content than was written.
    Altered,
    /// There in part: a transaction without its attachment or its read marker.
    Torn,
    /// A conversation whose numbers do not go from 1 to its last one.
    Gap,
    /// A conversation whose ids or times do not follow its numbers, or an answer into another conversation.
    Disorder,
    /// A reference to nothing.
    Dangling,
    /// Two orders with one idempotency key.
    Duplicate,
    /// The data set that was there before any write is not the same.
    LoadChanged,
    /// A foreign key or unique constraint is gone.
    Constraint,
}

/// One example of a problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind.
    pub problem: Problem,
    /// Where.
    pub what: String,
}

/// What the comparison of a database with the journals showed.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(default)]
pub struct Report {
    /// Whether all is as promised.
    pub well: bool,
    /// Acknowledged writes in the journals.
    pub acknowledged: u64,
    /// Acknowledged writes that must be in the database: all, or those up to the moment it was brought back to.
    pub expected: u64,
    /// Writes that ended without an answer.
    pub in_doubt: u64,
    /// Writes without an answer that are in the database.
    pub in_doubt_present: u64,
    /// Expected writes that are not in the database, whatever is allowed.
    pub lost: u64,
    /// Lost messages.
    pub lost_messages: u64,
    /// Lost moves of a read marker.
    pub lost_markers: u64,
    /// Lost orders.
    pub lost_orders: u64,
    /// From the newest expected write that is there to the last expected one, in seconds of acknowledgement.
    pub behind_seconds: f64,
    /// From the oldest lost write to the last expected one, in seconds of acknowledgement: the measured RPO.
    pub loss_window_seconds: f64,
    /// When the last expected write was acknowledged (RFC 3339).
    pub last_expected: Option<String>,
    /// When the newest write that is there was acknowledged (RFC 3339).
    pub newest_present: Option<String>,
    /// Lost messages whose conversation goes on.
    pub holes_in_conversations: u64,
    /// Lost writes that were acknowledged before something that is there was sent.
    pub holes_in_time: u64,
    /// Writes that are there but were sent after the moment.
    pub too_new: u64,
    /// Rows that nobody wrote.
    pub invented: u64,
    /// Rows with other content than was written.
    pub altered: u64,
    /// Writes that are there in part.
    pub torn: u64,
    /// Conversations with a gap.
    pub gaps: u64,
    /// Places where order is broken.
    pub disorder: u64,
    /// References to nothing.
    pub dangling: u64,
    /// Orders whose key is there before.
    pub duplicates: u64,
    /// Tables of the data set that have changed.
    pub load_changed: u64,
    /// Missing constraints.
    pub missing_constraints: u64,
    /// Some examples of each problem.
    pub findings: Vec<Finding>,
    /// How long the judging took.
    pub seconds: f64,
}

impl Report {
    /// Keeps an example, unless there are enough of its kind.
    pub(crate) fn example(&mut self, problem: Problem, what: impl FnOnce() -> String) {
        let known = self.findings.iter().filter(|finding| finding.problem == problem).count() as u64;
        if known < EXAMPLES {
            self.findings.push(Finding { problem, what: what() });
        }
    }

    /// Counts a problem and keeps an example of it.
    pub(crate) fn add(&mut self, problem: Problem, what: impl FnOnce() -> String) {
        self.add_many(problem, 1, what);
    }

    /// Counts several cases of one problem, with one example.
    pub(crate) fn add_many(&mut self, problem: Problem, count: u64, what: impl FnOnce() -> String) {
        let counter = match problem {
            Problem::Lost => &mut self.lost,
            Problem::Hole => &mut self.holes_in_conversations,
            Problem::TooNew => &mut self.too_new,
            Problem::Invented => &mut self.invented,
            Problem::Altered => &mut self.altered,
            Problem::Torn => &mut self.torn,
            Problem::Gap => &mut self.gaps,
            Problem::Disorder => &mut self.disorder,
            Problem::Dangling => &mut self.dangling,
            Problem::Duplicate => &mut self.duplicates,
            Problem::LoadChanged => &mut self.load_changed,
            Problem::Constraint => &mut self.missing_constraints,
        };
        *counter += count;
        self.example(problem, what);
    }

    /// Everything that must be zero whatever loss is allowed, by name.
    pub fn faults(&self) -> [(&'static str, u64); 11] {
        [
            ("holes in conversations", self.holes_in_conversations),
            ("holes in time", self.holes_in_time),
            ("too new", self.too_new),
            ("invented", self.invented),
            ("altered", self.altered),
            ("torn", self.torn),
            ("gaps in conversations", self.gaps),
            ("disorder", self.disorder),
            ("dangling references", self.dangling),
            ("duplicate orders", self.duplicates),
            ("changed data set, constraints", self.load_changed + self.missing_constraints),
        ]
    }

    pub(crate) fn conclude(&mut self, allowed_loss_seconds: f64) {
        let loss_allowed = self.lost == 0 || self.loss_window_seconds <= allowed_loss_seconds;
        self.well = loss_allowed && self.faults().iter().all(|(_, count)| *count == 0);
        self.findings.sort_by_key(|finding| finding.problem);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "verdict                        {}", if self.well { "all well" } else { "FINDINGS" })?;
        writeln!(formatter, "acknowledged writes            {}", self.acknowledged)?;
        writeln!(formatter, "  of them expected             {}", self.expected)?;
        writeln!(formatter, "  of them lost                 {}", self.lost)?;
        writeln!(formatter, "behind                         {:.3} s", self.behind_seconds)?;
        writeln!(formatter, "loss window                    {:.3} s", self.loss_window_seconds)?;
        writeln!(formatter, "in doubt (of them there)       {} ({})", self.in_doubt, self.in_doubt_present)?;
        for (name, count) in self.faults() {
            writeln!(formatter, "{name:<30} {count}")?;
        }
        for finding in &self.findings {
            writeln!(formatter, "- {:?}: {}", finding.problem, finding.what)?;
        }
        write!(formatter, "judged in {:.1} s", self.seconds)
    }
}
