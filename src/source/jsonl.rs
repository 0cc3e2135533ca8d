//! JSON lines: every line that is not blank is a row, good or bad.

use std::io::BufRead;

use super::lines::Lines;
use super::reader::{Place, Row, Rows};
use super::{MAX_ROW_BYTES, SourceError};

/// The rows of a JSONL text.
pub(super) struct JsonlRows<R>(pub(super) Lines<R>);

impl<R: BufRead + Send> Rows for JsonlRows<R> {
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Row>, SourceError> {
        let start = data.len();
        loop {
            let Some(line) = self.0.next(data)? else {
                return Ok(None);
            };
            let problem = line.too_long.then(too_long);
            if problem.is_none() && is_blank(data.get(start..).unwrap_or_default()) {
                data.truncate(start);
                continue;
            }
            return Ok(Some(Row {
                line: self.0.at.line,
                problem,
            }));
        }
    }

    fn place(&self) -> Place {
        self.0.at
    }
}

/// True for a line that is no row.
pub(super) fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

pub(super) fn too_long() -> Box<str> {
    format!("the line is longer than {} MiB", MAX_ROW_BYTES >> 20).into()
}
