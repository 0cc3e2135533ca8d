//! The engine fields of servers that chainette starts.

use std::path::Path;

use super::fields::{Fields, wrong};
use super::problem::{Code, Problems, Span};
use super::yaml::{Node, Text, Yaml, number};
use super::{Backend, Launch, Memory};

/// The fields that do nothing beside an `endpoint`: they are for starting a server.
const STARTING: &[&str] = &[
    "lazy",
    "idle_timeout",
    "startup_timeout",
    "replicas",
    "port",
    "host",
    "binary",
    "flags",
    "env",
    "devices",
    "require_gpu",
    "dtype",
    "gpu_memory_utilization",
    "max_model_len",
    "tensor_parallel_size",
    "memory",
    "reasoning_parser",
    "deterministic",
    "workers",
];

/// The fields that only some backends have a flag for.
const ONLY: &[(&str, &[Backend])] = &[
    ("dtype", &[Backend::Vllm, Backend::Tgi]),
    ("gpu_memory_utilization", &[Backend::Vllm, Backend::Tgi]),
    ("max_model_len", &[Backend::Vllm, Backend::Tgi]),
    ("tensor_parallel_size", &[Backend::Vllm, Backend::Tgi]),
    ("reasoning_parser", &[Backend::Vllm]),
];

/// The fields that do nothing for a model in this process.
const OF_SERVERS: &[&str] = &[
    "endpoint",
    "api_key_env",
    "headers",
    "rpm",
    "tpm",
    "max_reply",
    "replicas",
    "port",
    "host",
    "binary",
    "flags",
    "env",
    "devices",
    "require_gpu",
    "dtype",
    "gpu_memory_utilization",
    "max_model_len",
    "tensor_parallel_size",
    "reasoning_parser",
    "deterministic",
];

/// Most workers of a model in this process.
const MOST_WORKERS: i64 = 4;

/// Tells of fields that do nothing for a model in this process.
pub(super) fn check_embedded(fields: &Fields<'_>, problems: &mut Problems) {
    for field in OF_SERVERS {
        idle(
            fields,
            field,
            "for `backend: embedded`: its model runs in this process".to_owned(),
            "leave it out, or take a server: `backend: llamacpp`".to_owned(),
            problems,
        );
    }
    if !cfg!(feature = "embedded") {
        problems
            .add(
                Code::Unsupported,
                fields.span(),
                "this chainette was built without models in its own process",
            )
            .help("build it with the feature `embedded` (it is one of the default ones), or take a server");
    }
}

/// The keys of `memory`.
pub(crate) const MEMORY: &[&str] = &["ram", "vram"];

/// Ends of the names of environment variables that hold secrets.
pub(crate) const SECRET_ENV: &[&str] = &["_TOKEN", "_KEY", "_SECRET", "_PASSWORD"];

/// Flags of the servers that are followed by a secret.
pub(crate) const SECRET_FLAGS: &[&str] = &["--api-key", "--hf-token", "-hft"];

/// Most servers of one engine.
const MOST_REPLICAS: i64 = 1024;

