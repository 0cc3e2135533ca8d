//! Engines that chainette starts: what is planned, what is missing, and what comes from the hub.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use chainette::engine::provision::{
    Gguf, Gpu, HubSettings, Machine, Mode, PrepareError, PreparedEngine, Progress, attach, free_port,
    plan_all, prepare,
};
use chainette::spec::{Backend, EngineSpec, Resources};
use serde_json::{Value, json};

use crate::gguf_file::{Kv, gguf, small};
use crate::harness::{BINARY, listing};
use crate::hub::{COMMIT, Fault, Hub};

/// A machine: a folder with programs, one with files, and nothing else that could be found.
struct Place {
    dir: tempfile::TempDir,
    hub: Option<String>,
    env: Vec<(&'static str, String)>,
}

/// What an invocation did.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("JSON: {}{}", self.stdout, self.stderr))
    }

    /// The only server's field.
    fn of(&self, field: &str) -> Value {
        let json = self.json();
        assert_eq!(json["engines"].as_array().map(Vec::len), Some(1), "{json:#}");
        json["engines"][0][field].clone()
    }

    fn words(&self) -> Vec<String> {
        let words = self.of("arguments");
        let words = words.as_array().expect("a list").iter();
        words
            .map(|word| word.as_str().expect("a text").to_owned())
            .collect()
    }
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in ["bin", "files"] {
            fs::create_dir(dir.path().join(folder)).expect("a folder");
        }
        let place = Self {
            dir,
            hub: None,
            env: Vec::new(),
        };
        place.file("m.gguf", small());
        place
    }

    /// With a llama-server that knows every flag of ours, a vLLM and a TGI.
    fn with_programs() -> Self {
        let place = Self::new();
        place.program(
            "llama-server",
            "echo 'asked' >> \"$(dirname \"$0\")/asked\"\necho '--metrics  --ui, --no-ui, --no-webui --cache-ram N'",
        );
        place.program("vllm", "exit 1");
        place.program("text-generation-launcher", "exit 1");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("the folder is writable");
    }

    fn program(&self, name: &str, body: &str) {
        let path = self.dir.path().join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("the folder is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be made executable");
    }

    /// GPUs, as `nvidia-smi` would list them; MiB each.
    fn gpus(&self, memory: &[u64]) {
        let lines: Vec<String> = memory
            .iter()
            .enumerate()
            .map(|(at, mib)| format!("echo '{at}, {mib}'"))
            .collect();
        self.program("nvidia-smi", &lines.join("\n"));
    }

    fn command(&self, args: &[&str]) -> Command {
        let bin = self.dir.path().join("bin");
        let mut command = Command::new(BINARY);
        command
            .current_dir(self.path(""))
            .args(args)
            // The scripts need a few programs of the system, which brings no engine and no `nvidia-smi`.
            .env("PATH", format!("{}:/bin:/usr/bin", bin.display()))
            .env("HOME", self.dir.path().join("home"))
            .env("XDG_STATE_HOME", self.dir.path().join("state"))
            .env("HF_HOME", self.dir.path().join("hf"))
            .env("HF_ENDPOINT", self.hub.as_deref().unwrap_or("http://127.0.0.1:9"))
            .env("NO_COLOR", "1");
        for name in [
            "HF_TOKEN",
            "HF_HUB_OFFLINE",
            "HF_HUB_CACHE",
            "CUDA_VISIBLE_DEVICES",
            "RUST_BACKTRACE",
            "http_proxy",
        ] {
            command.env_remove(name);
        }
        for (name, value) in &self.env {
            command.env(name, value);
        }
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().expect("the command starts");
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            text.replace(&self.dir.path().display().to_string(), "[dir]")
        };
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Declares one engine `e` and provisions it.
    fn engine(&self, fields: &str, more: &[&str]) -> Ran {
        self.file("engines.yaml", format!("engines:\n  e: {{{fields}}}\n"));
        self.run(&[&["engine", "provision", "engines.yaml", "--json"], more].concat())
    }

    fn planned(&self, fields: &str) -> Ran {
        let ran = self.engine(fields, &["--dry-run"]);
        assert_eq!(ran.code, 0, "{fields}: {}", ran.stderr);
        ran
    }

    /// How often the program was asked for its flags.
    fn asked(&self) -> usize {
        let asked = fs::read_to_string(self.dir.path().join("bin/asked")).unwrap_or_default();
        asked.lines().count()
    }
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

const CHAIN: &str = "\
resources: {ram: 64MiB}
engines:
  near: {backend: llamacpp, model: ./m.ggfu}
  folder: {backend: llamacpp, model: ./many}
  shape: {backend: llamacpp, model: README.md}
  pointer: {backend: llamacpp, model: lfs.gguf}
  cut: {backend: llamacpp, model: cut.gguf}
  hub: {backend: llamacpp, model: 'hf:org/repo/../../x.gguf'}
  name: {backend: vllm, model: Qwen/Qwen3-8B, binary: ./vlm}
  empty: {backend: vllm, model: ./many, devices: [0, 3], env: {A: b}}
  alone: {backend: tgi, model: m.gguf, require_gpu: true, binary: tgi}
  big: {backend: llamacpp, model: m.gguf, binary: ./server, memory: {ram: 1000GiB}}
  big2: {backend: llamacpp, model: m.gguf, binary: ./server, memory: {ram: 100GiB}}
  web: {backend: openai, model: m, endpoint: 'http://127.0.0.1:9'}
