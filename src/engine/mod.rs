//! Who answers: engines turn requests into replies.
//!
//! `client` talks one wire protocol and neither retries nor queues; `broker` lends engines to
//! rows and keeps rows waiting while an engine cannot take work.

pub mod broker;
pub mod client;
#[cfg(feature = "embedded")]
pub mod embedded;
pub mod provision;
pub mod supervise;
pub mod warm;
mod custom;
pub mod runaway;
pub mod vector;

use std::sync::Arc;
use std::time::Duration;

pub use custom::{FnEngine, Question};

use futures::future::BoxFuture;

use crate::engine::client::limits::Limits;
use crate::engine::client::schema::PreparedSchema;
use crate::event::Usage;
use crate::plan::EngineIx;
use crate::row::ErrorKind;
use crate::spec::{Sampling, Task};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: Role,
    /// Its text.
    pub content: String,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// What a Step asks, before an adapter renders it for its wire.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// Text: what the model says to a conversation.
    Chat(Chat<'a>),
    /// The vector of a text; the reply is one of [`Reply::embedding`].
    Embed {
        /// The text.
        input: &'a str,
    },
}

/// A conversation that the model is to go on with.
#[derive(Clone, Debug)]
pub struct Chat<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// What the reply must match, as [`Engine::prepare`] made it; none for free text.
    pub schema: Option<&'a PreparedSchema>,
    /// Sampling, with the attempt's seed and token limit already applied.
    pub sampling: &'a Sampling,
    /// Ask for a stream even where a short reply is expected. It changes neither what is asked nor
    /// what comes of it, only that a runaway can be cut early.
    pub stream: bool,
}

impl Message {
    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: Role::User,
            content: content.into(),
        }
    }

    /// The system prompt.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: Role::System,
            content: content.into(),
        }
    }
}

impl Reply {
    /// A finished reply of this text, with nothing counted.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            reasoning: None,
            finish: Finish::Stop,
            usage: Usage::default(),
        }
    }

    /// The reply to [`Request::Embed`]: its text is `{"embedding":[...]}`, each number in the shortest form that is
    /// the same 32-bit number. Numbers that are not finite have no such form, and make the reply a bad one.
    pub fn embedding(vector: &[f32], prompt_tokens: u64) -> Self {
        let usage = Usage {
            prompt_tokens,
            completion_tokens: 0,
        };
        Self {
            usage,
            ..Self::text(vector::print(vector))
        }
    }
}

/// A request as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// What it asks for, which decides where it goes and how the reply is read.
    pub task: Task,
    /// The body, byte for byte.
    pub body: bytes::Bytes,
    /// BLAKE3 over the engine's identity (name, backend, model) and the body without what only says
    /// how the reply is to be sent (`stream`): the ledger's key.
    pub digest: [u8; 32],
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It was done.
    Stop,
    /// The token limit.
    Length,
    /// It ran in white space or repetition and was cut there, by us; see [`runaway::Watch`].
    Runaway,
    /// The server, or who read its answer, found the output unusable; the text says why.
    Rejected,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The answer's text.
    pub text: String,
    /// Reasoning text, when the engine returned it apart or before the answer in `<think>…</think>`.
    pub reasoning: Option<String>,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens.
    pub usage: Usage,
}

/// What an engine fault says about the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// It is not there: connection refused, model still loading.
    Down,
    /// 503: it is there and takes nothing.
    Overloaded,
    /// 429: it works, but wants less.
    Busy,
}

/// What a [`CallError::Transport`] says when the connection ended too early: a server that is watched may have died.
pub(crate) const BROKEN: &str = "the connection broke before the reply was complete";

/// Why no reply came, by what it means for the row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The engine cannot take work now; the row waits and loses nothing.
    #[error("{message}")]
    Engine {
        /// What it said.
        message: String,
        /// `Retry-After`.
        retry_after: Option<Duration>,
        /// What it means for the other rows.
        pressure: Pressure,
    },
    /// This try failed though the engine lives (500, timeout, broken connection): counts against `retries.transport`.
    #[error("{message}")]
    Transport {
        /// [`ErrorKind::Http`] or [`ErrorKind::Timeout`].
        kind: ErrorKind,
        /// What happened.
        message: String,
    },
    /// The engine will never take this request (400, too long).
    #[error("{message}")]
    Refused {
        /// [`ErrorKind::Http`] or [`ErrorKind::ContextLength`].
        kind: ErrorKind,
        /// What it said.
        message: String,
    },
    /// No request can succeed (401, 403, unknown model): the run stops.
    #[error("{message}")]
    Fatal {
        /// What it said and what to do.
        message: String,
    },
}

/// An adapter: talks one wire protocol to one engine. It neither retries nor queues.
pub trait Engine: Send + Sync {
    /// Rewrites an output model's JSON Schema to what this wire takes. Once per Step; `name` is the
    /// Step's id.
    fn prepare(&self, name: &str, schema: &serde_json::Value) -> PreparedSchema;

    /// Renders a request for the wire. Pure.
    fn render(&self, request: &Request<'_>) -> Rendered;

    /// Sends a rendered request and reads the reply. `turn` numbers the tries of one row's question.
    fn call<'a>(&'a self, rendered: &'a Rendered, turn: u32) -> BoxFuture<'a, Result<Reply, CallError>>;

    /// What the engine last said of its limits of requests and tokens, if it ever did.
    fn limits(&self) -> Option<Limits> {
        None
    }
}

/// A shared engine.
pub type SharedEngine = Arc<dyn Engine>;

/// An engine that cannot be set up from its declaration: bad usage, nothing was run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("engine `{engine}`: {message}")]
pub struct SetupError {
    /// The engine's name.
    pub engine: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Why a run cannot go on; the same command resumes it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Stop {
    /// The run was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// No request to this engine can succeed, or none did for `engine_wait`.
    #[error("engine `{engine}` {message}")]
    Engine {
        /// The engine's name.
        engine: String,
        /// Last cause and next step.
        message: String,
    },
    /// No worker of this Apply can be kept alive.
    #[error("`{node}` {message}")]
    Apply {
        /// The Apply's id.
        node: String,
        /// Last cause.
        message: String,
    },
    /// Of one row only: it needs an engine that is not loaded, and is led again from its start once it is. Seen by
    /// nobody but the executor.
    #[error("waits for an engine that is not loaded")]
    Parked(EngineIx),
    /// An answer could not be kept: without it a resumed run would ask (and pay) again.
    #[error("cannot write an answer to the run's ledger")]
    Ledger(#[source] Arc<std::io::Error>),
}
