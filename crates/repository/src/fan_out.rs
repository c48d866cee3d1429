//! Writing to several repositories of one content at the same time (decision 0019).
//!
//! A [`FanOut`] is a store: what is created in it is created, byte for byte, in each of its places. Each place has a queue of
//! its own, and is done with an object when it is; who waits for which of them is said by [`Settings::required`].
//!
//! *Trouble.* A place that fails after the usual retries, or that stands still, is written to no more, and says why. What it lacks
//! it gets by copying: by [`FanOut::keep_log`] while log is received, by `copy` after a backup. A manifest is not made
//! through here but by `publish`, in each place that has all that it needs.
//!
//! *Reading* is from any place without trouble: what one of them has is there.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_runtime::{Backoff, Cancel, Progress, retry};
use holdfast_store::{Cause, Created, Listed, ObjectName, Store, StoreError};
use holdfast_types::RepositoryId;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::copy::copy_log_sealed;
use crate::{Copied, Keyring, Names, Repository, RepositoryError, copy};

/// Objects on the way to one place at once.
const AT_ONCE: usize = 8;
/// Bytes that wait for one place. More than the largest object.
const ROOM: u64 = 192 << 20;
/// A place that has finished nothing for so long stands still.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often a place in trouble is tried again, for log.
const AGAIN: Duration = Duration::from_secs(5);

/// A repository that is written to.
#[derive(Clone, Debug)]
pub struct Sibling {
    /// As the operator calls it.
    pub name: String,
    pub store: Arc<dyn Store>,
    /// Why it cannot be written to from the start.
    pub trouble: Option<String>,
}

/// Who waits for whom.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The places that must have everything. None: any of them will do.
    pub required: Vec<String>,
    /// Whether to wait for a place that is slower than others, as long as it does not stand still.
    pub is_patient: bool,
    /// Nothing is written, and nothing is said to be missing unless all have answered.
    pub is_reader: bool,
}

/// How a place stands.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SiblingStatus {
    pub name: String,
    pub is_required: bool,
    /// Why it lacks something; `None`: it has all.
    pub trouble: Option<String>,
}

#[derive(Debug)]
enum Work {
    Create(Bytes),
    Delete,
}

#[derive(Debug)]
struct Item {
    number: u64,
    name: ObjectName,
    work: Work,
    done: oneshot::Sender<Result<Created, StoreError>>,
}

impl Item {
    fn bytes(&self) -> u64 {
        match &self.work {
            Work::Create(bytes) => bytes.len() as u64,
            Work::Delete => 0,
        }
    }
}

#[derive(Debug)]
struct Queue {
    items: VecDeque<Item>,
    running: usize,
    /// Of the next item.
    number: u64,
    /// The numbers of what waits and what runs.
    open: BTreeSet<u64>,
    /// Of what waits and what runs.
    held: u64,
    trouble: Option<String>,
    moved_at: Instant,
    is_closed: bool,
}

