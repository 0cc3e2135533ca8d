//! By what an input is recognised on resume.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize, Serializer};

use super::SourceError;
use super::kind::{Compression, Format, Kind};

const EDGE: u64 = 1 << 20;

/// Size, time of change and the digest of the first and last MiB of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The path as given; `-` is stdin.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Bytes; 0 if that cannot be known.
    pub size: u64,
    /// Nanoseconds since 1970; 0 if that cannot be known.
    pub mtime_ns: u64,
    /// BLAKE3 of the first and the last MiB, hexadecimal; of a stream, of its first row.
    pub digest: String,
    /// A stream: the rest is compared when it is read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
}

/// A path that is not UTF-8 is shown as well as it can be.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl Fingerprint {
    /// Takes the fingerprint of a file.
    pub fn of(path: &Path) -> Result<Self, SourceError> {
        let error = SourceError::io(path);
        let mut file = File::open(path).map_err(&error)?;
        let meta = file.metadata().map_err(&error)?;
        let digest = edges(&mut file, meta.len()).map_err(&error)?;
        let mtime = meta
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.to_owned(),
            size: meta.len(),
            mtime_ns: mtime.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
            digest,
            stream: false,
        })
    }

    /// True for a file of JSON lines that begins with the lines that it was when this was taken, as far as that can be seen from
    /// its first and last MiB then, and has more after them.
    fn was_appended_to(&self, now: &Self) -> bool {
        // A row of CSV may have been at an end only because the file was.
        let has_lines = |path: &Path| {
            Kind::of(path)
                .is_some_and(|kind| kind.format == Format::Jsonl && kind.compression == Compression::None)
        };
        let begins = || {
            let mut file = File::open(&now.path)?;
            let mut last = [0; 1];
            file.seek(SeekFrom::Start(self.size - 1))?;
            file.read_exact(&mut last)?;
            file.rewind()?;
            // Without an end its last line would have become another.
            std::io::Result::Ok(last == *b"\n" && edges(&mut file, self.size)? == self.digest)
        };
        let grew = (1..now.size).contains(&self.size) && !self.stream && !now.stream;
        grew && has_lines(&now.path) && begins().unwrap_or(false)
    }

    /// True when both are of the same bytes, wherever they lie.
    pub fn is_same(&self, other: &Self) -> bool {
        let known = |of: &Self| (of.size, of.mtime_ns, of.stream);
        known(self) == known(other) && self.digest == other.digest
    }
}

/// BLAKE3 of the first and the last MiB of the first `len` bytes of a file, hexadecimal.
fn edges(file: &mut File, len: u64) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut edge = Vec::new();
    file.take(EDGE.min(len)).read_to_end(&mut edge)?;
    hasher.update(&edge);
    if len > EDGE {
        edge.clear();
        let from = len.saturating_sub(EDGE).max(EDGE);
        file.seek(SeekFrom::Start(from))?;
        file.take(len - from).read_to_end(&mut edge)?;
        hasher.update(&edge);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// True when all rows of some files are the first rows of others: lines were appended to the last of them, or files came
/// after it.
pub(crate) fn is_continued(before: &[Fingerprint], now: &[Fingerprint]) -> bool {
    let Some((last, others)) = before.split_last() else {
        return false;
    };
    let Some((same, [then, ..])) = now.split_at_checked(others.len()) else {
        return false;
    };
    let is_more = (then.is_same(last) && now.len() > before.len()) || last.was_appended_to(then);
    is_more && !last.stream && others.iter().zip(same).all(|(old, new)| old.is_same(new))
}

/// What differs between two lists of files: a phrase, or none.
pub(crate) fn difference(before: &[Fingerprint], now: &[Fingerprint]) -> Option<String> {
    if before.len() == now.len() && before.iter().zip(now).all(|(a, b)| a.is_same(b)) {
        return None;
    }
    let only_touched = |(a, b): (&Fingerprint, &Fingerprint)| (a.size, &a.digest) == (b.size, &b.digest);
    if before.len() == now.len() && before.iter().zip(now).all(only_touched) {
        return Some(
            "the input was touched (its time is another; its size, first and last MiB are the same)".into(),
        );
    }
    if before.len() <= 1 && now.len() <= 1 {
        return Some("the input is another one or was changed".into());
    }
    let find = |list: &[Fingerprint], path: &Path| list.iter().find(|of| of.path == path).cloned();
    let mut phrases = Vec::new();
    for file in now {
        let path = file.path.display();
        match find(before, &file.path) {
            None => phrases.push(format!("{path} is new")),
            Some(old) if !old.is_same(file) => phrases.push(format!("{path} was changed")),
            Some(_) => {}
        }
    }
    let gone = before.iter().filter(|old| find(now, &old.path).is_none());
    phrases.extend(gone.map(|old| format!("{} is gone", old.path.display())));
    const SHOWN: usize = 3;
    let more = phrases.len().saturating_sub(SHOWN);
    phrases.truncate(SHOWN);
    if more > 0 {
        phrases.push(format!("and {more} more"));
    }
    if phrases.is_empty() {
        phrases.push("its files are in another order".into());
    }
    Some(format!(
        "the input is another one or was changed ({})",
        phrases.join(", ")
    ))
}
