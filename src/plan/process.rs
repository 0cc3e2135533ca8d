//! Applies that run in processes of their own: which program, and whether it is there.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::spec::{Code, Problems, ProcessSpec, Text};

/// An Apply that long-lived processes run.
#[derive(Clone, Debug)]
pub struct ProcessPlan {
    /// What each process runs.
    pub program: Program,
    /// The working directory: the chain file's folder.
    pub folder: PathBuf,
    /// How many processes.
    pub workers: usize,
    /// How long one row may take.
    pub timeout: Duration,
}

/// What a process runs.
#[derive(Clone, Debug)]
pub enum Program {
    /// A function in a Python file.
    Python {
        /// The interpreter.
        interpreter: PathBuf,
        /// The file.
        file: PathBuf,
        /// The function in it.
        function: String,
        /// `file.py:function` as the chain says it.
        source: String,
        /// BLAKE3 of the file, hexadecimal: rows of two versions of a function are no one run.
        digest: String,
    },
    /// A program that answers JSON lines.
    Command {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<String>,
        /// The program as the chain names it.
        source: String,
        /// BLAKE3, hexadecimal, of each word that names a file below the chain file's folder or beside it.
        digests: Vec<(String, String)>,
    },
}

/// Plans a Python function; `base` is the chain file's folder.
pub(super) fn python(
    function: &Text,
    interpreter: Option<&Text>,
    process: ProcessSpec,
    base: &Path,
    problems: &mut Problems,
) -> Option<ProcessPlan> {
    let folder = absolute(base);
    let interpreter = match (
        interpreter,
        std::env::var_os("VIRTUAL_ENV").filter(|v| !v.is_empty()),
    ) {
        (Some(named), _) => find(named, &folder, problems),
        (None, Some(env)) => {
            let path = Path::new(&env).join("bin/python");
            let named = Text {
                value: path.to_string_lossy().into_owned(),
                span: function.span,
            };
            find(&named, &folder, problems)
        }
        (None, None) => {
            let named = Text {
                value: "python3".to_owned(),
                span: function.span,
            };
            find(&named, &folder, problems)
        }
    };
    let (name, of) = function.value.rsplit_once(':')?;
    let file = folder.join(name);
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) => {
            let reason = reason(&error);
            problems
                .add(Code::File, function.span, format!("{name}: {reason}"))
                .help(format!(
                    "Python files are looked up from the chain file's folder, {}",
                    shown(base)
                ));
            return None;
        }
    };
    Some(ProcessPlan {
        program: Program::Python {
            interpreter: interpreter?,
            file,
            function: of.to_owned(),
            source: function.value.clone(),
            digest: blake3::hash(&text).to_hex().to_string(),
        },
        folder,
        workers: process.workers,
        timeout: process.timeout,
    })
}

/// Plans a command; `base` is the chain file's folder.
pub(super) fn command(
    program: &Text,
    arguments: &[String],
    process: ProcessSpec,
    base: &Path,
    problems: &mut Problems,
) -> Option<ProcessPlan> {
    let folder = absolute(base);
    let named = program.value.contains('/').then_some(&program.value);
    let words = named.into_iter().chain(arguments);
    let digests = words.filter_map(|word| Some((word.clone(), digest(&folder.join(word))?)));
    Some(ProcessPlan {
        program: Program::Command {
            program: find(program, &folder, problems)?,
            arguments: arguments.to_vec(),
            source: program.value.clone(),
            digests: digests.collect(),
        },
        folder,
        workers: process.workers,
        timeout: process.timeout,
    })
}

/// BLAKE3 of a file, hexadecimal; none when there is no such file.
fn digest(path: &Path) -> Option<String> {
    // A pipe would be waited for.
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let mut file = std::fs::File::open(path).ok()?;
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut file, &mut hasher).ok()?;
    Some(hasher.finalize().to_hex().to_string())
}

/// Finds a program: with a slash relative to the chain file, else on `PATH`.
fn find(named: &Text, folder: &Path, problems: &mut Problems) -> Option<PathBuf> {
    let name = named.value.as_str();
    if name.contains('/') {
        let path = folder.join(name);
        let problem = match std::fs::metadata(&path) {
            Err(error) => Some((
                reason(&error),
                "a program with a slash is looked up from the chain file's folder",
            )),
            Ok(meta) if meta.is_dir() => Some(("is a directory".to_owned(), "name a program")),
            Ok(meta) if !is_executable(&meta) => Some((
                "is not executable".to_owned(),
                "make it so with `chmod +x`, or name its interpreter first",
            )),
            Ok(_) => None,
        };
        let Some((problem, help)) = problem else {
            return Some(path);
        };
        problems
            .add(Code::File, named.span, format!("{name}: {problem}"))
            .help(help);
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| absolute(&dir).join(name))
        .find(|file| std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && is_executable(&meta)));
    if found.is_none() && !name.is_empty() {
        let help = if folder.join(name).exists() {
            format!("a file of that name stands beside the chain: write `./{name}`")
        } else {
            "install it, add its folder to PATH, or give its path (with a slash: relative to the chain file)"
                .to_owned()
        };
        problems
            .add(
                Code::File,
                named.span,
                format!("there is no program `{name}` on PATH"),
            )
            .help(help);
    } else if name.is_empty() {
        problems
            .add(Code::BadValue, named.span, "a program must have a name")
            .help("write the program and its arguments as a list: `command: [./tag.sh, --fast]`");
    }
    found
}

fn is_executable(meta: &std::fs::Metadata) -> bool {
    meta.permissions().mode() & 0o111 != 0
}

/// A folder that holds wherever a process is started; a relative one counts from here.
fn absolute(folder: &Path) -> PathBuf {
    let here = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    std::path::absolute(here).unwrap_or_else(|_| here.to_owned())
}

fn shown(base: &Path) -> String {
    if base.as_os_str().is_empty() {
        ".".to_owned()
    } else {
        base.display().to_string()
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
