//! Who asks, from Rust: chains made of code, run with your own engines and reports.
//!
//! The builder writes a chain file, so that everything of the chain file is there under its own name, and
//! `plan::compile` checks it like any other:
//!
//! ```
//! use chainette::chain::{Branch, Chain, Node};
//! use serde_json::{Value, json};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (input, out) = (dir.path().join("in.jsonl"), dir.path().join("out"));
//! std::fs::write(&input, "{\"n\": 3}\n{\"n\": 4}\n")?;
//! let square = |row: Value| match row["n"].as_i64() {
//!     Some(n) => Ok(json!({"n": n, "square": n * n})),
//!     None => Err("`n` is no integer"),
//! };
//! let chain = Chain::builder("squares")
//!     .node(Node::map("square", square).output_model(json!({"n": "integer", "square": "integer"})))
//!     .node(Node::parallel([
//!         Branch::new("parity").join("parity").node(Node::jq("even", "{even: (.square % 2 == 0)}")),
//!     ]))
//!     .node(Node::jq("digest", "{square, even: $row.parity.even}"))
//!     .build()?;
//!
//! let outcome = chain.job(&input, &out).run()?;
//! assert_eq!(outcome.stats.rows_out, 2);
//! let lines = std::fs::read_to_string(out.join("digest/000.jsonl"))?;
//! assert_eq!(lines.lines().next(), Some(r#"{"row_id":"0","square":9,"even":false}"#));
//! # Ok(())
//! # }
//! ```

mod node;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

pub use node::{Branch, Node};

use crate::engine::SharedEngine;
use crate::engine::broker::Broker;
use crate::event::{Event, EventSender, Report as Watcher};
use crate::plan::{Closures, Plan, Report, compile};
use crate::run::{Dispatcher, Outcome, RunConfig, RunError};
use crate::sink::{Format, Sink};
use crate::source::{AtPath, Input};
use crate::spec::{ChainInput, Concurrency};

/// An engine of yours: how chainette may use it.
#[derive(Clone)]
pub struct CustomEngine {
    /// Who answers.
    pub engine: SharedEngine,
    /// Requests in flight.
    pub concurrency: Concurrency,
    /// How long rows wait while it takes no work before the run stops.
    pub wait: Duration,
}

impl CustomEngine {
    /// An engine with the defaults of the chain file: `auto` concurrency, 10 minutes of waiting.
    pub fn new(engine: impl crate::engine::Engine + 'static) -> Self {
        Self {
            engine: Arc::new(engine),
            concurrency: Concurrency::Auto,
            wait: Duration::from_secs(600),
        }
    }

    /// So many requests in flight.
    #[must_use]
    pub fn concurrency(mut self, requests: usize) -> Self {
        self.concurrency = Concurrency::Fixed(requests.max(1));
        self
    }
}

/// A checked chain with everything it needs to run.
pub struct Chain {
    plan: Arc<Plan>,
    warnings: Report,
    /// BLAKE3 of the chain as text, hexadecimal.
    digest: String,
    engines: Vec<(String, CustomEngine)>,
}

impl Chain {
    /// A chain made of code.
    pub fn builder(name: &str) -> ChainBuilder<Code> {
        ChainBuilder {
            source: Code {
                head: Map::from_iter([("name".to_owned(), json!(name))]),
                steps: Vec::new(),
            },
            closures: Closures::none(),
            engines: Vec::new(),
        }
    }

    /// A chain file, to which closures and engines can be added.
    pub fn file(path: impl Into<PathBuf>) -> ChainBuilder<File> {
        ChainBuilder {
            source: File(ChainInput::file(path)),
            closures: Closures::none(),
            engines: Vec::new(),
        }
    }

    /// What will run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What is worth a second look; often empty.
    pub fn warnings(&self) -> &Report {
        &self.warnings
    }

    /// A run of this chain over the input at a path (whatever the command takes), with the command's defaults
    /// but without its signals and screens.
    pub fn job(&self, input: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Job<'_> {
        let out = out.into();
        self.start(Arc::new(AtPath::new(input, &out)), out)
    }

    /// As [`Chain::job`], over rows of yours: [`Generated`](crate::source::Generated), or your own
    /// [`Input`].
    pub fn job_over(&self, input: impl Input + 'static, out: impl Into<PathBuf>) -> Job<'_> {
        self.start(Arc::new(input), out.into())
    }

    fn start(&self, input: Arc<dyn Input>, out: PathBuf) -> Job<'_> {
        let config = RunConfig {
            chain_digest: self.digest.clone(),
            ..RunConfig::over(self.plan.clone(), input, out)
        };
        Job {
            chain: self,
            config,
            reports: Vec::new(),
        }
    }

    /// The engines of this chain: those of its file, and yours.
    fn broker(&self, events: &EventSender) -> Result<Broker, RunError> {
        let mut broker = Broker::empty(events.clone());
        for spec in &self.plan.engines {
            let custom = self.engines.iter().find(|(name, _)| *name == spec.name);
            broker = match custom {
                Some((name, custom)) => {
                    broker.with_engine(name, custom.engine.clone(), custom.concurrency, custom.wait)
                }
                None => broker.with_spec(spec).map_err(RunError::Setup)?,
            };
        }
        Ok(broker)
    }
}

