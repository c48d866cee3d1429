//! A run: many writers, one journal.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Lab;
use crate::connection::{connect, parse};
use crate::error::LabError;
use crate::histogram::Histogram;
use crate::journal::{JournalWriter, Record};
use crate::load;
use crate::operation::Population;
use crate::text::Vocabulary;
use crate::writer::{Session, now_us, work};

/// What a writer does when the server is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// It ends.
    Stop,
    /// It connects again until the run is over.
    Reconnect,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where the journal is, or is to be made.
    pub journal: PathBuf,
    /// How many writers, each with a connection.
    pub writers: usize,
    /// When the run is over; `None` for until it is stopped or the server is lost.
    pub duration: Option<Duration>,
    /// Writes per second of all writers together; `None` for as many as they can.
    pub rate: Option<f64>,
    /// What a writer does when the server is lost.
    pub on_loss: OnLoss,
    /// What the writers' choices depend on.
    pub seed: u64,
}

impl RunOptions {
    /// 24 writers as fast as they can, until stopped or the server is lost.
    pub fn new(journal: impl Into<PathBuf>) -> Self {
        Self { journal: journal.into(), writers: 24, duration: None, rate: None, on_loss: OnLoss::Stop, seed: 42 }
    }
}

/// What a run has done.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Writes that were sent.
    pub attempted: u64,
    /// Writes whose commit the server acknowledged.
    pub acknowledged: u64,
    /// Writes that ended without an answer.
    pub in_doubt: u64,
    /// Writes that the server refused.
    pub rejected: u64,
    /// Whether the server was lost at some time.
    pub server_lost: bool,
    /// How long the writers worked.
    pub seconds: f64,
    /// Acknowledged writes per second.
    pub rate: f64,
    /// Half of the commits took no longer, in milliseconds.
    pub latency_p50_ms: f64,
    /// 99 % of the commits took no longer, in milliseconds.
    pub latency_p99_ms: f64,
    /// The longest commit, in milliseconds.
    pub latency_max_ms: f64,
}

/// A run's remote control; clones control the same run.
#[derive(Clone, Debug)]
pub struct Control {
    over: Arc<watch::Sender<bool>>,
    acknowledged: Arc<AtomicU64>,
}

impl Control {
    /// For one run.
    pub fn new() -> Self {
        Self { over: Arc::new(watch::Sender::new(false)), acknowledged: Arc::default() }
    }

    /// Lets the writers finish what they are at, and no more.
    pub fn stop(&self) {
        self.over.send_replace(true);
    }

    /// How many writes have been acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

/// What the writers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) journal: JournalWriter,
    pub(crate) population: Population,
    pub(crate) words: Vocabulary,
    pub(crate) on_loss: OnLoss,
    pub(crate) seed: u64,
    pub(crate) writers: usize,
    /// Between two writes of one writer, if there is a rate to keep.
    pub(crate) interval: Option<Duration>,
    pub(crate) attempted: AtomicU64,
    pub(crate) acknowledged: Arc<AtomicU64>,
    pub(crate) in_doubt: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) lost: AtomicBool,
    next_operation: AtomicU64,
    over: watch::Receiver<bool>,
}

impl Shared {
    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Completes when the run has been over for this long.
    pub(crate) async fn over_for(&self, grace: Duration) {
        let mut over = self.over.clone();
        // An error means that the sender is gone, and then the run is over as well.
        over.wait_for(|over| *over).await.ok();
        tokio::time::sleep(grace).await;
    }

    /// Completes at this moment, or when the run is over.
    pub(crate) async fn sleep_until(&self, moment: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(moment.into()) => {}
            () = self.over_for(Duration::ZERO) => {}
        }
    }

    pub(crate) fn next_operation(&self) -> u64 {
        self.next_operation.fetch_add(1, Ordering::Relaxed)
    }
}

