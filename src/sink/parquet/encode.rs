//! A shard's lines as one Parquet file: a pure function of lines and columns.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use indexmap::IndexMap;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::kind::{Column, Kind, fields};
use super::values::{Misfit, Set, Values};
use super::{JSON_TEXT, RESCUED, TYPED_BY, Table};
use crate::row::{raw_fields, unquoted, write_str};
use crate::sink::SinkError;
use crate::sink::encoder::{LineReader, Rescued, TOLD};

/// Rows of a row group.
const GROUP_ROWS: usize = 50_000;
/// A row group ends before, at this many bytes of JSON: memory must not grow with the rows' size.
const GROUP_BYTES: usize = 32 << 20;
/// Rows and bytes that are gathered before they are encoded.
const BATCH_ROWS: usize = 1_000;
const BATCH_BYTES: usize = 2 << 20;

/// Writes a file; none when it was told to stop.
pub(super) fn encode(
    table: &Table,
    columns: &[Column],
    lines: &mut LineReader,
    out: &mut (dyn Write + Send),
    stop: &AtomicBool,
) -> Result<Option<Vec<Rescued>>, SinkError> {
    let bug = |error: ParquetError| table.bug(&error);
    let mut all = vec![Field::new("row_id", DataType::Utf8, false)];
    all.extend(fields(columns).iter().map(|field| field.as_ref().clone()));
    all.push(Field::new(RESCUED, DataType::Utf8, true));
    let schema = Arc::new(Schema::new(all));
    let options = ArrowWriterOptions::new()
        .with_properties(properties(table, columns))
        .with_skip_arrow_metadata(!columns.iter().any(|column| column.kind.needs_arrow()));
    let mut writer = ArrowWriter::try_new_with_options(out, schema.clone(), options).map_err(bug)?;
    let mut rows = Rows::new(table, columns);
    let (mut group_rows, mut group_bytes, mut batch_bytes) = (0, 0, 0);
    loop {
        let more = match lines.next_line()? {
            Some(line) => {
                batch_bytes += line.len();
                rows.push(line)?;
                true
            }
            None => false,
        };
        if rows.len() >= BATCH_ROWS || batch_bytes >= BATCH_BYTES || (!more && rows.len() > 0) {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            group_rows += rows.len();
            group_bytes += std::mem::take(&mut batch_bytes);
            let batch = RecordBatch::try_new(schema.clone(), rows.take())
                .map_err(|error| bug(ParquetError::ArrowError(error.to_string())))?;
            writer.write(&batch).map_err(bug)?;
            if group_rows >= GROUP_ROWS {
                // The writer began a new group by itself.
                (group_rows, group_bytes) = (group_rows - GROUP_ROWS, 0);
            } else if group_bytes >= GROUP_BYTES {
                writer.flush().map_err(bug)?;
                (group_rows, group_bytes) = (0, 0);
            }
        }
        if !more {
            break;
        }
    }
    writer.close().map_err(bug)?;
    let told = rows.rescued.into_iter();
    Ok(Some(
        told.map(|(column, message)| Rescued { column, message })
            .collect(),
    ))
}

/// Nothing here may depend on the time, the machine or the version.
fn properties(table: &Table, columns: &[Column]) -> WriterProperties {
    let mut json = Vec::new();
    for column in columns {
        column.kind.json_paths(&mut vec![column.name.clone()], &mut json);
    }
    let json = serde_json::Value::from_iter(json);
    WriterProperties::builder()
        .set_created_by("chainette version 1".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_key_value_metadata(Some(vec![
            KeyValue::new("chainette.chain".to_owned(), table.chain.clone()),
            KeyValue::new("chainette.folder".to_owned(), table.folder.clone()),
            KeyValue::new(JSON_TEXT.to_owned(), json.to_string()),
        ]))
        .build()
}

/// Rows on their way into a batch.
struct Rows<'a> {
    table: &'a Table,
    kinds: &'a [Column],
    row_id: Values,
    set: Set,
    rescued_column: Values,
    /// The `_rescued` object of the current row, without its closing brace.
    rescue: Vec<u8>,
    /// By column: the first time that something of it was rescued.
    rescued: IndexMap<String, String>,
}

impl<'a> Rows<'a> {
    fn new(table: &'a Table, kinds: &'a [Column]) -> Self {
        Self {
            table,
            kinds,
            row_id: Values::new(&Kind::Text),
            set: Set::new(kinds),
            rescued_column: Values::new(&Kind::Json),
            rescue: Vec::new(),
            rescued: IndexMap::new(),
        }
    }

    fn len(&self) -> usize {
        self.row_id.len()
    }

    fn push(&mut self, line: &str) -> Result<(), SinkError> {
        let row = self.len();
        let too_large = |Misfit| self.table.bug(&"a row is larger than 2 GiB");
        let mut all = raw_fields(line);
        let Some((_, row_id)) = all.next() else {
            return Err(self.table.bug(&"a line without a row id"));
        };
        self.row_id.push(row_id).map_err(too_large)?;
        self.set.start();
        self.rescue.clear();
        for (key, raw) in all {
            // Cheap for the usual keys: no other holds this text, nor an escape.
            let renamed = (key.contains(RESCUED) || key.contains('\\')).then(|| {
                let name = unquoted(key).into_owned();
                let mut quoted = Vec::new();
                write_str(&mut quoted, self.table.column(&name));
                String::from_utf8_lossy(&quoted).into_owned()
            });
            let key = renamed.as_deref().unwrap_or(key);
            let fits = match self.set.find(key) {
                Some(values) => {
                    if values.len() > row {
                        // A key that stands twice: the last one counts.
                        values.truncate(row);
                    }
                    values.push(raw)
                }
                None => Err(Misfit),
            };
            if fits.is_err() {
                self.save(key, raw, row_id);
            }
        }
        self.set.fill(row + 1);
        if self.rescue.is_empty() {
            self.rescued_column.push_null();
            return Ok(());
        }
        self.rescue.push(b'}');
        let text = std::str::from_utf8(&self.rescue).map_err(|error| self.table.bug(&error))?;
        self.rescued_column.push(text).map_err(too_large)
    }

    /// Puts a value into `_rescued`.
    fn save(&mut self, key: &str, raw: &str, row_id: &str) {
        let start: &[u8] = if self.rescue.is_empty() { b"{" } else { b"," };
        self.rescue.extend_from_slice(start);
        self.rescue.extend_from_slice(key.as_bytes());
        self.rescue.push(b':');
        self.rescue.extend_from_slice(raw.as_bytes());
        let name = unquoted(key);
        if self.rescued.len() > TOLD || self.rescued.contains_key(&*name) {
            return;
        }
        let row = unquoted(row_id);
        let folder = &self.table.folder;
        let message = match self.kinds.iter().find(|column| column.name == name) {
            Some(column) => {
                let kind = column.kind.describe();
                format!(
                    "{folder}/: the column `{name}` is {kind}; what does not fit is in `{RESCUED}` (first in row {row})"
                )
            }
            None => format!(
                "{folder}/: the column `{name}` was unknown when the types were decided (models and first {TYPED_BY} rows); it is in `{RESCUED}` (first in row {row})"
            ),
        };
        self.rescued.insert(name.into_owned(), message);
    }

    fn take(&mut self) -> Vec<ArrayRef> {
        let mut arrays = vec![self.row_id.take()];
        arrays.extend(self.set.columns.iter_mut().map(Values::take));
        arrays.push(self.rescued_column.take());
        arrays
    }
}
