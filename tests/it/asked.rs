//! What the test server is asked and what it answers.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use hyper::HeaderMap;
use serde_json::{Value, json};

/// BLAKE3 of a request's raw body.
pub type Digest = [u8; 32];

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The path, `/v1/chat/completions`.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, parsed; null when it is no JSON.
    pub body: Value,
    /// The body, byte for byte.
    pub raw: Bytes,
    /// BLAKE3 of `raw`.
    pub digest: Digest,
    /// How often this very body was asked before.
    pub seen: u32,
    /// The number of the try for this row and Step, as the client says.
    pub attempt: u32,
}

impl Asked {
    /// The text of the first message of a role; "" without one.
    pub fn message(&self, role: &str) -> &str {
        self.messages()
            .find(|m| m["role"] == role)
            .and_then(|m| m["content"].as_str())
            .unwrap_or_default()
    }

    /// The first user message: the rendered user prompt; of a text to embed the text.
    pub fn user(&self) -> &str {
        self.input().unwrap_or_else(|| self.message("user"))
    }

    /// The text whose vector is asked for; none in a conversation.
    pub fn input(&self) -> Option<&str> {
        self.body.get("input")?.as_str()
    }

    /// The rendered system prompt.
    pub fn system(&self) -> &str {
        self.message("system")
    }

    /// How many bad replies this conversation carries along.
    pub fn tries(&self) -> usize {
        self.messages().filter(|m| m["role"] == "assistant").count()
    }

    /// True when Ollama's own API is spoken, not OpenAI's.
    pub fn is_ollama(&self) -> bool {
        self.path.ends_with("/api/chat") || self.path.ends_with("/api/embed")
    }

    /// The JSON Schema the reply must match, as it was sent: OpenAI's form, llama.cpp's, TGI's or Ollama's.
    pub fn schema(&self) -> Option<&Value> {
        if self.is_ollama() {
            return self.body.get("format");
        }
        let format = self.body.get("response_format")?;
        let named = format.get("json_schema");
        named
            .and_then(|n| n.get("schema"))
            .or_else(|| format.get("schema"))
            .or_else(|| format.get("value"))
    }

    /// The seed, when one was sent.
    pub fn seed(&self) -> Option<i64> {
        self.sampling("seed")?.as_i64()
    }

    /// The token limit, when one was sent.
    pub fn max_tokens(&self) -> Option<u64> {
        let names = ["max_tokens", "max_completion_tokens", "num_predict"];
        names.iter().find_map(|name| self.sampling(name))?.as_u64()
    }

    fn sampling(&self, name: &str) -> Option<&Value> {
        let place = if self.is_ollama() {
            &self.body["options"]
        } else {
            &self.body
        };
        place.get(name)
    }

    /// The conversation.
    pub fn messages(&self) -> impl Iterator<Item = &Value> {
        self.body["messages"].as_array().into_iter().flatten()
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A chat completion.
    Text {
        /// The model's text.
        content: String,
        /// `stop`, `length`, …
        finish_reason: &'static str,
    },
    /// Vectors, one for each text as a rule; each number in all the digits that it has as a 64-bit one.
    Vectors(Vec<Vec<f32>>),
    /// Any status with any body.
    Status {
        /// The status code.
        code: u16,
        /// Further headers, such as `retry-after`.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: String,
    },
    /// 200 with these bytes.
    Raw(Bytes),
    /// Drop the connection without a reply.
    Close,
    /// Drop the connection in the middle of a good reply.
    CloseMidBody,
    /// This piece again and again: in a stream until the client goes away, else up to the token limit.
    Endless(String),
    /// Half a stream, then this error as an event; a 500 with it where no stream was asked for.
    ErrorInside(Value),
    /// A finished reply, this many bytes of it at a time.
    Drip {
        /// The model's text.
        content: String,
        /// Bytes at a time.
        bytes: usize,
        /// What comes between them.
        every: Duration,
    },
    /// Never reply.
    Hang,
    /// Wait first.
    After(Duration, Box<Answer>),
    /// Wait first until that is set.
    Once(Arc<AtomicBool>, Box<Answer>),
}

impl Answer {
    /// A finished reply.
    pub fn text(content: impl Into<String>) -> Self {
        let content = content.into();
        Self::Text {
            content,
            finish_reason: "stop",
        }
    }

    /// A vector.
    pub fn vector(numbers: &[f32]) -> Self {
        Self::Vectors(vec![numbers.to_vec()])
    }

    /// A reply cut at the token limit.
    pub fn cut(content: impl Into<String>) -> Self {
        let content = content.into();
        Self::Text {
            content,
            finish_reason: "length",
        }
    }

    /// An error status with an OpenAI-shaped body.
    pub fn status(code: u16, message: &str) -> Self {
        let body = json!({"error": {"message": message, "type": "error", "code": code}}).to_string();
        Self::Status {
            code,
            headers: Vec::new(),
            body,
        }
    }

    /// The same answer, later.
    pub fn after(self, delay: Duration) -> Self {
        Self::After(delay, Box::new(self))
    }
}
