//! Deciding how a target is reached: which snapshot, which timeline, which log. Touches nothing.

use std::fmt;

use holdfast_format::manifest::{Manifest, Summary};
use holdfast_format::wal::{CreatedTablespace, Moment};
use holdfast_repository::{Keyring, Lineage, LogView};
use holdfast_types::{Lsn, Micros, SnapshotId, Timeline};

use crate::RestoreError;
use crate::points::{LOOKS, Path, first_segment};

/// What to recover to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The newest point that the log reaches.
    Latest,
    /// All that was committed up to a moment.
    Time(Micros),
    /// A position in the log.
    Lsn(Lsn),
    /// A point that was named with `pg_create_restore_point()`.
    Name(String),
    /// The end of the snapshot: the first consistent point.
    Consistent,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the newest point"),
            Self::Time(at) => write!(f, "{}", time(*at)),
            Self::Lsn(lsn) => write!(f, "{lsn}"),
            Self::Name(name) => write!(f, "restore point `{name}`"),
            Self::Consistent => f.write_str("the end of the snapshot"),
        }
    }
}

pub(crate) fn time(at: Micros) -> String {
    jiff::Timestamp::from_microsecond(at.get()).map_or_else(|_| format!("{} µs", at.get()), |at| at.to_string())
}

/// How a target will be reached.
#[derive(Clone, Debug)]
pub struct Plan {
    pub source: String,
    pub lineage: Lineage,
    pub target: Target,
    /// What PostgreSQL is told to stop at; it differs from `target` where that is the very end of the log.
    pub stop_at: Target,
    pub manifest: Manifest,
    pub timeline: Timeline,
    /// The log that will be replayed.
    pub log_from: Lsn,
    pub log_to: Lsn,
    /// The last commit that the log holds.
    pub newest: Option<Moment>,
    /// Sealed bytes to fetch for the files.
    pub fetch_bytes: u64,
    /// Tablespaces that replay will make where they were.
    pub created_tablespaces: Vec<CreatedTablespace>,
    pub notes: Vec<String>,
}

impl Plan {
    pub fn summary(&self) -> &Summary {
        &self.manifest.summary
    }

    /// Where the log may end without harm. Whoever asked for all of it must have all that there is.
    pub fn until(&self) -> Option<Lsn> {
        (self.target != Target::Latest).then_some(self.log_to)
    }

    /// Whether nothing behind [`until()`](Self::until) may be replayed: no record at which PostgreSQL could be told to
    /// stop was in the log, and one that is written before replay gets there must not be taken for part of the target.
    pub fn is_cut(&self) -> bool {
        self.target != Target::Latest && self.stop_at == Target::Latest
    }

    /// Bytes of log between the snapshot's start and the target, at the most.
    pub fn log_bytes(&self) -> u64 {
        self.log_to.bytes_since(self.log_from)
    }
}

/// Chooses the newest snapshot from which the target can be reached.
pub async fn plan(
    keyring: &Keyring,
    source: &str,
    target: Target,
    snapshot: Option<SnapshotId>,
    timeline: Option<Timeline>,
) -> Result<Plan, RestoreError> {
    for _ in 1..LOOKS {
        match make(keyring, source, target.clone(), snapshot.clone(), timeline).await {
            Err(RestoreError::Repository(error)) if error.is_not_found() => {
                tracing::debug!(%error, "the repository changed while it was looked at");
            }
            outcome => return outcome,
        }
    }
    make(keyring, source, target, snapshot, timeline).await
}

