//! A repository of each version of the format that was ever released must be readable for ever.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_recovery::{ArchiveMode, RestoreOptions, Target, inspect_log, plan, restore};
use holdfast_repository::{Identities, Keyring, Repository, VerifyOptions, verify};
use holdfast_runtime::{Cancel, Progress};
use holdfast_store::Directory;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/repository-1")
}

async fn keyring() -> Keyring {
    let store = Arc::new(Directory::new(fixture().join("repository")));
    let repository = Repository::open(store).await.unwrap();
    let mut identities = Identities::default();
    identities.add_file(&std::fs::read(fixture().join("identity.txt")).unwrap(), || None).unwrap();
    Keyring::new(repository, Arc::new(identities))
}

#[tokio::test]
async fn version_1_verifies() {
    let options = VerifyOptions {
        source: None,
        parallel: 2,
        inspect_log: Some(inspect_log),
        keeps_log: None,
        budget: None,
        by: None,
    };
    let report = verify(&keyring().await, &options, &Progress::new()).await.unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.snapshots, 1);
    assert!(report.log_objects > 0);
}

#[tokio::test]
async fn version_1_restores_byte_for_byte() {
    let keyring = keyring().await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("data");
    let plan = plan(&keyring, "chat", Target::Latest, None, None).await.unwrap();
    let mut options = RestoreOptions {
        to: to.clone(),
        delta: false,
        reuse: Vec::new(),
        parallel: 2,
        tablespaces: Vec::new(),
        archive_mode: ArchiveMode::Off,
        restore_command: "false".to_owned(),
        bin_directory: None,
        port: None,
        socket_directory: None,
    };
    restore(&keyring, &plan, &options, &Progress::new(), &Cancel::new()).await.unwrap();
    expect_fixture(&to);

    // It has no hashes to compare with: all of it is fetched again.
    std::fs::write(to.join("PG_VERSION"), "other").unwrap();
    std::fs::write(to.join("base/extra"), "other").unwrap();
    options.delta = true;
    let report = restore(&keyring, &plan, &options, &Progress::new(), &Cancel::new()).await.unwrap();
    expect_fixture(&to);
    assert!(!to.join("base/extra").exists());
    let reused = report.reused.unwrap();
    assert!(report.notes.iter().any(|note| note.contains("no hashes")), "{report:?}");
    assert!(reused.written > 10_000_000 && reused.deleted_files > 0, "{reused:?}");
}

fn expect_fixture(to: &Path) {
    let listed = std::fs::read_to_string(fixture().join("hashes")).unwrap();
    let expected: BTreeMap<&str, &str> =
        listed.lines().filter_map(|line| line.split_once("  ")).map(|(h, p)| (p, h)).collect();
    assert!(expected.len() > 900, "the list of hashes has only {} files", expected.len());
    for (path, hash) in &expected {
        let bytes = std::fs::read(to.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(sha256(&bytes), **hash, "{path}");
    }
    assert!(to.join("global/pg_control").exists());
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
