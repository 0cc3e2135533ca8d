//! CSV and TSV (RFC 4180): a header, then rows whose values are all strings.

use std::collections::HashSet;
use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::jsonl::is_blank;
use super::kind::Compression;
use super::lines::{FileLines, Lines, SHOWN};
use super::reader::{Place, Row, Rows};
use super::{MAX_ROW_BYTES, SourceError};
use crate::event::counted;
use crate::row::write_str;

/// The rows of a CSV text.
pub(super) struct CsvRows<R> {
    records: Records<R>,
    /// The column names as the beginnings of fields: `{"a":`, then `,"b":`.
    columns: Vec<Vec<u8>>,
    record: Vec<u8>,
    fields: Fields,
}

impl CsvRows<Box<dyn BufRead + Send>> {
    /// Opens a file at a place; its header is read again.
    pub(super) fn open(
        path: &Path,
        separator: u8,
        compression: Compression,
        at: Place,
    ) -> Result<Self, SourceError> {
        let lines = FileLines::open(path, compression, Place::default())?;
        let mut rows = Self::new(lines, separator)?;
        if at.offset > 0 {
            rows.records.lines = FileLines::open(path, compression, at)?;
        }
        Ok(rows)
    }
}

impl<R: BufRead + Send> CsvRows<R> {
    /// Reads the header; a text without any has no rows.
    fn new(lines: Lines<R>, separator: u8) -> Result<Self, SourceError> {
        let mut rows = Self {
            records: Records { lines, separator },
            columns: Vec::new(),
            record: Vec::new(),
            fields: Fields::default(),
        };
        let header = loop {
            rows.record.clear();
            match rows.records.next(&mut rows.record)? {
                None => return Ok(rows),
                Some(header) if header.problem.is_none() && is_blank(&rows.record) => {}
                Some(header) => break header,
            }
        };
        let problem = match header.problem {
            Some(problem) => Some(problem.into()),
            None => rows.name_columns().err(),
        };
        match problem {
            None => Ok(rows),
            Some(problem) => {
                let path = rows.records.lines.path();
                Err(SourceError::unreadable(
                    path,
                    format!("its header is not usable: {problem}"),
                ))
            }
        }
    }

    fn name_columns(&mut self) -> Result<(), String> {
        let Self { record, fields, .. } = self;
        let header = std::str::from_utf8(record).map_err(|_| "it is not UTF-8; convert the file")?;
        if header.contains('\r') {
            return Err("lines end in CR alone; convert them to LF".into());
        }
        fields.split(header, self.records.separator);
        let mut names = HashSet::new();
        for (at, name) in fields.iter().enumerate() {
            if name.is_empty() {
                return Err(format!("column {} has no name", at + 1));
            }
            if !names.insert(name) {
                return Err(format!("two columns are named `{name}`"));
            }
            let mut field = vec![if at == 0 { b'{' } else { b',' }];
            write_str(&mut field, name);
            field.push(b':');
            self.columns.push(field);
        }
        Ok(())
    }

    /// Appends a record as JSON; an error says why it is no row.
    fn write(&mut self, data: &mut Vec<u8>) -> Result<(), String> {
        let record = std::str::from_utf8(&self.record)
            .map_err(|error| format!("not valid UTF-8 at byte {}", error.valid_up_to() + 1))?;
        self.fields.split(record, self.records.separator);
        let (found, expected) = (self.fields.ends.len(), self.columns.len());
        if found != expected {
            let found = counted(found as u64, "field");
            return Err(format!("{found}, and the header has {expected}"));
        }
        for (column, value) in self.columns.iter().zip(self.fields.iter()) {
            data.extend_from_slice(column);
            write_str(data, value);
        }
        data.push(b'}');
        Ok(())
    }

    /// True for a line that is no row. Where there is one column, white space is its value; in a TSV it
    /// may be the separator.
    fn is_blank(&self) -> bool {
        let separated = self.record.contains(&self.records.separator);
        self.record.is_empty() || (self.columns.len() > 1 && !separated && is_blank(&self.record))
    }

    /// Counts the rest of the rows.
    pub(super) fn count(mut self, stop: &AtomicBool) -> Option<u64> {
        let mut rows = 0;
        while !stop.load(Ordering::Relaxed) {
            self.record.clear();
            match self.records.next(&mut self.record).ok()? {
                None => return Some(rows),
                Some(Record { problem, .. }) => rows += u64::from(problem.is_some() || !self.is_blank()),
            }
        }
        None
    }
}

