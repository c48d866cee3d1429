//! The judge.
//!
//! *Consistency*: everything is read in one snapshot, so the judge may work beside writers, though what they write
//! meanwhile counts as lost. It only reads, so a standby can be judged too. Indexes are not trusted: the rows that are
//! compared come from the tables themselves.

mod markers;
mod rows;
mod structure;

use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;
use tokio_postgres::{IsolationLevel, Transaction};

use crate::connection::{connect, parse};
use crate::error::LabError;
use crate::journal::{Acknowledgement, Entry, Journal, Kind, Outcome};
use crate::load::{self, LoadSummary};
use crate::report::{Problem, Report};

/// How much is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// Everything.
    #[default]
    Full,
    /// What was written after the load, and whatever that refers to.
    Written,
}

/// How to judge.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// The moment that the database was brought back to. Writes acknowledged before it must be there, writes sent
    /// after it must not. Without it all acknowledged writes must be there.
    pub at: Option<Timestamp>,
    /// How many seconds of acknowledged writes may be missing at the end. They are reported all the same.
    pub allowed_loss_seconds: f64,
    /// How much is looked at.
    pub depth: Depth,
}

pub(crate) async fn check(conninfo: &str, paths: &[PathBuf], options: &CheckOptions) -> Result<Report, LabError> {
    let start = Instant::now();
    let journal = Journal::read(paths)?;
    let mut client = connect(&parse(conninfo)?).await?;
    let failed = LabError::database("read the database");
    client.batch_execute(SESSION).await.map_err(&failed)?;
    let transaction = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = transaction.start().await.map_err(&failed)?;
    let load = load::summary(&transaction).await?;
    if let Some(path) = journal.foreign_to(load.load_id) {
        return Err(LabError::ForeignJournal { path: path.to_owned() });
    }
    let mut judge = Judge::new(&journal, load, *options);
    judge.look(&transaction).await.map_err(&failed)?;
    transaction.rollback().await.map_err(&failed)?;
    judge.conclude();
    judge.report.seconds = start.elapsed().as_secs_f64();
    Ok(judge.report)
}

const SESSION: &str = "set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; \
     set work_mem = '256MB'; set statement_timeout = 0; set jit = off";

/// What is known so far.
struct Judge<'a> {
    journal: &'a Journal,
    load: LoadSummary,
    options: CheckOptions,
    /// In microseconds since 1970.
    at_us: Option<i64>,
    /// Which entries are in the database.
    present: Vec<bool>,
    /// Which entries have their attachment there.
    attached: Vec<bool>,
    /// Written messages: conversation, seq, id, time.
    written: Vec<(i64, i64, i64, i64)>,
    report: Report,
}

impl<'a> Judge<'a> {
    fn new(journal: &'a Journal, load: LoadSummary, options: CheckOptions) -> Self {
        let count = journal.entries().len();
        Self {
            journal,
            load,
            options,
            at_us: options.at.map(Timestamp::as_microsecond),
            present: vec![false; count],
            attached: vec![false; count],
            written: Vec::new(),
            report: Report::default(),
        }
    }

    async fn look(&mut self, transaction: &Transaction<'_>) -> Result<(), tokio_postgres::Error> {
        self.look_at_messages(transaction).await?;
        self.look_at_attachments(transaction).await?;
        self.look_at_orders(transaction).await?;
        self.look_at_markers(transaction).await?;
        self.look_at_structure(transaction).await
    }

    /// What the server answered, if this write must be in the database.
    fn expected(&self, entry: &Entry) -> Option<Acknowledgement> {
        match entry.outcome {
            Outcome::Acknowledged(answer) if self.at_us.is_none_or(|at| answer.at_us < at) => Some(answer),
            _ => None,
        }
    }

    fn mark_present(&mut self, position: usize) {
        self.present[position] = true;
    }

    fn conclude(&mut self) {
        self.count_outcomes();
        self.count_losses();
        self.check_order();
        self.report.conclude(self.options.allowed_loss_seconds);
    }

