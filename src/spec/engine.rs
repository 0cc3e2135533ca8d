//! Engines as the user declares them (ENGINES.md, "Engine fields").

use std::path::Path;

use super::fields::{Fields, wrong};
use super::launch_fields;
use super::problem::{Code, Problems, Span};
use super::yaml::{Node, Text, Yaml};
use super::{Backend, Concurrency, EngineSpec, Launch, Timeouts};

/// Every documented field.
pub(crate) const FIELDS: &[&str] = &[
    "backend",
    "model",
    "endpoint",
    "api_key_env",
    "headers",
    "concurrency",
    "rpm",
    "tpm",
    "timeout",
    "max_reply",
    "engine_wait",
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
    "context",
    "dtype",
    "gpu_memory_utilization",
    "max_model_len",
    "tensor_parallel_size",
    "memory",
    "reasoning",
    "reasoning_parser",
    "deterministic",
    "workers",
    "price",
];

/// The fields that this version does not act on.
pub(crate) const UNSERVED: &[&str] = &["price"];

/// The documented backends, aliases included.
pub(crate) const BACKENDS: &[&str] = &[
    "openai",
    "vllm",
    "llamacpp",
    "tgi",
    "ollama",
    "embedded",
    "vllm_api",
    "ollama_api",
];

/// The backends whose servers are always someone else's.
pub(crate) const ATTACHED: &[&str] = &["openai", "ollama", "ollama_api"];

/// The keys of a pool: those of an engine, its name and another word for its backend.
pub(crate) const POOL: &[&str] = &[
    "id",
    "engine",
    "backend",
    "model",
    "endpoint",
    "api_key_env",
    "headers",
    "concurrency",
    "rpm",
    "tpm",
    "timeout",
    "max_reply",
    "engine_wait",
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
    "context",
    "dtype",
    "gpu_memory_utilization",
    "max_model_len",
    "tensor_parallel_size",
    "memory",
    "reasoning",
    "reasoning_parser",
    "deterministic",
    "workers",
    "price",
];

/// The keys of a model that is pinned.
pub(crate) const MODEL: &[&str] = &["id", "sha256"];

const WHAT_WORKS: &str = "there is openai, vllm, llamacpp, tgi, ollama, embedded";

/// The clocks of `timeout`.
pub(crate) const TIMEOUT: &[&str] = &["connect", "first_byte", "between_bytes", "total"];

/// Headers that carry secrets, in lower case.
pub(crate) const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "proxy-authorization",
    "api-key",
    "x-api-key",
    "cookie",
];

/// Reads one engine of the file in `folder`; `None` when something about it is wrong.
pub(super) fn read(name: &Text, node: &Node, folder: &Path, problems: &mut Problems) -> Option<EngineSpec> {
    let fields = Fields::of(node, "an engine", FIELDS, problems)?;
    read_fields(name, &fields, "backend", folder, problems)
}

/// The name of a pool, one item of `pools`.
pub(super) fn pool_id(node: &Node, problems: &mut Problems) -> Option<Text> {
    Fields::of(node, "a pool", POOL, &mut Problems::default())?.need_text("id", problems)
}

/// Reads one pool; `None` when something about it is wrong.
pub(super) fn read_pool(
    name: &Text,
    node: &Node,
    folder: &Path,
    problems: &mut Problems,
) -> Option<EngineSpec> {
    let fields = Fields::of(node, "a pool", POOL, problems)?;
    if let (Some(entry), true) = (node.get("backend"), fields.has("engine")) {
        problems
            .add(
                Code::BadValue,
                entry.key.span,
                "a pool has `engine` or `backend`, not both: they are the same",
            )
            .help("keep one of them");
        return None;
    }
    let backend = if fields.has("backend") {
        "backend"
    } else {
        "engine"
    };
    read_fields(name, &fields, backend, folder, problems)
}

