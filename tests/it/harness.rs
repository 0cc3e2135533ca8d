//! Runs the command on small chains and reads back what it wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::server::{Answer, TestServer};
use crate::verify::proven;

/// The command.
pub const BINARY: &str = env!("CARGO_BIN_EXE_chainette");
/// A chain that passes its rows on.
pub const COPY: &str = "name: copy\nsteps:\n  - {id: n, apply: {jq: .}}\n";
/// A chain that fails rows with `bad`.
pub const PICKY: &str =
    "name: picky\nsteps:\n  - {id: n, apply: {jq: 'if .bad then error(\"no\") else . end'}}\n";

/// A folder with a chain, an input and an OUT.
pub struct Bench {
    pub dir: Rc<TempDir>,
}

/// What an invocation did.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub out: PathBuf,
    /// The folder lives as long as somebody may look into it.
    _dir: Rc<TempDir>,
}

impl Bench {
    pub fn new(chain: &str, input: impl AsRef<[u8]>) -> Self {
        let dir = Rc::new(tempfile::tempdir().expect("a temporary folder"));
        let bench = Self { dir };
        bench.write("chain.yaml", chain);
        bench.write("in.jsonl", input);
        bench
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.dir.path().join(name), content).expect("the folder is writable");
    }

    /// `chainette run chain.yaml in.jsonl out` with further arguments, in the folder.
    pub fn command(&self, extra: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chainette"));
        command
            .current_dir(self.dir.path())
            .args(["run", "chain.yaml", "in.jsonl", "out"])
            .args(extra);
        command.env_remove("RUST_BACKTRACE").env("NO_COLOR", "1");
        command
    }

    /// Runs to the end; a run that ended is proven, whatever the test is about.
    pub fn run(&self, extra: &[&str]) -> Ran {
        let output = self.command(extra).output().expect("the command starts");
        let ran = self.ran(&output);
        let ended = matches!(ran.code, 0 | 3) && !ran.stderr.contains("finished already");
        if ended && ran.out.join("metadata.json").exists() {
            proven(&ran.out).unwrap_or_else(|error| panic!("run {extra:?}: {error}"));
        }
        ran
    }

    /// `chainette ARGS` in the folder.
    pub fn invoke(&self, args: &[&str]) -> Ran {
        let output = command_in(self.dir.path(), args).output();
        self.ran(&output.expect("the command starts"))
    }

    /// Starts `run` with a stderr that can be read.
    pub fn spawn(&self, extra: &[&str]) -> Child {
        let mut command = self.command(extra);
        command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts")
    }

    /// What stands in OUT, whoever wrote it.
    pub fn opened(&self) -> Ran {
        Ran {
            code: 0,
            stdout: String::new(),
            stderr: String::new(),
            out: self.dir.path().join("out"),
            _dir: self.dir.clone(),
        }
    }

    pub fn ran(&self, output: &Output) -> Ran {
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            out: self.dir.path().join("out"),
            _dir: self.dir.clone(),
        }
    }
}

/// Runs a chain over an input, once.
pub fn run(chain: &str, input: impl AsRef<[u8]>) -> (Bench, Ran) {
    let bench = Bench::new(chain, input);
    let ran = bench.run(&[]);
    (bench, ran)
}

impl Ran {
    /// The lines of all shards of a folder.
    pub fn lines(&self, folder: &str) -> Vec<String> {
        let mut shards: Vec<PathBuf> = match fs::read_dir(self.out.join(folder)) {
            Ok(entries) => entries
                .map(|entry| entry.expect("a folder entry").path())
                .collect(),
            Err(_) => Vec::new(),
        };
        shards.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
        let read = |path: &PathBuf| fs::read_to_string(path).expect("shards are UTF-8");
        shards
            .iter()
            .map(read)
            .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }

    pub fn values(&self, folder: &str) -> Vec<Value> {
        self.lines(folder)
            .iter()
            .map(|line| serde_json::from_str(line).expect("lines are JSON"))
            .collect()
    }

    pub fn errors(&self) -> Vec<Value> {
        self.values("errors")
    }

    /// The only line of errors/.
    pub fn error(&self) -> Value {
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "one error expected: {errors:?}\n{}", self.stderr);
        errors.into_iter().next().expect("counted above")
    }

    pub fn metadata(&self) -> Value {
        let text = fs::read_to_string(self.out.join("metadata.json")).expect("metadata.json is there");
        serde_json::from_str(&text).expect("metadata.json is JSON")
    }

    /// A node's counts as `rows/emitted/filtered/skipped/nulled/failed`, checked to add up.
    pub fn fates(&self, node: &str) -> String {
        let counts = &self.metadata()["nodes"][node];
        let names = ["rows", "emitted", "filtered", "skipped", "nulled", "failed"];
        let counts = names.map(|name| counts[name].as_u64().expect(name));
        assert_eq!(
            counts[0],
            counts[1..].iter().sum::<u64>(),
            "the fates of {node} do not add up"
        );
        counts.map(|n| n.to_string()).join("/")
    }
}

