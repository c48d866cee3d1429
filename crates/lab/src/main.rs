//! The lab's command line.

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use holdfast_lab::{CheckOptions, Control, Depth, Lab, OnLoss, RunOptions};
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};

/// An instant-messaging platform as workload against a real PostgreSQL, and the judge of what is left of it.
#[derive(Debug, Parser)]
#[command(version, after_help = "Exit codes: 0 done or all well, 1 the judge has findings, 2 it could not be done.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the tables and loads a data set.
    #[command(
        after_help = "Example:\n  lab create --conninfo 'host=/tmp port=5432 user=postgres dbname=im' --size-mib 50"
    )]
    Create {
        #[command(flatten)]
        database: Database,
        /// About how much space the data set takes, in MiB.
        #[arg(long, value_name = "N")]
        size_mib: u64,
        /// The same seed gives the same data.
        #[arg(long, default_value_t = 42)]
        seed: u64,
    },
    /// Writes, and keeps a journal of every write on the client's side.
    #[command(after_help = "Examples:\n  lab run --conninfo '…' --journal im.journal --seconds 10\n  \
        lab run --conninfo '…' --journal im.journal --until-killed --rate 1500 --on-loss reconnect\n\n\
        Ends with SIGINT or SIGTERM as well. Prints its totals as JSON.")]
    Run {
        #[command(flatten)]
        database: Database,
        /// The journal; made if missing, appended to otherwise.
        #[arg(long, value_name = "FILE")]
        journal: PathBuf,
        /// How many writers, each with a connection.
        #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=1000))]
        writers: u16,
        #[command(flatten)]
        duration: DurationArguments,
        /// Writes per second of all writers together; default as many as they can.
        #[arg(long, value_name = "R", value_parser = positive)]
        rate: Option<f64>,
        /// What a writer does when the server is lost.
        #[arg(long, value_enum, default_value_t = Loss::Stop)]
        on_loss: Loss,
        /// What the writers' choices depend on.
        #[arg(long, default_value_t = 42)]
        seed: u64,
    },
    /// Compares a database with the journal.
    #[command(after_help = "Examples:\n  lab check --conninfo '…' --journal im.journal\n  \
        lab check --conninfo '…' --journal im.journal --at 2026-11-21T10:00:00Z --json\n  \
        lab check --conninfo '…' --journal im.journal --allow-loss 1\n\n\
        Exit codes: 0 all well, 1 findings, 2 could not judge.")]
    Check {
        #[command(flatten)]
        database: Database,
        /// The journal; may be given more than once if there are several.
        #[arg(long, value_name = "FILE", required = true)]
        journal: Vec<PathBuf>,
        /// The moment that the database was brought back to: what was acknowledged before must be there, what was
        /// sent after must not.
        #[arg(long, value_name = "TIME")]
        at: Option<Timestamp>,
        /// How many seconds of acknowledged writes may be missing at the end.
        #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
        allow_loss: f64,
        /// Look only at what was written after the load: faster on large data sets.
        #[arg(long)]
        quick: bool,
        /// Print the report as JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Database {
    /// How to connect, as libpq writes it.
    #[arg(long, value_name = "CONNINFO")]
    conninfo: String,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct DurationArguments {
    /// How long to write.
    #[arg(long, value_name = "S", value_parser = positive)]
    seconds: Option<f64>,
    /// Write until stopped by a signal, or until the server is lost.
    #[arg(long)]
    until_killed: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Loss {
    /// It ends.
    Stop,
    /// It connects again until the run is over.
    Reconnect,
}

#[tokio::main]
async fn main() -> ExitCode {
    match execute(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            let mut report = format!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                report.extend(["\n  because: ", &error.to_string()]);
                cause = error.source();
            }
            writeln!(io::stderr(), "{report}").ok();
            ExitCode::from(2)
        }
    }
}

async fn execute(command: Command) -> Result<ExitCode, Box<dyn Error>> {
    let mut stdout = io::stdout().lock();
    match command {
        Command::Create { database, size_mib, seed } => {
            let summary = Lab::new(database.conninfo).create(size_mib, seed).await?;
            writeln!(stdout, "{}", serde_json::to_string(&summary)?)?;
        }
        Command::Run { database, journal, writers, duration, rate, on_loss, seed } => {
            let options = RunOptions {
                journal,
                writers: writers.into(),
                duration: duration.seconds.map(Duration::from_secs_f64),
                rate,
                on_loss: match on_loss {
                    Loss::Stop => OnLoss::Stop,
                    Loss::Reconnect => OnLoss::Reconnect,
                },
                seed,
            };
            let control = Control::new();
            stop_on_signal(&control)?;
            let totals = Lab::new(database.conninfo).run(&options, &control).await?;
            writeln!(stdout, "{}", serde_json::to_string(&totals)?)?;
        }
        Command::Check { database, journal, at, allow_loss, quick, json } => {
            let depth = if quick { Depth::Written } else { Depth::Full };
            let options = CheckOptions { at, allowed_loss_seconds: allow_loss, depth };
            let report = Lab::new(database.conninfo).check(&journal, &options).await?;
            if json {
                writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
            } else {
                writeln!(stdout, "{report}")?;
            }
            return Ok(if report.well { ExitCode::SUCCESS } else { ExitCode::from(1) });
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The first signal lets the writers finish; they are bounded.
fn stop_on_signal(control: &Control) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let control = control.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        control.stop();
    });
    Ok(())
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("it must be more than zero".to_owned()) }
}
