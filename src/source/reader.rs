//! From the rows of one file after another to chunks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Chunk, Position, RawRow, Source, SourceError};

/// How long rows that are there may wait for more of a slow stream.
const LINGER: Duration = Duration::from_millis(50);

/// Reads the rows of one file.
pub(super) trait Rows: Send {
    /// Appends the JSON text of the next row to `data` (with a problem: what to show); none at the end.
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Row>, SourceError>;

    /// Where reading goes on.
    fn place(&self) -> Place;

    /// False when the next row has not come by then, and would have to be waited for.
    fn ready(&mut self, until: Instant) -> bool {
        let _always = until;
        true
    }
}

/// A row that was appended.
#[derive(Debug)]
pub(super) struct Row {
    /// Its (first) line in the file, from 1.
    pub(super) line: u64,
    /// Why it is none.
    pub(super) problem: Option<Box<str>>,
}

/// A place in one file; see [`Position`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) line: u64,
    pub(super) check: u64,
}

impl Position {
    pub(super) fn place(&self) -> Place {
        Place {
            offset: self.offset,
            line: self.line,
            check: self.check,
        }
    }
}

/// A file that is being read: its name, as shown in `errors/`, and its rows.
pub(super) type Opened = (Arc<str>, Box<dyn Rows>);

/// Reads rows from one file after another. `F` opens the file with an index at a place; none after the last.
pub(super) struct RowSource<F> {
    open: F,
    current: Option<Opened>,
    at: Position,
    limit: u64,
    seq: u64,
    /// What comes after the rows that were handed out.
    failed: Option<SourceError>,
}

impl<F> RowSource<F>
where
    F: FnMut(usize, Place) -> Result<Option<Opened>, SourceError> + Send,
{
    /// Opens the file at `start`, so that an input that cannot be read there is known at once.
    pub(super) fn open(mut open: F, start: Position, limit: Option<u64>) -> Result<Self, SourceError> {
        let current = open(start.file, start.place())?;
        Ok(Self {
            open,
            current,
            at: start,
            limit: limit.unwrap_or(u64::MAX),
            seq: 0,
            failed: None,
        })
    }

    fn fill(&mut self, chunk: &mut Chunk, rows: usize, bytes: usize) -> Result<(), SourceError> {
        let mut until = None;
        while chunk.rows.len() < rows && chunk.data.len() < bytes && self.at.ordinal < self.limit {
            let Some((name, file)) = &mut self.current else {
                return Ok(());
            };
            if !chunk.rows.is_empty() && !file.ready(*until.get_or_insert_with(|| Instant::now() + LINGER)) {
                return Ok(());
            }
            let start = chunk.data.len();
            let Some(Row { line, problem }) = file.next(&mut chunk.data)? else {
                let next = self.at.file + 1;
                self.current = (self.open)(next, Place::default())?;
                // At the end of the last one reading goes on there, should it have grown.
                if self.current.is_some() {
                    self.at = Position {
                        file: next,
                        ordinal: self.at.ordinal,
                        check: self.at.check,
                        ..Position::default()
                    };
                }
                continue;
            };
            let Place {
                offset,
                line: lines,
                check,
            } = file.place();
            let ordinal = self.at.ordinal;
            self.at = Position {
                file: self.at.file,
                offset,
                line: lines,
                ordinal: ordinal + 1,
                check,
            };
            chunk.rows.push(RawRow {
                ordinal,
                file: Some(name.clone()),
                line,
                span: start..chunk.data.len(),
                problem,
                end: self.at,
            });
        }
        Ok(())
    }
}

impl<F> Source for RowSource<F>
where
    F: FnMut(usize, Place) -> Result<Option<Opened>, SourceError> + Send,
{
    fn next_chunk(&mut self, rows: usize, bytes: usize) -> Result<Option<Chunk>, SourceError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut chunk = Chunk {
            seq: self.seq,
            rows: Vec::with_capacity(rows.min(65_536)),
            data: Vec::new(),
            end: self.at,
        };
        match self.fill(&mut chunk, rows, bytes) {
            Ok(()) => {}
            Err(error) if chunk.rows.is_empty() => return Err(error),
            // The rows before it are good.
            Err(error) => self.failed = Some(error),
        }
        chunk.end = self.at;
        if chunk.rows.is_empty() {
            return Ok(None);
        }
        self.seq += 1;
        Ok(Some(chunk))
    }
}
