//! The commands, and what all of them need before they begin.

pub(crate) mod backup;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod copy;
pub(crate) mod expire;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod key;
pub(crate) mod list;
pub(crate) mod pin;
pub(crate) mod restore;
pub(crate) mod show;
pub(crate) mod verify;
pub(crate) mod wal;

use std::io::IsTerminal as _;
use std::time::Duration;

use holdfast_runtime::{Cancel, Phase};
use holdfast_types::ByteSize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, Command, Globals};
use crate::context::Context;
use crate::exit::{self, Exit};
use crate::failure::{CommandError, Failure};
use crate::output::Output;
use crate::signals;
use crate::table::{self, Table};
use crate::time::Stamp;

/// Runs a command to its end.
pub(crate) fn run(cli: Cli) -> Result<Exit, Failure> {
    let Cli { globals, command } = cli;
    if let Command::Wal(wal::Options { command: wal::WalCommand::Get(options) }) = &command
        && options.take()
    {
        return Ok(Exit::Done);
    }
    log(&globals, &command)?;
    let Globals { config: config_file, json, quiet, log_level: _ } = globals;
    let context = Context { config_file, output: Output { json, quiet }, cancel: Cancel::new() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CommandError::Runtime)?;
    let outcome = runtime.block_on(dispatch(&context, command));
    // Nothing that still reads or writes may hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(context: &Context, command: Command) -> Result<Exit, Failure> {
    // PostgreSQL ends its restore_command by a signal when it is shut down, and wants to see it die of it.
    if !matches!(&command, Command::Wal(wal::Options { command: wal::WalCommand::Get(_) })) {
        signals::watch(&context.cancel)?;
    }
    let cancel = &context.cancel;
    match command {
        // These stop by themselves when they are asked to.
        Command::Backup(options) => Box::pin(backup::run(context, options)).await,
        Command::Restore(options) => restore::run(context, options).await,
        Command::Wal(options) => wal::run(context, options).await,
        // These leave nothing half-done wherever they are stopped.
        Command::Init(options) => signals::droppable(cancel, init::run(context, options)).await,
        Command::Check(options) => signals::droppable(cancel, check::run(context, options)).await,
        Command::List(options) => signals::droppable(cancel, list::run(context, options)).await,
        Command::Show(options) => signals::droppable(cancel, show::run(context, options)).await,
        Command::Verify(options) => signals::droppable(cancel, verify::run(context, options)).await,
        Command::Copy(options) => signals::droppable(cancel, copy::run(context, options)).await,
        Command::Repair(options) => signals::droppable(cancel, copy::repair(context, options)).await,
        Command::Expire(options) => signals::droppable(cancel, expire::run(context, options)).await,
        Command::Pin(options) => signals::droppable(cancel, pin::run(context, options)).await,
        Command::Unpin(options) => signals::droppable(cancel, pin::undo(context, options)).await,
        Command::Key(options) => signals::droppable(cancel, key::run(context, options)).await,
        Command::Completions(options) => completions::run(&options),
        Command::ExitCodes => exit_codes(context.output),
        Command::Generate(options) => generate::run(&options),
    }
}

fn exit_codes(output: Output) -> Result<Exit, Failure> {
    let codes: Vec<_> =
        exit::TABLE.iter().map(|(code, meaning)| serde_json::json!({ "code": code, "meaning": meaning })).collect();
    output.result(&codes, exit::text)?;
    Ok(Exit::Done)
}

/// Sends the log to stderr. A receiver runs for months, so it says a little more.
fn log(globals: &Globals, command: &Command) -> Result<(), Failure> {
    let is_receiver = matches!(command, Command::Wal(wal::Options { command: wal::WalCommand::Receive(_) }));
    let default = if is_receiver { LevelFilter::INFO } else { LevelFilter::WARN };
    let environment = std::env::var("HOLDFAST_LOG").ok().filter(|text| !text.is_empty());
    let filter = match globals.log_level.clone().or(environment) {
        None => EnvFilter::default().add_directive(default.into()),
        Some(text) => EnvFilter::try_new(&text).map_err(|error| {
            CommandError::usage(
                format!("`{text}` is no log level ({error})"),
                "Use error, warn, info, debug or trace, or a filter as in `holdfast_backup=debug`.",
            )
        })?,
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_timer(Stamp);
    if globals.json {
        subscriber.json().init();
    } else {
        subscriber.with_ansi(std::io::stderr().is_terminal()).with_target(false).init();
    }
    Ok(())
}

/// For `--parallel`.
fn parallel(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=256) => Ok(number),
        _ => Err("expected a number from 1 to 256".to_owned()),
    }
}

/// For `--rate-limit`.
fn positive_size(text: &str) -> Result<ByteSize, String> {
    match text.parse::<ByteSize>() {
        Ok(size) if size.get() > 0 => Ok(size),
        Ok(_) => Err("expected more than nothing".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn phases_json(phases: &[(Phase, Duration)]) -> Vec<serde_json::Value> {
    let phase = |(phase, duration): &(Phase, Duration)| serde_json::json!({ "phase": phase.0, "seconds": duration.as_secs_f64() });
    phases.iter().map(phase).collect()
}

fn phases_text(phases: &[(Phase, Duration)]) -> String {
    let mut all = Table::bare();
    for (phase, duration) in phases {
        all.row([&format!("  {}", phase.0), &table::duration(*duration)]);
    }
    all.text()
}
