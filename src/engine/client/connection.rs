//! What every HTTP adapter shares: the ledger's key of a request, and one exchange from the rendered
//! body to the reply.

use std::sync::Arc;

use super::draft::{Draft, fault};
use super::events::{Events, Lines};
use super::fault::Failed;
use super::http::{Http, Incoming};
use super::limits::Limits;
use crate::engine::{BROKEN, CallError, Chat, Pressure, Rendered, Reply, SetupError};
use crate::spec::{Backend, EngineSpec, Task};

/// A reply this long or of open length is streamed, in tokens: it may run away for long.
const LONG: u32 = 512;

/// How one backend's replies are read.
pub(super) trait Protocol: Sync {
    /// How its streams are cut into messages.
    const FRAMING: Framing;

    /// Reads the body of a reply that is no stream.
    fn whole(draft: &mut Draft, body: &[u8]) -> Result<Told, CallError>;

    /// Reads one message of a stream.
    fn message(draft: &mut Draft, message: &[u8]) -> Result<Told, CallError>;

    /// Reads the body of a reply that holds the vector of a text.
    fn vector(body: &[u8]) -> Result<Reply, CallError>;
}

/// How a stream is cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Server-sent events, when the content type says so.
    Events,
    /// JSON values, one a line; a reply that is no stream is one line.
    JsonLines,
}

/// What a message was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A part of the reply.
    More,
    /// Its end.
    End,
    /// An error, as if the answer had had this status.
    Failed(u16),
}

/// One engine behind an address.
pub(super) struct Connection {
    name: String,
    backend: Backend,
    model: String,
    key_env: Option<String>,
    reasoning: bool,
    /// None for a server that is still to be started.
    http: Option<Http>,
    /// BLAKE3 fed with what else decides the reply than the request; each digest goes on from here.
    identity: blake3::Hasher,
    /// Told when a part of a streamed reply comes in.
    seen: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Connection {
    pub(super) fn new(spec: &EngineSpec) -> Result<Self, SetupError> {
        let http = spec.endpoint.as_ref().map(|_| Http::new(spec)).transpose();
        let http = http.map_err(|message| SetupError {
            engine: spec.name.clone(),
            message,
        })?;
        let mut identity = blake3::Hasher::new();
        for part in [spec.name.as_str(), spec.backend.as_str(), spec.model.as_str()] {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part.as_bytes());
        }
        if spec.reasoning == Some(true) {
            // The same text may be taken apart in another way, whatever the request says.
            identity.update(b"reasoning");
        }
        identity.update(spec.launch.identity().as_bytes());
        Ok(Self {
            name: spec.name.clone(),
            backend: spec.backend,
            model: spec.model.clone(),
            key_env: spec.api_key_env.clone(),
            reasoning: spec.reasoning == Some(true),
            http,
            identity,
            seen: None,
        })
    }

    /// Tells of every part of a streamed reply.
    pub(super) fn watch(&mut self, seen: Arc<dyn Fn() + Send + Sync>) {
        self.seen = Some(seen);
    }

    /// The model asked for.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// What the last answer that named limits said of them.
    pub(super) fn limits(&self) -> Option<Limits> {
        self.http.as_ref()?.limits()
    }

    /// A request from its body, a JSON object, and the fields that only say how the reply is to be
    /// sent: those are no part of the ledger's key.
    pub(super) fn seal(&self, mut body: Vec<u8>, how: &str) -> Rendered {
        let mut hasher = self.identity.clone();
        hasher.update(&body);
        if !how.is_empty() && body.pop().is_some() {
            body.push(b',');
            body.extend_from_slice(how.as_bytes());
            body.push(b'}');
        }
        Rendered {
            task: Task::Generate,
            body: body.into(),
            digest: hasher.finalize().into(),
        }
    }

    /// A request for the vector of a text, from its body.
    pub(super) fn seal_embed(&self, body: Vec<u8>) -> Rendered {
        let mut hasher = self.identity.clone();
        hasher.update(b"embed");
        hasher.update(&body);
        Rendered {
            task: Task::Embed,
            body: body.into(),
            digest: hasher.finalize().into(),
        }
    }