async fn make(
    keyring: &Keyring,
    source: &str,
    target: Target,
    snapshot: Option<SnapshotId>,
    timeline: Option<Timeline>,
) -> Result<Plan, RestoreError> {
    let mut notes = Vec::new();
    let candidates = candidates(keyring, source, snapshot.as_ref(), &mut notes).await?;
    let newest = candidates.last().ok_or(RestoreError::NoSnapshot { source_name: source.to_owned() })?;
    let lineage = Lineage { system_id: newest.system_id, segment_size: newest.segment_size };
    let view = keyring.repository().log(source, lineage).await?;
    let timeline = match timeline {
        Some(timeline) => known_timeline(&view, source, timeline, &candidates)?,
        None if target == Target::Consistent => newest.timeline,
        None => choose_timeline(keyring, &view, newest.timeline, &mut notes).await?,
    };
    let path = Path::to(keyring, source, lineage, timeline).await?;

    // Those that begin last come first: the least log to replay. One from a standby may begin before one that is older.
    let mut of_cluster: Vec<_> = candidates.iter().filter(|summary| summary.system_id == lineage.system_id).collect();
    of_cluster.sort_by_key(|summary| (summary.timeline, summary.start_lsn, summary.stopped_at));
    let mut refusal = None;
    for summary in of_cluster.into_iter().rev() {
        match examine(keyring, &view, &path, summary, &target).await? {
            Ok(found) => {
                let manifest = keyring.snapshot(source, &summary.id).await?.manifest;
                let objects = path.objects(&view, summary.timeline, summary.start_lsn, found.log_to);
                let created_tablespaces = keyring.marks(&objects).await?.tablespaces;
                let fetch_bytes = manifest.packs.iter().map(|pack| pack.bytes).sum();
                return Ok(Plan {
                    source: source.to_owned(),
                    lineage,
                    target,
                    stop_at: found.stop_at,
                    log_from: summary.start_lsn,
                    log_to: found.log_to,
                    newest: found.newest,
                    manifest,
                    timeline,
                    fetch_bytes,
                    created_tablespaces,
                    notes,
                });
            }
            // Of several refusals the newest snapshot's says most; the oldest's says what is the earliest.
            Err(why) => drop(refusal.get_or_insert(why)),
        }
    }
    let why = refusal.unwrap_or_else(|| "no snapshot is on its timeline".to_owned());
    let nearest = nearest(keyring, &view, &path, &candidates).await?;
    Err(RestoreError::Unreachable { target: target.to_string(), why, nearest })
}

async fn candidates(
    keyring: &Keyring,
    source: &str,
    wanted: Option<&SnapshotId>,
    notes: &mut Vec<String>,
) -> Result<Vec<Summary>, RestoreError> {
    let mut summaries = Vec::new();
    for entry in keyring.repository().snapshots(source).await? {
        if wanted.is_some_and(|id| entry.name.file_name() != id.as_str()) {
            continue;
        }
        match entry.summary {
            Ok(summary) => summaries.push(summary),
            Err(error) if wanted.is_some() => return Err(error.into()),
            Err(error) => notes.push(format!("snapshot {} was passed over: {error}", entry.name.file_name())),
        }
    }
    if let Some(id) = wanted
        && summaries.is_empty()
    {
        return Err(RestoreError::UnknownSnapshot { source_name: source.to_owned(), id: id.to_string() });
    }
    summaries.sort_by_key(|summary| summary.stopped_at);
    Ok(summaries)
}

fn known_timeline(
    view: &LogView,
    source: &str,
    timeline: Timeline,
    candidates: &[Summary],
) -> Result<Timeline, RestoreError> {
    let of_snapshots = candidates.iter().map(|summary| summary.timeline);
    let mut known: Vec<_> = view.timelines().chain(view.histories.iter().copied()).chain(of_snapshots).collect();
    known.sort();
    known.dedup();
    if known.contains(&timeline) {
        Ok(timeline)
    } else {
        Err(RestoreError::UnknownTimeline { source_name: source.to_owned(), timeline, known })
    }
}

/// The timeline whose last commit is the newest. The highest number is not always right: a copy that was restored on the
/// side and promoted has a higher one than the server that went on serving.
async fn choose_timeline(
    keyring: &Keyring,
    view: &LogView,
    of_snapshot: Timeline,
    notes: &mut Vec<String>,
) -> Result<Timeline, RestoreError> {
    let timelines: Vec<_> = view.timelines().collect();
    let [_, _, ..] = timelines.as_slice() else { return Ok(timelines.first().copied().unwrap_or(of_snapshot)) };
    let mut best: Option<(Option<Micros>, Timeline)> = None;
    for timeline in &timelines {
        let last = keyring.moments(view.objects(*timeline)).await?.last.map(|moment| moment.at);
        best = best.max(Some((last, *timeline)));
    }
    let chosen = best.map_or(of_snapshot, |(_, timeline)| timeline);
    let others: Vec<_> = timelines.iter().filter(|other| **other != chosen).map(ToString::to_string).collect();
    notes.push(format!("timeline {chosen} has the newest commit; there are others: {}", others.join(", ")));
    Ok(chosen)
}

struct Found {
    stop_at: Target,
    log_to: Lsn,
    newest: Option<Moment>,
}

