//! Making and opening a repository.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use holdfast_format::FORMAT_VERSION;
use holdfast_runtime::{Backoff, Cancel, Clock, retry};
use holdfast_store::{Created, Listed, ObjectName, Store, StoreError};
use holdfast_types::{Micros, PackId, RepositoryId};
use tokio::task::JoinSet;

use crate::config::ConfigError;
use crate::{FanOut, Names, Recipient, RepositoryConfig, RepositoryError, random};

/// An open repository. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: Arc<RepositoryConfig>,
    pub(crate) cancel: Cancel,
    pub(crate) clock: Clock,
    /// The store, if it is several.
    pub(crate) fan_out: Option<Arc<FanOut>>,
}

/// How many objects are looked for at once: a look costs a store nothing but its latency.
const LOOKS_AT_ONCE: usize = 32;

/// More is told. Nothing is decided by this machine's clock, but people compare what both say.
const SKEW: Duration = Duration::from_mins(1);

impl Repository {
    /// Makes a repository in an empty store.
    pub async fn init(store: Arc<dyn Store>, recipients: Vec<Recipient>, now: Micros) -> Result<Self, RepositoryError> {
        if recipients.is_empty() {
            return Err(RepositoryError::NoRecipients);
        }
        let id = RepositoryId::new(random());
        Self::make(store, RepositoryConfig { format: FORMAT_VERSION, id, generation: 1, created_at: now, recipients })
            .await
    }

    /// Makes a repository of this configuration, if the store is empty and keeps what it has to.
    pub(crate) async fn make(store: Arc<dyn Store>, config: RepositoryConfig) -> Result<Self, RepositoryError> {
        let location = store.location();
        if let Some(listed) = store.list("", None, 1).await?.first() {
            return Err(if store.list(Names::CONFIG, None, 1).await?.is_empty() {
                tracing::debug!(object = %listed.name, "the store is not empty");
                RepositoryError::NotEmpty { location }
            } else {
                RepositoryError::AlreadyARepository { location }
            });
        }
        let probed =
            holdfast_store::probe(&store, &Names::probe(RepositoryId::new(random())), SystemTime::now()).await?;
        if probed.clock_skew > SKEW {
            tracing::warn!(skew = ?probed.clock_skew, "the store's clock and this machine's differ");
        }
        let (cancel, clock) = (Cancel::new(), Clock::boot());
        let repository = Self { store, config: Arc::new(config), cancel, clock, fan_out: None };
        match repository.write_config(&repository.config).await? {
            Created::New => Ok(repository),
            Created::Exists => Err(RepositoryError::AlreadyARepository { location }),
        }
    }

    pub async fn open(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let cancel = Cancel::new();
        let configs =
            retry(Backoff::SHORT, &cancel, StoreError::is_retryable, || store.list(Names::CONFIG, None, store.page()));
        let location = store.location();
        // Only names that we would give count: anything else in the folder is not ours.
        let generation = |name: &ObjectName| {
            let digits = name.file_name().strip_suffix(".json")?;
            digits.parse().ok().filter(|generation| Names::config(*generation) == *name)
        };
        let newest = configs.await?.iter().filter_map(|listed| generation(&listed.name)).max();
        let newest: u32 = match newest {
            Some(newest) => newest,
            None if store.list(Names::KEYS, None, 1).await?.is_empty() => {
                return Err(RepositoryError::NotARepository { location });
            }
            None => return Err(RepositoryError::ConfigMissing { location }),
        };
        let name = Names::config(newest);
        let bytes = store.read(&name).await?;
        let config = RepositoryConfig::decode(&bytes, newest).map_err(|error| match error {
            ConfigError::Newer { found } => RepositoryError::NewerFormat { location, found, known: FORMAT_VERSION },
            error => RepositoryError::content(&name, error),
        })?;
        Ok(Self { store, config: Arc::new(config), cancel, clock: Clock::boot(), fan_out: None })
    }

    /// The same repository with its newest configuration.
    pub async fn reopen(&self) -> Result<Self, RepositoryError> {
        Self::open(Arc::clone(&self.store)).await
    }

    /// Operations on the result stop retrying once `cancel` is asked for.
    #[must_use]
    pub fn with_cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Everything goes to all of these from now on.
    pub(crate) fn fanned_out(self, fan_out: Arc<FanOut>) -> Self {
        Self { store: Arc::clone(&fan_out) as Arc<dyn Store>, fan_out: Some(fan_out), ..self }
    }

    /// The one of several that this store is.
    pub(crate) fn at(&self, store: Arc<dyn Store>) -> Self {
        Self { store, fan_out: None, ..self.clone() }
    }

    /// Waits until every place of several has what was written, or is known to lack it.
    pub async fn settle(&self) {
        if let Some(fan_out) = &self.fan_out {
            fan_out.settle().await;
        }
    }

