//! OpenAI chat completions, as OpenAI, vLLM, llama.cpp, TGI and SGLang serve them.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::connection::{Connection, Framing, Protocol, Told, streams};
use super::dialect::{self, Dialect};
use super::draft::{Draft, fault};
use super::embeddings;
use super::fault::{Said, status_of};
use super::limits::Limits;
use super::schema::PreparedSchema;
use crate::engine::{
    CallError, Chat as Conversation, Engine, Message, Rendered, Reply, Request, Role, SetupError,
};
use crate::event::Usage;
use crate::spec::EngineSpec;

/// One engine behind `{endpoint}/chat/completions`.
#[derive(Debug)]
pub struct OpenAi {
    connection: Connection,
    dialect: &'static Dialect,
    /// Fields of every request: the backend's own, and the switch for thinking.
    fields: Map<String, Value>,
}

impl OpenAi {
    /// Sets up the client; reads the API key from the environment. Connects to nothing.
    pub fn new(spec: &EngineSpec) -> Result<Self, SetupError> {
        let dialect = dialect::of(spec.backend);
        let own = dialect.fields.iter();
        let mut fields: Map<String, Value> = own
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        if let (Some(thinks), false) = (spec.reasoning, dialect.thinking.is_empty()) {
            let switches = dialect.thinking.iter();
            let switches: Map<String, Value> =
                switches.map(|name| ((*name).to_owned(), thinks.into())).collect();
            fields.insert("chat_template_kwargs".to_owned(), switches.into());
        }
        Ok(Self {
            connection: Connection::new(spec)?,
            dialect,
            fields,
        })
    }

    /// Tells of every part of a streamed reply.
    pub(super) fn watched(mut self, seen: Arc<dyn Fn() + Send + Sync>) -> Self {
        self.connection.watch(seen);
        self
    }
}

impl Engine for OpenAi {
    fn prepare(&self, name: &str, schema: &Value) -> PreparedSchema {
        PreparedSchema::new(schema, self.dialect.subset, |wire| {
            (self.dialect.format)(name, wire)
        })
    }

    fn render(&self, request: &Request<'_>) -> Rendered {
        match request {
            Request::Chat(chat) => self.render_chat(chat),
            Request::Embed { input } => {
                let body = embeddings::openai(self.connection.model(), input);
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

impl OpenAi {
    /// A conversation.
    fn render_chat(&self, request: &Conversation<'_>) -> Rendered {
        let sampling = request.sampling;
        let set = |key: &str| sampling.extra.contains_key(key);
        let narrow = self.dialect.narrow_sampling;
        let body = Body {
            model: self.connection.model(),
            messages: wire_messages(request.messages),
            temperature: sampling.temperature,
            max_tokens: sampling.max_tokens.filter(|_| !set("max_tokens")),
            top_p: sampling.top_p.filter(|top_p| !narrow || *top_p < 1.0),
            stop: &sampling.stop,
            seed: sampling
                .seed
                .filter(|_| !set("seed"))
                .map(|seed| if narrow { seed & i64::MAX } else { seed }),
            response_format: request
                .schema
                .map(|schema| &*schema.format)
                .filter(|_| !set("response_format")),
            fields: Fields {
                own: &self.fields,
                extra: &sampling.extra,
            },
        };
        // Strings and numbers always print.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        match (streams(request), sampling.extra.get("stream_options")) {
            (false, _) => self.connection.seal(body, ""),
            (true, None) => self.connection.seal(body, self.dialect.stream),
            // For servers that refuse what they do not know.
            (true, Some(Value::Null)) => self.connection.seal(body, r#""stream":true"#),
            (true, Some(options)) => self
                .connection
                .seal(body, &format!(r#""stream":true,"stream_options":{options}"#)),
        }
    }
}

/// The request; its fields go out in this order.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<WireMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f64>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<&'a RawValue>,
    #[serde(flatten)]
    fields: Fields<'a>,
}

/// The backend's own fields and what the user added, without what would change whose question this is
/// or how it is answered. The user's word counts.
struct Fields<'a> {
    own: &'a Map<String, Value>,
    extra: &'a Map<String, Value>,
}

impl Serialize for Fields<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let own = self.own.iter().filter(|(key, _)| !self.extra.contains_key(*key));
        let extra = self
            .extra
            .iter()
            .filter(|(key, _)| !matches!(key.as_str(), "model" | "messages" | "stream" | "stream_options"));
        serializer.collect_map(own.chain(extra))
    }
}

/// A message of the conversation, as OpenAI and Ollama take it.
#[derive(Serialize)]
pub(super) struct WireMessage<'a> {
    role: &'static str,
    content: &'a str,
}

/// The conversation as it goes out.
pub(super) fn wire_messages(messages: &[Message]) -> Vec<WireMessage<'_>> {
    let wire = |message| WireMessage::from(message);
    messages.iter().map(wire).collect()
}

