//! `restore_command`: one segment or timeline history at a time, as the repository has it. What was fetched ahead of it is
//! asked for first, see `ahead.rs`.
//!
//! This is the most dangerous interface there is: if recovery is told that a segment does not exist, it takes that for
//! the end of the log and promotes. So [`GetOutcome::NotFound`] is answered only when the repository was asked and has
//! neither the segment nor anything after it, on its timeline or on those that recovery would go on to; whatever else keeps
//! us from answering is an error, on which recovery has to stop.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_pgformat::{HistoryError, TimelineHistory};
use holdfast_repository::{Keyring, Lineage, LogView, RepositoryError};
use holdfast_types::{Lsn, Segment, SegmentSize, Timeline};

use crate::RestoreError;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct GetOptions {
    pub source: String,
    pub lineage: Lineage,
    /// PostgreSQL's `%f`.
    pub name: String,
    /// PostgreSQL's `%p`.
    pub destination: PathBuf,
    /// Serve what there is of an unfinished segment, with zeros behind: for recovery to the newest point.
    pub partial: bool,
    /// Recovery stops at this position at the latest, so that log missing after it is no concern.
    pub until: Option<Lsn>,
    /// Serve nothing behind `until`, as if the log ended there: no record at which recovery could be told to stop was
    /// there when the target was chosen, and what came since was not asked for.
    pub cut: bool,
    pub follows: Follows,
}

/// The timeline that recovery follows: `recovery_target_timeline`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Follows {
    /// Nobody said.
    #[default]
    Unknown,
    /// Whatever is the newest when a file is asked for.
    Latest,
    Timeline(Timeline),
}

impl Follows {
    /// By number, if it was given one.
    pub const fn timeline(self) -> Option<Timeline> {
        match self {
            Self::Timeline(timeline) => Some(timeline),
            Self::Unknown | Self::Latest => None,
        }
    }
}

impl GetOptions {
    /// Where the cut is.
    fn cut_at(&self) -> Option<Lsn> {
        self.until.filter(|_| self.cut)
    }

    /// Whether all of a segment may be served, so that one which was fetched ahead will do.
    pub fn is_before_cut(cut: bool, until: Option<Lsn>, segment: Segment, size: SegmentSize) -> bool {
        !cut || until.is_none_or(|until| segment.end(size) <= until)
    }
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetOutcome {
    Fetched,
    /// The log ends before this file.
    NotFound,
    /// There is nothing of such a source, so that this says nothing of any log.
    NoSuchSource,
}

/// Whether the file exists could not be found out, or it cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    #[error("`{0}` is not the name of a file that PostgreSQL asks for")]
    Name(String),
    #[error("the log of timeline {timeline} has a gap at {at}: there is more after it")]
    Gap { timeline: Timeline, at: Lsn },
    #[error("timeline {timeline} was left at {at} for timeline {other}, but has log behind that as well")]
    Undecided { timeline: Timeline, at: Lsn, other: Timeline },
    #[error("timeline {timeline} has log in the repository, but its history is not there")]
    NoHistory { timeline: Timeline },
    #[error("the history of timeline {timeline} cannot be used")]
    History {
        timeline: Timeline,
        #[source]
        source: HistoryError,
    },
    #[error("the log went on changing while `{name}` was looked for")]
    Unsettled { name: String },
    #[error("{} has something in it, so segments are not fetched ahead to there", .path.display())]
    NotOurs { path: PathBuf },
    #[error("could not write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the way to timeline {timeline} could not be found")]
    Timeline {
        timeline: Timeline,
        #[source]
        source: Box<RestoreError>,
    },
    #[error("could not fetch `{name}`")]
    Repository {
        name: String,
        #[source]
        source: RepositoryError,
    },
}

/// How often to look again at a log that grows meanwhile.
const LOOKS: u32 = 50;

