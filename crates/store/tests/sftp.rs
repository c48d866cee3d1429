//! A directory behind a real SFTP server, OpenSSH's.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_store::{Cause, ObjectName, SftpPlace, SftpStore, Store as _, conformance};
use holdfast_testkit::SshServer;

fn kept_at(server: &SshServer, path: PathBuf) -> SftpStore {
    SftpStore::new(SftpPlace {
        destination: server.destination(),
        path,
        key_file: Some(server.key_file()),
        known_hosts_file: Some(server.known_hosts_file()),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let server = SshServer::start();
    conformance::check(Arc::new(kept_at(&server, server.make_directory("conforms")))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_is_not_missing() {
    let mut server = SshServer::start();
    let name: ObjectName = "a/b".parse().unwrap();
    let here = server.make_directory("away");
    let store = kept_at(&server, here.clone());
    store.create(&name, Bytes::from_static(b"x")).await.unwrap();
    // The disk of the other machine is not mounted.
    let aside = here.with_file_name("aside");
    std::fs::rename(&here, &aside).unwrap();
    for error in [
        store.read(&name).await.unwrap_err(),
        store.size(&name).await.unwrap_err(),
        store.list("", None, 1).await.unwrap_err(),
        store.create(&name, Bytes::from_static(b"x")).await.unwrap_err(),
    ] {
        assert!(matches!(error.cause, Cause::Away), "{error:?}");
    }
    std::fs::rename(&aside, &here).unwrap();
    assert_eq!(store.read(&name).await.unwrap(), "x");
    server.kill();
    let error = store.read(&name).await.unwrap_err();
    assert!(!error.is_not_found() && error.is_retryable(), "{error:?}");
}

/// Somebody else answers at the address.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_host_is_not_trusted() {
    let (server, other) = (SshServer::start(), SshServer::start());
    let store = SftpStore::new(SftpPlace {
        destination: server.destination(),
        path: server.make_directory("repository"),
        key_file: Some(server.key_file()),
        known_hosts_file: Some(other.known_hosts_file()),
    });
    let error = store.size(&"a".parse().unwrap()).await.unwrap_err();
    assert!(!error.is_not_found(), "{error:?}");
}
