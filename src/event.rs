//! Facts about the flow: what happened, as data. Nobody here prints.

mod progress;
mod words;

use std::sync::Arc;
use std::time::Duration;

pub use progress::{
    EngineStatus, Entries, Exchange, Feed, NodeInfo, NodeProgress, Progress, Recent, Retrying, Status,
    Switching, Total, Traffic,
};

pub(crate) use words::{are, counted, thousands};

use crate::row::ErrorKind;

/// One fact about a run; per chunk or per change, never per row.
///
/// The names on the wire (`--json-logs`) are [`Event::name`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The run begins (or goes on).
    RunStarted {
        /// The run's id, kept over resumes.
        run_id: String,
        /// The chain's name.
        chain: String,
        /// Input rows, when they could be counted cheaply.
        total: Option<u64>,
    },
    /// An unfinished run is taken up again.
    Resumed {
        /// Input rows already committed.
        rows: u64,
        /// Answers in the ledger that will not be asked again.
        answers: u64,
        /// Requests whose answers were on their way and may be asked again, at most; none if answers are not kept.
        in_flight: Option<u64>,
        /// Why it is taken up.
        reason: Resumption,
    },
    /// A chunk was read and goes into the plan.
    ChunkStarted {
        /// The chunk's number.
        seq: u64,
        /// Its input rows.
        rows: u64,
    },
    /// A chunk was committed.
    ChunkFinished {
        /// The chunk's number.
        seq: u64,
        /// Its input rows.
        rows: u64,
        /// Failed rows among them.
        failed: u64,
    },
    /// How many rows a node has to do, over all resumes: while the run goes on, what its input and the
    /// nodes before it let expect (when that changed, and at most once a second); at its end, what came.
    StepTotal {
        /// The node's id; `chain_input` for the input rows in all, once they are counted.
        node: String,
        /// Rows that have come and will come.
        total: u64,
        /// Reckoned from how many rows the nodes before it left so far.
        estimate: bool,
    },
    /// Rows a node brought to an end since the last such event.
    RowsFinished {
        /// The node's id.
        node: String,
        /// Rows that got their fate.
        rows: u64,
    },
    /// Rows that failed at a node since the last such event.
    RowsFailed {
        /// The node's id (`chain_input` for bad input lines).
        node: String,
        /// The kind of failure.
        kind: ErrorKind,
        /// How many.
        count: u64,
        /// One message.
        example: String,
    },
    /// An engine refuses work for now; rows wait.
    EngineWaiting {
        /// The engine's name.
        engine: String,
        /// What it said.
        reason: String,
        /// Seconds until it is asked again.
        retry_in_s: f64,
    },
    /// An engine answers (again).
    EngineReady {
        /// The engine's name.
        engine: String,
    },
    /// A server of an engine is being prepared or started.
    EngineStarting {
        /// The engine's name.
        engine: String,
        /// Which of its servers, from 0.
        replica: u32,
        /// What is done, and why if it is not the first start: `starting`, `downloading MODEL`, `restart 2 after: ...`.
        reason: String,
    },
    /// A server of an engine gets no more requests; it is stopped when those in flight are done.
    EngineDraining {
        /// The engine's name.
        engine: String,
        /// Which of its servers, from 0.
        replica: u32,
        /// Why.
        reason: String,
    },
    /// A server of an engine was stopped by us; it is started again when a row needs it.
    EngineReleased {
        /// The engine's name.
        engine: String,
        /// Which of its servers, from 0.
        replica: u32,
        /// Why: `idle`, `makes room for NAME`, `the run is over`.
        reason: String,
    },
    /// A server of an engine ended or hung by itself, or could not be started.
    EngineCrashed {
        /// The engine's name.
        engine: String,
        /// Which of its servers, from 0.
        replica: u32,
        /// How: an exit status, a signal, what was not seen in time.
        reason: String,
        /// Requests that were in flight.
        in_flight: usize,
        /// Where its log is.
        log: String,
    },
    /// The last lines that a server wrote before it crashed, or something it reported that matters.
    EngineLog {
        /// The engine's name.
        engine: String,
        /// Which of its servers, from 0.
        replica: u32,
        /// At most 50 lines.
        lines: Vec<String>,
    },
    /// A shard is complete and has its final name.
    ShardRolled {
        /// Path below OUT.
        path: String,
        /// Its lines.
        rows: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// All that was committed up to here is on disk.
    Checkpoint {
        /// Input rows committed.
        rows: u64,
    },
    /// Something the user should know that stops nothing.
    Warning {
        /// The sentence.
        message: String,
    },
    /// A request that was answered or failed (only with `--verbose`, and then a bounded number per second).
    Request(Exchange),
    /// The run ended.
    RunFinished(RunStats),
}