/// Tells of fields that do nothing where they stand.
pub(super) fn check_place(fields: &Fields<'_>, backend: Backend, attached: bool, problems: &mut Problems) {
    if attached {
        for field in STARTING {
            idle(
                fields,
                field,
                "beside an `endpoint`: that server is not started by chainette".to_owned(),
                "leave it out and set it at the server itself, or leave out `endpoint`".to_owned(),
                problems,
            );
        }
        let pin = fields.get("model").and_then(|model| model.get("sha256"));
        if let Some(pin) = pin {
            problems
                .add(
                    Code::Unsupported,
                    pin.key.span,
                    "`sha256` does nothing beside an `endpoint`: the server has the file",
                )
                .help("write `model: NAME`, or leave out `endpoint`");
        }
        if backend != Backend::Ollama {
            idle(
                fields,
                "context",
                format!("for `backend: {}` beside an `endpoint`", backend.as_str()),
                "leave it out and set it at the server itself; only `ollama` takes it with each request"
                    .to_owned(),
                problems,
            );
        }
        return;
    }
    idle(
        fields,
        "workers",
        format!("for `backend: {}`", backend.as_str()),
        "leave it out; `replicas` sets the number of servers".to_owned(),
        problems,
    );
    for (field, backends) in ONLY.iter().filter(|(_, backends)| !backends.contains(&backend)) {
        let names: Vec<String> = backends.iter().map(|b| format!("`{}`", b.as_str())).collect();
        idle(
            fields,
            field,
            format!("for `backend: {}`", backend.as_str()),
            match *field {
                "max_model_len" => "leave it out; `context` sets the tokens per request".to_owned(),
                _ => format!("leave it out; it is for {}", names.join(" and ")),
            },
            problems,
        );
    }
    if let (Some(entry), true) = (fields.entry("max_model_len"), fields.has("context")) {
        problems
            .add(
                Code::BadValue,
                entry.key.span,
                "`context` and `max_model_len` say the same here",
            )
            .help("keep one of them");
    }
}

/// Tells of a field that does nothing where it stands.
fn idle(fields: &Fields<'_>, field: &str, why: String, help: String, problems: &mut Problems) {
    if let Some(entry) = fields.entry(field) {
        problems
            .add(
                Code::Unsupported,
                entry.key.span,
                format!("the engine field `{field}` does nothing {why}"),
            )
            .help(help);
    }
}

/// The name of an engine that is started becomes the name of its files.
pub(super) fn check_name(name: &Text, problems: &mut Problems) {
    if name.value.starts_with('.') {
        problems
            .add(
                Code::BadName,
                name.span,
                format!("`{}` cannot name an engine that chainette starts", name.value),
            )
            .help("its files carry its name: begin it with a letter, a digit or `_`");
    }
}

/// Reads how an engine declared by a file in `folder` is to be started.
pub(super) fn read(fields: &Fields<'_>, folder: &Path, problems: &mut Problems) -> Launch {
    let default = Launch::default();
    let devices = devices(fields, problems);
    let launch = Launch {
        folder: folder.to_owned(),
        sha256: None,
        lazy: fields.bool("lazy", default.lazy, problems),
        idle_timeout: fields
            .duration("idle_timeout", problems)
            .unwrap_or(default.idle_timeout),
        startup_timeout: fields
            .duration("startup_timeout", problems)
            .unwrap_or(default.startup_timeout),
        replicas: count(fields, "replicas", MOST_REPLICAS, problems).unwrap_or(default.replicas),
        port: count(fields, "port", 65535, problems).and_then(|port| u16::try_from(port).ok()),
        host: host(fields, problems).unwrap_or(default.host),
        binary: line(fields, "binary", problems).map(|text| text.value),
        flags: flags(fields, problems),
        env: env(fields, problems),
        devices,
        require_gpu: fields.bool("require_gpu", false, problems),
        dtype: line(fields, "dtype", problems).map(|text| text.value),
        gpu_memory_utilization: share(fields, problems),
        max_model_len: tokens(fields, "max_model_len", problems),
        tensor_parallel_size: count(fields, "tensor_parallel_size", MOST_REPLICAS, problems),
        memory: memory(fields, problems),
        reasoning_parser: line(fields, "reasoning_parser", problems).map(|text| text.value),
        deterministic: fields.bool("deterministic", false, problems),
        workers: count(fields, "workers", MOST_WORKERS, problems),
    };
    check_together(fields, &launch, problems);
    launch
}

