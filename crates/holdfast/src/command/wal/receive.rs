use std::time::Duration;

use clap::Args;
use holdfast_backup::{ReceiveOptions, ReceiveStatus, receive};
use holdfast_types::{Lsn, Micros};
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

    /// Confirm log at once, for a server whose synchronous_standby_names names this receiver, by its slot's name.
    #[arg(long)]
    synchronous: bool,

    /// Make the replication slot if there is none.
    #[arg(long)]
    create_slot: bool,
}

pub(super) async fn run(context: &Context, options: Options) -> Result<Exit, Failure> {
    let config = context.config()?;
    let source = config.source(&options.source)?;
    let repository = context.writer(&config, source, false).await?;
    let receive_options = ReceiveOptions {
        source: source.name.clone(),
        connection: source.connection.clone(),
        slot: Some(source.slot.clone()),
        create_slot: options.create_slot,
        spool: source.spool.clone(),
        interval: source.wal.interval,
        synchronous: options.synchronous || source.wal.synchronous,
        from: None,
    };
    // Nobody here asks for an end at some position.
    let (_keep, until) = watch::channel(None);
    let (status, seen) = watch::channel(ReceiveStatus::default());
    // A task of its own: whoever reads the status and stops reading must not hold up the log.
    let reporter = tokio::spawn(report(context.output, seen));
    let keeper = repository.fan_out().cloned().map(|all| {
        let source = source.name.clone();
        tokio::spawn(async move { all.keep_log(&source).await })
    });
    let outcome = receive(&repository, &receive_options, until, &status, &context.cancel).await;
    reporter.abort();
    if let Some(keeper) = keeper {
        keeper.abort();
    }
    repository.settle().await;
    outcome.doing(|| format!("could not go on receiving the log of `{}`", source.name))?;
    Ok(Exit::Done)
}

/// What a status line says, for programs.
#[derive(Debug, Serialize)]
struct Line<'a> {
    at: String,
    connected: bool,
    timeline: u32,
    received: Lsn,
    durable: Lsn,
    server_end: Lsn,
    lag_bytes: u64,
    spooling: bool,
    last_error: Option<&'a str>,
}

/// Says where the receiver stands, as long as there is one.
async fn report(output: Output, mut seen: watch::Receiver<ReceiveStatus>) {
    // Nothing is known before the first change.
    if seen.changed().await.is_err() {
        return;
    }
    let mut ticks = tokio::time::interval(STATUS_STEP);
    loop {
        ticks.tick().await;
        let status = seen.borrow().clone();
        if output.json {
            let ReceiveStatus { connected, timeline, received, durable, server_end, spooling, last_error } = &status;
            let line = Line {
                at: time::rfc3339(time::now()),
                connected: *connected,
                timeline: timeline.get(),
                received: *received,
                durable: *durable,
                server_end: *server_end,
                lag_bytes: lag(&status),
                spooling: *spooling,
                last_error: last_error.as_deref(),
            };
            if let Err(error) = Output::json_line(&line) {
                tracing::warn!(%error, "the status could not be shown");
            }
        } else if !output.quiet {
            output::talk(&text_line(&status, time::now()));
        }
    }
}

fn lag(status: &ReceiveStatus) -> u64 {
    // Before the first connection nothing is known.
    if status.durable == Lsn::ZERO { 0 } else { status.server_end.bytes_since(status.durable) }
}

fn text_line(status: &ReceiveStatus, at: Micros) -> String {
    let ReceiveStatus { connected, timeline, received, durable, server_end: _, spooling, last_error } = status;
    let spooling = if *spooling { ", in the spool while the repository is away" } else { "" };
    let away = if *connected { "" } else { ", not connected" };
    let error = match last_error {
        Some(error) if !*connected || !spooling.is_empty() => format!(": {error}"),
        _ => String::new(),
    };
    format!(
        "{} timeline {timeline} received {received}, durable {durable}, {} behind{spooling}{away}{error}",
        time::stamp(at),
        table::size(lag(status)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_the_receiver_stands() {
        let at = Micros::new(1_795_256_100_250_000);
        let (durable, end) = (Lsn::new(0x0300_0000), Lsn::new(0x0300_0400));
        let status = ReceiveStatus { connected: true, received: end, durable, server_end: end, ..Default::default() };
        let timeline = status.timeline;
        assert_eq!(
            text_line(&status, at),
            format!("2026-11-21T10:15:00.250Z timeline {timeline} received {end}, durable {durable}, 1.0 KiB behind")
        );
        let away = ReceiveStatus { connected: false, last_error: Some("it is gone".into()), ..status };
        assert!(text_line(&away, at).ends_with(" behind, not connected: it is gone"));
    }
}
