//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::command::{
    backup, check, completions, copy, expire, generate, init, key, list, pin, restore, show, verify, wal,
};
use crate::exit;

const LONG_ABOUT: &str = "\
Holdfast protects PostgreSQL clusters and brings them back.

It takes full backups of running clusters, streams their log into an encrypted repository within a second, and restores \
to any moment that the repository holds.

The configuration is the file that --config names, else the one that the environment variable HOLDFAST_CONFIG names, \
else /etc/holdfast/holdfast.toml, else ~/.config/holdfast/holdfast.toml.";

const EXAMPLES: &str = "\
Examples:
  holdfast init --new-identity /root/holdfast-identity.txt
  holdfast check
  holdfast wal receive chat --create-slot
  holdfast backup chat
  holdfast list chat
  holdfast restore chat --to /var/lib/postgresql/15/restored --at '2026-11-21 10:15:00'

`holdfast help COMMAND` explains a command, `holdfast help exit-codes` the exit codes.";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold());

/// Protects PostgreSQL clusters and brings them back.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, long_about = LONG_ABOUT, after_help = EXAMPLES, styles = STYLES)]
#[command(arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Results, errors and progress as JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// No progress and no remarks.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// What to log on stderr: error, warn, info, debug, trace, or a filter as in `holdfast_backup=debug`.
    ///
    /// Else the environment variable HOLDFAST_LOG says it.
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(init::Options),
    Check(check::Options),
    Backup(backup::Options),
    Wal(wal::Options),
    List(list::Options),
    Show(show::Options),
    Restore(restore::Options),
    Verify(verify::Options),
    Copy(copy::Options),
    Repair(copy::RepairOptions),
    Expire(expire::Options),
    Pin(pin::Options),
    Unpin(pin::UndoOptions),
    Key(key::Options),
    Completions(completions::Options),
    /// Shows what the exit codes mean.
    #[command(name = "exit-codes", after_help = format!("Exit codes:\n{}\nExamples:\n  holdfast exit-codes\n  holdfast exit-codes --json", exit::text()))]
    ExitCodes,
    #[command(hide = true)]
    Generate(generate::Options),
}

/// Arguments that clap did not take, or a request for help.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: clap::Error,
    pub(crate) json: bool,
}

pub(crate) fn parse(arguments: &[OsString]) -> Result<Cli, Refusal> {
    let refused = |error| Refusal { error, json: arguments.iter().any(|argument| argument == "--json") };
    let matches = Cli::command().try_get_matches_from(arguments).map_err(refused)?;
    Cli::from_arg_matches(&matches).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(command: &clap::Command) -> Vec<&clap::Command> {
        if command.get_subcommands().next().is_some() {
            command.get_subcommands().filter(|command| !command.is_hide_set()).flat_map(leaves).collect()
        } else {
            vec![command]
        }
    }

    /// As a shell would, as far as the examples need it.
    fn words(line: &str) -> Vec<OsString> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in line.chars() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => quote = Some(c),
                (None, ' ') => words.push(String::new()),
                (_, c) => words.last_mut().unwrap().push(c),
            }
        }
        words.into_iter().map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_that_are_valid() {
        let command = Cli::command();
        let leaves = leaves(&command);
        assert!(leaves.len() >= 17, "{}", leaves.len());
        for leaf in leaves.into_iter().chain([&command]) {
            let help = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<_> = help.lines().filter_map(|line| line.strip_prefix("  holdfast ")).collect();
            assert!(help.contains("Examples:") && !examples.is_empty(), "{} has no examples", leaf.get_name());
            assert!(leaf.get_about().is_some(), "{} says nothing of itself", leaf.get_name());
            for example in examples {
                let example = example.split(" > ").next().unwrap();
                if let Err(refusal) = parse(&words(&format!("holdfast {example}"))) {
                    panic!("{example}: {}", refusal.error);
                }
            }
        }
    }
}