    fn count_outcomes(&mut self) {
        for (entry, present) in self.journal.entries().iter().zip(&self.present) {
            let report = &mut self.report;
            match entry.outcome {
                Outcome::Acknowledged(_) => report.acknowledged += 1,
                Outcome::InDoubt => {
                    report.in_doubt += 1;
                    report.in_doubt_present += u64::from(*present);
                }
                Outcome::Rejected if *present => {
                    report.add(Problem::Invented, || format!("{} is there, but was refused", describe(entry)));
                }
                Outcome::Rejected => {}
            }
            if *present && self.at_us.is_some_and(|at| entry.sent_us > at) {
                report.add(Problem::TooNew, || format!("{} was sent at {}", describe(entry), time(entry.sent_us)));
            }
        }
    }

    fn count_losses(&mut self) {
        let newest_sent = self.newest_sent_present();
        let ends = self.ends_of_conversations();
        let (mut last_expected, mut newest_present, mut oldest_lost) = (None, None, None);
        for (entry, present) in self.journal.entries().iter().zip(&self.present) {
            let Some(answer) = self.expected(entry) else { continue };
            let report = &mut self.report;
            report.expected += 1;
            last_expected = last_expected.max(Some(answer.at_us));
            if *present {
                newest_present = newest_present.max(Some(answer.at_us));
                continue;
            }
            match entry.kind {
                Kind::Message => report.lost_messages += 1,
                Kind::Marker => report.lost_markers += 1,
                Kind::Order => report.lost_orders += 1,
            }
            report.add(Problem::Lost, || {
                format!(
                    "{} (id {}, seq {}), acknowledged at {}",
                    describe(entry),
                    answer.id,
                    answer.seq,
                    time(answer.at_us)
                )
            });
            oldest_lost = Some(oldest_lost.unwrap_or(answer.at_us).min(answer.at_us));
            let goes_on =
                entry.kind == Kind::Message && ends.get(&entry.conversation).is_some_and(|end| *end > answer.seq);
            if goes_on {
                report.holes_in_conversations += 1;
            }
            if newest_sent.is_some_and(|sent| sent > answer.at_us) {
                report.holes_in_time += 1;
            }
            if goes_on || newest_sent.is_some_and(|sent| sent > answer.at_us) {
                report.example(Problem::Hole, || {
                    format!(
                        "{} (id {}, seq {}) is lost, and later writes are there",
                        describe(entry),
                        answer.id,
                        answer.seq
                    )
                });
            }
        }
        let first_sent = self.journal.entries().iter().map(|entry| entry.sent_us).min();
        let seconds_to_last = |from: Option<i64>| match (from, last_expected) {
            (Some(from), Some(last)) => (last - from) as f64 / 1e6,
            _ => 0.0,
        };
        self.report.behind_seconds = seconds_to_last(newest_present.or(first_sent));
        self.report.loss_window_seconds = seconds_to_last(oldest_lost);
        self.report.last_expected = last_expected.map(time);
        self.report.newest_present = newest_present.map(time);
    }

    /// When the latest write that is there was sent.
    fn newest_sent_present(&self) -> Option<i64> {
        let there = self.journal.entries().iter().zip(&self.present).filter(|(_, present)| **present);
        there.map(|(entry, _)| entry.sent_us).max()
    }

    /// The highest number that is there in each conversation that was written to.
    fn ends_of_conversations(&self) -> std::collections::HashMap<i64, i64> {
        let mut ends = std::collections::HashMap::new();
        for (conversation, seq, _, _) in &self.written {
            let end = ends.entry(*conversation).or_insert(*seq);
            *end = (*end).max(*seq);
        }
        ends
    }
}

fn describe(entry: &Entry) -> String {
    let kind = match entry.kind {
        Kind::Message => "message",
        Kind::Marker => "read marker",
        Kind::Order => "order",
    };
    format!("{kind} {:016x} of user {} in conversation {}", entry.operation, entry.user, entry.conversation)
}

fn time(micros: i64) -> String {
    Timestamp::from_microsecond(micros).map_or_else(|_| format!("{micros} us"), |time| time.to_string())
}
