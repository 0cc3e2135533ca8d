//! A stand-in of the model hub, as `HF_ENDPOINT`: one repository, with the faults that a network has.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

/// The repository that is there.
pub const REPO: &str = "org/repo";
/// Its commit.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with a file.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is closed after so many bytes of each answer, so many times.
    Cut { after: usize, times: usize },
    /// No byte behind the first so many ever comes, so many times.
    Stuck { at: usize, times: usize },
    /// Other bytes come, as many.
    Wrong,
    /// `Range` is not heeded: everything comes, always.
    Whole,
    /// This status, so many times.
    Status(u16, usize),
    /// The etag is no name of a content.
    Etag(&'static str),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: HashMap<String, Fault>,
    token: Option<String>,
    log: Vec<String>,
}

/// The hub. It ends with the process.
#[derive(Clone)]
pub struct Hub {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl Hub {
    pub fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let hub = Self {
            state: Arc::default(),
            port,
        };
        for (name, content) in files {
            hub.locked().files.insert((*name).to_owned(), content.to_vec());
        }
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let hub = serving.clone();
                std::thread::spawn(move || hub.serve(&stream));
            }
        });
        hub
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn fault(&self, file: &str, fault: Fault) {
        self.locked().faults.insert(file.to_owned(), fault);
    }

    pub fn heal(&self) {
        self.locked().faults.clear();
    }

    /// Who does not bring this token gets 401.
    pub fn lock(&self, token: &str) {
        self.locked().token = Some(token.to_owned());
    }

    /// The first lines of requests so far, with the range; forgotten then.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.locked().log)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                match reader.read_line(&mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) if line.trim().is_empty() => break,
                    Ok(_) => lines.push(line.trim().to_owned()),
                }
            }
            let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else {
                return;
            };
            let header = |name: &str| {
                lines.iter().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            let range = header("range");
            self.locked()
                .log
                .push(format!("{path} {}", range.as_deref().unwrap_or("")));
            let keep = self.answer(path, range.as_deref(), header("authorization"), stream);
            if !keep {
                let _gone = stream.shutdown(Shutdown::Both);
                let _rest = reader.read(&mut [0; 1]);
                return;
            }
        }
    }

    /// Answers one request; false closes the connection.
    fn answer(&self, path: &str, range: Option<&str>, auth: Option<String>, mut out: &TcpStream) -> bool {
        let mut state = self.locked();
        let mut send = |status: u16, headers: &str, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n",
                body.len()
            );
            out.write_all(head.as_bytes()).is_ok() && out.write_all(body).is_ok()
        };
        if let Some(token) = &state.token
            && auth != Some(format!("Bearer {token}"))
        {
            return send(401, "", b"Invalid username or password.");
        }
        if path.starts_with(&format!("/api/models/{REPO}/revision/")) {
            let siblings: Vec<_> = state
                .files
                .keys()
                .map(|name| json!({"rfilename": name}))
                .collect();
            let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return send(200, "content-type: application/json\r\n", body.as_bytes());
        }
        let file = path
            .strip_prefix(&format!("/{REPO}/resolve/"))
            .and_then(|rest| rest.split_once('/'))
            .map(|(_, file)| file.to_owned());
        let content = file.as_ref().and_then(|file| state.files.get(file).cloned());
        let (Some(file), Some(content)) = (file, content) else {
            return send(404, "", b"Entry not found");
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, &content);
        let mut etag: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        if !file.ends_with(".gguf") && !file.ends_with(".safetensors") {
            // Small files are named as git names them.
            etag.truncate(40);
        }
        let total = content.len();
        let mut served = content;
        let mut cut = None;
        let mut from = range
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
            .unwrap_or(0_usize);
        let probe = range.is_some_and(|range| range.ends_with("-0"));
        match state.faults.get_mut(&file) {
            Some(Fault::Cut { after, times }) if !probe && *times > 0 => {
                *times -= 1;
                cut = Some(*after);
            }
            Some(Fault::Stuck { at, times }) if !probe && *times > 0 => {
                *times -= 1;
                cut = Some(at.saturating_sub(from));
            }
            Some(Fault::Wrong) => served = served.iter().map(|byte| !byte).collect(),
            Some(Fault::Whole) if !probe => from = 0,
            Some(Fault::Status(status, times)) if *times > 0 => {
                *times -= 1;
                let status = *status;
                return send(status, "", b"not now");
            }
            Some(Fault::Etag(other)) => etag = (*other).to_owned(),
            _ => {}
        }
        if from >= total && total > 0 {
            return send(416, &format!("content-range: bytes */{total}\r\n"), b"");
        }
        let end = if probe { from + 1 } else { total };
        let body = &served[from.min(end)..end];
        let headers = format!(
            "etag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes {from}-{}/{total}\r\n",
            end - 1
        );
        match cut {
            None => send(206, &headers, body),
            Some(after) => {
                let head = format!(
                    "HTTP/1.1 206 X\r\ncontent-length: {}\r\n{headers}\r\n",
                    body.len()
                );
                let _sent = out.write_all(head.as_bytes());
                let _sent = out.write_all(&body[..after.min(body.len())]);
                false
            }
        }
    }
}
