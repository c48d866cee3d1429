//! stdout is data, stderr is talk.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use crate::failure::{CommandError, Failure};

/// Where and how a command speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    /// A command's result: as JSON or as text.
    pub(crate) fn result(self, json: &impl Serialize, text: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.json { Self::data(&format!("{:#}\n", serde_json::to_value(json)?)) } else { Self::data(&text()) }
    }

    /// One line of JSON among several.
    pub(crate) fn json_line(json: &impl Serialize) -> Result<(), Failure> {
        Self::data(&format!("{}\n", serde_json::to_string(json)?))
    }

    pub(crate) fn data(text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // Whoever read us has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome.map_err(|error| CommandError::Stdout(error).into()),
        }
    }

    /// Something that a person may want to know; not shown to programs.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet && !self.json {
            talk(text);
        }
    }
}

/// One line on stderr.
pub(crate) fn talk(text: &str) {
    // With stderr gone there is nobody left to tell.
    drop(writeln!(io::stderr(), "{text}"));
}

pub(crate) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}
