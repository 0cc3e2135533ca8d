//! Rows out: shards that roll, and the one place where they are written.

mod shard;
mod stream_writer;

pub use shard::{Rolled, ShardState};
pub use stream_writer::{Layout, SinkState, StreamWriter};
pub(crate) use stream_writer::{Unsynced, sync_dir};

use std::path::PathBuf;

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
