//! Telling a torn page from a damaged one.
//!
//! A page that is written while it is read looks damaged, and does no harm: the log since the start of the backup holds
//! an image of it. So a bad page is read again; it counts as damaged only if its bytes stay the same and its own log
//! position says that nobody wrote it since the start. A position beyond the end of the backup is no excuse: it is part
//! of the damage (compare `basebackup.c`, which believes any position after the start).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use holdfast_pgformat::page::{self, PAGE_SIZE, PageVerdict};
use holdfast_types::Lsn;

/// How often a bad page is read again, and with what pause: a write takes microseconds, and an I/O stall may take long.
const READS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

/// A page that stayed bad; whether it is damaged shows when the end of the backup is known.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub block: u32,
    pub lsn: Lsn,
    pub reason: String,
}

impl Suspect {
    pub(crate) fn is_damaged(&self, start: Lsn, stop: Lsn) -> bool {
        self.lsn < start || self.lsn > stop
    }
}

/// Checks the pages of `buffer`, which was read at `offset` of a relation's file whose first page is `first_block`.
/// Pages that were torn are replaced by what they are now.
pub(crate) fn check(
    path: &Path,
    buffer: &mut [u8],
    offset: u64,
    first_block: u32,
    suspects: &mut Vec<Suspect>,
) -> io::Result<()> {
    let in_file = (offset / PAGE_SIZE as u64) as u32;
    for (number, page) in buffer.chunks_exact_mut(PAGE_SIZE).enumerate() {
        let block = first_block.wrapping_add(in_file).wrapping_add(number as u32);
        let verdict = page::verify(page, block, true);
        if !matches!(verdict, PageVerdict::Valid | PageVerdict::New) {
            let at = offset + (number * PAGE_SIZE) as u64;
            suspects.extend(read_again(path, page, at, block)?);
        }
    }
    Ok(())
}

#[cold]
fn read_again(path: &Path, page: &mut [u8], at: u64, block: u32) -> io::Result<Option<Suspect>> {
    let file = match File::open(path) {
        // Dropped meanwhile: replay drops it too.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut again = [0; PAGE_SIZE];
    for _ in 1..READS {
        std::thread::sleep(PAUSE);
        match file.read_exact_at(&mut again, at) {
            // Truncated meanwhile: the log does the same again.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            outcome => outcome?,
        }
        let unchanged = *page == again;
        page.copy_from_slice(&again);
        match page::verify(page, block, true) {
            PageVerdict::Valid | PageVerdict::New => return Ok(None),
            _ if unchanged => break,
            _ => {}
        }
    }
    let reason = match page::verify(page, block, true) {
        PageVerdict::BadChecksum { stored, computed } => {
            format!("the checksum is {stored:04x}, the content gives {computed:04x}")
        }
        PageVerdict::BadHeader(why) => why.to_owned(),
        PageVerdict::Valid | PageVerdict::New => return Ok(None),
    };
    Ok(Some(Suspect { block, lsn: page::lsn(&again), reason }))
}
