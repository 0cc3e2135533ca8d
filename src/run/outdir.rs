//! OUT: is it ours, is it this run, and how far did it get.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::RunError;
use super::checkpoint::{Checkpoint, read_json, write_json};
use super::generation::{self, Reuse};
use super::identity::Identity;
use super::ledger;
use super::lock::Lock;
use super::outcomes;
use crate::event::{are, counted};
use crate::failpoint;
use crate::sink::{SinkError, check_open, check_present};

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

/// What is wanted of an OUT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// What to do with a run that is there.
    pub(super) existing: Existing,
    /// `--limit`.
    pub(super) limit: Option<u64>,
    /// Its failed rows are to be asked again (`--retry-errors`).
    pub(super) retry: bool,
    /// Without answers on file all rows would be asked again.
    pub(super) asks: bool,
}

/// An OUT that is ours, locked.
#[derive(Debug)]
pub struct OutDir {
    /// The folder.
    pub path: PathBuf,
    /// `.chainette/` in it.
    pub private: PathBuf,
    /// Where outputs go: `path`, or a next generation in `private`.
    pub base: PathBuf,
    /// The run's identity (with the run id of its first start).
    pub identity: Identity,
    /// Where it stands; none if nothing was committed.
    pub checkpoint: Option<Checkpoint>,
    /// Which answers of former runs are used.
    pub(super) reuse: Reuse,
    /// Lines of `errors/` that are tried again, if that begins now.
    pub(super) retried: Option<u64>,
    _lock: Lock,
}

