//! JSON lines: CRLF, byte order marks, blank lines and a missing last newline are fine.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use fs_err::File;

use super::{Chunk, MAX_ROW_BYTES, Position, RawRow, Source, SourceError};

const BUFFER: usize = 256 << 10;

/// Reads rows from JSONL files, one after another.
pub struct JsonlSource {
    files: Vec<(PathBuf, Arc<str>)>,
    open: Option<BufReader<File>>,
    /// Bytes of the open file when it was opened.
    size: u64,
    at: Position,
    limit: u64,
    seq: u64,
}

impl JsonlSource {
    /// Reads `files` from `start` on, up to (not including) the row with ordinal `limit`.
    pub fn new(files: Vec<PathBuf>, start: Position, limit: Option<u64>) -> Self {
        let files = files.into_iter().map(|path| {
            let name: Arc<str> = path.to_string_lossy().into();
            (path, name)
        });
        Self {
            files: files.collect(),
            open: None,
            size: 0,
            at: start,
            limit: limit.unwrap_or(u64::MAX),
            seq: 0,
        }
    }

    /// The open reader at the current position, or none after the last file.
    fn reader(&mut self) -> Result<Option<&mut BufReader<File>>, SourceError> {
        let Some((path, _)) = self.files.get(self.at.file) else {
            return Ok(None);
        };
        if self.open.is_none() {
            let error = |source| SourceError::Io {
                path: path.clone(),
                source,
            };
            let mut file = File::open(path).map_err(error)?;
            if self.at.offset == 0 {
                // A byte order mark is no part of the first row.
                let mut mark = [0; 3];
                let mut head = (&mut file).take(3);
                let mut filled = 0;
                while let Some(rest) = mark.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    match head.read(rest).map_err(error)? {
                        0 => break,
                        n => filled += n,
                    }
                }
                self.at.offset = if mark == [0xef, 0xbb, 0xbf] { 3 } else { 0 };
            }
            file.seek(SeekFrom::Start(self.at.offset)).map_err(error)?;
            self.size = file.metadata().map_err(error)?.len();
            self.open = Some(BufReader::with_capacity(BUFFER, file));
        }
        Ok(self.open.as_mut())
    }

    /// An error at the end of a file that was longer before.
    fn whole(&self) -> Result<(), SourceError> {
        match self.files.get(self.at.file) {
            Some((path, _)) if self.at.offset < self.size => Err(SourceError::CutShort {
                path: path.clone(),
                end: self.at.offset,
                size: self.size,
            }),
            _ => Ok(()),
        }
    }

    /// Appends the next line without its line end to `data`; none at the end of the file.
    fn line(&mut self, data: &mut Vec<u8>) -> Result<Option<Line>, SourceError> {
        let start = data.len();
        let mut read = 0;
        let mut too_long = false;
        let Some(reader) = self.reader()? else {
            return Ok(None);
        };
        loop {
            let buffer = match reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    let path = self
                        .files
                        .get(self.at.file)
                        .map(|(path, _)| path.clone())
                        .unwrap_or_default();
                    return Err(SourceError::Io { path, source });
                }
            };
            if buffer.is_empty() {
                break;
            }
            let (part, used, done) = match memchr::memchr(b'\n', buffer) {
                Some(at) => (buffer.get(..at).unwrap_or_default(), at + 1, true),
                None => (buffer, buffer.len(), false),
            };
            let room = MAX_ROW_BYTES - (data.len() - start);
            too_long |= part.len() > room;
            data.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
            reader.consume(used);
            read += used as u64;
            if done {
                break;
            }
        }
        if read == 0 {
            return Ok(None);
        }
        self.at.offset += read;
        self.at.line += 1;
        if too_long {
            // Only the beginning is shown in errors/.
            data.truncate(start + 64 * 1024);
        } else if data.get(start..).is_some_and(|line| line.ends_with(b"\r")) {
            data.pop();
        }
        Ok(Some(Line { too_long }))
    }
}

struct Line {
    too_long: bool,
}

impl Source for JsonlSource {
    fn next_chunk(&mut self, rows: usize, bytes: usize) -> Result<Option<Chunk>, SourceError> {
        let mut chunk = Chunk {
            seq: self.seq,
            rows: Vec::with_capacity(rows),
            data: Vec::new(),
            end: self.at,
        };
        while chunk.rows.len() < rows && chunk.data.len() < bytes && self.at.ordinal < self.limit {
            if self.at.file >= self.files.len() {
                break;
            }
            let start = chunk.data.len();
            let Some(Line { too_long }) = self.line(&mut chunk.data)? else {
                self.whole()?;
                self.open = None;
                self.at = Position {
                    file: self.at.file + 1,
                    offset: 0,
                    line: 0,
                    ordinal: self.at.ordinal,
                };
                continue;
            };
            let span = start..chunk.data.len();
            let blank = chunk
                .data
                .get(span.clone())
                .is_some_and(|line| line.iter().all(u8::is_ascii_whitespace));
            if blank && !too_long {
                chunk.data.truncate(start);
                continue;
            }
            let ordinal = self.at.ordinal;
            self.at.ordinal += 1;
            chunk.rows.push(RawRow {
                ordinal,
                file: self.files.get(self.at.file).map(|(_, name)| name.clone()),
                line: self.at.line,
                span,
                too_long,
                end: self.at,
            });
        }
        chunk.end = self.at;
        if chunk.rows.is_empty() {
            return Ok(None);
        }
        self.seq += 1;
        Ok(Some(chunk))
    }
}