impl Event {
    /// The name in `--json-logs`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunStarted { .. } => "run_started",
            Self::Resumed { .. } => "resumed",
            Self::ChunkStarted { .. } => "chunk_started",
            Self::ChunkFinished { .. } => "chunk_finished",
            Self::StepTotal { .. } => "step_total",
            Self::RowsFinished { .. } => "rows_finished",
            Self::RowsFailed { .. } => "rows_failed",
            Self::EngineWaiting { .. } => "engine_waiting",
            Self::EngineReady { .. } => "engine_ready",
            Self::EngineStarting { .. } => "engine_starting",
            Self::EngineDraining { .. } => "engine_draining",
            Self::EngineReleased { .. } => "engine_released",
            Self::EngineCrashed { .. } => "engine_crashed",
            Self::EngineLog { .. } => "engine_log",
            Self::ShardRolled { .. } => "shard_rolled",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Warning { .. } => "warning",
            Self::Request(_) => "request",
            Self::RunFinished(_) => "run_finished",
        }
    }
}

/// Why a run is taken up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// It was not finished.
    Same,
    /// Its chain or input changed: it starts at its first row, with the answers on file.
    Edited,
    /// Failed rows are asked again, and the rest is made from the answers on file.
    Retry {
        /// Lines in `errors/`.
        failures: u64,
    },
}

impl Resumption {
    /// The name in `resumed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "unfinished",
            Self::Edited => "edited",
            Self::Retry { .. } => "retry_errors",
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RunState {
    /// Still going.
    #[default]
    Running,
    /// Every row is accounted for.
    Finished,
    /// Stopped by an error; the same command goes on.
    Stopped,
    /// Stopped by Ctrl-C or SIGTERM; the same command goes on.
    Interrupted,
}

impl RunState {
    /// The name in `run_finished`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Tokens as the engines counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the requests.
    pub prompt_tokens: u64,
    /// Tokens of the replies.
    pub completion_tokens: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// How many requests an engine came to have in flight, and what its models did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Its name.
    pub engine: String,
    /// Requests that it might have in flight at the end, over all its servers.
    pub limit: usize,
    /// The lowest limit that stood.
    pub least: usize,
    /// The highest.
    pub most: usize,
    /// Why it moved last.
    pub reason: String,
    /// Times that the engine wanted less; a wave of refusals is one.
    pub push_backs: u64,
    /// What its models did, if they are in this process.
    pub models: Option<ModelStats>,
}

/// What the models of an engine in this process did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelStats {
    /// How often one was loaded.
    pub loads: u64,
    /// Time of that, all together.
    pub loading: Duration,
    /// Most workers at the same time, each with a model.
    pub workers: u64,
    /// Time that workers were at work, all together.
    pub busy: Duration,
    /// Panics, after each of which a model was loaded anew.
    pub panics: u64,
    /// Tokens of prompts that were not worked on again: earlier prompts began with them.
    pub reused_tokens: u64,
}

impl std::ops::AddAssign for ModelStats {
    fn add_assign(&mut self, other: Self) {
        self.loads += other.loads;
        self.loading += other.loading;
        self.workers += other.workers;
        self.busy += other.busy;
        self.panics += other.panics;
        self.reused_tokens += other.reused_tokens;
    }
}

/// The sums of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunStats {
    /// How it ended.
    pub state: RunState,
    /// Input rows committed, over all resumes.
    pub rows_in: u64,
    /// Lines in `flattened/`.
    pub rows_out: u64,
    /// Lines in `errors/`.
    pub rows_failed: u64,
    /// Input rows that were committed before this process started.
    pub rows_resumed: u64,
    /// Answers that were on file and not asked for.
    pub answers_reused: u64,
    /// How often engines took the place of others that they do not fit beside.
    pub switches: u64,
    /// What became of the concurrency of each engine, and what models in this process did.
    pub engines: Vec<EngineStats>,
    /// Seconds of this process.
    pub seconds: f64,
    /// Tokens of the committed rows.
    pub usage: Usage,
}

/// Where facts go. Cheap to clone; never blocks the sender.
#[derive(Clone)]
pub struct EventSender(Arc<dyn Fn(Event) + Send + Sync>);

impl EventSender {
    /// Sends every event to `f`, which must not block.
    pub fn new(f: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// Drops every event.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    /// Sends one event.
    pub fn send(&self, event: Event) {
        (self.0)(event);
    }
}

impl std::fmt::Debug for EventSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventSender")
    }
}

/// A reader of the event stream. It runs on a thread of its own and may be slow.
pub trait Report: Send {
    /// Something happened, at this time.
    fn event(&mut self, at: std::time::SystemTime, event: &Event, progress: &Progress);

    /// How often it wants to be ticked.
    fn every(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// That time has passed.
    fn tick(&mut self, progress: &Progress);
}
