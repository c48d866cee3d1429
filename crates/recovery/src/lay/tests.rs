//! Files whose pages lie in several packs, as after many backups, laid out from a repository in a directory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_format::codec::Compressor;
use holdfast_format::map::{FrameRef, Map, PackRef, Run, RunSource};
use holdfast_repository::{Epoch, Identities, Keyring, Names, NewIdentity, Repository};
use holdfast_runtime::{Cancel, Progress};
use holdfast_store::Directory;
use holdfast_types::Micros;
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::region::REGION_BYTES;
use super::work::{AT_ONCE_BYTES, Window};
use super::{Target, Work, lay};
use crate::RestoreError;

const PAGE: usize = 8192;
const PAGES_OF_FRAME: usize = 16;
const PACKS: usize = 6;

struct Fixture {
    folder: tempfile::TempDir,
    keyring: Keyring,
    epoch: Epoch,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = NewIdentity::generate(None).unwrap();
        fs::create_dir(folder.path().join("repository")).unwrap();
        let store = Arc::new(Directory::new(folder.path().join("repository")));
        let repository = Repository::init(store, vec![identity.recipient.clone()], Micros::new(1)).await.unwrap();
        let mut identities = Identities::default();
        identities.add_file(&identity.file, || None).unwrap();
        let epoch = repository.begin_epoch().await.unwrap();
        Self { folder, keyring: Keyring::new(repository, Arc::new(identities)), epoch }
    }

    /// Stores the pages of each pack in the given order, and says what the files are made of.
    async fn store(&self, files: &[Vec<u8>], packs: &[Vec<(usize, usize)>]) -> (Map, Vec<Vec<Run>>) {
        let mut map = Map::default();
        let mut runs: Vec<Vec<Run>> = files
            .iter()
            .map(|file| {
                file.chunks(PAGE).map(|page| Run { len: page.len() as u64, source: RunSource::Zeros }).collect()
            })
            .collect();
        let mut compressor = Compressor::new(1).unwrap();
        for pages in packs {
            let mut writer = self.epoch.pack(0);
            for frame in pages.chunks(PAGES_OF_FRAME) {
                let mut plain = Vec::new();
                for (file, page) in frame {
                    let bytes = files[*file].chunks(PAGE).nth(*page).unwrap();
                    let source = RunSource::Frame { frame: map.frames.len() as u32, at: plain.len() as u32 };
                    runs[*file][*page].source = source;
                    plain.extend_from_slice(bytes);
                }
                let location = writer.push(&plain, &mut compressor);
                map.frames.push(FrameRef { pack: map.packs.len() as u32, location });
            }
            let sealed = writer.finish(b"");
            self.epoch.put_pack(Bytes::from(sealed.bytes), sealed.id).await.unwrap();
            map.packs.push(PackRef { id: sealed.id, epoch: self.epoch.id(), salt: sealed.salt, hashes: None });
        }
        (map, runs)
    }

    fn path(&self, file: usize) -> PathBuf {
        self.folder.path().join(file.to_string())
    }

    fn work(&self, files: &[Vec<u8>], map: &Map, runs: &[Vec<Run>]) -> Work {
        let mut work = Work::default();
        for (index, (file, runs)) in files.iter().zip(runs).enumerate() {
            work.add(map, Target::new(self.path(index), file.len() as u64, 0o640, None), runs);
        }
        work
    }

    async fn lay(&self, files: &[Vec<u8>], map: &Map, runs: &[Vec<Run>]) -> Result<u64, RestoreError> {
        let work = self.work(files, map, runs);
        lay(work, &self.keyring, 2, &Progress::default(), &Cancel::new()).await
    }
}

fn bytes(rng: &mut TestRng, len: usize) -> Vec<u8> {
    // Each block differs from all others; most of it is easy to compress.
    let mut bytes = vec![0; len];
    for block in bytes.chunks_mut(512) {
        let number = rng.next_u64().to_le_bytes();
        let len = block.len().min(8);
        block[..len].copy_from_slice(&number[..len]);
    }
    bytes
}

