//! A place where engines outlive runs: a folder with a state of its own, and nothing left at the end.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::harness::{BINARY, Bench, Ran, until};
use crate::served::fake_engine;

/// The smallest GGUF file there is: a head without anything.
const GGUF: &[u8] = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A folder with a model, a chain, and engines that are kept below it.
pub struct Yard {
    pub bench: Bench,
}

impl Yard {
    /// A chain with one Step on the engine `small`; `fields` are further fields of it, such as `replicas: 2`, and
    /// `flags` those of the fake engine.
    pub fn new(fields: &str, flags: &str) -> Self {
        let bench = Bench::new("", crate::harness::rows(60));
        bench.write("model.gguf", GGUF);
        let yard = Self { bench };
        yard.declare("chain.yaml", &[("small", fields, flags)]);
        yard
    }

    pub fn path(&self) -> &Path {
        self.bench.dir.path()
    }

    /// Writes a chain whose only Step is on the first of these engines.
    pub fn declare(&self, file: &str, engines: &[(&str, &str, &str)]) {
        let mut text = "name: warm\nengines:\n".to_owned();
        for (name, fields, flags) in engines {
            let args = format!(
                "{flags} --log {0}/asked-{name} --pid-file {0}/pids-{name}",
                self.path().display()
            );
            text += &format!(
                "  {name}: {{backend: llamacpp, model: ./model.gguf, binary: '{}', memory: {{ram: 1MiB}}, \
                 env: {{FAKE_ENGINE_ARGS: '{args}'}}, {fields}}}\n",
                fake_engine().display()
            );
        }
        let first = engines.first().map_or("small", |engine| engine.0);
        text += &format!("steps:\n  - {{id: s, engine: {first}, user_prompt: 'say {{{{ a }}}}'}}\n");
        self.bench.write(file, text);
    }

    /// `chainette ARGS` in the folder, with its own state.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(self.path()).args(args).env("NO_COLOR", "1");
        command
            .env("XDG_STATE_HOME", self.path().join("state"))
            .env("HOME", self.path());
        command.env_remove("CHAINETTE_LOG").env_remove("RUST_BACKTRACE");
        command
    }

    pub fn invoke(&self, args: &[&str]) -> Ran {
        let output = self
            .command(args)
            .stdin(Stdio::null())
            .output()
            .expect("the command starts");
        self.bench.ran(&output)
    }

    /// The same, which must go well.
    #[track_caller]
    pub fn good(&self, args: &[&str]) -> Ran {
        let ran = self.invoke(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.stdout, ran.stderr);
        ran
    }

    /// Starts one whose stderr can be read.
    pub fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command.spawn().expect("the command starts")
    }

    /// Where the files of engines are.
    pub fn engines(&self) -> PathBuf {
        self.path().join("state/chainette/engines")
    }

    /// `engine status --json`, one entry per server.
    pub fn status(&self) -> Vec<Value> {
        let ran = self.good(&["engine", "status", "--json"]);
        let status: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        status["engines"].as_array().expect("a list").clone()
    }

    /// The handoff of a server, if there is one.
    pub fn handoff(&self, label: &str) -> Option<Value> {
        let text = std::fs::read(self.engines().join(format!("{label}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The process that keeps a pool.
    pub fn keeper(&self, pool: &str) -> u32 {
        let text = std::fs::read(self.engines().join(format!("{pool}.pool"))).expect("the pool is up");
        let note: Value = serde_json::from_slice(&text).expect("JSON");
        pid(&note["pid"])
    }

    /// All servers of a pool are ready, and whoever keeps them has said so.
    pub fn is_up(&self, pool: &str) -> bool {
        let text = std::fs::read(self.engines().join(format!("{pool}.pool"))).unwrap_or_default();
        serde_json::from_slice(&text).is_ok_and(|note: Value| note["stage"] == "up")
    }

    /// How many servers of an engine were started so far.
    pub fn started(&self, engine: &str) -> usize {
        let pids = std::fs::read_to_string(self.path().join(format!("pids-{engine}")));
        pids.unwrap_or_default().lines().count()
    }

    /// The requests that came to servers of an engine, by digest.
    pub fn asked(&self, engine: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.path().join(format!("asked-{engine}")));
        let asked = log.unwrap_or_default();
        asked
            .lines()
            .filter_map(|line| line.strip_prefix("A "))
            .map(str::to_owned)
            .collect()
    }

    /// Everything of the engines that should not be there any more: files but logs, and processes.
    pub fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.engines()).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut left: Vec<String> = names.filter(|name| !name.ends_with(".log")).collect();
        left.extend(self.processes());
        left
    }

    /// Every process that was started in this folder: it has its name on its command line or in its environment.
    pub fn processes(&self) -> Vec<String> {
        let mark = self.path().to_string_lossy().into_owned();
        let has = |path: String| {
            std::fs::read(path).is_ok_and(|text| memchr::memmem::find(&text, mark.as_bytes()).is_some())
        };
        let all = std::fs::read_dir("/proc").expect("/proc").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let ours =
            pids.filter(|pid| has(format!("/proc/{pid}/cmdline")) || has(format!("/proc/{pid}/environ")));
        ours.filter(|pid| lives(*pid))
            .map(|pid| format!("process {pid}: {}", cmdline(pid)))
            .collect()
    }

    /// Waits until nothing is left.
    #[track_caller]
    pub fn until_nothing_is_left(&self) {
        until("end of everything", || self.left().is_empty());
    }
}

fn cmdline(pid: u32) -> String {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).replace('\0', " ")
}

/// True for a process that is there, and not only what is left of one.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| {
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        !state.starts_with(['Z', 'X'])
    })
}

/// Kills a process, and waits until it is dead.
#[track_caller]
pub fn kill(pid: u32) {
    send(pid, nix::sys::signal::Signal::SIGKILL);
    until("death", || !lives(pid));
}

/// A PID out of JSON.
#[track_caller]
pub fn pid(value: &Value) -> u32 {
    u32::try_from(value.as_u64().expect("a PID")).expect("a PID")
}

/// Sends a signal.
pub fn send(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a PID"));
    // It may have ended.
    let _gone = nix::sys::signal::kill(pid, signal);
}

impl Drop for Yard {
    fn drop(&mut self) {
        let _down = self.command(&["engine", "down", "--all"]).output();
        for line in self.processes() {
            let pid = line.split([' ', ':']).nth(1).and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid {
                send(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
    }
}

/// What differs from run to run taken out: ports, PIDs, folders, times, widths.
macro_rules! assert_told {
    ($name:expr, $text:expr) => {
        insta::with_settings!({filters => vec![
            (r"/[^\s`]*/examples/fake_engine", "[binary]"),
            (r"/tmp/\.tmp\w+", "[dir]"),
            (r"127\.0\.0\.1:\d+", "127.0.0.1:[port]"),
            (r"(\[port\]) +\d{2,} ", "$1  [pid] "),
            (r"port \d+", "port [port]"),
            (r"\d+ s  ", "[time]  "),
            (r"[0-9a-f]{64}", "[digest]"),
            (r#""pid": \d+"#, r#""pid": "[pid]""#),
            (r#""uptime_s": \d+"#, r#""uptime_s": "[time]""#),
            (r"  +", "  "),
        ]}, { insta::assert_snapshot!($name, $text) })
    };
}
pub(crate) use assert_told;
