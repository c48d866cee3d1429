//! Looking into the log for `verify`: would PostgreSQL replay it?

use holdfast_format::ObjectKind;
use holdfast_pgformat::wal::{RecordFault, WalDecoder, WalError, check_segment_start};
use holdfast_repository::{Lineage, LogObject};
use holdfast_types::Lsn;

/// Decodes a whole segment: page headers, the chain of records, each record's CRC.
///
/// A piece begins in the middle of the log and is only authenticated; its segment is decoded once it is whole.
pub fn inspect_log(lineage: Lineage, object: &LogObject, plain: &[u8]) -> Result<(), String> {
    if object.kind != ObjectKind::WalSegment {
        return Ok(());
    }
    let major = check_segment_start(plain, lineage.system_id, object.segment, lineage.segment_size);
    let major = major.map_err(|fault| format!("it is not the segment that its name says: {fault}"))?;
    let decoded = WalDecoder::new(major, lineage.segment_size, object.range.start)
        .and_then(|decoder| decoder.for_system(lineage.system_id).feed(plain, &mut |_| {}));
    match decoded {
        Ok(()) => Ok(()),
        // A segment can begin with nothing but the end of a record that switched to it; what follows is zeros, and the
        // log goes on in the next one.
        Err(WalError::EndOfLog { why: RecordFault::Zero, lsn }) if is_zero_from(plain, lsn, object.range.start) => {
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn is_zero_from(plain: &[u8], lsn: Lsn, start: Lsn) -> bool {
    plain.get(lsn.bytes_since(start) as usize..).is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
}
