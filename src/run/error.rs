//! Why a run does not start, or stops.

use std::path::{Path, PathBuf};

use crate::engine::{SetupError, Stop};
use crate::node::WorkerError;
use crate::sink::SinkError;
use crate::source::SourceError;

/// Why a run does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another process runs there.
    #[error("{} is in use by {}; wait for it, or stop it first", out.display(), holder(*pid))]
    Locked {
        /// The folder OUT.
        out: PathBuf,
        /// Its process id, as the lock file says.
        pid: Option<u32>,
    },
    /// OUT is not there any more, or is another folder.
    #[error("{} was moved or removed while the run was under way; put it back and the same command goes on, without it the same command starts again", out.display())]
    Gone {
        /// The folder OUT.
        out: PathBuf,
    },
    /// A number of the configuration that must not be 0.
    #[error("`{field}` is 0; give at least 1")]
    Zero {
        /// The field of `RunConfig`.
        field: &'static str,
    },
    /// OUT cannot be a folder for outputs.
    #[error("cannot use {} for outputs", out.display())]
    Unusable {
        /// The folder OUT.
        out: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// OUT holds something that is no run of ours.
    #[error("{} is not empty and was not made by chainette; give a new or empty folder", out.display())]
    Foreign {
        /// The folder OUT.
        out: PathBuf,
    },
    /// OUT holds a run with another identity.
    #[error("{} holds another run: {}; use --resume to keep what still fits, --overwrite to start again, or another folder", out.display(), differences.join(", "))]
    Different {
        /// The folder OUT.
        out: PathBuf,
        /// What differs, each as a phrase.
        differences: Vec<String>,
    },
    /// OUT holds this run, finished, and an output is not what it was.
    #[error("{} was changed or removed since the run wrote it ({problem}); restore it, use --resume to write all outputs again from the answers on file, or --overwrite to start again", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Outputs are to be written anew, and answers for them are gone.
    #[error("the answers in {} were not kept (--no-ledger) or were given back (`chainette clean`): this would ask rows again that are done; --overwrite starts again", out.display())]
    NoAnswers {
        /// The folder OUT.
        out: PathBuf,
    },
    /// Failed rows of a stream are to be asked again: whether it is the same is known too late.
    #[error(
        "the input is a stream (`-`), and --retry-errors reads it all again: give it as a file, with --resume"
    )]
    StreamAgain,
    /// Its private files are of another version of chainette.
    #[error("{} was written by another version of chainette; finish it with that version, or start again with --overwrite", out.display())]
    OtherVersion {
        /// The folder OUT.
        out: PathBuf,
    },
    /// OUT holds no run.
    #[error("{} holds no run of chainette", out.display())]
    NoRun {
        /// The folder.
        out: PathBuf,
    },
    /// The answers of a run that is not finished are needed.
    #[error("the run in {} is not finished, and its answers are needed to go on; finish it first (the same `chainette run` command again), or remove the folder", out.display())]
    Unfinished {
        /// The folder OUT.
        out: PathBuf,
    },
    /// A private file cannot be understood.
    #[error("{} is damaged ({problem}); start again with --overwrite, or restore it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file system said no.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Answers are written and the disk does not keep them.
    #[error("cannot bring the answers in {} to the disk", path.display())]
    Unsynced {
        /// The file of the ledger.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The input cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An output cannot be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Engines stopped the run, or the user.
    #[error(transparent)]
    Stop(Stop),
    /// An engine cannot be set up.
    #[error(transparent)]
    Setup(SetupError),
    /// The workers of an Apply cannot be started.
    #[error(transparent)]
    Workers(#[from] WorkerError),
    /// Too many rows failed.
    #[error("{message}")]
    TooManyErrors {
        /// How many and what to do.
        message: String,
    },
    /// A mistake of ours.
    #[error("internal error: {message}; what was committed is safe, please report this")]
    Bug {
        /// What was seen.
        message: String,
    },
}

impl RunError {
    /// For `map_err`: an I/O error with its path.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Io { path, source }
    }

    /// True for what, when nothing was run, is bad usage or input rather than a failure.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Locked { .. }
                | Self::Zero { .. }
                | Self::Unusable { .. }
                | Self::Foreign { .. }
                | Self::Different { .. }
                | Self::Altered { .. }
                | Self::Damaged { .. }
                | Self::NoAnswers { .. }
                | Self::StreamAgain
                | Self::OtherVersion { .. }
                | Self::NoRun { .. }
                | Self::Unfinished { .. }
                | Self::Sink(SinkError::Altered { .. })
                | Self::Setup(_)
                | Self::Source(_)
                | Self::Workers(_)
                | Self::Sink(SinkError::BadName { .. } | SinkError::BadExtension { .. })
        )
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another chainette".into(),
        |pid| format!("another chainette (PID {pid})"),
    )
}
