//! Why an OUT cannot be read.

use std::path::{Path, PathBuf};

use crate::event::{are, counted};

/// Why an OUT cannot be read. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is nothing.
    #[error("{} is not there; give the folder OUT of a finished run", out.display())]
    Missing {
        /// The folder OUT.
        out: PathBuf,
    },
    /// It is something else.
    #[error("{} holds no run of chainette ({problem}); give the folder OUT of a finished run", out.display())]
    Foreign {
        /// The folder OUT.
        out: PathBuf,
        /// How that was seen.
        problem: String,
    },
    /// The run is under way, or was stopped.
    #[error("the run in {} is not finished ({}); the same `chainette run` command finishes it", out.display(), done(*rows))]
    Unfinished {
        /// The folder OUT.
        out: PathBuf,
        /// Input rows that its metadata counts, once there is one.
        rows: Option<u64>,
    },
    /// What the run says of itself cannot be understood.
    #[error("{} is damaged ({problem}); restore it, or remove it and give the same `chainette run` command again, which writes it anew", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The graph is missing, or cannot be understood.
    #[error("{} cannot be used ({problem}); restore it, or write it anew: `chainette inspect CHAIN --format json` prints it", path.display())]
    Graph {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A shard is not what the run wrote.
    #[error("{} was changed or removed since the run finished ({problem}); restore it, or let the same `chainette run` command with --resume write all outputs again from the answers on file", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A shard has its size and is not what the run wrote all the same.
    #[error("{} is damaged ({problem}); restore it, or remove it and let the same `chainette run` command with --resume write all outputs again from the answers on file", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A row of a shard is none.
    #[error("{}:{line}: {problem}; restore the file, or remove it and let the same `chainette run` command with --resume write all outputs again from the answers on file", path.display())]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The line, or the row of a Parquet file, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The outputs are files of a sink of the library's user.
    #[error("the outputs in {} were written by the sink `{sink}` of a program; only those of --format jsonl and parquet can be read", out.display())]
    Custom {
        /// The folder OUT.
        out: PathBuf,
        /// The sink.
        sink: String,
    },
    /// The file system said no.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl AuditError {
    /// For `map_err`: an I/O error with its path; a shard that is not there was removed.
    pub(super) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => Self::Altered {
                path: path.to_owned(),
                problem: "it is missing".into(),
            },
            _ => Self::Io {
                path: path.to_owned(),
                source,
            },
        }
    }

    /// A shard that is not what the run wrote.
    pub(super) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}

/// How far an unfinished run is.
fn done(rows: Option<u64>) -> String {
    match rows {
        Some(rows) => format!("{} {} done", counted(rows, "row"), are(rows)),
        None => "it has no metadata.json yet".into(),
    }
}
