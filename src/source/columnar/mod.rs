//! Rows of columnar files: record batches, one at a time, become JSON.

mod arrow_ipc;
mod encode;
mod parquet;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow::datatypes::Schema;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

pub(super) use arrow_ipc::open as open_arrow;
pub(super) use parquet::open as open_parquet;

use super::reader::{Place, Row, Rows};
use super::{MAX_ROW_BYTES, SourceError};

/// Rows that are JSON at a time; a few large cells must not become many.
const SLICE: usize = 64;

/// Record batches of a file.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

/// What a columnar file is.
pub(super) struct Columnar {
    /// Its number of rows, if it says so.
    pub(super) total: Option<u64>,
    /// Its rows from a place on.
    pub(super) rows: ColumnarRows,
}

/// The rows of a columnar file.
pub(super) struct ColumnarRows {
    path: PathBuf,
    batches: Batches,
    /// The batch that is being read, from its next row on.
    batch: Option<RecordBatch>,
    /// Rows to pass over that the file cannot.
    skip: u64,
    /// JSON of the next rows, and where each ends in it.
    text: Vec<u8>,
    ends: std::vec::IntoIter<usize>,
    /// Where the next row begins in the text.
    start: usize,
    at: Place,
    /// What is said beside the damage of a file.
    advice: &'static str,
}

impl ColumnarRows {
    /// Rows of batches that begin `skip` rows before `at`.
    fn new(path: &Path, batches: Batches, skip: u64, at: Place) -> Self {
        Self {
            path: path.to_owned(),
            batches,
            batch: None,
            skip,
            text: Vec::new(),
            ends: Vec::new().into_iter(),
            start: 0,
            at,
            advice: "; rows before that are kept",
        }
    }

    /// Makes JSON of the next rows; false at the end.
    fn refill(&mut self) -> Result<bool, ArrowError> {
        loop {
            let batch = match self.batch.take() {
                Some(batch) => batch,
                None => match self.batches.next().transpose()? {
                    Some(batch) => batch,
                    None => return Ok(false),
                },
            };
            let rows = batch.num_rows();
            let passed = usize::try_from(self.skip).map_or(rows, |skip| skip.min(rows));
            self.skip -= passed as u64;
            let end = rows.min(passed + SLICE);
            if passed == end {
                continue;
            }
            if end < rows {
                self.batch = Some(batch.slice(end, rows - end));
            }
            self.text.clear();
            self.start = 0;
            self.ends = encode::encode(batch.slice(passed, end - passed), &mut self.text)?.into_iter();
            return Ok(true);
        }
    }
}

impl Rows for ColumnarRows {
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Row>, SourceError> {
        let end = loop {
            match self.ends.next() {
                Some(end) => break end,
                None => {
                    let (path, advice) = (self.path.clone(), self.advice);
                    if !guarded(&path, advice, || self.refill())? {
                        return Ok(None);
                    }
                }
            }
        };
        let text = self.text.get(self.start..end).unwrap_or_default();
        self.start = end;
        self.at.offset += 1;
        self.at.line += 1;
        let too_long = text.len() > MAX_ROW_BYTES;
        let shown = if too_long { super::lines::SHOWN } else { text.len() };
        data.extend_from_slice(text.get(..shown).unwrap_or_default());
        Ok(Some(Row {
            line: self.at.line,
            problem: too_long
                .then(|| format!("the row is longer than {} MiB as JSON", MAX_ROW_BYTES >> 20).into()),
        }))
    }

    fn place(&self) -> Place {
        self.at
    }
}

/// The rows of a Parquet file that is no input, as JSON objects.
pub(crate) struct ParquetRows {
    rows: ColumnarRows,
    /// The file's own entries in its metadata.
    entries: Vec<(String, String)>,
}

impl ParquetRows {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read, or is no sound Parquet file.
    pub(crate) fn open(path: &Path) -> Result<Self, SourceError> {
        let entries = parquet::entries(path)?;
        let mut rows = parquet::open(path, Place::default())?.rows;
        rows.advice = "";
        Ok(Self { rows, entries })
    }

    /// An entry of the file's metadata.
    pub(crate) fn entry(&self, key: &str) -> Option<&str> {
        let found = self.entries.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Appends the next row to `data`, with null for what a column does not hold; false at the end.
    ///
    /// # Errors
    /// The file is damaged, or a row is larger than any row may be.
    pub(crate) fn next(&mut self, data: &mut Vec<u8>) -> Result<bool, SourceError> {
        let Some(row) = self.rows.next(data)? else {
            return Ok(false);
        };
        match row.problem {
            Some(problem) => Err(SourceError::unreadable(&self.rows.path, problem)),
            None => Ok(true),
        }
    }
}

/// Runs a reader of a file that may be damaged: what it cannot take is an error, a panic too.
fn guarded<T>(
    path: &Path,
    and: &str,
    read: impl FnOnce() -> Result<T, ArrowError>,
) -> Result<T, SourceError> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(SourceError::unreadable(path, plain(error) + and)),
        Err(_) => Err(SourceError::unreadable(path, format!("it is damaged{and}"))),
    }
}

/// Refuses columns that cannot become the fields of a JSON object.
fn check(schema: &Schema) -> Result<(), ArrowError> {
    let mut names = HashSet::new();
    if let Some(twice) = schema.fields().iter().find(|field| !names.insert(field.name())) {
        let problem = format!("it has two columns `{}`", twice.name());
        return Err(ArrowError::SchemaError(problem));
    }
    let empty = RecordBatch::new_empty(schema.clone().into());
    encode::encode(empty, &mut Vec::new()).map(drop)
}

/// What is wrong, without the layer that noticed it.
fn plain(error: ArrowError) -> String {
    match error {
        ArrowError::SchemaError(text)
        | ArrowError::ParquetError(text)
        | ArrowError::ParseError(text)
        | ArrowError::IpcError(text)
        | ArrowError::JsonError(text)
        | ArrowError::InvalidArgumentError(text) => text,
        other => other.to_string(),
    }
}