/// Tells of values that contradict each other.
fn check_together(fields: &Fields<'_>, launch: &Launch, problems: &mut Problems) {
    let span = |key: &str| fields.get(key).map_or(fields.span(), |node| node.span);
    if let Some(devices) = &launch.devices {
        if devices.is_empty() && launch.require_gpu {
            problems
                .add(
                    Code::BadValue,
                    span("require_gpu"),
                    "`require_gpu: true` and an empty list of `devices` contradict each other",
                )
                .help("leave one of them out");
        }
        let wanted = launch.tensor_parallel_size.unwrap_or(1);
        if !devices.is_empty() && (devices.len() as u64) < u64::from(wanted) {
            problems
                .add(
                    Code::BadValue,
                    span("tensor_parallel_size"),
                    format!(
                        "`tensor_parallel_size: {wanted}` needs as many `devices`, and {} are listed",
                        devices.len()
                    ),
                )
                .help("list more devices, or leave `devices` out for all there are");
        }
    }
    let many = fields.get("concurrency").filter(|node| match &node.kind {
        Yaml::Number(raw) => raw != "1",
        _ => false,
    });
    if let (Some(node), true) = (many, launch.deterministic) {
        problems
            .add(
                Code::BadValue,
                node.span,
                "`deterministic: true` means one request at a time",
            )
            .help("leave `concurrency` out, or `deterministic`");
    }
}

/// A number of tokens.
pub(super) fn tokens(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<u32> {
    count(fields, key, i64::from(i32::MAX), problems)
}

/// A whole number from 1.
fn count(fields: &Fields<'_>, key: &str, max: i64, problems: &mut Problems) -> Option<u32> {
    let found = fields.has(key).then(|| fields.int(key, 1, max, problems));
    found.flatten().and_then(|n| u32::try_from(n).ok())
}

/// A text of one line that is not empty.
fn line(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<Text> {
    let text = fields.text(key, problems)?;
    if text.value.is_empty() || text.value.chars().any(char::is_control) {
        problems
            .add(
                Code::BadValue,
                text.span,
                format!("`{key}` must be a text of one line"),
            )
            .help("leave it out for its default");
        return None;
    }
    Some(text)
}

/// The address to listen on: an address or a name, nothing else.
fn host(fields: &Fields<'_>, problems: &mut Problems) -> Option<String> {
    let text = fields.text("host", problems)?;
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b':' | b'-' | b'_');
    if text.value.is_empty() || text.value.starts_with('-') || !text.value.bytes().all(good) {
        problems
            .add(
                Code::BadValue,
                text.span,
                "`host` must be the address to listen on",
            )
            .help("`127.0.0.1` (the default), `0.0.0.0` for everyone in your network, or `::1`");
        return None;
    }
    Some(text.value)
}

/// Flags: one argument each, none of them cut or joined by us.
fn flags(fields: &Fields<'_>, problems: &mut Problems) -> Vec<String> {
    if !fields.has("flags") {
        return Vec::new();
    }
    let items = fields.list("flags", problems).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| {
            let text = super::fields::text(item, "a flag", problems)?;
            check_flag(&text, problems).then_some(text.value)
        })
        .collect()
}

fn check_flag(flag: &Text, problems: &mut Problems) -> bool {
    if flag.value.contains('\0') {
        problems.add(Code::BadValue, flag.span, "a flag cannot hold a NUL character");
        return false;
    }
    let bare = flag.value.split(['=', ' ']).next().unwrap_or_default();
    if SECRET_FLAGS.contains(&bare) {
        problems
            .add(Code::BadValue, flag.span, "a secret must not stand in a chain")
            .help("name the environment variable that holds the server's key with `api_key_env`");
        return false;
    }
    // `--ctx-size 4096` as one item: no shell will take it apart.
    let name = flag.value.trim_start_matches('-');
    let begins = flag.value.starts_with('-') && name.starts_with(|c: char| c.is_ascii_alphabetic());
    let Some((first, rest)) = flag.value.split_once(char::is_whitespace) else {
        return true;
    };
    if begins && !first.contains('=') {
        problems
            .add(
                Code::BadValue,
                flag.span,
                format!("`{first}` and what follows it are one argument here, as no shell takes them apart"),
            )
            .help(format!("write two items: `[{first:?}, {:?}]`", rest.trim()));
        return false;
    }
    true
}

