//! Segments fetched ahead of recovery: by a process that runs beside it, for the `restore_command`s that take them.
//!
//! The two meet in a directory. A segment in it has its own name once it is whole, and that name with [`COMING`] behind
//! it while it is fetched, by which whoever asks for it knows that waiting is quicker than fetching it as well.
//!
//! *Consistency.* A segment that is not the right one would ruin the cluster, so what lies in the directory counts only
//! while the process that put it there lives, which a lock on [`SERVING`] says; before it takes that lock it removes
//! whatever it finds. So nothing is served that an earlier recovery left, or that a crash of the machine has emptied: the
//! files are not synced. Each restore has a directory of its own, because the process of an earlier one in the same
//! place may still run, for another source.
//!
//! *Crash.* The kernel lets go of the locks of a process that dies. Recovery then fetches by itself, and starts another.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_pgformat::TimelineHistory;
use holdfast_repository::{Keyring, Lineage};
use holdfast_types::{Lsn, Segment, SegmentSize, Timeline};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::task::JoinSet;

use crate::get::GetError;
use crate::points;

/// Locked by the one process that fetches.
const LOCK: &str = "holdfast.lock";
/// Locked by the same process once all that is there is its own.
const SERVING: &str = "serving";
/// Names a segment that was asked for and is not on the way: recovery has gone back.
const WANTED: &str = "wanted";
const COMING: &str = ".coming";

/// For how long a segment that is on the way is waited for.
const WAIT: Duration = Duration::from_mins(1);
/// How often it is looked for: a thousandth of what it takes to replay a segment is no loss.
const LOOK: Duration = Duration::from_millis(1);
/// How often the fetching process looks at what was taken.
const POLL: Duration = Duration::from_millis(10);
/// Nobody takes anything any more: recovery has ended. Longer than any segment takes to replay.
const IDLE: Duration = Duration::from_mins(2);

/// What lies ready or is on the way, at most; two segments at least.
const AHEAD_BYTES: u64 = 256 << 20;
/// What is fetched at once, at most; one segment at least. Each is in memory twice, sealed and plain.
const AT_ONCE_BYTES: u64 = 128 << 20;

fn ahead(size: SegmentSize) -> usize {
    (AHEAD_BYTES / size.get()).clamp(2, 16) as usize
}

fn at_once(size: SegmentSize) -> usize {
    (AT_ONCE_BYTES / size.get()).clamp(1, 8) as usize
}

/// What became of the wish for a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It is where it was wanted.
    Taken,
    /// A process fetches ahead, but will not bring this one soon: whoever wants it has to fetch it.
    Elsewhere,
    /// Nobody fetches ahead.
    Nobody,
}

/// Takes a segment that was fetched ahead, or is just being fetched: by a rename, without the repository or a key.
///
/// Any answer but [`Asked::Taken`] says nothing about the repository.
pub fn ask(directory: &Path, name: &str, destination: &Path) -> Asked {
    // Only segments are ever there; anything else might be a path to somewhere.
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Asked::Elsewhere;
    }
    let path = directory.join(name);
    let coming = directory.join(format!("{name}{COMING}"));
    let asked_at = Instant::now();
    let mut is_wanted = false;
    loop {
        if !is_served(directory) {
            return Asked::Nobody;
        }
        // In this order: it loses the one name when it gets the other.
        let is_coming = coming.exists();
        if fs::rename(&path, destination).is_ok() {
            return Asked::Taken;
        }
        if !is_coming || asked_at.elapsed() > WAIT {
            break;
        }
        is_wanted = true;
        std::thread::sleep(LOOK);
    }
    // One that was on the way and did not come is the end of what is whole: no reason to begin anew.
    if !is_wanted && let Err(error) = want(directory, name) {
        tracing::debug!(%error, "what fetches ahead is not told where recovery is");
    }
    Asked::Elsewhere
}

/// Whether a process fetches ahead to there, so that what lies in the directory may be used.
pub fn is_served(directory: &Path) -> bool {
    let Ok(file) = File::open(directory.join(SERVING)) else { return false };
    matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, Errno::EWOULDBLOCK)))
}