    /// Where it is written to, if that is several places.
    pub fn fan_out(&self) -> Option<&Arc<FanOut>> {
        self.fan_out.as_ref()
    }

    /// Writers measure by another clock how long they take. For simulated time.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    pub(crate) async fn write_config(&self, config: &RepositoryConfig) -> Result<Created, RepositoryError> {
        let bytes = config.encode().map_err(|error| RepositoryError::content(Names::CONFIG, error))?;
        self.create(&Names::config(config.generation), Bytes::from(bytes)).await
    }

    pub fn config(&self) -> &RepositoryConfig {
        &self.config
    }

    pub fn id(&self) -> RepositoryId {
        self.config.id
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub fn location(&self) -> String {
        self.store.location()
    }

    /// Refuses recipients that are not exactly those that the operator's own file names: whoever can write to the store
    /// could otherwise add one of their own.
    pub fn require_recipients(&self, expected: &[Recipient]) -> Result<(), RepositoryError> {
        let sorted = |recipients: &[Recipient]| {
            let mut names: Vec<String> = recipients.iter().map(ToString::to_string).collect();
            names.sort();
            names
        };
        let (expected, found) = (sorted(expected), sorted(&self.config.recipients));
        if expected == found { Ok(()) } else { Err(RepositoryError::OtherRecipients { expected, found }) }
    }

    pub(crate) async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, RepositoryError> {
        let mut tries = 0;
        let create = || {
            tries += 1;
            self.store.create(name, bytes.clone())
        };
        let created = retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, create).await?;
        // A request whose answer was lost may have made it all the same.
        if created == Created::Exists && tries > 1 && self.read(name).await? == bytes {
            return Ok(Created::New);
        }
        Ok(created)
    }

    pub(crate) async fn read(&self, name: &ObjectName) -> Result<Bytes, RepositoryError> {
        let read = || self.store.read(name);
        Ok(retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, read).await?)
    }

    pub(crate) async fn read_range(
        &self,
        name: &ObjectName,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, RepositoryError> {
        let read = || self.store.read_range(name, range.clone());
        Ok(retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, read).await?)
    }

    /// Makes sure that packs are there, and as long as they should be where that is known. Reads none.
    pub async fn require_packs(
        &self,
        packs: impl IntoIterator<Item = (PackId, Option<u64>)>,
    ) -> Result<(), RepositoryError> {
        let mut looks = JoinSet::new();
        let ended = |look: Result<Result<(), RepositoryError>, tokio::task::JoinError>| {
            look.unwrap_or_else(|panic| Err(RepositoryError::content(Names::PACKS, panic)))
        };
        for (id, expected) in packs {
            if looks.len() >= LOOKS_AT_ONCE
                && let Some(look) = looks.join_next().await
            {
                ended(look)?;
            }
            let repository = self.clone();
            looks.spawn(async move {
                let name = Names::pack(id);
                let size = || repository.store.size(&name);
                let found = retry(Backoff::SHORT, &repository.cancel, StoreError::is_retryable, size).await?;
                match expected {
                    Some(expected) if found != expected => {
                        let why = format!("it has {found} bytes, and the manifest says {expected}");
                        Err(RepositoryError::content(&name, why))
                    }
                    _ => Ok(()),
                }
            });
        }
        while let Some(look) = looks.join_next().await {
            ended(look)?;
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, name: &ObjectName) -> Result<(), RepositoryError> {
        let delete = || self.store.delete(name);
        Ok(retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, delete).await?)
    }

    /// Everything under a folder, in the order of names, without having all of it in memory.
    pub(crate) async fn each(&self, folder: &str, mut sink: impl FnMut(Listed)) -> Result<(), RepositoryError> {
        let mut after: Option<ObjectName> = None;
        let size = self.store.page();
        loop {
            let list = || self.store.list(folder, after.as_ref(), size);
            let page = retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, list).await?;
            let is_last = page.len() < size;
            after = page.last().map(|listed| listed.name.clone());
            page.into_iter().for_each(&mut sink);
            if is_last {
                return Ok(());
            }
        }
    }

    /// Everything under a folder, in the order of names.
    pub(crate) async fn list(&self, folder: &str) -> Result<Vec<Listed>, RepositoryError> {
        let mut all = Vec::new();
        self.each(folder, |listed| all.push(listed)).await?;
        Ok(all)
    }

    pub(crate) async fn has_any(&self, folder: String) -> Result<bool, RepositoryError> {
        let list = || self.store.list(&folder, None, 1);
        Ok(!retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, list).await?.is_empty())
    }

    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>, RepositoryError> {
        let list = || self.store.folders(folder);
        Ok(retry(Backoff::SHORT, &self.cancel, StoreError::is_retryable, list).await?)
    }
}
