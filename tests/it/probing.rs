//! `chainette engines`: what each backend is asked, and what is wrong with it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainette::engine::client::probe::{Health, State, probe_as};
use chainette::spec::{Backend, EngineSpec};
use serde_json::{Value, json};

use crate::harness::{BINARY, folder, invoke};

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves pages by path, and remembers what it was asked; 404 for the rest.
struct Pages {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Pages {
    fn new(pages: &[(&str, u16, Value)]) -> Self {
        let pages: Vec<_> = pages
            .iter()
            .map(|(path, code, body)| ((*path).to_owned(), *code, body.clone()))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        // Ends with the test process; it holds nothing but its port.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (pages, log) = (pages.clone(), Arc::clone(&log));
                std::thread::spawn(move || serve(stream, &pages, &log));
            }
        });
        Self { port, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn asked(&self) -> String {
        self.asked.lock().expect("no panic").join("\n")
    }
}

/// One request per connection.
fn serve(stream: TcpStream, pages: &[(String, u16, Value)], log: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(&stream).lines();
    let head: Vec<String> = lines
        .by_ref()
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let path = head.first()?.split(' ').nth(1)?.to_owned();
    log.lock().expect("no panic").push(head.join("\n"));
    let none = (path.clone(), 404, json!({"error": {"message": "no such page"}}));
    let (_, code, body) = pages.iter().find(|(known, ..)| *known == path).unwrap_or(&none);
    let body = match body {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        body => body.to_string(),
    };
    let length = body.len();
    let reply = format!("HTTP/1.1 {code} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    (&stream).write_all(reply.as_bytes()).ok()
}

fn spec(endpoint: String) -> EngineSpec {
    EngineSpec {
        endpoint: Some(endpoint),
        max_reply: 1 << 20,
        engine_wait: PATIENCE,
        ..EngineSpec::new("e", Backend::OpenAi, "qwen")
    }
}

fn ask_within(backend: &str, spec: &EngineSpec, patience: Duration) -> Health {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .expect("a runtime")
        .block_on(probe_as(backend, spec, patience))
}

fn ask(backend: &str, endpoint: String) -> Health {
    ask_within(backend, &spec(endpoint), PATIENCE)
}

fn listed(ids: &[&str]) -> Value {
    json!({"data": ids.iter().map(|id| json!({"id": id})).collect::<Vec<_>>()})
}

#[test]
fn each_backend_is_asked_in_its_own_way() {
    let vllm = [
        ("/health", 200, Value::Null),
        ("/version", 200, json!({"version": "0.32.0"})),
        (
            "/v1/models",
            200,
            json!({"data": [{"id": "qwen", "max_model_len": 1024}]}),
        ),
    ];
    let llamacpp = [
        ("/health", 200, json!({"status": "ok"})),
        (
            "/v1/models",
            200,
            json!({"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]}),
        ),
        (
            "/props",
            200,
            json!({"total_slots": 4, "build_info": "b11434", "default_generation_settings": {"n_ctx": 2048}}),
        ),
    ];
    let tgi = [
        ("/health", 200, Value::Null),
        (
            "/info",
            200,
            json!({"model_id": "org/other", "version": "3.1", "max_total_tokens": 4096, "max_concurrent_requests": 128}),
        ),
    ];
    let ollama = [
        ("/api/version", 200, json!({"version": "0.9"})),
        ("/api/tags", 200, json!({"models": [{"name": "qwen:latest"}]})),
    ];
    let openai = [("/v1/models", 200, listed(&["other", "qwen"]))];
    for (backend, pages, version, slots, context) in [
        ("vllm", &vllm[..], Some("0.32.0"), None, Some(1024)),
        ("llamacpp", &llamacpp[..], Some("b11434"), Some(4), Some(2048)),
        ("tgi", &tgi[..], Some("3.1"), Some(128), Some(4096)),
        ("ollama", &ollama[..], Some("0.9"), None, None),
        ("openai", &openai[..], None, None, None),
    ] {
        let server = Pages::new(pages);
        // Only OpenAI's paths stand below the endpoint; the others find their root.
        let paths: &[&str] = if backend == "openai" {
            &["/v1", "/v1/"]
        } else {
            &["", "/v1", "/v1/"]
        };
        for path in paths {
            let health = ask(backend, server.url(path));
            assert_eq!(health.state, State::Ready, "{backend} at {path:?}: {health:?}");
            assert_eq!(health.version.as_deref(), version, "{backend}");
            assert_eq!((health.slots, health.context), (slots, context), "{backend}");
        }
    }
}

#[test]
fn what_is_wrong_with_an_engine_is_told() {
    let loading = json!({"error": {"message": "Loading model", "type": "unavailable_error"}});
    let state = |backend: &str, pages: &[(&str, u16, Value)], path: &str| {
        let health = ask(backend, Pages::new(pages).url(path));
        (health.state, health.reason.unwrap_or_default())
    };
    let (at, why) = state("openai", &[("/v1/models", 503, loading.clone())], "/v1");
    assert_eq!((at, why.as_str()), (State::Loading, "HTTP 503: Loading model"));
    let (at, _) = state("llamacpp", &[("/health", 503, loading)], "");
    assert_eq!(at, State::Loading);
    let (at, why) = state("openai", &[("/v1/models", 401, Value::Null)], "/v1");
    assert_eq!(
        (at, why.as_str()),
        (State::Unauthorised, "it wants an API key (`api_key_env`)")
    );
    let (at, why) = state(
        "openai",
        &[("/v1/models", 200, listed(&["qwen2", "llama"]))],
        "/v1",
    );
    assert_eq!((at, why.as_str()), (State::ModelUnknown, "did you mean `qwen2`?"));
    let (at, why) = state("openai", &[("/v1/models", 200, json!("<html>"))], "/v1");
    assert_eq!((at, why.as_str()), (State::Unclear, "/models is not JSON"));
    let (at, why) = state(
        "openai",
        &[("/v1/models", 500, json!({"error": "disk \u{1b}[31mgone"}))],
        "/v1",
    );
    assert_eq!(at, State::Unclear);
    assert!(
        why.starts_with("HTTP 500 at /models: disk") && !why.contains('\u{1b}'),
        "{why}"
    );
    // The usual mistakes with `/v1`.
    let (at, why) = state("openai", &[("/v1/models", 200, listed(&["qwen"]))], "");
    assert_eq!(at, State::Unclear);
    assert!(
        why.contains("did you mean `endpoint: http://127.0.0.1:") && why.ends_with("/v1`?"),
        "{why}"
    );
    let (at, why) = state("openai", &[], "/v1");
    assert_eq!(at, State::Unclear);
    assert!(why.contains("check that `endpoint`"), "{why}");
    // llama.cpp takes any name for its one model.
    let one = json!({"data": [{"id": "m.gguf", "owned_by": "llamacpp"}]});
    assert_eq!(
        state("openai", &[("/v1/models", 200, one)], "/v1").0,
        State::Ready
    );
}

#[test]
fn an_engine_that_is_not_there_or_silent_is_unreachable() {
    let gone = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = gone.local_addr().expect("bound").port();
    drop(gone);
    let health = ask("vllm", format!("http://127.0.0.1:{port}/v1"));
    assert_eq!(health.state, State::Unreachable);
    assert_eq!(health.reason.as_deref(), Some("connection refused"));
    // Takes connections (the kernel does) and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}/v1", silent.local_addr().expect("bound"));
    let health = ask_within("openai", &spec(endpoint), Duration::from_millis(200));
    assert_eq!(health.state, State::Unreachable);
    assert_eq!(health.reason.as_deref(), Some("no answer within 200ms"));
}

#[test]
fn the_table_of_engines() {
    let good = Pages::new(&[(
        "/v1/models",
        200,
        json!({"data": [{"id": "qwen", "max_model_len": 2048}]}),
    )]);
    let locked = Pages::new(&[("/v1/models", 401, json!({"error": "bad key sk-very-secret-key"}))]);
    let chain = format!(
        "engines:\n  \
         small: {{backend: openai, model: qwen, endpoint: '{}?token=hidden', concurrency: 4}}\n  \
         keyed: {{backend: openai, model: qwen, endpoint: '{}', api_key_env: MY_KEY, headers: {{X-Team: private-team}}}}\n\
         steps:\n  - {{id: a, engine: small, user_prompt: hi}}\n  - {{id: b, engine: keyed, user_prompt: hi}}\n  \
         - {{id: c, engine: small, user_prompt: hi}}\n",
        good.url("/v1"),
        locked.url("/v1")
    );
    // Engines that no Step asks are shown as well.
    let shared = format!(
        "engines:\n  \
         unset: {{backend: openai, model: qwen, endpoint: '{}', api_key_env: NO_KEY}}\n  \
         own: {{backend: embedded, model: /nowhere/m.gguf}}\n",
        locked.url("/v1")
    );
    // A query is no part of a base URL; it is hidden wherever the endpoint is shown.
    let chain = chain.replace("?token=hidden", "");
    let dir = folder(&[("chain.yaml", &chain), ("shared.yaml", &shared)]);
    let invoke = |args: &[&str]| {
        let output = Command::new(BINARY)
            .current_dir(dir.path())
            .args(["engines", "chain.yaml", "--engines", "shared.yaml"])
            .args(["--timeout", "30s"])
            .args(args)
            .env("MY_KEY", "sk-very-secret-key")
            .env_remove("NO_KEY")
            .output()
            .expect("the command starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), String::new())
        );
        text(&output.stdout)
    };
    let table = invoke(&[]);
    let shown = |text: &str| {
        text.replace(&good.port.to_string(), "11111")
            .replace(&locked.port.to_string(), "22222")
    };
    let columns: Vec<String> = table
        .lines()
        .map(|l| {
            l.split("  ")
                .filter(|c| !c.is_empty())
                .map(str::trim)
                .collect::<Vec<_>>()
                .join(" | ")
        })
        .collect();
    insta::assert_snapshot!("the_table_of_engines", shown(&columns.join("\n")));
    let json: Value = serde_json::from_str(&invoke(&["--json"])).expect("JSON");
    insta::assert_snapshot!("the_engines_as_json", shown(&format!("{json:#}")));
    for secret in ["sk-very-secret-key", "private-team"] {
        assert!(
            !table.contains(secret) && !json.to_string().contains(secret),
            "{secret} is shown"
        );
    }
    let asked = locked.asked().to_lowercase();
    assert!(
        asked.contains("authorization: bearer sk-very-secret-key"),
        "the key is sent: {asked}"
    );
    assert!(asked.contains("x-team: private-team"), "{asked}");
    assert!(!asked.contains("post "), "nothing is generated: {asked}");
}

#[test]
fn a_chain_without_engines_and_a_bad_chain() {
    let dir = folder(&[
        ("plain.yaml", "steps: [{id: a, apply: {jq: .}}]\n"),
        ("bad.yaml", "steps: [{id: a, engine: e, user_prompt: hi}]\n"),
    ]);
    let (code, stdout, _) = invoke(dir.path(), &["engines", "plain.yaml"]);
    assert_eq!((code, stdout.as_str()), (0, "the chain declares no engines\n"));
    let (code, stdout, stderr) = invoke(dir.path(), &["engines", "bad.yaml"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("unknown_engine"), "{stderr}");
}
