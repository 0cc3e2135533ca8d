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
    Capability, Choice, Ending, Generate, LoadError, Loader, ModelError, Size, TextEmbedder, TextGenerator,
};
use super::embedding::BertEmbedding;
use super::pool::{Pool, PoolConfig, PoolError, PoolNews};
use super::pools::Tended;
use super::text::GgufText;
use crate::engine::broker::{MemoryLedger, Prepare};
use crate::engine::client::schema::PreparedSchema;
use crate::engine::{CallError, Chat, Engine, Finish, Message, Pressure, Rendered, Reply, Request};
use crate::event::{Event, EventSender, Usage};
use crate::row::ErrorKind;
use crate::spec::{Concurrency, EngineSpec, Task};

/// What the model at a path can be asked for: a file writes text, a folder embeds it.
pub(in crate::engine) fn task_of(path: &Path) -> Task {
    match path.is_dir() {
        true => Task::Embed,
        false => Task::Generate,
    }
}

/// What a worker of the model at a path takes.
///
/// # Errors
/// It is no model that runs in this process.
pub(in crate::engine) fn size(spec: &EngineSpec, path: &Path) -> Result<Size, LoadError> {
    match task_of(path) {
        Task::Generate => writer(spec, path).size(),
        Task::Embed if spec.reasoning == Some(true) => Err(LoadError::new(
            "it is a folder, and those embed texts and do not think\n  leave out `reasoning`",
        )),
        Task::Embed => embedder(spec, path).size(),
    }
}

/// The text generator that an engine declares, in a file.
fn writer(spec: &EngineSpec, path: &Path) -> GgufText {
    let mut model = GgufText::new(path).with_thinking(spec.reasoning == Some(true));
    if let Some(tokens) = spec.context {
        model = model.with_context(tokens as usize);
    }
    match spec.concurrency {
        Concurrency::Fixed(sequences) => model.with_sequences(sequences),
        Concurrency::Auto => model,
    }
}

/// The embedding model that an engine declares, in a folder.
fn embedder(spec: &EngineSpec, path: &Path) -> BertEmbedding {
    let mut model = BertEmbedding::new(path);
    if let Some(tokens) = spec.context {
        model = model.with_context(tokens as usize);
    }
    match spec.concurrency {
        Concurrency::Fixed(texts) => model.with_texts(texts),
        Concurrency::Auto => model,
    }
}

/// Where models of a kind come from, shared by all who load one.
type Source<C> = Arc<dyn Loader<C>>;
/// The model at a path.
type Make<C> = fn(&EngineSpec, &Path) -> Result<Source<C>, LoadError>;

/// A model that is fetched and verified before it is loaded.
struct Prepared<C: Capability> {
    spec: EngineSpec,
    prepare: Arc<Prepare>,
    events: EventSender,
    stop: CancellationToken,
    make: Make<C>,
    /// The model of the path that was found.
    model: Mutex<Option<(PathBuf, Source<C>)>>,
    /// What its preparation is at, where that was worth telling.
    doing: Mutex<Option<String>>,
}

impl<C: Capability> Prepared<C> {
    fn model(&self) -> Result<Source<C>, LoadError> {
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
        let found = (self.make)(&self.spec, &path)?;
        *model = Some((path, Arc::clone(&found)));
        Ok(found)
    }
}

impl<C: Capability> Loader<C> for Prepared<C> {
    fn size(&self) -> Result<Size, LoadError> {
        let mut size = self.model()?.size()?;
        if let Some(ram) = self.spec.launch.memory.ram {
            size.need.ram = ram;
        }
        Ok(size)
    }

    fn load(&self) -> Result<Box<C::Model>, LoadError> {
        self.model()?.load()
    }

    fn doing(&self) -> Option<String> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The pools of an engine, one for each task that its model may be asked for, and the engine before them. The pools are
/// to be tended; a pool that nobody asks takes nothing.
pub(in crate::engine) fn in_process(
    spec: &EngineSpec,
    prepare: &Arc<Prepare>,
    memory: &MemoryLedger,
    events: &EventSender,
    stop: &CancellationToken,
) -> (Vec<Arc<dyn Tended>>, InProcess) {
    let making = Making {
        spec,
        prepare,
        memory,
        events,
        stop,
    };
    let write = making.pool::<TextGenerator>(|spec, path| match task_of(path) {
        Task::Generate => Ok(Arc::new(writer(spec, path))),
        Task::Embed => Err(LoadError::new(
            "it is a folder, and those embed texts\n  give the Step `task: embed` and `input`, or name a GGUF file that writes text",
        )),
    });
    let embed = making.pool::<TextEmbedder>(|spec, path| match task_of(path) {
        Task::Embed => Ok(Arc::new(embedder(spec, path))),
        Task::Generate => Err(LoadError::new(
            "it is a GGUF file, and those write text in this process\n  name the folder of an embedding model: `config.json`, `tokenizer.json` and safetensors",
        )),
    });
    let tended: Vec<Arc<dyn Tended>> = vec![Arc::new(write.clone()), Arc::new(embed.clone())];
    (tended, InProcess::new(spec, Some(Models { write, embed })))
}

/// What the pools of an engine are made of.
struct Making<'a> {
    spec: &'a EngineSpec,
    prepare: &'a Arc<Prepare>,
    memory: &'a MemoryLedger,
    events: &'a EventSender,
    stop: &'a CancellationToken,
}

