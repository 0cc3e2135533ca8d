//! What a file is, by its name.

use std::path::Path;

/// What is read, as it is shown to users.
pub(super) const READ: &str = ".jsonl, .ndjson, .csv, .tsv (each also .gz or .zst), .parquet, .arrow";

/// How rows stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl,
    /// Fields separated by this byte.
    Csv(u8),
    Parquet,
    Arrow,
}

/// How the file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) format: Format,
    pub(super) compression: Compression,
}

impl Kind {
    /// The kind that a file's name says it is; upper case is fine.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let (name, compression) = match name.rsplit_once('.')? {
            (stem, "gz") => (stem, Compression::Gzip),
            (stem, "zst") => (stem, Compression::Zstd),
            _ => (name.as_str(), Compression::None),
        };
        let (stem, extension) = name.rsplit_once('.')?;
        let format = match extension {
            "jsonl" | "ndjson" => Format::Jsonl,
            "csv" => Format::Csv(b','),
            "tsv" => Format::Csv(b'\t'),
            "parquet" if compression == Compression::None => Format::Parquet,
            "arrow" if compression == Compression::None => Format::Arrow,
            _ => return None,
        };
        (!stem.is_empty()).then_some(Self { format, compression })
    }
}
