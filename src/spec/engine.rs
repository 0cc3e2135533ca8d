//! Engines as the user declares them (ENGINES.md, "Engine fields").

use super::fields::{Fields, wrong};
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
    "price",
];

/// The fields that this version acts on.
pub(crate) const SERVED: &[&str] = &[
    "backend",
    "model",
    "endpoint",
    "api_key_env",
    "headers",
    "concurrency",
    "timeout",
    "max_reply",
    "engine_wait",
    "reasoning",
];

/// The fields that this version acts on at one backend.
pub(crate) const SERVED_BY: &[(Backend, &str)] = &[(Backend::Ollama, "context")];

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

const WHAT_WORKS: &str =
    "give the `endpoint` of a running server (backends: openai, vllm, llamacpp, tgi, ollama)";
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

/// Reads one engine; `None` when something about it is wrong.
pub(super) fn read(name: &Text, node: &Node, problems: &mut Problems) -> Option<EngineSpec> {
    let fields = Fields::of(node, "an engine", FIELDS, problems)?;
    let backend = backend(&fields, problems);
    let served =
        |field: &str| SERVED.contains(&field) || backend.is_some_and(|b| SERVED_BY.contains(&(b, field)));
    for field in FIELDS.iter().filter(|field| !served(field)) {
        let Some(entry) = node.get(field) else { continue };
        let elsewhere = SERVED_BY.iter().find(|(_, name)| name == field);
        let (message, help) = match (backend, elsewhere) {
            (Some(backend), Some((other, _))) => (
                format!(
                    "the engine field `{field}` does nothing for `backend: {}`",
                    backend.as_str()
                ),
                format!(
                    "leave it out and set it at the server itself; only `{}` takes it with each request",
                    other.as_str()
                ),
            ),
            _ => (
                format!("the engine field `{field}` is not supported in this version"),
                "leave it out; set it at the server itself".to_owned(),
            ),
        };
        problems
            .add(Code::Unsupported, entry.key.span, message)
            .help(help);
    }
    let model = fields.need_text("model", problems);
    let endpoint = endpoint(&fields, name, problems);
    let api_key_env = fields.text("api_key_env", problems);
    if let Some(env) = &api_key_env {
        check_env_name(env, problems);
    }
    let spec = EngineSpec {
        name: name.value.clone(),
        backend: backend?,
        model: model?.value,
        endpoint: Some(endpoint?),
        api_key_env: api_key_env.map(|t| t.value),
        headers: headers(&fields, problems),
        concurrency: concurrency(&fields, problems),
        timeout: timeouts(&fields, problems),
        max_reply: fields.size("max_reply", problems).unwrap_or(16 * 1024 * 1024),
        engine_wait: fields
            .duration("engine_wait", problems)
            .unwrap_or(std::time::Duration::from_secs(600)),
        reasoning: fields
            .has("reasoning")
            .then(|| fields.bool("reasoning", false, problems)),
        context: fields
            .has("context")
            .then(|| fields.int("context", 1, i64::from(i32::MAX), problems))
            .flatten()
            .and_then(|tokens| u32::try_from(tokens).ok()),
        rpm: None,
        tpm: None,
        launch: Launch::default(),
    };
    Some(spec)
}

fn backend(fields: &Fields<'_>, problems: &mut Problems) -> Option<Backend> {
    let text = fields.need_text("backend", problems)?;
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

fn endpoint(fields: &Fields<'_>, name: &Text, problems: &mut Problems) -> Option<String> {
    if !fields.has("endpoint") {
        problems
            .add(
                Code::Unsupported,
                name.span,
                format!(
                    "the engine `{}` has no `endpoint`; starting engines is not supported in this version",
                    name.value
                ),
            )
            .help(WHAT_WORKS);
        return None;
    }
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
