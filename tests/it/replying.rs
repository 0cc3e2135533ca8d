//! Bodies of the test server's replies: whole, in events, broken off, or without end.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde_json::{Value, json};

use super::{Asked, Dice, Ticket};

/// Tokens of an endless reply that is no stream, when the request sets no limit.
const MUCH: u64 = 2_000;

/// A reply's body that knows when hyper has taken all of it.
pub(super) struct ReplyBody {
    parts: VecDeque<Bytes>,
    /// The length announced; none in a stream.
    len: Option<u64>,
    /// Sent after the parts, again and again.
    again: Option<Bytes>,
    /// A stream is JSON lines (Ollama), not server-sent events.
    lines: bool,
    /// The connection breaks after the parts.
    breaks: bool,
    /// Chooses the waits between events; none: they come at once.
    pace: Option<Dice>,
    /// The wait after each part.
    every: Option<Duration>,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    pub(super) ticket: Option<Ticket>,
}

impl ReplyBody {
    pub(super) fn whole(body: Bytes, ticket: Option<Ticket>) -> Self {
        let len = body.len() as u64;
        let mut whole = Self::parts(VecDeque::from([body]), ticket);
        whole.len = Some(len);
        whole
    }

    fn parts(parts: VecDeque<Bytes>, ticket: Option<Ticket>) -> Self {
        Self {
            parts,
            len: None,
            again: None,
            lines: false,
            breaks: false,
            pace: None,
            every: None,
            sleep: None,
            ticket,
        }
    }

    /// A chat completion around a text, as one JSON value or, where a stream was asked for, as events.
    pub(super) fn completion(
        asked: &Asked,
        content: &str,
        finish_reason: &str,
        paced: bool,
        ticket: Ticket,
    ) -> Self {
        let usage = usage(asked, content.len().div_ceil(4));
        if asked.body["stream"] != true && asked.is_ollama() {
            return Self::whole(line(asked, content, Some((finish_reason, &usage))), Some(ticket));
        }
        if asked.body["stream"] != true {
            let body = json!({
                "id": id(asked), "object": "chat.completion", "created": 0, "model": asked.body["model"],
                "choices": [{"index": 0, "finish_reason": finish_reason,
                             "message": {"role": "assistant", "content": content}}],
                "usage": usage,
            });
            return Self::whole(body.to_string().into(), Some(ticket));
        }
        let middle = (content.len() / 2..content.len())
            .find(|at| content.is_char_boundary(*at))
            .unwrap_or(0);
        let halves = [&content[..middle], &content[middle..]];
        let mut parts = VecDeque::new();
        if asked.is_ollama() {
            parts.extend(halves.map(|piece| line(asked, piece, None)));
            parts.push_back(line(asked, "", Some((finish_reason, &usage))));
        } else {
            parts.push_back(event(asked, json!({"role": "assistant", "content": ""}), None));
            parts.extend(halves.map(|piece| event(asked, json!({"content": piece}), None)));
            parts.push_back(event(asked, json!({}), Some(finish_reason)));
            let mut last = chunk(asked, json!([]));
            last["usage"] = usage;
            parts.push_back(format!("data: {last}\n\ndata: [DONE]\n\n").into());
        }
        let mut stream = Self::parts(parts, Some(ticket));
        stream.lines = asked.is_ollama();
        stream.pace = paced.then(|| Dice::new(&[asked.digest.as_slice(), &[asked.seen as u8]].concat()));
        stream
    }

    /// Vectors, as they are listed by OpenAI or Ollama.
    pub(super) fn vectors(asked: &Asked, vectors: &[Vec<f32>], ticket: Ticket) -> Self {
        let tokens = asked.user().len().div_ceil(4);
        let body = if asked.is_ollama() {
            json!({"model": asked.body["model"], "embeddings": vectors, "prompt_eval_count": tokens})
        } else {
            let listed = vectors.iter().enumerate();
            let data: Vec<Value> = listed
                .map(|(at, vector)| json!({"object": "embedding", "index": at, "embedding": vector}))
                .collect();
            json!({
                "object": "list", "model": asked.body["model"], "data": data,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            })
        };
        Self::whole(body.to_string().into(), Some(ticket))
    }

