//! Ollama's own chat API (`POST /api/chat`, docs/api.md): JSON lines, options of their own.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::connection::{Connection, Framing, Protocol, Told, streams};
use super::dialect::{self, Dialect};
use super::draft::{Draft, fault};
use super::embeddings;
use super::limits::Limits;
use super::openai::{WireMessage, wire_messages};
use super::schema::PreparedSchema;
use crate::engine::{CallError, Chat as Conversation, Engine, Rendered, Reply, Request, SetupError};
use crate::event::Usage;
use crate::spec::{Backend, EngineSpec, Sampling};

/// One Ollama server.
#[derive(Debug)]
pub struct Ollama {
    connection: Connection,
    dialect: &'static Dialect,
    think: Option<bool>,
    context: Option<u32>,
}

impl Ollama {
    /// Sets up the client; reads the API key from the environment. Connects to nothing.
    pub fn new(spec: &EngineSpec) -> Result<Self, SetupError> {
        Ok(Self {
            connection: Connection::new(spec)?,
            dialect: dialect::of(Backend::Ollama),
            think: spec.reasoning,
            context: spec.context,
        })
    }

    /// `options`: sampling under Ollama's names, then whatever else the user gave.
    fn options(&self, sampling: &Sampling) -> Map<String, Value> {
        let mut options = Map::new();
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                options.insert(name.to_owned(), value);
            }
        };
        set("temperature", sampling.temperature.map(Into::into));
        set("top_p", sampling.top_p.map(Into::into));
        set("seed", sampling.seed.map(Into::into));
        set("num_predict", sampling.limit().map(Into::into));
        set("num_ctx", self.context.map(Into::into));
        let stop = Some(&sampling.stop).filter(|stop| !stop.is_empty());
        set("stop", stop.map(|stop| stop.as_slice().into()));
        for (key, value) in &sampling.extra {
            let name = key.as_str();
            if !OWN.contains(&name) && !BESIDE.contains(&name) && !Sampling::LIMITS.contains(&name) {
                options.insert(key.clone(), value.clone());
            }
        }
        options
    }
}

/// Keys that would change whose question this is or how it is answered.
const OWN: [&str; 4] = ["model", "messages", "stream", "stream_options"];

/// Keys that stand beside `options`.
const BESIDE: [&str; 8] = [
    "format",
    "think",
    "keep_alive",
    "truncate",
    "shift",
    "template",
    "logprobs",
    "top_logprobs",
];

impl Engine for Ollama {
    fn prepare(&self, name: &str, schema: &Value) -> PreparedSchema {
        PreparedSchema::new(schema, self.dialect.subset, |wire| {
            (self.dialect.format)(name, wire)
        })
    }

    fn render(&self, request: &Request<'_>) -> Rendered {
        match request {
            Request::Chat(chat) => self.render_chat(chat),
            Request::Embed { input } => {
                let body = embeddings::ollama(self.connection.model(), input, self.context);
                self.connection.seal_embed(body)
            }
        }
    }

    fn call<'a>(&'a self, rendered: &'a Rendered, turn: u32) -> BoxFuture<'a, Result<Reply, CallError>> {
        Box::pin(self.connection.ask::<Chat>(rendered, turn))
    }

    fn limits(&self) -> Option<Limits> {
        self.connection.limits()
    }
}

impl Ollama {
    /// A conversation.
    fn render_chat(&self, request: &Conversation<'_>) -> Rendered {
        let extra = &request.sampling.extra;
        let set = |key: &str| extra.contains_key(key);
        let body = Body {
            model: self.connection.model(),
            messages: wire_messages(request.messages),
            format: request
                .schema
                .map(|schema| &*schema.format)
                .filter(|_| !set("format")),
            think: self.think.filter(|_| !set("think")),
            // A prompt that does not fit is an error: Ollama would drop its beginning without a word.
            truncate: Some(false).filter(|_| !set("truncate")),
            shift: Some(false).filter(|_| !set("shift")),
            options: self.options(request.sampling),
            beside: extra
                .iter()
                .filter(|(key, _)| BESIDE.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        };
        // Strings and numbers always print.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let how = if streams(request) {
            self.dialect.stream
        } else {
            r#""stream":false"#
        };
        self.connection.seal(body, how)
    }
}

/// The request; its fields go out in this order.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    think: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    truncate: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shift: Option<bool>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    options: Map<String, Value>,
    #[serde(flatten)]
    beside: Map<String, Value>,
}

/// The answer, or one line of it, as far as we read it.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    message: Option<WireReply>,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    done_reason: Option<String>,
    #[serde(default)]
    prompt_eval_count: Option<u64>,
    #[serde(default)]
    eval_count: Option<u64>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct WireReply {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
}

/// `/api/chat`, whole and streamed: a whole reply is a stream of one line.
struct Chat;

impl Protocol for Chat {
    const FRAMING: Framing = Framing::JsonLines;

    fn whole(draft: &mut Draft, body: &[u8]) -> Result<Told, CallError> {
        Self::message(draft, body)
    }

    fn message(draft: &mut Draft, message: &[u8]) -> Result<Told, CallError> {
        let line: Line =
            serde_json::from_slice(message).map_err(|_| fault("the engine's answer is not Ollama's"))?;
        if line.error.is_some() {
            return Ok(Told::Failed(500));
        }
        if line.prompt_eval_count.is_some() || line.eval_count.is_some() {
            draft.usage(Usage {
                prompt_tokens: line.prompt_eval_count.unwrap_or(0),
                completion_tokens: line.eval_count.unwrap_or(0),
            });
        }
        if let Some(reply) = line.message {
            draft.think(reply.thinking.as_deref().unwrap_or_default())?;
            draft.say(reply.content.as_deref().unwrap_or_default())?;
        }
        if !line.done {
            return Ok(Told::More);
        }
        // Older servers give no reason.
        draft.finish(line.done_reason.as_deref().unwrap_or("stop"))?;
        Ok(Told::End)
    }

    fn vector(body: &[u8]) -> Result<Reply, CallError> {
        embeddings::read(body, embeddings::OLLAMA)
    }
}
