//! Keeping restores fast: a frame of which few pages are still in use costs a restore as much as a whole one.
//!
//! A snapshot that builds on others uses parts of many frames. What a restore reads and decompresses beyond what it needs
//! is waste; when there is more of it than the budget allows, the frames with the least use are given up: what is used of
//! them is read again from the database and stored anew. Pure.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use holdfast_format::map::{Run, RunSource};
use holdfast_pgformat::page::PAGE_SIZE;
use holdfast_types::PackId;

use crate::base::Base;
use crate::scan::FileTask;
use crate::select::Reading;

/// Waste that is let be, of what a restore needs. Half as much would cost twice the rewriting.
const BUDGET: f64 = 0.1;

/// A frame, wherever it is mentioned.
pub(crate) type FrameKey = (PackId, u32);

/// How much of a frame is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub raw: u64,
    pub used: u64,
}

/// The frames to give up, so that the waste stays within the budget. `fresh` bytes come in frames without waste.
pub(crate) fn give_up(usage: &HashMap<FrameKey, Usage>, fresh: u64) -> HashSet<FrameKey> {
    let wasted = |usage: &Usage| usage.raw.saturating_sub(usage.used);
    let needed = fresh + usage.values().map(|usage| usage.used).sum::<u64>();
    let mut waste: u64 = usage.values().map(wasted).sum();
    let allowed = (needed as f64 * BUDGET) as u64;
    if waste <= allowed {
        return HashSet::new();
    }
    let mut frames: Vec<(&FrameKey, &Usage)> = usage.iter().filter(|(_, usage)| wasted(usage) > 0).collect();
    // The most waste for the least reading first; the key makes the choice the same every time.
    frames.sort_by(|(a, one), (b, other)| {
        let (one, other) = (one.used * other.raw, other.used * one.raw);
        one.cmp(&other).then_with(|| a.cmp(b))
    });
    let mut given_up = HashSet::new();
    for (key, usage) in frames {
        if waste <= allowed {
            break;
        }
        waste -= wasted(usage);
        given_up.insert(*key);
    }
    given_up
}

/// Adds to what is read of each file what lies in frames that cost a restore too much. Gives the bytes that this adds.
pub(crate) fn rewrite(files: &mut [FileTask], base: &Base) -> u64 {
    let mut usage: HashMap<FrameKey, Usage> = HashMap::new();
    for task in files.iter() {
        each_kept(task, base, |key, raw, part| {
            let usage = usage.entry(key).or_default();
            usage.raw = raw;
            // Several files may use the same bytes of a frame only by an odd coincidence.
            usage.used = (usage.used + part.end - part.start).min(raw);
        });
    }
    let fresh = files.iter().map(FileTask::bytes_to_read).sum();
    let given_up = give_up(&usage, fresh);
    if given_up.is_empty() {
        return 0;
    }
    let mut added = 0;
    for task in files {
        let mut more: Vec<Range<u32>> = Vec::new();
        each_kept(task, base, |key, _, part| {
            if given_up.contains(&key) {
                let page = PAGE_SIZE as u64;
                more.push((part.start / page) as u32..part.end.div_ceil(page) as u32);
            }
        });
        if let Reading::Pages(ranges) = &mut task.reading
            && !more.is_empty()
        {
            let before = pages(ranges);
            ranges.append(&mut more);
            *ranges = united(std::mem::take(ranges));
            added += (pages(ranges) - before) * PAGE_SIZE as u64;
        }
    }
    added
}

fn pages(ranges: &[Range<u32>]) -> u64 {
    ranges.iter().map(|range| range.len() as u64).sum()
}

/// In order, without overlaps or neighbours.
fn united(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut united: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match united.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => united.push(range),
        }
    }
    united
}

/// The parts of a file that stay as they are in frames of the base: which frame, its plain bytes, and the part.
fn each_kept(task: &FileTask, base: &Base, mut sink: impl FnMut(FrameKey, u64, Range<u64>)) {
    let Reading::Pages(ranges) = &task.reading else { return };
    let Some((_, runs, map)) = base.file(&task.name) else { return };
    let mut changed = ranges
        .iter()
        .map(|range| u64::from(range.start) * PAGE_SIZE as u64..u64::from(range.end) * PAGE_SIZE as u64)
        .peekable();
    let mut at = 0;
    for Run { len, source } in runs {
        let end = (at + len).min(task.size);
        let RunSource::Frame { frame, .. } = source else {
            at += len;
            continue;
        };
        let Some((pack, frame)) = base.frame((map, *frame)) else { return };
        let mut from = at;
        while from < end {
            while changed.next_if(|changed| changed.end <= from).is_some() {}
            let (kept_to, next) = match changed.peek() {
                Some(changed) if changed.start < end => (changed.start.max(from), changed.end.min(end)),
                _ => (end, end),
            };
            if from < kept_to {
                sink((pack.id, frame.location.index), u64::from(frame.location.raw_len), from..kept_to);
            }
            from = next;
        }
        at += len;
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "ranges are what is meant")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usage(frames: &[(u64, u64)]) -> HashMap<FrameKey, Usage> {
        let key = |number: usize| (PackId::new([7; 32]), number as u32);
        frames.iter().enumerate().map(|(number, (raw, used))| (key(number), Usage { raw: *raw, used: *used })).collect()
    }

    #[test]
    fn within_the_budget_nothing_is_read_again() {
        assert!(give_up(&usage(&[(100, 95), (100, 90)]), 0).is_empty());
        assert!(give_up(&HashMap::new(), 0).is_empty());
    }

    #[test]
    fn the_least_used_frame_goes_first() {
        let given_up = give_up(&usage(&[(100, 90), (100, 10), (100, 100)]), 0);
        assert_eq!(given_up.into_iter().map(|(_, index)| index).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn ranges_are_united() {
        assert_eq!(united(vec![5..7, 0..2, 2..3, 6..9]), [0..3, 5..9]);
        assert_eq!(united(vec![1..9, 2..3]), [1..9]);
    }

    proptest! {
        #[test]
        fn what_stays_is_within_the_budget(frames in prop::collection::vec((1u64..1000, 0u64..1000), 0..60), fresh in 0u64..10_000) {
            let frames: Vec<_> = frames.into_iter().map(|(raw, used)| (raw, used % (raw + 1))).collect();
            let usage = usage(&frames);
            let given_up = give_up(&usage, fresh);
            let needed: u64 = fresh + frames.iter().map(|(_, used)| used).sum::<u64>();
            let stays = usage.iter().filter(|(key, _)| !given_up.contains(key));
            let waste: u64 = stays.map(|(_, usage)| usage.raw - usage.used).sum();
            prop_assert!(waste <= (needed as f64 * BUDGET) as u64);
        }
    }
}
