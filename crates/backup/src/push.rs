//! `archive_command`: one finished segment, partial segment or timeline history at a time.
//!
//! *Consistency.* Success means durable in the repository. The same name with the same content is success, with other
//! content an error: PostgreSQL then keeps the file and tries again, and the operator sees it.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_format::codec::{Compressor, LevelError};
use holdfast_pgformat::wal::{PageFault, WalDecoder, check_segment_start, segment_system_id};
use holdfast_repository::{Lineage, Names, Repository, RepositoryError, SealedLog};
use holdfast_runtime::{Backoff, Cancel, retry};
use holdfast_store::Created;
use holdfast_types::{Segment, SegmentSize, Timeline};

use crate::segment::{LOG_LEVEL, LogSealer, note};

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushOutcome {
    Stored,
    /// The repository had it, with the same content.
    AlreadyThere,
    /// A backup history file, which nothing needs: its content is in the manifest.
    NotNeeded,
}

/// A file was not archived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    #[error("could not read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a file that PostgreSQL archives", .path.display())]
    NotArchived { path: PathBuf },
    #[error("{} is not the log that its name says", .path.display())]
    Content {
        path: PathBuf,
        #[source]
        source: PageFault,
    },
    #[error("{} has {found} bytes, which is no segment size", .path.display())]
    Size { path: PathBuf, found: u64 },
    #[error("no log of source `{source_name}` is in the repository yet, so the cluster of {} is not known", .path.display())]
    UnknownCluster { source_name: String, path: PathBuf },
    #[error("could not archive to the repository")]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Level(#[from] LevelError),
}

/// Archives the file at `path`, as PostgreSQL's `%p` gives it.
pub async fn push(repository: &Repository, source: &str, path: &Path) -> Result<PushOutcome, PushError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if name.ends_with(".backup") {
        return Ok(PushOutcome::NotNeeded);
    }
    let bytes = std::fs::read(path).map_err(|source| PushError::Read { path: path.to_owned(), source })?;
    let epoch = repository.begin_epoch().await?;
    let sealed = if let Some(digits) = name.strip_suffix(".history") {
        let not_archived = || PushError::NotArchived { path: path.to_owned() };
        let timeline = u32::from_str_radix(digits, 16).map(Timeline::new).map_err(|_| not_archived())?;
        let lineage = lineage_beside(path, source)?;
        epoch.seal_history(Names::history(source, lineage, timeline), &bytes)?
    } else {
        seal_segment(&epoch, source, path, name, &bytes)?
    };
    let put = || repository.put_log(&sealed);
    let created = retry(Backoff::SHORT, &Cancel::new(), RepositoryError::is_retryable, put).await?;
    Ok(match created {
        Created::New => PushOutcome::Stored,
        Created::Exists => PushOutcome::AlreadyThere,
    })
}

fn seal_segment(
    epoch: &holdfast_repository::Epoch,
    source: &str,
    path: &Path,
    name: &str,
    bytes: &[u8],
) -> Result<SealedLog, PushError> {
    let (name, is_partial) = name.strip_suffix(".partial").map_or((name, false), |name| (name, true));
    let size = SegmentSize::new(bytes.len() as u64)
        .ok_or(PushError::Size { path: path.to_owned(), found: bytes.len() as u64 })?;
    let segment = Segment::parse(name, size).map_err(|_| PushError::NotArchived { path: path.to_owned() })?;
    let content = |source| PushError::Content { path: path.to_owned(), source };
    let system_id = segment_system_id(bytes).ok_or(PageFault::TooShort);
    let system_id = system_id.map_err(content)?;
    let major = check_segment_start(bytes, system_id, segment, size).map_err(content)?;
    let lineage = Lineage { system_id, segment_size: size };
    let mut compressor = Compressor::new(LOG_LEVEL)?;
    let mut sealer = if is_partial {
        LogSealer::partial(epoch, source, lineage, segment)
    } else {
        LogSealer::segment(epoch, source, lineage, segment)
    };
    sealer.push(bytes, &mut compressor);
    // The index is a help, not a condition: a segment that ends in the middle of the log is archived all the same.
    if let Ok(mut decoder) = WalDecoder::new(major, size, segment.start(size)) {
        let index = &mut sealer.index;
        if let Err(error) = decoder.feed(bytes, &mut |record| note(index, &record)) {
            tracing::debug!(%error, segment = name, "the log of the segment was indexed up to here");
        }
    }
    Ok(sealer.finish(&mut compressor)?)
}

/// A timeline history does not say which cluster it is of; a segment beside it in `pg_wal` does.
fn lineage_beside(path: &Path, source: &str) -> Result<Lineage, PushError> {
    let unknown = || PushError::UnknownCluster { source_name: source.to_owned(), path: path.to_owned() };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let read = |source| PushError::Read { path: folder.to_owned(), source };
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let len = entry.metadata().map_err(read)?.len();
        let Some(size) = SegmentSize::new(len) else { continue };
        if Segment::parse(&entry.file_name().to_string_lossy(), size).is_err() {
            continue;
        }
        let mut head = [0; 40];
        let file = std::fs::File::open(entry.path()).map_err(read)?;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).map_err(read)?;
        // A recycled segment still has its old header, of the same cluster.
        if let Some(system_id) = segment_system_id(&head) {
            return Ok(Lineage { system_id, segment_size: size });
        }
    }
    Err(unknown())
}