/// All files below a folder with their bytes, but private ones and the changing part of the metadata.
pub fn tree(out: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).expect("the folder is there") {
            let path = entry.expect("a folder entry").path();
            let name = path
                .strip_prefix(root)
                .expect("below the root")
                .to_string_lossy()
                .into_owned();
            if name == ".chainette" {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, files);
                continue;
            }
            let mut bytes = fs::read(&path).expect("the file is readable");
            if name == "metadata.json" {
                let mut metadata: Value = serde_json::from_slice(&bytes).expect("metadata.json is JSON");
                let fields = metadata.as_object_mut().expect("metadata.json is an object");
                for changing in ["run_id", "versions", "timings"] {
                    fields.remove(changing).expect(changing);
                }
                bytes = metadata.to_string().into_bytes();
            }
            files.insert(name, bytes);
        }
    }
    let mut files = BTreeMap::new();
    walk(out, out, &mut files);
    files
}

/// `chainette ARGS` in a folder.
fn command_in(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.current_dir(dir).args(args).env("NO_COLOR", "1");
    command.env_remove("CHAINETTE_LOG").env_remove("RUST_BACKTRACE");
    command
}

/// `chainette ARGS` in a folder: exit code, stdout, stderr.
pub fn invoke(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = command_in(dir, args).output().expect("the command starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Rows `{"a": n}`.
pub fn rows(n: usize) -> String {
    (0..n).map(|n| format!("{{\"a\":{n}}}\n")).collect()
}

/// Fails with the first file that differs, and where, instead of all bytes of both.
#[track_caller]
pub fn assert_same(expected: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>) {
    let text = |files: &BTreeMap<String, Vec<u8>>| {
        let texts = files.iter();
        let texts = texts.map(|(name, bytes)| (name.clone(), String::from_utf8_lossy(bytes).into_owned()));
        texts.collect::<BTreeMap<_, _>>()
    };
    if expected != found {
        let difference = crate::cli::difference(&text(expected), &text(found));
        panic!(
            "{}",
            difference.unwrap_or_else(|| "bytes that are no text differ".into())
        );
    }
}

/// Runs into another folder and gives its tree.
pub fn tree_of(bench: &Bench, out: &str, extra: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let ran = bench.invoke(&[&["run", "chain.yaml", "in.jsonl", out], extra].concat());
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    tree(&bench.dir.path().join(out))
}

/// Every file and folder with its bytes, private ones too; only the lock may be touched.
pub fn everything(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            let bytes = if path.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).expect("a file")
            };
            if !path.ends_with(".chainette/lock") {
                found.insert(path.display().to_string(), bytes);
            }
        }
    }
    found
}

/// Sends a signal, `-INT` say.
pub fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(done.expect("kill starts").success());
}

/// Waits for what can be seen.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no {what} within two minutes"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of a process, or a panic after `limit`.
pub fn ends_within(child: &mut Child, limit: Duration) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code().unwrap_or(-1);
        }
        if start.elapsed() > limit {
            child.kill().expect("a child can be killed");
            let _reaped = child.wait();
            panic!("it did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The rest of what a child says.
pub fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    let pipe = child.stderr.as_mut().expect("stderr is piped");
    pipe.read_to_string(&mut text).expect("stderr is UTF-8");
    text
}

/// Two Steps: `first` asks for the text, `second` for what first said.
pub fn two_steps(server: &TestServer) -> Value {
    json!({
        "name": "two", "vars": {"tone": "kind"},
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 4}},
        "steps": [
            {"id": "first", "engine": "e", "user_prompt": "say {{ a }}"},
            {"id": "second", "engine": "e", "user_prompt": "{{ vars.tone }}: {{ first.text }}"},
        ],
    })
}

/// A server that says what it heard.
pub fn echo() -> TestServer {
    TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())))
}

/// A folder with files.
pub fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in files {
        fs::write(dir.path().join(name), content).expect("the folder is writable");
    }
    dir
}

/// The names in a folder.
pub fn listing(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("the folder is there");
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

/// Copies a folder with all that is in it; of one that is not there comes an empty one.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    let Ok(entries) = fs::read_dir(from) else { return };
    for entry in entries {
        let path = entry.expect("a folder entry").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a file can be copied");
        }
    }
}

/// A stderr with times, speeds and process ids taken out.
macro_rules! assert_stderr {
    ($text:expr) => {
        insta::with_settings!({filters => vec![
            (r"\d+\.\d s( \([\d,]+/s\))?", "[time]"),
            (r"(?m) +[\d.]+ (ns|µs|ms|s) +±.*$", "  [times]"),
            (r"PID \d+", "PID [pid]"),
            (r"/tmp/\.tmp\w+", "[dir]"),
        ]}, { insta::assert_snapshot!($text) })
    };
}
pub(crate) use assert_stderr;
