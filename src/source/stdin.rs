//! JSONL from a pipe: rows go on as they come, and are recognised by nothing but their bytes.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::jsonl::JsonlRows;
use super::lines::Lines;
use super::reader::{Opened, Place, Row, RowSource, Rows};
use super::{Fingerprint, Input, Position, Source, SourceError};
use crate::event::{counted, thousands};

/// What stdin is called as an input.
pub(super) const NAME: &str = "-";
const BLOCK: usize = 64 << 10;
/// Blocks that were read ahead.
const AHEAD: usize = 4;
/// How much of the first row is its fingerprint.
const EDGE: usize = 1 << 20;

/// A stream that can be read once.
pub(super) struct Stream(Mutex<Option<Feed>>);

impl Stream {
    /// Starts reading stdin.
    pub(super) fn stdin() -> Result<Self, SourceError> {
        let feed = Feed::start(io::stdin()).map_err(SourceError::io(Path::new(NAME)))?;
        Ok(Self(Mutex::new(Some(feed))))
    }

    /// What a second reading gets.
    fn spent() -> SourceError {
        SourceError::unreadable(Path::new(NAME), "a stream can be read only once")
    }
}

impl Input for Stream {
    /// Waits for the first row.
    fn fingerprints(&self) -> Result<Vec<Fingerprint>, SourceError> {
        let mut feed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let feed = feed.as_mut().ok_or_else(Self::spent)?;
        let first = feed.first_row().map_err(SourceError::io(Path::new(NAME)))?;
        Ok(vec![Fingerprint {
            path: PathBuf::from(NAME),
            size: 0,
            mtime_ns: 0,
            digest: blake3::hash(first).to_hex().to_string(),
            stream: true,
        }])
    }

    fn open(&self, start: Position, limit: Option<u64>) -> Result<Box<dyn Source>, SourceError> {
        let feed = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let feed = feed.ok_or_else(Self::spent)?;
        let mut rows = Some(StreamRows {
            rows: JsonlRows(Lines::stream(feed, Path::new(NAME))),
            check: 0,
        });
        if let Some(rows) = &mut rows {
            rows.pass(start)?;
        }
        let open = move |file: usize, _: Place| -> Result<Option<Opened>, SourceError> {
            // A stream that was read to its end is opened behind it.
            let rows = if file == 0 { rows.take() } else { None };
            Ok(rows.map(|rows| (NAME.into(), Box::new(rows) as Box<dyn Rows>)))
        };
        Ok(Box::new(RowSource::open(open, start, limit)?))
    }
}

/// Rows of a stream, chained by digest.
struct StreamRows {
    rows: JsonlRows<Feed>,
    check: u64,
}

impl StreamRows {
    /// Passes over the rows that were read before; an error when they are others.
    fn pass(&mut self, start: Position) -> Result<(), SourceError> {
        let other = |problem: String| SourceError::OtherStream {
            name: "stdin".into(),
            problem,
        };
        let mut row = Vec::new();
        for passed in 0..start.ordinal {
            row.clear();
            if self.next(&mut row)?.is_none() {
                let rows = start.ordinal;
                return Err(other(format!(
                    "it ends after {}, {} were read before",
                    counted(passed, "row"),
                    thousands(rows)
                )));
            }
        }
        if self.check != start.check {
            let (rows, s) = match start.ordinal {
                1 => ("row".to_owned(), "s"),
                n => (counted(n, "row"), ""),
            };
            return Err(other(format!("its first {rows} differ{s}")));
        }
        if start.file > 0 && self.next(&mut row)?.is_some() {
            return Err(SourceError::goes_on(start.ordinal));
        }
        Ok(())
    }
}

impl Rows for StreamRows {
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Row>, SourceError> {
        let start = data.len();
        let row = self.rows.next(data)?;
        if row.is_some() {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&self.check.to_le_bytes());
            hasher.update(data.get(start..).unwrap_or_default());
            let mut digest = [0; 8];
            hasher.finalize_xof().fill(&mut digest);
            self.check = u64::from_le_bytes(digest);
        }
        Ok(row)
    }

    fn place(&self) -> Place {
        Place {
            check: self.check,
            ..self.rows.place()
        }
    }

    fn ready(&mut self, until: Instant) -> bool {
        self.rows.0.reader.has_line(until)
    }
}

/// Bytes read ahead by a thread, so that waiting for them can end.
struct Feed {
    blocks: Receiver<io::Result<Vec<u8>>>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are used up.
    used: usize,
    /// There is no line end in the buffer before this.
    searched: usize,
    ended: bool,
}

impl Feed {
    fn start(mut stream: impl Read + Send + 'static) -> io::Result<Self> {
        let (sender, blocks) = sync_channel(AHEAD);
        std::thread::Builder::new().name("stdin".into()).spawn(move || {
            let mut block = vec![0; BLOCK];
            loop {
                let read = match stream.read(&mut block) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    read => read,
                };
                let last = !matches!(read, Ok(1..));
                let read = read.map(|read| block.get(..read).unwrap_or_default().to_vec());
                if sender.send(read).is_err() || last {
                    return;
                }
            }
        })?;
        Ok(Self {
            blocks,
            buffer: Vec::new(),
            used: 0,
            searched: 0,
            ended: false,
        })
    }

    /// Waits for more bytes, at most until then; false when there are none.
    fn more(&mut self, until: Option<Instant>) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let block = match until {
            None => self.blocks.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => {
                let wait = until.saturating_duration_since(Instant::now());
                self.blocks.recv_timeout(wait.max(Duration::from_micros(1)))
            }
        };
        let block = match block {
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => Vec::new(),
            Ok(block) => block.inspect_err(|_| self.ended = true)?,
        };
        self.ended = block.is_empty();
        self.buffer.drain(..self.used);
        self.searched = self.searched.saturating_sub(self.used);
        self.used = 0;
        self.buffer.extend_from_slice(&block);
        Ok(!self.ended)
    }

    /// True when a line can be read without waiting beyond then.
    fn has_line(&mut self, until: Instant) -> bool {
        loop {
            let from = self.searched.max(self.used);
            let rest = self.buffer.get(from..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', rest) {
                self.searched = from + at;
                return true;
            }
            self.searched = self.buffer.len();
            match self.more(Some(until)) {
                Ok(true) => {}
                Ok(false) => return self.ended,
                // The error comes back with the line.
                Err(_) => return true,
            }
        }
    }

    /// Everything up to the end of the first line that is not blank, or the first MiB of it; not used up.
    fn first_row(&mut self) -> io::Result<&[u8]> {
        let mut searched = 0;
        let end = loop {
            let rest = self.buffer.get(searched..).unwrap_or_default();
            match memchr::memchr(b'\n', rest) {
                Some(at) => {
                    let blank = super::jsonl::is_blank(rest.get(..at).unwrap_or_default());
                    searched += at + 1;
                    if !blank {
                        break searched;
                    }
                }
                None if self.buffer.len() < EDGE && self.more(None)? => {}
                None => break self.buffer.len(),
            }
        };
        Ok(self.buffer.get(..end.min(EDGE)).unwrap_or_default())
    }
}

impl Read for Feed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used >= self.buffer.len() {
            self.more(None)?;
        }
        Ok(self.buffer.get(self.used..).unwrap_or_default())
    }

    fn consume(&mut self, bytes: usize) {
        self.used += bytes;
    }
}
