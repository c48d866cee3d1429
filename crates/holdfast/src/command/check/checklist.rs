//! What was looked at and found.

use std::error::Error;

use serde::Serialize;

use crate::table::{Lines as _, Table};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Entry {
    /// A source or a repository.
    of: String,
    what: &'static str,
    status: Status,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Entry {
    pub(super) fn ok(of: &str, what: &'static str, found: impl Into<String>) -> Self {
        Self { of: of.to_owned(), what, status: Status::Ok, found: found.into(), hint: None }
    }

    /// Backups work, and something is missing.
    pub(super) fn warning(of: &str, what: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Warning, hint: Some(hint.into()), ..Self::ok(of, what, found) }
    }

    /// Backups or restores do not work.
    pub(super) fn fail(of: &str, what: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Fail, hint: Some(hint.into()), ..Self::ok(of, what, found) }
    }

    /// The same, with the advice that the error report would give.
    pub(super) fn error(of: &str, what: &'static str, error: &(dyn Error + 'static)) -> Self {
        let (found, hint) = crate::report::in_one_line(error);
        Self { status: Status::Fail, hint, ..Self::ok(of, what, found) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Checklist {
    entries: Vec<Entry>,
}

impl Checklist {
    pub(super) fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    fn count(&self, status: Status) -> usize {
        self.entries.iter().filter(|entry| entry.status == status).count()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.count(Status::Fail) > 0
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::json!({ "ok": !self.has_failed(), "checks": self.entries })
    }

    pub(super) fn text(&self) -> String {
        let mut table = Table::bare();
        for Entry { of, what, status, found, hint } in &self.entries {
            let status = match status {
                Status::Ok => "ok",
                Status::Warning => "warning",
                Status::Fail => "FAIL",
            };
            table.row([status, of, what, found]);
            if let Some(hint) = hint {
                table.row(["", "", "", &format!("hint: {hint}")]);
            }
        }
        let mut text = table.text();
        match (self.count(Status::Fail), self.count(Status::Warning)) {
            (0, 0) => text.push_str("everything is in place\n"),
            (0, warnings) => text.line(format_args!("warnings: {warnings}")),
            (failures, warnings) => text.line(format_args!("FAILED: {failures}, warnings: {warnings}")),
        }
        text
    }
}
