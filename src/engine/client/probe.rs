//! How an engine is doing: asked once, briefly, in its own way. Nothing is generated.

use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;

use super::fault::Said;
use super::http::Http;
use crate::engine::CallError;
use crate::row::ErrorKind;
use crate::spec::{EngineSpec, Timeouts, suggest};

/// Providers list hundreds of models; nobody lists this much.
const MAX_PAGE: u64 = 4 << 20;
/// The longest name or version that is repeated, in characters.
const MAX_NAME: usize = 120;

/// What an engine's server says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes requests for the model.
    Ready,
    /// It is there and still loads the model.
    Loading,
    /// Nobody answers.
    Unreachable,
    /// It wants another API key, or one at all.
    Unauthorised,
    /// It serves other models.
    ModelUnknown,
    /// It answers, but not in the way this kind of server does.
    Unclear,
}

impl State {
    /// The name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Loading => "loading",
            Self::Unreachable => "unreachable",
            Self::Unauthorised => "unauthorised",
            Self::ModelUnknown => "model unknown",
            Self::Unclear => "unclear",
        }
    }
}

/// The outcome of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// In a word.
    pub state: State,
    /// Why it is not ready, without secrets.
    pub reason: Option<String>,
    /// The server's version, where it tells.
    pub version: Option<String>,
    /// Requests it works on at the same time, where it tells.
    pub slots: Option<u64>,
    /// Tokens per request, where it tells.
    pub context: Option<u64>,
    /// The models it lists.
    pub models: Vec<String>,
}

/// Asks an engine for its state. Takes about as long as `patience` at most, and never fails.
pub async fn probe(spec: &EngineSpec, patience: Duration) -> Health {
    probe_as(spec.backend.as_str(), spec, patience).await
}

/// Like [`probe`], for a server of a named kind (`openai`, `vllm`, `llamacpp`, `tgi`, `ollama`); any
/// other is asked like `openai`.
pub async fn probe_as(backend: &str, spec: &EngineSpec, patience: Duration) -> Health {
    let recipe = RECIPES.iter().find(|recipe| recipe.backend == backend);
    let recipe = recipe.unwrap_or(&OPENAI);
    let mut health = ask(recipe, &prepared(recipe, spec, patience), patience).await;
    if let (State::Unauthorised, Some(name)) = (health.state, &spec.api_key_env)
        && !key_is_set(name)
    {
        health.reason = Some(format!("{name} (`api_key_env`) is not set"));
    }
    health
}

/// Gets the recipe's pages, all at once, and sums up what they say.
async fn ask(recipe: &Recipe, spec: &EngineSpec, patience: Duration) -> Health {
    let pages = recipe.pages.iter().map(|page| get(spec, page.path, patience));
    let mut seen = Seen::default();
    for (page, got) in recipe.pages.iter().zip(join_all(pages).await) {
        match (got, page.required) {
            (Ok(value), _) => (page.read)(&value, &mut seen),
            (Err(_), false) => {}
            (Err(trouble), true) => {
                let mut health = seen.health(trouble.state);
                health.reason = Some(match (trouble.missing, recipe.at_root) {
                    (true, false) => missing_page(spec, trouble.reason, patience).await,
                    _ => trouble.reason,
                });
                return health;
            }
        }
    }
    judge(recipe, spec, seen)
}

/// How a kind of server is asked.
struct Recipe {
    /// Its name in a chain.
    backend: &'static str,
    /// The paths are the server's own; the `/v1` at the end of an endpoint is not part of them.
    at_root: bool,
    /// It answers whatever model is asked for.
    any_model: bool,
    pages: &'static [Page],
}

/// A page that says something.
struct Page {
    path: &'static str,
    /// Without it nothing is known.
    required: bool,
    read: fn(&Value, &mut Seen),
}

const fn need(path: &'static str, read: fn(&Value, &mut Seen)) -> Page {
    let required = true;
    Page { path, required, read }
}

const fn like(path: &'static str, read: fn(&Value, &mut Seen)) -> Page {
    let required = false;
    Page { path, required, read }
}

