//! Several repositories at once: who waits for whom, what becomes of one that fails, and that all have the same in the end.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

mod shared;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_format::manifest::{MapRef, PackSize};
use holdfast_format::map::Map;
use holdfast_repository::{FanOut, FanOutSettings, Lineage, Names, NewIdentity, Repository, RepositoryError, Sibling};
use holdfast_runtime::Cancel;
use holdfast_store::{Cause, Created, Directory, Listed, ObjectName, Store, StoreError};
use holdfast_types::{Micros, PackId, Segment, SegmentSize, SnapshotId, SystemId, Timeline};

/// A directory that can fail, and stand still.
#[derive(Debug)]
struct Shaky {
    store: Directory,
    is_away: AtomicBool,
    /// Milliseconds.
    delay: AtomicU64,
    /// Once more so many, for what is created.
    creation: AtomicU64,
}

impl Shaky {
    fn new(path: &Path) -> Arc<Self> {
        std::fs::create_dir_all(path).unwrap();
        let store = Directory::new(path);
        Arc::new(Self { store, is_away: AtomicBool::new(false), delay: AtomicU64::new(0), creation: AtomicU64::new(0) })
    }

    async fn ask(&self, name: &str) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(self.delay.load(Ordering::Relaxed))).await;
        if self.is_away.load(Ordering::Relaxed) {
            let (name, location) = (name.to_owned(), self.location());
            return Err(StoreError { operation: "ask", name, location, cause: Cause::Away });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Shaky {
    fn location(&self) -> String {
        self.store.location()
    }

    async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, StoreError> {
        // It takes longer than anything else.
        tokio::time::sleep(Duration::from_millis(self.creation.load(Ordering::Relaxed))).await;
        self.ask(name.as_str()).await?;
        self.ask(name.as_str()).await?;
        self.store.create(name, bytes).await
    }

    async fn read(&self, name: &ObjectName) -> Result<Bytes, StoreError> {
        self.ask(name.as_str()).await?;
        self.store.read(name).await
    }

    async fn read_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.ask(name.as_str()).await?;
        self.store.read_range(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.ask(name.as_str()).await?;
        self.store.size(name).await
    }

    async fn list(&self, folder: &str, after: Option<&ObjectName>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.ask(folder).await?;
        self.store.list(folder, after, limit).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        self.ask(folder).await?;
        self.store.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.ask(name.as_str()).await?;
        self.store.delete(name).await
    }
}

struct Three {
    _folder: tempfile::TempDir,
    stores: Vec<Arc<Shaky>>,
}

impl Three {
    async fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores: Vec<_> = ["a", "b", "c"].map(|name| Shaky::new(&folder.path().join(name))).into();
        let recipient = NewIdentity::generate(None).unwrap().recipient;
        let first = Repository::init(stores[0].clone(), vec![recipient], Micros::new(1)).await.unwrap();
        for other in &stores[1..] {
            Repository::init_like(other.clone(), &first).await.unwrap();
        }
        Self { _folder: folder, stores }
    }

    async fn open(&self, required: &[&str], is_patient: bool) -> Result<Repository, RepositoryError> {
        let names = ["a", "b", "c"];
        let sibling = |(name, store): (&&str, &Arc<Shaky>)| Sibling {
            name: (*name).to_owned(),
            store: store.clone(),
            trouble: None,
        };
        let siblings = names.iter().zip(&self.stores).map(sibling).collect();
        let required = required.iter().map(|name| (*name).to_owned()).collect();
        FanOut::open(siblings, &FanOutSettings { required, is_patient, is_reader: false }, &Cancel::new()).await
    }

    async fn packs(&self, number: usize) -> usize {
        self.stores[number].store.list("packs", None, 1000).await.unwrap().len()
    }
}

fn pack(number: u8) -> (Bytes, PackId) {
    (Bytes::from(vec![number; 1 << 20]), PackId::new([number; 32]))
}

