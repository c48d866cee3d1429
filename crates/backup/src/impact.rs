//! What a backup may cost the database that it reads.
//!
//! Budgets are fixed; the pace is not: a probe asks the database how it does, and the backup yields to it.

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_postgres::client::{self, Client, Purpose};
use holdfast_postgres::conninfo::ConnInfo;
use holdfast_runtime::{IoClass, Pace};
use holdfast_types::ByteSize;

use crate::BackupError;

/// What a backup may take.
#[derive(Clone, Debug, Default)]
pub struct Impact {
    /// Bytes read a second, over all workers.
    pub rate_limit: Option<ByteSize>,
    /// Reads a second, over all workers; one brings at most 1 MiB.
    pub iops_limit: Option<u64>,
    /// How far the workers' priority is lowered, from 0 to 19.
    pub nice: i32,
    pub io_class: IoClass,
    pub latency: LatencyLimit,
}

/// How long the database may take for a probe.
#[derive(Clone, Debug, Default)]
pub struct LatencyLimit {
    pub limit: Limit,
    /// By default a commit on a primary, and an empty query on a standby.
    pub query: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// The database is not asked.
    #[default]
    Off,
    /// Twice what it takes while the backup stands still, as long as anybody uses the database.
    Auto,
    Fixed(Duration),
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            text => {
                let time = text.parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
                let limit = time.filter(|time| (SHORTEST..=LONGEST).contains(time)).ok_or(LimitError)?;
                Ok(Self::Fixed(limit))
            }
        }
    }
}

/// The text is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \"auto\", \"off\", or a time from 0.1ms to 60s")]
pub struct LimitError;

const SHORTEST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_mins(1);

/// A commit that changes nothing: it waits for the disk, and for synchronous standbys.
const COMMIT: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'holdfast', '')";
const NOTHING: &str = "SELECT 1";
const TRANSACTIONS: &str = "SELECT pg_catalog.sum(xact_commit + xact_rollback)::pg_catalog.int8 AS transactions \
                            FROM pg_catalog.pg_stat_database";

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_millis(100);
/// An answer that takes longer slows the backup down before it is there, if the limit is not longer still.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where nothing is answered for so long although the backup all but stands still, it is not the cause: a standby that
/// commits wait for may be down. It goes on, lest there be no backup for as long as that lasts.
const FUTILE: Duration = Duration::from_secs(10);
/// After a connection that failed, and after a count that did.
const RETREAT: Duration = Duration::from_secs(5);

const SECOND: Duration = Duration::from_secs(1);
/// The share of its time that a backup begins with where there are users.
const BEGIN: f64 = 0.25;
/// How often the backup stands still, so that it shows what the database takes without it. That changes with the hour.
const MEASURED_EVERY: Duration = Duration::from_secs(20);
const MEASURED_BY: usize = 5;
/// Until what was begun has come to its end, and between two questions.
const SETTLING: Duration = Duration::from_millis(20);
/// At least so many transactions of others in a second are users.
const USED: f64 = 5.0;

/// Decides how fast to go from what the probe finds: half as fast when the limit is passed, a little faster when not
/// (AIMD, as congestion control does).
#[derive(Clone, Debug)]
struct Governor {
    limit: Duration,
    share: f64,
    /// Never less: a backup has to end, too.
    least: f64,
}

/// Where the operator said how long the database may take.
const LEAST: f64 = 1.0 / 64.0;
/// Where nobody did: on a server that is always busy many answers are late, whatever the backup does.
const LEAST_UNASKED: f64 = 1.0 / 8.0;
/// Small, since one of many answers may be late without the backup as well: it keeps its pace where about one in fifty is.
const STEP: f64 = 1.0 / 64.0;

impl Governor {
    fn new(limit: Duration) -> Self {
        Self { limit, share: 1.0, least: LEAST }
    }

    /// One that finds the limit out.
    fn auto() -> Self {
        Self { limit: Duration::MAX, share: 1.0, least: LEAST_UNASKED }
    }

    /// What an answer took; `None` if there was none.
    fn observe(&mut self, latency: Option<Duration>) -> f64 {
        self.share = match latency {
            Some(latency) if latency <= self.limit => (self.share + STEP).min(1.0),
            _ => (self.share / 2.0).max(self.least),
        };
        self.share
    }

