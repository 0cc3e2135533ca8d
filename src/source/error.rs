//! Why an input cannot be used, or read on.

use crate::event::counted;
use std::io;
use std::path::{Path, PathBuf};

/// Why an input cannot be used, or read on: the run does not start, or stops resumable.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system said no.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is not what its name says, or damaged from some place on.
    #[error("cannot read {path}: {problem}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
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
    /// Nothing that can be read was given.
    #[error("{message}")]
    Nothing {
        /// What was given, why it holds no rows, and what is read.
        message: String,
    },
    /// A stream that can be recognised by nothing but its bytes has other bytes.
    #[error(
        "{name} is another one than in the run before: {problem}; pipe the same bytes in, use --resume to \
         keep what still fits, --overwrite to start again, or another folder"
    )]
    OtherStream {
        /// What the stream is called.
        name: String,
        /// How that was noticed.
        problem: String,
    },
}

impl SourceError {
    /// For `map_err`: an I/O error with its path.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// A file that is not what it should be.
    pub(super) fn unreadable(path: &Path, problem: impl Into<String>) -> Self {
        Self::Unreadable {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    /// A stream that had ended after `rows` rows has more.
    pub(crate) fn goes_on(rows: u64) -> Self {
        Self::OtherStream {
            name: "stdin".into(),
            problem: format!("it goes on after the {} it had", counted(rows, "row")),
        }
    }
}
