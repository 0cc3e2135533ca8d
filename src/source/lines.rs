//! Lines of text, whatever they come from: CRLF, byte order marks and a missing last newline are fine.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::kind::Compression;
use super::reader::Place;
use super::{MAX_ROW_BYTES, SourceError};

const BUFFER: usize = 256 << 10;
/// How much of a line that is too long is kept, to be shown.
pub(super) const SHOWN: usize = 64 << 10;
const MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a text line by line.
pub(super) struct Lines<R> {
    pub(super) reader: R,
    path: PathBuf,
    /// Where reading goes on.
    pub(super) at: Place,
    /// Bytes of the file when it was opened, where they are those that are read.
    size: Option<u64>,
}

/// Text of a file.
pub(super) type FileLines = Lines<Box<dyn BufRead + Send>>;

/// A line that was appended.
pub(super) struct Line {
    /// It is longer than [`MAX_ROW_BYTES`]; only its beginning was appended.
    pub(super) too_long: bool,
    /// Its end: LF, CRLF, or nothing at the end of the text.
    pub(super) end: &'static [u8],
}

impl FileLines {
    /// Opens a text file at a place.
    pub(super) fn open(path: &Path, compression: Compression, at: Place) -> Result<Self, SourceError> {
        let error = SourceError::io(path);
        let mut file = File::open(path).map_err(&error)?;
        let mut size = None;
        let mut reader: Box<dyn BufRead + Send> = match compression {
            Compression::None => {
                file.seek(SeekFrom::Start(at.offset)).map_err(&error)?;
                size = Some(file.metadata().map_err(&error)?.len());
                return Ok(Self {
                    reader: Box::new(BufReader::with_capacity(BUFFER, file)),
                    path: path.to_owned(),
                    at,
                    size,
                });
            }
            Compression::Gzip => {
                let file = BufReader::with_capacity(BUFFER, file);
                let text = flate2::bufread::MultiGzDecoder::new(file);
                Box::new(BufReader::with_capacity(BUFFER, text))
            }
            Compression::Zstd => {
                let file = BufReader::with_capacity(BUFFER, file);
                let text = zstd::stream::read::Decoder::with_buffer(file).map_err(&error)?;
                Box::new(BufReader::with_capacity(BUFFER, text))
            }
        };
        let skipped = io::copy(&mut (&mut reader).take(at.offset), &mut io::sink())
            .map_err(|error| damaged(path, &error))?;
        if skipped < at.offset {
            let problem = format!(
                "it ends before byte {} of its text, which was read before",
                at.offset
            );
            return Err(SourceError::unreadable(path, problem));
        }
        Ok(Self {
            reader,
            path: path.to_owned(),
            at,
            size,
        })
    }
}

impl<R: BufRead> Lines<R> {
    /// Lines of a stream that is at its beginning.
    pub(super) fn stream(reader: R, path: &Path) -> Self {
        Self {
            reader,
            path: path.to_owned(),
            at: Place::default(),
            size: None,
        }
    }

    /// Where it is read from.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends the next line without its line end to `data`; none at the end.
    pub(super) fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Line>, SourceError> {
        let start = data.len();
        let mut read = 0;
        let mut line = Line {
            too_long: false,
            end: b"",
        };
        loop {
            let buffer = match self.reader.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(&self.path, &error)),
            };
            if buffer.is_empty() {
                break;
            }
            let (part, used, done) = match memchr::memchr(b'\n', buffer) {
                Some(at) => (buffer.get(..at).unwrap_or_default(), at + 1, true),
                None => (buffer, buffer.len(), false),
            };
            let room = MAX_ROW_BYTES - (data.len() - start);
            line.too_long |= part.len() > room;
            data.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
            self.reader.consume(used);
            read += used as u64;
            if done {
                line.end = b"\n";
                break;
            }
        }
        if read == 0 {
            return self.whole().map(|()| None);
        }
        if self.at.offset == 0 && data.get(start..).is_some_and(|line| line.starts_with(MARK)) {
            // A byte order mark is no part of the first row.
            data.drain(start..start + MARK.len());
        }
        self.at.offset += read;
        self.at.line += 1;
        if line.too_long {
            data.truncate(start + SHOWN);
        } else if data.get(start..).is_some_and(|line| line.ends_with(b"\r")) {
            data.pop();
            line.end = b"\r\n";
        }
        Ok(Some(line))
    }

    /// An error at the end of a file that was longer before.
    fn whole(&self) -> Result<(), SourceError> {
        match self.size {
            Some(size) if self.at.offset < size => Err(SourceError::CutShort {
                path: self.path.clone(),
                end: self.at.offset,
                size,
            }),
            _ => Ok(()),
        }
    }
}

/// A read error; what the system did not say, the decompressor did.
fn damaged(path: &Path, error: &io::Error) -> SourceError {
    if let Some(code) = error.raw_os_error() {
        return SourceError::Io {
            path: path.to_owned(),
            source: io::Error::from_raw_os_error(code),
        };
    }
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "its compressed data ends in the middle".to_owned(),
        _ => format!("its compressed data is damaged ({error})"),
    };
    let todo = "rows before that are kept: restore the file and go on with --resume";
    SourceError::unreadable(path, format!("{what}; {todo}"))
}
