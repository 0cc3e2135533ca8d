//! Engines that chainette starts: what is planned, what is missing, what is pinned.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use chainette::engine::provision::{Mode, attach, free_port};
use chainette::spec::{Backend, EngineSpec};

use crate::gguf_file::small;
use crate::harness::listing;
use crate::place::{Place, sha256};

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
    let kept = place.dir.path().join("state/chainette/digests.json");
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
fn a_run_with_a_wrong_pin_writes_nothing() {
    let place = Place::with_programs();
    let pin = "ab".repeat(32);
    let chain = format!(
        "engines: {{e: {{backend: llamacpp, model: {{id: ./m.gguf, sha256: '{pin}'}}}}}}\n\
         steps: [{{id: s, engine: e, user_prompt: 'hi'}}]\n"
    );
    place.file("chain.yaml", chain);
    place.file("rows.jsonl", "{}\n");
    let ran = place.run(&["run", "chain.yaml", "rows.jsonl", "out"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("engine `e`") && ran.stderr.contains(&pin),
        "{}",
        ran.stderr
    );
    assert!(!place.path("out").exists());
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
