//! What the user wrote: chain files and engines files, read into specs in which every part knows its place.

mod apply;
mod chain;
mod engine;
mod fields;
mod launch;
mod launch_fields;
mod load;
mod place;
mod problem;
mod steps;
mod yaml;
mod yaml_error;

pub use apply::{ApplyKind, ProcessSpec};
pub use chain::{ChainSpec, EngineDecl};
pub(crate) use fields::duration as parse_duration;
pub use launch::{Launch, Memory, Resources};
pub use load::{ChainInput, load, load_engines};
pub use place::Places;
pub use problem::{Code, Problem, ProblemRef, Problems, Sources, Span, nearest, suggest};
pub use steps::{ApplySpec, BranchSpec, GroupSpec, NodeHead, NodeSpec, StepSpec};
pub(crate) use yaml::parse as parse_yaml;
pub use yaml::{Entry, Node, Text, Yaml};

use std::path::PathBuf;
use std::time::Duration;

/// The keys that the loader takes, mapping by mapping: the JSON Schema of chain files is made of them.
pub(crate) mod accepted {
    pub(crate) use super::apply::{KEYS as APPLY_KEYS, KINDS as APPLY_KINDS};
    pub(crate) use super::chain::{ENGINES_FILE, KEYS as CHAIN, RESOURCES};
    pub(crate) use super::engine::{
        ATTACHED, BACKENDS, FIELDS as ENGINE, MODEL, POOL, SECRET_HEADERS, TIMEOUT,
        UNSERVED as ENGINE_UNSERVED,
    };
    pub(crate) use super::launch_fields::{MEMORY, SECRET_ENV, SECRET_FLAGS};
    pub(crate) use super::steps::{
        APPLY, BRANCH, EMBED, GENERATE, GROUP, RETRIES, SAMPLING, SAMPLING_TAKEN, STEP,
    };
}

/// The wire protocol of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// OpenAI chat completions; also what SGLang and most providers serve.
    OpenAi,
    /// An engine that the library's user registered; no chain file can name it.
    Custom,
    /// vLLM: chat completions with its own fields.
    Vllm,
    /// llama.cpp's `llama-server`: chat completions with its own fields.
    LlamaCpp,
    /// Text Generation Inference: chat completions with its own form of schemas.
    Tgi,
    /// Ollama's own `/api/chat`.
    Ollama,
    /// A model in this process.
    Embedded,
}

impl Backend {
    /// Every backend.
    pub const ALL: [Self; 6] = [
        Self::OpenAi,
        Self::Vllm,
        Self::LlamaCpp,
        Self::Tgi,
        Self::Ollama,
        Self::Embedded,
    ];

    /// The name in a chain.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Custom => "custom",
            Self::Vllm => "vllm",
            Self::LlamaCpp => "llamacpp",
            Self::Tgi => "tgi",
            Self::Ollama => "ollama",
            Self::Embedded => "embedded",
        }
    }

    /// True when its models are GGUF files.
    pub fn takes_gguf(self) -> bool {
        matches!(self, Self::LlamaCpp | Self::Embedded)
    }

    /// True when chainette can start its servers; the others are always someone else's.
    pub fn is_started(self) -> bool {
        matches!(self, Self::Vllm | Self::LlamaCpp | Self::Tgi)
    }
}

/// What a Step asks of its engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Task {
    /// Text: a reply to its prompts.
    #[default]
    Generate,
    /// The vector of a text.
    Embed,
}

impl Task {
    /// Every task.
    pub const ALL: [Self; 2] = [Self::Generate, Self::Embed];

    /// The name in a chain.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Embed => "embed",
        }
    }
}

/// Requests in flight at one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// Found while running.
    Auto,
    /// Fixed.
    Fixed(usize),
}

/// The clocks of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the connection stands. Default 10 s.
    pub connect: Duration,
    /// Until the first byte of the reply. Default 300 s.
    pub first_byte: Duration,
    /// Between two pieces of the reply. Default 120 s.
    pub between_bytes: Duration,
    /// The whole request. Default 30 min.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(300),
            between_bytes: Duration::from_secs(120),
            total: Duration::from_secs(30 * 60),
        }
    }
}

/// An engine as the user declared it.
#[derive(Clone, PartialEq)]
pub struct EngineSpec {
    /// Its name in the chain.
    pub name: String,
    /// Its protocol.
    pub backend: Backend,
    /// The model it serves: the server's own name for it, or for a server that we start a path or `hf:org/repo`.
    pub model: String,
    /// Base URL (`http://host:port/v1`); none: chainette starts the server.
    pub endpoint: Option<String>,
    /// The environment variable that holds the API key.
    pub api_key_env: Option<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// Requests in flight.
    pub concurrency: Concurrency,
    /// Clocks.
    pub timeout: Timeouts,
    /// Largest reply in bytes. Default 16 MiB.
    pub max_reply: u64,
    /// How long rows wait for an engine that never answers. Default 10 min.
    pub engine_wait: Duration,
    /// Whether the model is to think before it answers; none: the server's own default.
    pub reasoning: Option<bool>,
    /// Tokens per request (Ollama's `num_ctx`, or how a server that we start is set up); none: the server's own default.
    pub context: Option<u32>,
    /// Requests per minute at most.
    pub rpm: Option<f64>,
    /// Tokens per minute at most.
    pub tpm: Option<f64>,
    /// How to start it, where there is no `endpoint`.
    pub launch: Launch,
}

