//! What all folders of rolling shards have in common: their state, their names, how they are repaired.

use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use fs_err::{self as fs, File};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SinkError;
use super::stream_writer::Unsynced;
use crate::event::{counted, thousands};
use crate::failpoint;
use crate::node::output::Lines;

/// A shard that is complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolled {
    /// Lines.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// How far a folder of shards has got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardState {
    /// Complete shards, in order.
    pub rolled: Vec<Rolled>,
    /// Lines in the open shard, which is the one after the complete ones (and the closed ones of `spool`).
    pub rows: u64,
    /// Bytes of JSON lines in the open shard.
    pub bytes: u64,
    /// BLAKE3 of these bytes, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Formats that are made from whole shards: what they wait with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool: Option<Box<SpoolState>>,
}

/// How far a folder has got whose shards are gathered as JSON lines first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolState {
    /// Full shards that are not in their format yet, after the complete ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<Closed>,
    /// What all shards have in common, once it is decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Value>,
    /// Columns the user was told about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<String>,
    /// Where a run that ended at a `--limit` goes on when it gets a larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumable: Option<Resumable>,
}

/// A full shard of JSON lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Lines.
    pub rows: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The state of a folder just before its run ended; all JSON lines it names are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumable {
    /// Complete shards.
    pub rolled: usize,
    /// See [`SpoolState::closed`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed: Vec<Closed>,
    /// See [`ShardState::rows`].
    pub rows: u64,
    /// See [`ShardState::bytes`].
    pub bytes: u64,
    /// See [`SpoolState::layout`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Value>,
}

impl ShardState {
    /// Lines in all shards.
    pub fn total_rows(&self) -> u64 {
        let closed = self.spool.iter().flat_map(|spool| &spool.closed);
        self.rolled.iter().map(|shard| shard.rows).sum::<u64>()
            + closed.map(|shard| shard.rows).sum::<u64>()
            + self.rows
    }
}

/// A folder of shards in some format.
pub(super) trait Folder: std::fmt::Debug + Send {
    /// Appends lines, rolling as shards fill up.
    fn append(&mut self, lines: &Lines) -> Result<(), SinkError>;

    /// Completes every shard at the end of a run; the first one even without a line, if told so.
    ///
    /// `resumable`: the run may be given a larger `--limit` later.
    fn finish(&mut self, at_least_one: bool, resumable: bool) -> Result<(), SinkError>;

    /// Hands over what must be on disk before [`Folder::state`] may be said.
    fn unsynced(&mut self, unsynced: &mut Unsynced) -> Result<(), SinkError>;

    /// How far it has got.
    fn state(&self) -> ShardState;
}

/// A complete shard on its way to its final name. It holds no file handle: there may be thousands.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) part: PathBuf,
    pub(super) name: PathBuf,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Splits `rows` lines after the first `room`: what goes into the open shard, the rest, lines that go in.
pub(super) fn cut(bytes: &[u8], rows: u64, room: u64) -> (&[u8], &[u8], u64) {
    if rows <= room {
        return (bytes, &[], rows);
    }
    let nth = usize::try_from(room - 1).unwrap_or(usize::MAX);
    let cut = memchr::memchr_iter(b'\n', bytes)
        .nth(nth)
        .map_or(bytes.len(), |at| at + 1);
    let (now, later) = bytes.split_at_checked(cut).unwrap_or((bytes, &[]));
    (now, later, room)
}

/// The final name of a shard.
pub(crate) fn shard_path(dir: &Path, index: usize, extension: &str) -> PathBuf {
    dir.join(format!("{index:03}.{extension}"))
}

/// The name of a shard that is not complete.
pub(super) fn part_path(name: &Path) -> PathBuf {
    let mut part = name.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// The number of a shard, by its file name; whether it is an open one.
fn shard_index(path: &Path, extension: &str) -> Option<(usize, bool)> {
    let name = path.file_name()?.to_str()?;
    let whole = name.strip_suffix(".part");
    let stem = whole.unwrap_or(name).strip_suffix(extension)?.strip_suffix('.')?;
    if stem.len() < 3 || !stem.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((stem.parse().ok()?, whole.is_some()))
}

/// Removes all shards but the first `keep`; false if there is no such folder.
pub(super) fn remove_beyond(dir: &Path, keep: usize, extension: &str) -> Result<bool, SinkError> {
    remove_where(dir, extension, |index, _| index >= keep)
}

/// Removes some shards, by their number and whether they are open; false if there is no such folder.
pub(super) fn remove_where(
    dir: &Path,
    extension: &str,
    unwanted: impl Fn(usize, bool) -> bool,
) -> Result<bool, SinkError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(SinkError::io(dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(SinkError::io(dir))?.path();
        if shard_index(&path, extension).is_some_and(|(index, open)| unwanted(index, open)) {
            failpoint::hit("shard.removing")
                .and_then(|()| fs::remove_file(&path))
                .map_err(SinkError::io(&path))?;
        }
    }
    Ok(true)
}

/// Makes a folder below one that must be there: an OUT that somebody removed does not come back half.
pub(super) fn make_dir(dir: &Path) -> Result<(), SinkError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(SinkError::io(dir)(error)),
        _ => Ok(()),
    }
}

/// Checks that complete shards are there with their sizes.
pub(super) fn check_rolled(rolled: &[Rolled], path: impl Fn(usize) -> PathBuf) -> Result<(), SinkError> {
    for (index, shard) in rolled.iter().enumerate() {
        let path = path(index);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() == shard.bytes => {}
            Ok(meta) => {
                let problem = format!(
                    "{} instead of {}",
                    counted(meta.len(), "byte"),
                    thousands(shard.bytes)
                );
                return Err(altered(path, &problem));
            }
            Err(_) => return Err(altered(path, "it is missing")),
        }
    }
    Ok(())
}

/// Opens a file of lines where a checkpoint left it: what was written later is cut off.
pub(super) fn reopen(path: &Path, bytes: u64) -> Result<File, SinkError> {
    let mut file = match fs::OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(altered(path.to_owned(), "it is missing"));
        }
        other => other.map_err(SinkError::io(path))?,
    };
    let len = file.metadata().map_err(SinkError::io(path))?.len();
    if len < bytes {
        return Err(altered(
            path.to_owned(),
            &format!("{} instead of {}", counted(len, "byte"), thousands(bytes)),
        ));
    }
    file.set_len(bytes).map_err(SinkError::io(path))?;
    file.seek(SeekFrom::End(0)).map_err(SinkError::io(path))?;
    Ok(file)
}

/// The error for what the user changed.
pub(super) fn altered(path: PathBuf, problem: &str) -> SinkError {
    SinkError::Altered {
        path,
        problem: problem.to_owned(),
    }
}