#[derive(Debug)]
struct Member {
    name: String,
    store: Arc<dyn Store>,
    is_required: bool,
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Member {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> Option<String> {
        self.queue().trouble.clone()
    }

    /// What waits is dropped: it is copied later. Whoever waits for it is told.
    fn fail(&self, why: String) {
        let mut queue = self.queue();
        if queue.trouble.is_none() {
            tracing::error!(repository = self.name, why, "it is written to no more for now");
            queue.trouble = Some(why);
        }
        let dropped = std::mem::take(&mut queue.items);
        queue.held -= dropped.iter().map(Item::bytes).sum::<u64>();
        for item in &dropped {
            queue.open.remove(&item.number);
        }
        drop(queue);
        for item in dropped {
            item.done.send(Err(self.error(item.name.as_str()))).ok();
        }
        self.changed.notify_waiters();
    }

    fn error(&self, name: &str) -> StoreError {
        let why = self.trouble().unwrap_or_else(|| "it does not get on, or is closed".to_owned());
        StoreError {
            operation: "write",
            name: name.to_owned(),
            location: self.store.location(),
            cause: Cause::Unavailable(why),
        }
    }

    /// Waits until there is room, if it is worth waiting for.
    async fn make_room(&self, bytes: u64, is_patient: bool) {
        loop {
            // Registered before looking, so that no change is missed.
            let changed = self.changed.notified();
            let stalled = {
                let queue = self.queue();
                if queue.trouble.is_some() || queue.held == 0 || queue.held + bytes <= ROOM {
                    return;
                }
                queue.moved_at.elapsed()
            };
            let left = if is_patient { PATIENCE.saturating_sub(stalled) } else { Duration::ZERO };
            if left.is_zero() {
                self.fail(if stalled >= PATIENCE {
                    format!("it has taken nothing for {} s", PATIENCE.as_secs())
                } else {
                    "it is slower than what is to be written".to_owned()
                });
                return;
            }
            tokio::time::timeout(left, changed).await.ok();
        }
    }

    fn put(&self, name: &ObjectName, work: Work) -> oneshot::Receiver<Result<Created, StoreError>> {
        let (done, outcome) = oneshot::channel();
        let mut item = Item { number: 0, name: name.clone(), work, done };
        let mut queue = self.queue();
        if queue.trouble.is_some() || queue.is_closed {
            drop(queue);
            item.done.send(Err(self.error(name.as_str()))).ok();
        } else {
            if queue.held == 0 {
                queue.moved_at = Instant::now();
            }
            queue.held += item.bytes();
            item.number = queue.number;
            queue.open.insert(item.number);
            queue.number += 1;
            queue.items.push_back(item);
            drop(queue);
            self.changed.notify_waiters();
        }
        outcome
    }

    /// The next thing to do. A deletion waits for all that came before it, and all that follows waits for it.
    fn next(&self, is_deleting: bool) -> Option<Item> {
        let mut queue = self.queue();
        let is_free = match queue.items.front()?.work {
            Work::Create(_) => queue.running < AT_ONCE && !is_deleting,
            Work::Delete => queue.running == 0,
        };
        if !is_free {
            return None;
        }
        queue.running += 1;
        queue.items.pop_front()
    }

    fn finished(&self, number: u64, bytes: u64) {
        let mut queue = self.queue();
        queue.running -= 1;
        queue.open.remove(&number);
        queue.held -= bytes;
        queue.moved_at = Instant::now();
        drop(queue);
        self.changed.notify_waiters();
    }

    async fn run(&self, item: Item, cancel: Cancel) {
        let (number, bytes) = (item.number, item.bytes());
        let outcome = match &item.work {
            Work::Create(content) => create(&self.store, &item.name, content, &cancel).await,
            Work::Delete => {
                let delete = || self.store.delete(&item.name);
                retry(Backoff::SHORT, &cancel, StoreError::is_retryable, delete).await.map(|()| Created::New)
            }
        };
        if let Err(error) = &outcome {
            self.fail(chain(error));
        }
        item.done.send(outcome).ok();
        self.finished(number, bytes);
    }

    /// Waits until all that was on its way here at this moment has arrived, or has failed.
    async fn arrived(&self) {
        let until = self.queue().number;
        loop {
            let changed = self.changed.notified();
            {
                let queue = self.queue();
                if queue.trouble.is_some() || queue.open.first().is_none_or(|first| *first >= until) {
                    return;
                }
            }
            changed.await;
        }
    }

    async fn work(self: Arc<Self>, cancel: Cancel) {
        let mut running = JoinSet::new();
        let mut is_deleting = false;
        loop {
            let changed = self.changed.notified();
            while let Some(item) = self.next(is_deleting) {
                is_deleting = matches!(item.work, Work::Delete);
                let (member, cancel) = (Arc::clone(&self), cancel.clone());
                running.spawn(async move { member.run(item, cancel).await });
            }
            if running.is_empty() {
                is_deleting = false;
                let queue = self.queue();
                if queue.is_closed && queue.items.is_empty() {
                    return;
                }
                if !queue.items.is_empty() {
                    continue;
                }
            }
            tokio::select! {
                Some(_) = running.join_next(), if !running.is_empty() => {}
                () = changed => {}
            }
        }
    }

    fn status(&self) -> SiblingStatus {
        SiblingStatus { name: self.name.clone(), is_required: self.is_required, trouble: self.trouble() }
    }
}

/// A creation whose answer was lost may have been done all the same.
async fn create(
    store: &Arc<dyn Store>,
    name: &ObjectName,
    bytes: &Bytes,
    cancel: &Cancel,
) -> Result<Created, StoreError> {
    let mut tries = 0;
    let create = || {
        tries += 1;
        store.create(name, bytes.clone())
    };
    let created = retry(Backoff::SHORT, cancel, StoreError::is_retryable, create).await?;
    if created == Created::Exists && tries > 1 && store.read(name).await? == bytes {
        return Ok(Created::New);
    }
    Ok(created)
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Repositories of one content, written at the same time. Ends its work when it is dropped.
#[derive(Debug)]
pub struct FanOut {
    members: Vec<Arc<Member>>,
    is_patient: bool,
    is_reader: bool,
    id: RepositoryId,
}

impl FanOut {
    /// Of the places that are repositories of one content. Fails if that is none, or if a required one is not among them.
    pub async fn open(
        siblings: Vec<Sibling>,
        settings: &Settings,
        cancel: &Cancel,
    ) -> Result<Repository, RepositoryError> {
        let mut found: Option<Repository> = None;
        let mut problem = None;
        let mut members = Vec::new();
        for Sibling { name, store, mut trouble } in siblings {
            if trouble.is_none() {
                match (Repository::open(Arc::clone(&store)).await, &found) {
                    (Ok(opened), None) => found = Some(opened),
                    (Ok(opened), Some(first)) => trouble = differs(first, &opened),
                    (Err(error), _) => {
                        trouble = Some(chain(&error));
                        problem = problem.or(Some(error));
                    }
                }
            }
            if let Some(why) = &trouble {
                tracing::warn!(repository = name, why, "it is not written to for now");
            }
            let is_required = settings.required.contains(&name);
            let queue = Queue {
                items: VecDeque::new(),
                running: 0,
                number: 0,
                open: BTreeSet::new(),
                held: 0,
                trouble,
                moved_at: Instant::now(),
                is_closed: false,
            };
            let (queue, changed) = (Mutex::new(queue), Notify::new());
            members.push(Arc::new(Member { name, store, is_required, queue, changed }));
        }
        let Some(found) = found else {
            return Err(problem.unwrap_or(RepositoryError::NotARepository { location: "no place".to_owned() }));
        };
        for member in &members {
            tokio::spawn(Arc::clone(member).work(cancel.clone()));
        }
        let all =
            Arc::new(Self { members, is_patient: settings.is_patient, is_reader: settings.is_reader, id: found.id() });
        Ok(found.fanned_out(all).with_cancel(cancel.clone()))
    }

    pub fn status(&self) -> Vec<SiblingStatus> {
        self.members.iter().map(|member| member.status()).collect()
    }

    /// Waits until every place has all that was written, or does not get on any more.
    pub(crate) async fn settle(&self) {
        for member in &self.members {
            loop {
                let changed = member.changed.notified();
                let stalled = {
                    let queue = member.queue();
                    if queue.items.is_empty() && queue.running == 0 {
                        break;
                    }
                    queue.moved_at.elapsed()
                };
                let left = PATIENCE.saturating_sub(stalled);
                if left.is_zero() {
                    member.fail(format!("it has taken nothing for {} s", PATIENCE.as_secs()));
                    break;
                }
                tokio::time::timeout(left, changed).await.ok();
            }
        }
    }

    /// Does something in each place without trouble, in their order. One for which it fails is in trouble from then on. Fails if a
    /// required place is in trouble, or if all are.
    pub(crate) async fn in_each<T, F: Future<Output = Result<T, RepositoryError>>>(
        &self,
        work: impl Fn(Arc<dyn Store>) -> F,
    ) -> Result<T, RepositoryError> {
        let (mut done, mut problem) = (None, None);
        for member in &self.members {
            let failed = match member.trouble() {
                None => match work(Arc::clone(&member.store)).await {
                    Ok(found) => {
                        done = done.or(Some(found));
                        continue;
                    }
                    Err(error) => {
                        member.fail(chain(&error));
                        error
                    }
                },
                Some(_) => member.error(Names::SNAPSHOTS).into(),
            };
            if member.is_required || problem.is_none() {
                problem = Some((member.is_required, failed));
            }
        }
        match (done, problem) {
            (Some(done), None | Some((false, _))) => Ok(done),
            (_, Some((_, error))) => Err(error),
            (None, None) => Err(RepositoryError::NotARepository { location: self.location() }),
        }
    }

    /// Brings the log of a source to every place that lacks some of it, now and whenever one that was away is back. Never ends.
    pub async fn keep_log(&self, source: &str) {
        // Compared with all others that were there since the last one came back.
        let mut is_whole = vec![false; self.members.len()];
        loop {
            for member in self.members.iter().filter(|member| member.trouble().is_some()) {
                match self.welcome(member).await {
                    // It may have what the others lack.
                    Ok(()) => is_whole.fill(false),
                    Err(error) => tracing::debug!(repository = member.name, error = chain(&error), "still away"),
                }
            }
            for (member, is_whole) in self.members.iter().zip(&mut is_whole) {
                if *is_whole || member.trouble().is_some() {
                    continue;
                }
                // What is written from now on gets there by itself.
                match self.bring_log(member, source).await {
                    Ok(objects) => {
                        *is_whole = true;
                        if objects > 0 {
                            tracing::info!(
                                repository = member.name,
                                objects,
                                "the log that it lacked was copied to it"
                            );
                        }
                    }
                    Err(error) => {
                        tracing::warn!(repository = member.name, error = chain(&error), "the log is behind there");
                    }
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Writes to a place again, if it is the right one.
    async fn welcome(&self, member: &Member) -> Result<(), RepositoryError> {
        let opened = Repository::open(Arc::clone(&member.store)).await?;
        if opened.id() != self.id {
            return Err(RepositoryError::NotSiblings { one: self.location(), other: member.store.location() });
        }
        let mut queue = member.queue();
        queue.trouble = None;
        queue.moved_at = Instant::now();
        Ok(())
    }

    async fn bring_log(&self, member: &Arc<Member>, source: &str) -> Result<u64, RepositoryError> {
        let to = Repository::open(Arc::clone(&member.store)).await?;
        let mut brought = 0;
        for other in self.members.iter().filter(|other| !Arc::ptr_eq(other, member) && other.trouble().is_none()) {
            // What was on its way there when this one was written to again is not on its way here.
            if tokio::time::timeout(PATIENCE, other.arrived()).await.is_err() {
                return Err(other.error(Names::WAL).into());
            }
            let from = Repository::open(Arc::clone(&other.store)).await?;
            brought += copy_log_sealed(&from, &to, source).await?;
        }
        Ok(brought)
    }

    /// Those without trouble, in their order; if there are none, all.
    fn sound(&self) -> impl Iterator<Item = &Arc<Member>> {
        let has_sound = self.members.iter().any(|member| member.trouble().is_none());
        self.members.iter().filter(move |member| !has_sound || member.trouble().is_none())
    }

    /// One after the other, until one answers and has it.
    async fn first<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        operation: impl Fn(Arc<dyn Store>) -> F,
    ) -> Result<T, StoreError> {
        let (mut away, mut missing) = (None, None);
        for member in self.sound() {
            match operation(Arc::clone(&member.store)).await {
                Err(error) if error.is_not_found() => missing = missing.or(Some(error)),
                Err(error) if error.is_retryable() => away = away.or(Some(error)),
                outcome => return outcome,
            }
        }
        // That one who answered does not have it says nothing about those who did not.
        Err(away.or(missing).unwrap_or_else(|| self.nowhere("read", "")))
    }

    /// What all together have.
    async fn union<T: Ord, F: Future<Output = Result<Vec<T>, StoreError>>>(
        &self,
        operation: impl Fn(Arc<dyn Store>) -> F,
    ) -> Result<Vec<T>, StoreError> {
        let (mut found, mut has_answer, mut away) = (BTreeSet::new(), false, None);
        for member in self.sound() {
            let cancel = Cancel::new();
            let ask = || operation(Arc::clone(&member.store));
            match retry(Backoff::SHORT, &cancel, StoreError::is_retryable, ask).await {
                Ok(more) => {
                    has_answer = true;
                    found.extend(more);
                }
                // What only it has would seem not to be there.
                Err(error) if self.is_reader || !error.is_retryable() => return Err(error),
                Err(error) => {
                    member.fail(chain(&error));
                    away = away.or(Some(error));
                }
            }
        }
        match away {
            Some(error) if !has_answer => Err(error),
            _ => Ok(found.into_iter().collect()),
        }
    }

    fn nowhere(&self, operation: &'static str, name: &str) -> StoreError {
        StoreError { operation, name: name.to_owned(), location: self.location(), cause: Cause::Away }
    }

    async fn everywhere(&self, name: &ObjectName, work: impl Fn() -> Work) -> Result<Created, StoreError> {
        let has_required = self.members.iter().any(|member| member.is_required);
        let mut waited = FuturesUnordered::new();
        for member in &self.members {
            let work = work();
            if let Work::Create(bytes) = &work {
                member.make_room(bytes.len() as u64, self.is_patient || member.is_required).await;
            }
            let outcome = member.put(name, work);
            if member.is_required || !has_required {
                // A task that is gone has not done it.
                waited.push(async move { outcome.await.unwrap_or_else(|_| Err(member.error(name.as_str()))) });
            }
        }
        let (mut created, mut failed) = (None, None);
        while let Some(outcome) = waited.next().await {
            match outcome {
                Ok(done) if !has_required => return Ok(done),
                Ok(Created::Exists) => created = Some(Created::Exists),
                Ok(Created::New) => created = created.or(Some(Created::New)),
                Err(error) if has_required => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        created.ok_or_else(|| failed.unwrap_or_else(|| self.nowhere("write", name.as_str())))
    }

    /// The names of the places that lack a snapshot of a source which others have, or that were in trouble.
    async fn lagging(&self, source: &str) -> Result<Vec<&Arc<Member>>, RepositoryError> {
        let folder = Names::snapshots_of(source);
        let mut lists = Vec::new();
        for member in &self.members {
            let opened = Repository::open(Arc::clone(&member.store)).await;
            let names = match opened {
                Ok(opened) if opened.id() == self.id => opened.names(&folder).await.ok(),
                _ => None,
            };
            lists.push((member, names));
        }
        let all: HashSet<ObjectName> = lists.iter().filter_map(|(_, names)| names.clone()).flatten().collect();
        let is_lagging = |(member, names): &(&Arc<Member>, Option<HashSet<ObjectName>>)| {
            names.as_ref().is_some_and(|names| member.trouble().is_some() || names.len() < all.len())
        };
        Ok(lists.into_iter().filter(is_lagging).map(|(member, _)| member).collect())
    }

    /// Brings what a place lacks of a source's snapshots and log to it, wherever it answers again. `keyring` opens the repositories.
    pub async fn catch_up(&self, keyring: &Keyring, source: &str, progress: &Progress) -> Result<(), RepositoryError> {
        let lagging = self.lagging(source).await?;
        for member in &self.members {
            if !lagging.iter().any(|other| Arc::ptr_eq(other, member)) {
                // It may have been away while log was archived, and nobody looked since.
                if let (None, Err(error)) = (member.trouble(), self.bring_log(member, source).await) {
                    member.fail(chain(&error));
                }
            }
        }
        for member in lagging {
            let to = Repository::open(Arc::clone(&member.store)).await?;
            // From all others: they have it together.
            match copy(keyring, &to, Some(source), progress).await {
                Ok(Copied { left, snapshots, objects, .. }) if left.is_empty() => {
                    tracing::info!(repository = member.name, snapshots, objects, "what it lacked was copied to it");
                    member.queue().trouble = None;
                }
                Ok(Copied { left, .. }) => {
                    let why = left.first().map(|left| format!("{}: {}", left.object, left.why)).unwrap_or_default();
                    member.fail(format!("not everything could be copied to it: {why}"));
                }
                Err(error) => member.fail(chain(&error)),
            }
        }
        Ok(())
    }
}

impl Drop for FanOut {
    fn drop(&mut self) {
        for member in &self.members {
            member.queue().is_closed = true;
            member.changed.notify_waiters();
        }
    }
}

/// What keeps a place from being written to along with the first.
fn differs(first: &Repository, other: &Repository) -> Option<String> {
    if first.id() != other.id() {
        return Some(format!(
            "it is not of one content with {}; `holdfast init --like` makes such a one",
            first.location()
        ));
    }
    let is_same = first.config() == other.config();
    (!is_same).then(|| "its recipients are not the same as the first one's; `holdfast copy` brings it up".to_owned())
}

#[async_trait]
impl Store for FanOut {
    fn location(&self) -> String {
        self.members.iter().map(|member| member.store.location()).collect::<Vec<_>>().join(" and ")
    }

    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        self.everywhere(name, || Work::Create(bytes.clone())).await
    }

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.first(|store| async move { store.read(name).await }).await
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let read = |store: Arc<dyn Store>| {
            let range = range.clone();
            async move { store.read_range(name, range).await }
        };
        self.first(read).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.first(|store| async move { store.size(name).await }).await
    }

    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let mut found = BTreeMap::new();
        let lists = self.union(|store| async move {
            let listed = store.list(folder, after, limit).await?;
            Ok(listed.into_iter().map(|listed| (listed.name, listed.size, listed.modified)).collect())
        });
        for (name, size, modified) in lists.await? {
            found.entry(name.clone()).or_insert(Listed { name, size, modified });
        }
        Ok(found.into_values().take(limit).collect())
    }

    fn page(&self) -> usize {
        self.members.iter().map(|member| member.store.page()).max().unwrap_or(1000)
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        self.union(|store| async move { store.folders(folder).await }).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.everywhere(name, || Work::Delete).await.map(drop)
    }
}
