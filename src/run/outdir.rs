//! OUT: is it ours, is it this run, and how far did it get.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::RunError;
use super::checkpoint::{Checkpoint, read_json, write_json};
use super::identity::Identity;
use super::lock::Lock;
use crate::event::{are, counted};
use crate::failpoint;
use crate::sink::{SinkError, check_present};

/// What to do with an OUT that holds a run already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Resume the same run, refuse another one.
    Same,
    /// Keep what still fits (`--resume`).
    Keep,
    /// Start again (`--overwrite`).
    Overwrite,
}

/// An OUT that is ours, locked.
#[derive(Debug)]
pub struct OutDir {
    /// The folder.
    pub path: PathBuf,
    /// `.chainette/` in it.
    pub private: PathBuf,
    /// The run's identity (with the run id of its first start).
    pub identity: Identity,
    /// Where it stands; none if nothing was committed.
    pub checkpoint: Option<Checkpoint>,
    /// Every answer in the ledger may still fit, not only those of rows not yet committed.
    pub all_answers: bool,
    _lock: Lock,
}

impl OutDir {
    /// Opens or makes OUT for a run.
    ///
    /// # Errors
    /// OUT is in use, is none of ours, or holds a run that this one cannot go on with.
    pub fn open(
        path: &Path,
        identity: Identity,
        existing: Existing,
        limit: Option<u64>,
    ) -> Result<Self, RunError> {
        let private = path.join(".chainette");
        let lock = Self::lock(path, &private).map_err(|error| match error {
            RunError::Io { source, .. } if is_final(&source) => RunError::Unusable {
                out: path.to_owned(),
                source,
            },
            other => other,
        })?;
        let run_file = private.join("run.json");
        let found: Option<Identity> = match read_json(&run_file) {
            Err(RunError::Damaged { .. }) if existing == Existing::Overwrite => None,
            other => other?,
        };
        let mut out = Self {
            path: path.to_owned(),
            private,
            identity,
            checkpoint: None,
            all_answers: false,
            _lock: lock,
        };
        let Some(found) = found else {
            out.forget(true, None)?;
            write_json(&out.private, &run_file, &out.identity, true)?;
            return Ok(out);
        };
        let checkpoint: Option<Checkpoint> = match existing {
            Existing::Overwrite => None,
            Existing::Same | Existing::Keep => read_json(&out.private.join("checkpoint.json"))?,
        };
        let mut differences = found.differences(&out.identity);
        differences.extend(checkpoint.as_ref().and_then(|done| too_far(done, limit)));
        let altered = match &checkpoint {
            Some(done) if done.finished && differences.is_empty() => out.altered(done),
            _ => None,
        };
        match existing {
            Existing::Overwrite => {
                out.forget(true, found.extension.as_deref())?;
                write_json(&out.private, &run_file, &out.identity, true)?;
            }
            // What a stream holds is known too late to go on with anything but its answers.
            Existing::Keep
                if !differences.is_empty()
                    || altered.is_some()
                    || out.identity.input.iter().any(|of| of.stream) =>
            {
                out.forget(false, found.extension.as_deref())?;
                out.all_answers = true;
                write_json(&out.private, &run_file, &out.identity, true)?;
            }
            Existing::Same if !differences.is_empty() => {
                return Err(RunError::Different {
                    out: path.to_owned(),
                    differences,
                });
            }
            Existing::Same | Existing::Keep => {
                if let Some(error) = altered {
                    return Err(error);
                }
                out.identity.run_id = found.run_id;
                out.checkpoint = checkpoint;
            }
        }
        Ok(out)
    }

    /// What is not there any more, or not as it was, of the shards of a finished run.
    fn altered(&self, done: &Checkpoint) -> Option<RunError> {
        match check_present(&self.path, &done.sinks, self.identity.extension()) {
            Err(SinkError::Altered { path, problem }) => Some(RunError::Altered { path, problem }),
            other => other.err().map(RunError::from),
        }
    }

    /// Makes OUT if need be and locks it, when it is ours or empty.
    fn lock(path: &Path, private: &Path) -> Result<Lock, RunError> {
        let ours = private.join("run.json").exists() || private.join("lock").exists();
        if !ours && !is_empty(path)? {
            return Err(RunError::Foreign { out: path.to_owned() });
        }
        fs::create_dir_all(private).map_err(RunError::io(private))?;
        Lock::take(private, path)
    }

    /// Removes the outputs of a run, whose sink may have had an extension of its own, and its answers too if told
    /// so.
    fn forget(&self, answers: bool, extension: Option<&str>) -> Result<(), RunError> {
        let mut extensions = vec!["jsonl", "parquet"];
        extensions.extend(extension);
        extensions.extend(self.identity.extension.as_deref());
        let remove = |path: &Path| match failpoint::hit("outdir.forgetting").and_then(|()| fs::metadata(path))
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(RunError::io(path)(error)),
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(RunError::io(path)),
            Ok(_) => fs::remove_file(path).map_err(RunError::io(path)),
        };
        for name in ["checkpoint.json", "outcomes", "parked", "spool"] {
            remove(&self.private.join(name))?;
        }
        if answers {
            remove(&self.private.join("answers"))?;
        }
        for entry in fs::read_dir(&self.path).map_err(RunError::io(&self.path))? {
            let path = entry.map_err(RunError::io(&self.path))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if matches!(name.as_str(), "graph.json" | "metadata.json")
                || (path.is_dir() && holds_only_shards(&path, &extensions)?)
            {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// Says that more rows are done than are wanted.
fn too_far(done: &Checkpoint, limit: Option<u64>) -> Option<String> {
    let rows = done.position.ordinal;
    let limit = limit.filter(|limit| *limit < rows)?;
    Some(format!(
        "{} {} done, more than --limit {limit}",
        counted(rows, "row"),
        are(rows)
    ))
}

/// True when OUT holds a finished run that a run with these options would leave as it is, by all that can be seen
/// from outside.
pub(super) fn finished(out: &Path, existing: Existing, limit: Option<u64>) -> bool {
    let found: Result<Option<Checkpoint>, _> = read_json(&out.join(".chainette/checkpoint.json"));
    let done = matches!(found, Ok(Some(checkpoint)) if super::is_done(&checkpoint, limit));
    done && existing != Existing::Overwrite
}

/// True for errors that another try does not mend: the path is wrong, not the disk full.
fn is_final(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::NotADirectory
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::InvalidFilename
    )
}

fn is_empty(path: &Path) -> Result<bool, RunError> {
    match fs::read_dir(path) {
        Ok(entries) => {
            let mut names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
            Ok(names.all(|name| name == ".chainette"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(RunError::io(path)(error)),
    }
}

/// True for a folder that we made: shards, and nothing else.
fn holds_only_shards(dir: &Path, extensions: &[&str]) -> Result<bool, RunError> {
    let mut any = false;
    for entry in fs::read_dir(dir).map_err(RunError::io(dir))? {
        let name = entry.map_err(RunError::io(dir))?.file_name();
        let name = name.to_string_lossy();
        let stem = name.strip_suffix(".part").unwrap_or(&name);
        let mut stems = extensions
            .iter()
            .filter_map(|extension| stem.strip_suffix(extension)?.strip_suffix('.'));
        if !stems.any(|stem| stem.len() >= 3 && stem.bytes().all(|b| b.is_ascii_digit())) {
            return Ok(false);
        }
        any = true;
    }
    Ok(any)
}
