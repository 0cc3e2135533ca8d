//! The seam between rolling shards and file formats that are made from whole shards.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Take, Write};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use fs_err::File;
use serde_json::Value;

use super::SinkError;

/// So many columns of a folder are told about when values of theirs are rescued.
pub(super) const TOLD: usize = 100;

/// A file format that is made from the JSON lines of a full shard.
pub(super) trait Encoder: Debug + Send + Sync {
    /// Without a dot.
    fn extension(&self) -> &str;

    /// How many of a folder's first lines decide its layout.
    fn decided_by(&self) -> u64;

    /// Decides what all shards of a folder have in common, from its first lines (all, if they are fewer).
    fn layout(&self, first: &mut LineReader) -> Result<Value, SinkError>;

    /// Writes the shard with this number: a pure function of layout, number and lines. None when it was told to
    /// stop.
    fn encode(
        &self,
        layout: &Value,
        index: usize,
        lines: &mut LineReader,
        out: &mut (dyn Write + Send),
        stop: &AtomicBool,
    ) -> Result<Option<Vec<Rescued>>, SinkError>;
}

/// A column that has values which its type cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rescued {
    pub(super) column: String,
    /// What the user is told, once.
    pub(super) message: String,
}

/// Reads lines of one file after another, each up to a length.
#[derive(Debug)]
pub(super) struct LineReader {
    files: VecDeque<(PathBuf, u64)>,
    open: Option<BufReader<Take<File>>>,
    line: Vec<u8>,
    /// Lines read.
    pub(super) lines: u64,
}

impl LineReader {
    pub(super) fn new(files: impl IntoIterator<Item = (PathBuf, u64)>) -> Self {
        Self {
            files: files.into_iter().collect(),
            open: None,
            line: Vec::new(),
            lines: 0,
        }
    }

    /// The error for a line that is not what was written.
    pub(super) fn altered(&self, problem: &dyn std::fmt::Display) -> SinkError {
        let path = self.files.front().map(|(path, _)| path.clone());
        SinkError::Altered {
            path: path.unwrap_or_default(),
            problem: format!("line {}: {problem}", self.lines),
        }
    }

    /// The next line, without its end.
    pub(super) fn next_line(&mut self) -> Result<Option<&str>, SinkError> {
        loop {
            if let Some(open) = &mut self.open {
                self.line.clear();
                let read = open.read_until(b'\n', &mut self.line);
                let path = || {
                    self.files
                        .front()
                        .map(|(path, _)| path.clone())
                        .unwrap_or_default()
                };
                if read.map_err(|source| SinkError::Io { path: path(), source })? > 0 {
                    if self.line.last() == Some(&b'\n') {
                        self.line.pop();
                    }
                    self.lines += 1;
                    return match std::str::from_utf8(&self.line) {
                        Ok(line) => Ok(Some(line)),
                        Err(error) => Err(SinkError::Altered {
                            path: path(),
                            problem: error.to_string(),
                        }),
                    };
                }
                self.open = None;
                self.files.pop_front();
            }
            let Some((path, bytes)) = self.files.front() else {
                return Ok(None);
            };
            let file = File::open(path).map_err(SinkError::io(path))?;
            self.open = Some(BufReader::with_capacity(1 << 17, file.take(*bytes)));
        }
    }
}
