//! Vectors over HTTP: OpenAI's `/v1/embeddings`, as vLLM, llama.cpp and Text Embeddings Inference serve it too, and
//! Ollama's `/api/embed`.
//!
//! One text per request. What an engine says that holds no vector is a bad reply of that row, like a reply that breaks
//! its model: the engine is asked again.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::draft::fault;
use super::fault::{Said, one_line};
use crate::engine::{CallError, Finish, Reply, vector};
use crate::event::Usage;

/// The body of a request to `/v1/embeddings`. Numbers as JSON: some servers know no other form.
pub(super) fn openai(model: &str, input: &str) -> Vec<u8> {
    let body = OpenAi {
        model,
        input,
        encoding_format: "float",
    };
    // Strings always print.
    serde_json::to_vec(&body).unwrap_or_default()
}

/// The body of a request to `/api/embed`. A text that does not fit is an error: its end would be dropped without a
/// word.
pub(super) fn ollama(model: &str, input: &str, context: Option<u32>) -> Vec<u8> {
    let body = Ollama {
        model,
        input,
        truncate: false,
        options: context.map(|num_ctx| Options { num_ctx }),
    };
    // Strings and numbers always print.
    serde_json::to_vec(&body).unwrap_or_default()
}

#[derive(Serialize)]
struct OpenAi<'a> {
    model: &'a str,
    input: &'a str,
    encoding_format: &'static str,
}

#[derive(Serialize)]
struct Ollama<'a> {
    model: &'a str,
    input: &'a str,
    truncate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Options>,
}

#[derive(Serialize)]
struct Options {
    num_ctx: u32,
}

/// How an answer holds its vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// The list's name, for messages.
    list: &'static str,
    /// Its items are objects with an `embedding`, not the vectors themselves.
    wrapped: bool,
}

/// OpenAI's.
pub(super) const OPENAI: Form = Form {
    list: "data",
    wrapped: true,
};

/// Ollama's.
pub(super) const OLLAMA: Form = Form {
    list: "embeddings",
    wrapped: false,
};

/// The answer, as far as we read it; every part is read on its own, so that a wrong one is told by its name.
#[derive(Deserialize)]
struct Listing<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    embeddings: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    prompt_eval_count: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    index: Option<&'a RawValue>,
    #[serde(borrow, default)]
    embedding: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: u64,
}

/// Reads the one vector of an answer.
///
/// # Errors
/// It is no answer of such a server at all.
pub(super) fn read(body: &[u8], form: Form) -> Result<Reply, CallError> {
    // A list would be read field by field.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let listing: Option<Listing<'_>> = serde_json::from_slice(body).ok().filter(|_| is_object);
    let Some(listing) = listing else {
        return match is_object && names_no_number(body) {
            true => Ok(bad(
                "the vector holds `NaN` or `Infinity`, which are no numbers".to_owned()
            )),
            false => Err(fault("the engine's answer is no list of embeddings")),
        };
    };
    let list = if form.wrapped {
        listing.data
    } else {
        listing.embeddings
    };
    let Some(list) = list else {
        let said = Said::read(body).message;
        let what = format!("the engine's answer has no `{}`", form.list);
        return Err(fault(&if said.is_empty() {
            what
        } else {
            format!("{what}: {said}")
        }));
    };
    let usage = listing
        .usage
        .and_then(|usage| serde_json::from_str(usage.get()).ok());
    let tokens = match usage {
        Some(WireUsage { prompt_tokens }) => prompt_tokens,
        None => listing
            .prompt_eval_count
            .and_then(|count| count.get().parse().ok())
            .unwrap_or(0),
    };
    Ok(match only(list.get(), form) {
        Ok(vector) => Reply::embedding(&vector, tokens),
        Err(problem) => Reply {
            usage: Usage {
                prompt_tokens: tokens,
                completion_tokens: 0,
            },
            ..bad(problem)
        },
    })
}

/// The vector of a list that holds one.
fn only(list: &str, form: Form) -> Result<Vec<f32>, String> {
    let name = form.list;
    let items: Vec<&RawValue> =
        serde_json::from_str(list).map_err(|_| format!("the answer's `{name}` is no list of embeddings"))?;
    let item = match items.as_slice() {
        [item] => item.get(),
        [] => return Err(format!("the answer's `{name}` is empty")),
        more => {
            return Err(format!(
                "the answer's `{name}` has {} items for one text",
                more.len()
            ));
        }
    };
    if !form.wrapped {
        return vector::numbers(item);
    }
    let entry: Option<Entry<'_>> = serde_json::from_str(item).ok().filter(|_| item.starts_with('{'));
    let entry = entry.ok_or_else(|| format!("the item of the answer's `{name}` is no object"))?;
    if let Some(index) = entry.index.filter(|index| index.get() != "0") {
        let index: String = one_line(index.get()).chars().take(20).collect();
        return Err(format!(
            "the embedding has the index {index}, where the text has 0"
        ));
    }
    let raw = entry.embedding.map_or("null", RawValue::get);
    if raw.starts_with('"') {
        let text: String = serde_json::from_str(raw).unwrap_or_default();
        return vector::base64(&text);
    }
    vector::numbers(raw)
}

/// A reply that cannot be used, and why.
fn bad(problem: String) -> Reply {
    Reply {
        finish: Finish::Rejected,
        ..Reply::text(problem)
    }
}

/// True for what some servers print of numbers that JSON has not: `NaN`, `Infinity`, outside of texts.
fn names_no_number(body: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in body.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'N' | b'I' | b'n' | b'i' if !quoted => {
                let rest = body.get(at..).unwrap_or_default();
                if [&b"NaN"[..], b"Infinity", b"nan", b"inf"]
                    .iter()
                    .any(|word| rest.starts_with(word))
                {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}