/// Where a chain comes from.
/// A chain made of code, for [`ChainBuilder`].
pub struct Code {
    /// Everything but the nodes.
    head: Map<String, Value>,
    steps: Vec<Value>,
}

/// A chain read from a file, for [`ChainBuilder`].
pub struct File(ChainInput);

/// Where a chain comes from: [`Code`] or [`File`].
pub trait Origin {
    /// What is compiled.
    #[doc(hidden)]
    fn into_input(self) -> ChainInput;
}

impl Origin for Code {
    fn into_input(mut self) -> ChainInput {
        self.head.insert("steps".to_owned(), Value::Array(self.steps));
        let name = self.head.get("name").and_then(Value::as_str).unwrap_or("chain");
        ChainInput {
            path: format!("{name}.json").into(),
            text: Some(format!("{:#}", Value::Object(self.head))),
            ..ChainInput::default()
        }
    }
}

impl Origin for File {
    fn into_input(self) -> ChainInput {
        // Read once: what is compiled is what the run is recognised by.
        let text = fs_err::read_to_string(&self.0.path).ok();
        ChainInput { text, ..self.0 }
    }
}

/// Puts a chain together; [`ChainBuilder::build`] checks it.
pub struct ChainBuilder<From> {
    source: From,
    closures: Closures,
    engines: Vec<(String, CustomEngine)>,
}

impl ChainBuilder<Code> {
    /// Adds a node to the end of the main line.
    #[must_use]
    pub fn node(mut self, node: Node) -> Self {
        for (name, run) in node.closures {
            self.closures = self.closures.with_shared(name, run);
        }
        self.source.steps.push(Value::Object(node.fields));
        self
    }

    /// Sets any other key at the top of the chain: `vars`, `models`, `input_model`, `engines`, `batch_size`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.source.head.insert(key.to_owned(), value.into());
        self
    }
}

impl ChainBuilder<File> {
    /// Another value for a variable of the chain (`--set`).
    #[must_use]
    pub fn var(mut self, key: &str, value: impl Into<Value>) -> Self {
        // JSON is YAML.
        self.source.0.sets.push(format!("{key}={}", value.into()));
        self
    }

    /// A file with more engines (`--engines`).
    #[must_use]
    pub fn engines_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.source.0.engines.push(path.into());
        self
    }
}

impl<From: Origin> ChainBuilder<From> {
    /// Registers a closure that a chain file calls by `apply: {closure: NAME}`.
    #[must_use]
    pub fn closure<F>(mut self, name: &str, run: F) -> Self
    where
        F: Fn(&crate::row::Record) -> Result<Vec<crate::row::Record>, String> + Send + Sync + 'static,
    {
        self.closures = self.closures.with(name, run);
        self
    }

    /// Registers an engine that Steps name; it takes the place of a declared one of that name.
    #[must_use]
    pub fn engine(mut self, name: &str, engine: CustomEngine) -> Self {
        self.closures = self.closures.with_engine(name);
        self.engines.push((name.to_owned(), engine));
        self
    }

    /// Checks the chain.
    ///
    /// # Errors
    /// Every problem at once, each with its place in the chain (one made of code is shown as JSON).
    pub fn build(self) -> Result<Chain, Report> {
        let input = self.source.into_input();
        let compiled = compile(&input, &self.closures)?;
        let text = input.text.unwrap_or_default();
        Ok(Chain {
            plan: Arc::new(compiled.plan),
            warnings: compiled.warnings,
            digest: blake3::hash(text.as_bytes()).to_hex().to_string(),
            engines: self.engines,
        })
    }
}

/// A run that is about to start.
pub struct Job<'a> {
    chain: &'a Chain,
    /// Input, OUT, limits and everything else the command has a flag for.
    pub config: RunConfig,
    reports: Vec<Box<dyn Watcher>>,
}

impl Job<'_> {
    /// Lets somebody watch: a report of `chainette::report`, or one of yours.
    #[must_use]
    pub fn report(mut self, report: impl Watcher + 'static) -> Self {
        self.reports.push(Box::new(report));
        self
    }

    /// Writes the outputs with a sink of yours, in the place of JSON lines.
    #[must_use]
    pub fn sink(mut self, sink: impl Sink + 'static) -> Self {
        self.config.format = Format::Custom(Arc::new(sink));
        self
    }

    /// Runs to the end, on this thread and its own runtime; it may not be called inside one.
    ///
    /// # Errors
    /// Nothing was run: OUT is another run's, an engine cannot be set up, the input cannot be read. A run
    /// that began and stopped early is an [`Outcome`] with `stopped`.
    pub fn run(self) -> Result<Outcome, RunError> {
        let dispatcher =
            Dispatcher::start(self.reports).map_err(RunError::io(Path::new("a report thread")))?;
        let events = dispatcher.events();
        let broker = Arc::new(self.chain.broker(&events)?);
        let outcome = crate::run::run(self.config, broker, &events, &dispatcher.status)?;
        dispatcher.finish(Event::RunFinished(outcome.stats.clone()));
        Ok(outcome)
    }
}
