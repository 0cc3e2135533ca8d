//! `chainette schema`: what the loader takes the schema takes, and the other way round.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chainette::plan::file_schema::{chain, engines_file, mappings};
use chainette::plan::{Closures, compile};
use chainette::spec::{ChainInput, Code};
use serde_json::{Value, json};

use crate::harness::invoke;

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::meta::validate(schema).expect("a schema that is valid itself");
    jsonschema::options()
        .offline()
        .build(schema)
        .expect("the schema compiles and needs no network")
}

/// A YAML file as an editor reads it.
fn yaml(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).expect("the file is there");
    serde_saphyr::from_str(&text).ok()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} holds chains");
    files
}

fn compile_text(text: &str) -> Result<chainette::plan::Compiled, chainette::plan::Report> {
    let input = ChainInput {
        text: Some(text.to_owned()),
        ..ChainInput::file("chain.yaml")
    };
    compile(&input, &Closures::none())
}

#[test]
fn every_key_of_the_loader_is_described_and_no_other() {
    for mapping in mappings() {
        let accepted: BTreeSet<&str> = mapping.accepted.iter().copied().collect();
        let described: BTreeSet<&str> = mapping.described.iter().copied().collect();
        assert_eq!(
            accepted, described,
            "{}: loader (left) and keys.rs (right)",
            mapping.name
        );
        assert_eq!(
            described.len(),
            mapping.described.len(),
            "{}: a key twice",
            mapping.name
        );
    }
}

#[test]
fn every_property_says_what_it_is() {
    let schema = chain();
    let defs = [
        "step",
        "apply",
        "apply_kind",
        "group",
        "branch",
        "engine",
        "retries",
        "timeout",
        "sampling",
        "pool",
        "served_model",
        "memory",
        "resources",
    ];
    let places = defs.map(|name| format!("/$defs/{name}"));
    for place in places.iter().map(String::as_str).chain([""]) {
        let found = schema
            .pointer(&format!("{place}/properties"))
            .and_then(Value::as_object);
        for (key, value) in found.expect("properties") {
            let text = value["description"].as_str().unwrap_or_default();
            assert!(text.len() > 10, "{place}: `{key}` has no description");
        }
    }
}

#[test]
fn the_loader_knows_every_key_that_the_schema_offers() {
    // The keys are tried in a real chain, so that a list which the loader does not use is found.
    let place = |name: &str, key: &str| match name {
        "chain" => format!("{key}: 1\n"),
        "step" if key == "input" => "steps: [{engine: e, task: embed, input: 1}]\n".to_owned(),
        "step" => format!("steps: [{{engine: e, {key}: 1}}]\n"),
        "apply" => format!("steps: [{{apply: {{jq: .}}, {key}: 1}}]\n"),
        "apply_kind" => format!("steps: [{{id: a, apply: {{python: 'a.py:f', {key}: 1}}}}]\n"),
        "group" => format!("steps: [{{parallel: [], {key}: 1}}]\n"),
        "branch" => format!("steps: [{{branch: b, {key}: 1}}]\n"),
        "retries" | "sampling" => format!("steps: [{{engine: e, {name}: {{{key}: 1}}}}]\n"),
        "timeout" => format!(
            "engines: {{e: {{backend: openai, model: m, endpoint: 'http://h', timeout: {{{key}: 1}}}}}}\n"
        ),
        "engine" => format!("engines: {{e: {{{key}: 1}}}}\n"),
        "pool" => format!("pools: [{{{key}: 1}}]\n"),
        "served_model" => format!("engines: {{e: {{backend: llamacpp, model: {{{key}: 1}}}}}}\n"),
        "memory" => format!("engines: {{e: {{backend: llamacpp, model: m, memory: {{{key}: 1}}}}}}\n"),
        "resources" => format!("resources: {{{key}: 1}}\n"),
        other => panic!("no chain for the mapping `{other}`"),
    };
    let unknown = |name: &str, key: &str| {
        // The key may stand there already; then it is known.
        let Err(report) = compile_text(&place(name, key)) else {
            return false;
        };
        report
            .problems()
            .iter()
            .any(|p| p.code == Code::UnknownKey && p.message.contains(key))
    };
    for mapping in mappings() {
        for key in mapping.described {
            assert!(
                !unknown(mapping.name, key),
                "{}: the loader does not know `{key}`",
                mapping.name
            );
        }
        // Any other sampling key goes to the server.
        assert_eq!(
            unknown(mapping.name, "nonsense"),
            mapping.name != "sampling",
            "{}",
            mapping.name
        );
    }
}

