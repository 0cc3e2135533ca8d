//! A server's log: what it wrote to stdout and stderr, unchanged. Read from its end, put aside when it is long.

use std::ffi::OsStr;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use fs_err::{self as fs, File, OpenOptions};

use super::files::open_own;
use crate::engine::provision::PreparedEngine;

/// How far back lines are looked for, in bytes.
const BACK: u64 = 256 << 10;
/// A line is shown up to here, in characters.
const LINE: usize = 500;
/// Shorter values are no secrets, and replacing them would garble lines.
const SECRET: usize = 6;

/// Opens a log to append to, made if need be.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_own(path, OpenOptions::new().append(true).create(true).mode(0o600))
}

/// Puts a log aside as `X.log.1` and begins it again if it is longer than `most` bytes.
///
/// The server goes on writing into the same file: it appends, so that it is enough to cut it. A line that it writes
/// between the copy and the cut is lost.
pub(super) fn put_aside(path: &Path, most: u64) -> io::Result<()> {
    let file = open_own(path, OpenOptions::new().read(true).write(true))?;
    if file.metadata()?.len() <= most {
        return Ok(());
    }
    let aside = path.with_added_extension("1");
    fs::copy(path, &aside)?;
    file.set_len(0)
}

/// A server's log from one start on.
#[derive(Clone, Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Where this start's lines begin.
    from: u64,
    /// What no line may show.
    secrets: Vec<String>,
}

impl Log {
    /// The log as it is now: what is written from here on belongs to this start. Values of the server's environment
    /// and of ours that are secret, or whose names say so, are never shown.
    pub(super) fn from_here(path: &Path, prepared: &PreparedEngine) -> Self {
        let given = |name: &OsStr| {
            prepared
                .secrets
                .iter()
                .any(|(known, _)| name == OsStr::new(known))
        };
        let secrets = std::env::vars_os()
            .chain(prepared.environment())
            .filter(|(name, _)| given(name) || is_secret(name))
            .filter_map(|(_, value)| value.into_string().ok())
            .filter(|value| value.len() >= SECRET);
        Self {
            path: path.to_owned(),
            from: fs::metadata(path).map_or(0, |meta| meta.len()),
            secrets: secrets.collect(),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its last lines, at most `most`, safe to show: no control characters, no secrets. What cannot be read is empty.
    pub(super) fn tail(&self, most: usize) -> Vec<String> {
        let text = self.end().unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let skipped = lines.len().saturating_sub(most);
        lines.iter().skip(skipped).map(|line| self.shown(line)).collect()
    }

    /// The last bytes of this start.
    fn end(&self) -> io::Result<Vec<u8>> {
        let mut file = open_own(&self.path, OpenOptions::new().read(true))?;
        let len = file.metadata()?.len();
        // Shorter than it was: it was put aside, and all of it is new.
        let from = if self.from > len { 0 } else { self.from };
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(BACK))))?;
        let mut text = Vec::new();
        file.take(BACK).read_to_end(&mut text)?;
        Ok(text)
    }

    fn shown(&self, line: &str) -> String {
        let mut line = console::strip_ansi_codes(line).into_owned();
        for secret in &self.secrets {
            if line.contains(secret.as_str()) {
                line = line.replace(secret.as_str(), "***");
            }
        }
        let plain = line
            .trim_end()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c });
        plain.take(LINE).collect()
    }
}

/// True for names like `HF_TOKEN`.
fn is_secret(name: &OsStr) -> bool {
    let name = name.to_string_lossy().to_ascii_uppercase();
    let words = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"];
    words.iter().any(|word| name.contains(word))
}
