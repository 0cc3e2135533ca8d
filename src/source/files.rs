//! Files of known kinds, one after another.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::columnar::{open_arrow, open_parquet};
use super::count::count_lines;
use super::csv::CsvRows;
use super::jsonl::JsonlRows;
use super::kind::{Compression, Format, Kind};
use super::lines::FileLines;
use super::reader::{Place, RowSource, Rows};
use super::{Fingerprint, Input, Position, Source, SourceError};

/// Text up to this many bytes is counted at once, before the run starts.
const COUNTED_AT_ONCE: u64 = 8 << 20;

/// A file of a known kind.
#[derive(Clone, Debug)]
pub(super) struct InputFile {
    path: PathBuf,
    /// The path as it is shown.
    name: Arc<str>,
    kind: Kind,
    size: u64,
    /// Its number of rows, where the file says so itself.
    rows: Option<u64>,
}

impl InputFile {
    /// Looks at a file's beginning: can it be read, and as what its name says?
    pub(super) fn check(path: PathBuf, kind: Kind) -> Result<Self, SourceError> {
        let meta = std::fs::metadata(&path).map_err(SourceError::io(&path))?;
        if !meta.is_file() {
            let problem = "it is no regular file; pipe it in and give `-` (JSONL)";
            return Err(SourceError::unreadable(&path, problem));
        }
        let mut magic = Vec::with_capacity(8);
        let mut head = File::open(&path).map_err(SourceError::io(&path))?.take(8);
        head.read_to_end(&mut magic).map_err(SourceError::io(&path))?;
        if let Some(problem) = wrong_magic(kind, &magic) {
            return Err(SourceError::unreadable(&path, problem));
        }
        let mut file = Self {
            name: path.to_string_lossy().into(),
            path,
            kind,
            size: meta.len(),
            rows: None,
        };
        match kind.format {
            Format::Jsonl => {}
            Format::Csv(_) => drop(file.open(Place::default())?),
            Format::Parquet => file.rows = open_parquet(&file.path, Place::default())?.total,
            Format::Arrow => file.rows = open_arrow(&file.path, Place::default())?.total,
        }
        Ok(file)
    }

    fn open(&self, at: Place) -> Result<Box<dyn Rows>, SourceError> {
        let Kind { format, compression } = self.kind;
        Ok(match format {
            Format::Jsonl => Box::new(JsonlRows(FileLines::open(&self.path, compression, at)?)),
            Format::Csv(separator) => Box::new(CsvRows::open(&self.path, separator, compression, at)?),
            Format::Parquet => Box::new(open_parquet(&self.path, at)?.rows),
            Format::Arrow => Box::new(open_arrow(&self.path, at)?.rows),
        })
    }

    /// Its number of rows; none when only reading it tells.
    fn count(&self, stop: &AtomicBool) -> Option<u64> {
        match (self.kind.format, self.kind.compression) {
            (Format::Jsonl, Compression::None) => count_lines(&self.path, stop),
            (Format::Csv(separator), compression @ Compression::None) => {
                let rows = CsvRows::open(&self.path, separator, compression, Place::default());
                rows.ok()?.count(stop)
            }
            _ => self.rows,
        }
    }

    /// Bytes that must be read to count its rows; none where that is as much work as reading them.
    fn counting_costs(&self) -> Option<u64> {
        match self.kind.compression {
            _ if self.rows.is_some() => Some(0),
            Compression::None if matches!(self.kind.format, Format::Jsonl | Format::Csv(_)) => {
                Some(self.size)
            }
            _ => None,
        }
    }
}

/// What a file is whose first bytes do not fit its name.
fn wrong_magic(kind: Kind, magic: &[u8]) -> Option<&'static str> {
    let gzip = magic.starts_with(b"\x1f\x8b");
    // Also a frame that holds no data, by which some writers begin.
    let zstd = magic.starts_with(b"\x28\xb5\x2f\xfd")
        || (magic.get(1..4) == Some(b"\x2a\x4d\x18") && magic.first().is_some_and(|b| b & 0xf0 == 0x50));
    match (kind.compression, kind.format) {
        (Compression::Gzip, _) => (!gzip).then_some("it is no gzip file"),
        (Compression::Zstd, _) => (!zstd).then_some("it is no zstd file"),
        (_, Format::Parquet) => (!magic.starts_with(b"PAR1")).then_some("it is no Parquet file"),
        (_, Format::Arrow) => None,
        _ if gzip => Some("it is gzip-compressed; its name must end in .gz"),
        _ if zstd => Some("it is zstd-compressed; its name must end in .zst"),
        _ if magic.starts_with(b"PAR1") => Some("it is a Parquet file; its name must end in .parquet"),
        _ if magic.starts_with(b"ARROW1") => Some("it is an Arrow file; its name must end in .arrow"),
        _ if magic.starts_with(b"\xff\xfe") || magic.starts_with(b"\xfe\xff") => {
            Some("it is UTF-16; convert it to UTF-8")
        }
        _ => None,
    }
}

/// Files in the order in which they are read.
#[derive(Clone, Debug)]
pub(super) struct Files(pub(super) Arc<[InputFile]>);

impl Files {
    fn counting_costs(&self) -> Option<u64> {
        self.0.iter().map(InputFile::counting_costs).sum()
    }
}

impl Input for Files {
    fn fingerprints(&self) -> Result<Vec<Fingerprint>, SourceError> {
        self.0.iter().map(|file| Fingerprint::of(&file.path)).collect()
    }

    fn total(&self) -> Option<u64> {
        (self.counting_costs()? <= COUNTED_AT_ONCE).then(|| self.count(&AtomicBool::new(false)))?
    }

    fn count(&self, stop: &AtomicBool) -> Option<u64> {
        self.counting_costs()?;
        self.0.iter().map(|file| file.count(stop)).sum()
    }

    fn open(&self, start: Position, limit: Option<u64>) -> Result<Box<dyn Source>, SourceError> {
        let Self(files) = self.clone();
        let open = move |index: usize, at| {
            let file = files.get(index);
            file.map(|file| Ok((file.name.clone(), file.open(at)?)))
                .transpose()
        };
        Ok(Box::new(RowSource::open(open, start, limit)?))
    }
}