impl Making<'_> {
    fn pool<C: Capability>(&self, make: Make<C>) -> Pool<C> {
        let spec = self.spec;
        let config = PoolConfig {
            workers: spec.launch.workers.map(|n| n as usize),
            load_timeout: spec.launch.startup_timeout,
            request_timeout: spec.timeout.total,
            idle_timeout: spec.launch.idle_timeout,
            ..PoolConfig::new(&spec.name)
        };
        let loader = Arc::new(Prepared {
            spec: spec.clone(),
            prepare: Arc::clone(self.prepare),
            events: self.events.clone(),
            stop: self.stop.clone(),
            make,
            model: Mutex::default(),
            doing: Mutex::default(),
        });
        let (name, events) = (spec.name.clone(), self.events.clone());
        Pool::new(config, loader, self.memory.clone(), move |news| {
            tell(&name, &events, news);
        })
    }
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
    models: Option<Models>,
}

/// The pools of an engine.
struct Models {
    write: Pool<TextGenerator>,
    embed: Pool<TextEmbedder>,
}

/// What a model that embeds is asked: the body of a request.
#[derive(Serialize, Deserialize)]
struct Text {
    input: String,
}

/// What a model that writes is asked: the body of a request.
#[derive(Serialize, Deserialize)]
struct Question {
    messages: Vec<Message>,
    schema: Option<Value>,
    sampling: Map<String, Value>,
}

impl InProcess {
    /// An engine that renders, and has nobody to ask.
    pub(in crate::engine) fn rendering(spec: &EngineSpec) -> Self {
        Self::new(spec, None)
    }

    fn new(spec: &EngineSpec, models: Option<Models>) -> Self {
        let mut identity = blake3::Hasher::new();
        for part in [spec.name.as_str(), spec.backend.as_str(), spec.model.as_str()] {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part.as_bytes());
        }
        identity.update(spec.launch.identity().as_bytes());
        if spec.reasoning == Some(true) {
            identity.update(b" reasoning");
        }
        Self { identity, models }
    }

    async fn ask(&self, rendered: &Rendered) -> Result<Reply, CallError> {
        let Some(models) = &self.models else {
            return Err(down("is not started".to_owned()));
        };
        match rendered.task {
            Task::Generate => models.write(&rendered.body).await,
            Task::Embed => models.embed(&rendered.body).await,
        }
    }
}

/// Reads a body that was rendered here.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CallError> {
    serde_json::from_slice(body).map_err(|error| CallError::Refused {
        kind: ErrorKind::Http,
        message: format!("the request cannot be read back: {error}"),
    })
}

impl Models {
    async fn write(&self, body: &[u8]) -> Result<Reply, CallError> {
        let question: Question = read(body)?;
        let reply = self
            .write
            .ask(question.generate()?)
            .await
            .map_err(|error| fault(error, Task::Generate))?;
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

    async fn embed(&self, body: &[u8]) -> Result<Reply, CallError> {
        let text: Text = read(body)?;
        let reply = self
            .embed
            .ask(text.input)
            .await
            .map_err(|error| fault(error, Task::Embed))?;
        Ok(Reply::embedding(&reply.vector, reply.tokens as u64))
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
fn fault(error: PoolError, task: Task) -> CallError {
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
            message: match task {
                Task::Generate => format!(
                    "the prompt has {tokens} tokens, and the engine takes {context} of prompt and reply together; \
                     shorten it, or raise `context`"
                ),
                Task::Embed => format!(
                    "the text has {tokens} tokens, and the model takes {context}; cut it before this Step, \
                     or take a model for longer texts"
                ),
            },
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
        // Texts, numbers and JSON always print.
        let body = match request {
            Request::Chat(Chat {
                messages,
                schema,
                sampling,
                ..
            }) => serde_json::to_vec(&Question {
                messages: messages.to_vec(),
                schema: schema.map(|schema| schema.wire().schema.clone()),
                sampling: match sampling.to_json() {
                    Value::Object(sampling) => sampling,
                    _ => Map::new(),
                },
            }),
            Request::Embed { input } => serde_json::to_vec(&Text {
                input: (*input).to_owned(),
            }),
        }
        .unwrap_or_default();
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
        Box::pin(self.ask(rendered))
    }
}