fn assert_same(path: &Path, expected: &[u8]) {
    let found = fs::read(path).unwrap();
    assert_eq!(found.len(), expected.len(), "{}", path.display());
    let differs = found.chunks(512).zip(expected.chunks(512)).position(|(a, b)| a != b);
    assert_eq!(differs.map(|block| block * 512), None, "{}", path.display());
}

#[tokio::test]
async fn pages_come_together_from_many_packs() {
    let fixture = Fixture::new().await;
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    // Over several windows with an odd end, of less than one, of one exactly, and small.
    let sizes = [3 * REGION_BYTES + 5 * PAGE + 1000, (2 << 20) + 100, REGION_BYTES, 3 * PAGE + 17, PAGE];
    let mut files: Vec<Vec<u8>> = sizes.iter().map(|size| bytes(&mut rng, *size)).collect();
    let mut packs = vec![Vec::new(); PACKS];
    for (file, bytes) in files.iter_mut().enumerate() {
        for (page, bytes) in bytes.chunks_mut(PAGE).enumerate() {
            // The first has most, the last few: its frames reach over windows and files.
            match rng.next_u32() % 1000 {
                n @ 0..8 => packs[2 + n as usize % (PACKS - 2)].push((file, page)),
                n @ 8..300 => packs[n as usize % 2].push((file, page)),
                990.. => bytes.fill(0),
                _ => packs[0].push((file, page)),
            }
        }
    }
    let (map, runs) = fixture.store(&files, &packs).await;
    let fetched = fixture.lay(&files, &map, &runs).await.unwrap();
    assert!(fetched > 0);
    for (index, file) in files.iter().enumerate() {
        assert_same(&fixture.path(index), file);
    }
}

/// No frame belongs to one window: more would have to be kept for later than is allowed.
#[tokio::test]
async fn frames_from_all_over_a_file_are_laid_out() {
    let fixture = Fixture::new().await;
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut files = [vec![0; 4 * REGION_BYTES]];
    // Nothing to compress: the first window has something in every frame, and comes in several turns.
    rng.fill_bytes(&mut files[0]);
    let (pages, strides) = (files[0].len() / PAGE, 16);
    let order = (0..pages).map(|n| (0, n % strides * (pages / strides) + n / strides)).collect();
    let (map, runs) = fixture.store(&files, &[order]).await;
    let groups = fixture.work(&files, &map, &runs).groups(&fixture.keyring).await.unwrap();
    let bytes = |window: &Window| window.stretches.iter().map(|part| part.bytes.end - part.bytes.start).sum::<u64>();
    let windows: Vec<_> = groups.iter().flatten().map(|window| (window.place, bytes(window))).collect();
    let first = windows.iter().filter(|(place, _)| *place == Some((0, 0))).count();
    assert!(first >= 4 && windows.iter().all(|(_, bytes)| *bytes <= AT_ONCE_BYTES), "{windows:?}");
    fixture.lay(&files, &map, &runs).await.unwrap();
    assert_same(&fixture.path(0), &files[0]);
}

/// Whatever fails, all that work on it end, and the cause is told.
#[tokio::test]
async fn what_cannot_be_written_or_read_is_named() {
    let fixture = Fixture::new().await;
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let files = [bytes(&mut rng, 8 * REGION_BYTES), bytes(&mut rng, 4 * PAGE)];
    let order = |file: usize| (0..files[file].len() / PAGE).map(move |page| (file, page)).collect();
    let (map, runs) = fixture.store(&files, &[order(0), order(1)]).await;
    for file in [0, 1] {
        fs::create_dir_all(fixture.path(file)).unwrap();
        let error = fixture.lay(&files, &map, &runs).await.unwrap_err();
        assert!(matches!(&error, RestoreError::Write { path, .. } if *path == fixture.path(file)), "{error:?}");
        fs::remove_dir(fixture.path(file)).unwrap();
        fs::remove_file(fixture.path(1 - file)).ok();
    }
    let path = fixture.folder.path().join("repository").join(Names::pack(map.packs[0].id).to_string());
    let mut sealed = fs::read(&path).unwrap();
    let middle = sealed.len() / 2;
    sealed[middle] ^= 1;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, sealed).unwrap();
    let error = fixture.lay(&files, &map, &runs).await.unwrap_err();
    assert!(matches!(error, RestoreError::Repository(_)), "{error:?}");
}
