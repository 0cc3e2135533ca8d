//! Servers under their guards: the fake engine, started through the library, with the real command as guard.

mod ends;
mod hanging;
mod kills;
mod pure;
mod starts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainette::engine::provision::{Mode, Need, PreparedEngine};
use chainette::engine::supervise::{Failed, Policy, Ready, Supervisor};
use chainette::event::{Event, EventSender};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::harness::{BINARY, listing, until};

/// The fake engine's program.
fn fake_engine() -> PathBuf {
    let path = Path::new(BINARY).with_file_name("examples").join("fake_engine");
    assert!(path.exists(), "cargo build --examples makes {}", path.display());
    path
}

/// A folder for servers, and their supervisor. What is left when a test fails is ended.
struct Yard {
    dir: TempDir,
    supervisor: Supervisor,
    events: Arc<Mutex<Vec<Event>>>,
    /// Stands in the command line of everything that is started here, and nowhere else.
    nap: String,
}

impl Yard {
    fn new() -> Self {
        Self::with(Policy::default())
    }

    fn with(policy: Policy) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a temporary folder");
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let sender = EventSender::new(move |event| heard.lock().expect("no panic").push(event));
        let supervisor =
            Supervisor::new(dir.path().join("engines"), policy, sender).with_guard(BINARY.into());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let nap = format!("{}{count:03}.5", 1_000_000 + std::process::id());
        Self {
            dir,
            supervisor,
            events,
            nap,
        }
    }

    /// A fake engine that can be started.
    fn engine(&self, flags: &[&str]) -> PreparedEngine {
        let flags = [&["--nap", &self.nap], flags].concat();
        PreparedEngine {
            engine: "e".to_owned(),
            replica: 0,
            backend: "llamacpp".to_owned(),
            mode: Mode::Binary,
            binary: Some(fake_engine()),
            lead: Vec::new(),
            flags: flags.into_iter().map(str::to_owned).collect(),
            env: Vec::new(),
            secrets: Vec::new(),
            host: "127.0.0.1".to_owned(),
            port: 0,
            endpoint: None,
            model_id: "m".to_owned(),
            model_path: None,
            model_digest: None,
            device_mask: None,
            slots: None,
            need: Need::default(),
            startup_timeout: Duration::from_secs(120),
            spec_digest: "digest".to_owned(),
            notes: Vec::new(),
        }
    }

    async fn try_start(&self, prepared: PreparedEngine) -> Result<Ready, Failed> {
        self.supervisor.start(prepared, &CancellationToken::new()).await
    }

    async fn start(&self, flags: &[&str]) -> Ready {
        let ready = self.try_start(self.engine(flags)).await;
        ready.unwrap_or_else(|failed| panic!("{failed}\n{}", failed.log_tail.join("\n")))
    }

    /// The failure of a start.
    async fn fails(&self, prepared: PreparedEngine) -> Failed {
        let failed = self.try_start(prepared).await.expect_err("it cannot start");
        self.assert_nothing_left();
        failed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.supervisor.folder().join(name)
    }

    fn pid_file(&self) -> Value {
        let text = std::fs::read_to_string(self.path("e-0.pid")).expect("there is a PID file");
        serde_json::from_str(&text).expect("JSON")
    }

    fn guard(&self) -> u32 {
        self.pid_file()["guard"]["pid"].as_u64().expect("a PID") as u32
    }

    /// The processes that were started here.
    fn processes(&self) -> Vec<u32> {
        with_argument(&self.nap)
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no panic").clone()
    }

    /// Names in the folder, but logs.
    fn files(&self) -> BTreeSet<String> {
        let mut files = listing(self.supervisor.folder());
        files.retain(|name| !name.contains(".log"));
        files
    }

    /// No process, PID file or handoff remains.
    #[track_caller]
    fn assert_nothing_left(&self) {
        // A process that was killed may take a moment to be gone on a busy machine.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !self.processes().is_empty() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(self.processes(), [0_u32; 0], "processes");
        assert_eq!(self.files(), BTreeSet::new());
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid);
        }
    }
}

/// Processes with this word in their command line.
fn with_argument(word: &str) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0)
            .any(|argument| argument == word.as_bytes())
    };
    pids.filter(has).collect()
}

/// `kill -9`.
fn kill(pid: u32) {
    let _gone = Command::new("kill").args(["-9", &pid.to_string()]).status();
}

/// True while there is such a process, or what is left of one.
fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The port of a server.
fn port_of(url: &str) -> u16 {
    url.rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("a URL with a port")
}

/// True when nobody listens there.
fn is_free(port: u16) -> bool {
    std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Asks a server something, from another thread, whatever comes of it.
fn ask(url: &str, prompt: &str) -> std::thread::JoinHandle<()> {
    use std::io::{Read as _, Write as _};
    let body =
        serde_json::json!({"model": "m", "messages": [{"role": "user", "content": prompt}]}).to_string();
    let port = port_of(url);
    std::thread::spawn(move || {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else {
            return;
        };
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _sent = stream.write_all((head + &body).as_bytes());
        let _answer = stream.read_to_end(&mut Vec::new());
    })
}

/// Requests that a server has in flight.
fn in_flight(url: &str) -> u64 {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port_of(url))).expect("it listens");
    stream
        .write_all(b"GET /stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let body = text.split("\r\n\r\n").nth(1).expect("a body");
    serde_json::from_str::<Value>(body).expect("JSON")["in_flight"]
        .as_u64()
        .expect("a number")
}
