//! Whether what stored change maps tell is of one history.
//!
//! A change map names positions, not the log that it was made from. When a server is set back on its timeline, by a volume
//! or a machine that is taken back to an earlier state, it writes other records at positions that the repository has log
//! of already: then maps of two histories lie side by side. So wherever two of them meet and were not made in one go, and
//! where the base ended, the log in the repository must have a record that ends or begins exactly there, and must follow
//! from the segment before. Another history's records hardly ever do both.

use holdfast_pgformat::WalDecoder;
use holdfast_types::{Lsn, Segment, Timeline};

use crate::BackupError;
use crate::changes::Log;

/// Segments up to this size are read together with the one before; larger ones would cost more than they prove.
const SMALL_SEGMENT: u64 = 64 << 20;

/// A record that follows may reach into so many further segments.
const FURTHER: usize = 2;

/// Why no record ends or begins at a position, or none follows where there should be more log before `end`.
pub(crate) async fn check(
    log: &Log<'_>,
    timeline: Timeline,
    at: Lsn,
    end: Lsn,
) -> Result<Result<(), String>, BackupError> {
    let size = log.lineage.segment_size;
    let last = Segment::containing(timeline, Lsn::new(at.get().saturating_sub(1)), size);
    let before = last.number().checked_sub(1).map(|number| Segment::new(timeline, number));
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut start = last.start(size);
    if let Some(before) = before.filter(|_| size.get() <= SMALL_SEGMENT)
        && let Some(bytes) = log.keyring.segment(log.source, log.lineage, before).await?
        && bytes.len() as u64 == size.get()
    {
        start = before.start(size);
        parts.push(bytes);
    }
    let mut joint = match WalDecoder::new(log.major, size, start) {
        Ok(decoder) => Joint::new(decoder.for_system(log.lineage.system_id), at),
        Err(error) => return Ok(Err(format!("the log cannot be decoded: {error}"))),
    };
    for part in parts {
        joint.feed(&part);
    }
    let mut segment = last;
    for _ in 0..=FURTHER {
        let Some(bytes) = log.keyring.segment(log.source, log.lineage, segment).await? else { break };
        joint.feed(&bytes);
        if joint.has_more || bytes.len() as u64 != size.get() || segment.end(size) >= end {
            break;
        }
        segment = segment.next();
    }
    Ok(if joint.is_there && (joint.has_more || at >= end) {
        Ok(())
    } else {
        Err(format!("the log of timeline {timeline} does not go on at {at}: the server may have been set back"))
    })
}

/// Log that is being read for what lies at one position.
struct Joint {
    decoder: WalDecoder,
    at: Lsn,
    /// A record ends or begins there.
    is_there: bool,
    /// And one follows.
    has_more: bool,
}

impl Joint {
    const fn new(decoder: WalDecoder, at: Lsn) -> Self {
        Self { decoder, at, is_there: false, has_more: false }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let Self { decoder, at, is_there, has_more } = self;
        let fed = decoder.feed(bytes, &mut |record| {
            *is_there |= record.end == *at || record.lsn == *at;
            *has_more |= record.lsn >= *at;
        });
        if let Err(error) = fed {
            // What was seen before counts; behind it the log may end.
            tracing::debug!(%error, %at, "the log around a joint ends");
        }
    }
}

/// Why one timeline does not continue the other at `switch`: its first segment begins with a copy of the other's last one.
pub(crate) async fn check_switch(
    log: &Log<'_>,
    (parent, child): (Timeline, Timeline),
    switch: Lsn,
) -> Result<Result<(), String>, BackupError> {
    let size = log.lineage.segment_size;
    let shared = switch.get() % size.get();
    if shared == 0 {
        return Ok(Ok(()));
    }
    let mut copies = Vec::new();
    for timeline in [parent, child] {
        let segment = Segment::containing(timeline, switch, size);
        copies.push(log.keyring.segment(log.source, log.lineage, segment).await?.unwrap_or_default());
    }
    let beginnings: Vec<_> = copies.iter().map(|copy| copy.get(..shared as usize)).collect();
    Ok(match beginnings.as_slice() {
        [Some(one), Some(other)] if one == other => Ok(()),
        [Some(_), Some(_)] => {
            Err(format!("timeline {child} does not continue the log of timeline {parent} that is in the repository"))
        }
        _ => Err(format!("the log in which timeline {child} leaves timeline {parent}, before {switch}, is missing")),
    })
}

#[cfg(test)]
mod tests {
    use holdfast_types::SegmentSize;

    use super::*;

    /// Real log, and where its records begin and end.
    fn workload() -> (Vec<u8>, Lsn, SegmentSize, Vec<(Lsn, Lsn)>) {
        let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../pgformat/tests/fixtures/15/workload.wal");
        let bytes = std::fs::read(fixture).unwrap();
        // `xlp_pageaddr` of the first page, and `xlp_seg_size` of its long header.
        let start = Lsn::new(u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
        let size = u64::from(u32::from_le_bytes(bytes[32..36].try_into().unwrap()));
        let size = SegmentSize::new(size).unwrap();
        let mut records = Vec::new();
        let mut decoder = WalDecoder::new(15, size, start).unwrap();
        decoder.feed(&bytes, &mut |record| records.push((record.lsn, record.end))).ok();
        (bytes, start, size, records)
    }

    fn joint(parts: &[&[u8]], start: Lsn, size: SegmentSize, at: Lsn) -> (bool, bool) {
        let mut joint = Joint::new(WalDecoder::new(15, size, start).unwrap(), at);
        for part in parts {
            joint.feed(part);
        }
        (joint.is_there, joint.has_more)
    }

    #[test]
    fn a_position_of_the_same_history_is_known() {
        let (bytes, start, size, records) = workload();
        assert!(records.len() > 100);
        let (before, after) = bytes.split_at(bytes.len() / 2);
        let last = records.len() - 1;
        for (lsn, end) in records[..last].iter().step_by(37) {
            for at in [lsn, end] {
                assert_eq!(joint(&[before, after], start, size, *at), (true, true), "{at}");
            }
        }
        assert_eq!(joint(&[&bytes], start, size, records[last].1), (true, false), "the end");
        let inside = records.iter().filter(|(lsn, end)| end.bytes_since(*lsn) > 64).step_by(37);
        for (lsn, _) in inside {
            assert!(!joint(&[&bytes], start, size, lsn.advance(32)).0, "inside the record at {lsn}");
        }
    }

    #[test]
    fn log_that_does_not_follow_from_what_is_before_is_not_known() {
        let (bytes, start, size, records) = workload();
        let (lsn, end) = records[records.len() / 2];
        // A record before is another one: what follows does not point to it.
        let mut other = bytes.clone();
        other[records[records.len() / 4].0.bytes_since(start) as usize + 8] ^= 1;
        for position in [lsn, end] {
            assert_eq!(joint(&[&other], start, size, position), (false, false));
        }
        // Another history goes on in the middle of nothing.
        let mut mixed = bytes;
        let at = end.bytes_since(start) as usize;
        mixed.copy_within(at + 64.., at);
        assert_eq!(joint(&[&mixed], start, size, end), (true, false));
    }
}
