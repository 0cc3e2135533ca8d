//! By what an input is recognised on resume.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use fs_err::File;
use serde::{Deserialize, Serialize};

use super::SourceError;

const EDGE: u64 = 1 << 20;

/// Size, time of change and the digest of the first and last MiB of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The path as given.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Nanoseconds since 1970.
    pub mtime_ns: u64,
    /// BLAKE3 of the first and the last MiB, hexadecimal.
    pub digest: String,
}

impl Fingerprint {
    /// Takes the fingerprint of a file.
    pub fn of(path: &Path) -> Result<Self, SourceError> {
        let error = |source| SourceError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = File::open(path).map_err(error)?;
        let meta = file.metadata().map_err(error)?;
        if meta.is_dir() {
            let source = std::io::Error::other("it is a directory; give a .jsonl or .ndjson file");
            return Err(SourceError::Io {
                path: path.to_owned(),
                source,
            });
        }
        let mut hasher = blake3::Hasher::new();
        let mut edge = Vec::new();
        (&mut file).take(EDGE).read_to_end(&mut edge).map_err(error)?;
        hasher.update(&edge);
        if meta.len() > EDGE {
            edge.clear();
            file.seek(SeekFrom::Start(meta.len().saturating_sub(EDGE).max(EDGE)))
                .map_err(error)?;
            (&mut file).take(EDGE).read_to_end(&mut edge).map_err(error)?;
            hasher.update(&edge);
        }
        let mtime = meta
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.to_owned(),
            size: meta.len(),
            mtime_ns: mtime.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            digest: hasher.finalize().to_hex().to_string(),
        })
    }
}
