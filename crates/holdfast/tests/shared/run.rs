//! Runs of the program, for both test binaries.

use std::path::PathBuf;
use std::process::Command;

use holdfast_testkit::TempRoot;
use serde_json::Value;

/// What a run of the program left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program can be run");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program speaks UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn says(self, words: &str) -> Self {
        assert!(self.stderr.contains(words) || self.stdout.contains(words), "no `{words}` in:\n{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

/// Puts the program where the servers' user can reach it.
pub(crate) fn install(root: &TempRoot) -> PathBuf {
    let program = root.join("holdfast");
    if std::fs::hard_link(env!("CARGO_BIN_EXE_holdfast"), &program).is_err() {
        std::fs::copy(env!("CARGO_BIN_EXE_holdfast"), &program).expect("the program can be copied");
    }
    program
}

/// A position in the log as a number.
pub(crate) fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("a position has two parts");
    let number = |digits| u64::from_str_radix(digits, 16).expect("its parts are hexadecimal");
    number(high) << 32 | number(low)
}
