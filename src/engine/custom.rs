//! Engines made of one function, for programs that bring their own model or their own wire.

use std::future::Future;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::schema::PreparedSchema;
use super::{CallError, Chat, Engine, Message, Rendered, Reply, Request};
use crate::row::ErrorKind;
use crate::spec::Task;

/// What a Step asks an [`FnEngine`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The conversation: system and user prompt, and further turns when a bad reply is asked again. Empty where
    /// there is an `input`.
    pub messages: Vec<Message>,
    /// The JSON Schema the reply must match; none for free text.
    pub schema: Option<Value>,
    /// Sampling, with the attempt's seed and token limit already applied.
    pub sampling: Value,
    /// The text whose vector is wanted (`task: embed`): answer with [`Reply::embedding`]. None for a conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}

type Answer = dyn Fn(Question) -> BoxFuture<'static, Result<Reply, CallError>> + Send + Sync;

/// An engine made of an async function from [`Question`] to [`Reply`].
///
/// The reply's text is parsed, validated and asked again like that of any other engine.
pub struct FnEngine {
    /// BLAKE3 fed with the identity.
    identity: blake3::Hasher,
    answer: Box<Answer>,
}

impl FnEngine {
    /// `identity` says what answers, such as a model and its version: answers are kept for it, and asked again
    /// when it changes.
    pub fn new<F, A>(identity: &str, answer: F) -> Self
    where
        F: Fn(Question) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Reply, CallError>> + Send + 'static,
    {
        let mut hasher = blake3::Hasher::new();
        hasher.update(identity.as_bytes());
        Self {
            identity: hasher,
            answer: Box::new(move |question| Box::pin(answer(question))),
        }
    }
}

impl Engine for FnEngine {
    fn prepare(&self, _name: &str, schema: &Value) -> PreparedSchema {
        PreparedSchema::as_is(schema)
    }

    fn render(&self, request: &Request<'_>) -> Rendered {
        let (task, question) = match request {
            Request::Chat(Chat {
                messages,
                schema,
                sampling,
                ..
            }) => {
                let question = Question {
                    messages: messages.to_vec(),
                    schema: schema.map(|schema| schema.wire().schema.clone()),
                    sampling: sampling.to_json(),
                    input: None,
                };
                (Task::Generate, question)
            }
            Request::Embed { input } => {
                let question = Question {
                    messages: Vec::new(),
                    schema: None,
                    sampling: Value::Object(serde_json::Map::new()),
                    input: Some((*input).to_owned()),
                };
                (Task::Embed, question)
            }
        };
        // Texts, numbers and JSON always print.
        let body = serde_json::to_vec(&question).unwrap_or_default();
        let mut hasher = self.identity.clone();
        hasher.update(&body);
        Rendered {
            task,
            body: body.into(),
            digest: hasher.finalize().into(),
        }
    }

    fn call<'a>(&'a self, rendered: &'a Rendered, _turn: u32) -> BoxFuture<'a, Result<Reply, CallError>> {
        match serde_json::from_slice(&rendered.body) {
            Ok(question) => (self.answer)(question),
            Err(error) => {
                let refused = CallError::Refused {
                    kind: ErrorKind::Http,
                    message: format!("the request cannot be read back: {error}"),
                };
                Box::pin(std::future::ready(Err(refused)))
            }
        }
    }
}