impl OutDir {
    /// Opens or makes OUT for a run.
    ///
    /// # Errors
    /// OUT is in use, is none of ours, or holds a run that this one cannot go on with.
    pub(super) fn open(path: &Path, identity: Identity, wanted: Wanted) -> Result<Self, RunError> {
        let existing = wanted.existing;
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
            base: path.to_owned(),
            private,
            identity,
            checkpoint: None,
            reuse: Reuse::default(),
            retried: None,
            _lock: lock,
        };
        let Some(found) = found else {
            // Killed before it was written, or taken away: then there is more.
            if existing != Existing::Overwrite && out.private.join("answers").exists() {
                return Err(RunError::Damaged {
                    path: run_file,
                    problem: "it is missing".into(),
                });
            }
            out.forget(true, None)?;
            write_json(&out.private, &run_file, &out.identity, true)?;
            return Ok(out);
        };
        if existing != Existing::Overwrite && found.version != out.identity.version {
            return Err(RunError::OtherVersion { out: out.path });
        }
        if existing != Existing::Overwrite {
            generation::complete(&out.path, &out.private)?;
            out.reuse = Reuse::read(&out.private)?;
            if out.reuse.next {
                out.base = generation::base(&out.private);
            } else {
                // Left over from a swap, or from a beginning of one.
                remove(&out.private.join(generation::NEXT))?;
                remove(&out.private.join(generation::OLD))?;
            }
            out.checkpoint = read_json(&out.private_base().join("checkpoint.json"))?;
        }
        if out.reuse.next && !out.is_whole() {
            // Only what stands is the user's; this is made again.
            remove(&out.base)?;
            let private = out.private_base();
            fs::create_dir_all(&private).map_err(RunError::io(&private))?;
            out.checkpoint = None;
        }
        let mut differences = found.differences(&out.identity);
        let checkpoint = out.checkpoint.as_ref();
        differences.extend(checkpoint.and_then(|done| too_far(done, wanted.limit)));
        if out.reuse.next {
            // A generation that has fewer rows than the one that stands must not take its place.
            let standing: Option<Checkpoint> = read_json(&out.private.join("checkpoint.json"))?;
            differences.extend(standing.and_then(|done| too_far(&done, wanted.limit)));
            differences.dedup();
        }
        let altered = match checkpoint {
            Some(done) if differences.is_empty() => out.altered(done),
            _ => None,
        };
        let unkept = checkpoint.is_some_and(|done| done.unkept > 0) && wanted.asks;
        let failed = checkpoint.map_or(0, |done| done.counts.errors);
        let retry = wanted.retry && !out.reuse.next && failed > 0;
        let goes_on = checkpoint.is_some_and(|done| {
            let fits = !out.reuse.next && done.can_go_on() && too_far(done, wanted.limit).is_none();
            // A file that grew while it was read may have ended in half a line then.
            let at = done.position.file;
            let ends = match (found.input.get(at), out.identity.input.get(at)) {
                (Some(old), Some(new)) => new.is_same(old) || done.position.offset <= old.size,
                _ => false,
            };
            fits && ends && found.is_continued_by(&out.identity) && out.altered(done).is_none()
        });
        match existing {
            Existing::Overwrite => {
                out.forget(true, found.extension.as_deref())?;
                write_json(&out.private, &run_file, &out.identity, true)?;
            }
            // Nothing that is done changes by what comes after it.
            Existing::Keep if goes_on && !retry => {
                out.identity.run_id = found.run_id;
                let checkpoint = out.private.join("checkpoint.json");
                if let Some(done) = out.checkpoint.as_mut().filter(|done| done.finished) {
                    let is_whole = done.limit.is_none();
                    // Or it would look finished with the new rows.
                    done.finished = false;
                    write_json(&out.private, &checkpoint, done, false)?;
                    if is_whole {
                        // Nothing has moved since then.
                        out.set_reuse(Reuse::default())?;
                    }
                }
                write_json(&out.private, &run_file, &out.identity, true)?;
            }
            // What a stream holds is known too late to go on with anything but its answers.
            Existing::Keep
                if !differences.is_empty()
                    || altered.is_some()
                    || out.identity.input.iter().any(|of| of.stream) =>
            {
                out.retried = retry.then_some(failed);
                out.write_anew(wanted)?;
            }
            Existing::Same if !differences.is_empty() => {
                return Err(RunError::Different {
                    out: path.to_owned(),
                    differences,
                });
            }
            Existing::Same | Existing::Keep => {
                out.identity.run_id = found.run_id;
                if retry && unkept {
                    return Err(RunError::NoAnswers { out: out.path });
                } else if retry && out.identity.input.iter().any(|of| of.stream) {
                    return Err(RunError::StreamAgain);
                } else if retry {
                    out.begin_again(failed)?;
                } else if let Some(error) = altered {
                    return Err(error);
                }
            }
        }
        Ok(out)
    }

    /// `.chainette/` of the outputs: checkpoint, outcomes and what is not in a shard yet.
    pub(super) fn private_base(&self) -> PathBuf {
        self.base.join(".chainette")
    }

    /// Starts the outputs again, with the answers on file.
    pub(super) fn write_anew(&mut self, wanted: Wanted) -> Result<(), RunError> {
        if wanted.asks && self.checkpoint.as_ref().is_some_and(|done| done.unkept > 0) {
            return Err(RunError::NoAnswers {
                out: self.path.clone(),
            });
        }
        let end = ledger::end(&self.private.join("answers"))?;
        let reuse = Reuse {
            edited: Some(end),
            again: wanted.retry.then_some(end).or(self.reuse.again),
            next: false,
        };
        self.base.clone_from(&self.path);
        self.checkpoint = None;
        let found: Option<Identity> = read_json(&self.private.join("run.json"))?;
        self.forget(false, found.and_then(|found| found.extension).as_deref())?;
        self.set_reuse(reuse)?;
        write_json(
            &self.private,
            &self.private.join("run.json"),
            &self.identity,
            true,
        )
    }

    /// Begins a next generation, in which failed rows are asked again.
    fn begin_again(&mut self, failed: u64) -> Result<(), RunError> {
        let end = ledger::end(&self.private.join("answers"))?;
        self.base = generation::base(&self.private);
        remove(&self.base)?;
        let private = self.private_base();
        fs::create_dir_all(&private).map_err(RunError::io(&private))?;
        self.checkpoint = None;
        self.retried = Some(failed);
        self.set_reuse(Reuse {
            again: Some(end),
            next: true,
            ..self.reuse
        })
    }

    fn set_reuse(&mut self, reuse: Reuse) -> Result<(), RunError> {
        self.reuse = reuse;
        reuse.write(&self.private)
    }

    /// True when all that the checkpoint names is there.
    fn is_whole(&self) -> bool {
        let is_made = self.private_base().is_dir();
        is_made
            && self
                .checkpoint
                .as_ref()
                .is_none_or(|done| self.altered(done).is_none())
    }

    /// What is not there any more, or not as it was, of what a checkpoint names.
    fn altered(&self, done: &Checkpoint) -> Option<RunError> {
        let outcomes = self.private_base().join("outcomes");
        if let Some(problem) = outcomes::problem(&outcomes, done.counts.rows_in) {
            return Some(RunError::Altered {
                path: outcomes,
                problem,
            });
        }
        let is_lines = self.identity.extension.is_none() && self.identity.format == "jsonl";
        let checked = match done.finished {
            true => check_present(&self.base, &done.sinks, self.identity.extension()),
            false if is_lines => check_open(&self.base, &done.sinks),
            // Their last shard may be on its way from what a --limit left to lines again.
            false => Ok(()),
        };
        match checked {
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

    /// The folders that the run in OUT writes, as far as it says.
    fn folders(&self) -> BTreeSet<String> {
        let graph: Option<serde_json::Value> = read_json(&self.path.join("graph.json")).unwrap_or_default();
        let nodes = graph.as_ref().and_then(|graph| graph.get("nodes")?.as_array());
        let ids = nodes
            .into_iter()
            .flatten()
            .filter_map(|node| node.get("id")?.as_str());
        ids.chain(["flattened", "errors"]).map(str::to_owned).collect()
    }

    /// Removes the outputs of a run, whose sink may have had an extension of its own, and its answers too if told
    /// so.
    fn forget(&self, answers: bool, extension: Option<&str>) -> Result<(), RunError> {
        let mut extensions = vec!["jsonl", "parquet"];
        extensions.extend(extension);
        extensions.extend(self.identity.extension.as_deref());
        use generation::{FILE, NEXT, OLD, SWAP};
        let ours = self.folders();
        for name in [
            "checkpoint.json",
            "outcomes",
            "parked",
            "spool",
            SWAP,
            FILE,
            NEXT,
            OLD,
        ] {
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
                || (ours.contains(&name) && path.is_dir() && holds_only_shards(&path, &extensions)?)
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

/// True when OUT holds a finished run that this one would leave as it is, by all that can be seen from outside.
pub(super) fn finished(out: &Path, wanted: Wanted) -> bool {
    let private = out.join(".chainette");
    let found: Result<Option<Checkpoint>, _> = read_json(&private.join("checkpoint.json"));
    let is_done = |done: &Checkpoint| {
        let retry = wanted.retry && done.counts.errors > 0;
        super::is_done(done, wanted.limit) && !retry
    };
    let next = Reuse::read(&private).is_ok_and(|reuse| reuse.next);
    matches!(found, Ok(Some(done)) if is_done(&done)) && !next && wanted.existing != Existing::Overwrite
}

/// Removes a file or a folder; one that is not there is removed.
fn remove(path: &Path) -> Result<(), RunError> {
    match failpoint::hit("outdir.forgetting").and_then(|()| fs::symlink_metadata(path)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(RunError::io(path)(error)),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(RunError::io(path)),
        Ok(_) => fs::remove_file(path).map_err(RunError::io(path)),
    }
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
