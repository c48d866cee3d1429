//! The one error report: what failed, why, what to do, and the exit code.

mod classify;
mod database;
mod jobs;

use std::error::Error;

use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Serialize)]
struct Report {
    error: String,
    causes: Vec<String>,
    hint: Option<String>,
    exit_code: u8,
}

/// Shows a failure on stderr and gives the exit code.
pub(crate) fn show(failure: &Failure, json: bool) -> Exit {
    let (report, exit) = report(failure.as_ref());
    output::talk(&if json { as_json(&report) } else { as_text(&report) });
    exit
}

/// The same for arguments that clap refused, or for help that it was asked for.
pub(crate) fn show_usage(refusal: &crate::cli::Refusal) -> Exit {
    let crate::cli::Refusal { error, json } = refusal;
    if !error.use_stderr() {
        drop(error.print());
        return Exit::Done;
    }
    if *json {
        let text = error.render().to_string();
        let error = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let hint = Some("See `holdfast --help`.".to_owned());
        output::talk(&as_json(&Report { error, causes: Vec::new(), hint, exit_code: Exit::Usage as u8 }));
    } else {
        drop(error.print());
    }
    Exit::Usage
}

/// The error with its causes in one line, and the advice, for lists.
pub(crate) fn in_one_line(error: &(dyn Error + 'static)) -> (String, Option<String>) {
    let (Report { mut error, causes, hint, exit_code: _ }, _) = report(error);
    for cause in causes {
        error.push_str(": ");
        error.push_str(&cause);
    }
    (error, hint)
}

fn report(failure: &(dyn Error + 'static)) -> (Report, Exit) {
    let mut chain = vec![failure];
    let mut last = failure;
    while let Some(cause) = last.source() {
        chain.push(cause);
        last = cause;
    }
    // The outermost that somebody knows decides: it has the most context.
    let known = chain.iter().find_map(|error| classify::classify(*error)).unwrap_or_default();
    let hint = known.hint.or_else(|| chain.iter().find_map(|error| classify::classify(*error)?.hint));
    let mut lines: Vec<String> = Vec::new();
    for error in &chain {
        let line = error.to_string();
        // Some libraries repeat their source in their own message.
        if !lines.iter().any(|earlier| earlier.contains(&line)) {
            lines.push(line);
        }
    }
    let error = lines.remove(0);
    (Report { error, causes: lines, hint, exit_code: known.exit as u8 }, known.exit)
}

fn as_text(report: &Report) -> String {
    let mut text = format!("error: {}", report.error);
    for cause in &report.causes {
        text.push_str("\n  caused by: ");
        text.push_str(&cause.replace('\n', "\n    "));
    }
    if let Some(hint) = &report.hint {
        text.push_str("\nhint: ");
        text.push_str(&hint.replace('\n', "\n      "));
    }
    text
}

fn as_json(report: &Report) -> String {
    serde_json::to_string(report).unwrap_or_else(|_| as_text(report))
}

#[cfg(test)]
mod tests;
