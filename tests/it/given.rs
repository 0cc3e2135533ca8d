//! Random inputs of every kind, each with the rows that it holds.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Builder, Int64Array, ListBuilder, RecordBatch,
    StringArray, StructArray,
};

use crate::inputs::{arrow_file, arrow_stream, gzip, parquet, zstd};
use crate::reference::{Line, lines};
use crate::tape::Tape;
use crate::twins::quote;

/// What a run is given.
#[derive(Clone, Debug)]
pub struct Given {
    /// INPUTS.
    pub name: String,
    /// By path.
    pub files: Vec<(String, Vec<u8>)>,
    /// What comes on stdin.
    pub stdin: Option<Vec<u8>>,
    /// The rows, in order.
    pub lines: Vec<Line>,
}

impl Given {
    /// Writes the files below a folder.
    pub fn write(&self, dir: &Path) {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().expect("a file in a folder")).expect("a folder can be made");
            fs::write(path, bytes).expect("an input can be written");
        }
    }

    /// For messages.
    pub fn describe(&self) -> String {
        let lines = self.lines.iter();
        let lines = lines.map(|l| format!("{}:{}: {}\n", l.file, l.number, String::from_utf8_lossy(&l.text)));
        let files: Vec<_> = self.files.iter().map(|(name, _)| name).collect();
        format!("{} {files:?}\n{}", self.name, lines.collect::<String>())
    }
}

/// In no order; the byte order of the whole paths counts.
const STEMS: [&str; 5] = ["b", "a/x", "a-1", "B", "é"];

/// Texts of separated files, each with its trouble.
const TEXTS: [&str; 7] = [
    "plain",
    "with \"quotes\"",
    "two\nlines",
    "a,b\tc",
    "日本 🙂",
    "",
    " wide ",
];

