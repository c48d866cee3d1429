//! What the process tells its caller by its exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::table::Lines as _;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Losses = 3,
    Unreachable = 4,
    Behind = 5,
    NoRepository = 10,
    InTheWay = 11,
    WrongKey = 12,
    NoSpace = 13,
    Database = 14,
    Cancelled = 130,
}

/// Every exit code, for people.
pub(crate) const TABLE: [(u8, &str); 14] = [
    (Exit::Done as u8, "done"),
    (Exit::Failed as u8, "failed; for `wal get` and only there: the repository was asked and has no such file"),
    (Exit::Usage as u8, "wrong usage or configuration"),
    (Exit::Losses as u8, "done, with losses or with damage found"),
    (Exit::Unreachable as u8, "the recovery target cannot be reached"),
    (Exit::Behind as u8, "done, but not in every repository that should have it"),
    (Exit::NoRepository as u8, "no such repository"),
    (
        Exit::InTheWay as u8,
        "refused because something is in the way: a running server, a directory that is not empty, a repository or \
         file that exists, a window that is closed",
    ),
    (Exit::WrongKey as u8, "wrong or missing key"),
    (Exit::NoSpace as u8, "no space is left"),
    (Exit::Database as u8, "the database cannot be reached or does not allow it"),
    (COULD_NOT_FIND_OUT, "`wal get` only: could not find out whether there is such a file"),
    (GET_USAGE, "`wal get` only: wrong usage or configuration"),
    (Exit::Cancelled as u8, "cancelled"),
];

/// Codes above 125 make PostgreSQL stop a recovery. With anything lower it would believe that the log ends there, and
/// open a database that lacks the rest.
const COULD_NOT_FIND_OUT: u8 = 126;
const GET_USAGE: u8 = 127;

/// How ends become codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    Usual,
    /// For `wal get`: 1 is kept for "there is no such file", see [`TABLE`].
    RestoreCommand,
}

impl Rules {
    /// Decided from the bare arguments, because they hold as well where those cannot be understood.
    pub(crate) fn of(arguments: &[OsString]) -> Self {
        let is_get = |pair: &[OsString]| matches!(pair, [first, second] if first == "wal" && second == "get");
        if arguments.windows(2).any(is_get) { Self::RestoreCommand } else { Self::Usual }
    }

    pub(crate) fn code(self, exit: Exit) -> ExitCode {
        ExitCode::from(self.number(exit))
    }

    fn number(self, exit: Exit) -> u8 {
        match (self, exit) {
            (Self::Usual, exit) => exit as u8,
            (Self::RestoreCommand, Exit::Done) => 0,
            (Self::RestoreCommand, Exit::Usage) => GET_USAGE,
            (Self::RestoreCommand, _) => COULD_NOT_FIND_OUT,
        }
    }
}

/// The end of `wal get` when the repository answered that there is no such file. The only way to exit with 1 there.
pub(crate) fn not_found() -> ! {
    std::process::exit(1)
}

/// The table for `--help`.
pub(crate) fn text() -> String {
    let mut text = String::new();
    for (code, meaning) in TABLE {
        text.line(format_args!("{code:>5}  {meaning}"));
    }
    text
}

/// `docs/exit-codes.md`.
pub(crate) fn markdown() -> String {
    let mut text = String::from(
        "# Exit codes\n\n<!-- Made by `holdfast generate exit-codes`. Do not edit. -->\n\n| Code | Meaning |\n| ---: | --- |\n",
    );
    for (code, meaning) in TABLE {
        text.line(format_args!("| {code} | {meaning} |"));
    }
    text.push_str(
        "\n`holdfast wal get` runs as PostgreSQL's `restore_command`. PostgreSQL takes every exit code up to 125 for \
         \"there is no such file\", ends recovery and opens the database. Therefore `wal get` exits with 1 only if the \
         repository was asked and has no such file; everything else is above 125, which stops the recovery instead.\n\n\
         With `--json` an error is one line of JSON on stderr: `{\"error\", \"causes\", \"hint\", \"exit_code\"}`.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_wal_get_never_looks_like_a_missing_file() {
        let rules = |text: &str| Rules::of(&text.split(' ').map(OsString::from).collect::<Vec<_>>());
        let get = rules("holdfast --config x wal get chat f p");
        assert_eq!((get, rules("holdfast wal push chat get")), (Rules::RestoreCommand, Rules::Usual));
        for exit in [Exit::Failed, Exit::Usage, Exit::NoRepository, Exit::WrongKey, Exit::NoSpace, Exit::Cancelled] {
            assert!(get.number(exit) > 125, "{exit:?}");
        }
        assert_eq!((get.number(Exit::Done), Rules::Usual.number(Exit::Losses)), (0, 3));
    }

    #[test]
    fn the_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/exit-codes.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == markdown(), "run `holdfast generate exit-codes > docs/exit-codes.md`");
    }
}
