//! A store in a bucket of an object store: S3 and what speaks its protocol, Azure Blob, Google Cloud Storage, Aliyun OSS,
//! Tencent COS.
//!
//! *Consistency.* An object is made by one request with the condition that there is none of its name (`If-None-Match: *`, or
//! what the service has for that). What the service has confirmed it shows to every later request.
//!
//! *Absence.* A proxy, a wrong endpoint and a deleted bucket answer "not found" as well. So it counts only if a listing,
//! which only the service itself can give, does not show the object either.
//!
//! *Time.* Every request has a deadline by the bytes that it moves; one that passes it may be made again.

use std::future::Future;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use opendal::options::{ListOptions, ReadOptions, WriteOptions};
use opendal::{EntryMode, ErrorKind, Lister, Operator};

use crate::place::{OpenError, Place};
use crate::{Cause, Created, Listed, ObjectName, Store, StoreError};

/// A request that moves nothing may take so long, and one more for each so many bytes.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_A_SECOND: u64 = 128 << 10;
/// Services give no more at once.
const PAGE: usize = 1000;

/// A repository's place in a bucket.
#[derive(Clone, Debug)]
pub struct Bucket {
    operator: Operator,
    location: String,
}

impl Bucket {
    /// Does not ask the service anything: whether the bucket is there shows at the first operation.
    pub fn open(place: &Place) -> Result<Self, OpenError> {
        Ok(Self { operator: place.operator()?, location: place.to_string() })
    }

    fn error(&self, operation: &'static str, name: &str, cause: Cause) -> StoreError {
        StoreError { operation, name: name.to_owned(), location: self.location.clone(), cause }
    }

    async fn run<T>(
        &self,
        operation: &'static str,
        name: &str,
        bytes: u64,
        request: impl Future<Output = opendal::Result<T>> + Send,
    ) -> Result<T, Failed> {
        let deadline = PATIENCE + Duration::from_secs(bytes / SLOWEST_BYTES_A_SECOND);
        match tokio::time::timeout(deadline, request).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(Failed { kind: error.kind(), error: self.error(operation, name, cause(&error)) }),
            Err(_) => {
                let text = format!("no answer within {} s", deadline.as_secs());
                let cause = Cause::Unavailable(text);
                Err(Failed { kind: ErrorKind::Unexpected, error: self.error(operation, name, cause) })
            }
        }
    }

    /// Makes sure that an object is missing, and not only said to be.
    async fn confirmed(&self, failed: Failed, name: &ObjectName) -> StoreError {
        if failed.kind != ErrorKind::NotFound {
            return failed.error;
        }
        let operation = failed.error.operation;
        let options = ListOptions { recursive: true, limit: Some(PAGE), ..ListOptions::default() };
        let shown = async {
            let mut lister = self.operator.lister_options(name.as_str(), options).await?;
            while let Some(entry) = lister.try_next().await? {
                if entry.path() == name.as_str() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        match self.run(operation, name.as_str(), 0, shown).await {
            Ok(false) => failed.error,
            Ok(true) => {
                let text = "the store lists the object and says that it has none of that name".to_owned();
                self.error(operation, name.as_str(), Cause::Unavailable(text))
            }
            Err(failed) => Self::unlisted(failed),
        }
    }

    /// A listing of nothing is empty: one that is not found has no bucket, or does not come from one.
    fn unlisted(failed: Failed) -> StoreError {
        match failed {
            Failed { kind: ErrorKind::NotFound, error } => {
                StoreError { cause: Cause::NoBucket("the listing was not found".to_owned()), ..error }
            }
            failed => failed.error,
        }
    }

    async fn lister(&self, folder: &str, options: ListOptions) -> Result<Lister, StoreError> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let listing = self.operator.lister_options(&prefix, options);
        self.run("list", folder, 0, listing).await.map_err(Self::unlisted)
    }
}

struct Failed {
    kind: ErrorKind,
    error: StoreError,
}

/// What an answer means here. Its own text is shortened: it may hold an address with a secret in it.
fn cause(error: &opendal::Error) -> Cause {
    let text = explain(error);
    match error.kind() {
        ErrorKind::NotFound => Cause::NotFound,
        ErrorKind::PermissionDenied => Cause::Refused(text),
        // What OpenDAL makes of `NoSuchBucket` and its like.
        ErrorKind::ConfigInvalid => Cause::NoBucket(text),
        // A conflict: another request for the same name is under way.
        ErrorKind::RateLimited | ErrorKind::Conflict => Cause::Unavailable(text),
        _ if error.is_temporary() => Cause::Unavailable(text),
        _ => Cause::Service(text),
    }
}

/// The code and message of an answer, or else what kept us from having one.
fn explain(error: &opendal::Error) -> String {
    let quoted = |field: &str| {
        let (_, rest) = error.message().split_once(&format!("{field}: \""))?;
        rest.split_once('"').map(|(text, _)| text).filter(|text| !text.is_empty())
    };
    if let Some(code) = quoted("code") {
        return match quoted("message") {
            Some(message) => format!("{code}: {message}"),
            None => code.to_owned(),
        };
    }
    let mut text: String = error.message().chars().take(200).collect();
    if text.is_empty() {
        // An answer without a word, as a proxy gives it.
        let all = error.to_string();
        let status =
            all.split_once("status: ").map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect());
        text = status
            .map_or_else(|| error.kind().to_string(), |status: String| format!("it answers with status {status}"));
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.source().is_none() {
            text = format!("{text}: {cause}");
        }
        source = cause.source();
    }
    text
}

