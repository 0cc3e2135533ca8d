//! One folder of rolling shards of JSON lines.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use fs_err::{self as fs, File};

use super::SinkError;
use super::folder::{
    Folder, Pending, Rolled, ShardState, altered, check_rolled, cut, make_dir, part_path, remove_beyond,
    reopen, shard_path,
};
use super::stream_writer::Unsynced;
use crate::failpoint;
use crate::node::output::Lines;

const EXTENSION: &str = "jsonl";

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
            state.blake3 = Some(last.blake3);
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

    /// Removes shards that the checkpoint does not know.
    fn clean(&mut self) -> Result<(), SinkError> {
        let keep = self.state.rolled.len() + usize::from(self.state.rows > 0);
        if !remove_beyond(&self.dir, keep, EXTENSION)? && self.state.total_rows() > 0 {
            return Err(altered(self.dir.clone(), "it is missing"));
        }
        check_rolled(&self.state.rolled, |index| self.path(index))
    }

    /// Gives the open shard its `.part` name back and goes on where the checkpoint left it.
    fn reopen(&mut self) -> Result<(), SinkError> {
        let name = self.path(self.state.rolled.len());
        let part = part_path(&name);
        if !part.exists() && name.exists() {
            fs::rename(&name, &part)
                .and_then(|()| failpoint::hit("shard.unnamed"))
                .map_err(SinkError::io(&name))?;
        }
        let mut file = reopen(&part, self.state.bytes)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 20];
        file.seek(SeekFrom::Start(0)).map_err(SinkError::io(&part))?;
        loop {
            match file.read(&mut buffer).map_err(SinkError::io(&part))? {
                0 => break,
                n => hasher.update(buffer.get(..n).unwrap_or_default()),
            };
        }
        failpoint::hit("shard.reopened").map_err(SinkError::io(&part))?;
        let digest = hasher.finalize().to_hex();
        if self
            .state
            .blake3
            .as_deref()
            .is_some_and(|known| known != digest.as_str())
        {
            return Err(altered(part, "its bytes were changed"));
        }
        self.open = Some((file, hasher));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let part = part_path(&self.path(self.state.rolled.len()));
        let (file, hasher) = match &mut self.open {
            Some(open) => open,
            None => {
                make_dir(&self.dir)?;
                let file = File::create(&part).map_err(SinkError::io(&part))?;
                failpoint::hit("shard.created").map_err(SinkError::io(&part))?;
                self.open.insert((file, blake3::Hasher::new()))
            }
        };
        file.write_all(bytes)
            .and_then(|()| failpoint::hit("shard.appended"))
            .map_err(SinkError::io(&part))?;
        hasher.update(bytes);
        self.state.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Closes the open shard; it gets its final name at the next checkpoint.
    fn roll(&mut self) {
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

    fn path(&self, index: usize) -> PathBuf {
        shard_path(&self.dir, index, EXTENSION)
    }
}

impl Folder for ShardWriter {
    fn append(&mut self, lines: &Lines) -> Result<(), SinkError> {
        let mut bytes = lines.bytes.as_slice();
        let mut rows = lines.count;
        while rows > 0 {
            let (now, later, n) = cut(bytes, rows, self.max_rows - self.state.rows);
            self.write(now)?;
            self.state.rows += n;
            (bytes, rows) = (later, rows - n);
            if self.state.rows == self.max_rows {
                failpoint::hit("shard.full").map_err(SinkError::io(&self.dir))?;
                self.roll();
            }
        }
        Ok(())
    }

    fn finish(&mut self, at_least_one: bool, _resumable: bool) -> Result<(), SinkError> {
        if at_least_one && self.state.rolled.is_empty() && self.open.is_none() {
            self.write(&[])?;
        }
        self.roll();
        Ok(())
    }

    fn unsynced(&mut self, unsynced: &mut Unsynced) -> Result<(), SinkError> {
        if let Some((file, _)) = &self.open {
            let clone = file.try_clone().map_err(SinkError::io(file.path()))?;
            unsynced.open.push(clone);
        }
        unsynced.rolled.append(&mut self.pending);
        if self.open.is_some() || !self.state.rolled.is_empty() {
            unsynced.dirs.push(self.dir.clone());
        }
        Ok(())
    }

    fn state(&self) -> ShardState {
        let open = self.open.as_ref();
        ShardState {
            blake3: open.map(|(_, hasher)| hasher.finalize().to_hex().to_string()),
            ..self.state.clone()
        }
    }
}
