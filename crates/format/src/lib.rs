//! The bytes of a Holdfast repository: sealed objects, frames, page maps, manifests.
//!
//! Pure encoding and decoding, specified in `docs/format.md` and `docs/format-pages.md`. Nothing here reads a file, a
//! clock or the network, and nothing here panics or allocates without bound on bytes that it did not make.

pub mod block;
pub mod codec;
pub mod manifest;
pub mod map;
pub mod object;
mod pages;
pub mod unfinished;
pub mod varint;
pub mod wal;

pub use object::{EpochKey, FORMAT_VERSION, ObjectKind};