fn want(directory: &Path, name: &str) -> io::Result<()> {
    // Never seen in part.
    let temporary = directory.join(format!("{WANTED}.{}", std::process::id()));
    fs::write(&temporary, name)?;
    fs::rename(temporary, directory.join(WANTED))
}

/// Where segments are handed over, held by the one process that fetches them.
#[derive(Debug)]
pub struct Handover {
    directory: PathBuf,
    _lock: Flock<File>,
    _serving: Flock<File>,
}

impl Handover {
    /// Makes the directory and everything in it this process's own; `None` if another process does this already.
    pub fn open(directory: &Path) -> Result<Option<Self>, GetError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| GetError::Write { path, source }
        };
        fs::create_dir_all(directory).map_err(at(directory))?;
        let path = directory.join(LOCK);
        // All that is in it will be removed.
        if !path.exists() && fs::read_dir(directory).map_err(at(directory))?.next().is_some() {
            return Err(GetError::NotOurs { path: directory.to_owned() });
        }
        let file = File::create(&path).map_err(at(&path))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => return Err(at(&path)(error.into())),
        };
        clear(directory).map_err(at(directory))?;
        // Locked under another name first: it must not be seen without its lock.
        let (temporary, path) = (directory.join("serving.new"), directory.join(SERVING));
        let file = File::create(&temporary).map_err(at(&temporary))?;
        let serving = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| at(&temporary)(io::Error::from(error)))?;
        fs::rename(&temporary, &path).map_err(at(&path))?;
        Ok(Some(Self { directory: directory.to_owned(), _lock: lock, _serving: serving }))
    }

    fn coming(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{COMING}"))
    }

    /// Says that a segment is on the way.
    fn announce(&self, name: &str) -> Result<(), GetError> {
        let path = self.coming(name);
        File::create(&path).map(drop).map_err(|source| GetError::Write { path, source })
    }

    /// Says that it will not come.
    fn withdraw(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.coming(name)) {
            tracing::debug!(%error, name, "a segment that will not come was not on the way");
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), GetError> {
        let (temporary, path) = (self.coming(name), self.directory.join(name));
        let put = || {
            // Not made here: where it is gone, so is the recovery.
            fs::OpenOptions::new()
                .write(true)
                .open(&temporary)
                .and_then(|mut file| io::Write::write_all(&mut file, bytes))?;
            fs::rename(&temporary, &path)
        };
        put().map_err(|source| GetError::Write { path: path.clone(), source })
    }

    /// What recovery asked for and had to fetch by itself.
    fn wanted(&self, size: SegmentSize) -> Option<Segment> {
        let path = self.directory.join(WANTED);
        let name = fs::read_to_string(&path).ok()?;
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(%error, "a wish was not removed");
        }
        Segment::parse(&name, size).ok()
    }
}

impl Drop for Handover {
    /// What nobody took is of no use.
    fn drop(&mut self) {
        if let Err(error) = clear(&self.directory) {
            tracing::debug!(%error, "segments are left in {}", self.directory.display());
        }
    }
}

