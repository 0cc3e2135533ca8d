//! What lies in an OUT beside the files of its run.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::problems::{Problem, ProblemKind, Problems};
use crate::audit::AuditError;
use crate::sink::Rolled;

/// Files in a folder of shards that the metadata does not name.
pub(super) fn strays(
    out: &Path,
    name: &str,
    named: &[(PathBuf, Rolled)],
    found: &mut Problems,
) -> Result<(), AuditError> {
    let dir = out.join(name);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            let text = "it is no folder; remove it";
            found.add(Problem::of(ProblemKind::Stray, name, text));
            return Ok(());
        }
        Err(error) => return Err(AuditError::io(&dir)(error)),
    };
    let named: HashSet<&Path> = named.iter().map(|(shard, _)| shard.as_path()).collect();
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(AuditError::io(&dir))?.path();
        if !named.contains(path.as_path()) {
            files.push(path);
        }
    }
    files.sort();
    for path in files {
        let is_part = path.extension().is_some_and(|extension| extension == "part");
        let file = path.strip_prefix(out).unwrap_or(&path).display().to_string();
        let text = match is_part {
            true => "an open shard, which a finished run has none of; remove it",
            false => "the run wrote no such file; remove it",
        };
        found.add(Problem::of(ProblemKind::Stray, file, text));
    }
    Ok(())
}

/// Folders that are not the run's, and look as if they were; `known` are its own.
pub(super) fn strangers(out: &Path, known: &[String], found: &mut Problems) -> Result<(), AuditError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(out).map_err(AuditError::io(out))? {
        let entry = entry.map_err(AuditError::io(out))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !known.contains(&name) && holds_shards(&entry.path()) {
            names.push(name);
        }
    }
    names.sort();
    for name in names {
        let text = "a folder of shards that this run did not write; move it elsewhere";
        found.add(Problem::of(ProblemKind::Stray, format!("{name}/"), text));
    }
    Ok(())
}

/// True for a folder with a file that is called as shards are.
fn holds_shards(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return false;
    };
    let mut names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names.any(|name| {
        let stem = name.split('.').next().unwrap_or_default();
        stem.len() >= 3 && stem.len() < name.len() && stem.bytes().all(|byte| byte.is_ascii_digit())
    })
}
