//! Parquet: batch by batch, row group by row group.

use std::fs::File;
use std::path::Path;

use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use super::{Columnar, ColumnarRows, check, guarded};
use crate::source::SourceError;
use crate::source::reader::Place;

/// About how many bytes a batch may have, and how many rows.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_ROWS: u64 = 1024;

/// Opens a file; row groups before `at` are not read.
pub(in crate::source) fn open(path: &Path, at: Place) -> Result<Columnar, SourceError> {
    let file = File::open(path).map_err(SourceError::io(path))?;
    guarded(path, "", || read(path, file, at))
}

fn read(path: &Path, file: File, at: Place) -> Result<Columnar, ArrowError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(plain)?;
    check(builder.schema())?;
    let groups = builder.metadata().row_groups();
    let total: u64 = groups.iter().map(|group| rows(group.num_rows())).sum();
    let mut skip = at.offset;
    let mut first = 0;
    while let Some(rows) = groups.get(first).map(|group| rows(group.num_rows())) {
        if skip < rows {
            break;
        }
        skip -= rows;
        first += 1;
    }
    let bytes: u64 = groups.iter().map(|group| rows(group.total_byte_size())).sum();
    let batch = (BATCH_BYTES * total / bytes.max(1)).clamp(1, BATCH_ROWS);
    let groups = (first..groups.len()).collect();
    let reader = builder
        .with_row_groups(groups)
        .with_offset(usize::try_from(skip).unwrap_or(usize::MAX))
        .with_batch_size(usize::try_from(batch).unwrap_or(1))
        .build()
        .map_err(plain)?;
    Ok(Columnar {
        total: Some(total),
        rows: ColumnarRows::new(path, Box::new(reader), 0, at),
    })
}

/// The entries that the writer of a file put into its metadata.
pub(super) fn entries(path: &Path) -> Result<Vec<(String, String)>, SourceError> {
    let file = File::open(path).map_err(SourceError::io(path))?;
    guarded(path, "", || {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(plain)?;
        let entries = builder.metadata().file_metadata().key_value_metadata();
        let entries = entries.into_iter().flatten();
        Ok(entries
            .filter_map(|entry| Some((entry.key.clone(), entry.value.clone()?)))
            .collect())
    })
}

/// A count of the metadata, which is never negative in a sound file.
fn rows(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0)
}

/// Without the layers that the error went through.
fn plain(error: ParquetError) -> ArrowError {
    ArrowError::ParquetError(match error {
        ParquetError::General(text) | ParquetError::EOF(text) | ParquetError::NYI(text) => text,
        other => other.to_string(),
    })
}
