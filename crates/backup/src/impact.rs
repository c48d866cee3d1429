//! What a backup may cost the database that it reads.
//!
//! Budgets are fixed; the pace is not: a probe asks the database how it does, and the backup yields to it.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_postgres::client::{Client, Purpose, QueryError};
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
    pub latency: Option<LatencyLimit>,
}

/// How long the database may take for a probe.
#[derive(Clone, Debug)]
pub struct LatencyLimit {
    pub limit: Duration,
    /// By default a commit on a primary, and an empty query on a standby.
    pub query: Option<String>,
}

/// A commit that changes nothing: it waits for the disk, and for synchronous standbys.
const COMMIT: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'holdfast', '')";
const NOTHING: &str = "SELECT 1";

/// How often the database is asked.
const INTERVAL: Duration = Duration::from_millis(100);
/// An answer that takes longer slows the backup down before it is there, if the limit is not longer still.
const PATIENCE: Duration = Duration::from_secs(1);

/// Decides how fast to go from what the probe finds: half as fast when the limit is passed, a little faster when not
/// (AIMD, as congestion control does).
#[derive(Clone, Debug)]
struct Governor {
    limit: Duration,
    share: f64,
}

/// Never wholly still: a backup has to end, too.
const LEAST: f64 = 1.0 / 64.0;
const STEP: f64 = 1.0 / 32.0;

impl Governor {
    fn new(limit: Duration) -> Self {
        Self { limit, share: 1.0 }
    }

    /// What an answer took; `None` if there was none.
    fn observe(&mut self, latency: Option<Duration>) -> f64 {
        self.share = match latency {
            Some(latency) if latency <= self.limit => (self.share + STEP).min(1.0),
            _ => (self.share / 2.0).max(LEAST),
        };
        self.share
    }
}

/// What the probe saw while the files were copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub probes: u64,
    pub above: u64,
    pub unanswered: u64,
    pub worst: Duration,
}

impl Seen {
    fn add(&mut self, latency: Option<Duration>, limit: Duration) {
        self.probes += 1;
        match latency {
            Some(latency) => {
                self.above += u64::from(latency > limit);
                self.worst = self.worst.max(latency);
            }
            None => self.unanswered += 1,
        }
    }

    /// What the operator should know.
    pub(crate) fn note(&self, limit: Duration) -> Option<String> {
        let Self { probes, above, unanswered, worst } = self;
        (above + unanswered > 0).then(|| {
            let unanswered =
                if *unanswered > 0 { format!(", and {unanswered} were not answered") } else { String::new() };
            format!(
                "slowed down: {above} of {probes} probes of the database took more than {limit:?}{unanswered}; the worst took {worst:.1?}"
            )
        })
    }
}

/// Asks the database again and again how it does.
pub(crate) struct Probe {
    connection: ConnInfo,
    query: String,
    governor: Governor,
    client: Option<Client>,
    pub seen: Seen,
}

impl Probe {
    /// Proves that the probe works: one that cannot would slow the backup down for nothing.
    pub(crate) async fn begin(
        connection: &ConnInfo,
        limit: &LatencyLimit,
        is_standby: bool,
        source_name: &str,
    ) -> Result<Self, BackupError> {
        let query = limit.query.clone().unwrap_or_else(|| if is_standby { NOTHING } else { COMMIT }.to_owned());
        let mut client = Client::connect(connection, Purpose::Sql)
            .await
            .map_err(|source| BackupError::Connect { source_name: source_name.to_owned(), source })?;
        client.query(&query).await.map_err(|source| BackupError::Probe { query: query.clone(), source })?;
        Ok(Self {
            connection: connection.clone(),
            query,
            governor: Governor::new(limit.limit),
            client: Some(client),
            seen: Seen::default(),
        })
    }

    pub(crate) fn limit(&self) -> Duration {
        self.governor.limit
    }

    /// Never returns.
    pub(crate) async fn watch(&mut self, pace: &Arc<Pace>) -> Infallible {
        let Self { connection, query, governor, client, seen } = self;
        let patience = PATIENCE.max(governor.limit * 2);
        loop {
            let begun = Instant::now();
            // A question that was given up would keep its session at the server for as long as it hangs, and a new one
            // every second would take all the connections there are. So there is only ever one.
            let outcome = {
                let mut question = pin!(ask(client, connection, query));
                loop {
                    match tokio::time::timeout(patience, &mut question).await {
                        Ok(outcome) => break outcome,
                        Err(_) => heed(governor, seen, None, pace),
                    }
                }
            };
            let latency = match outcome {
                Ok(()) => Some(begun.elapsed()),
                Err(error) => {
                    tracing::warn!(%error, "the probe of the database failed");
                    None
                }
            };
            if latency.is_none() {
                *client = None;
            }
            heed(governor, seen, latency, pace);
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// Sets the pace by what a question took; `None` if there was no answer in time, whatever the cause.
fn heed(governor: &mut Governor, seen: &mut Seen, latency: Option<Duration>, pace: &Pace) {
    let before = governor.share;
    let share = governor.observe(latency);
    seen.add(latency, governor.limit);
    if share < before {
        tracing::info!(?latency, limit = ?governor.limit, share, "the backup slows down");
    }
    pace.set(share);
}

async fn ask(
    client: &mut Option<Client>,
    connection: &ConnInfo,
    query: &str,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let client = match client {
        Some(client) => client,
        client => client.insert(Client::connect(connection, Purpose::Sql).await?),
    };
    client.query(query).await.map(drop).map_err(|error: QueryError| error.into())
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
        assert!((10..40).contains(&steps), "{steps}");
    }

    #[test]
    fn no_answer_is_no_good_answer() {
        let mut governor = Governor::new(LIMIT);
        assert_eq!(governor.observe(None).to_bits(), 0.5f64.to_bits());
        let mut seen = Seen::default();
        seen.add(None, LIMIT);
        assert!(seen.note(LIMIT).unwrap().contains("1 were not answered"));
        assert_eq!(Seen::default().note(LIMIT), None);
    }

    proptest! {
        #[test]
        fn it_never_stands_still_nor_hurries(answers in prop::collection::vec(prop::option::of(0u64..100), 0..200)) {
            let mut governor = Governor::new(LIMIT);
            for answer in answers {
                let share = governor.observe(answer.map(Duration::from_millis));
                prop_assert!((LEAST..=1.0).contains(&share));
            }
        }
    }
}
