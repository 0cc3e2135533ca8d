//! Rows in: files become chunks of raw rows.

mod fingerprint;
mod jsonl;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use fingerprint::Fingerprint;
pub use jsonl::JsonlSource;

/// A line longer than this is no row.
pub const MAX_ROW_BYTES: usize = 256 << 20;

/// Where reading goes on: everything before it has been handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Index of the file.
    pub file: usize,
    /// Byte offset in it.
    pub offset: u64,
    /// Lines before it in that file.
    pub line: u64,
    /// The ordinal of the next row.
    pub ordinal: u64,
}

/// Consecutive input rows, not yet looked at.
#[derive(Debug)]
pub struct Chunk {
    /// Chunks are numbered from 0 in the order of the input.
    pub seq: u64,
    /// Its rows.
    pub rows: Vec<RawRow>,
    /// The bytes they stand in.
    pub data: Vec<u8>,
    /// Where reading goes on after this chunk.
    pub end: Position,
}

/// One input row as it was read.
#[derive(Debug)]
pub struct RawRow {
    /// Its ordinal.
    pub ordinal: u64,
    /// The file it stands in.
    pub file: Option<Arc<str>>,
    /// Its line there, from 1.
    pub line: u64,
    /// Its bytes in [`Chunk::data`]; only the beginning when `too_long`.
    pub span: Range<usize>,
    /// Over [`MAX_ROW_BYTES`].
    pub too_long: bool,
    /// Where reading goes on after this row.
    pub end: Position,
}

/// Why no more rows can be read: the run fails, resumable.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system said no.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It lost its end.
    #[error("{path} was changed while it was read: it ends at byte {end} instead of {size}")]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Where it ends now.
        end: u64,
        /// Its size when it was opened.
        size: u64,
    },
}

/// A supplier of rows. Called from one thread of its own; it may block.
pub trait Source: Send {
    /// The next chunk of at most `rows` rows and about `bytes` bytes; none at the end.
    fn next_chunk(&mut self, rows: usize, bytes: usize) -> Result<Option<Chunk>, SourceError>;
}