/// Fetches one file for recovery.
pub async fn get(keyring: &Keyring, options: &GetOptions) -> Result<GetOutcome, GetError> {
    let name = &options.name;
    let failed = |source| GetError::Repository { name: name.clone(), source };
    if let Some(digits) = name.strip_suffix(".history") {
        let timeline = u32::from_str_radix(digits, 16).map_err(|_| GetError::Name(name.clone()))?;
        let timeline = Timeline::new(timeline);
        let history = keyring.history(&options.source, options.lineage, timeline);
        // At once: recovery asks for histories that are not there before it opens the cluster, and waits.
        let (history, is_known) = tokio::try_join!(history, is_known(keyring, &options.source)).map_err(failed)?;
        return match history {
            Some(bytes) => write(&options.destination, &bytes).map(|()| GetOutcome::Fetched),
            None if !is_known => Ok(GetOutcome::NoSuchSource),
            // Recovery would take the timeline's number for its own. One that follows it needs no history if its log begins
            // with it.
            None if options.follows != Follows::Timeline(timeline)
                && keyring
                    .repository()
                    .has_log(&options.source, options.lineage, timeline)
                    .await
                    .map_err(failed)? =>
            {
                Err(GetError::NoHistory { timeline })
            }
            None => Ok(GetOutcome::NotFound),
        };
    }
    let size = options.lineage.segment_size;
    let segment = Segment::parse(name, size).map_err(|_| GetError::Name(name.clone()))?;
    let start = segment.start(size);
    let (left_at, undecided) = match left(keyring, options, segment.timeline()).await? {
        Left::Never => (None, None),
        Left::At(at) => (Some(at), None),
        Left::Perhaps(at, other) => (None, Some((at, other))),
    };
    let refuse_behind = |end: Lsn| match undecided {
        Some((at, other)) if end > at => Err(GetError::Undecided { timeline: segment.timeline(), at, other }),
        _ => Ok(()),
    };
    let stop = [options.cut_at(), left_at].into_iter().flatten().min();
    if stop.is_some_and(|stop| start >= stop) {
        return Ok(GetOutcome::NotFound);
    }
    // A receiver that runs adds to the log between two looks at it.
    for _ in 0..LOOKS {
        let found = keyring.segment(&options.source, options.lineage, segment).await.map_err(failed)?;
        let found = found.map(|bytes| before(stop, start, bytes));
        let end = found.as_ref().map_or(start, |bytes| start.advance(bytes.len() as u64));
        let bytes = match found {
            Some(bytes) if bytes.len() as u64 == size.get() => {
                refuse_behind(end)?;
                return write(&options.destination, &bytes).map(|()| GetOutcome::Fetched);
            }
            found => found,
        };
        // Before recovery is told that the log ends here, make sure that it does.
        let view = keyring.repository().log(&options.source, options.lineage).await.map_err(failed)?;
        let timeline = segment.timeline();
        let is_at_stop = stop == Some(end);
        let is_enough = is_at_stop || options.until.is_some_and(|until| end >= until);
        if !is_enough && view.objects(timeline).iter().any(|object| object.range.end > end) {
            if view.coverage(timeline).reach(start).is_some_and(|reach| reach > end) {
                continue;
            }
            return Err(GetError::Gap { timeline, at: end });
        }
        if !is_enough && goes_on_elsewhere(keyring, options, &view, timeline, end).await? {
            return Err(GetError::Gap { timeline, at: end });
        }
        return match bytes.filter(|_| options.partial || options.cut || is_at_stop) {
            Some(mut bytes) => {
                refuse_behind(end)?;
                bytes.resize(size.get() as usize, 0);
                write(&options.destination, &bytes).map(|()| GetOutcome::Fetched)
            }
            None if view.timelines().next().is_some() => Ok(GetOutcome::NotFound),
            None if is_known(keyring, &options.source).await.map_err(failed)? => Ok(GetOutcome::NotFound),
            None => Ok(GetOutcome::NoSuchSource),
        };
    }
    Err(GetError::Unsettled { name: name.clone() })
}

