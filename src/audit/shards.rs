//! The lines of a folder, one at a time.

use std::io::{BufRead as _, BufReader, Read as _, Take};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_err::File;
use serde::de::IgnoredAny;

use super::AuditError;
use super::outputs::{Outputs, check_size};
use crate::event::{counted, thousands};
use crate::row::{RowId, raw_fields};
use crate::sink::{Rolled, ShardRows};
use crate::source::SourceError;

/// What is read of a shard at a time.
const BUFFER: usize = 256 << 10;

/// A line of a shard.
#[derive(Clone, Debug)]
pub struct Line {
    /// The shard.
    pub shard: Arc<Path>,
    /// The line, or the row of a Parquet file, from 1.
    pub line: u64,
    /// Its row id. The order of ids is that of the outputs: `17.2` stands before `17.10`.
    pub row_id: RowId,
    /// The JSON object. That of a Parquet row has no field where the column is null, and has rescued values
    /// where they belong.
    pub raw: String,
}

impl Line {
    /// The zero-based ordinal of the input row it descends from.
    pub fn ordinal(&self) -> u64 {
        self.row_id.ordinal()
    }

    /// An error about this line.
    pub(super) fn bad(&self, problem: impl Into<String>) -> AuditError {
        AuditError::BadLine {
            path: self.shard.to_path_buf(),
            line: self.line,
            problem: problem.into(),
        }
    }
}

impl Outputs {
    /// The lines of a folder in their order; none of a folder that was not written. One shard is open at a
    /// time, and memory holds one line of JSONL, or some rows of Parquet.
    ///
    /// A shard that is gone, has another size or another number of lines, and a line that is no JSON object with
    /// a row id, end the lines with an error.
    ///
    /// # Errors
    /// The outputs are those of a custom sink.
    pub fn lines(&self, folder: &str) -> Result<Lines, AuditError> {
        let is_errors = folder == "errors";
        if !is_errors && self.shards.contains_key(folder) {
            self.check_readable()?;
        }
        let shards = self.shards(folder)?.into_iter();
        let shards: Vec<_> = shards.map(|(path, shard)| (path, shard.clone())).collect();
        Ok(Lines {
            folder: folder.to_owned(),
            is_parquet: !is_errors && self.options.format == "parquet",
            shards: shards.into_iter(),
            current: None,
            failed: false,
        })
    }
}

/// The lines of a folder.
pub struct Lines {
    folder: String,
    is_parquet: bool,
    shards: std::vec::IntoIter<(PathBuf, Rolled)>,
    current: Option<Shard>,
    failed: bool,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// The shard that is being read.
struct Shard {
    path: Arc<Path>,
    rows: Rows,
    /// Lines that it has, and those that were read.
    expected: u64,
    read: u64,
}

/// Its rows.
enum Rows {
    Jsonl(BufReader<Take<File>>),
    Parquet(Box<ShardRows>),
}

impl Iterator for Lines {
    type Item = Result<Line, AuditError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let line = self.read().transpose()?;
        self.failed = line.is_err();
        Some(line)
    }
}

impl Lines {
    fn read(&mut self) -> Result<Option<Line>, AuditError> {
        loop {
            if let Some(shard) = &mut self.current {
                if let Some(line) = shard.next()? {
                    return Ok(Some(line));
                }
                self.current = None;
            }
            let Some((path, shard)) = self.shards.next() else {
                return Ok(None);
            };
            self.current = Some(Shard::open(&path, &shard, self.is_parquet, &self.folder)?);
        }
    }
}

impl Shard {
    fn open(path: &Path, shard: &Rolled, is_parquet: bool, folder: &str) -> Result<Self, AuditError> {
        check_size(path, shard)?;
        let rows = if is_parquet {
            let rows = ShardRows::open(path, folder).map_err(|error| unreadable(path, error))?;
            Rows::Parquet(Box::new(rows))
        } else {
            let file = File::open(path).map_err(AuditError::io(path))?;
            // A file that grows meanwhile is read as far as it was written.
            Rows::Jsonl(BufReader::with_capacity(BUFFER, file.take(shard.bytes)))
        };
        Ok(Self {
            path: path.into(),
            rows,
            expected: shard.rows,
            read: 0,
        })
    }

    fn next(&mut self) -> Result<Option<Line>, AuditError> {
        let raw = match &mut self.rows {
            Rows::Parquet(rows) => rows.next_line().map_err(|error| unreadable(&self.path, error))?,
            Rows::Jsonl(reader) => {
                let mut line = Vec::new();
                let read = reader.read_until(b'\n', &mut line);
                read.map_err(AuditError::io(&self.path))?;
                match line.pop() {
                    None => None,
                    Some(b'\n') => {
                        let line = String::from_utf8(line).map_err(|_| self.bad("it is no UTF-8"))?;
                        Some(line)
                    }
                    Some(_) => return Err(self.bad("it ends in the middle")),
                }
            }
        };
        let Some(raw) = raw else {
            return self.whole().map(|()| None);
        };
        let row_id = match row_id(&raw) {
            Ok(row_id) => row_id,
            Err(problem) => return Err(self.bad(problem)),
        };
        self.read += 1;
        Ok(Some(Line {
            shard: self.path.clone(),
            line: self.read,
            row_id,
            raw,
        }))
    }

    /// An error about the line that comes next.
    fn bad(&self, problem: impl Into<String>) -> AuditError {
        AuditError::BadLine {
            path: self.path.to_path_buf(),
            line: self.read + 1,
            problem: problem.into(),
        }
    }

    /// Looks at the end whether all lines were there.
    fn whole(&self) -> Result<(), AuditError> {
        if self.read == self.expected {
            return Ok(());
        }
        let problem = format!(
            "{} instead of {}",
            counted(self.read, "line"),
            thousands(self.expected)
        );
        Err(AuditError::damaged(&self.path, problem))
    }
}

/// The row id of a line, which is an object that begins with it.
fn row_id(line: &str) -> Result<RowId, String> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(line) {
        // The line is one: serde's "at line 1 column N" says only the column.
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or(&text);
        return Err(format!("not valid JSON: {text} at column {}", error.column()));
    }
    let id = match raw_fields(line).next() {
        Some(("\"row_id\"", id)) => id.strip_prefix('"').and_then(|id| id.strip_suffix('"')),
        _ => return Err("it does not begin with its `row_id`".into()),
    };
    id.and_then(RowId::parse)
        .ok_or_else(|| "its `row_id` is none".to_owned())
}

/// A Parquet file that cannot be read.
fn unreadable(path: &Path, error: SourceError) -> AuditError {
    match error {
        SourceError::Io { source, .. } => AuditError::io(path)(source),
        SourceError::Unreadable { problem, .. } => AuditError::damaged(path, problem),
        other => AuditError::damaged(path, other.to_string()),
    }
}