impl<R: BufRead + Send> Rows for CsvRows<R> {
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Row>, SourceError> {
        loop {
            self.record.clear();
            let Some(Record { line, problem }) = self.records.next(&mut self.record)? else {
                return Ok(None);
            };
            if problem.is_none() && self.is_blank() {
                continue;
            }
            let problem = match problem {
                Some(problem) => Some(problem),
                None => self.write(data).err().map(Into::into),
            };
            if problem.is_some() {
                data.extend_from_slice(
                    self.record
                        .get(..SHOWN.min(self.record.len()))
                        .unwrap_or_default(),
                );
            }
            return Ok(Some(Row { line, problem }));
        }
    }

    fn place(&self) -> Place {
        self.records.lines.at
    }
}

/// Lines, joined where a quoted field holds a line end.
struct Records<R> {
    lines: Lines<R>,
    separator: u8,
}

/// A record that was appended.
struct Record {
    /// Its first line, from 1.
    line: u64,
    problem: Option<Box<str>>,
}

impl<R: BufRead> Records<R> {
    /// Appends the next record, without its line end; none at the end.
    fn next(&mut self, record: &mut Vec<u8>) -> Result<Option<Record>, SourceError> {
        let first = self.lines.at.line + 1;
        let mut quotes = Quotes::new(self.separator);
        let mut too_long = false;
        let problem = loop {
            let searched = record.len();
            let Some(line) = self.lines.next(record)? else {
                if quotes.lines == 0 {
                    return Ok(None);
                }
                let opened = first + quotes.opened;
                break Some(format!("the quote that opens in line {opened} is never closed"));
            };
            quotes.read(record.get(searched..).unwrap_or_default());
            too_long |= line.too_long || record.len() > MAX_ROW_BYTES;
            if line.too_long || !quotes.open {
                let mib = MAX_ROW_BYTES >> 20;
                let problem = || format!("the row is longer than {mib} MiB; is a quote in it never closed?");
                break too_long.then(problem);
            }
            if too_long {
                record.truncate(SHOWN);
            } else {
                // Inside quotes the line end belongs to the value.
                record.extend_from_slice(line.end);
            }
        };
        Ok(Some(Record {
            line: first,
            problem: problem.map(Into::into),
        }))
    }
}

/// Whether a record goes on behind the end of a line.
struct Quotes {
    separator: u8,
    /// In a quoted field.
    open: bool,
    /// At the beginning of a field.
    fresh: bool,
    /// Lines that were read.
    lines: u64,
    /// Lines before the one in which the last quoted field begins.
    opened: u64,
}

impl Quotes {
    fn new(separator: u8) -> Self {
        Self {
            separator,
            open: false,
            fresh: true,
            lines: 0,
            opened: 0,
        }
    }

    /// Reads the next line of the record, without its end.
    fn read(&mut self, line: &[u8]) {
        let mut rest = line;
        while self.open || memchr::memchr(b'"', rest).is_some() {
            if self.open {
                let Some(at) = memchr::memchr(b'"', rest) else {
                    break;
                };
                rest = rest.get(at + 1..).unwrap_or_default();
                match rest.strip_prefix(b"\"") {
                    Some(after) => rest = after,
                    None => (self.open, self.fresh) = (false, false),
                }
            } else if let Some((byte, after)) = rest.split_first() {
                if *byte == b'"' && self.fresh {
                    (self.open, self.opened) = (true, self.lines);
                }
                self.fresh = *byte == self.separator;
                rest = after;
            }
        }
        self.lines += 1;
    }
}

/// The values of a record, without their quotes.
#[derive(Default)]
struct Fields {
    text: String,
    /// Where each ends in the text.
    ends: Vec<usize>,
}

impl Fields {
    fn split(&mut self, record: &str, separator: u8) {
        self.text.clear();
        self.ends.clear();
        let mut rest = record;
        loop {
            if let Some(quoted) = rest.strip_prefix('"') {
                rest = self.unquote(quoted);
            }
            // Behind a closing quote, too, everything up to the separator counts.
            let end = memchr::memchr(separator, rest.as_bytes());
            let (value, after) = rest
                .split_at_checked(end.unwrap_or(rest.len()))
                .unwrap_or((rest, ""));
            self.text.push_str(value);
            self.ends.push(self.text.len());
            if end.is_none() {
                return;
            }
            rest = after.get(1..).unwrap_or_default();
        }
    }

    /// Takes a quoted value whose opening quote was read; gives back what follows it.
    fn unquote<'a>(&mut self, mut rest: &'a str) -> &'a str {
        while let Some((value, after)) = rest.split_once('"') {
            self.text.push_str(value);
            match after.strip_prefix('"') {
                Some(after) => {
                    self.text.push('"');
                    rest = after;
                }
                None => return after,
            }
        }
        self.text.push_str(rest);
        ""
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let value = self.text.get(start..*end).unwrap_or_default();
            start = *end;
            value
        })
    }
}
