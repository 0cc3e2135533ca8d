//! The binary as a user runs it: start, kill, wait, and the tree it leaves.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::columns;

/// No test run takes longer; one that does hangs.
const TOO_LONG: Duration = Duration::from_secs(300);

/// How a run ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code; none when it was killed.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Starts `chainette ARGS` in a folder; stdout and stderr go to files there. `CHAINETTE_BIN` names another binary.
pub fn spawn(dir: &Path, args: &[&str]) -> Child {
    spawn_on(dir, args, Stdio::null())
}

/// The same with something on stdin.
pub fn spawn_on(dir: &Path, args: &[&str], stdin: Stdio) -> Child {
    spawn_with(dir, args, stdin, &[])
}

/// The same with variables in its environment.
pub fn spawn_with(dir: &Path, args: &[&str], stdin: Stdio, env: &[(&str, String)]) -> Child {
    let file = |name: &str| Stdio::from(File::create(dir.join(name)).expect("a file can be made"));
    let binary = std::env::var_os("CHAINETTE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_chainette").into());
    let mut command = Command::new(binary);
    command.args(args).current_dir(dir).stdin(stdin);
    command.stdout(file("stdout.txt")).stderr(file("stderr.txt"));
    for name in [
        "CHAINETTE_LOG",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ] {
        command.env_remove(name);
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command.env("NO_COLOR", "1").spawn().expect("the binary starts")
}

/// Waits for the end; panics when there is none.
pub fn wait(dir: &Path, child: &mut Child) -> Ran {
    let start = Instant::now();
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            let code = status.code();
            return Ran {
                code,
                stdout: read("stdout.txt"),
                stderr: read("stderr.txt"),
            };
        }
        if start.elapsed() > TOO_LONG {
            kill(child);
            panic!(
                "chainette did not end within {TOO_LONG:?}; stderr:\n{}",
                read("stderr.txt")
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until something is reached; false when the run ends before.
pub fn progress(child: &mut Child, reached: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !reached() {
        if child.try_wait().expect("a child can be waited for").is_some() {
            return false;
        }
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no progress for two minutes"
        );
        std::thread::sleep(Duration::from_micros(300));
    }
    true
}

/// Runs `chainette ARGS` in a folder to its end.
pub fn run(dir: &Path, args: &[&str]) -> Ran {
    wait(dir, &mut spawn(dir, args))
}

/// `kill -9`, and the child reaped.
pub fn kill(child: &mut Child) {
    let _it_may_be_dead = child.kill();
    child.wait().expect("a killed child can be reaped");
}

/// Every file of a finished OUT but `.chainette/` and `metadata.json`, by its path below OUT; Parquet as the rows
/// it holds.
pub fn tree(out: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    collect(out, "", &mut files);
    files.remove("metadata.json");
    files
}

fn collect(dir: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).expect("OUT can be listed") {
        let entry = entry.expect("OUT can be listed");
        let name = entry.file_name().into_string().expect("a UTF-8 name");
        let path = format!("{prefix}{name}");
        if entry.path().is_dir() {
            if path != ".chainette" {
                collect(&entry.path(), &format!("{path}/"), files);
            }
            continue;
        }
        assert!(!name.ends_with(".part"), "{path} was left open");
        let text = match name.ends_with(".parquet") {
            true => columns::rows(&entry.path()),
            false => fs::read_to_string(entry.path()).expect("UTF-8 text"),
        };
        files.insert(path, text);
    }
}

/// Says where two trees differ first; none when they are one.
pub fn difference(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Option<String> {
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    if names(expected) != names(found) {
        return Some(format!(
            "files differ\nexpected {:?}\nfound    {:?}",
            names(expected),
            names(found)
        ));
    }
    let (name, (old, new)) = expected
        .iter()
        .map(|(name, text)| (name, (text, &found[name])))
        .find(|(_, (old, new))| old != new)?;
    let none = "(nothing)";
    let lines = old.lines().chain([none]).zip(new.lines().chain([none]));
    let (number, (old, new)) = lines.enumerate().find(|(_, (old, new))| old != new)?;
    Some(format!(
        "{name}, line {}\nexpected {old}\nfound    {new}",
        number + 1
    ))
}
