//! What an answer that is no reply means: for the row, for the engine, for the run.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::engine::{CallError, Finish, Pressure, Reply};
use crate::event::Usage;
use crate::row::ErrorKind;
use crate::spec::{Backend, Task};

/// The longest server message we keep, in characters.
const MAX_MESSAGE: usize = 500;

/// The status line and body of an answer that is no reply.
#[derive(Debug)]
pub(super) struct Failed<'a> {
    /// HTTP status, or the one that an error inside a stream stands for.
    pub(super) status: u16,
    /// What was asked for.
    pub(super) task: Task,
    /// It came inside a stream.
    pub(super) streaming: bool,
    /// `Retry-After`.
    pub(super) retry_after: Option<Duration>,
    /// The body.
    pub(super) body: &'a [u8],
    /// Who says so.
    pub(super) backend: Backend,
    /// The model asked for.
    pub(super) model: &'a str,
    /// The variable that holds the API key.
    pub(super) key_env: Option<&'a str>,
}

impl Failed<'_> {
    /// CHAIN.md §1, "Faults of the engine, not of the row".
    pub(super) fn classify(&self) -> Result<Reply, CallError> {
        let said = Said::read(self.body);
        let status = self.status;
        let what = if self.streaming {
            "the engine broke off its reply".to_owned()
        } else {
            format!("the engine answered HTTP {status}")
        };
        let message = if said.message.is_empty() {
            what
        } else {
            format!("{what}: {}", said.message)
        };
        let engine = |pressure| {
            Err(CallError::Engine {
                message: message.clone(),
                retry_after: self.retry_after,
                pressure,
            })
        };
        let fatal = |advice: &str| {
            Err(CallError::Fatal {
                message: format!("{message}; {advice}"),
            })
        };
        let embeds = self.task == Task::Embed;
        match status {
            // Whatever its number.
            400.. if embeds && said.lower.contains("not support embedding") => fatal(self.no_embeddings()),
            400.. if embeds && said.lower.contains("pooling type") => fatal(
                "its model does not say how the vectors of tokens become one: start the server with `--pooling mean` (or the model's own way)",
            ),
            501 if embeds => fatal(self.no_embeddings()),
            501 if said.lower.contains("not support completions") => {
                fatal("or use another engine for this Step")
            }
            401 | 403 => fatal(&match self.key_env {
                Some(name) => format!("check the API key in {name}"),
                None => "it wants an API key: name the variable that holds it in `api_key_env`".to_owned(),
            }),
            404 if self.backend == Backend::Ollama => fatal(&format!(
                "fetch the model with `ollama pull {}`, or check that `endpoint` is the address of an Ollama server",
                self.model
            )),
            404 => fatal(&format!(
                "check that it serves the model `{}` and that `endpoint` ends where `{}` begins",
                self.model,
                if embeds {
                    "/embeddings"
                } else {
                    "/chat/completions"
                }
            )),
            400 if said.lower.contains("does not support thinking") => fatal("leave out `reasoning: true`"),
            400 | 422 if said.unknown_model() => {
                fatal(&format!("check that it serves the model `{}`", self.model))
            }
            300..400 => fatal("it redirects: give the final address as `endpoint`"),
            429 => engine(Pressure::Busy),
            503 if said.lower.contains("loading") => engine(Pressure::Down),
            503 | 529 => engine(Pressure::Overloaded),
            // llama.cpp: the reply of this one row cannot be parsed, the server is fine.
            500 if said
                .lower
                .contains("the model produced output that does not match") =>
            {
                Ok(Reply {
                    text: said.message,
                    reasoning: None,
                    finish: Finish::Rejected,
                    usage: Usage::default(),
                })
            }
            413 => refused(ErrorKind::ContextLength, message),
            400 | 422 if said.too_long() => refused(ErrorKind::ContextLength, message),
            // llama.cpp and older Ollama, of a text to embed.
            500 if embeds && said.too_long() => refused(ErrorKind::ContextLength, message),
            408 | 504 => Err(CallError::Transport {
                kind: ErrorKind::Timeout,
                message,
            }),
            // TGI: the generation failed; the request is fine.
            424 => Err(CallError::Transport {
                kind: ErrorKind::Http,
                message,
            }),
            400..500 => refused(ErrorKind::Http, message),
            _ => Err(CallError::Transport {
                kind: ErrorKind::Http,
                message,
            }),
        }
    }
}

impl Failed<'_> {
    /// What to do about an engine that embeds nothing.
    fn no_embeddings(&self) -> &'static str {
        match self.backend {
            Backend::LlamaCpp => "where chainette starts it, that is `flags: [--embeddings]`",
            Backend::Ollama => "name a model that embeds, such as `nomic-embed-text`",
            Backend::Vllm => "serve a model that embeds; see `vllm serve --runner pooling`",
            _ => "use an engine whose model embeds",
        }
    }
}

fn refused(kind: ErrorKind, message: String) -> Result<Reply, CallError> {
    Err(CallError::Refused { kind, message })
}

/// What a server's error body says, in whichever of the usual shapes.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// One line, cut.
    pub(super) message: String,
    lower: String,
    codes: Vec<String>,
}