#[test]
fn the_defaults_are_those_of_the_loader() {
    let schema = chain();
    let served = ["concurrency", "max_reply", "engine_wait"];
    let default = |def: &str, key: &str| schema["$defs"][def]["properties"][key]["default"].clone();
    let engine: Vec<String> = served
        .iter()
        .map(|key| format!("{key}: {}", default("engine", key)))
        .collect();
    let all = |def: &str| {
        let keys = schema["$defs"][def]["properties"]
            .as_object()
            .expect("properties");
        let set: Vec<String> = keys
            .keys()
            .map(|key| format!("{key}: {}", default(def, key)))
            .collect();
        assert!(
            !set.iter().any(|s| s.contains("null")),
            "{def} has all defaults: {set:?}"
        );
        set.join(", ")
    };
    let chain = |engine: &str, step: &str, top: &str| {
        let text = format!(
            "{top}\nengines: {{e: {{backend: openai, model: m, endpoint: 'http://h/v1', {engine}}}}}\n\
             steps: [{{id: a, engine: e, user_prompt: hi, {step}}}]"
        );
        compile_text(&text)
            .unwrap_or_else(|report| panic!("{report}\n{text}"))
            .plan
    };
    let top = format!("batch_size: {}", schema["properties"]["batch_size"]["default"]);
    let written = chain(
        &format!("{}, timeout: {{{}}}", engine.join(", "), all("timeout")),
        &format!(
            "retries: {{{}}}, on_error: {}, yield_output: {}",
            all("retries"),
            default("step", "on_error"),
            default("step", "yield_output"),
        ),
        &top,
    );
    let silent = chain("", "", "");
    assert_eq!(written.engines, silent.engines);
    assert_eq!(written.batch_size, silent.batch_size);
    // Retries, on_error and yield_output have no equality of their own.
    assert_eq!(format!("{:?}", written.nodes), format!("{:?}", silent.nodes));
}