impl<'a> From<&'a Message> for WireMessage<'a> {
    fn from(message: &'a Message) -> Self {
        Self {
            role: match message.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            },
            content: &message.content,
        }
    }
}

/// The answer, or one event of it, as far as we read it.
#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: Option<u64>,
    /// Of a whole reply.
    #[serde(default)]
    message: Option<WireReply>,
    /// Of an event.
    #[serde(default)]
    delta: Option<WireReply>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct WireReply {
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

/// Chat completions, whole and streamed.
struct Chat;

impl Protocol for Chat {
    const FRAMING: Framing = Framing::Events;

    fn whole(draft: &mut Draft, body: &[u8]) -> Result<Told, CallError> {
        let completion: Completion = serde_json::from_slice(body)
            .map_err(|_| fault("the engine's answer is not a chat completion"))?;
        if completion.choices.as_ref().is_none_or(Vec::is_empty) {
            let said = Said::read(body).message;
            return Err(fault(&if said.is_empty() {
                "the engine's answer has no choices".to_owned()
            } else {
                format!("the engine's answer has no choices: {said}")
            }));
        }
        completion.read(draft)?;
        Ok(Told::End)
    }

    fn message(draft: &mut Draft, message: &[u8]) -> Result<Told, CallError> {
        let message = message.trim_ascii();
        if message == b"[DONE]" {
            return Ok(Told::End);
        }
        if message.is_empty() {
            return Ok(Told::More);
        }
        let chunk: Completion = serde_json::from_slice(message)
            .map_err(|_| fault("the engine sent an event that is no part of a chat completion"))?;
        if let Some(error) = &chunk.error {
            let beside: Value = serde_json::from_slice(message).unwrap_or_default();
            let told = if error.is_object() { error } else { &beside };
            return Ok(Told::Failed(status_of(told)));
        }
        if chunk.choices.is_none() && chunk.usage.is_none() {
            // Older vLLM: `{"object": "error", "message": …, "code": 400}`.
            let other: Value = serde_json::from_slice(message).unwrap_or_default();
            if other.get("object").is_some_and(|object| object == "error") {
                return Ok(Told::Failed(status_of(&other)));
            }
        }
        chunk.read(draft)?;
        Ok(Told::More)
    }

    fn vector(body: &[u8]) -> Result<Reply, CallError> {
        embeddings::read(body, embeddings::OPENAI)
    }
}

impl Completion {
    /// Adds what it says to the draft; of several choices the first counts.
    fn read(self, draft: &mut Draft) -> Result<(), CallError> {
        if let Some(usage) = self.usage {
            draft.usage(Usage {
                prompt_tokens: usage.prompt_tokens.unwrap_or(0),
                completion_tokens: usage.completion_tokens.unwrap_or(0),
            });
        }
        let mut choices = self.choices.into_iter().flatten();
        let Some(choice) = choices.find(|choice| choice.index.unwrap_or(0) == 0) else {
            return Ok(());
        };
        if let Some(reply) = choice.delta.or(choice.message) {
            let thoughts = reply.reasoning_content.filter(|text| !text.is_empty());
            if let Some(thoughts) = thoughts.or(reply.reasoning) {
                draft.think(&thoughts)?;
            }
            match reply.content {
                Some(Content::Text(text)) => draft.say(&text)?,
                Some(Content::Parts(parts)) => {
                    for text in parts.into_iter().filter_map(|part| part.text) {
                        draft.say(&text)?;
                    }
                }
                None => {}
            }
            if let Some(refusal) = reply.refusal {
                draft.refuse(&refusal)?;
            }
        }
        match choice.finish_reason {
            Some(reason) => draft.finish(&reason),
            None => Ok(()),
        }
    }
}