impl EngineSpec {
    /// An engine that the library's user registered: it has its own wire and clocks.
    pub(crate) fn custom(name: &str) -> Self {
        Self::new(name, Backend::Custom, name)
    }

    /// An engine with the defaults of every other field: no `endpoint`, so one that chainette starts.
    pub fn new(name: &str, backend: Backend, model: &str) -> Self {
        Self {
            name: name.to_owned(),
            backend,
            model: model.to_owned(),
            endpoint: None,
            api_key_env: None,
            headers: Vec::new(),
            concurrency: Concurrency::Auto,
            timeout: Timeouts::default(),
            max_reply: 16 << 20,
            engine_wait: Duration::from_secs(600),
            reasoning: None,
            context: None,
            rpm: None,
            tpm: None,
            launch: Launch::default(),
        }
    }

    /// True when its model runs in this process.
    pub fn is_embedded(&self) -> bool {
        self.backend == Backend::Embedded
    }

    /// True when its model is ours to load: in a server that we start, or in this process.
    pub fn is_ours(&self) -> bool {
        self.is_launched() || self.is_embedded()
    }

    /// True when chainette starts its server: it has no `endpoint`, and its backend is one that can be started.
    pub fn is_launched(&self) -> bool {
        self.endpoint.is_none() && self.backend.is_started()
    }

    /// This engine behind an address.
    #[must_use]
    pub fn at(&self, endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: Some(endpoint.into()),
            ..self.clone()
        }
    }
}

impl EngineSpec {
    /// The endpoint without what it may carry of secrets: scheme, host and path.
    pub fn shown_endpoint(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or_default();
        let endpoint = endpoint.split('?').next().unwrap_or_default();
        match endpoint.split_once("://") {
            Some((scheme, rest)) => {
                let end = rest.find('/').unwrap_or(rest.len());
                let (host, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
                let host = host.rsplit('@').next().unwrap_or_default();
                format!("{scheme}://{host}{path}")
            }
            None => endpoint.to_owned(),
        }
    }
}

impl std::fmt::Debug for EngineSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The values of headers may be secrets.
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("EngineSpec")
            .field("name", &self.name)
            .field("backend", &self.backend)
            .field("model", &self.model)
            .field("endpoint", &self.shown_endpoint())
            .field("api_key_env", &self.api_key_env)
            .field("headers", &headers)
            .field("concurrency", &self.concurrency)
            .field("timeout", &self.timeout)
            .field("max_reply", &self.max_reply)
            .field("engine_wait", &self.engine_wait)
            .field("reasoning", &self.reasoning)
            .field("context", &self.context)
            .field("rpm", &self.rpm)
            .field("tpm", &self.tpm)
            .field("launch", &self.launch)
            .finish()
    }
}

/// Sampling parameters; what is unset is not sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Temperature, ≥ 0.
    pub temperature: Option<f64>,
    /// Longest reply in tokens.
    pub max_tokens: Option<u32>,
    /// Nucleus sampling, 0..=1.
    pub top_p: Option<f64>,
    /// Stop sequences.
    pub stop: Vec<String>,
    /// Seed; a repeated question is asked with seed + attempt.
    pub seed: Option<i64>,
    /// Whatever else the backend takes (`top_k`, `presence_penalty`, …), sent as it is.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Sampling {
    /// What is set, under the names of the chain file.
    pub fn to_json(&self) -> serde_json::Value {
        let mut all = serde_json::Map::new();
        let mut put = |key: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                all.insert(key.to_owned(), value);
            }
        };
        put("temperature", self.temperature.map(Into::into));
        put("max_tokens", self.max_tokens.map(Into::into));
        put("top_p", self.top_p.map(Into::into));
        put("stop", (!self.stop.is_empty()).then(|| self.stop.clone().into()));
        put("seed", self.seed.map(Into::into));
        all.extend(self.extra.clone());
        all.into()
    }

    /// The names under which `extra` may carry the token limit: newer OpenAI models, Ollama, llama.cpp.
    pub(crate) const LIMITS: [&str; 3] = ["max_completion_tokens", "num_predict", "n_predict"];

    /// The token limit, under whichever name it was given; none when replies have no limit.
    pub(crate) fn limit(&self) -> Option<u32> {
        match Self::LIMITS.iter().find_map(|name| self.extra.get(*name)) {
            Some(value) => value.as_u64().and_then(|limit| u32::try_from(limit).ok()),
            None => self.max_tokens,
        }
    }

    /// Sets the token limit, under the name it was given.
    pub(crate) fn set_limit(&mut self, limit: u32) {
        match Self::LIMITS.iter().find(|name| self.extra.contains_key(**name)) {
            Some(name) => {
                self.extra.insert((*name).to_owned(), limit.into());
            }
            None => self.max_tokens = Some(limit),
        }
    }
}

/// How often to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// After server errors, timeouts and broken connections. Default 5.
    pub transport: u32,
    /// After replies that do not match the model. Default 2.
    pub output: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            transport: 5,
            output: 2,
        }
    }
}

/// What a Step's failure does to the row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// The row fails.
    #[default]
    FailRow,
    /// The name becomes null and the row goes on.
    Null,
}

/// A chain file's text and where it came from.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// As given on the command line.
    pub path: PathBuf,
    /// Its content.
    pub text: String,
}

impl SourceFile {
    /// The line and the column of a byte, both from 1, the column in characters.
    pub fn position(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(&self.text);
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        let line = before.matches('\n').count() + 1;
        let column = before.get(start..).unwrap_or_default().chars().count() + 1;
        (line, column)
    }
}