/// Environment variables; what is secret is inherited, not written down.
fn env(fields: &Fields<'_>, problems: &mut Problems) -> Vec<(String, String)> {
    let Some(node) = fields.get("env") else {
        return Vec::new();
    };
    let Yaml::Map(entries) = &node.kind else {
        wrong("env", "a mapping", node, problems);
        problems.last().help("for example `env: {OMP_NUM_THREADS: 2}`");
        return Vec::new();
    };
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = &entry.key.value;
        if !check_env(name, entry.key.span, problems) {
            continue;
        }
        if let Some(value) = super::fields::text(&entry.value, name, problems) {
            if value.value.contains('\0') {
                problems.add(
                    Code::BadValue,
                    value.span,
                    "an environment variable cannot hold a NUL character",
                );
                continue;
            }
            found.push((name.clone(), value.value));
        }
    }
    found
}

fn check_env(name: &str, span: Span, problems: &mut Problems) -> bool {
    let upper = name.to_ascii_uppercase();
    let (message, help) = if name.is_empty() || name.contains(['=', '\0']) {
        (
            format!("`{}` is no name of an environment variable", name.escape_debug()),
            "for example `OMP_NUM_THREADS`",
        )
    } else if SECRET_ENV.iter().any(|end| upper.ends_with(end)) {
        (
            "a secret must not stand in a chain".to_owned(),
            "set it in the environment of chainette: the servers it starts inherit that",
        )
    } else if upper == "CUDA_VISIBLE_DEVICES" {
        (
            "the GPUs of an engine are `devices`".to_owned(),
            "for example `devices: [0]`, which is also checked",
        )
    } else {
        return true;
    };
    problems.add(Code::BadValue, span, message).help(help);
    false
}

/// GPUs by their index.
fn devices(fields: &Fields<'_>, problems: &mut Problems) -> Option<Vec<u32>> {
    if !fields.has("devices") {
        return None;
    }
    let items = fields.list("devices", problems)?;
    let mut found: Vec<u32> = Vec::with_capacity(items.len());
    for item in items {
        match device(item) {
            None => {
                wrong("devices", "a list of GPU numbers", item, problems);
                problems
                    .last()
                    .help("as `nvidia-smi` counts them, for example `devices: [0, 1]`");
            }
            Some(device) if found.contains(&device) => {
                problems
                    .add(
                        Code::BadValue,
                        item.span,
                        format!("GPU {device} stands twice in `devices`"),
                    )
                    .help("keep one of them");
            }
            Some(device) => found.push(device),
        }
    }
    Some(found)
}

fn device(node: &Node) -> Option<u32> {
    match &node.kind {
        Yaml::Number(raw) => number(raw)?.as_u64().and_then(|n| u32::try_from(n).ok()),
        _ => None,
    }
}

/// `gpu_memory_utilization`: above 0, at most 1.
fn share(fields: &Fields<'_>, problems: &mut Problems) -> Option<f64> {
    let key = "gpu_memory_utilization";
    let found = fields.float(key, 0.0, 1.0, problems)?;
    if found > 0.0 {
        return Some(found);
    }
    let span = fields.get(key)?.span;
    problems
        .add(Code::BadValue, span, format!("`{key}` must be above 0"))
        .help("a share of the GPU's memory, such as 0.9");
    None
}

fn memory(fields: &Fields<'_>, problems: &mut Problems) -> Memory {
    let Some(node) = fields.get("memory") else {
        return Memory::default();
    };
    match Fields::of(node, "`memory`", MEMORY, problems) {
        Some(fields) => Memory {
            ram: fields.size("ram", problems),
            vram: fields.size("vram", problems),
        },
        None => Memory::default(),
    }
}
