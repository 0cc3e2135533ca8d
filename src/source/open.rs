//! From what the user gave to an input: a file, a folder, a glob or `-`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use glob::MatchOptions;

use super::files::{Files, InputFile};
use super::kind::{Format, Kind, READ};
use super::stdin::{NAME, Stream};
use super::{Fingerprint, Input, Position, Source, SourceError};

/// An input that was found, and what was passed over on the way.
pub struct Opened {
    /// The input; every file of it was looked at.
    pub input: Arc<dyn Input>,
    /// Files and folders that lie in a folder or match a glob and are of no kind that is read.
    pub ignored: Vec<PathBuf>,
    /// The first of its files whose values are all strings (CSV, TSV).
    pub csv: Option<PathBuf>,
}

/// Finds the input that `given` names: `-`, a file, a folder or a glob. A path that exists is taken
/// literally. Nothing below `out` is an input.
///
/// # Errors
/// There is nothing, nothing of a kind that is read, or a file is not what its name says.
pub fn open_input(given: &Path, out: &Path) -> Result<Opened, SourceError> {
    if given == Path::new(NAME) {
        return Ok(Opened {
            input: Arc::new(Stream::stdin()?),
            ignored: Vec::new(),
            csv: None,
        });
    }
    let mut found = Found {
        out: out.canonicalize().ok(),
        ..Found::default()
    };
    match fs::metadata(given) {
        Ok(meta) if meta.is_dir() => found.folder(given)?,
        Ok(_) => match Kind::of(given) {
            Some(kind) => found.files.push((given.to_owned(), kind)),
            None => {
                let problem =
                    format!("its name ends in none of {READ}; anything else can be piped in as JSONL: `-`");
                return Err(SourceError::unreadable(given, problem));
            }
        },
        Err(error) => match given.to_str().filter(|text| text.contains(['*', '?', '['])) {
            Some(pattern) => found.glob(pattern)?,
            None => return Err(SourceError::io(given)(error)),
        },
    }
    let Found {
        mut files,
        mut ignored,
        ..
    } = found;
    files.sort_by(|(a, _), (b, _)| bytes(a).cmp(bytes(b)));
    ignored.sort_by(|a, b| bytes(a).cmp(bytes(b)));
    let csv = files
        .iter()
        .find(|(_, kind)| matches!(kind.format, Format::Csv(_)));
    let csv = csv.map(|(path, _)| path.clone());
    let files = files.into_iter().map(|(path, kind)| InputFile::check(path, kind));
    Ok(Opened {
        input: Arc::new(Files(files.collect::<Result<_, _>>()?)),
        ignored,
        csv,
    })
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Files that were found on the way.
#[derive(Default)]
struct Found {
    /// The folder of outputs, without links.
    out: Option<PathBuf>,
    files: Vec<(PathBuf, Kind)>,
    ignored: Vec<PathBuf>,
}

impl Found {
    /// The files of a folder and those below it.
    fn folder(&mut self, dir: &Path) -> Result<(), SourceError> {
        if is_run(dir) {
            let message = format!(
                "{} is the OUT of a run; give one of its folders, such as {}",
                dir.display(),
                dir.join("flattened").display()
            );
            return Err(SourceError::Nothing { message });
        }
        self.walk(dir)?;
        if self.files.is_empty() {
            let message = format!("no file in {} ends in one of {READ}", dir.display());
            return Err(SourceError::Nothing { message });
        }
        Ok(())
    }

    fn walk(&mut self, dir: &Path) -> Result<(), SourceError> {
        let error = SourceError::io(dir);
        for entry in fs::read_dir(dir).map_err(&error)? {
            let entry = entry.map_err(&error)?;
            let path = entry.path();
            // Markers and what is not finished, by custom.
            if matches!(entry.file_name().as_bytes().first(), Some(b'.' | b'_')) || self.is_out(&path) {
                continue;
            }
            if entry.file_type().map_err(&error)?.is_dir() {
                if is_run(&path) {
                    self.ignored.push(path);
                } else {
                    self.walk(&path)?;
                }
            } else {
                self.file(path);
            }
        }
        Ok(())
    }

    /// The files that match a glob.
    fn glob(&mut self, pattern: &str) -> Result<(), SourceError> {
        let options = MatchOptions {
            require_literal_leading_dot: true,
            require_literal_separator: true,
            ..MatchOptions::default()
        };
        let paths = glob::glob_with(pattern, options).map_err(|error| SourceError::Nothing {
            message: format!("{pattern} is no file, and no glob either: {error}"),
        })?;
        let mut matched = 0;
        for path in paths {
            let path = path.map_err(|error| SourceError::Io {
                path: error.path().to_owned(),
                source: error.into(),
            })?;
            if !self.is_out(&path) {
                matched += 1;
                self.file(path);
            }
        }
        if self.files.is_empty() {
            let message = match matched {
                0 => format!("no file matches {pattern}"),
                _ => format!("{pattern} matches no file that ends in one of {READ}"),
            };
            return Err(SourceError::Nothing { message });
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf) {
        match Kind::of(&path).filter(|_| !path.is_dir()) {
            Some(kind) => self.files.push((path, kind)),
            None => self.ignored.push(path),
        }
    }

    /// True for what lies in the folder of outputs.
    fn is_out(&self, path: &Path) -> bool {
        let Some(out) = &self.out else {
            return false;
        };
        path.canonicalize().is_ok_and(|path| path.starts_with(out))
    }
}

/// True for the folder OUT of a run.
fn is_run(dir: &Path) -> bool {
    dir.join(OsStr::new(".chainette")).is_dir()
}

/// The input at a path, found when it is first asked for: for library users, see [`open_input`].
pub struct AtPath {
    given: PathBuf,
    out: PathBuf,
    opened: OnceLock<Arc<dyn Input>>,
}

impl AtPath {
    /// The input that `given` names, for a run into `out`.
    pub fn new(given: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        Self {
            given: given.into(),
            out: out.into(),
            opened: OnceLock::new(),
        }
    }

    fn get(&self) -> Result<&Arc<dyn Input>, SourceError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let opened = open_input(&self.given, &self.out)?.input;
        Ok(self.opened.get_or_init(|| opened))
    }
}

impl Input for AtPath {
    fn fingerprints(&self) -> Result<Vec<Fingerprint>, SourceError> {
        self.get()?.fingerprints()
    }

    fn total(&self) -> Option<u64> {
        self.get().ok()?.total()
    }

    fn count(&self, stop: &std::sync::atomic::AtomicBool) -> Option<u64> {
        self.get().ok()?.count(stop)
    }

    fn open(&self, start: Position, limit: Option<u64>) -> Result<Box<dyn Source>, SourceError> {
        self.get()?.open(start, limit)
    }
}
