//! Rows that a library user makes.

use std::path::PathBuf;
use std::sync::Arc;

use super::reader::{Place, Row, RowSource, Rows};
use super::{Fingerprint, Input, Position, Source, SourceError};

/// The rows of one reading.
type Texts = Box<dyn Iterator<Item = String> + Send>;

/// An input made of an iterator over JSON objects as text.
///
/// ```
/// let squares = chainette::source::Generated::new("squares", || {
///     Box::new((0..10).map(|n| format!("{{\"n\": {}}}", n * n)))
/// });
/// ```
#[derive(Clone)]
pub struct Generated {
    name: Arc<str>,
    make: Arc<dyn Fn() -> Texts + Send + Sync>,
}

impl Generated {
    /// Rows made by `make`, which must give the same rows every time: a run that goes on passes over those
    /// it has. They are recognised by `name` alone: another name is another input.
    pub fn new(name: impl Into<Arc<str>>, make: impl Fn() -> Texts + Send + Sync + 'static) -> Self {
        Self {
            name: name.into(),
            make: Arc::new(make),
        }
    }
}

impl std::fmt::Debug for Generated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Generated").field(&self.name).finish()
    }
}

impl Input for Generated {
    fn fingerprints(&self) -> Result<Vec<Fingerprint>, SourceError> {
        Ok(vec![Fingerprint {
            path: PathBuf::from(&*self.name),
            size: 0,
            mtime_ns: 0,
            digest: blake3::hash(self.name.as_bytes()).to_hex().to_string(),
            stream: false,
        }])
    }

    fn open(&self, start: Position, limit: Option<u64>) -> Result<Box<dyn Source>, SourceError> {
        let Self { name, make } = self.clone();
        let open = move |file, at: Place| {
            let skip = usize::try_from(at.offset).unwrap_or(usize::MAX);
            let texts = || GeneratedRows(make().skip(skip), at);
            Ok((file == 0).then(|| (name.clone(), Box::new(texts()) as Box<dyn Rows>)))
        };
        Ok(Box::new(RowSource::open(open, start, limit)?))
    }
}

/// The rest of the rows, and how many there were before.
struct GeneratedRows(std::iter::Skip<Texts>, Place);

impl Rows for GeneratedRows {
    fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Row>, SourceError> {
        let Self(texts, at) = self;
        Ok(texts.next().map(|text| {
            data.extend_from_slice(text.as_bytes());
            at.offset += 1;
            at.line += 1;
            Row {
                line: at.line,
                problem: None,
            }
        }))
    }

    fn place(&self) -> Place {
        self.1
    }
}