/// Removes all but the lock, that there be one who holds it.
fn clear(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() != LOCK
            && let Err(error) = fs::remove_file(entry.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(())
}

/// What to fetch ahead.
#[derive(Clone, Debug)]
pub struct PrefetchOptions {
    pub source: String,
    pub lineage: Lineage,
    /// The segment before the first one.
    pub after: Segment,
    /// The timeline that recovery is to reach.
    pub timeline: Timeline,
    /// Recovery stops here at the latest: no segment that begins later is fetched.
    pub until: Option<Lsn>,
}

/// Keeps the next segments ready, several fetched at once, until the log ends or nobody takes them any more.
///
/// Only whole segments are fetched ahead: what else recovery asks for, [`get()`](crate::get()) finds out about.
pub async fn prefetch(keyring: &Keyring, handover: Handover, options: &PrefetchOptions) -> Result<(), GetError> {
    let PrefetchOptions { source, lineage, after, timeline, until } = options;
    let timeline = (*timeline).max(after.timeline());
    let path = points::Path::to(keyring, source, *lineage, timeline).await;
    let history = path.map_err(|source| GetError::Timeline { timeline, source: Box::new(source) })?.history;
    let fetcher = Fetcher { keyring: keyring.clone(), source: source.clone(), lineage: *lineage };
    Window::new(fetcher, handover, history, *after, *until).run().await
}

/// The names by which recovery asks for a segment, in its order: XLogFileReadAnyTLI() tries the timelines from the newest
/// to the one that it reads now, but for those that begin in a later segment. It would try those that were left before the
/// segment's end as well, of which [`get()`](crate::get()) serves no more than what comes before that.
fn names(history: &TimelineHistory, number: u64, reading: Timeline, size: SegmentSize) -> Vec<Segment> {
    let ancestors = history.entries().iter().rev().map(|entry| entry.timeline);
    std::iter::once(history.timeline())
        .chain(ancestors)
        .take_while(|timeline| *timeline >= reading)
        .filter(|timeline| {
            let segment = Segment::new(*timeline, number);
            history
                .span(*timeline)
                .is_some_and(|(begin, end)| begin < segment.end(size) && end.is_none_or(|end| segment.end(size) <= end))
        })
        .map(|timeline| Segment::new(timeline, number))
        .collect()
}

/// Whether recovery will ask for a segment if it stops at `until` at the latest.
pub fn is_needed(number: u64, until: Option<Lsn>, size: SegmentSize) -> bool {
    until.is_none_or(|until| Segment::new(Timeline::new(1), number).start(size) < until)
}

/// A segment under the name by which recovery will ask for it, or nothing if none is whole.
type Fetched = Result<Option<(Segment, Vec<u8>)>, GetError>;

/// Asks the repository for segments.
#[derive(Clone, Debug)]
struct Fetcher {
    keyring: Keyring,
    source: String,
    lineage: Lineage,
}

impl Fetcher {
    /// The first of these that is there whole.
    async fn first(self, names: Vec<Segment>) -> Fetched {
        for segment in names {
            let found = self.keyring.whole_segment(&self.source, self.lineage, segment).await;
            let name = || segment.file_name(self.lineage.segment_size);
            if let Some(bytes) =
                found.map_err(|source| GetError::Repository { name: name(), source: Box::new(source) })?
            {
                return Ok(Some((segment, bytes)));
            }
        }
        Ok(None)
    }
}

/// The segments that are ready or on the way.
struct Window {
    fetcher: Fetcher,
    handover: Handover,
    history: TimelineHistory,
    until: Option<Lsn>,
    /// What recovery has read.
    after: Segment,
    next: u64,
    /// Names that were announced, by number.
    coming: Vec<(u64, Vec<String>)>,
    ready: Vec<(u64, PathBuf)>,
    fetching: JoinSet<(u64, Fetched)>,
    /// There is nothing whole behind what is ready, or it cannot be fetched: recovery has to find out by itself.
    ended: Option<Result<(), GetError>>,
}

impl Window {
    fn new(fetcher: Fetcher, handover: Handover, history: TimelineHistory, after: Segment, until: Option<Lsn>) -> Self {
        Self {
            fetcher,
            handover,
            history,
            until,
            after,
            next: after.number() + 1,
            coming: Vec::new(),
            ready: Vec::new(),
            fetching: JoinSet::new(),
            ended: None,
        }
    }

    fn size(&self) -> SegmentSize {
        self.fetcher.lineage.segment_size
    }

    async fn run(mut self) -> Result<(), GetError> {
        let mut taken_at = Instant::now();
        while taken_at.elapsed() < IDLE {
            if let Some(wanted) = self.handover.wanted(self.size()) {
                taken_at = Instant::now();
                if !self.serves(wanted) {
                    self.begin_anew(wanted).await;
                }
            }
            if self.notice_what_was_taken() {
                taken_at = Instant::now();
            }
            self.fill()?;
            if self.ready.is_empty() && self.fetching.is_empty() {
                // Nothing is left that could be taken.
                return self.ended.unwrap_or(Ok(()));
            }
            tokio::select! {
                Some(fetched) = self.fetching.join_next() => {
                    if let Ok((number, outcome)) = fetched {
                        self.settle(number, outcome)?;
                    }
                }
                () = tokio::time::sleep(POLL) => {}
            }
        }
        Ok(())
    }

    /// Whether recovery has taken anything. What comes before that it will not ask for any more.
    fn notice_what_was_taken(&mut self) -> bool {
        let taken = self.ready.extract_if(.., |(_, path)| !path.exists()).map(|(number, _)| number).max();
        let Some(taken) = taken else { return false };
        for (_, path) in self.ready.extract_if(.., |(number, _)| *number < taken) {
            remove(&path);
        }
        true
    }

    fn fill(&mut self) -> Result<(), GetError> {
        let size = self.size();
        while self.ended.is_none()
            && self.fetching.len() < at_once(size)
            && self.fetching.len() + self.ready.len() < ahead(size)
        {
            let number = self.next;
            if !is_needed(number, self.until, size) {
                self.ended = Some(Ok(()));
                return Ok(());
            }
            let segments = names(&self.history, number, self.after.timeline(), size);
            let announced: Vec<String> = segments.iter().map(|segment| segment.file_name(size)).collect();
            announced.iter().try_for_each(|name| self.handover.announce(name))?;
            self.coming.push((number, announced));
            let fetch = self.fetcher.clone().first(segments);
            self.fetching.spawn(async move { (number, fetch.await) });
            self.next += 1;
        }
        Ok(())
    }

    /// Hands over what was fetched, or remembers why nothing was.
    fn settle(&mut self, number: u64, outcome: Fetched) -> Result<(), GetError> {
        let size = self.size();
        let put = match outcome {
            Ok(Some((segment, bytes))) => {
                let name = segment.file_name(size);
                self.handover.put(&name, &bytes)?;
                self.ready.push((number, self.handover.directory.join(&name)));
                Some(name)
            }
            Ok(None) => {
                self.ended.get_or_insert(Ok(()));
                None
            }
            Err(error) => {
                self.ended.get_or_insert(Err(error));
                None
            }
        };
        self.withdraw(|of| of == number, put.as_deref());
        Ok(())
    }

    /// Withdraws what was announced, but for the one that came.
    fn withdraw(&mut self, which: impl Fn(u64) -> bool, came: Option<&str>) {
        for (_, names) in self.coming.extract_if(.., |(number, _)| which(*number)) {
            names.iter().filter(|name| came != Some(name)).for_each(|name| self.handover.withdraw(name));
        }
    }

    /// Whether recovery is where it was thought to be: it asks for the same segment by the name of another timeline, or
    /// once more for the one before those that are ready.
    fn serves(&self, wanted: Segment) -> bool {
        let mut held = self.ready.iter().map(|(number, _)| number).chain(self.coming.iter().map(|(number, _)| number));
        held.any(|number| *number == wanted.number() || *number == wanted.number() + 1)
    }

    /// Recovery reads elsewhere than was thought: it began anew, or looks at an earlier segment first.
    async fn begin_anew(&mut self, wanted: Segment) {
        self.fetching.shutdown().await;
        self.withdraw(|_| true, None);
        for (_, path) in self.ready.drain(..) {
            remove(&path);
        }
        (self.after, self.next, self.ended) = (wanted, wanted.number() + 1, None);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, path = %path.display(), "a segment was taken after all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;
    const NAME: &str = "000000010000000000000005";

    fn names_of(history: &TimelineHistory, number: u64, reading: u32) -> Vec<u32> {
        let segments = names(history, number, Timeline::new(reading), SIZE);
        assert!(segments.iter().all(|segment| segment.number() == number));
        segments.iter().map(|segment| segment.timeline().get()).collect()
    }

    #[test]
    fn recovery_asks_for_the_newest_timeline_that_has_begun() {
        // 2 begins within segment 5, 4 where segment 9 does.
        let file = b"1\t0/5001000\tx\n2\t0/9000000\tx\n";
        let history = TimelineHistory::parse(Timeline::new(4), file).unwrap();
        assert_eq!(names_of(&history, 4, 1), [1]);
        // Of what it has left only whole segments, and none from behind where it was left.
        assert_eq!(names_of(&history, 5, 1), [2]);
        assert_eq!(names_of(&history, 8, 1), [2]);
        assert_eq!(names_of(&history, 9, 1), [4]);
        // What it has left it does not come back to.
        assert_eq!(names_of(&history, 8, 2), [2]);
        assert_eq!(names_of(&history, 9, 4), [4]);
        assert_eq!(names_of(&TimelineHistory::root(Timeline::new(3)), 7, 3), [3]);
    }

    #[test]
    fn nothing_is_fetched_from_behind_the_end() {
        let needed = |until: u64| (0..10).filter(|number| is_needed(*number, Some(Lsn::new(until)), SIZE)).count();
        assert_eq!((needed(0), needed(1), needed(16 << 20), needed((16 << 20) + 1)), (0, 1, 1, 2));
        assert!(is_needed(u64::MAX / SIZE.get() - 1, None, SIZE));
    }

    #[test]
    fn large_segments_are_fewer() {
        let large = SegmentSize::new(1 << 30).unwrap();
        assert_eq!((at_once(SIZE), ahead(SIZE), at_once(large), ahead(large)), (8, 16, 1, 2));
    }

    #[test]
    fn only_what_a_living_process_put_there_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, to) = (folder.path().join("ahead"), folder.path().join("to"));
        let ask = || ask(&directory, NAME, &to);
        assert_eq!(ask(), Asked::Nobody);
        // As one that died left it.
        fs::create_dir(&directory).unwrap();
        for name in [NAME, SERVING, LOCK] {
            fs::write(directory.join(name), "old").unwrap();
        }
        assert_eq!(ask(), Asked::Nobody);
        let handover = Handover::open(&directory).unwrap().unwrap();
        assert!(Handover::open(&directory).unwrap().is_none(), "there is one of them");
        assert_eq!(ask(), Asked::Elsewhere, "the old one is gone");
        assert_eq!(handover.wanted(SIZE), Some(Segment::parse(NAME, SIZE).unwrap()));
        assert_eq!(handover.wanted(SIZE), None);
        handover.announce(NAME).unwrap();
        handover.put(NAME, b"new").unwrap();
        assert_eq!(ask(), Asked::Taken);
        assert_eq!(fs::read(&to).unwrap(), b"new");
        handover.announce(NAME).unwrap();
        handover.put(NAME, b"new").unwrap();
        drop(handover);
        assert_eq!(ask(), Asked::Nobody);
        assert!(!directory.join(NAME).exists());
    }

    #[test]
    fn what_is_on_the_way_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, to) = (folder.path().join("ahead"), folder.path().join("to"));
        let handover = Handover::open(&directory).unwrap().unwrap();
        for (comes, expected) in [(true, Asked::Taken), (false, Asked::Elsewhere)] {
            handover.announce(NAME).unwrap();
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| ask(&directory, NAME, &to));
                std::thread::sleep(Duration::from_millis(50));
                assert!(!asked.is_finished(), "it does not wait");
                if comes {
                    handover.put(NAME, b"new").unwrap();
                } else {
                    handover.withdraw(NAME);
                }
                assert_eq!(asked.join().unwrap(), expected);
            });
            // It is where it was thought to be.
            assert_eq!(handover.wanted(SIZE), None);
        }
    }

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), "log").unwrap();
        assert!(matches!(Handover::open(folder.path()), Err(GetError::NotOurs { .. })));
        assert_eq!(fs::read(folder.path().join(NAME)).unwrap(), b"log");
    }

    #[test]
    fn nothing_but_segments_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("to");
        let _handover = Handover::open(folder.path()).unwrap();
        fs::write(folder.path().join("00000002.history"), "x").unwrap();
        for name in ["00000002.history", "../x", "", LOCK, SERVING] {
            assert_eq!(ask(folder.path(), name, &to), Asked::Elsewhere, "{name}");
        }
        assert!(folder.path().join(SERVING).exists() && !to.exists());
    }
}
