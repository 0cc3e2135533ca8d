//! What was found out about a file, kept until the file is another one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::source::Fingerprint;

/// Most files that are remembered.
const MOST: usize = 1000;

/// A small JSON file of answers about files. Whatever is wrong with it, the answers are found out again.
pub(super) struct Remembered {
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Answer<T> {
    size: u64,
    mtime_ns: u64,
    value: T,
}

impl Remembered {
    /// The answers in `folder` under a name.
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        Self {
            file: folder.join(name),
        }
    }

    /// What is known about a file that is as it was.
    pub(super) fn get<T: DeserializeOwned>(&self, of: &Fingerprint) -> Option<T> {
        let mut all = self.read::<T>();
        let known = all.remove(&key(of))?;
        (known.size == of.size && known.mtime_ns == of.mtime_ns).then_some(known.value)
    }

    /// Keeps an answer. That it cannot be kept costs time, the next time.
    pub(super) fn put<T: Serialize + DeserializeOwned>(&self, of: &Fingerprint, value: T) {
        let mut all = self.read::<T>();
        if all.len() >= MOST {
            all.retain(|path, _| Path::new(path).exists());
        }
        let (size, mtime_ns) = (of.size, of.mtime_ns);
        all.insert(
            key(of),
            Answer {
                size,
                mtime_ns,
                value,
            },
        );
        if let Err(error) = self.write(&all) {
            tracing::debug!(%error, file = %self.file.display(), "not remembered");
        }
    }

    fn read<T: DeserializeOwned>(&self) -> BTreeMap<String, Answer<T>> {
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Another process sees the old answers or the new ones.
    fn write<T: Serialize>(&self, all: &BTreeMap<String, Answer<T>>) -> std::io::Result<()> {
        let folder = self.file.parent().unwrap_or(Path::new("."));
        fs_err::create_dir_all(folder)?;
        let text = serde_json::to_vec(all).map_err(std::io::Error::other)?;
        let aside = self
            .file
            .with_extension(format!("{}-{:x}.tmp", std::process::id(), fastrand::u32(..)));
        fs_err::write(&aside, text)?;
        fs_err::rename(&aside, &self.file)
    }
}

fn key(of: &Fingerprint) -> String {
    of.path.to_string_lossy().into_owned()
}