impl Tape<'_> {
    /// An input of up to `most` rows.
    pub fn given(&mut self, most: usize) -> Given {
        let (name, stems) = match self.below(8) {
            5 => {
                let bytes = self.input(most);
                return Given {
                    name: "-".into(),
                    files: Vec::new(),
                    lines: lines("-", &bytes),
                    stdin: Some(bytes),
                };
            }
            6 => ("rows", 1 + self.below(3)),
            7 => ("rows/**/*", 1 + self.below(3)),
            _ => ("", 1),
        };
        let first = self.below(STEMS.len());
        let mut all: Vec<_> = (0..stems)
            .map(|at| match name {
                "" => self.file("in", most),
                _ => self.file(
                    &format!("rows/{}", STEMS[(first + at) % STEMS.len()]),
                    most / stems,
                ),
            })
            .collect();
        all.sort_by(|(a, ..), (b, ..)| a.as_bytes().cmp(b.as_bytes()));
        let single = all[0].0.clone();
        let rows = all.iter().flat_map(|(.., lines)| lines.clone()).collect();
        let mut files: Vec<_> = all.into_iter().map(|(name, bytes, _)| (name, bytes)).collect();
        if !name.is_empty() {
            // No inputs, wherever they lie.
            for other in ["rows/.old.jsonl", "rows/notes.txt"] {
                files.push((other.to_owned(), b"{\"text\":\"no row\",\"n\":1}\n".to_vec()));
            }
        }
        Given {
            name: if name.is_empty() { single } else { name.into() },
            files,
            stdin: None,
            lines: rows,
        }
    }

    fn file(&mut self, stem: &str, most: usize) -> (String, Vec<u8>, Vec<Line>) {
        let (name, bytes, mut lines) = match self.below(8) {
            4 => self.separated(&format!("{stem}.csv"), b',', most),
            5 => self.separated(&format!("{stem}.tsv"), b'\t', most),
            6 => self.columnar(&format!("{stem}.parquet"), most),
            7 => self.columnar(&format!("{stem}.arrow"), most),
            kind => {
                let name = format!("{stem}.{}", ["jsonl", "ndjson"][kind % 2]);
                let bytes = self.input(most);
                let lines = lines(&name, &bytes);
                (name, bytes, lines)
            }
        };
        if name.ends_with(".parquet") || name.ends_with(".arrow") {
            return (name, bytes, lines);
        }
        let (name, bytes) = match self.below(6) {
            4 => (name + ".gz", gzip(&bytes)),
            5 => (name + ".zst", zstd(&bytes)),
            _ => return (name, bytes, lines),
        };
        lines.iter_mut().for_each(|line| line.file.clone_from(&name));
        (name, bytes, lines)
    }

    /// CSV or TSV: good rows, bad ones, blank lines, values over two lines.
    fn separated(&mut self, name: &str, separator: u8, most: usize) -> (String, Vec<u8>, Vec<Line>) {
        let columns = [["text", "n"], ["n", "text"]][self.below(2)];
        let (quoted, crlf) = (self.below(3) == 2, self.below(4) == 3);
        let end: &[u8] = if crlf { b"\r\n" } else { b"\n" };
        let mut bytes = if self.below(6) == 5 { "\u{feff}" } else { "" }
            .as_bytes()
            .to_vec();
        bytes.extend(columns.join(&char::from(separator).to_string()).into_bytes());
        let (mut rows, mut number) = (Vec::new(), 1);
        for row in 0..self.below(most + 1) {
            if self.is_over() {
                break;
            }
            bytes.extend(end);
            number += 1;
            let n = ["0", "1", "2", "3", "4", "5", "-2", "x", ""][self.below(9)];
            let text = TEXTS[self.below(TEXTS.len())];
            let text = if text.is_empty() {
                String::new()
            } else {
                format!("{text} {row}")
            };
            let values = columns.map(|column| if column == "n" { n } else { &text });
            let record: Vec<u8> = match self.below(20) {
                16 => b"   ".to_vec(),
                17 => b"alone".to_vec(),
                18 => [b"1".as_slice(), b"2", b"3"].join(&separator),
                19 => [b"\xff\xfe".as_slice(), b"1"].join(&separator),
                _ => {
                    let values = values.map(|value| {
                        let special = value.bytes().any(|b| b"\"\n".contains(&b) || b == separator);
                        match special || quoted {
                            true => format!("\"{}\"", value.replace('"', "\"\"")),
                            false => value.to_owned(),
                        }
                        .into_bytes()
                    });
                    let record = values.join(&separator);
                    let fields = columns
                        .iter()
                        .zip(columns.map(|c| if c == "n" { n } else { &text }));
                    let fields: Vec<_> = fields.map(|(c, v)| format!("\"{c}\":{}", quote(v))).collect();
                    rows.push(Line {
                        file: name.into(),
                        number,
                        text: format!("{{{}}}", fields.join(",")).into_bytes(),
                    });
                    number += record.iter().filter(|b| **b == b'\n').count();
                    bytes.extend(record);
                    continue;
                }
            };
            if record != b"   " {
                rows.push(Line {
                    file: name.into(),
                    number,
                    text: record.clone(),
                });
            }
            bytes.extend(record);
        }
        if self.below(3) < 2 {
            bytes.extend(end);
        }
        (name.into(), bytes, rows)
    }

    /// Parquet or Arrow: every row has all columns.
    fn columnar(&mut self, name: &str, most: usize) -> (String, Vec<u8>, Vec<Line>) {
        let wide = self.below(2) == 1;
        let batch = 1 + self.below(20);
        let group = 1 + self.below(15);
        let count = self.below(most + 1);
        let rows: Vec<(Option<String>, Option<i64>)> = (0..count)
            .map_while(|row| {
                if self.is_over() {
                    return None;
                }
                let n = Some(self.below(10) as i64 - 2).filter(|n| *n != -1);
                let text = TEXTS[self.below(TEXTS.len())];
                let text = (self.below(12) != 11).then(|| format!("{text} {row}"));
                Some((text, n))
            })
            .collect();
        let lines = rows.iter().enumerate().map(|(at, (text, n))| {
            let text = text.as_deref().map_or("null".into(), quote);
            let n = n.map_or("null".into(), |n| n.to_string());
            let more = if wide {
                let ok = at.is_multiple_of(3);
                format!(
                    ",\"price\":1.10,\"big\":12345678901234567890123,\"obj\":{{\"b\":[1.5,null],\"ok\":{ok}}}"
                )
            } else {
                String::new()
            };
            Line {
                file: name.into(),
                number: at + 1,
                text: format!("{{\"text\":{text},\"n\":{n}{more}}}").into_bytes(),
            }
        });
        let lines = lines.collect();
        let mut batches: Vec<_> = rows
            .chunks(batch)
            .enumerate()
            .map(|(at, rows)| record_batch(rows, at * batch, wide))
            .collect();
        if batches.is_empty() {
            batches.push(record_batch(&[], 0, wide));
        }
        let bytes = match (name.ends_with(".parquet"), group % 2) {
            (true, _) => parquet(&batches, group),
            (false, 0) => arrow_stream(&batches),
            (false, _) => arrow_file(&batches),
        };
        (name.into(), bytes, lines)
    }
}

/// Rows from the one numbered `first` on.
fn record_batch(rows: &[(Option<String>, Option<i64>)], first: usize, wide: bool) -> RecordBatch {
    let texts: StringArray = rows.iter().map(|(text, _)| text.as_deref()).collect();
    let numbers: Int64Array = rows.iter().map(|(_, n)| *n).collect();
    let mut columns: Vec<(&str, ArrayRef)> = vec![("text", Arc::new(texts)), ("n", Arc::new(numbers))];
    if wide {
        let decimal = |value: i128, precision, scale| -> ArrayRef {
            let values = Decimal128Array::from(vec![value; rows.len()]);
            Arc::new(
                values
                    .with_precision_and_scale(precision, scale)
                    .expect("it fits"),
            )
        };
        let mut list = ListBuilder::new(Float64Builder::new());
        rows.iter().for_each(|_| list.append_value([Some(1.5), None]));
        let ok: BooleanArray = (0..rows.len())
            .map(|at| Some((first + at).is_multiple_of(3)))
            .collect();
        let parts: Vec<(&str, ArrayRef)> = vec![("b", Arc::new(list.finish())), ("ok", Arc::new(ok))];
        let object = StructArray::try_from(parts).expect("parts of one length");
        columns.extend([
            ("price", decimal(110, 5, 2)),
            ("big", decimal(12_345_678_901_234_567_890_123, 38, 0)),
            ("obj", Arc::new(object) as ArrayRef),
        ]);
    }
    // Columns must be nullable alike in all batches, whatever each holds.
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true)))
        .expect("columns of one length")
}
