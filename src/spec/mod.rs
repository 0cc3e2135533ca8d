//! What the user wrote: chain files and engines files, read into specs in which every part knows its place.

mod chain;
mod engine;
mod fields;
mod load;
mod problem;
mod steps;
mod yaml;

pub use chain::{ChainSpec, EngineDecl};
pub(crate) use fields::duration as parse_duration;
pub use load::{ChainInput, load};
pub use problem::{Code, Problem, ProblemRef, Problems, Sources, Span, nearest, suggest};
pub use steps::{ApplyKind, ApplySpec, BranchSpec, GroupSpec, NodeHead, NodeSpec, StepSpec};
pub(crate) use yaml::parse as parse_yaml;
pub use yaml::{Entry, Node, Text, Yaml};

use std::path::PathBuf;
use std::time::Duration;

/// The keys that the loader takes, mapping by mapping: the JSON Schema of chain files is made of them.
pub(crate) mod accepted {
    pub(crate) use super::chain::{ENGINES_FILE, KEYS as CHAIN, UNSERVED as UNSERVED_TOP};
    pub(crate) use super::engine::{
        BACKENDS, FIELDS as ENGINE, SECRET_HEADERS, SERVED as ENGINE_SERVED, TIMEOUT,
    };
    pub(crate) use super::steps::{
        APPLY, APPLY_KINDS, APPLY_OPTIONS, APPLY_UNSERVED as UNSERVED_APPLIES, BRANCH, GROUP, RETRIES,
        SAMPLING, SAMPLING_TAKEN, STEP,
    };
}

/// The wire protocol of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// OpenAI chat completions; also what vLLM, llama.cpp, TGI and SGLang serve.
    OpenAi,
}

impl Backend {
    /// The name in a chain.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
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
#[derive(Clone, PartialEq, Eq)]
pub struct EngineSpec {
    /// Its name in the chain.
    pub name: String,
    /// Its protocol.
    pub backend: Backend,
    /// The model it serves.
    pub model: String,
    /// Base URL (`http://host:port/v1`).
    pub endpoint: String,
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
}

impl EngineSpec {
    /// The endpoint without what it may carry of secrets: scheme, host and path.
    pub fn shown_endpoint(&self) -> String {
        let endpoint = self.endpoint.split('?').next().unwrap_or_default();
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
