//! A model in this process as an engine of a chain.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::capability::{
    Choice, Ending, Generate, LoadError, Loader, ModelError, Size, TextGeneration, TextGenerator,
};
use super::pool::{Pool, PoolConfig, PoolError, PoolNews};
use super::text::GgufText;
use crate::engine::broker::{MemoryLedger, Prepare};
use crate::engine::client::schema::PreparedSchema;
use crate::engine::{CallError, Chat, Engine, Finish, Message, Pressure, Rendered, Reply, Request};
use crate::event::{Event, EventSender, Usage};
use crate::row::ErrorKind;
use crate::spec::{Concurrency, EngineSpec, Task};

/// The text generator that an engine declares, in a file.
pub(in crate::engine) fn text_model(spec: &EngineSpec, path: &Path) -> GgufText {
    let mut model = GgufText::new(path).with_thinking(spec.reasoning == Some(true));
    if let Some(tokens) = spec.context {
        model = model.with_context(tokens as usize);
    }
    match spec.concurrency {
        Concurrency::Fixed(sequences) => model.with_sequences(sequences),
        Concurrency::Auto => model,
    }
}

/// A model that is fetched and verified before it is loaded.
struct Prepared {
    spec: EngineSpec,
    prepare: Arc<Prepare>,
    events: EventSender,
    stop: CancellationToken,
    /// The model of the file that was found.
    model: Mutex<Option<(PathBuf, Arc<GgufText>)>>,
    /// What its preparation is at, where that was worth telling.
    doing: Mutex<Option<String>>,
}

impl Prepared {
    fn model(&self) -> Result<Arc<GgufText>, LoadError> {
        let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((path, model)) = &*model
            && path.exists()
        {
            return Ok(Arc::clone(model));
        }
        let prepared = (self.prepare)(&|news| {
            if self.stop.is_cancelled() {
                return ControlFlow::Break(());
            }
            if !news.is_empty() {
                *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = Some(news.to_owned());
                self.events.send(starting(&self.spec.name, 0, news.to_owned()));
            }
            ControlFlow::Continue(())
        });
        *self.doing.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let path = prepared
            .map_err(LoadError::new)?
            .model_path
            .ok_or_else(|| LoadError::new("it has no model"))?;
        let found = Arc::new(text_model(&self.spec, &path));
        *model = Some((path, Arc::clone(&found)));
        Ok(found)
    }
}

impl Loader<TextGenerator> for Prepared {
    fn size(&self) -> Result<Size, LoadError> {
        let mut size = self.model()?.size()?;
        if let Some(ram) = self.spec.launch.memory.ram {
            size.need.ram = ram;
        }
        Ok(size)
    }

    fn load(&self) -> Result<Box<dyn TextGeneration>, LoadError> {
        self.model()?.load()
    }

    fn doing(&self) -> Option<String> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The pool of an engine, and the engine before it. The pool is to be tended.
pub(in crate::engine) fn in_process(
    spec: &EngineSpec,
    prepare: Arc<Prepare>,
    memory: MemoryLedger,
    events: &EventSender,
    stop: CancellationToken,
) -> (Pool<TextGenerator>, InProcess) {
    let config = PoolConfig {
        workers: spec.launch.workers.map(|n| n as usize),
        load_timeout: spec.launch.startup_timeout,
        request_timeout: spec.timeout.total,
        idle_timeout: spec.launch.idle_timeout,
        ..PoolConfig::new(&spec.name)
    };
    let loader = Arc::new(Prepared {
        spec: spec.clone(),
        prepare,
        events: events.clone(),
        stop,
        model: Mutex::default(),
        doing: Mutex::default(),
    });
    let (name, events) = (spec.name.clone(), events.clone());
    let pool = Pool::new(config, loader, memory, move |news| tell(&name, &events, news));
    let engine = InProcess::new(spec, Some(pool.clone()));
    (pool, engine)
}

fn starting(engine: &str, worker: usize, reason: String) -> Event {
    Event::EngineStarting {
        engine: engine.to_owned(),
        replica: u32::try_from(worker).unwrap_or(u32::MAX),
        reason,
    }
}

/// What happens to a pool, as events.
fn tell(name: &str, events: &EventSender, news: PoolNews) {
    events.send(match news {
        PoolNews::Loading { worker } => starting(name, worker, "loading its model".to_owned()),
        PoolNews::Loaded { .. } => Event::EngineReady {
            engine: name.to_owned(),
        },
        PoolNews::Failed { why } => Event::Warning {
            message: format!("engine {name}: its model cannot be loaded: {why}"),
        },
        PoolNews::Panicked { why } => Event::Warning {
            message: format!("engine {name}: its model panicked, and is loaded again: {why}"),
        },
        PoolNews::Released { why } => Event::EngineReleased {
            engine: name.to_owned(),
            replica: 0,
            reason: why,
        },
    });
}

/// A model in this process as an engine of a chain.
pub(in crate::engine) struct InProcess {
    /// BLAKE3 fed with what else decides a reply than the request.
    identity: blake3::Hasher,
    /// None for one that only renders.
    pool: Option<Pool<TextGenerator>>,
}

/// What is asked: the body of a request.
#[derive(Serialize, Deserialize)]
struct Question {
    messages: Vec<Message>,
    schema: Option<Value>,
    sampling: Map<String, Value>,
}

impl InProcess {
    pub(in crate::engine) fn new(spec: &EngineSpec, pool: Option<Pool<TextGenerator>>) -> Self {
        let mut identity = blake3::Hasher::new();
        for part in [spec.name.as_str(), spec.backend.as_str(), spec.model.as_str()] {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part.as_bytes());
        }
        identity.update(spec.launch.identity().as_bytes());
        if spec.reasoning == Some(true) {
            identity.update(b" reasoning");
        }
        Self { identity, pool }
    }