#[test]
fn good_chains_are_valid() {
    let validator = validator(&chain());
    for path in files("tests/chains/ok").into_iter().chain(files("chains")) {
        let value = yaml(&path).expect("YAML");
        let errors: Vec<String> = validator
            .iter_errors(&value)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
}

#[test]
fn chains_with_a_wrong_structure_are_not() {
    let validator = validator(&chain());
    let structural = [
        "unknown_key",
        "missing_key",
        "wrong_type",
        "bad_value",
        "bad_name",
        "reserved_name",
        "bad_model",
    ];
    let mut seen = BTreeSet::new();
    for path in files("tests/chains/err") {
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let code = stem.split("--").next().expect("a code").to_owned();
        if structural.contains(&code.as_str()) {
            let value = yaml(&path).expect("YAML");
            assert!(!validator.is_valid(&value), "{} is valid", path.display());
            seen.insert(code);
        }
    }
    assert_eq!(seen.len(), structural.len(), "a fixture for each: {seen:?}");
}

/// A chain with one Step; `more` goes into it.
fn step(more: Value) -> Value {
    let mut step = json!({"id": "a", "engine": "e", "user_prompt": "hi"});
    step.as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    json!({"steps": [step]})
}

fn engine(more: Value) -> Value {
    let mut engine = json!({"backend": "openai", "model": "m", "endpoint": "http://h/v1"});
    engine
        .as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    json!({"engines": {"e": engine}, "steps": [{"id": "a", "engine": "e", "user_prompt": "hi"}]})
}

/// An engine that chainette starts.
fn started(more: Value) -> Value {
    let mut chain = engine(json!({"backend": "llamacpp"}));
    let engine = chain["engines"]["e"].as_object_mut().expect("an object");
    engine.remove("endpoint");
    engine.extend(more.as_object().expect("an object").clone());
    chain
}

/// A pool that chainette starts.
fn pool(more: Value) -> Value {
    let mut pool = json!({"id": "e", "engine": "llamacpp", "model": {"id": "./m.gguf"}});
    pool.as_object_mut()
        .expect("an object")
        .extend(more.as_object().expect("an object").clone());
    json!({"pools": [pool], "steps": [{"id": "a", "engine": "e", "user_prompt": "hi"}]})
}

#[test]
fn schema_and_loader_judge_values_alike() {
    let validator = validator(&chain());
    let good = [
        step(
            json!({"on_error": null, "yield_output": false, "sampling": {"top_k": 3, "stop": ["x"], "seed": -1}}),
        ),
        step(
            json!({"output_model": {"a": "x | y?", "b": ["string"], "c": {"d": "integer?"}, "e?": "number"}}),
        ),
        step(json!({"output_model": {"type": "object", "properties": {"a": {"type": ["string", "null"]}}}})),
        step(json!({"retries": {"output": 0}, "when": "true", "emoji": "🙂"})),
        engine(
            json!({"timeout": {"connect": "500ms", "total": "1.5 h"}, "max_reply": "1GB", "engine_wait": "2min"}),
        ),
        engine(
            json!({"max_reply": 1000, "concurrency": 3, "api_key_env": "_KEY2", "headers": {"X-Team": "a"}}),
        ),
        engine(json!({"rpm": 0.5, "tpm": 100_000})),
        started(json!({})),
        started(
            json!({"backend": "vllm_api", "model": {"id": "hf:org/repo", "sha256": "Ab".repeat(32)}, "dtype": "half"}),
        ),
        started(json!({
            "lazy": false, "idle_timeout": "1s", "startup_timeout": "1h", "replicas": 2, "port": 65535, "host": "::1",
            "binary": "bin/llama-server", "flags": ["-t", 4, "--override-kv=a b", "- b"], "env": {"OMP_NUM_THREADS": 2},
            "devices": [], "context": 4096, "memory": {"ram": "1GiB", "vram": 5}, "deterministic": true,
        })),
        started(json!({
            "backend": "tgi", "gpu_memory_utilization": 0.5, "max_model_len": 1, "tensor_parallel_size": 2, "devices": [0, 3],
        })),
        pool(json!({"replicas": 2, "port": 8100, "flags": [], "devices": [1], "rpm": 9})),
        json!({"pools": [{"id": "e", "backend": "ollama", "model": "m", "endpoint": "http://h"}],
               "resources": {"ram": "2GiB", "vram": 7, "spill": "1MB"},
               "steps": [{"id": "a", "engine": "e", "user_prompt": "hi"}]}),
        json!({"pools": null, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"input_model": {}, "vars": null, "models": null, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"steps": [{"branch": "b", "join": "b", "collect": true, "steps": [{"id": "a", "apply": {"jq": "."}}]}]}),
    ];
    let bad = [
        json!({}),
        json!({"steps": []}),
        json!({"steps": [{"id": "a"}]}),
        json!({"steps": [{"id": "a", "engine": "e", "user_prompt": "x", "apply": {"jq": "."}}]}),
        json!({"steps": [{"id": "a", "apply": {"jq": ".", "closure": "f"}}]}),
        json!({"steps": [{"id": "a", "apply": {}}]}),
        json!({"steps": [{"parallel": [{"branch": "b", "steps": []}]}]}),
        json!({"steps": [{"branch": "b", "collect": true, "steps": [{"id": "a", "apply": {"jq": "."}}]}]}),
        json!({"batch_size": 0, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"models": {"M": {}}, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"models": {"string": {"a": "string"}}, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        step(json!({"output_model": {"a": 5}})),
        step(json!({"output_model": {"$ref": "https://example.com/x.json"}})),
        step(json!({"id": "errors"})),
        step(json!({"id": "a_reasoning"})),
        step(json!({"id": "A"})),
        step(json!({"on_error": "skip"})),
        step(json!({"sampling": {"model": "x"}})),
        step(json!({"sampling": {"temperature": -1}})),
        step(json!({"retries": {"transport": 1001}})),
        engine(json!({"endpoint": "ftp://h"})),
        engine(json!({"endpoint": "http://user:pw@h/v1"})),
        engine(json!({"headers": {"AuthoriZation": "x"}})),
        engine(json!({"timeout": {"total": "0s"}})),
        engine(json!({"timeout": {"total": 5}})),
        engine(json!({"timeout": {"total": "5 parsecs"}})),
        engine(json!({"max_reply": 0})),
        engine(json!({"max_reply": "big"})),
        engine(json!({"concurrency": 0})),
        engine(json!({"concurrency": "many"})),
        engine(json!({"api_key_env": "sk-secret"})),
        engine(json!({"backend": "opnai"})),
        engine(json!({"rpm": 0})),
        engine(json!({"tpm": -1})),
        engine(json!({"model": ""})),
        started(json!({"backend": "openai"})),
        started(json!({"backend": "ollama_api"})),
        started(json!({"model": {"sha256": "ab".repeat(32)}})),
        started(json!({"model": {"id": "m", "sha256": "ab"}})),
        started(json!({"model": {"id": "m", "digest": "ab"}})),
        started(json!({"lazy": "no"})),
        started(json!({"idle_timeout": 5})),
        started(json!({"replicas": 0})),
        started(json!({"port": 65536})),
        started(json!({"host": "http://h"})),
        started(json!({"host": "-h"})),
        started(json!({"binary": ""})),
        started(json!({"flags": "--x"})),
        started(json!({"flags": ["--api-key", "sk-1"]})),
        started(json!({"flags": ["-t", 1, "--api-key=sk-1"]})),
        started(json!({"env": ["A=1"]})),
        started(json!({"env": {"A=B": 1}})),
        started(json!({"env": {"hf_Token": "x"}})),
        started(json!({"env": {"CUDA_VISIBLE_DEVICES": "0"}})),
        started(json!({"devices": ["0"]})),
        started(json!({"devices": [0, 0]})),
        started(json!({"devices": 0})),
        started(json!({"context": 0})),
        started(json!({"memory": "1GiB"})),
        started(json!({"memory": {"disk": 1}})),
        started(json!({"gpu_memory_utilization": 0})),
        started(json!({"gpu_memory_utilization": 1.5})),
        pool(json!({"backend": "llamacpp"})),
        pool(json!({"id": "../up"})),
        pool(json!({"id": null})),
        pool(json!({"engine": "openai"})),
        pool(json!({"replica": 1})),
        json!({"pools": {"a": {}}, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"pools": [{"engine": "llamacpp", "model": "m"}], "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"resources": {"cpu": 1}, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
        json!({"resources": 5, "steps": [{"id": "a", "apply": {"jq": "."}}]}),
    ];
    // What only the whole chain tells is no question of structure.
    let structural = |text: &str| match compile_text(text) {
        Ok(_) => false,
        Err(report) => report.problems().iter().any(|p| {
            !matches!(
                p.code,
                Code::UnknownEngine | Code::Unsupported | Code::UnguardedNull
            )
        }),
    };
    for (values, wrong) in [(&good[..], false), (&bad[..], true)] {
        for value in values {
            assert_eq!(!validator.is_valid(value), wrong, "the schema on {value}");
            assert_eq!(structural(&value.to_string()), wrong, "the loader on {value}");
        }
    }
}

#[test]
fn an_error_is_about_the_kind_of_item_that_was_meant() {
    let validator = validator(&chain());
    let value = json!({"steps": [{"id": "a", "engine": "e", "user_promt": "hi"}]});
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| error.to_string())
        .collect();
    let text = errors.join("\n");
    assert!(text.contains("user_promt"), "{text}");
    assert!(text.contains("\"user_prompt\" is a required property"), "{text}");
    assert!(!text.contains("parallel"), "only the Step's problems: {text}");
}

#[test]
fn the_command_prints_all_schemas() {
    let printed = |args: &[&str]| -> Value {
        let ran = invoke(Path::new("."), args);
        assert_eq!((ran.0, ran.2.as_str()), (0, ""), "{args:?}");
        serde_json::from_str(&ran.1).expect("JSON")
    };
    assert_eq!(printed(&["schema"]), chain());
    let events = printed(&["schema", "--events"]);
    assert_eq!(events.to_string(), {
        let schema: Value = serde_json::from_str(chainette::report::events_schema()).expect("JSON");
        schema.to_string()
    });
    let both = invoke(Path::new("."), &["schema", "--events", "--engines-file"]);
    assert_eq!(both.0, 2, "{}", both.2);
    let engines = printed(&["schema", "--engines-file"]);
    assert_eq!(engines, engines_file());
    let validator = validator(&engines);
    let good = json!({"engines": {"e": {"backend": "openai", "model": "m", "endpoint": "http://h/v1"}}});
    assert!(validator.is_valid(&good));
    for bad in [
        json!({}),
        json!({"steps": []}),
        json!({"engines": {"e": {"model": "m"}}}),
        json!({"engines": {"e": {"backend": "openai", "model": "m", "endpiont": "x"}}}),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}
