//! Rows in: files, folders, globs and pipes become chunks of raw rows.
//!
//! `open_input` makes an `Input` of what the user gave; `Input::open` starts reading it anywhere.
//! Rows of every kind become JSON text in `Chunk::data`; nothing here looks inside a JSON row.

mod columnar;
mod count;
mod csv;
mod error;
mod files;
mod fingerprint;
mod generate;
mod jsonl;
mod kind;
mod lines;
mod open;
mod reader;
mod stdin;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

pub(crate) use columnar::ParquetRows;
pub use error::SourceError;
pub use fingerprint::Fingerprint;
pub(crate) use fingerprint::{difference, is_continued};
pub use generate::Generated;
pub use open::{AtPath, Opened, open_input};

/// A row longer than this is no row.
pub const MAX_ROW_BYTES: usize = 256 << 20;

/// Where reading goes on: everything before it has been handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Index of the file.
    pub file: usize,
    /// How far into it: bytes of text (of decompressed text for `.gz` and `.zst`), rows of Parquet and Arrow.
    pub offset: u64,
    /// Lines before it in that file (rows of Parquet and Arrow).
    pub line: u64,
    /// The ordinal of the next row.
    pub ordinal: u64,
    /// A digest of everything before it, where the input can be recognised by nothing else (stdin).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub check: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference
fn is_zero(n: &u64) -> bool {
    *n == 0
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
    /// Its line there (the first of its lines; in Parquet and Arrow its number), from 1.
    pub line: u64,
    /// Its JSON text in [`Chunk::data`]; with a `problem` what there is to show of it.
    pub span: Range<usize>,
    /// Why it is no row.
    pub problem: Option<Box<str>>,
    /// Where reading goes on after this row.
    pub end: Position,
}

/// A supplier of rows. Called from one thread of its own; it may block.
pub trait Source: Send {
    /// The next chunk of at most `rows` rows and about `bytes` bytes; none at the end.
    fn next_chunk(&mut self, rows: usize, bytes: usize) -> Result<Option<Chunk>, SourceError>;
}

/// What a run reads: recognised again on resume, and read from anywhere.
///
/// [`Generated`] makes one of an iterator.
pub trait Input: Send + Sync {
    /// By what the input is recognised, for each of its files in order. Two runs whose fingerprints are
    /// equal must read the same rows.
    fn fingerprints(&self) -> Result<Vec<Fingerprint>, SourceError>;

    /// Its number of rows, where that is known at once.
    fn total(&self) -> Option<u64> {
        None
    }

    /// Its number of rows, where counting them is much cheaper than reading them. Called on a thread of
    /// its own while the run is on; it gives up soon after `stop` is set.
    fn count(&self, stop: &AtomicBool) -> Option<u64> {
        let _nothing_to_stop = stop;
        self.total()
    }

    /// Reads from `start` on, up to (not including) the row with ordinal `limit`.
    fn open(&self, start: Position, limit: Option<u64>) -> Result<Box<dyn Source>, SourceError>;
}