    /// A reply that only ends when the client goes away, or at its token limit.
    pub(super) fn endless(asked: &Asked, piece: &str, ticket: Ticket) -> Self {
        if asked.body["stream"] == true {
            let again = match asked.is_ollama() {
                true => line(asked, piece, None),
                false => event(asked, json!({"content": piece}), None),
            };
            let mut stream = Self::parts(VecDeque::new(), Some(ticket));
            stream.lines = asked.is_ollama();
            stream.again = Some(again);
            return stream;
        }
        let tokens = asked.max_tokens().unwrap_or(MUCH);
        let content = piece.repeat(usize::try_from(tokens).unwrap_or(usize::MAX));
        Self::completion(asked, &content, "length", false, ticket)
    }

    /// The first half, then the connection breaks.
    pub(super) fn half(mut self) -> Self {
        match self.parts.len() {
            1 => self
                .parts
                .iter_mut()
                .for_each(|part| *part = part.slice(..part.len() / 2)),
            events => self.parts.truncate(events / 2),
        }
        self.breaks = true;
        self
    }

    /// In small parts with a wait after each.
    pub(super) fn drip(mut self, bytes: usize, every: Duration) -> Self {
        let small = |part: Bytes| -> Vec<Bytes> { part.chunks(bytes).map(Bytes::copy_from_slice).collect() };
        self.parts = std::mem::take(&mut self.parts)
            .into_iter()
            .flat_map(small)
            .collect();
        self.every = Some(every);
        self
    }

    /// The first half of a stream, then an error event; the error itself, with a status, where there is
    /// no stream.
    pub(super) fn interrupted(mut self, error: &Value) -> (u16, Self) {
        if self.len.is_some() {
            return (500, Self::whole(error.to_string().into(), self.ticket.take()));
        }
        self.parts.truncate(2);
        let event = match self.lines {
            true => format!("{error}\n"),
            false => format!("data: {error}\n\n"),
        };
        self.parts.push_back(event.into());
        (200, self)
    }

    pub(super) fn content_type(&self) -> &'static str {
        match (self.len.is_some(), self.lines) {
            (true, _) => "application/json",
            (false, true) => "application/x-ndjson",
            (false, false) => "text/event-stream",
        }
    }
}

fn id(asked: &Asked) -> String {
    format!("chatcmpl-{}", &blake3::Hash::from(asked.digest).to_hex()[..12])
}

fn usage(asked: &Asked, reply: usize) -> Value {
    let prompt: usize = asked
        .messages()
        .filter_map(|m| m["content"].as_str())
        .map(str::len)
        .sum();
    let prompt = prompt.div_ceil(4);
    json!({"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply})
}

fn chunk(asked: &Asked, choices: Value) -> Value {
    json!({"id": id(asked), "object": "chat.completion.chunk", "created": 0,
           "model": asked.body["model"], "choices": choices})
}

fn event(asked: &Asked, delta: Value, finish_reason: Option<&str>) -> Bytes {
    let choice = json!([{"index": 0, "delta": delta, "finish_reason": finish_reason}]);
    format!("data: {}\n\n", chunk(asked, choice)).into()
}

/// A line of Ollama's; the last one has the reason to end and the counts.
fn line(asked: &Asked, content: &str, end: Option<(&str, &Value)>) -> Bytes {
    let mut line = json!({
        "model": asked.body["model"], "created_at": "1970-01-01T00:00:00Z",
        "message": {"role": "assistant", "content": content}, "done": end.is_some(),
    });
    if let Some((reason, usage)) = end {
        line["done_reason"] = reason.into();
        line["prompt_eval_count"] = usage["prompt_tokens"].clone();
        line["eval_count"] = usage["completion_tokens"].clone();
    }
    format!("{line}\n").into()
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(sleep) = &mut self.sleep {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.sleep = None;
            if self.parts.is_empty() && self.breaks {
                return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
            }
        }
        if let Some(part) = self.parts.pop_front() {
            // One event in four lets the next one wait.
            let waits = self
                .pace
                .as_mut()
                .map_or(0, |dice| dice.below(8))
                .saturating_sub(5);
            let breaks = self.parts.is_empty() && self.breaks;
            if let Some(every) = self.every {
                self.sleep = Some(Box::pin(tokio::time::sleep(every)));
            } else if waits > 0 || breaks {
                let delay = Duration::from_millis(waits.max(2));
                self.sleep = Some(Box::pin(tokio::time::sleep(delay)));
            }
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        Poll::Ready(self.again.clone().map(|again| Ok(Frame::data(again))))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty() && !self.breaks && self.again.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.len.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        let whole = self.is_end_stream();
        if let Some(ticket) = &mut self.ticket {
            ticket.whole = whole;
        }
    }
}