    /// There has been no answer for so long, or no way to ask.
    fn hang(&mut self, time: Duration) -> f64 {
        if time < FUTILE {
            return self.observe(None);
        }
        self.share = BEGIN;
        self.share
    }

    /// How long to wait for an answer before the backup slows down.
    fn patience(&self) -> Duration {
        if self.limit == Duration::MAX { PATIENCE } else { PATIENCE.max(self.limit * 2) }
    }
}

/// What the probe saw while the files were copied.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub probes: u64,
    pub above: u64,
    pub unanswered: u64,
    pub worst: Duration,
    /// Of all probes together.
    shares: f64,
}

impl Seen {
    fn add(&mut self, latency: Option<Duration>, limit: Duration, share: f64) {
        self.probes += 1;
        self.shares += share;
        match latency {
            Some(latency) => {
                self.above += u64::from(latency > limit);
                self.worst = self.worst.max(latency);
            }
            None => self.unanswered += 1,
        }
    }

    /// What the operator should know of a limit that was set.
    fn against(&self, limit: Duration) -> Option<String> {
        let Self { probes, above, unanswered, worst, .. } = self;
        (above + unanswered > 0).then(|| {
            let unanswered =
                if *unanswered > 0 { format!(", and {unanswered} were not answered") } else { String::new() };
            format!(
                "slowed down: {above} of {probes} probes of the database took more than {limit:?}{unanswered}; the worst took {worst:.1?}"
            )
        })
    }

    /// The same where nobody set one: only what made the backup much longer.
    fn yielded(&self) -> Option<String> {
        let share = self.shares / self.probes.max(1) as f64;
        (self.probes > 0 && share < 0.5).then(|| {
            format!(
                "slowed down for the users of the database: it worked {:.0} % of the time (`latency_limit` sets how long \
                 commits may take)",
                share * 100.0
            )
        })
    }
}

/// Asks the database again and again how it does.
pub(crate) struct Probe {
    connection: ConnInfo,
    query: String,
    limit: Limit,
    governor: Governor,
    client: Option<Client>,
    seen: Seen,
    /// Since when the answer is waited for that is not there yet.
    asked_at: Option<Instant>,
    /// Since when no question could even be asked.
    failing_since: Option<Instant>,
    /// Not before then is a connection tried again.
    connect_at: Option<Instant>,
    counted: Option<Counted>,
    looked_at: Option<Instant>,
    is_used: bool,
    measured_at: Option<Instant>,
}

impl Probe {
    /// Proves that the probe works: one that cannot would slow the backup down for nothing. Where nobody asked for it, the
    /// backup goes without. A question that is not answered in time proves nothing: commits may wait for a standby that is
    /// down, which is no time to be without backups.
    pub(crate) async fn begin(
        connection: &ConnInfo,
        limit: &LatencyLimit,
        is_standby: bool,
        source_name: &str,
    ) -> Result<Option<Self>, BackupError> {
        let governor = match limit.limit {
            Limit::Off => return Ok(None),
            Limit::Auto => Governor::auto(),
            Limit::Fixed(limit) => Governor::new(limit),
        };
        let query = limit.query.clone().unwrap_or_else(|| if is_standby { NOTHING } else { COMMIT }.to_owned());
        let mut probe = Self {
            connection: connection.clone(),
            query,
            limit: limit.limit,
            governor,
            client: None,
            seen: Seen::default(),
            asked_at: None,
            failing_since: None,
            connect_at: None,
            counted: None,
            looked_at: None,
            is_used: false,
            measured_at: None,
        };
        match (probe.prove(source_name).await, limit.limit) {
            (Ok(()), _) => {}
            (Err(error), Limit::Auto) => {
                tracing::warn!(%error, "the backup cannot see how the database does, and will not slow down for it");
                return Ok(None);
            }
            (Err(error), _) => return Err(error),
        }
        if limit.limit == Limit::Auto {
            // By when there is something to copy it is known who uses the database.
            probe.look_for_users().await;
        }
        Ok(Some(probe))
    }

    async fn prove(&mut self, source_name: &str) -> Result<(), BackupError> {
        let client = Client::connect(&self.connection, Purpose::Sql)
            .await
            .map_err(|source| BackupError::Connect { source_name: source_name.to_owned(), source })?;
        match tokio::time::timeout(PATIENCE, self.client.insert(client).query(&self.query)).await {
            Ok(Ok(_)) => {}
            Ok(Err(source)) => return Err(BackupError::Probe { query: self.query.clone(), source }),
            Err(_) => {
                tracing::warn!("the database does not answer the probe; the backup begins slowly");
                // When its answer comes is not looked at before there is something to copy, so it says nothing of the time.
                self.governor.share = BEGIN;
                self.is_used = true;
            }
        }
        Ok(())
    }

