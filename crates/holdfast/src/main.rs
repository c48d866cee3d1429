//! `holdfast`: protects PostgreSQL clusters and brings them back.

mod cli;
mod command;
mod config;
mod context;
mod exit;
mod failure;
mod output;
mod passphrase;
mod place;
mod progress;
mod replay;
mod report;
mod signals;
mod table;
mod time;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let rules = exit::Rules::of(&arguments);
    let outcome = std::panic::catch_unwind(|| match cli::parse(&arguments) {
        Ok(cli) => {
            let json = cli.globals.json;
            command::run(cli).unwrap_or_else(|failure| report::show(&failure, json))
        }
        Err(refusal) => report::show_usage(&refusal),
    });
    // A panic has already been described on stderr.
    rules.code(outcome.unwrap_or(exit::Exit::Failed))
}