const OPENAI: Recipe = Recipe {
    backend: "openai",
    at_root: false,
    any_model: false,
    pages: &[need("/models", models)],
};

const RECIPES: &[Recipe] = &[
    OPENAI,
    Recipe {
        backend: "vllm",
        at_root: true,
        any_model: false,
        pages: &[
            need("/health", nothing),
            like("/version", version),
            need("/v1/models", models),
        ],
    },
    Recipe {
        backend: "llamacpp",
        at_root: true,
        any_model: true,
        pages: &[
            need("/health", nothing),
            like("/v1/models", models),
            like("/props", props),
        ],
    },
    Recipe {
        backend: "tgi",
        at_root: true,
        any_model: true,
        pages: &[need("/health", nothing), like("/info", info)],
    },
    Recipe {
        backend: "ollama",
        at_root: true,
        any_model: false,
        pages: &[need("/api/version", version), need("/api/tags", tags)],
    },
];

/// What the pages said.
#[derive(Default)]
struct Seen {
    version: Option<String>,
    slots: Option<u64>,
    context: Option<u64>,
    models: Vec<String>,
    /// A llama.cpp server behind an OpenAI front: it serves one model by any name.
    any_model: bool,
}

impl Seen {
    fn health(self, state: State) -> Health {
        Health {
            state,
            reason: None,
            version: self.version,
            slots: self.slots,
            context: self.context,
            models: self.models,
        }
    }
}

fn nothing(_: &Value, _: &mut Seen) {}

/// OpenAI, vLLM, llama.cpp: `{"data": [{"id", "owned_by", "max_model_len"}]}`.
fn models(page: &Value, seen: &mut Seen) {
    let listed = page.get("data").and_then(Value::as_array);
    for model in listed.into_iter().flatten() {
        seen.models.extend(text(model.get("id")));
        seen.any_model |= model.get("owned_by").and_then(Value::as_str) == Some("llamacpp");
        seen.context = seen
            .context
            .or_else(|| model.get("max_model_len").and_then(Value::as_u64));
    }
}

/// vLLM, Ollama: `{"version"}`.
fn version(page: &Value, seen: &mut Seen) {
    seen.version = text(page.get("version"));
}

/// llama.cpp: `{"total_slots", "build_info", "default_generation_settings": {"n_ctx"}}`.
fn props(page: &Value, seen: &mut Seen) {
    seen.version = text(page.get("build_info"));
    seen.slots = page.get("total_slots").and_then(Value::as_u64);
    seen.context = page
        .pointer("/default_generation_settings/n_ctx")
        .and_then(Value::as_u64);
}

/// TGI: `{"model_id", "version", "max_concurrent_requests", "max_total_tokens"}`.
fn info(page: &Value, seen: &mut Seen) {
    seen.models.extend(text(page.get("model_id")));
    seen.version = text(page.get("version"));
    seen.slots = page.get("max_concurrent_requests").and_then(Value::as_u64);
    seen.context = page.get("max_total_tokens").and_then(Value::as_u64);
}

/// Ollama: `{"models": [{"name": "llama3:latest"}]}`.
fn tags(page: &Value, seen: &mut Seen) {
    let listed = page.get("models").and_then(Value::as_array);
    let names = listed
        .into_iter()
        .flatten()
        .filter_map(|model| text(model.get("name")));
    seen.models.extend(names);
}

/// A server's text, safe to show on a terminal.
fn text(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?;
    let shown = text.chars().filter(|c| !c.is_control()).take(MAX_NAME);
    Some(shown.collect())
}

/// The engine as a probe asks it: its own clocks, no key where none is set, paths from the root.
fn prepared(recipe: &Recipe, spec: &EngineSpec, patience: Duration) -> EngineSpec {
    let mut spec = spec.clone();
    spec.timeout = Timeouts {
        connect: patience,
        first_byte: patience,
        between_bytes: patience,
        total: patience,
    };
    spec.max_reply = MAX_PAGE;
    spec.api_key_env = spec.api_key_env.filter(|name| key_is_set(name));
    let endpoint = spec.endpoint.clone().unwrap_or_default();
    let endpoint = endpoint.trim_end_matches('/');
    let root = if recipe.at_root {
        endpoint.strip_suffix("/v1").unwrap_or(endpoint)
    } else {
        endpoint
    };
    spec.endpoint = Some(root.trim_end_matches('/').to_owned());
    spec
}