    /// What the operator should know.
    pub(crate) fn note(&self) -> Option<String> {
        match self.limit {
            Limit::Off => None,
            Limit::Auto => self.seen.yielded(),
            Limit::Fixed(limit) => self.seen.against(limit),
        }
    }

    /// Never returns.
    pub(crate) async fn watch(&mut self, pace: &Arc<Pace>) -> Infallible {
        pace.set(self.governor.share);
        loop {
            if self.limit == Limit::Auto {
                let was_used = self.is_used;
                self.look_for_users().await;
                if !self.is_used {
                    self.governor.share = 1.0;
                    pace.set(1.0);
                    tokio::time::sleep(SECOND).await;
                    continue;
                }
                if !was_used {
                    // A second at full speed is what users of a backup of a minute would remember.
                    self.governor.share = BEGIN;
                    pace.set(BEGIN);
                }
                let is_due = self.measured_at.is_none_or(|at| at.elapsed() >= MEASURED_EVERY);
                if is_due && self.client.as_ref().is_some_and(|client| !client.is_waiting()) {
                    self.measure(pace).await;
                }
            }
            let answer = self.question(self.governor.patience()).await;
            self.heed(answer, pace);
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Takes back a question that hangs: where commits wait for a standby, its session would stay for as long as they do
    /// though nobody is connected to it, one more after each backup.
    pub(crate) async fn end(self) {
        let Some(client) = self.client.filter(Client::is_waiting) else { return };
        if let Err(error) = client.cancel(&self.connection).await {
            tracing::warn!(%error, pid = client.backend_pid(), "the probe's last question may still hang at the server");
        }
    }

    /// Whether there is anybody to slow down for.
    async fn look_for_users(&mut self) {
        let period = if self.is_used { 5 * SECOND } else { SECOND / 5 };
        // What hangs would be waited for here.
        let is_waiting = self.client.as_ref().is_some_and(Client::is_waiting);
        if is_waiting || self.looked_at.is_some_and(|at| at.elapsed() < period) {
            return;
        }
        let now = Instant::now();
        self.looked_at = Some(now);
        match self.count().await {
            Ok(transactions) => match &mut self.counted {
                Some(counted) => {
                    let time = now.duration_since(counted.at);
                    if let Some(others) = counted.others_since(transactions, client::transactions(), now) {
                        self.is_used = others as f64 > USED * time.as_secs_f64();
                    }
                }
                None => self.counted = Some(Counted::new(transactions, now)),
            },
            Err(error) => {
                tracing::warn!(%error, "it is not known whether anybody uses the database");
                self.is_used = true;
            }
        }
    }

    /// Sets the limit by what the database takes without the backup.
    async fn measure(&mut self, pace: &Arc<Pace>) {
        let begun = Instant::now();
        pace.pause();
        let mut latencies = Vec::new();
        while latencies.len() < MEASURED_BY && begun.elapsed() < PATIENCE {
            tokio::time::sleep(SETTLING).await;
            match self.question(PATIENCE).await {
                Answer::After(latency) => latencies.push(latency),
                Answer::Failed | Answer::NotYet(_) => break,
            }
        }
        pace.resume();
        // From now on: what takes long must not be done all the time.
        self.measured_at = Some(Instant::now());
        latencies.sort_unstable();
        if let Some(&median) = latencies.get(latencies.len() / 2) {
            self.governor.limit = twice(median);
            tracing::debug!(?median, limit = ?self.governor.limit, "measured without the backup");
        }
    }

    /// Asks, or goes on waiting for the answer to what was asked before.
    ///
    /// There is never more than one question, on one connection: one that was given up would keep its session at the server
    /// for as long as it hangs, and a new one every second would take all the connections there are.
    async fn question(&mut self, patience: Duration) -> Answer {
        match self.ask(patience).await {
            Ok(answer) => {
                self.failing_since = None;
                answer
            }
            Err(error) => {
                tracing::warn!(%error, "the probe of the database failed");
                (self.client, self.asked_at) = (None, None);
                self.failing_since.get_or_insert_with(Instant::now);
                Answer::Failed
            }
        }
    }

    async fn ask(&mut self, patience: Duration) -> Result<Answer, Failed> {
        let (query, asked_at) = (self.query.clone(), self.asked_at);
        let client = self.connected().await?;
        // Not before there is a connection: how long that takes says nothing of the commits of others.
        let begun = asked_at.unwrap_or_else(Instant::now);
        let asked =
            async { if client.is_waiting() { client.settle().await } else { client.query(&query).await.map(drop) } };
        let is_answered = match tokio::time::timeout(patience, asked).await {
            Ok(outcome) => outcome.map(|()| true)?,
            Err(_) => false,
        };
        self.asked_at = (!is_answered).then_some(begun);
        let time = begun.elapsed();
        Ok(if is_answered { Answer::After(time) } else { Answer::NotYet(time) })
    }

    /// The transactions that all databases of the server have seen.
    async fn count(&mut self) -> Result<u64, Failed> {
        let client = self.connected().await?;
        let counting = tokio::time::timeout(PATIENCE, client.query_one(TRANSACTIONS));
        match counting.await? {
            Ok(row) => Ok(row.parse("transactions")?),
            Err(error) => {
                self.client = None;
                Err(error.into())
            }
        }
    }

    async fn connected(&mut self) -> Result<&mut Client, Failed> {
        if self.client.is_none() {
            // An attempt that is given up may go on at the server, too.
            if let Some(at) = self.connect_at {
                tokio::time::sleep_until(at.into()).await;
            }
            self.connect_at = Some(Instant::now() + RETREAT);
            self.client = Some(Client::connect(&self.connection, Purpose::Sql).await?);
        }
        self.client.as_mut().ok_or_else(|| "there is no connection".into())
    }

    /// Sets the pace by what a question took.
    fn heed(&mut self, answer: Answer, pace: &Pace) {
        let before = self.governor.share;
        let (latency, share) = match answer {
            Answer::After(latency) => (Some(latency), self.governor.observe(Some(latency))),
            Answer::NotYet(time) => (None, self.governor.hang(time)),
            Answer::Failed => {
                let time = self.failing_since.map_or(Duration::ZERO, |since| since.elapsed());
                (None, self.governor.hang(time))
            }
        };
        self.seen.add(latency, self.governor.limit, share);
        if share < before {
            tracing::debug!(?latency, limit = ?self.governor.limit, share, "the backup slows down");
        }
        pace.set(share);
    }
}

/// Transactions that the database counts, of which ours are to be left out.
///
/// It counts a session's late: up to ten seconds after the session has become idle (`PGSTAT_IDLE_INTERVAL` of pgstat.c). So
/// ours count as others' as soon as they are seen, unless what was seen before is compared with what there could have been.
#[derive(Clone, Copy, Debug)]
struct Counted {
    transactions: u64,
    /// As many as others may have made at the most.
    others: u64,
    /// Ours that the database has forgotten.
    forgotten: u64,
    at: Instant,
}

impl Counted {
    /// None of ours may have been counted yet.
    const fn new(transactions: u64, at: Instant) -> Self {
        Self { transactions, others: transactions, forgotten: 0, at }
    }

    /// How many others have made since, as far as that is certain; `None` where it is not known, as what was counted is
    /// gone. `own`: all that this process has ever made.
    fn others_since(&mut self, transactions: u64, own: u64, at: Instant) -> Option<u64> {
        if transactions < self.transactions {
            // Somebody has reset the statistics, or dropped a database.
            *self = Self { forgotten: own, ..Self::new(transactions, at) };
            return None;
        }
        let others = transactions.saturating_sub(own.saturating_sub(self.forgotten));
        let new = others.saturating_sub(self.others);
        (self.transactions, self.others, self.at) = (transactions, self.others + new, at);
        Some(new)
    }
}

/// What became of a question.
#[derive(Clone, Copy, Debug)]
enum Answer {
    After(Duration),
    Failed,
    /// It hangs for so long by now.
    NotYet(Duration),
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Half of it may be the backup's; less than a millisecond more nobody notices.
fn twice(alone: Duration) -> Duration {
    (alone * 2).max(alone + Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    #[test]
    fn it_yields_at_once_and_comes_back_slowly() {
        let mut governor = Governor::new(LIMIT);
        assert_eq!(governor.observe(Some(LIMIT)).to_bits(), 1f64.to_bits());
        assert_eq!(governor.observe(Some(LIMIT * 2)).to_bits(), 0.5f64.to_bits());
        assert!(governor.observe(Some(LIMIT / 2)) < 0.6);
        let steps = (0..100).take_while(|_| governor.observe(Some(LIMIT / 2)) < 1.0).count();
        assert!((20..80).contains(&steps), "{steps}");
    }

    #[test]
    fn no_answer_is_no_good_answer() {
        let mut governor = Governor::new(LIMIT);
        assert_eq!(governor.observe(None).to_bits(), 0.5f64.to_bits());
        assert_eq!(governor.hang(PATIENCE).to_bits(), 0.25f64.to_bits());
        let mut seen = Seen::default();
        seen.add(None, LIMIT, 0.5);
        assert!(seen.against(LIMIT).unwrap().contains("1 were not answered"));
        assert_eq!(Seen::default().against(LIMIT), None);
    }

    #[test]
    fn what_hangs_by_itself_is_not_waited_for() {
        let mut governor = Governor::new(LIMIT);
        for seconds in 1..10 {
            governor.hang(Duration::from_secs(seconds));
        }
        assert_eq!(governor.share.to_bits(), LEAST.to_bits());
        assert_eq!(governor.hang(FUTILE).to_bits(), BEGIN.to_bits());
        assert_eq!(governor.hang(FUTILE * 100).to_bits(), BEGIN.to_bits());
    }

    #[test]
    fn our_own_transactions_are_nobodys_when_they_are_counted_late() {
        let now = Instant::now();
        // Thirty of ours were made before, of which the database has counted ten.
        let mut counted = Counted::new(1000, now);
        assert_eq!(counted.others_since(1020, 30, now), Some(0), "the others of them");
        assert_eq!(counted.others_since(1061, 80, now), Some(0), "nine are not counted yet");
        assert_eq!(counted.others_since(1071, 81, now), Some(0), "they are");
        // What is hidden at first is no more than ours.
        let users: u64 = (1..=4).filter_map(|n| counted.others_since(1071 + n * 50, 81, now)).sum();
        assert!((200 - 81..=200).contains(&users), "{users}");
        assert_eq!(counted.others_since(1271 + 50, 81, now), Some(50));
        assert_eq!(counted.others_since(3, 90, now), None, "reset");
        assert_eq!(counted.others_since(3 + 10 + 25, 100, now), Some(25));
    }

    #[test]
    fn patience_is_of_the_limit_once_there_is_one() {
        let patience = |limit| Governor::new(limit).patience();
        assert_eq!((patience(Duration::MAX), patience(LIMIT), patience(LONGEST)), (PATIENCE, PATIENCE, LONGEST * 2));
    }

    #[test]
    fn only_what_made_it_long_is_told_where_nobody_set_a_limit() {
        let mut seen = Seen::default();
        assert_eq!(seen.yielded(), None);
        seen.add(Some(LIMIT * 2), LIMIT, 0.5);
        assert_eq!(seen.yielded(), None);
        seen.add(Some(LIMIT * 2), LIMIT, 0.25);
        assert!(seen.yielded().unwrap().contains("38 % of the time"), "{:?}", seen.yielded());
    }

    #[test]
    fn limits_are_words_or_times() {
        assert_eq!("auto".parse(), Ok(Limit::Auto));
        assert_eq!("off".parse(), Ok(Limit::Off));
        assert_eq!("20ms".parse(), Ok(Limit::Fixed(LIMIT)));
        for text in ["", "20", "0s", "2min", "Auto", "-1s"] {
            assert_eq!(text.parse::<Limit>(), Err(LimitError), "{text}");
        }
    }

    #[test]
    fn twice_is_at_least_a_millisecond_more() {
        let ms = Duration::from_micros;
        assert_eq!((twice(ms(200)), twice(ms(1000)), twice(ms(8000))), (ms(1200), ms(2000), ms(16_000)));
    }

    proptest! {
        #[test]
        fn it_never_stands_still_nor_hurries(answers in prop::collection::vec(prop::option::of(0u64..100), 0..200)) {
            for mut governor in [Governor::new(LIMIT), Governor { limit: LIMIT, ..Governor::auto() }] {
                for answer in &answers {
                    let share = governor.observe(answer.map(Duration::from_millis));
                    prop_assert!((governor.least..=1.0).contains(&share));
                }
            }
        }
    }
}
