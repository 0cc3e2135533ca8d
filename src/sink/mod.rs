//! Rows out: shards that roll, and the one place where they are written.

mod encoder;
mod folder;
mod parquet;
mod present;
mod shard;
mod spool;
mod stream_writer;

pub use folder::{Closed, Resumable, Rolled, ShardState, SpoolState};
pub(crate) use present::check_present;
pub use stream_writer::{Layout, SinkState, StreamWriter};
pub(crate) use stream_writer::{Unsynced, sync_dir};

use std::path::PathBuf;

/// The form of the outputs (`errors/` is always JSON lines).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// JSON lines.
    #[default]
    Jsonl,
    /// Parquet.
    Parquet,
}

impl Format {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

/// Why an output cannot be written: the run stops, resumable.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file system said no.
    #[error("cannot write {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file format cannot hold what was to be written.
    #[error("cannot make the files of {folder}/ ({message}); --format jsonl holds every row")]
    Encode {
        /// The folder below OUT.
        folder: String,
        /// The cause.
        message: String,
    },
    /// What the checkpoint names is not there.
    #[error(
        "{path} was changed or removed since the run stopped ({problem}); restore it, or start again with --overwrite"
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl SinkError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        |source| Self::Io { path, source }
    }
}
