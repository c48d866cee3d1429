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
    /// `latest`, as far as the data directory tells where that has led.
    Latest(LatestProgress),
    Timeline(Timeline),
}

/// How far a recovery to the latest timeline has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatestProgress {
    /// The newest timeline that it has turned to since it began: PostgreSQL keeps the histories of these in `pg_wal`.
    pub turned_to: Option<Timeline>,
    /// A standby turns to a newer one whenever it finds one, and waits where there is no log; what is no standby stays with what
    /// it found when it began, and ends where there is no log.
    pub is_standby: bool,
}

impl LatestProgress {
    /// That of the server with this data directory; `None` if it is none.
    pub fn of(data_directory: &Path) -> io::Result<Option<Self>> {
        let entries = match std::fs::read_dir(data_directory.join("pg_wal")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        let mut turned_to = None;
        for entry in entries {
            let name = entry?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(".history"));
            let timeline = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).map(Timeline::new);
            turned_to = turned_to.max(timeline);
        }
        Ok(Some(Self { turned_to, is_standby: data_directory.join("standby.signal").try_exists()? }))
    }
}

impl Follows {
    /// By number, if it was given one.
    pub const fn timeline(self) -> Option<Timeline> {
        match self {
            Self::Timeline(timeline) | Self::Latest(LatestProgress { turned_to: Some(timeline), .. }) => Some(timeline),
            Self::Unknown | Self::Latest(_) => None,
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
        source: Box<RepositoryError>,
    },
}

/// How often to look again at a log that grows meanwhile.
const LOOKS: u32 = 50;

/// Fetches one file for recovery.
pub async fn get(keyring: &Keyring, options: &GetOptions) -> Result<GetOutcome, GetError> {
    let name = &options.name;
    let failed = |source| GetError::Repository { name: name.clone(), source: Box::new(source) };
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
                // Whoever stored log of it has stored the history before.
                match keyring.history(&options.source, options.lineage, timeline).await.map_err(failed)? {
                    Some(bytes) => write(&options.destination, &bytes).map(|()| GetOutcome::Fetched),
                    None => Err(GetError::NoHistory { timeline }),
                }
            }
            None => Ok(GetOutcome::NotFound),
        };
    }
    let size = options.lineage.segment_size;
    let segment = Segment::parse(name, size).map_err(|_| GetError::Name(name.clone()))?;
    let start = segment.start(size);
    let (left_at, undecided) = match left(keyring, options, segment).await? {
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
    let of_interest: Vec<Timeline> = match options.follows {
        // It asks again.
        Follows::Latest(LatestProgress { is_standby: true, .. }) => return Ok(false),
        Follows::Latest(LatestProgress { turned_to, .. }) => turned_to.into_iter().collect(),
        Follows::Timeline(followed) => vec![followed],
        Follows::Unknown => view.histories.iter().copied().collect(),
    };
    for followed in of_interest.into_iter().filter(|followed| *followed > timeline) {
        let history = history(keyring, options, followed).await?;
        let mut way = history.entries().iter().skip_while(|entry| entry.timeline != timeline);
        let Some(left) = way.next() else { continue };
        let size = view.lineage.segment_size.get();
        let mut later = way.map(|entry| entry.timeline).chain([followed]);
        if end.get() < left.switch.get() / size * size
            && later.any(|later| view.end(later).is_some_and(|newest| newest > end))
        {
            return Ok(true);
        }
    }
    Ok(false)
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

async fn left(keyring: &Keyring, options: &GetOptions, segment: Segment) -> Result<Left, GetError> {
    let timeline = segment.timeline();
    if let Some(followed) = options.follows.timeline()
        && followed > timeline
    {
        let at = history(keyring, options, followed).await?.switch_point(timeline);
        return Ok(at.map_or(Left::Never, Left::At));
    }
    let is_standby = match options.follows {
        Follows::Timeline(_) | Follows::Latest(LatestProgress { is_standby: false, .. }) => return Ok(Left::Never),
        Follows::Latest(_) => true,
        Follows::Unknown => false,
    };
    let failed = |source| GetError::Repository { name: options.name.clone(), source: Box::new(source) };
    let histories = keyring.repository().histories(&options.source, options.lineage).await.map_err(failed)?;
    let mut first: Option<(Lsn, Timeline)> = None;
    for other in histories.into_iter().filter(|other| *other > timeline) {
        let at = history(keyring, options, other).await?.switch_point(timeline);
        let known = first.into_iter().chain(at.map(|at| (at, other)));
        first = known.min();
    }
    Ok(match first {
        None => Left::Never,
        // It looks for newer timelines where the log ends, and will find this one there. One that asks for what lies behind
        // has passed the place, and cannot turn to it any more.
        Some((at, _)) if is_standby && segment.start(options.lineage.segment_size) <= at => Left::At(at),
        Some((at, other)) => Left::Perhaps(at, other),
    })
}

async fn history(keyring: &Keyring, options: &GetOptions, timeline: Timeline) -> Result<TimelineHistory, GetError> {
    let bytes = keyring.history(&options.source, options.lineage, timeline).await;
    let bytes =
        bytes.map_err(|source| GetError::Repository { name: options.name.clone(), source: Box::new(source) })?;
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
