//! Giving back the answers of a finished run.

use std::path::Path;

use fs_err as fs;

use super::checkpoint::{Checkpoint, read_json, write_json};
use super::generation::{self, Reuse};
use super::lock::Lock;
use super::{Identity, RunError};

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Files that were removed.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes the answers of a finished run, and what else only a further run would need. Its outputs stay as they are.
///
/// A run that ended at a `--limit` keeps what a larger one goes on with.
///
/// # Errors
/// OUT holds no run, one that is not finished, or is in use.
pub fn clean(out: &Path) -> Result<Cleaned, RunError> {
    let private = out.join(".chainette");
    let found: Option<Identity> = read_json(&private.join("run.json"))?;
    if found.is_none() {
        return Err(RunError::NoRun { out: out.to_owned() });
    }
    let _lock = Lock::take(&private, out)?;
    generation::complete(out, &private)?;
    let checkpoint: Option<Checkpoint> = read_json(&private.join("checkpoint.json"))?;
    let checkpoint = checkpoint.filter(|checkpoint| checkpoint.finished);
    let (Some(mut checkpoint), false) = (checkpoint, Reuse::read(&private)?.next) else {
        return Err(RunError::Unfinished { out: out.to_owned() });
    };
    // Said before it is so: a run that goes on must not look for them.
    checkpoint.unkept = checkpoint.position.ordinal;
    checkpoint.answers_from = 0;
    write_json(&private, &private.join("checkpoint.json"), &checkpoint, false)?;
    Reuse::default().write(&private)?;
    let mut cleaned = Cleaned::default();
    remove(&private.join("answers"), &mut cleaned)?;
    for scratch in ["parked", generation::NEXT, generation::OLD] {
        remove(&private.join(scratch), &mut cleaned)?;
    }
    if checkpoint.limit.is_none() {
        remove(&private.join("spool"), &mut cleaned)?;
    }
    Ok(cleaned)
}

/// Removes a file or a folder with all that is in it; what is not there is removed.
fn remove(path: &Path, cleaned: &mut Cleaned) -> Result<(), RunError> {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !meta.is_dir() {
        cleaned.files += 1;
        cleaned.bytes += meta.len();
        return fs::remove_file(path).map_err(RunError::io(path));
    }
    for entry in fs::read_dir(path).map_err(RunError::io(path))? {
        remove(&entry.map_err(RunError::io(path))?.path(), cleaned)?;
    }
    fs::remove_dir(path).map_err(RunError::io(path))
}
