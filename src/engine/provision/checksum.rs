//! Digests of model files: the SHA-256 of all bytes where it must be right, else what size, time and ends say.

use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::prepare::{PrepareError, Progress, Tell};
use super::remembered::Remembered;
use crate::source::Fingerprint;

/// Bytes between two reports.
const STEP: usize = 4 << 20;

/// The SHA-256 of a file, 64 lower-case hexadecimal digits. A file that is as it was is not read again.
pub(super) fn sha256(path: &Path, state: &Path, tell: &mut Tell<'_>) -> Result<String, PrepareError> {
    let of = fingerprint(path)?;
    let known = Remembered::new(state, "digests.json");
    if let Some(digest) = known.get::<String>(&of) {
        return Ok(digest);
    }
    let unreadable = |error| PrepareError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; STEP];
    let mut done = 0;
    loop {
        let read = file.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        context.update(buffer.get(..read).unwrap_or_default());
        done += read as u64;
        let progress = Progress::Verifying {
            file: path,
            done,
            total: of.size,
        };
        if let ControlFlow::Break(()) = tell(progress) {
            return Err(PrepareError::Cancelled);
        }
    }
    let digest = hex(context.finish().as_ref());
    // What was read is the file that was asked about.
    if fingerprint(path)?.is_same(&of) {
        known.put(&of, digest.clone());
    }
    Ok(digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Size, time and ends of a file.
pub(super) fn fingerprint(path: &Path) -> Result<Fingerprint, PrepareError> {
    Fingerprint::of(path).map_err(|error| PrepareError::Unreadable {
        path: path.to_owned(),
        error: std::io::Error::other(error),
    })
}

/// `edges:HEX`: the files of a model by their names, sizes, times, first and last MiB.
pub(super) fn edges(files: &[PathBuf]) -> Result<String, PrepareError> {
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let of = fingerprint(path)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
        hasher.update(&of.size.to_le_bytes());
        hasher.update(&of.mtime_ns.to_le_bytes());
        hasher.update(of.digest.as_bytes());
    }
    Ok(format!("edges:{}", hasher.finalize().to_hex()))
}
