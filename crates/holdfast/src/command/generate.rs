use clap::{Args, ValueEnum};

use crate::config::reference;
use crate::exit::{self, Exit};
use crate::failure::Failure;
use crate::output::Output;

/// Prints documents that are made from the program.
#[derive(Debug, Args)]
pub(crate) struct Options {
    document: Document,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    /// docs/configuration.md
    Reference,
    /// docs/exit-codes.md
    ExitCodes,
    /// A configuration file that has every key.
    Example,
}

pub(crate) fn run(options: &Options) -> Result<Exit, Failure> {
    Output::data(&match options.document {
        Document::Reference => reference::markdown(),
        Document::ExitCodes => exit::markdown(),
        Document::Example => reference::example(),
    })?;
    Ok(Exit::Done)
}