/// Whether the target can be reached from a snapshot; if not, why.
async fn examine(
    keyring: &Keyring,
    view: &LogView,
    path: &Path,
    summary: &Summary,
    target: &Target,
) -> Result<Result<Found, String>, RestoreError> {
    let id = &summary.id;
    if !path.history.contains(summary.timeline, summary.stop_lsn) {
        return Ok(Err(format!("snapshot {id} is not on the way to timeline {}", path.timeline())));
    }
    let reach = path.reach(view, summary.timeline, first_segment(summary));
    let Some(reach) = reach.filter(|reach| *reach >= summary.stop_lsn) else {
        return Ok(Err(format!(
            "log that snapshot {id} needs is missing ({} to {})",
            summary.start_lsn, summary.stop_lsn
        )));
    };
    let objects = path.objects(view, summary.timeline, summary.start_lsn, reach);
    let newest = keyring.moments(&objects).await?.last;
    let found = |stop_at: Target, log_to| Ok(Ok(Found { stop_at, log_to, newest }));
    match target {
        // Whoever asks for everything must not get less without having said so.
        Target::Latest if view.end(path.timeline()).is_some_and(|end| end > reach) => Ok(Err(format!(
            "the log after snapshot {id} has a gap at {reach}, and more behind it; `--lsn {reach}` recovers up to the gap"
        ))),
        Target::Latest => found(Target::Latest, reach),
        // Told to stop at the first consistent point, PostgreSQL reads on for one more record, which may be in another segment
        // or not be there at all, and fetches segments ahead. Where the log ends it needs none.
        Target::Consistent => found(Target::Latest, summary.stop_lsn),
        Target::Time(at) if *at < summary.stopped_at => {
            Ok(Err(format!("snapshot {id} was complete only at {}", time(summary.stopped_at))))
        }
        Target::Time(at) => match newest {
            Some(newest) if *at < newest.at => found(target.clone(), reach),
            Some(newest) if *at == newest.at => found(Target::Latest, reach),
            newest => {
                let last = newest.map_or_else(|| "none".to_owned(), |newest| time(newest.at));
                Ok(Err(format!("the last commit in the log of timeline {} is {last}", path.timeline())))
            }
        },
        Target::Lsn(lsn) if *lsn < summary.stop_lsn => {
            Ok(Err(format!("snapshot {id} is consistent only from {} on", summary.stop_lsn)))
        }
        Target::Lsn(lsn) if *lsn > reach => Ok(Err(format!("the log ends at {reach}"))),
        // PostgreSQL stops behind the first record that begins at or after the position. At the end of the log there is
        // none, and to replay it all is the same, as long as the log that is served ends where it ends now.
        Target::Lsn(lsn) => {
            let begins_later = record_begins_at_or_after(keyring, view, &objects, *lsn, summary).await?;
            found(if begins_later { target.clone() } else { Target::Latest }, reach)
        }
        Target::Name(name) => {
            let points = keyring.marks(&objects).await?.restore_points;
            match points.iter().find(|point| point.name == *name && point.lsn > summary.stop_lsn) {
                Some(point) => found(target.clone(), point.lsn),
                None => Ok(Err(format!("the log after snapshot {id} has no restore point of that name"))),
            }
        }
    }
}

/// Where that cannot be told, yes: PostgreSQL then looks for the position, and fails rather than to pass it.
async fn record_begins_at_or_after(
    keyring: &Keyring,
    view: &LogView,
    objects: &[holdfast_repository::LogObject],
    lsn: Lsn,
    summary: &Summary,
) -> Result<bool, RestoreError> {
    use holdfast_pgformat::WalDecoder;
    let size = view.lineage.segment_size;
    // Any record in a later segment will do.
    let Some(last) = objects.last() else { return Ok(false) };
    if last.segment.start(size) > lsn {
        return Ok(true);
    }
    let Some(bytes) = keyring.segment(&view.source, view.lineage, last.segment).await? else { return Ok(true) };
    let mut found = false;
    let decoder = WalDecoder::new(summary.server_version / 10_000, size, last.segment.start(size));
    let decoded = decoder.and_then(|mut decoder| decoder.feed(&bytes, &mut |record| found |= record.lsn >= lsn));
    tracing::debug!(?decoded, "looked for a record in the last segment");
    Ok(found || decoded.is_err_and(|error| !error.may_be_end()))
}

/// What can be reached instead, for people.
async fn nearest(
    keyring: &Keyring,
    view: &LogView,
    path: &Path,
    candidates: &[Summary],
) -> Result<Vec<String>, RestoreError> {
    let mut nearest = Vec::new();
    let usable: Vec<_> = candidates.iter().filter(|summary| path.reach_from(view, summary).is_some()).collect();
    if let Some(first) = usable.first() {
        nearest.push(format!("the earliest reachable point is {} (LSN {})", time(first.stopped_at), first.stop_lsn));
    }
    if let Some(last) = usable.last()
        && let Some(reach) = path.reach_from(view, last)
    {
        let objects = path.objects(view, last.timeline, last.start_lsn, reach);
        let commit = keyring.moments(&objects).await?.last;
        let commit = commit.map_or_else(String::new, |moment| format!("{} (commit), ", time(moment.at)));
        nearest.push(format!("the newest reachable point is {commit}LSN {reach}"));
    }
    Ok(nearest)
}
