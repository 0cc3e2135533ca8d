//! Arrow IPC: the file and the stream format, batch by batch.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use arrow::error::ArrowError;
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::ipc::root_as_message;

use super::{Columnar, ColumnarRows, check, guarded};
use crate::source::SourceError;
use crate::source::reader::Place;

const MAGIC: &[u8] = b"ARROW1";
/// Begins every message.
const CONTINUES: [u8; 4] = [0xff; 4];

/// Opens a file; in the file format batches before `at` are not read.
pub(in crate::source) fn open(path: &Path, at: Place) -> Result<Columnar, SourceError> {
    let mut file = File::open(path).map_err(SourceError::io(path))?;
    let mut magic = Vec::new();
    let head = (&mut file).take(MAGIC.len() as u64).read_to_end(&mut magic);
    head.and_then(|_| file.rewind()).map_err(SourceError::io(path))?;
    if magic == MAGIC {
        guarded(path, "", || read_file(path, file, at))
    } else if magic.starts_with(&CONTINUES) {
        guarded(path, "", || read_stream(path, file, at))
    } else {
        Err(SourceError::unreadable(path, "it is no Arrow IPC file"))
    }
}

fn read_file(path: &Path, file: File, at: Place) -> Result<Columnar, ArrowError> {
    let counts = batch_rows(file.try_clone()?, 8);
    let mut reader = FileReader::try_new_buffered(file, None)?;
    check(&reader.schema())?;
    let counts = counts.ok().filter(|counts| counts.len() == reader.num_batches());
    let mut skip = at.offset;
    if let Some(counts) = &counts {
        let mut first = 0;
        while let Some(rows) = counts.get(first).filter(|rows| **rows <= skip) {
            skip -= rows;
            first += 1;
        }
        if first == counts.len() {
            let none = ColumnarRows::new(path, Box::new(std::iter::empty()), 0, at);
            return Ok(Columnar {
                total: Some(counts.iter().sum()),
                rows: none,
            });
        }
        reader.set_index(first)?;
    }
    Ok(Columnar {
        total: counts.map(|counts| counts.iter().sum()),
        rows: ColumnarRows::new(path, Box::new(reader), skip, at),
    })
}

fn read_stream(path: &Path, file: File, at: Place) -> Result<Columnar, ArrowError> {
    let counts = batch_rows(file.try_clone()?, 0);
    let mut file = file;
    file.rewind()?;
    let reader = StreamReader::try_new_buffered(file, None)?;
    check(&reader.schema())?;
    Ok(Columnar {
        total: counts.ok().map(|counts| counts.iter().sum()),
        rows: ColumnarRows::new(path, Box::new(reader), at.offset, at),
    })
}

/// The rows of every batch, by the heads of the messages; their bodies are not read.
///
/// A message is `0xFFFFFFFF`, the length of its head (`u32`; 0 ends the stream), the head and the body:
/// <https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format>.
fn batch_rows(file: File, start: u64) -> io::Result<Vec<u64>> {
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let size = file.metadata()?.len();
    let mut file = BufReader::new(file);
    let mut at = file.seek(SeekFrom::Start(start))?;
    let mut rows = Vec::new();
    let mut head = Vec::new();
    loop {
        let mut word = [0; 4];
        if at == size {
            // A stream may also just end.
            return Ok(rows);
        }
        file.read_exact(&mut word)?;
        if word == [0; 4] && rows.is_empty() {
            // The magic of the file format is padded, by some writers to 64 bytes.
            at += 4;
            continue;
        }
        if word != CONTINUES {
            return Err(broken());
        }
        file.read_exact(&mut word)?;
        let length = u64::from(u32::from_le_bytes(word));
        if length == 0 {
            return Ok(rows);
        }
        head.clear();
        (&mut file).take(length.min(size)).read_to_end(&mut head)?;
        let message = root_as_message(&head).map_err(|_| broken())?;
        if let Some(batch) = message.header_as_record_batch() {
            rows.push(u64::try_from(batch.length()).map_err(|_| broken())?);
        }
        let body = message.bodyLength();
        at += 8 + length + u64::try_from(body).map_err(|_| broken())?;
        if at > size {
            return Err(broken());
        }
        file.seek_relative(body)?;
    }
}