/// Reads an engine whose backend stands under `backend_key`.
fn read_fields(
    name: &Text,
    fields: &Fields<'_>,
    backend_key: &str,
    folder: &Path,
    problems: &mut Problems,
) -> Option<EngineSpec> {
    let backend = backend(fields, backend_key, problems);
    for entry in UNSERVED.iter().filter_map(|field| fields.entry(field)) {
        problems
            .add(
                Code::Unsupported,
                entry.key.span,
                format!(
                    "the engine field `{}` is not supported in this version",
                    entry.key.value
                ),
            )
            .help("leave it out");
    }
    let model = model(fields, problems);
    let attached = fields.has("endpoint");
    let endpoint = attached.then(|| endpoint(fields, problems));
    if let Some(backend) = backend {
        if backend == Backend::Embedded {
            launch_fields::check_embedded(fields, problems);
        } else if !attached && !backend.is_started() {
            needs_endpoint(name, backend, problems);
        } else {
            launch_fields::check_place(fields, backend, attached, problems);
        }
        if !attached && backend.is_started() {
            launch_fields::check_name(name, problems);
        }
    }
    let api_key_env = fields.text("api_key_env", problems);
    if let Some(env) = &api_key_env {
        check_env_name(env, problems);
    }
    let spec = EngineSpec {
        name: name.value.clone(),
        // These two are known below, when all else has been read.
        backend: backend.unwrap_or(Backend::Custom),
        model: String::new(),
        endpoint: endpoint.clone().flatten(),
        api_key_env: api_key_env.map(|t| t.value),
        headers: headers(fields, problems),
        concurrency: concurrency(fields, problems),
        timeout: timeouts(fields, problems),
        max_reply: fields.size("max_reply", problems).unwrap_or(16 * 1024 * 1024),
        engine_wait: fields
            .duration("engine_wait", problems)
            .unwrap_or(std::time::Duration::from_secs(600)),
        reasoning: fields
            .has("reasoning")
            .then(|| fields.bool("reasoning", false, problems)),
        context: launch_fields::tokens(fields, "context", problems),
        rpm: rate(fields, "rpm", problems),
        tpm: rate(fields, "tpm", problems),
        launch: launch_fields::read(fields, folder, problems),
    };
    let (model, sha256) = model?;
    let whole = backend?.is_started() || backend == Some(Backend::Embedded) || attached;
    if !whole || endpoint == Some(None) {
        return None;
    }
    let launch = Launch {
        sha256,
        ..spec.launch
    };
    Some(EngineSpec {
        model,
        launch,
        ..spec
    })
}

fn needs_endpoint(name: &Text, backend: Backend, problems: &mut Problems) {
    problems
        .add(
            Code::MissingKey,
            name.span,
            format!(
                "the engine `{}` needs an `endpoint`: chainette does not start `{}` servers",
                name.value,
                backend.as_str()
            ),
        )
        .help(match backend {
            Backend::Ollama => {
                "for example `endpoint: http://127.0.0.1:11434`; chainette starts llamacpp, vllm and tgi, and runs embedded itself"
            }
            _ => "for example `endpoint: http://127.0.0.1:8000/v1`; chainette starts llamacpp, vllm and tgi, and runs embedded itself",
        });
}

/// The model, and the digest that its file must have: `REF`, or `{id: REF, sha256: HEX}`.
fn model(fields: &Fields<'_>, problems: &mut Problems) -> Option<(String, Option<String>)> {
    let node = fields.need("model", problems)?;
    let (id, sha256) = match &node.kind {
        Yaml::Map(_) => {
            let fields = Fields::of(node, "`model`", MODEL, problems)?;
            (fields.need_text("id", problems)?, fields.text("sha256", problems))
        }
        _ => (fields.text("model", problems)?, None),
    };
    if id.value.trim().is_empty() || id.value.chars().any(char::is_control) {
        problems
            .add(Code::BadValue, id.span, "`model` must name a model, on one line")
            .help("the name that the server knows it by, a path, or `hf:org/repo`");
        return None;
    }
    let pin = sha256.map(|pin| {
        let hex = pin.value.len() == 64 && pin.value.bytes().all(|b| b.is_ascii_hexdigit());
        if !hex {
            problems
                .add(Code::BadValue, pin.span, "`sha256` must be 64 hexadecimal digits")
                .help("as `sha256sum FILE` prints them, in quotes");
        }
        pin.value.to_ascii_lowercase()
    });
    Some((id.value, pin))
}