/// True when the variable holds something.
pub fn key_is_set(name: &str) -> bool {
    std::env::var(name).is_ok_and(|key| !key.trim().is_empty())
}

/// Why a page could not be read.
struct Trouble {
    state: State,
    reason: String,
    /// There is a server, but not this page.
    missing: bool,
}

impl Trouble {
    fn new(state: State, reason: impl Into<String>) -> Self {
        Self {
            state,
            reason: reason.into(),
            missing: false,
        }
    }
}

/// Gets a page; an empty one reads as null.
async fn get(spec: &EngineSpec, path: &str, patience: Duration) -> Result<Value, Trouble> {
    let page = format!("{}{path}", spec.endpoint.as_deref().unwrap_or_default());
    let http = Http::at(spec, &page).map_err(|message| Trouble::new(State::Unclear, message))?;
    match http.get().await {
        Ok((status, body)) => read(status, &body, path, spec).map_err(|trouble| Trouble {
            reason: http.redact(trouble.reason),
            ..trouble
        }),
        Err(error) => Err(Trouble::new(State::Unreachable, cause(&error, patience))),
    }
}

fn cause(error: &CallError, patience: Duration) -> String {
    let late = matches!(
        error,
        CallError::Transport {
            kind: ErrorKind::Timeout,
            ..
        }
    );
    let message = error.to_string();
    if late || message.contains("timeout.connect") {
        return format!("no answer within {patience:?}");
    }
    message
}

fn read(status: u16, body: &[u8], path: &str, spec: &EngineSpec) -> Result<Value, Trouble> {
    let said = || Said::read(body).message;
    let with_said = |start: String| match said() {
        said if said.is_empty() => start,
        said => format!("{start}: {said}"),
    };
    Err(match status {
        200..=299 if body.trim_ascii().is_empty() => return Ok(Value::Null),
        200..=299 => {
            let page = serde_json::from_slice(body).ok();
            // Health pages are for their status.
            let page = page.or_else(|| (path == "/health").then_some(Value::Null));
            return page.ok_or_else(|| Trouble::new(State::Unclear, format!("{path} is not JSON")));
        }
        401 | 403 => {
            let advice = match &spec.api_key_env {
                Some(name) => format!("check the API key in {name}"),
                None => "it wants an API key (`api_key_env`)".to_owned(),
            };
            Trouble::new(State::Unauthorised, advice)
        }
        503 if path == "/health" || said().to_lowercase().contains("loading") => {
            Trouble::new(State::Loading, with_said(format!("HTTP {status}")))
        }
        300..=399 => Trouble::new(
            State::Unclear,
            "it redirects: give the final address as `endpoint`",
        ),
        _ => Trouble {
            missing: status == 404,
            ..Trouble::new(State::Unclear, with_said(format!("HTTP {status} at {path}")))
        },
    })
}

/// A server without the page: often the endpoint only lacks its `/v1`.
async fn missing_page(spec: &EngineSpec, reason: String, patience: Duration) -> String {
    let whole = spec.endpoint.as_ref().is_some_and(|at| at.ends_with("/v1"));
    if whole || get(spec, "/v1/models", patience).await.is_err() {
        return format!("{reason}; check that `endpoint` ends where `/chat/completions` begins");
    }
    format!("{reason}; did you mean `endpoint: {}/v1`?", spec.shown_endpoint())
}

/// The server is there: does it serve the model?
fn judge(recipe: &Recipe, spec: &EngineSpec, seen: Seen) -> Health {
    let model = spec.model.as_str();
    let latest = format!("{model}:latest");
    let known = recipe.any_model
        || seen.any_model
        || seen.models.is_empty()
        || seen.models.iter().any(|m| *m == model || *m == latest);
    if known {
        return seen.health(State::Ready);
    }
    let help = suggest(model, seen.models.iter().map(String::as_str));
    let mut health = seen.health(State::ModelUnknown);
    health.reason = help;
    health
}