impl Said {
    /// Reads OpenAI and llama.cpp (`{"error": {"message", "type", "code"}}`), older vLLM
    /// (`{"message", "type", "code"}`), TGI (`{"error": "…", "error_type"}`), FastAPI (`{"detail"}`), text.
    pub(super) fn read(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            let text = String::from_utf8_lossy(body.get(..8192).unwrap_or(body));
            // An HTML page of a proxy says less than its status.
            let text = if text.trim_start().starts_with('<') {
                ""
            } else {
                &text
            };
            return Self::new(text, &Value::Null);
        };
        let error = value.get("error").unwrap_or(&value);
        let text = [error, &value]
            .into_iter()
            .find_map(|place| match place {
                Value::String(text) => Some(text.clone()),
                place => ["message", "error", "detail"]
                    .iter()
                    .find_map(|key| match place.get(*key)? {
                        Value::String(text) => Some(text.clone()),
                        Value::Null | Value::Object(_) => None,
                        other => Some(other.to_string()),
                    }),
            })
            .unwrap_or_default();
        let mut said = Self::new(&text, error);
        said.codes
            .extend(value.get("error_type").and_then(Value::as_str).map(Into::into));
        said
    }

    fn new(text: &str, error: &Value) -> Self {
        let codes = ["code", "type"]
            .iter()
            .filter_map(|key| error.get(*key)?.as_str().map(Into::into))
            .collect();
        Self {
            message: one_line(text),
            lower: text.to_lowercase(),
            codes,
        }
    }

    /// The request does not fit the model's context.
    fn too_long(&self) -> bool {
        self.codes.iter().any(|code| {
            matches!(
                code.as_str(),
                "context_length_exceeded" | "exceed_context_size_error"
            )
        }) || [
            "maximum context length",         // OpenAI, vLLM
            "maximum model length",           // vLLM
            "too large to process",           // llama.cpp, of a text to embed
            "context size",                   // llama.cpp
            "context window",                 // OpenAI
            "must have less than",            // TGI: `inputs` must have less than N tokens
            "`max_new_tokens` must be <=",    // TGI
            "exceeds the context length",     // Ollama
            "exceeds maximum context length", // Ollama
            "input is too long",
            "prompt is too long",
            "prompt too long",
        ]
        .iter()
        .any(|words| self.lower.contains(words))
    }

    fn unknown_model(&self) -> bool {
        self.codes.iter().any(|code| code == "model_not_found")
            || (self.lower.contains("model") && self.lower.contains("does not exist"))
    }
}

/// The HTTP status that an error inside a stream stands for: the one it names, else the one of its
/// kind, else 500.
pub(super) fn status_of(error: &Value) -> u16 {
    let named = ["code", "http_status_code", "status"]
        .iter()
        .find_map(|key| match error.get(*key)? {
            Value::Number(code) => code.as_u64(),
            Value::String(code) => code.parse().ok(),
            _ => None,
        })
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code));
    let kind = ["type", "error_type", "code"]
        .iter()
        .filter_map(|key| error.get(*key)?.as_str())
        .find_map(|kind| KINDS.iter().find(|(name, _)| *name == kind));
    named.or(kind.map(|(_, status)| *status)).unwrap_or(500)
}

/// Error kinds of OpenAI, llama.cpp, vLLM and TGI, and the status they go with.
const KINDS: [(&str, u16); 13] = [
    ("invalid_request_error", 400),
    ("exceed_context_size_error", 400),
    ("context_length_exceeded", 400),
    ("BadRequestError", 400),
    ("authentication_error", 401),
    ("permission_error", 403),
    ("not_found_error", 404),
    ("validation", 422),
    ("generation", 424),
    ("rate_limit_error", 429),
    ("rate_limit_exceeded", 429),
    ("overloaded", 429),
    ("unavailable_error", 503),
];

/// A text on one line, cut to 500 characters.
pub(super) fn one_line(text: &str) -> String {
    let mut out = String::new();
    let mut count = 0;
    let mut gap = false;
    for c in text.trim().chars() {
        if c.is_whitespace() || c.is_control() {
            gap = true;
            continue;
        }
        if gap {
            out.push(' ');
            count += 1;
            gap = false;
        }
        if count >= MAX_MESSAGE {
            out.push('…');
            break;
        }
        out.push(c);
        count += 1;
    }
    out
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110 §10.2.3); never more than a day.
pub(super) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok().map(|d| d.min(DAY));
    }
    Some(date(value)?.duration_since(now).unwrap_or_default().min(DAY))
}

/// An HTTP date as a time.
pub(super) fn date(text: &str) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(http_date(text)?))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since 1970.
fn http_date(text: &str) -> Option<u64> {
    let mut parts = text.split_once(',')?.1.split_ascii_whitespace();
    let day: i64 = parts.next()?.parse().ok()?;
    let month = parts.next()?;
    let month = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ]
    .iter()
    .position(|name| *name == month)?;
    let month = i64::try_from(month).ok()? + 1;
    let year: i64 = parts.next()?.parse().ok()?;
    if !(1..=31).contains(&day) || !(1970..=9999).contains(&year) {
        return None;
    }
    let mut clock = parts.next()?.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from civil (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let y = if month <= 2 { year - 1 } else { year };
    let era = y / 400;
    let of_era = y - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    u64::try_from(days)
        .ok()
        .map(|days| days * 86_400 + hour * 3600 + minute * 60 + second)
}
