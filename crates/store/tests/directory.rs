//! The directory store against the contract, and what is particular to directories.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::sync::Arc;

use bytes::Bytes;
use holdfast_store::{Cause, Created, Directory, ObjectName, Store as _, conformance};

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let folder = tempfile::tempdir().unwrap();
    conformance::check(Arc::new(Directory::new(folder.path()))).await;
    let left = std::fs::read_dir(folder.path().join(".tmp")).unwrap().count();
    assert_eq!(left, 0, "temporary files are left behind");
}

#[tokio::test]
async fn an_unmounted_repository_is_away_and_not_empty() {
    let folder = tempfile::tempdir().unwrap();
    let store = Directory::new(folder.path().join("mount"));
    let name = ObjectName::new("packs/x").unwrap();
    for error in [
        store.create(&name, Bytes::from_static(b"x")).await.unwrap_err(),
        store.read(&name).await.unwrap_err(),
        store.list("", None, 10).await.unwrap_err(),
        store.delete(&name).await.unwrap_err(),
    ] {
        assert!(matches!(error.cause, Cause::Away), "{error:?}");
        assert!(error.is_retryable());
    }
    assert!(!folder.path().join("mount").exists(), "an unmounted disk must not be written beneath");
}

/// Whoever dies between linking and unlinking leaves a second name of the object.
#[tokio::test]
async fn what_a_dead_writer_left_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = Directory::new(folder.path());
    let (first, temporary) = (ObjectName::new("keys/a/1").unwrap(), folder.path().join(".tmp"));
    store.create(&first, Bytes::from_static(b"first")).await.unwrap();
    // By every name that the next ones could choose if they counted, as processes of one id in different containers do.
    for number in 0..20 {
        let name = format!("1-{}-{number}", std::process::id());
        std::fs::hard_link(folder.path().join("keys/a/1"), temporary.join(name)).unwrap();
    }
    for number in 0..10 {
        let name = ObjectName::new(format!("keys/b{number}/1")).unwrap();
        store.create(&name, Bytes::from_static(b"other")).await.unwrap();
    }
    assert_eq!(store.read(&first).await.unwrap(), "first");
}

#[test]
fn names_cannot_leave_the_repository() {
    for text in ["", "/etc/passwd", "a/../b", "..", ".tmp/x", "a//b", "a b", "a/", "ä"] {
        assert!(ObjectName::new(text).is_err(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn folders_come_and_go_under_writers() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Directory::new(folder.path()));
    let name = |writer: u32| {
        ObjectName::new(if writer.is_multiple_of(2) { format!("a/{writer}") } else { format!("a/b/{writer}") })
    };
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let (store, name) = (Arc::clone(&store), name(writer).unwrap());
        writers.spawn(async move {
            for _ in 0..200 {
                assert_eq!(store.create(&name, Bytes::from_static(b"x")).await.unwrap(), Created::New);
                assert_eq!(store.read(&name).await.unwrap(), "x");
                assert!(store.list("a", None, 10).await.unwrap().iter().any(|listed| listed.name == name));
                store.delete(&name).await.unwrap();
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    assert!(store.folders("a").await.unwrap().is_empty(), "empty folders are left behind");
}
