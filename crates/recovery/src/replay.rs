//! How far replay is, for whoever waits for it.
//!
//! The server is not asked, as it may let nobody in: its startup process says which segment it reads, and the control file
//! how far. Moments are those that the log's own index has. Nothing is decided by any of it.

use std::path::Path;
use std::time::Duration;

use holdfast_format::wal::{LogIndex, Moment};
use holdfast_pgformat::ControlFile;
use holdfast_repository::{Keyring, LogObject};
use holdfast_runtime::Progress;
use holdfast_types::{Lsn, Micros, Segment, SegmentSize, Timeline};
use tokio::task::JoinSet;

use crate::RestoreError;
use crate::plan::Plan;
use crate::points;

/// How often the index is asked, which takes requests to the repository.
const ASK: Duration = Duration::from_secs(1);

/// Watches the replay of a plan until it is dropped.
pub(crate) struct Replay {
    progress: Progress,
    from: Lsn,
    size: SegmentSize,
    _moments: JoinSet<()>,
}

impl Replay {
    pub(crate) fn watch(keyring: &Keyring, plan: &Plan, progress: &Progress) -> Self {
        let moments = Moments {
            keyring: keyring.clone(),
            source: plan.source.clone(),
            timeline: plan.timeline,
            from: (plan.summary().timeline, plan.log_from),
            to: plan.log_to,
            progress: progress.clone(),
        };
        let lineage = plan.lineage;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            if let Err(error) = moments.show(lineage).await {
                tracing::debug!(%error, "which time was reached is not shown");
            }
        });
        Self { progress: progress.clone(), from: plan.log_from, size: lineage.segment_size, _moments: tasks }
    }

    /// Looks once.
    pub(crate) fn look(&self, data_directory: &Path, control: Option<&ControlFile>) {
        let Some(segment) = segment(data_directory, self.size) else { return };
        let needed = control.map_or(Lsn::ZERO, |control| control.min_recovery_point);
        let lsn = position(segment, self.size, needed).max(self.from);
        self.progress.reach(lsn);
        let lsn = self.progress.read().position.map_or(lsn, |position| position.lsn);
        self.progress.set(lsn.bytes_since(self.from));
    }
}

/// The segment in the title of the startup process: `postgres: startup recovering 000000010000000000000005`.
fn segment(data_directory: &Path, size: SegmentSize) -> Option<Segment> {
    let text = std::fs::read_to_string(data_directory.join("postmaster.pid")).ok()?;
    let postmaster = text.lines().next()?.trim();
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let title = std::fs::read(format!("/proc/{child}/cmdline")).ok()?;
        segment_of_title(&String::from_utf8_lossy(&title), size)
    })
}

fn segment_of_title(title: &str, size: SegmentSize) -> Option<Segment> {
    let (_, rest) = title.split_once("recovering ")?;
    let name = rest.trim_matches(|c: char| !c.is_ascii_hexdigit());
    Segment::parse(name.get(..24)?, size).ok()
}

/// Where in its segment replay is at least. It puts the position into the control file whenever it writes pages, so that is
/// often finer, and seldom stale.
fn position(segment: Segment, size: SegmentSize, needed: Lsn) -> Lsn {
    let is_within = segment.start(size) <= needed && needed <= segment.end(size);
    if is_within { needed } else { segment.start(size) }
}

/// The newest commit up to a position, as the index of the log that ends there has it.
fn last_until(moments: &[Moment], lsn: Lsn) -> Option<Micros> {
    moments.iter().rev().find(|moment| moment.lsn <= lsn).map(|moment| moment.at)
}

/// The object with the log right before a position.
fn before(objects: &[LogObject], lsn: Lsn) -> Option<&LogObject> {
    objects.iter().rev().find(|object| object.range.start < lsn)
}

struct Moments {
    keyring: Keyring,
    source: String,
    timeline: Timeline,
    from: (Timeline, Lsn),
    to: Lsn,
    progress: Progress,
}

impl Moments {
    /// Puts the time that was reached beside the position, until it is dropped.
    async fn show(&self, lineage: holdfast_repository::Lineage) -> Result<(), RestoreError> {
        let view = self.keyring.repository().log(&self.source, lineage).await?;
        let path = points::Path::to(&self.keyring, &self.source, lineage, self.timeline).await?;
        let objects = path.objects(&view, self.from.0, self.from.1, self.to);
        let mut last: Option<(LogObject, LogIndex)> = None;
        let mut ticks = tokio::time::interval(ASK);
        loop {
            ticks.tick().await;
            let Some(position) = self.progress.read().position else { continue };
            let Some(object) = before(&objects, position.lsn) else { continue };
            if last.as_ref().is_none_or(|(of, _)| of != object) {
                last = Some((object.clone(), self.keyring.log_index(object).await?));
            }
            if let Some((_, index)) = &last
                && let Some(time) = last_until(&index.moments, position.lsn)
            {
                self.progress.reach_time(time);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn the_title_names_a_segment() {
        let found = Some(Segment::new(Timeline::new(2), 0x105));
        for title in [
            "postgres: startup recovering 000000020000000100000005\0\0",
            "postgres: chat: startup   recovering 000000020000000100000005",
        ] {
            assert_eq!(segment_of_title(title, SIZE), found, "{title}");
        }
        for title in ["", "postgres: startup waiting for 000000020000000100000005", "recovering ", "recovering 0000"] {
            assert_eq!(segment_of_title(title, SIZE), None, "{title}");
        }
    }

    #[test]
    fn the_control_file_is_finer_within_the_segment_only() {
        let segment = Segment::new(Timeline::FIRST, 5);
        for (needed, expected) in [
            ("0/0", "0/5000000"),
            ("0/4FFFFF8", "0/5000000"),
            ("0/5ABCDE8", "0/5ABCDE8"),
            ("0/6000000", "0/6000000"),
            ("0/6000008", "0/5000000"),
        ] {
            assert_eq!(position(segment, SIZE, lsn(needed)), lsn(expected), "{needed}");
        }
    }

    #[test]
    fn the_time_is_that_of_the_last_commit() {
        let moment = |at, lsn| Moment { at: Micros::new(at), lsn: Lsn::new(lsn) };
        let moments = [moment(10, 100), moment(20, 200)];
        let until = |lsn| last_until(&moments, Lsn::new(lsn)).map(Micros::get);
        assert_eq!([99, 100, 199, 200, 999].map(until), [None, Some(10), Some(10), Some(20), Some(20)]);
    }
}
