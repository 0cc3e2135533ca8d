//! Rows out: shards that roll, and the one place where they are written.

mod custom;
mod encoder;
mod folder;
mod parquet;
mod present;
mod shard;
mod spool;
mod stream_writer;

pub use custom::{Rows, Shard, Sink};
pub(crate) use folder::shard_path;
pub use folder::{Closed, Resumable, Rolled, ShardState, SpoolState};
pub(crate) use parquet::ShardRows;
pub(crate) use present::{check_open, check_present};
pub use stream_writer::{Layout, SinkState, StreamWriter};
pub(crate) use stream_writer::{Unsynced, sync_dir};

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

/// The form of the outputs (`errors/` is always JSON lines).
#[derive(Clone, Debug, Default)]
pub enum Format {
    /// JSON lines.
    #[default]
    Jsonl,
    /// Parquet.
    Parquet,
    /// A sink of the library's user.
    Custom(Arc<dyn Sink>),
}

impl Format {
    /// The name on the command line, or the sink's own.
    pub fn name(&self) -> &str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
            Self::Custom(sink) => sink.name(),
        }
    }

    /// The extension of its files, without the first dot.
    pub fn extension(&self) -> &str {
        match self {
            Self::Custom(sink) => sink.extension(),
            built_in => built_in.name(),
        }
    }

    /// Refuses a sink whose name or extension cannot be used.
    pub(crate) fn check(&self) -> Result<(), SinkError> {
        match self {
            Self::Custom(sink) => custom::check(&**sink),
            Self::Jsonl | Self::Parquet => Ok(()),
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
    /// A sink of the user's failed.
    #[error("sink `{sink}` cannot write {shard}: {}; nothing is lost: mend that, and the same run goes on there", causes(&**cause))]
    Custom {
        /// Its name.
        sink: String,
        /// The file below OUT.
        shard: String,
        /// What it said.
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A sink of the user's has a name that is none.
    #[error(
        "`{name}` is no name for a sink; choose another, made of lowercase letters, digits, `-`, `_` and `.`, at most 64, but not `jsonl` or `parquet`"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The files of a sink of the user's cannot be told by their extension.
    #[error(
        "sink `{name}` cannot have files that end in `.{extension}`; an extension is made of letters, digits and dots, such as `csv` or `csv.gz`, at most 16, and its end is not `part`"
    )]
    BadExtension {
        /// The sink.
        name: String,
        /// The extension.
        extension: String,
    },
    /// What the checkpoint names is not there.
    #[error(
        "{path} was changed or removed since the run stopped ({problem}); restore it, or use --resume to write all outputs again from the answers on file"
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

/// An error with what caused it, as one line.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}
