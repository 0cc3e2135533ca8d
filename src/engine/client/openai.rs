//! OpenAI chat completions, as OpenAI, vLLM, llama.cpp, TGI and SGLang serve them.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fault::{Failed, Said};
use super::http::Http;
use super::schema::PreparedSchema;
use crate::engine::{CallError, Engine, Finish, Message, Rendered, Reply, Request, Role, SetupError};
use crate::event::Usage;
use crate::row::ErrorKind;
use crate::spec::EngineSpec;

/// One engine behind `{endpoint}/chat/completions`.
pub struct OpenAi {
    name: String,
    model: String,
    key_env: Option<String>,
    http: Http,
    /// BLAKE3 fed with name, backend and model; each digest goes on from here.
    identity: blake3::Hasher,
}

impl OpenAi {
    /// Sets up the client; reads the API key from the environment. Connects to nothing.
    pub fn new(spec: &EngineSpec) -> Result<Self, SetupError> {
        let http = Http::new(spec, "/chat/completions").map_err(|message| SetupError {
            engine: spec.name.clone(),
            message,
        })?;
        let mut identity = blake3::Hasher::new();
        for part in [spec.name.as_str(), spec.backend.as_str(), spec.model.as_str()] {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part.as_bytes());
        }
        Ok(Self {
            name: spec.name.clone(),
            model: spec.model.clone(),
            key_env: spec.api_key_env.clone(),
            http,
            identity,
        })
    }

    async fn ask(&self, rendered: &Rendered, turn: u32) -> Result<Reply, CallError> {
        let answered = self.http.post(rendered.body.clone(), turn).await?;
        let result = if answered.status == 200 {
            read_reply(&answered.body)
        } else {
            Failed {
                status: answered.status,
                retry_after: answered.retry_after,
                body: &answered.body,
                model: &self.model,
                key_env: self.key_env.as_deref(),
            }
            .classify()
        };
        // Servers like to repeat a wrong key in their complaint.
        result.map_err(|error| self.redact(error))
    }

    fn redact(&self, error: CallError) -> CallError {
        match error {
            CallError::Engine {
                message,
                retry_after,
                pressure,
            } => CallError::Engine {
                message: self.http.redact(message),
                retry_after,
                pressure,
            },
            CallError::Transport { kind, message } => CallError::Transport {
                kind,
                message: self.http.redact(message),
            },
            CallError::Refused { kind, message } => CallError::Refused {
                kind,
                message: self.http.redact(message),
            },
            CallError::Fatal { message } => CallError::Fatal {
                message: self.http.redact(message),
            },
        }
    }
}

impl std::fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Address and headers may hold secrets.
        f.debug_struct("OpenAi")
            .field("name", &self.name)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Engine for OpenAi {
    fn prepare(&self, name: &str, schema: &serde_json::Value) -> PreparedSchema {
        PreparedSchema::openai(name, schema)
    }

    fn render(&self, request: &Request<'_>) -> Rendered {
        let sampling = request.sampling;
        let set = |key: &str| sampling.extra.contains_key(key);
        let body = Body {
            model: &self.model,
            messages: request.messages.iter().map(WireMessage::from).collect(),
            temperature: sampling.temperature,
            max_tokens: sampling.max_tokens.filter(|_| !set("max_tokens")),
            top_p: sampling.top_p,
            stop: &sampling.stop,
            seed: sampling.seed.filter(|_| !set("seed")),
            response_format: request
                .schema
                .map(|schema| &*schema.format)
                .filter(|_| !set("response_format")),
            extra: &sampling.extra,
        };
        // Strings and numbers always print.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut hasher = self.identity.clone();
        hasher.update(&body);
        Rendered {
            body: body.into(),
            digest: hasher.finalize().into(),
        }
    }

    fn call<'a>(&'a self, rendered: &'a Rendered, turn: u32) -> BoxFuture<'a, Result<Reply, CallError>> {
        Box::pin(self.ask(rendered, turn))
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
    #[serde(flatten, serialize_with = "extra")]
    extra: &'a serde_json::Map<String, serde_json::Value>,
}

/// What the user added, without what would change whose question this is or how it is answered.
fn extra<S: serde::Serializer>(
    map: &serde_json::Map<String, serde_json::Value>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        map.iter()
            .filter(|(key, _)| !matches!(key.as_str(), "model" | "messages" | "stream")),
    )
}

#[derive(Serialize)]
struct WireMessage<'a> {
    role: &'static str,
    content: &'a str,
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

/// The answer, as far as we read it.
#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<WireUsage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    message: WireReply,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
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

/// Reads the body of a 200.
fn read_reply(body: &[u8]) -> Result<Reply, CallError> {
    let fault = |message: String| CallError::Transport {
        kind: ErrorKind::Http,
        message,
    };
    let completion: Completion = serde_json::from_slice(body)
        .map_err(|_| fault("the engine's answer is not a chat completion".to_owned()))?;
    let usage = completion.usage.map_or_else(Usage::default, |usage| Usage {
        prompt_tokens: usage.prompt_tokens.unwrap_or(0),
        completion_tokens: usage.completion_tokens.unwrap_or(0),
    });
    let Some(choice) = completion.choices.into_iter().next() else {
        let said = Said::read(body).message;
        return Err(fault(if said.is_empty() {
            "the engine's answer has no choices".to_owned()
        } else {
            format!("the engine's answer has no choices: {said}")
        }));
    };
    let reply = choice.message;
    let finish = match choice.finish_reason.as_deref() {
        Some("length") => Finish::Length,
        Some("content_filter") => Finish::Rejected,
        Some("abort" | "error") => return Err(fault("the engine aborted the reply".to_owned())),
        _ => Finish::Stop,
    };
    let text = match reply.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
        None => String::new(),
    };
    let (text, finish) = match (reply.refusal.filter(|r| !r.is_empty()), finish) {
        (Some(refusal), _) => (refusal, Finish::Rejected),
        (None, Finish::Rejected) => ("the engine's content filter stopped the reply".to_owned(), finish),
        (None, finish) => (text, finish),
    };
    Ok(Reply {
        text,
        reasoning: reply
            .reasoning_content
            .or(reply.reasoning)
            .filter(|reasoning| !reasoning.is_empty()),
        finish,
        usage,
    })
}