#[async_trait]
impl Store for Bucket {
    fn location(&self) -> String {
        self.location.clone()
    }

    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        let len = bytes.len() as u64;
        let options = WriteOptions { if_not_exists: true, ..WriteOptions::default() };
        let writing = self.operator.write_options(name.as_str(), bytes, options);
        match self.run("create", name.as_str(), len, writing).await {
            Ok(_) => Ok(Created::New),
            Err(Failed { kind: ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists, .. }) => Ok(Created::Exists),
            Err(Failed { kind: ErrorKind::NotFound, error }) => {
                // There is nothing that could be missing but the bucket.
                Err(StoreError { cause: Cause::NoBucket("not found".to_owned()), ..error })
            }
            Err(failed) => Err(failed.error),
        }
    }

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        // Whoever reads whole objects reads small ones, or packs of some 32 MiB.
        let reading = self.operator.read(name.as_str());
        match self.run("read", name.as_str(), 64 << 20, reading).await {
            Ok(buffer) => Ok(buffer.to_bytes()),
            Err(failed) => Err(self.confirmed(failed, name).await),
        }
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        let wanted = range.end.saturating_sub(range.start);
        let truncated = |len| self.error("read", name.as_str(), Cause::Truncated { len });
        if wanted == 0 {
            let len = self.size(name).await?;
            return if range.end <= len { Ok(Bytes::new()) } else { Err(truncated(len)) };
        }
        let options = ReadOptions { range: (range.start..range.end).into(), ..ReadOptions::default() };
        let reading = self.operator.read_options(name.as_str(), options);
        match self.run("read", name.as_str(), wanted, reading).await {
            Ok(buffer) if buffer.len() as u64 == wanted => Ok(buffer.to_bytes()),
            Err(failed) if failed.kind == ErrorKind::NotFound || failed.error.is_retryable() => {
                Err(self.confirmed(failed, name).await)
            }
            // Fewer bytes than were asked for: the object is shorter, or the answer was cut.
            Ok(_) | Err(Failed { kind: ErrorKind::RangeNotSatisfied | ErrorKind::Unexpected, .. }) => {
                let len = self.size(name).await?;
                if len < range.end {
                    return Err(truncated(len));
                }
                let text = format!("it gave another number of bytes than the {wanted} that were asked for");
                Err(self.error("read", name.as_str(), Cause::Unavailable(text)))
            }
            Err(failed) => Err(failed.error),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        match self.run("look up", name.as_str(), 0, self.operator.stat(name.as_str())).await {
            Ok(metadata) => Ok(metadata.content_length()),
            Err(failed) => Err(self.confirmed(failed, name).await),
        }
    }

    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let starts_after = self.operator.info().capability().list_with_start_after;
        let start_after = after.filter(|_| starts_after).map(ToString::to_string);
        let page = Some(limit.clamp(1, PAGE));
        let mut lister = self
            .lister(folder, ListOptions { recursive: true, limit: page, start_after, ..ListOptions::default() })
            .await?;
        let mut found: Vec<Listed> = Vec::new();
        while found.len() < limit {
            let next = self.run("list", folder, 0, lister.try_next()).await.map_err(Self::unlisted)?;
            let Some(entry) = next else { break };
            // What others put there has names that we would not give.
            let Ok(name) = ObjectName::new(entry.path()) else { continue };
            let metadata = entry.metadata();
            if metadata.mode() != EntryMode::FILE || after.is_some_and(|after| name <= *after) {
                continue;
            }
            if found.last().is_some_and(|last| last.name >= name) {
                let text = format!("it lists `{name}` out of order, so that its listings cannot be relied on");
                return Err(self.error("list", folder, Cause::Service(text)));
            }
            let modified = metadata.last_modified().map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
            found.push(Listed { name, size: metadata.content_length(), modified });
        }
        Ok(found)
    }

    fn page(&self) -> usize {
        if self.operator.info().capability().list_with_start_after { 10_000 } else { 1_000_000 }
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let mut lister = self.lister(folder, ListOptions::default()).await?;
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut found = Vec::new();
        loop {
            let next = self.run("list", folder, 0, lister.try_next()).await.map_err(Self::unlisted)?;
            let Some(entry) = next else { break };
            let name = entry.path().strip_prefix(&prefix).and_then(|name| name.strip_suffix('/'));
            found.extend(name.filter(|name| ObjectName::new(*name).is_ok()).map(str::to_owned));
        }
        found.sort_unstable();
        Ok(found)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        match self.run("delete", name.as_str(), 0, self.operator.delete(name.as_str())).await {
            Ok(()) => Ok(()),
            Err(failed) => match self.confirmed(failed, name).await {
                error if error.is_not_found() => Ok(()),
                error => Err(error),
            },
        }
    }
}