fn troubles(repository: &Repository) -> Vec<bool> {
    repository.fan_out().unwrap().status().iter().map(|at| at.trouble.is_some()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_have_the_same() {
    let three = Three::make().await;
    let repository = three.open(&[], true).await.unwrap();
    let epoch = repository.begin_epoch().await.unwrap();
    for number in 0..40 {
        let (bytes, id) = pack(number);
        epoch.put_pack(bytes, id).await.unwrap();
    }
    repository.settle().await;
    assert_eq!(troubles(&repository), [false; 3]);
    let mut contents = Vec::new();
    for store in &three.stores {
        let mut all = Vec::new();
        for listed in store.list("", None, 1000).await.unwrap() {
            all.push((listed.name.clone(), store.read(&listed.name).await.unwrap()));
        }
        assert!(all.len() > 40);
        contents.push(all);
    }
    assert!(contents[0] == contents[1] && contents[0] == contents[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_holds_up_nobody() {
    let three = Three::make().await;
    let repository = three.open(&[], true).await.unwrap();
    let epoch = repository.begin_epoch().await.unwrap();
    repository.settle().await;
    // Any of them, the first one too.
    three.stores[0].is_away.store(true, Ordering::Relaxed);
    for number in 0..10 {
        let (bytes, id) = pack(number);
        epoch.put_pack(bytes, id).await.unwrap();
    }
    repository.settle().await;
    assert_eq!(troubles(&repository), [true, false, false]);
    assert_eq!((three.packs(0).await, three.packs(1).await, three.packs(2).await), (0, 10, 10));
    // What was written is found, wherever it is.
    let found: Vec<_> = (0..10).map(|number| (pack(number).1, Some(1 << 20))).collect();
    repository.require_packs(found).await.unwrap();
    // When all fail, nothing is done.
    for store in &three.stores {
        store.is_away.store(true, Ordering::Relaxed);
    }
    let (bytes, id) = pack(11);
    assert!(epoch.put_pack(bytes, id).await.unwrap_err().is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_required_is_waited_for() {
    let three = Three::make().await;
    let repository = three.open(&["c"], true).await.unwrap();
    let epoch = repository.begin_epoch().await.unwrap();
    three.stores[2].delay.store(50, Ordering::Relaxed);
    for number in 0..5 {
        let (bytes, id) = pack(number);
        epoch.put_pack(bytes, id).await.unwrap();
        assert_eq!(three.packs(2).await, usize::from(number) + 1, "it is there when it is confirmed");
    }
    three.stores[2].is_away.store(true, Ordering::Relaxed);
    let (bytes, id) = pack(6);
    epoch.put_pack(bytes, id).await.unwrap_err();
    // Nobody is there who was required from the start.
    three.stores[2].delay.store(0, Ordering::Relaxed);
    let repository = three.open(&["c"], true).await.unwrap();
    repository.begin_epoch().await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn log_does_not_wait_for_one_that_stands_still() {
    let three = Three::make().await;
    let repository = three.open(&[], false).await.unwrap();
    three.stores[1].delay.store(3_600_000, Ordering::Relaxed);
    let epoch = repository.begin_epoch().await.unwrap();
    for number in 0..=255 {
        let (bytes, id) = pack(number);
        epoch.put_pack(bytes, id).await.unwrap();
    }
    // 256 MiB are more than what waits in memory.
    assert_eq!(troubles(&repository), [false, true, false]);
    let why = repository.fan_out().unwrap().status()[1].trouble.clone().unwrap();
    assert!(why.contains("slower"), "nobody waited: {why}");
    assert_eq!(three.packs(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_is_not_written_to() {
    let three = Three::make().await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = Shaky::new(folder.path());
    let recipient = NewIdentity::generate(None).unwrap().recipient;
    Repository::init(stranger.clone(), vec![recipient], Micros::new(1)).await.unwrap();
    let before = stranger.list("", None, 100).await.unwrap();
    let three = Three { stores: vec![three.stores[0].clone(), stranger.clone(), three.stores[2].clone()], ..three };
    let repository = three.open(&[], true).await.unwrap();
    assert_eq!(troubles(&repository), [false, true, false]);
    assert!(repository.fan_out().unwrap().status()[1].trouble.clone().unwrap().contains("not of one content"));
    repository.begin_epoch().await.unwrap();
    repository.settle().await;
    assert_eq!(stranger.list("", None, 100).await.unwrap(), before);
}

/// Log that is on its way elsewhere while a place comes back gets there, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_comes_back_gets_what_was_on_its_way() {
    let three = Three::make().await;
    let (slow, back) = (&three.stores[0], &three.stores[1]);
    for store in &three.stores[1..] {
        store.is_away.store(true, Ordering::Relaxed);
    }
    let repository = three.open(&[], false).await.unwrap();
    let epoch = repository.begin_epoch().await.unwrap();
    let lineage = Lineage { system_id: SystemId::new(7), segment_size: SegmentSize::DEFAULT };
    // There is a history only where there is log; what is damaged stays behind.
    let segment = Names::segment("chat", lineage, Segment::new(Timeline::FIRST, 5));
    slow.store.create(&segment, Bytes::from_static(b"no segment")).await.unwrap();
    let name = |timeline| Names::history("chat", lineage, Timeline::new(timeline));
    let early = epoch.seal_history(name(2), b"1\t0/5000000\tno recovery target specified\n").unwrap();
    repository.put_log(&early).await.unwrap();
    slow.creation.store(3000, Ordering::Relaxed);
    let late = epoch.seal_history(name(3), b"2\t0/6000000\tno recovery target specified\n").unwrap();
    let putting = {
        let repository = repository.clone();
        tokio::spawn(async move { repository.put_log(&late).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    back.is_away.store(false, Ordering::Relaxed);
    let all = Arc::clone(repository.fan_out().unwrap());
    let keeper = tokio::spawn(async move { all.keep_log("chat").await });
    putting.await.unwrap().unwrap();
    let is_there = async |timeline| back.size(&name(timeline)).await.is_ok();
    for _ in 0..300 {
        if is_there(2).await && is_there(3).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    keeper.abort();
    assert!(is_there(2).await && is_there(3).await);
    assert_eq!(troubles(&repository), [false, false, true]);
}

/// What a base has brought may never have got there.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_only_where_everything_is_that_it_needs() {
    let three = Three::make().await;
    let repository = three.open(&[], true).await.unwrap();
    let epoch = repository.begin_epoch().await.unwrap();
    let mut packs = Vec::new();
    for number in 0..3 {
        let (bytes, id) = pack(number);
        packs.push(PackSize { id, bytes: bytes.len() as u64 });
        epoch.put_pack(bytes, id).await.unwrap();
    }
    repository.settle().await;
    three.stores[1].store.delete(&Names::pack(packs[0].id)).await.unwrap();
    let (map, bytes) = epoch.put_map(&Map::default()).await.unwrap();
    let id = SnapshotId::new("20261121T101500Z", [7; 4]).unwrap();
    let maps = vec![MapRef { id: map, bytes, entries: 0 }];
    epoch.commit(&shared::manifest(id.clone(), Micros::new(5), packs, maps)).await.unwrap();
    assert_eq!(troubles(&repository), [false, true, false]);
    let name = Names::snapshot("chat", &id);
    let mut is_there = Vec::new();
    for store in &three.stores {
        is_there.push(store.size(&name).await.is_ok());
    }
    assert_eq!(is_there, [true, false, true]);
}

/// Deletions come after what was created before them, everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_is_kept_where_it_matters() {
    let three = Three::make().await;
    let repository = three.open(&[], true).await.unwrap();
    for (number, store) in three.stores.iter().enumerate() {
        store.delay.store(number as u64 * 3, Ordering::Relaxed);
    }
    let name: ObjectName = "pieces/x".parse().unwrap();
    let store = repository.store();
    for _ in 0..20 {
        store.create(&name, Bytes::from_static(b"x")).await.unwrap();
        store.delete(&name).await.unwrap();
    }
    repository.settle().await;
    for store in &three.stores {
        assert!(store.list("pieces", None, 10).await.unwrap().is_empty());
    }
    assert_eq!(troubles(&repository), [false; 3]);
}
