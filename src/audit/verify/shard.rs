//! One shard of a folder: its bytes, hashed while they are read, and its lines, checked by all cores.

use std::io::{ErrorKind, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use fs_err::File;
use rayon::prelude::*;

use super::line::Checked;
use crate::event::{counted, thousands};
use crate::sink::{Rolled, ShardRows};
use crate::source::SourceError;

/// What is read at a time of JSON lines, and of Parquet.
const BLOCK_BYTES: usize = 1 << 20;
const BLOCK_ROWS: usize = 2_048;
/// Lines that are not worth a thread of their own.
const FEW: usize = 64;

/// How a folder is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Jsonl,
    Parquet,
    /// A custom sink's: only its bytes can be checked.
    Opaque,
}

/// A shard that the metadata names.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    /// Its name below OUT.
    pub(super) file: Arc<str>,
    pub(super) rolled: Rolled,
}

/// What its lines are read from.
pub(super) enum Rows {
    Jsonl {
        file: File,
        hasher: Box<blake3::Hasher>,
        bytes: u64,
        /// The beginning of a line whose end is not read yet.
        rest: Vec<u8>,
    },
    Parquet(Box<ShardRows>),
}

/// Says what a line of a folder is.
pub(super) type Check<'a, K> = dyn Fn(&[u8]) -> Checked<K> + Sync + 'a;

/// What comes of opening a shard.
pub(super) enum Opened {
    Rows(Rows),
    /// Its bytes are those of the run, and nobody can read its rows.
    Bytes,
    /// Its bytes are not those of the run; its rows may still be read.
    Altered(Option<Rows>, String),
}

impl Rows {
    /// Opens a shard; the error is why it cannot be read.
    pub(super) fn open(shard: &Shard, form: Form, folder: &str) -> Result<Opened, String> {
        let problem = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => "it is missing".to_owned(),
            _ => error.to_string(),
        };
        // A pipe of that name would be waited for.
        if !fs_err::metadata(&shard.path).map_err(problem)?.is_file() {
            return Err("it is no regular file".into());
        }
        let file = File::open(&shard.path).map_err(problem)?;
        let mut hasher = Box::new(blake3::Hasher::new());
        if form == Form::Jsonl {
            let (bytes, rest) = (0, Vec::new());
            return Ok(Opened::Rows(Self::Jsonl {
                file,
                hasher,
                bytes,
                rest,
            }));
        }
        hasher.update_reader(file).map_err(|error| error.to_string())?;
        let rolled = &shard.rolled;
        let problem = content(hasher.count(), &hasher, rolled.bytes, &rolled.blake3);
        if form == Form::Opaque {
            return Ok(problem.map_or(Opened::Bytes, |problem| Opened::Altered(None, problem)));
        }
        let rows = ShardRows::open(&shard.path, folder).map_err(problem_of);
        match (rows, problem) {
            (Ok(rows), None) => Ok(Opened::Rows(Self::Parquet(Box::new(rows)))),
            (Ok(rows), Some(problem)) => Ok(Opened::Altered(Some(Self::Parquet(Box::new(rows))), problem)),
            (Err(error), None) => Err(format!("it cannot be read ({error})")),
            (Err(_), Some(problem)) => Err(format!("{problem}; it cannot be read")),
        }
    }

    /// Reads and checks the next lines; none at the end. The error is why they cannot be read.
    pub(super) fn read<K: Send>(&mut self, check: &Check<'_, K>) -> Result<Option<Vec<Checked<K>>>, String> {
        let checked = match self {
            Self::Jsonl {
                file,
                hasher,
                bytes,
                rest,
            } => {
                let start = rest.len();
                let read = file.by_ref().take(BLOCK_BYTES as u64).read_to_end(rest);
                let read = read.map_err(|error| error.to_string())?;
                if read == 0 && rest.is_empty() {
                    return Ok(None);
                }
                *bytes += read as u64;
                let end = match read {
                    // The last line lacks its end.
                    0 => rest.len(),
                    _ => memchr::memrchr(b'\n', rest).map_or(0, |at| at + 1),
                };
                let (lines, _) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                let new = rest.get(start..).unwrap_or_default();
                let ((), mut checked) = rayon::join(
                    || {
                        hasher.update(new);
                    },
                    || {
                        let mut all: Vec<&[u8]> = lines.split(|byte| *byte == b'\n').collect();
                        all.pop_if(|last| last.is_empty());
                        let lines = all.par_iter().with_min_len(FEW);
                        lines.map(|line| check(line)).collect::<Vec<_>>()
                    },
                );
                if read == 0
                    && let Some(last) = checked.last_mut()
                {
                    last.problem
                        .get_or_insert_with(|| "it ends without a line break".into());
                }
                rest.drain(..end);
                checked
            }
            Self::Parquet(rows) => {
                let mut lines = Vec::new();
                let mut bytes = 0;
                while lines.len() < BLOCK_ROWS && bytes < BLOCK_BYTES {
                    match rows.next_line() {
                        Ok(Some(line)) => {
                            bytes += line.len();
                            lines.push(line);
                        }
                        Ok(None) => break,
                        Err(error) => return Err(problem_of(error)),
                    }
                }
                if lines.is_empty() {
                    return Ok(None);
                }
                let lines = lines.par_iter().with_min_len(FEW);
                lines.map(|line| check(line.as_bytes())).collect()
            }
        };
        Ok(Some(checked))
    }

    /// What is wrong with the bytes of a shard whose lines were all read. (Those of Parquet were looked at before.)
    pub(super) fn problem(&self, said: &Rolled) -> Option<String> {
        match self {
            Self::Jsonl { hasher, bytes, .. } => content(*bytes, hasher, said.bytes, &said.blake3),
            Self::Parquet(_) => None,
        }
    }
}

/// What is wrong with a Parquet file, whose name is told anyway.
fn problem_of(error: SourceError) -> String {
    match error {
        SourceError::Unreadable { problem, .. } => problem,
        other => other.to_string(),
    }
}

/// What tells a file's bytes from those that were sealed.
fn content(bytes: u64, hasher: &blake3::Hasher, said: u64, digest: &str) -> Option<String> {
    if bytes != said {
        return Some(format!(
            "{} instead of {}",
            counted(bytes, "byte"),
            thousands(said)
        ));
    }
    let found = hasher.finalize().to_hex();
    (found.as_str() != digest).then(|| {
        let short = |digest: &str| digest.chars().take(12).collect::<String>();
        format!(
            "its bytes were changed (BLAKE3 {}… instead of {}…)",
            short(&found),
            short(digest)
        )
    })
}
