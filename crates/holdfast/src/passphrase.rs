//! Passphrases: from a file, or from the terminal without showing them.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use holdfast_runtime::Cancelled;
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

use crate::failure::{CommandError, Failure};

/// The first line of a file.
pub(crate) fn from_file(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(CommandError::file("read the passphrase file", path))?;
    let line = text.lines().next().unwrap_or_default();
    if line.is_empty() { Err(CommandError::EmptyPassphrase.into()) } else { Ok(line.to_owned()) }
}

/// Asks once, for one that exists.
pub(crate) fn ask(what: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::NoTerminal.into());
    }
    let quiet = Quiet::begin()?;
    let answer = read_line(what);
    drop(quiet);
    answer
}

/// Asks twice, for a new one.
pub(crate) fn ask_new(what: &str) -> Result<String, Failure> {
    let first = ask(what)?;
    if first.is_empty() {
        return Err(CommandError::EmptyPassphrase.into());
    }
    if ask("The same again")? == first { Ok(first) } else { Err(CommandError::PassphrasesDiffer.into()) }
}

/// The terminal neither echoes nor makes signals of keys while this lives: a signal would leave it that way.
struct Quiet {
    before: Termios,
}

impl Quiet {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.before).is_err() {
            tracing::warn!("could not turn the terminal's echo on again; run `stty echo`");
        }
    }
}

fn read_line(what: &str) -> Result<String, Failure> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    let mut stderr = io::stderr();
    write!(stderr, "{what}: ").and_then(|()| stderr.flush())?;
    let mut line = Vec::new();
    let outcome = loop {
        let mut byte = [0];
        // Unbuffered, so that no typed byte is left in a buffer that nobody reads.
        match io::stdin().lock().read(&mut byte) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Err(error.into()),
        }
        match byte[0] {
            b'\r' | b'\n' | END => break Ok(()),
            INTERRUPT => break Err(Failure::from(Cancelled)),
            0x08 | 0x7F => {
                // A letter may be several bytes: those that go on one begin with the bits 10.
                while line.pop().is_some_and(|byte: u8| byte & 0xC0 == 0x80) {}
            }
            byte => line.push(byte),
        }
    };
    writeln!(stderr)?;
    outcome?;
    Ok(String::from_utf8(line).map_err(io::Error::other)?)
}