/// So many a minute, above zero.
fn rate(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<f64> {
    let found = fields.float(key, 0.0, f64::INFINITY, problems)?;
    if found > 0.0 {
        return Some(found);
    }
    let span = fields.get(key)?.span;
    problems
        .add(Code::BadValue, span, format!("`{key}` must be above zero"))
        .help("leave it out for no limit");
    None
}

fn backend(fields: &Fields<'_>, key: &str, problems: &mut Problems) -> Option<Backend> {
    let text = fields.need_text(key, problems)?;
    let canonical = text.value.strip_suffix("_api").unwrap_or(&text.value);
    let served = Backend::ALL
        .into_iter()
        .find(|backend| backend.as_str() == canonical);
    if BACKENDS.contains(&text.value.as_str()) && served.is_some() {
        return served;
    }
    if BACKENDS.contains(&text.value.as_str()) {
        problems
            .add(
                Code::Unsupported,
                text.span,
                format!("the backend `{canonical}` is not supported in this version"),
            )
            .help(WHAT_WORKS);
    } else {
        problems
            .add(
                Code::BadValue,
                text.span,
                format!("unknown backend `{}`", text.value),
            )
            .maybe_help(super::suggest(&text.value, BACKENDS.iter().copied()));
    }
    None
}

fn endpoint(fields: &Fields<'_>, problems: &mut Problems) -> Option<String> {
    let text = fields.text("endpoint", problems)?;
    let rest = text
        .value
        .strip_prefix("http://")
        .or_else(|| text.value.strip_prefix("https://"));
    let host = rest.and_then(|r| r.split('/').next()).unwrap_or_default();
    if host.is_empty() || text.value.contains(char::is_whitespace) {
        problems
            .add(
                Code::BadValue,
                text.span,
                "`endpoint` must be an http or https URL",
            )
            .help("for example `http://127.0.0.1:8000/v1`");
        return None;
    }
    if host.contains('@') {
        secret(text.span, problems);
        return None;
    }
    Some(text.value.trim_end_matches('/').to_owned())
}

fn secret(span: Span, problems: &mut Problems) {
    problems
        .add(Code::BadValue, span, "a secret must not stand in a chain")
        .help("put it into an environment variable and name that with `api_key_env`");
}

fn check_env_name(env: &Text, problems: &mut Problems) {
    let mut chars = env.value.chars();
    let good = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !good {
        problems
            .add(
                Code::BadValue,
                env.span,
                "`api_key_env` must be the name of an environment variable",
            )
            .help("for example `OPENAI_API_KEY`; the key itself never stands in a chain");
    }
}

fn headers(fields: &Fields<'_>, problems: &mut Problems) -> Vec<(String, String)> {
    let Some(node) = fields.get("headers") else {
        return Vec::new();
    };
    let Yaml::Map(entries) = &node.kind else {
        wrong("headers", "a mapping", node, problems);
        return Vec::new();
    };
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.key.value.to_ascii_lowercase();
        if SECRET_HEADERS.contains(&name.as_str()) {
            secret(entry.key.span, problems);
            continue;
        }
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            problems.add(
                Code::BadValue,
                entry.key.span,
                format!("`{}` is no header name", entry.key.value),
            );
            continue;
        }
        if let Some(value) = super::fields::text(&entry.value, &entry.key.value, problems) {
            if value.value.chars().any(char::is_control) {
                problems.add(Code::BadValue, value.span, "a header value must be one line");
                continue;
            }
            found.push((entry.key.value.clone(), value.value));
        }
    }
    found
}

fn concurrency(fields: &Fields<'_>, problems: &mut Problems) -> Concurrency {
    let auto = fields
        .get("concurrency")
        .is_none_or(|node| node.as_text().is_some_and(|t| t.value == "auto"));
    if auto {
        return Concurrency::Auto;
    }
    match fields.int("concurrency", 1, 100_000, problems) {
        Some(n) => Concurrency::Fixed(usize::try_from(n).unwrap_or(1)),
        None => {
            problems.last().help("write a number of requests, or `auto`");
            Concurrency::Auto
        }
    }
}

fn timeouts(fields: &Fields<'_>, problems: &mut Problems) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(node) = fields.get("timeout") else {
        return timeouts;
    };
    if let Some(fields) = Fields::of(node, "`timeout`", TIMEOUT, problems) {
        let mut set = |key, slot: &mut std::time::Duration| {
            if let Some(found) = fields.duration(key, problems) {
                *slot = found;
            }
        };
        set("connect", &mut timeouts.connect);
        set("first_byte", &mut timeouts.first_byte);
        set("between_bytes", &mut timeouts.between_bytes);
        set("total", &mut timeouts.total);
    }
    timeouts
}
