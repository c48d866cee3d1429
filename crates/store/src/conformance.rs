//! The suite that every store has to pass: the contract of [`Store`], line by line, against the real thing.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Cause, Created, ObjectName, Store};

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("the suite's names are names")
}

/// Runs all checks against an empty store.
///
/// # Panics
/// Where the store breaks the contract.
pub async fn check(store: Arc<dyn Store>) {
    objects_come_back(&*store).await;
    the_first_to_create_wins(&store).await;
    missing_is_not_found(&*store).await;
    ranges_are_exact(&*store).await;
    listings_are_ordered_and_paged(&*store).await;
    deleting_is_final_and_repeatable(&*store).await;
}

async fn objects_come_back(store: &dyn Store) {
    for (text, bytes) in [("empty", vec![]), ("a/b/c.d-e_f", vec![7; 3_000_000])] {
        let bytes = Bytes::from(bytes);
        assert_eq!(store.create(&name(text), bytes.clone()).await.expect("create"), Created::New);
        assert_eq!(store.read(&name(text)).await.expect("read"), bytes);
        assert_eq!(store.size(&name(text)).await.expect("size"), bytes.len() as u64);
    }
}

async fn the_first_to_create_wins(store: &Arc<dyn Store>) {
    let contested = name("contested/name");
    let attempts: Vec<_> = (0u8..16)
        .map(|n| {
            let (store, contested) = (Arc::clone(store), contested.clone());
            tokio::spawn(async move { (n, store.create(&contested, Bytes::from(vec![n; 100_000])).await) })
        })
        .collect();
    let mut winners = Vec::new();
    for attempt in attempts {
        let (n, outcome) = attempt.await.expect("no panic");
        if outcome.expect("create") == Created::New {
            winners.push(n);
        }
    }
    let [winner] = winners[..] else { panic!("{} writers were told that they made the object", winners.len()) };
    assert_eq!(store.read(&contested).await.expect("read"), vec![winner; 100_000]);
    assert_eq!(store.create(&contested, Bytes::from_static(b"late")).await.expect("create"), Created::Exists);
    assert_eq!(store.read(&contested).await.expect("read"), vec![winner; 100_000]);
}

async fn missing_is_not_found(store: &dyn Store) {
    let missing = name("no/such/object");
    assert!(store.read(&missing).await.expect_err("read").is_not_found());
    assert!(store.read_range(&missing, 0..1).await.expect_err("range").is_not_found());
    assert!(store.size(&missing).await.expect_err("size").is_not_found());
    assert!(store.list("no/such", None, 10).await.expect("list").is_empty());
    assert!(store.folders("no/such").await.expect("folders").is_empty());
}

async fn ranges_are_exact(store: &dyn Store) {
    let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    store.create(&name("ranged"), Bytes::from(bytes.clone())).await.expect("create");
    for range in [0..10u64, 9_990..10_000, 0..10_000, 5_000..5_001, 77..77] {
        let read = store.read_range(&name("ranged"), range.clone()).await.expect("range");
        assert_eq!(read, bytes[range.start as usize..range.end as usize]);
    }
    for range in [9_999..10_001u64, 20_000..20_001] {
        let error = store.read_range(&name("ranged"), range).await.expect_err("beyond the end");
        assert!(matches!(error.cause, Cause::Truncated { .. }), "{error:?}");
    }
}

async fn listings_are_ordered_and_paged(store: &dyn Store) {
    // "l/a-b" sorts before "l/a/…" and "l/a.b" between: a walk by folders must not get that wrong.
    let mut names = vec!["l/a-b", "l/a.b", "l/a/1", "l/a/2/x", "l/a/3", "l/ab", "l/b/1"];
    names.sort_unstable();
    for text in names.iter().rev() {
        store.create(&name(text), Bytes::from_static(b"x")).await.expect("create");
    }
    store.create(&name("lx"), Bytes::from_static(b"x")).await.expect("create");
    for limit in [1, 2, 3, 100] {
        let mut seen = Vec::new();
        loop {
            let after = seen.last().cloned();
            let page = store.list("l", after.as_ref(), limit).await.expect("list");
            assert!(page.len() <= limit);
            assert!(page.iter().all(|listed| listed.size == 1));
            if page.is_empty() {
                break;
            }
            seen.extend(page.into_iter().map(|listed| listed.name));
        }
        assert_eq!(seen.iter().map(ObjectName::as_str).collect::<Vec<_>>(), names, "with pages of {limit}");
    }
    assert_eq!(store.folders("l").await.expect("folders"), ["a", "b"]);
    let all = store.list("", None, 1000).await.expect("list");
    assert!(all.iter().any(|listed| listed.name.as_str() == "lx"));
}

async fn deleting_is_final_and_repeatable(store: &dyn Store) {
    let victim = name("to/delete");
    store.create(&victim, Bytes::from_static(b"x")).await.expect("create");
    store.delete(&victim).await.expect("delete");
    store.delete(&victim).await.expect("delete again");
    assert!(store.read(&victim).await.expect_err("read").is_not_found());
    assert!(store.list("to", None, 10).await.expect("list").is_empty());
    assert_eq!(store.create(&victim, Bytes::from_static(b"y")).await.expect("create"), Created::New);
}