    /// Sends a request and reads its reply.
    pub(super) async fn ask<P: Protocol>(&self, rendered: &Rendered, turn: u32) -> Result<Reply, CallError> {
        let Some(http) = &self.http else {
            return Err(CallError::Engine {
                message: "is not started".to_owned(),
                retry_after: None,
                pressure: Pressure::Down,
            });
        };
        let exchange = async {
            let incoming = http.post(rendered.task, rendered.body.clone(), turn).await?;
            if incoming.status != 200 {
                let (status, retry_after) = (incoming.status, incoming.retry_after);
                let body = incoming.whole().await?;
                return Failed {
                    retry_after,
                    task: rendered.task,
                    ..self.failed(status, &body)
                }
                .classify();
            }
            if rendered.task == Task::Embed {
                return P::vector(&incoming.whole().await?);
            }
            match P::FRAMING {
                Framing::Events if !incoming.is_events() => {
                    self.read_whole::<P>(http, &incoming.whole().await?)
                }
                _ => self.read_stream::<P>(http, incoming).await,
            }
        };
        // Servers like to repeat a wrong key in their complaint.
        http.in_time(exchange).await.map_err(|error| redact(http, error))
    }

    fn read_whole<P: Protocol>(&self, http: &Http, body: &[u8]) -> Result<Reply, CallError> {
        let mut draft = Draft::new(http.max_reply());
        match P::whole(&mut draft, body)? {
            Told::Failed(status) => self.failed(status, body).classify(),
            Told::More | Told::End => Ok(draft.reply(self.reasoning)),
        }
    }

    async fn read_stream<P: Protocol>(
        &self,
        http: &Http,
        mut incoming: Incoming,
    ) -> Result<Reply, CallError> {
        let most = http.max_reply();
        let (mut draft, mut lines, mut events) = (Draft::new(most), Lines::new(most), Events::new(most));
        let mut last = false;
        while !last {
            let mut whole = match incoming.chunk().await {
                Ok(Some(chunk)) => {
                    if let Some(seen) = &self.seen {
                        seen();
                    }
                    lines.push(&chunk)?;
                    lines.whole()
                }
                Ok(None) => {
                    last = true;
                    // What an unfinished last line or event may hold.
                    vec![lines.rest(), Vec::new()]
                }
                // All that was still to come is the end of the stream.
                Err(_) if draft.is_finished() => break,
                Err(error) => return Err(error),
            };
            for line in whole.drain(..) {
                let message = match P::FRAMING {
                    Framing::Events => events.line(&line)?,
                    Framing::JsonLines => Some(line).filter(|line| !line.trim_ascii().is_empty()),
                };
                let Some(message) = message else { continue };
                match P::message(&mut draft, &message)? {
                    Told::More => {}
                    Told::Failed(status) => {
                        return Failed {
                            streaming: true,
                            ..self.failed(status, &message)
                        }
                        .classify();
                    }
                    Told::End => {
                        if draft.is_empty() {
                            return Err(fault("the engine's answer is empty and gives no reason to end"));
                        }
                        incoming.drain().await;
                        return Ok(draft.reply(self.reasoning));
                    }
                }
                if draft.ran_away() {
                    // Dropping the answer closes the connection, and that ends the engine's work on it.
                    return Ok(draft.reply(self.reasoning));
                }
            }
        }
        if !draft.is_finished() {
            return Err(fault(BROKEN));
        }
        Ok(draft.reply(self.reasoning))
    }

    fn failed<'a>(&'a self, status: u16, body: &'a [u8]) -> Failed<'a> {
        Failed {
            status,
            task: Task::Generate,
            streaming: false,
            retry_after: None,
            body,
            backend: self.backend,
            model: &self.model,
            key_env: self.key_env.as_deref(),
        }
    }
}

/// Takes the secrets out of an error.
fn redact(http: &Http, mut error: CallError) -> CallError {
    match &mut error {
        CallError::Engine { message, .. }
        | CallError::Transport { message, .. }
        | CallError::Refused { message, .. }
        | CallError::Fatal { message } => *message = http.redact(std::mem::take(message)),
    }
    error
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Address and headers may hold secrets.
        f.debug_struct("Connection")
            .field("name", &self.name)
            .field("backend", &self.backend)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// True when a request is to be streamed: it asks for that, or its reply may be long.
pub(super) fn streams(chat: &Chat<'_>) -> bool {
    chat.stream || chat.sampling.limit().is_none_or(|limit| limit > LONG)
}