/// Whether the timeline that recovery follows left this one only after `end`, and there is log after that: then what is
/// missing is not the end of the log.
///
/// The first segment of a timeline begins with a copy of what came before the switch, so that the segment of the switch
/// itself need not be there on the timeline that was left.
async fn goes_on_elsewhere(
    keyring: &Keyring,
    options: &GetOptions,
    view: &LogView,
    timeline: Timeline,
    end: Lsn,
) -> Result<bool, GetError> {
    let newest = || view.histories.last().copied();
    let Some(followed) = options.follows.timeline().or_else(newest) else { return Ok(false) };
    if followed <= timeline {
        return Ok(false);
    }
    let history = history(keyring, options, followed).await?;
    let mut way = history.entries().iter().skip_while(|entry| entry.timeline != timeline);
    let Some(left) = way.next() else { return Ok(false) };
    let size = view.lineage.segment_size.get();
    let mut later = way.map(|entry| entry.timeline).chain([followed]);
    Ok(end.get() < left.switch.get() / size * size
        && later.any(|later| view.end(later).is_some_and(|newest| newest > end)))
}

/// Where recovery leaves a timeline.
enum Left {
    Never,
    /// What the older server wrote behind it is of another history; PostgreSQL would take it where the followed timeline
    /// has no segment, because it then tries those before it.
    At(Lsn),
    /// If it follows this other timeline. A segment that goes on behind that is right for a recovery that does not, and
    /// poison for one that does: neither "take it" nor "there is no more" can be said.
    Perhaps(Lsn, Timeline),
}

async fn left(keyring: &Keyring, options: &GetOptions, timeline: Timeline) -> Result<Left, GetError> {
    if let Follows::Timeline(followed) = options.follows {
        if followed <= timeline {
            return Ok(Left::Never);
        }
        let at = history(keyring, options, followed).await?.switch_point(timeline);
        return Ok(at.map_or(Left::Never, Left::At));
    }
    let failed = |source| GetError::Repository { name: options.name.clone(), source };
    let histories = keyring.repository().histories(&options.source, options.lineage).await.map_err(failed)?;
    let mut switches = Vec::new();
    for other in histories.into_iter().filter(|other| *other > timeline) {
        let at = history(keyring, options, other).await?.switch_point(timeline);
        switches.extend(at.map(|at| (at, other)));
    }
    let (first, last) = (switches.iter().min().copied(), switches.iter().max().copied());
    Ok(match (first, last) {
        // Whatever is the newest by now, it left here.
        (Some((first, _)), Some((last, _))) if first == last && options.follows == Follows::Latest => Left::At(first),
        (Some((at, other)), _) => Left::Perhaps(at, other),
        (None, _) => Left::Never,
    })
}

async fn history(keyring: &Keyring, options: &GetOptions, timeline: Timeline) -> Result<TimelineHistory, GetError> {
    let bytes = keyring.history(&options.source, options.lineage, timeline).await;
    let bytes = bytes.map_err(|source| GetError::Repository { name: options.name.clone(), source })?;
    // Only the first timeline has none: without it, the way to this one would be taken to begin here.
    let bytes = bytes.ok_or(GetError::NoHistory { timeline })?;
    let history = TimelineHistory::parse(timeline, &bytes);
    history.map_err(|source| GetError::History { timeline, source })
}

/// What of the log, from `start` on, lies before `stop`.
fn before(stop: Option<Lsn>, start: Lsn, mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(stop) = stop {
        bytes.truncate(usize::try_from(stop.get().saturating_sub(start.get())).unwrap_or(usize::MAX));
    }
    bytes
}

/// Whether there is anything of the source: a misspelt one has no log either, and that must not end a recovery.
async fn is_known(keyring: &Keyring, source: &str) -> Result<bool, RepositoryError> {
    Ok(keyring.repository().sources().await?.iter().any(|known| known == source))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), GetError> {
    std::fs::write(path, bytes).map_err(|source| GetError::Write { path: path.to_owned(), source })
}
