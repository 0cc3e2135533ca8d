//! The small commands: completions, init, engines, inspect --input.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainette::engine::client::probe::{Health, State, probe_as};
use chainette::spec::{Backend, Concurrency, EngineSpec, Timeouts};
use serde_json::{Value, json};

use crate::harness::invoke;

const BINARY: &str = env!("CARGO_BIN_EXE_chainette");

/// Long enough for a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, content) in files {
        fs::write(dir.path().join(name), content).expect("the folder is writable");
    }
    dir
}

fn listing(dir: &Path) -> BTreeSet<String> {
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

// --- completions

#[test]
fn bash_completes_commands_and_flags() {
    let (code, script, stderr) = invoke(Path::new("."), &["completions", "bash"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let dir = folder(&[("chainette.bash", &script)]);
    let complete = |words: &[&str]| {
        let list = words
            .iter()
            .map(|w| format!("'{w}'"))
            .collect::<Vec<_>>()
            .join(" ");
        let before = words.len().checked_sub(2).map_or("", |at| words[at]);
        let last = words.last().expect("a word");
        let test = format!(
            "set -eu; source ./chainette.bash; COMP_WORDS=({list}); COMP_CWORD={}; \
             _chainette chainette '{last}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        );
        let bash = Command::new("bash")
            .current_dir(dir.path())
            .args(["-c", &test])
            .output();
        let bash = bash.expect("bash is installed");
        let errors = String::from_utf8_lossy(&bash.stderr).into_owned();
        assert!(bash.status.success() && errors.is_empty(), "{words:?}: {errors}");
        String::from_utf8_lossy(&bash.stdout).into_owned()
    };
    assert_eq!(complete(&["chainette", "ru"]), "run\n");
    assert_eq!(complete(&["chainette", "run", "--overw"]), "--overwrite\n");
    assert_eq!(
        complete(&["chainette", "inspect", "--format", "mer"]),
        "mermaid\n"
    );
}

#[test]
fn every_shell_gets_a_script() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef chainette"),
        ("fish", "complete -c chainette"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let (code, script, _) = invoke(Path::new("."), &["completions", shell]);
        assert_eq!(code, 0, "{shell}");
        assert!(script.contains(mark) && script.contains("inspect"), "{shell}");
    }
}

// --- stdout

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in [&["schema"][..], &["completions", "zsh"], &["--help"]] {
        let mut child = Command::new(BINARY)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        drop(child.stdout.take());
        let mut errors = String::new();
        let stderr = child.stderr.as_mut().expect("piped");
        stderr.read_to_string(&mut errors).expect("text");
        let status = child.wait().expect("it ends");
        assert_eq!((status.code(), errors.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_told() {
    let full = fs::File::create("/dev/full").expect("/dev/full is there");
    let output = Command::new(BINARY).arg("schema").stdout(full).output();
    let output = output.expect("the command starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.starts_with("error: cannot write to stdout: "), "{errors}");
}

// --- init

/// Runs the command that `init` printed, as a shell would.
fn run_next(dir: &Path, stdout: &str) -> (i32, String) {
    let next = stdout
        .lines()
        .find_map(|line| line.strip_prefix("next: chainette "));
    let next = next.unwrap_or_else(|| panic!("no next command in {stdout}"));
    let shell = format!("\"$CHAINETTE\" {next}");
    let output = Command::new("sh")
        .current_dir(dir)
        .args(["-c", &shell])
        .env("CHAINETTE", BINARY)
        .output()
        .expect("sh is installed");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), errors)
}

#[test]
fn what_init_writes_runs_at_once() {
    for name in ["demo", "a b's/deep", "-x", "."] {
        let dir = folder(&[]);
        let (code, stdout, stderr) = invoke(dir.path(), &["init", "--", name]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{name}");
        let made = dir.path().join(name);
        let files = ["chain.yaml", "inputs.jsonl", "chain.schema.json", ".gitignore"];
        assert_eq!(listing(&made), files.map(str::to_owned).into());
        for file in files {
            assert!(stdout.contains(file), "{name}: {stdout}");
        }
        let (code, errors) = run_next(dir.path(), &stdout);
        assert_eq!(code, 0, "{name}: {errors}");
        let rows = fs::read_to_string(made.join("out/flattened/000.jsonl")).expect("the outputs");
        assert_eq!(rows.lines().count(), 4, "{rows}");
    }
}

#[test]
fn the_starter_chain_is_good_in_every_way() {
    let dir = folder(&[]);
    assert_eq!(invoke(dir.path(), &["init"]).0, 0);
    let text = fs::read_to_string(dir.path().join("chain.yaml")).expect("the chain");
    assert!(text.starts_with("# yaml-language-server: $schema=chain.schema.json\n"));
    let (code, _, stderr) = invoke(dir.path(), &["inspect", "chain.yaml", "--input", "inputs.jsonl"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    // Without the `#` its Step is part of it; prose has a blank after the `#`.
    let switched: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .map(|line| {
            if line.starts_with("   chainette") {
                String::new()
            } else {
                line
            }
        })
        .collect();
    fs::write(dir.path().join("chain.yaml"), &switched).expect("writable");
    let (code, stdout, stderr) = invoke(dir.path(), &["inspect", "chain.yaml", "--input", "inputs.jsonl"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{switched}");
    assert!(stdout.contains("sentiment  4 rows: 4 prompts"), "{stdout}");
    let schema = fs::read_to_string(dir.path().join("chain.schema.json")).expect("the schema");
    let schema = serde_json::from_str(&schema).expect("JSON");
    for text in [text, switched] {
        let value: Value = serde_saphyr::from_str(&text).expect("YAML");
        assert!(jsonschema::is_valid(&schema, &value), "{value}");
    }
}

#[test]
fn init_overwrites_nothing() {
    let dir = folder(&[("inputs.jsonl", "mine\n"), (".gitignore", "target\n")]);
    let (code, stdout, stderr) = invoke(dir.path(), &["init"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    insta::assert_snapshot!(stderr, @r"
    error: there already: inputs.jsonl; nothing was written
      give another folder: chainette init DIR
    ");
    assert_eq!(listing(dir.path()).len(), 2, "nothing was written");
    fs::remove_file(dir.path().join("inputs.jsonl")).expect("removable");
    let (code, stdout, _) = invoke(dir.path(), &["init"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("add out/ to it"), "{stdout}");
    let ignored = fs::read_to_string(dir.path().join(".gitignore")).expect("the file");
    assert_eq!(ignored, "target\n");
    // A link to nowhere is not followed.
    let linked = folder(&[]);
    std::os::unix::fs::symlink("/nowhere/at/all", linked.path().join("chain.yaml")).expect("a link");
    assert_eq!(invoke(linked.path(), &["init"]).0, 2);
    // A file where the folder should be.
    let (code, _, stderr) = invoke(dir.path(), &["init", "inputs.jsonl/x"]);
    assert_eq!(code, 2);
    assert!(
        stderr.starts_with("error: cannot create inputs.jsonl/x: "),
        "{stderr}"
    );
}

// --- engines

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
        name: "e".into(),
        backend: Backend::OpenAi,
        model: "qwen".into(),
        endpoint,
        api_key_env: None,
        headers: Vec::new(),
        concurrency: Concurrency::Auto,
        timeout: Timeouts::default(),
        max_reply: 1 << 20,
        engine_wait: PATIENCE,
        reasoning: None,
        context: None,
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
         keyed: {{backend: openai, model: qwen, endpoint: '{}', api_key_env: MY_KEY, headers: {{X-Team: private-team}}}}\n  \
         unset: {{backend: openai, model: qwen, endpoint: '{}', api_key_env: NO_KEY}}\n  \
         own: {{backend: embedded, model: ./m.gguf}}\n\
         steps:\n  - {{id: a, engine: small, user_prompt: hi}}\n  - {{id: b, engine: keyed, user_prompt: hi}}\n  \
         - {{id: c, engine: small, user_prompt: hi}}\n",
        good.url("/v1"),
        locked.url("/v1"),
        locked.url("/v1")
    );
    // A query is no part of a base URL; it is hidden wherever the endpoint is shown.
    let chain = chain.replace("?token=hidden", "");
    let dir = folder(&[("chain.yaml", &chain)]);
    let invoke = |args: &[&str]| {
        let output = Command::new(BINARY)
            .current_dir(dir.path())
            .args(["engines", "chain.yaml", "--timeout", "30s"])
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

// --- inspect --input

const PREVIEW: &str = "\
input_model: {text: string, stars: integer?}
engines: {e: {backend: openai, model: m, endpoint: 'http://127.0.0.1:9/v1'}}
steps:
  - {id: tidy, apply: {jq: 'if .text == \"boom\" then error(\"boom\") elif .text == \"two\" then ., . else . end'}}
  - {id: keep, apply: {jq: 'select(.text != \"drop\")'}}
  - parallel:
      - branch: words
        join: words
        collect: true
        steps: [{id: word, apply: {jq: '.text | split(\" \")[] | {word: .}'}}]
      - branch: aside
        when: stars is defined
        steps: [{id: note, engine: e, user_prompt: 'Stars: {{ stars }} {{ auther|default(\"-\") }}'}]
  - {id: grade, engine: e, system_prompt: 'You grade.', user_prompt: '{{ text }} {{ author }} {{ words|length }}'}
  - {id: last, apply: {jq: .}}
";

const ROWS: &str = "\
{\"text\":\"good one\",\"stars\":5,\"author\":\"A\"}
{\"text\":\"no author\"}
{\"text\":\"boom\",\"author\":\"B\"}
{\"text\":\"drop\",\"author\":\"B\"}
{\"text\":\"two\",\"author\":\"B\"}

{\"text\":7}
not json
{\"text\":\"null author\",\"author\":null,\"stars\":1}
";

#[test]
fn rows_are_checked_up_to_the_first_prompts() {
    let dir = folder(&[("chain.yaml", PREVIEW), ("rows.jsonl", ROWS)]);
    let before = listing(dir.path());
    let (code, stdout, stderr) = invoke(dir.path(), &["inspect", "chain.yaml", "--input", "rows.jsonl"]);
    assert_eq!((code, stderr.as_str()), (3, ""), "{stdout}");
    insta::assert_snapshot!("rows_are_checked", stdout);
    let json = [
        "inspect",
        "chain.yaml",
        "--input",
        "rows.jsonl",
        "--format",
        "json",
    ];
    let (code, stdout, _) = invoke(dir.path(), &json);
    assert_eq!(code, 3);
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (&found["rows"], &found["rows_failed"]),
        (&json!(8), &json!(5)),
        "{found:#}"
    );
    assert_eq!(
        found["nodes"]["last"]["rows"], 0,
        "no reply, no further: {found:#}"
    );
    assert_eq!(listing(dir.path()), before, "nothing is written");
}

#[test]
fn what_the_check_finds_is_what_a_run_finds() {
    // Without Steps the check goes all the way: its failures are those of errors/.
    let chain = "\
input_model: {n: integer}
steps:
  - {id: odd, apply: {jq: 'if .n % 5 == 0 then error(\"five\") elif .n % 3 == 0 then ., {n: 0} elif .n % 7 == 0 then empty else . end'}}
  - branch: b
    join: b
    when: n % 2 == 0
    steps: [{id: many, apply: {jq: 'range(if .n == 4 then 2 else 1 end) as $i | {n: $i}'}}]
  - branch: aside
    steps: [{id: strict, apply: {jq: 'if .n == 8 then {n: \"x\"} else . end'}, output_model: {n: integer}}]
  - {id: sum, when: n < 100, apply: {jq: '{s: (.n + ($row.b.n // 0))}'}}
";
    let rows: String = (1..40).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>() + "{\"n\":\"x\"}\n{\n";
    let dir = folder(&[("chain.yaml", chain), ("rows.jsonl", &rows)]);
    let args = [
        "inspect",
        "chain.yaml",
        "--input",
        "rows.jsonl",
        "--format",
        "json",
    ];
    let (code, stdout, stderr) = invoke(dir.path(), &args);
    assert_eq!(code, 3, "{stderr}");
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    let (code, _, stderr) = invoke(dir.path(), &["run", "chain.yaml", "rows.jsonl", "out"]);
    assert_eq!(code, 3, "{stderr}");
    let errors = fs::read_to_string(dir.path().join("out/errors/000.jsonl")).expect("errors");
    let errors: Vec<Value> = errors
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let metadata = fs::read_to_string(dir.path().join("out/metadata.json")).expect("metadata");
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let groups = found["failures"].as_array().expect("failures");
    let total: u64 = groups.iter().map(|g| g["count"].as_u64().expect("a count")).sum();
    assert_eq!(total, errors.len() as u64, "{groups:#?}\n{errors:#?}");
    for group in groups {
        let same = |e: &&Value| e["node"] == group["node"] && e["kind"] == group["kind"];
        let count = errors.iter().filter(same).count() as u64;
        assert_eq!(group["count"], count, "{group:#}");
        for example in group["examples"].as_array().expect("examples") {
            let known = errors.iter().any(|e| {
                e["row_id"] == example["row_id"] && e["line"] == example["line"] && e["kind"] == group["kind"]
            });
            assert!(known, "{example:#}");
        }
    }
    for node in ["odd", "many", "strict", "sum"] {
        for fate in ["rows", "filtered", "skipped", "failed", "emitted"] {
            assert_eq!(
                found["nodes"][node][fate], metadata["nodes"][node][fate],
                "{node} {fate}"
            );
        }
    }
}

#[test]
fn good_rows_are_0_and_bad_input_is_2() {
    let dir = folder(&[
        ("chain.yaml", "steps: [{id: a, apply: {jq: .}}]\n"),
        ("bad.yaml", "steps: [{id: a, aply: {jq: .}}]\n"),
        ("rows.jsonl", "{\"a\":1}\n{\"a\":2}\nbad\n"),
        ("empty.jsonl", ""),
        ("rows.txt", "{}\n"),
    ]);
    let code = |args: &[&str]| {
        let (code, _, stderr) = invoke(dir.path(), &[&["inspect"], args].concat());
        (code, stderr)
    };
    assert_eq!(
        code(&["chain.yaml", "--input", "rows.jsonl", "--rows", "2"]),
        (0, String::new())
    );
    assert_eq!(code(&["chain.yaml", "--input", "rows.jsonl"]).0, 3);
    assert_eq!(
        code(&["chain.yaml", "--input", "empty.jsonl"]),
        (0, String::new())
    );
    for args in [
        &["bad.yaml", "--input", "rows.jsonl"][..],
        &["chain.yaml", "--input", "gone.jsonl"],
        &["chain.yaml", "--input", "rows.txt"],
        &["chain.yaml", "--input", "rows.jsonl", "--format", "dot"],
    ] {
        let (code, stderr) = code(args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.to_lowercase().contains("error"), "{args:?}: {stderr}");
    }
}
