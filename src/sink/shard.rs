//! One folder of rolling shards.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err::{self as fs, File};
use serde::{Deserialize, Serialize};

use super::SinkError;
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
    /// Lines in the open shard, which is the one after the complete ones.
    pub rows: u64,
    /// Bytes in the open shard.
    pub bytes: u64,
}

impl ShardState {
    /// Lines in all shards.
    pub fn total_rows(&self) -> u64 {
        self.rolled.iter().map(|shard| shard.rows).sum::<u64>() + self.rows
    }
}

/// A complete shard on its way to its final name. It holds no file handle: there may be thousands.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) part: PathBuf,
    pub(super) name: PathBuf,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Writes JSON lines into `000.jsonl`, `001.jsonl`, … of one folder.
#[derive(Debug)]
pub(super) struct ShardWriter {
    dir: PathBuf,
    max_rows: u64,
    open: Option<(File, blake3::Hasher)>,
    state: ShardState,
    pending: Vec<Pending>,
}

impl ShardWriter {
    /// Takes a folder up where `state` left it: what was written after it is cut off.
    pub(super) fn resume(dir: PathBuf, max_rows: u64, mut state: ShardState) -> Result<Self, SinkError> {
        // A run that goes on past a smaller --limit may have closed a shard that is not full.
        if state.rows == 0
            && let Some(last) = state.rolled.pop_if(|last| last.rows < max_rows)
        {
            (state.rows, state.bytes) = (last.rows, last.bytes);
        }
        let mut writer = Self {
            dir,
            max_rows,
            open: None,
            state,
            pending: Vec::new(),
        };
        writer.clean()?;
        if writer.state.rows > 0 {
            writer.reopen()?;
        }
        Ok(writer)
    }

    /// Removes shards that the checkpoint does not know, and gives the open one its `.part` name back.
    fn clean(&mut self) -> Result<(), SinkError> {
        let open = self.state.rolled.len();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return match self.state.total_rows() {
                    0 => Ok(()),
                    _ => Err(self.altered(self.dir.clone(), "it is missing")),
                };
            }
            Err(error) => return Err(SinkError::io(&self.dir)(error)),
        };
        for entry in entries {
            let path = entry.map_err(SinkError::io(&self.dir))?.path();
            let Some(index) = shard_index(&path) else { continue };
            if index > open || (index == open && self.state.rows == 0) {
                fs::remove_file(&path).map_err(SinkError::io(&path))?;
            }
        }
        for (index, shard) in self.state.rolled.iter().enumerate() {
            let path = self.path(index);
            match fs::metadata(&path) {
                Ok(meta) if meta.len() == shard.bytes => {}
                Ok(meta) => {
                    let problem = format!("{} bytes instead of {}", meta.len(), shard.bytes);
                    return Err(self.altered(path, &problem));
                }
                Err(_) => return Err(self.altered(path, "it is missing")),
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), SinkError> {
        let name = self.path(self.state.rolled.len());
        let part = part_path(&name);
        if !part.exists() && name.exists() {
            fs::rename(&name, &part).map_err(SinkError::io(&name))?;
        }
        let mut file = match fs::OpenOptions::new().read(true).write(true).open(&part) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.altered(part, "it is missing"));
            }
            other => other.map_err(SinkError::io(&part))?,
        };
        let len = file.metadata().map_err(SinkError::io(&part))?.len();
        if len < self.state.bytes {
            return Err(self.altered(part, &format!("{len} bytes instead of {}", self.state.bytes)));
        }
        file.set_len(self.state.bytes).map_err(SinkError::io(&part))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(SinkError::io(&part))? {
                0 => break,
                n => hasher.update(buffer.get(..n).unwrap_or_default()),
            };
        }
        file.seek(SeekFrom::End(0)).map_err(SinkError::io(&part))?;
        self.open = Some((file, hasher));
        Ok(())
    }

    /// Appends lines, rolling as shards fill up.
    pub(super) fn append(&mut self, lines: &Lines) -> Result<(), SinkError> {
        let mut bytes = lines.bytes.as_slice();
        let mut rows = lines.count;
        while rows > 0 {
            let room = self.max_rows - self.state.rows;
            let (now, later, n) = if rows <= room {
                (bytes, <&[u8]>::default(), rows)
            } else {
                let nth = usize::try_from(room - 1).unwrap_or(usize::MAX);
                let cut = memchr::memchr_iter(b'\n', bytes)
                    .nth(nth)
                    .map_or(bytes.len(), |at| at + 1);
                let (now, later) = bytes.split_at_checked(cut).unwrap_or((bytes, &[]));
                (now, later, room)
            };
            self.write(now)?;
            self.state.rows += n;
            (bytes, rows) = (later, rows - n);
            if self.state.rows == self.max_rows {
                self.roll();
            }
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let part = part_path(&self.path(self.state.rolled.len()));
        let (file, hasher) = match &mut self.open {
            Some(open) => open,
            None => {
                fs::create_dir_all(&self.dir).map_err(SinkError::io(&self.dir))?;
                let file = File::create(&part).map_err(SinkError::io(&part))?;
                self.open.insert((file, blake3::Hasher::new()))
            }
        };
        file.write_all(bytes).map_err(SinkError::io(&part))?;
        hasher.update(bytes);
        self.state.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Closes the open shard; it gets its final name at the next checkpoint.
    pub(super) fn roll(&mut self) {
        let Some((_file, hasher)) = self.open.take() else {
            return;
        };
        let name = self.path(self.state.rolled.len());
        let (rows, bytes) = (
            std::mem::take(&mut self.state.rows),
            std::mem::take(&mut self.state.bytes),
        );
        self.state.rolled.push(Rolled {
            rows,
            bytes,
            blake3: hasher.finalize().to_hex().to_string(),
        });
        self.pending.push(Pending {
            part: part_path(&name),
            name,
            rows,
            bytes,
        });
    }

    /// Makes the first shard even without a line (`flattened/` always has one).
    pub(super) fn ensure_one(&mut self) -> Result<(), SinkError> {
        if self.state.rolled.is_empty() && self.open.is_none() {
            self.write(&[])?;
        }
        Ok(())
    }

    /// Shards that wait for their final names.
    pub(super) fn take_pending(&mut self) -> Vec<Pending> {
        std::mem::take(&mut self.pending)
    }

    /// A second handle on the open shard, to be synced elsewhere.
    pub(super) fn open_file(&self) -> Result<Option<File>, SinkError> {
        let Some((file, _)) = &self.open else {
            return Ok(None);
        };
        file.try_clone().map(Some).map_err(SinkError::io(file.path()))
    }

    /// How far this folder has got.
    pub(super) fn state(&self) -> &ShardState {
        &self.state
    }

    /// The folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("{index:03}.jsonl"))
    }

    fn altered(&self, path: PathBuf, problem: &str) -> SinkError {
        SinkError::Altered {
            path,
            problem: problem.to_owned(),
        }
    }
}

fn part_path(name: &Path) -> PathBuf {
    let mut part = name.as_os_str().to_owned();
    part.push(".part");
    part.into()
}

/// The number of a shard, by its file name.
fn shard_index(path: &Path) -> Option<usize> {
    let name = path.file_name()?.to_str()?;
    let stem = name
        .strip_suffix(".part")
        .unwrap_or(name)
        .strip_suffix(".jsonl")?;
    if stem.len() < 3 || !stem.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    stem.parse().ok()
}
