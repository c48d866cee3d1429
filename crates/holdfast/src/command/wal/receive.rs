use std::time::Duration;

use clap::Args;
use holdfast_backup::{ReceiveOptions, ReceiveStatus, receive};
use holdfast_types::{Lsn, Timeline};
use serde::Serialize;
use tokio::sync::watch;

use crate::context::Context;
use crate::exit::Exit;
use crate::failure::{Doing as _, Failure};
use crate::output::{self, Output};
use crate::{table, time};

const EXAMPLES: &str = "\
Examples:
  holdfast wal receive chat --create-slot
  holdfast wal receive chat --synchronous
  holdfast wal receive chat --json";

const STATUS_STEP: Duration = Duration::from_secs(10);

/// Streams the log into the repository as it is written.
///
/// Runs until SIGINT or SIGTERM; then it makes durable what it has and ends with 0. Every 10 seconds it says where it
/// stands. Run it as a service that is started again whenever it ends.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The source's name in the configuration.
    source: String,

    /// Confirm log at once, for a server whose synchronous_standby_names names `holdfast`.
    #[arg(long)]
    synchronous: bool,

    /// Make the replication slot if there is none.
    #[arg(long)]
    create_slot: bool,
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let source = config.source(&options.source)?;
    let repository = context.repository(config.repository(Some(&source.repository))?).await?;
    let receive_options = ReceiveOptions {
        source: source.name.clone(),
        connection: source.connection.clone(),
        slot: Some(source.slot.clone()),
        create_slot: options.create_slot,
        spool: source.spool.clone(),
        interval: source.wal.interval,
        synchronous: options.synchronous || source.wal.synchronous,
        level: source.backup.level,
    };
    // Nobody here asks for an end at some position.
    let (_keep, until) = watch::channel(None);
    let (status, seen) = watch::channel(ReceiveStatus {
        timeline: Timeline::FIRST,
        received: Lsn::ZERO,
        durable: Lsn::ZERO,
        server_end: Lsn::ZERO,
        spooled: false,
        last_error: None,
    });
    let outcome = tokio::select! {
        outcome = receive(&repository, &receive_options, until, &status, &context.cancel) => outcome,
        failure = report(context.output, seen) => return Err(failure),
    };
    match outcome {
        Ok(()) => Ok(Exit::Done),
        Err(error) => {
            let failed: Result<Exit, Failure> =
                Err(error).doing(|| format!("stopped receiving the log of `{}`", source.name));
            failed
        }
    }
}

/// What a status line says, for programs.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: String,
    timeline: u32,
    received: Lsn,
    durable: Lsn,
    server_end: Lsn,
    lag_bytes: u64,
    spooled: bool,
    last_error: Option<&'a str>,
}

/// Says where the receiver stands, for ever; ends only if that cannot be said any more.
async fn report(output: Output, mut seen: watch::Receiver<ReceiveStatus>) -> Failure {
    // Nothing is known before the first change.
    if seen.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    let mut ticks = tokio::time::interval(STATUS_STEP);
    loop {
        ticks.tick().await;
        let status = seen.borrow().clone();
        let ReceiveStatus { timeline, received, durable, server_end, spooled, last_error, .. } = &status;
        let lag = server_end.bytes_since(*durable);
        if output.json {
            let line = Line {
                at: time::rfc3339(time::now()),
                timeline: timeline.get(),
                received: *received,
                durable: *durable,
                server_end: *server_end,
                lag_bytes: lag,
                spooled: *spooled,
                last_error: last_error.as_deref(),
            };
            if let Err(failure) = Output::json_line(&line) {
                return failure;
            }
        } else if !output.quiet {
            let spooled = if *spooled { ", in the spool while the repository is away" } else { "" };
            let error = last_error.as_ref().map(|error| format!(", last error: {error}")).unwrap_or_default();
            output::talk(&format!(
                "{} timeline {} received {received}, durable {durable}, {} behind{spooled}{error}",
                time::show_seconds(time::now()),
                timeline.get(),
                table::size(lag),
            ));
        }
    }
}