steps:
";

#[test]
fn everything_that_is_missing_is_told_at_once() {
    let place = Place::new();
    place.file("many/a.gguf", small());
    place.file("many/b.gguf", small());
    place.file("README.md", "# hello");
    place.file("lfs.gguf", "version https://git-lfs.github.com/spec/v1\n");
    place.file("cut.gguf", &small()[..200]);
    place.file("server", "#!/bin/sh\n");
    place.file("vllm", "not executable");
    let engines = CHAIN
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split_once(':').map(|(name, _)| name));
    let steps: Vec<String> = engines
        .map(|name| format!("  - {{id: {name}_, engine: {name}, user_prompt: hi}}\n"))
        .collect();
    let chain = CHAIN.to_owned() + &steps.concat();
    place.file("chain.yaml", chain);
    place.file("in.jsonl", "{}\n");
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.path("server"), mode).expect("it can be made executable");
    let ran = place.run(&["engine", "provision", "chain.yaml"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{}", ran.stderr);
    insta::assert_snapshot!("everything_missing", ran.stderr);
    // A run says the same, before anything is written; so does one that is dry.
    for extra in [&[][..], &["--dry-run"]] {
        let run = place.run(&[&["run", "chain.yaml", "in.jsonl", "out"], extra].concat());
        assert_eq!((run.code, run.stderr.as_str()), (2, ran.stderr.as_str()));
    }
    assert!(!place.path("out").exists(), "OUT is not touched");
    let json = place.run(&["engine", "provision", "chain.yaml", "--json"]).json();
    assert!(
        json["missing"].as_array().is_some_and(|all| all.len() >= 12),
        "{json:#}"
    );
    assert_eq!(
        listing(place.dir.path()),
        ["bin", "files"].map(str::to_owned).into(),
        "nothing was written"
    );
}

#[test]
fn a_dry_run_shows_all_and_touches_nothing() {
    let place = Place::with_programs();
    place.gpus(&[24_000, 24_000]);
    place.file("model/config.json", "{}");
    place.file("model/model.safetensors", [0; 1000]);
    place.file(
        "engines.yaml",
        "resources: {ram: 8GiB}\npools:\n  - {id: small, engine: llamacpp, model: {id: ./m.gguf}, replicas: 2, port: 8100, devices: [1]}\n\
         engines:\n  wide: {backend: vllm, model: ./model, tensor_parallel_size: 2, host: 0.0.0.0, api_key_env: MY_KEY}\n  \
         far: {backend: llamacpp, model: 'hf:org/repo', deterministic: true, flags: [--threads, 2, --prompt, 'a b']}\n  \
         web: {backend: openai, model: m, endpoint: 'http://127.0.0.1:9/v1'}\n",
    );
    let ran = place.run(&["engine", "provision", "engines.yaml", "--dry-run"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    insta::assert_snapshot!("provision_dry_run", ran.stdout);
    let json = place.run(&["engine", "provision", "engines.yaml", "--dry-run", "--json"]);
    insta::assert_snapshot!("provision_dry_run_json", json.stdout);
    assert_eq!(place.asked(), 0, "no program was run");
    assert_eq!(
        listing(place.dir.path()),
        ["bin", "files"].map(str::to_owned).into(),
        "nothing was written"
    );
}

#[test]
fn one_engine_of_several() {
    let place = Place::with_programs();
    place.file(
        "engines.yaml",
        "engines:\n  one: {backend: llamacpp, model: m.gguf}\n  two: {backend: llamacpp, model: gone.gguf}\n",
    );
    let ran = place.run(&[
        "engine",
        "provision",
        "engines.yaml",
        "--pool",
        "one",
        "--dry-run",
        "--json",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.of("engine"), "one");
    let ran = place.run(&["engine", "provision", "engines.yaml", "--pool", "oen"]);
    assert_eq!(ran.code, 2);
    insta::assert_snapshot!("provision_unknown_pool", ran.stderr);
}

#[test]
fn flags_of_llamacpp() {
    let place = Place::with_programs();
    let path = place.path("m.gguf");
    let path = path.to_string_lossy();
    let head = [
        "--model",
        "[dir]/files/m.gguf",
        "--host",
        "127.0.0.1",
        "--port",
        "PORT",
    ];
    assert!(path.ends_with("files/m.gguf"));
    let cases: &[(&str, &[&str])] = &[
        // The model was trained on 2048 tokens, which four requests have each.
        (
            "",
            &[
                "--n-gpu-layers",
                "0",
                "--parallel",
                "4",
                "--ctx-size",
                "8192",
                "--metrics",
                "--no-webui",
                "--cache-ram",
                "0",
            ],
        ),
        (
            "concurrency: 8, context: 1000",
            &[
                "--n-gpu-layers",
                "0",
                "--parallel",
                "8",
                "--ctx-size",
                "8000",
                "--metrics",
                "--no-webui",
                "--cache-ram",
                "0",
            ],
        ),
        (
            "deterministic: true",
            &[
                "--n-gpu-layers",
                "0",
                "--parallel",
                "1",
                "--ctx-size",
                "2048",
                "--no-cont-batching",
                "--seed",
                "0",
                "--metrics",
                "--no-webui",
                "--cache-ram",
                "0",
            ],
        ),
        // Other names of a flag are the same flag, and the last one wins; what is not known passes through, in order.
        (
            "flags: [--ngl, 3, -ngl, 5, --gpu-layers, 7, --lora, a, --lora, b, -np, 2, --override-kv, 'x=int:1', --reverse-prompt, '- x']",
            &[
                "--ctx-size",
                "4096",
                "--metrics",
                "--no-webui",
                "--cache-ram",
                "0",
                "--n-gpu-layers",
                "7",
                "--lora",
                "a",
                "--lora",
                "b",
                "--parallel",
                "2",
                "--override-kv",
                "x=int:1",
                "--reverse-prompt",
                "- x",
            ],
        ),
        (
            "deterministic: true, flags: [-cb, --webui, -c, 100, --seed=9, -ngl, -1, --metrics, --cache-ram, 5]",
            &[
                "--parallel",
                "1",
                "-cb",
                "--webui",
                "--ctx-size",
                "100",
                "--seed",
                "9",
                "--n-gpu-layers",
                "-1",
                "--metrics",
                "--cache-ram",
                "5",
            ],
        ),
    ];
    for (fields, expected) in cases {
        let words = place
            .planned(&format!("backend: llamacpp, model: m.gguf, {fields}"))
            .words();
        assert_eq!(words[..6], head, "{fields}");
        assert_eq!(words[6..], **expected, "{fields}");
        let again = place
            .planned(&format!("backend: llamacpp, model: m.gguf, {fields}"))
            .words();
        assert_eq!(words, again, "the same each time");
    }
    // The address is no flag like others.
    let ran = place.planned(
        "backend: llamacpp, model: m.gguf, port: 1, flags: [--host, 0.0.0.0, --port, '8200', --host, '::1']",
    );
    assert_eq!(ran.words()[2..6], ["--host", "::1", "--port", "8200"]);
    assert_eq!((ran.of("host"), ran.of("port")), (json!("::1"), json!(8200)));
    assert_eq!(ran.of("slots"), 4);
    // With a GPU all layers go there, and more requests at once.
    place.gpus(&[24_000]);
    let words = place.planned("backend: llamacpp, model: m.gguf").words();
    assert_eq!(
        words[6..12],
        ["--n-gpu-layers", "999", "--parallel", "16", "--ctx-size", "32768"]
    );
    let words = place
        .planned("backend: llamacpp, model: m.gguf, devices: []")
        .words();
    assert_eq!(words[6..8], ["--n-gpu-layers", "0"], "it may see none");
}

#[test]
fn flags_of_vllm_and_tgi() {
    let place = Place::with_programs();
    place.file("model/config.json", "{}");
    place.file("model/model.safetensors", [0; 1000]);
    let lead = |backend: &str, fields: &str| {
        place
            .planned(&format!("backend: {backend}, model: ./model, {fields}"))
            .words()
    };
    let words = lead("vllm", "");
    assert_eq!(
        words[..6],
        [
            "serve",
            "[dir]/files/model",
            "--host",
            "127.0.0.1",
            "--port",
            "PORT"
        ]
    );
    assert_eq!(words[6..], ["--served-model-name", "./model"]);
    place.gpus(&[80_000, 80_000]);
    let words = lead(
        "vllm",
        "dtype: bfloat16, tensor_parallel_size: 2, max_model_len: 4096, reasoning_parser: qwen3, concurrency: 64, flags: [--max_model_len=2048, --enforce-eager, -x]",
    );
    assert_eq!(
        words[6..],
        [
            "--served-model-name",
            "./model",
            "--dtype",
            "bfloat16",
            "--gpu-memory-utilization",
            "0.9",
            "--tensor-parallel-size",
            "2",
            "--reasoning-parser",
            "qwen3",
            "--max-num-seqs",
            "64",
            "--max-model-len",
            "2048",
            "--enforce-eager",
            "-x",
        ]
    );
    let words = lead(
        "vllm",
        "deterministic: true, context: 100, gpu_memory_utilization: 0.5",
    );
    assert_eq!(
        words[8..],
        [
            "--gpu-memory-utilization",
            "0.5",
            "--max-model-len",
            "100",
            "--max-num-seqs",
            "1",
            "--seed",
            "0"
        ]
    );
    let words = lead(
        "tgi",
        "dtype: float16, gpu_memory_utilization: 0.8, max_model_len: 4096, tensor_parallel_size: 2, concurrency: 500",
    );
    assert_eq!(
        words,
        [
            "--model-id",
            "[dir]/files/model",
            "--hostname",
            "127.0.0.1",
            "--port",
            "PORT",
            "--dtype",
            "float16",
            "--cuda-memory-fraction",
            "0.8",
            "--max-total-tokens",
            "4096",
            "--num-shard",
            "2",
            "--max-concurrent-requests",
            "500",
        ]
    );
}

#[test]
fn flags_that_the_program_does_not_know_are_left_out() {
    let place = Place::with_programs();
    let prepared = |place: &Place| {
        let ran = place.engine("backend: llamacpp, model: m.gguf", &[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.words().split_off(12)
    };
    assert_eq!(prepared(&place), ["--metrics", "--no-webui", "--cache-ram", "0"]);
    assert_eq!((prepared(&place).len(), place.asked()), (4, 1), "asked once");
    // Another program of the same name is asked again.
    place.program("llama-server", "echo 'newer: --no-ui --metrics'");
    assert_eq!(prepared(&place), ["--metrics", "--no-ui"]);
    place.program("llama-server", "echo nothing to see here; exit 3");
    assert_eq!(prepared(&place), Vec::<String>::new());
}

#[test]
fn a_pinned_model_is_verified_before_anything_else() {
    let place = Place::with_programs();
    let right = sha256(&small());
    let pinned = |pin: &str| {
        place.engine(
            &format!("backend: llamacpp, model: {{id: ./m.gguf, sha256: '{pin}'}}"),
            &[],
        )
    };
    let ran = pinned(&right.to_uppercase());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.of("model")["digest"], format!("sha256:{right}"));
    // A file that is as it was is not read again: what was found out stands.
    let kept = place.dir.path().join("state/chainette/engines/digests.json");
    let text = fs::read_to_string(&kept).expect("it was kept");
    let wrong = "ab".repeat(32);
    fs::write(&kept, text.replace(&right, &wrong)).expect("it can be written");
    let ran = pinned(&right);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    insta::assert_snapshot!("provision_wrong_digest", ran.stderr);
    // A file that is another one is.
    let mut other = small();
    other.push(1);
    place.file("m.gguf", &other);
    let ran = pinned(&right);
    assert!(
        ran.code == 1 && ran.stderr.contains(&sha256(&other)) && ran.stderr.contains(&right),
        "{}",
        ran.stderr
    );
    assert_eq!(
        fs::read(place.path("m.gguf")).expect("still there"),
        other,
        "it is left alone"
    );
    assert_eq!(pinned(&sha256(&other)).code, 0);
    fs::write(&kept, "{ not json").expect("it can be written");
    assert_eq!(pinned(&sha256(&other)).code, 0, "a damaged memory is forgotten");
}

#[test]
fn an_engines_digest_says_how_it_answers_and_not_where() {
    let place = Place::with_programs();
    let digest = |fields: &str| {
        let ran = place.engine(&format!("backend: llamacpp, model: m.gguf, {fields}"), &[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.of("spec_digest").as_str().expect("a text").to_owned()
    };
    let plain = digest("");
    assert_eq!(plain.len(), 64);
    for same in [
        "port: 8300",
        "host: localhost",
        "lazy: false",
        "flags: [--port, 8301]",
        "binary: llama-server",
    ] {
        assert_eq!(digest(same), plain, "{same}");
    }
    for other in [
        "context: 5",
        "concurrency: 5",
        "flags: [-v]",
        "env: {A: b}",
        "devices: []",
        "api_key_env: HOME",
    ] {
        assert_ne!(digest(other), plain, "{other}");
    }
    let mut other = small();
    other.push(0);
    place.file("m.gguf", other);
    assert_ne!(digest(""), plain, "another model");
}

#[test]
fn every_replica_has_a_port_of_its_own() {
    let place = Place::with_programs();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let ran = place.engine(
        &format!("backend: llamacpp, model: m.gguf, replicas: 2, port: {port}"),
        &[],
    );
    let json = ran.json();
    let ports: Vec<u64> = (0..2)
        .map(|at| json["engines"][at]["port"].as_u64().expect("a port"))
        .collect();
    assert!(ports[0] != u64::from(port) && ports[0] != ports[1], "{ports:?}");
    let ran = place.engine("backend: llamacpp, model: m.gguf, host: 203.0.113.7", &[]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains("nothing can listen at 203.0.113.7") && ran.stderr.contains("correct `host`"),
        "{}",
        ran.stderr
    );
}

#[test]
fn memory_is_told_from_the_files() {
    const MIB: u64 = 1 << 20;
    let place = Place::with_programs();
    let size = small().len() as u64;
    let ram = |fields: &str| {
        place
            .planned(&format!("backend: llamacpp, model: m.gguf, {fields}"))
            .of("need")["ram"]
            .as_u64()
            .expect("bytes")
    };
    // 256 numbers of two bytes are kept of each token; a batch of 512 has logits and states; 64 MiB for the program.
    let work = 512 * 4 * (300 + 16 * 128);
    assert_eq!(
        ram("context: 1000, concurrency: 3"),
        size + 256 * 2 * 3000 + work + 64 * MIB
    );
    assert_eq!(ram("flags: [-c, 500]"), size + 256 * 2 * 500 + work + 64 * MIB);
    assert_eq!(ram("memory: {ram: 5MiB}"), 5 * MIB);
    // Layers that keep nothing, as some models have them.
    let mixed = gguf(
        &[
            ("general.architecture", Kv::Text("mix")),
            ("mix.block_count", Kv::U32(3)),
            ("mix.attention.head_count", Kv::U32(4)),
            ("mix.attention.head_count_kv", Kv::I32s(vec![2, 0, 2])),
            ("mix.attention.key_length", Kv::U32(10)),
            ("mix.attention.value_length", Kv::U32(6)),
        ],
        0,
    );
    place.file("mixed.gguf", &mixed);
    let head = Gguf::read(&place.path("mixed.gguf")).expect("a head");
    assert_eq!(
        (head.kept_per_token, head.layers, head.architecture.as_str()),
        (4 * 16, 3, "mix")
    );
    // Damaged heads are told, and end.
    for cut in 0..mixed.len() {
        place.file("cut.gguf", &mixed[..cut]);
        assert!(Gguf::read(&place.path("cut.gguf")).is_err(), "cut at {cut}");
    }
    for at in 0..mixed.len() {
        let mut bent = mixed.clone();
        bent[at] ^= 0xff;
        place.file("bent.gguf", bent);
        let _either = Gguf::read(&place.path("bent.gguf"));
    }
    // All parts of a split model count.
    place.file("s-00001-of-00002.gguf", small());
    let ran = place.engine("backend: llamacpp, model: s-00001-of-00002.gguf", &["--dry-run"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("s-00002-of-00002.gguf is not there"),
        "{}",
        ran.stderr
    );
    place.file("s-00002-of-00002.gguf", [0; 5000]);
    let whole = place
        .planned("backend: llamacpp, model: s-00001-of-00002.gguf")
        .of("need")["ram"]
        .clone();
    assert_eq!(whole, ram("") + 5000);
    let ran = place.engine(
        &format!(
            "backend: llamacpp, model: {{id: s-00001-of-00002.gguf, sha256: '{}'}}",
            "ab".repeat(32)
        ),
        &["--dry-run"],
    );
    assert!(
        ran.code == 2 && ran.stderr.contains("pins one file"),
        "{}",
        ran.stderr
    );
    // Of a folder the weights and what its configuration keeps of tokens.
    place.file("model/config.json", r#"{"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 100}"#);
    place.file("model/model.safetensors", [0; 1000]);
    place.file("model/consolidated.safetensors", [0; 1000]);
    let need = place.planned("backend: tgi, model: ./model").of("need");
    assert_eq!(need["ram"], 1200 + 2 * 4 * 16 * 2 * 100 * 2 + 2048 * MIB);
}

#[test]
fn gpus_are_looked_at() {
    const MIB: u64 = 1 << 20;
    let mut place = Place::with_programs();
    place.gpus(&[1000, 2000, 3000]);
    place.file("model/config.json", "{}");
    place.file("model/model.safetensors", [0; 1000]);
    let ran = place.planned("backend: vllm, model: ./model, devices: [2, 0], tensor_parallel_size: 2, gpu_memory_utilization: 0.5");
    assert_eq!(ran.of("device_mask"), "2,0");
    assert_eq!(ran.of("need")["vram"], json!({"2": 1500 * MIB, "0": 500 * MIB}));
    let ran = place.planned("backend: llamacpp, model: m.gguf, devices: [1, 2], memory: {vram: 7MiB}");
    assert_eq!(ran.of("need")["vram"], json!({"1": 7 * MIB, "2": 7 * MIB}));
    assert_eq!(
        ran.json()["budget"]["vram"],
        json!({"0": 1000 * MIB, "1": 2000 * MIB, "2": 3000 * MIB})
    );
    let told = |place: &Place, fields: &str| {
        let ran = place.engine(fields, &["--dry-run"]);
        assert_eq!(ran.code, 2, "{fields}");
        ran.stderr
    };
    let mut all = vec![
        told(&place, "backend: llamacpp, model: m.gguf, devices: [0, 5, 6]"),
        told(&place, "backend: vllm, model: ./model, tensor_parallel_size: 4"),
        told(
            &place,
            "backend: llamacpp, model: m.gguf, memory: {vram: 2500MiB}",
        ),
    ];
    place.env.push(("CUDA_VISIBLE_DEVICES", "1".to_owned()));
    let ran = place.planned("backend: llamacpp, model: m.gguf");
    assert_eq!(ran.json()["budget"]["vram"], json!({"1": 2000 * MIB}));
    assert_eq!(ran.of("device_mask"), Value::Null, "what is there already stays");
    all.push(told(&place, "backend: llamacpp, model: m.gguf, devices: [0]"));
    place.env = vec![("CUDA_VISIBLE_DEVICES", String::new())];
    all.push(told(
        &place,
        "backend: llamacpp, model: m.gguf, require_gpu: true",
    ));
    place.env.clear();
    place.program(
        "nvidia-smi",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
    );
    all.push(told(
        &place,
        "backend: llamacpp, model: m.gguf, require_gpu: true",
    ));
    insta::assert_snapshot!("provision_gpus", all.concat());
}

#[test]
fn a_model_comes_from_the_hub_once() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &small()), ("README.md", b"hello")]);
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf'";
    let plan = place.planned(fields);
    assert_eq!(
        (plan.of("downloads"), plan.of("need")),
        (json!("hf:org/repo/m.gguf"), Value::Null)
    );
    assert_eq!(hub.take_log(), Vec::<String>::new(), "a dry run asks nobody");
    let first = place.engine(fields, &[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert!(first.stderr.contains("e: fetching"), "{}", first.stderr);
    let model = first.of("model");
    let path = format!("[dir]/hf/hub/models--org--repo/snapshots/{COMMIT}/m.gguf");
    assert_eq!(model["path"], path);
    assert_eq!(model["digest"], format!("hf:{COMMIT}:{}", sha256(&small())));
    assert!(!hub.take_log().is_empty());
    // From now on nobody is asked.
    let second = place.engine(fields, &[]);
    assert_eq!(
        (second.of("model"), second.of("spec_digest")),
        (model, first.of("spec_digest"))
    );
    assert_eq!(hub.take_log(), Vec::<String>::new());
    assert!(place.planned(fields).of("need")["ram"].as_u64().is_some());
    // A pin is compared with the file, wherever it came from.
    let pinned = |pin: &str| {
        place.engine(
            &format!("backend: llamacpp, model: {{id: 'hf:org/repo/m.gguf', sha256: '{pin}'}}"),
            &[],
        )
    };
    assert_eq!(pinned(&sha256(&small())).code, 0);
    assert_eq!(pinned(&"ab".repeat(32)).code, 1);
    // Its only GGUF file needs no name; of several one must be named.
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo@main'", &[]);
    assert_eq!(ran.of("model")["path"], path, "{}", ran.stderr);
    let many = Hub::start(&[
        ("a.gguf", &small()),
        ("sub/b.gguf", &small()),
        ("mmproj-a.gguf", b""),
    ]);
    place.hub = Some(many.url());
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo'", &[]);
    assert_eq!(ran.code, 1);
    let told = ran
        .stderr
        .lines()
        .filter(|line| !line.contains("fetching"))
        .collect::<Vec<_>>()
        .join("\n");
    insta::assert_snapshot!("provision_several_files", told);
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo/sub/b.gguf'", &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // Without a network the one that is there will do.
    place.hub = None;
    place.env.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo'", &[]);
    assert_eq!(ran.of("model")["path"], path, "{}", ran.stderr);
    let ran = place.engine("backend: llamacpp, model: 'hf:org/other'", &["--dry-run"]);
    assert!(
        ran.code == 2 && ran.stderr.contains("HF_HUB_OFFLINE"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_folder_of_weights_comes_from_the_hub_without_what_nobody_needs() {
    let mut place = Place::with_programs();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let hub = Hub::start(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"a\": 1}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", &[1; 3000]),
        ("model-2.safetensors", &[2; 3000]),
        ("consolidated.safetensors", &[3; 3000]),
        ("pytorch_model.bin", &[4; 3000]),
        ("original/model.pth", &[5; 3000]),
        ("README.md", b"hello"),
    ]);
    place.hub = Some(hub.url());
    let ran = place.engine("backend: vllm, model: 'hf:org/repo@v1'", &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.of("model")["digest"], format!("hf:{COMMIT}"));
    let folder = place
        .dir
        .path()
        .join(format!("hf/hub/models--org--repo/snapshots/{COMMIT}"));
    let expected = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(listing(&folder), expected.map(str::to_owned).into());
    hub.take_log();
    assert_eq!(
        place.engine("backend: vllm, model: 'hf:org/repo@v1'", &[]).code,
        0
    );
    assert_eq!(hub.take_log(), Vec::<String>::new(), "all of it is here");
    // One that is not whole is completed.
    fs::remove_file(folder.join("model-2.safetensors")).expect("it is there");
    let ran = place.engine("backend: vllm, model: 'hf:org/repo@v1'", &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(folder.join("model-2.safetensors").is_file());
    let ran = place.engine("backend: llamacpp, model: 'hf:org/repo'", &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("holds no GGUF file"),
        "{}",
        ran.stderr
    );
}

/// A model of three MiB.
fn large() -> Vec<u8> {
    let mut bytes = small();
    bytes.extend((0..3 << 20).map(|n: u32| (n % 251) as u8));
    bytes
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf'";
    hub.fault(
        "m.gguf",
        Fault::Cut {
            after: 1_200_000,
            times: 2,
        },
    );
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("trying again"), "{}", ran.stderr);
    let path = ran.of("model")["path"]
        .as_str()
        .expect("a path")
        .replace("[dir]", &place.dir.path().display().to_string());
    assert_eq!(sha256(&fs::read(&path).expect("it is there")), sha256(&large()));
    let log = hub.take_log();
    assert!(
        log.iter().any(|line| line.ends_with("bytes=1200000-")),
        "{log:#?}"
    );
    assert!(
        log.iter().any(|line| line.ends_with("bytes=2400000-")),
        "{log:#?}"
    );
}

#[test]
fn a_file_that_is_not_whole_or_not_right_is_never_taken() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf'";
    let blobs = place.dir.path().join("hf/hub/models--org--repo/blobs");
    let told = |fault: Fault| {
        hub.fault("m.gguf", fault);
        let ran = place.engine(fields, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        let whole = fs::read_dir(&blobs).into_iter().flatten().flatten();
        let whole: Vec<_> = whole.filter(|blob| blob.path().extension().is_none()).collect();
        assert!(whole.is_empty(), "it is not in the cache: {whole:?}");
        let plan = place.planned(fields);
        assert_eq!(plan.of("downloads"), "hf:org/repo/m.gguf");
        let passing = |line: &&str| {
            !line.contains("fetching") && !line.contains("verifying") && !line.contains("trying again")
        };
        let text = ran.stderr.lines().filter(passing).collect::<Vec<_>>().join("\n");
        text.replace(&hub.url(), "[hub]") + "\n"
    };
    let all = [
        told(Fault::Wrong),
        told(Fault::Status(500, 99)),
        told(Fault::Status(404, 1)),
        told(Fault::Status(403, 1)),
        told(Fault::Etag("../../../../escaped")),
        told(Fault::Cut { after: 0, times: 99 }),
    ];
    insta::assert_snapshot!("provision_hub_faults", all.concat());
    // Bytes of another try, and a server that sends everything though only the rest was asked for.
    let part = blobs.join(sha256(&large())).with_extension("part");
    fs::write(&part, &large()[..1000]).expect("the folder is there");
    hub.fault("m.gguf", Fault::Whole);
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "it starts anew: {}", ran.stderr);
    hub.heal();
    // A rest that is whole already, from a process that was killed then.
    fs::remove_dir_all(place.dir.path().join("hf")).expect("it is there");
    fs::create_dir_all(&blobs).expect("a folder");
    fs::write(&part, large()).expect("the folder is there");
    let ran = place.engine(fields, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn a_private_model_needs_a_token_that_is_never_shown() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &small())]);
    hub.lock("hf_planted_secret");
    place.hub = Some(hub.url());
    let fields = "backend: llamacpp, model: 'hf:org/repo/m.gguf', api_key_env: MY_KEY";
    let ran = place.engine(fields, &[]);
    assert!(
        ran.code == 1 && ran.stderr.contains("needs HF_TOKEN"),
        "{}",
        ran.stderr
    );
    place.env.push(("HF_TOKEN", "hf_wrong_secret".to_owned()));
    let wrong = place.engine(fields, &[]);
    assert!(
        wrong.code == 1 && wrong.stderr.contains("that HF_TOKEN may read it"),
        "{}",
        wrong.stderr
    );
    place.env = vec![
        ("HF_TOKEN", "hf_planted_secret".to_owned()),
        ("MY_KEY", "sk-planted-secret".to_owned()),
        ("CHAINETTE_LOG", "trace".to_owned()),
    ];
    let right = place.engine(fields, &[]);
    assert_eq!(right.code, 0, "{}", right.stderr);
    assert_eq!(right.of("secret_env"), json!(["LLAMA_API_KEY"]));
    let state = fs::read_dir(place.dir.path().join("state/chainette/engines")).expect("it is there");
    let kept: Vec<String> = state
        .flatten()
        .filter_map(|file| fs::read_to_string(file.path()).ok())
        .collect();
    for text in [
        wrong.stderr,
        wrong.stdout,
        right.stderr,
        right.stdout,
        kept.concat(),
    ] {
        assert!(
            !text.contains("secret\"") && !text.contains("planted") && !text.contains("hf_wrong"),
            "{text}"
        );
    }
}

#[test]
fn references_that_are_none() {
    let place = Place::with_programs();
    place.file("sub/m.gguf", small());
    let mut told = String::new();
    for model in [
        "hf:org",
        "hf:org/",
        "hf:/repo",
        "hf:../repo",
        "hf:org/..",
        "hf:org/repo@",
        "hf:org/repo@../x",
        "hf:org/repo/",
        "hf:org/repo/a/../../b.gguf",
        "hf:org/repo//etc/passwd",
        "hf:org/re po",
        "hf:org/repo/a?b.gguf",
        "file:m.gguf",
        "local:./m.gguf",
        "https://example.org/m.gguf",
        "nowhere/at/all.gguf",
    ] {
        let ran = place.engine(&format!("backend: llamacpp, model: '{model}'"), &["--dry-run"]);
        assert_eq!(ran.code, 2, "{model}");
        told += &ran.stderr;
    }
    insta::assert_snapshot!("provision_references", told);
    let dir = place.path("");
    let dir = dir.to_string_lossy();
    for model in [
        format!("{dir}m.gguf"),
        format!("file:{dir}m.gguf"),
        format!("local:{dir}m.gguf"),
        "./m.gguf".into(),
        "m.gguf".into(),
        "sub".into(),
    ] {
        let ran = place.planned(&format!("backend: llamacpp, model: '{model}'"));
        assert_eq!(
            ran.of("model")["id"].as_str().map(|id| id.replace("[dir]", "")),
            Some(model.replace(&place.dir.path().display().to_string(), ""))
        );
    }
    // Relative to the file that declares the engine, wherever one stands.
    let engines = place.path("engines.yaml");
    place.file(
        "engines.yaml",
        "engines: {e: {backend: llamacpp, model: m.gguf}}\n",
    );
    let mut command = place.command(&[
        "engine",
        "provision",
        &engines.to_string_lossy(),
        "--dry-run",
        "--json",
    ]);
    let output = command
        .current_dir(Path::new("/"))
        .output()
        .expect("the command starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A machine as a library's user may make one up.
fn machine(place: &Place) -> Machine {
    let hub = HubSettings {
        cache: Some(place.dir.path().join("hf/hub")),
        endpoint: place.hub.clone().unwrap_or_default(),
        ..HubSettings::default()
    };
    Machine {
        path: vec![place.dir.path().join("bin")],
        ram: 8 << 30,
        hub,
        ..Machine::default()
    }
}

#[test]
fn a_preparation_can_be_ended_and_goes_on_later() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    let machine = machine(&place);
    let spec = EngineSpec::new("e", Backend::LlamaCpp, "hf:org/repo/m.gguf");
    let state = place.dir.path().join("state");
    let plans = plan_all(
        &[spec.clone(), spec.at("http://127.0.0.1:9")],
        &Resources::default(),
        &machine,
    );
    let plans = plans.expect("nothing is missing");
    assert!(plans[1].is_none(), "someone else's");
    let plan = plans[0].as_ref().expect("ours");
    assert_eq!(
        (plan.need(), plan.downloads()),
        (None, Some("hf:org/repo/m.gguf".to_owned()))
    );
    let mut heard = 0;
    let ended = prepare(plan, 0, &state, &mut |progress| {
        heard += 1;
        match progress {
            Progress::Downloading { done, .. } if done > 0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    assert!(matches!(ended, Err(PrepareError::Cancelled)), "{ended:?}");
    assert!(heard > 0);
    let prepared = prepare(plan, 1, &state, &mut |_| ControlFlow::Continue(())).expect("it goes on");
    assert_eq!((prepared.label().as_str(), prepared.slots), ("e-1", Some(4)));
    assert_eq!(prepared.url(), format!("http://127.0.0.1:{}", prepared.port));
    let whole: u64 = large().len() as u64;
    assert!(prepared.need.ram > whole && prepared.need.vram.is_empty());
    // What was prepared is data: it survives being written.
    let text = serde_json::to_string(&prepared).expect("JSON");
    assert_eq!(
        serde_json::from_str::<PreparedEngine>(&text).expect("the same"),
        prepared
    );
    // A machine with less memory learns of it when the model is there.
    let small = Machine {
        ram: 1 << 20,
        ..machine
    };
    let plan = plan_all(&[spec], &Resources::default(), &small).expect_err("it never fits");
    assert!(plan[0].what.contains("engines may use 819 KiB here"), "{plan:?}");
}

#[test]
fn two_at_once_fetch_one_model() {
    let mut place = Place::with_programs();
    let hub = Hub::start(&[("m.gguf", &large())]);
    place.hub = Some(hub.url());
    place.file(
        "engines.yaml",
        "engines: {e: {backend: llamacpp, model: 'hf:org/repo/m.gguf', replicas: 2}}\n",
    );
    let both = [0, 1].map(|_| {
        let mut command = place.command(&["engine", "provision", "engines.yaml"]);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        command.spawn().expect("the command starts")
    });
    for child in both {
        let output = child.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let path = place
        .dir
        .path()
        .join(format!("hf/hub/models--org--repo/snapshots/{COMMIT}/m.gguf"));
    assert_eq!(sha256(&fs::read(path).expect("it is there")), sha256(&large()));
}

#[test]
fn a_port_is_the_preferred_one_if_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let other = free_port("127.0.0.1", Some(port)).expect("another one");
    assert_ne!(other, port);
    assert_eq!(free_port("127.0.0.1", Some(other)).expect("it is free"), other);
    assert!(free_port("no such host", None).is_err());
}

#[test]
fn someone_elses_server_is_attached_to() {
    let spec = EngineSpec::new("e", Backend::Vllm, "m").at("http://h:1/v1");
    let attached = attach(&spec);
    assert_eq!(
        (attached.mode, attached.url().as_str()),
        (Mode::External, "http://h:1/v1")
    );
    assert!(attached.environment().is_empty());
}

#[test]
fn a_server_sees_its_gpus_by_the_numbers_of_nvidia_smi() {
    let place = Place::with_programs();
    let gpu = |index| Gpu {
        index,
        memory: 1 << 34,
    };
    let machine = Machine {
        gpus: vec![gpu(0), gpu(1)],
        ..machine(&place)
    };
    let mut spec = EngineSpec::new("e", Backend::LlamaCpp, "m.gguf");
    spec.launch.folder = place.path("");
    spec.launch.devices = Some(vec![1]);
    spec.launch.env = vec![("A".to_owned(), "b".to_owned())];
    spec.api_key_env = Some("PATH".to_owned());
    let plans = plan_all(&[spec], &Resources::default(), &machine).expect("nothing is missing");
    let preview = plans[0].as_ref().expect("ours").preview(0);
    let environment: BTreeMap<String, String> = preview
        .environment()
        .into_iter()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    let path = std::env::var("PATH").expect("there is one");
    let expected = [
        ("A", "b"),
        ("CUDA_VISIBLE_DEVICES", "1"),
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("LLAMA_API_KEY", path.as_str()),
    ];
    assert_eq!(
        environment,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    assert!(
        !serde_json::to_string(&preview).expect("JSON").contains(&path),
        "a key is never written"
    );
    assert!(
        !preview.arguments().concat().contains(&path),
        "nor is it an argument"
    );
}

#[test]
fn a_dry_run_of_a_chain_says_where_it_will_ask() {
    let place = Place::with_programs();
    place.file(
        "chain.yaml",
        "engines: {e: {backend: llamacpp, model: m.gguf}}\nsteps: [{id: a, engine: e, user_prompt: hi}]\n",
    );
    place.file("in.jsonl", "{}\n");
    let ran = place.run(&["run", "chain.yaml", "in.jsonl", "out", "--dry-run"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains("POST http://127.0.0.1:PORT/v1/chat/completions"),
        "{}",
        ran.stdout
    );
    assert_eq!(
        listing(place.dir.path()),
        ["bin", "files"].map(str::to_owned).into(),
        "nothing was written"
    );
}