    async fn ask(&self, body: &[u8]) -> Result<Reply, CallError> {
        let Some(pool) = &self.pool else {
            return Err(down("is not started".to_owned()));
        };
        let question: Question = serde_json::from_slice(body).map_err(|error| CallError::Refused {
            kind: ErrorKind::Http,
            message: format!("the request cannot be read back: {error}"),
        })?;
        let reply = pool.ask(question.generate()?).await.map_err(fault)?;
        Ok(Reply {
            text: reply.text,
            reasoning: reply.reasoning,
            finish: match reply.ending {
                Ending::Done => Finish::Stop,
                Ending::Cut => Finish::Length,
                Ending::Runaway => Finish::Runaway,
            },
            usage: Usage {
                prompt_tokens: reply.prompt_tokens as u64,
                completion_tokens: reply.reply_tokens as u64,
            },
        })
    }
}

impl Question {
    /// As the model is asked.
    fn generate(self) -> Result<Generate, CallError> {
        let mut asked = Generate {
            messages: self.messages,
            schema: self.schema.map(Arc::new),
            ..Generate::default()
        };
        let mut choice = Choice::default();
        for (name, value) in &self.sampling {
            let number = || {
                value
                    .as_f64()
                    .ok_or_else(|| unknown(&format!("{name}: {value}"), "give it a number"))
            };
            match name.as_str() {
                "temperature" => choice.temperature = number()? as f32,
                "top_p" => choice.top_p = number()? as f32,
                "min_p" => choice.min_p = number()? as f32,
                "top_k" => choice.top_k = number()?.max(0.0) as usize,
                "seed" => choice.seed = value.as_i64().unwrap_or_default().cast_unsigned(),
                "max_tokens" | "max_completion_tokens" | "n_predict" | "num_predict" => {
                    asked.max_tokens = Some(number()?.max(0.0) as usize);
                }
                "stop" => {
                    let texts = value.as_array().into_iter().flatten();
                    asked.stop = texts
                        .filter_map(|text| text.as_str().map(str::to_owned))
                        .collect();
                }
                _ => {
                    return Err(unknown(
                        name,
                        "leave it out: there is temperature, top_p, top_k, min_p, seed, max_tokens and stop",
                    ));
                }
            }
        }
        asked.sampling = choice;
        Ok(asked)
    }
}

/// A sampling parameter that does nothing here would change what a chain says: it stops the run.
fn unknown(name: &str, then: &str) -> CallError {
    CallError::Fatal {
        message: format!("does not know the sampling parameter `{name}`; {then}"),
    }
}

fn down(message: String) -> CallError {
    CallError::Engine {
        message,
        retry_after: None,
        pressure: Pressure::Down,
    }
}

/// What an error of the pool means for the row.
fn fault(error: PoolError) -> CallError {
    let late = |message: String| CallError::Transport {
        kind: ErrorKind::Timeout,
        message,
    };
    match error {
        PoolError::Load(error) => CallError::Fatal {
            message: format!("cannot load its model: {error}"),
        },
        PoolError::Model(ModelError::TooLong { tokens, context }) => CallError::Refused {
            kind: ErrorKind::ContextLength,
            message: format!(
                "the prompt has {tokens} tokens, and the engine takes {context} of prompt and reply together; \
                 shorten it, or raise `context`"
            ),
        },
        PoolError::Model(ModelError::Refused(message)) => CallError::Refused {
            kind: ErrorKind::Http,
            message,
        },
        PoolError::Model(ModelError::Late) => {
            late("the reply took longer than `timeout: {total}`".to_owned())
        }
        PoolError::Model(ModelError::Failed(message)) => CallError::Transport {
            kind: ErrorKind::Http,
            message,
        },
        PoolError::Late(after) => late(format!("no reply within {}", seconds(after))),
        PoolError::Closed => down("was shut down".to_owned()),
    }
}

fn seconds(duration: Duration) -> String {
    crate::report::duration(duration.as_secs_f64())
}

impl Engine for InProcess {
    fn prepare(&self, _name: &str, schema: &Value) -> PreparedSchema {
        PreparedSchema::as_is(schema)
    }

    fn render(&self, request: &Request<'_>) -> Rendered {
        let question = match request {
            Request::Chat(Chat {
                messages,
                schema,
                sampling,
                ..
            }) => Question {
                messages: messages.to_vec(),
                schema: schema.map(|schema| schema.wire().schema.clone()),
                sampling: match sampling.to_json() {
                    Value::Object(sampling) => sampling,
                    _ => Map::new(),
                },
            },
            // Told of when the chain was read.
            Request::Embed { .. } => Question {
                messages: Vec::new(),
                schema: None,
                sampling: Map::new(),
            },
        };
        // Texts, numbers and JSON always print.
        let body = serde_json::to_vec(&question).unwrap_or_default();
        let mut hasher = self.identity.clone();
        hasher.update(&body);
        Rendered {
            body: body.into(),
            digest: hasher.finalize().into(),
            task: match request {
                Request::Chat(_) => Task::Generate,
                Request::Embed { .. } => Task::Embed,
            },
        }
    }

    fn call<'a>(&'a self, rendered: &'a Rendered, _turn: u32) -> BoxFuture<'a, Result<Reply, CallError>> {
        Box::pin(self.ask(&rendered.body))
    }
}
