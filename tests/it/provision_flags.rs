//! How engines are started: their flags, memory, GPUs, and the digest over all that.

use std::collections::BTreeMap;

use chainette::engine::provision::{Gguf, Gpu, Machine, plan_all};
use chainette::spec::{Backend, EngineSpec, Resources};
use serde_json::{Value, json};

use crate::gguf_file::{Kv, gguf, small};
use crate::place::{Place, machine};

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
        // One cache for all texts that are embedded at the same time, and room for each of them in one batch.
        (
            "context: 1000, flags: [--pooling, mean, --embedding]",
            &[
                "--n-gpu-layers",
                "0",
                "--parallel",
                "4",
                "--ctx-size",
                "4000",
                "--kv-unified",
                "--batch-size",
                "1000",
                "--ubatch-size",
                "1000",
                "--metrics",
                "--no-webui",
                "--cache-ram",
                "0",
                "--pooling",
                "mean",
                "--embedding",
            ],
        ),
        (
            "flags: [--embeddings, -no-kvu, -ub, 700]",
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
                "--embeddings",
                "-no-kvu",
                "--ubatch-size",
                "700",
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