pub(crate) async fn run(conninfo: &str, options: &RunOptions, control: &Control) -> Result<Totals, LabError> {
    let shared = Arc::new(prepare(conninfo, options, control).await?);
    // All are connected before the first one writes, so that the figures are those of all.
    let mut sessions = Vec::new();
    for _ in 0..options.writers {
        sessions.push(Session::open(&shared.config).await?);
    }
    let start = Instant::now();
    let mut writers = JoinSet::new();
    for (number, session) in sessions.into_iter().enumerate() {
        writers.spawn(work(Arc::clone(&shared), number, session));
    }
    let clock = {
        let (control, duration) = (control.clone(), options.duration);
        tokio::spawn(async move {
            if let Some(duration) = duration {
                tokio::time::sleep_until((start + duration).into()).await;
                control.stop();
            }
        })
    };
    let mut latencies = Histogram::new();
    let mut failure = None;
    while let Some(ended) = writers.join_next().await {
        match ended.expect("a writer does not panic") {
            Ok(of_writer) => latencies.add(&of_writer),
            // Without its journal a run is worthless.
            Err(error) => {
                control.stop();
                failure = Some(error);
            }
        }
    }
    clock.abort();
    failure.map_or_else(|| Ok(totals(&shared, &latencies, start.elapsed())), Err)
}

async fn prepare(conninfo: &str, options: &RunOptions, control: &Control) -> Result<Shared, LabError> {
    let config = parse(conninfo)?;
    let client = connect(&config).await?;
    let summary = load::summary(&client).await?;
    let rows = client.query("select size from conversations order by id", &[]).await;
    let rows = rows.map_err(LabError::database("read the conversations"))?;
    let journal = JournalWriter::open(&options.journal)?;
    journal.append(&Record::Start { load_id: summary.load_id, at_us: now_us() })?;
    let mut random = SmallRng::seed_from_u64(options.seed);
    // The upper half is the run, chosen at random; the lower half counts.
    let first_operation = u64::from(rand::random::<u32>()) << 32;
    Ok(Shared {
        config,
        journal,
        population: Population { users: summary.users, sizes: rows.iter().map(|row| row.get(0)).collect() },
        words: Vocabulary::new(&mut random),
        on_loss: options.on_loss,
        seed: options.seed,
        writers: options.writers,
        interval: options.rate.map(|rate| Duration::from_secs_f64(options.writers as f64 / rate)),
        attempted: AtomicU64::new(0),
        acknowledged: Arc::clone(&control.acknowledged),
        in_doubt: AtomicU64::new(0),
        rejected: AtomicU64::new(0),
        lost: AtomicBool::new(false),
        next_operation: AtomicU64::new(first_operation),
        over: control.over.subscribe(),
    })
}

fn totals(shared: &Shared, latencies: &Histogram, elapsed: Duration) -> Totals {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let seconds = elapsed.as_secs_f64();
    let millis = |micros: u64| micros as f64 / 1000.0;
    Totals {
        attempted: count(&shared.attempted),
        acknowledged: count(&shared.acknowledged),
        in_doubt: count(&shared.in_doubt),
        rejected: count(&shared.rejected),
        server_lost: shared.lost.load(Ordering::Relaxed),
        seconds,
        rate: count(&shared.acknowledged) as f64 / seconds,
        latency_p50_ms: millis(latencies.percentile_us(50.0)),
        latency_p99_ms: millis(latencies.percentile_us(99.0)),
        latency_max_ms: millis(latencies.longest_us()),
    }
}

/// A run on a thread of its own. Dropping it stops it and waits.
#[derive(Debug)]
pub struct Running {
    control: Control,
    thread: Option<JoinHandle<Result<Totals, LabError>>>,
}

impl Running {
    pub(crate) fn start(lab: Lab, options: RunOptions) -> Self {
        let control = Control::new();
        let remote = control.clone();
        let thread = std::thread::spawn(move || runtime().block_on(lab.run(&options, &remote)));
        Self { control, thread: Some(thread) }
    }

    /// How many writes have been acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.control.acknowledged()
    }

    /// Whether the run has ended, for whatever reason.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Lets the writers finish what they are at, and returns what was done.
    pub fn stop(self) -> Result<Totals, LabError> {
        self.control.stop();
        self.wait()
    }

    /// Waits until the run ends by itself.
    pub fn wait(mut self) -> Result<Totals, LabError> {
        let thread = self.thread.take().expect("only this and drop take it");
        thread.join().expect("a run does not panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.control.stop();
            drop(thread.join());
        }
    }
}

/// A runtime for callers without one.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads can be started")
}
