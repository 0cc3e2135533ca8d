//! The loop: from a plan and an input to a finished OUT.

mod answers;
mod checkpoint;
mod committer;
mod counting;
mod counts;
mod dispatcher;
mod error;
mod executor;
mod limits;
mod lock;
mod metadata;
mod outdir;
mod parking;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use serde_json::Value;
use tokio::sync::mpsc;

pub use checkpoint::Checkpoint;
pub use counts::{Counts, NodeCounts, Times};
pub use dispatcher::{Dispatcher, Interrupted, StatusLine};
pub use error::RunError;
pub use executor::Halt;
pub use limits::ErrorLimit;
pub use metadata::rfc3339;
pub use outdir::{Existing, Identity, OutDir};
pub use watch::Tracker;

use crate::engine::Stop;
use crate::engine::broker::{Broker, EngineLoad};
use crate::event::{EngineStatus, Event, EventSender, RunState, RunStats, Status};
use crate::node::answer::{Answers, NoAnswers};
use crate::node::step::Step;
use crate::node::{Cpu, Walker, Workers};
use crate::plan::{NodeKind, Plan};
use crate::sink::{Format, Layout, StreamWriter};
use crate::source::{AtPath, Input, Source, SourceError};
use answers::Ledger;
use checkpoint::{Checkpointer, write_json};
use committer::{Committer, WaitingRows};
use counting::Counting;
use executor::{Executor, Failure, FeedGauge};
use metadata::{Timings, metadata};
use parking::Parking;

/// Requests that an `auto` engine may come to have in flight.
const AUTO_CONCURRENCY: usize = 256;

/// What to run and how.
pub struct RunConfig {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The content of `graph.json`.
    pub graph: Value,
    /// BLAKE3 of the chain file, hexadecimal.
    pub chain_digest: String,
    /// Where the rows come from.
    pub input: Arc<dyn Input>,
    /// The folder OUT.
    pub out: PathBuf,
    /// What to do with an OUT that holds a run.
    pub existing: Existing,
    /// The form of the outputs.
    pub format: Format,
    /// Lines per shard.
    pub max_rows: u64,
    /// Whether to write `flattened/`.
    pub flattened: bool,
    /// Rows per chunk.
    pub batch_size: usize,
    /// Input rows to take.
    pub limit: Option<u64>,
    /// Keep answers (not `--no-ledger`).
    pub ledger: bool,
    /// When failing rows stop the run.
    pub errors: ErrorLimit,
    /// Catch Ctrl-C, SIGTERM and SIGHUP.
    pub signals: bool,
}

impl RunConfig {
    /// A run of `plan` over the input at a path, with the command's defaults, but without its signals.
    pub fn new(plan: Plan, input: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        let out = out.into();
        Self::over(Arc::new(plan), Arc::new(AtPath::new(input, &out)), out)
    }

    /// As [`RunConfig::new`], for any input and a plan that may run more than once.
    pub fn over(plan: Arc<Plan>, input: Arc<dyn Input>, out: impl Into<PathBuf>) -> Self {
        let graph = crate::plan::explain::graph_json(&plan);
        Self {
            chain_digest: blake3::hash(graph.to_string().as_bytes()).to_hex().to_string(),
            batch_size: plan.batch_size,
            graph,
            plan,
            input,
            out: out.into(),
            existing: Existing::Same,
            format: Format::Jsonl,
            max_rows: 100_000,
            flattened: true,
            limit: None,
            ledger: true,
            errors: ErrorLimit::Hopeless,
            signals: false,
        }
    }
}

/// Runs a plan with its own engines and nobody watching; the library's short way.
///
/// # Errors
/// Nothing was run: OUT is another run's, an engine cannot be set up, the input cannot be read.
pub fn run_to_end(config: RunConfig) -> Result<Outcome, RunError> {
    let events = EventSender::none();
    let broker = Broker::new(&config.plan.engines, events.clone()).map_err(RunError::Setup)?;
    run(config, Arc::new(broker), &events, &StatusLine::default())
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The sums.
    pub stats: RunStats,
    /// By node, branch and kind.
    pub counts: Counts,
    /// How long it took.
    pub times: Times,
    /// It was finished before; nothing was run.
    pub already_finished: bool,
    /// Rows that were done when it stopped but stand in a chunk that was not; the next run writes them.
    pub unwritten: u64,
    /// Why it stopped early.
    pub stopped: Option<RunError>,
}

impl Outcome {
    /// The sums of a run that took every row; an interrupted or stopped run is an error, resumable.
    pub fn into_result(self) -> Result<RunStats, RunError> {
        match (self.stopped, self.stats.state) {
            (Some(error), _) => Err(error),
            (None, RunState::Interrupted) => Err(RunError::Stop(Stop::Interrupted)),
            (None, _) => Ok(self.stats),
        }
    }
}

/// Runs a plan. An `Err` means that nothing was run.
pub fn run(
    config: RunConfig,
    broker: Arc<Broker>,
    events: &EventSender,
    status: &StatusLine,
) -> Result<Outcome, RunError> {
    let started = Instant::now();
    let mut timings = Timings {
        started: rfc3339(SystemTime::now()),
        ..Timings::default()
    };
    config.format.check()?;
    let identity = identity(&config)?;
    // Before anything is written: a function that cannot be loaded is bad usage.
    let workers = match outdir::finished(&config.out, config.existing, config.limit) {
        true => None,
        false => Some(Workers::start(&config.plan, events)?),
    };
    let mut out = OutDir::open(&config.out, identity, config.existing)?;
    let plan = config.plan.clone();
    let found = out.checkpoint.take();
    if let Some(done) = found
        .as_ref()
        .filter(|checkpoint| is_done(checkpoint, config.limit))
    {
        read_again(&config, done, &out.identity)?;
        // Killed between the last checkpoint and the last file?
        let path = config.out.join("metadata.json");
        let written: Option<Value> = checkpoint::read_json(&path)?;
        if written.is_none_or(|metadata| metadata.get("state").is_none_or(|state| state != "finished")) {
            timings.finished = Some(rfc3339(SystemTime::now()));
            write_json(
                &out.private,
                &path,
                &metadata(&plan, &out.identity, done, &timings),
                true,
            )?;
        }
        return Ok(Outcome {
            stats: stats(&done.counts, RunState::Finished, started),
            counts: done.counts.clone(),
            times: done.times.clone(),
            already_finished: true,
            unwritten: 0,
            stopped: None,
        });
    }
    let workers = match workers {
        Some(workers) => workers,
        None => Workers::start(&plan, events)?,
    };
    let fresh = || Checkpoint {
        counts: Counts::new(&plan),
        ..Checkpoint::default()
    };
    let resumed = found.is_some();
    let mut checkpoint = found.unwrap_or_else(fresh);
    // Before anything is touched: what cannot be read is known now.
    let source = config.input.open(checkpoint.position, config.limit)?;
    if checkpoint.finished {
        // Its closed shards are about to be opened again: from here on it is not finished.
        checkpoint.finished = false;
        write_json(
            &out.private,
            &out.private.join("checkpoint.json"),
            &checkpoint,
            false,
        )?;
    }

    let layout = Layout {
        out: config.out.clone(),
        nodes: plan
            .nodes
            .iter()
            .map(|node| node.yield_output.then(|| node.id.clone()))
            .collect(),
        flattened: config.flattened,
        max_rows: config.max_rows,
        format: config.format.clone(),
    };
    let writer = StreamWriter::resume(&layout, &plan, &checkpoint.sinks)?;
    let outcomes = committer::open_outcomes(&out.private.join("outcomes"), checkpoint.outcomes)?;
    let ledger = if config.ledger && plan.asks(&plan.main.0) {
        let ordinal = if out.all_answers {
            0
        } else {
            checkpoint.position.ordinal
        };
        Some(Arc::new(Ledger::open(
            &out.private.join("answers"),
            checkpoint.answers_from,
            ordinal,
        )?))
    } else {
        None
    };
    write_json(&out.private, &config.out.join("graph.json"), &config.graph, true)?;
    let metadata_path = config.out.join("metadata.json");
    write_json(
        &out.private,
        &metadata_path,
        &metadata(&plan, &out.identity, &checkpoint, &timings),
        true,
    )?;

    let run_id = out.identity.run_id.clone();
    let counted = config.input.total();
    let total = at_most(config.limit, counted);
    let counting = Counting::start(&config, counted, events);
    events.send(Event::RunStarted {
        run_id,
        chain: plan.name.clone(),
        total,
    });
    let answers = ledger.as_ref().map_or(0, |ledger| ledger.len());
    if resumed || answers > 0 {
        events.send(Event::Resumed {
            rows: checkpoint.position.ordinal,
            answers,
        });
    }
    let rows_resumed = checkpoint.counts.rows_in;
    let seconds_before = checkpoint.times.seconds;
    let session = Session {
        config: &config,
        broker,
        events,
        status,
        source,
        workers,
        writer,
        outcomes,
        ledger,
        checkpoint,
        out: &out,
        started,
    };
    let Ended {
        mut checkpoint,
        result,
        interrupted,
        unwritten,
    } = session.run()?;
    drop(counting);

    let (state, stopped) = match result {
        // A run that was done when the signal came is done.
        Ok(()) if checkpoint.finished => (RunState::Finished, None),
        Ok(()) => (RunState::Interrupted, None),
        Err(error) if interrupted => (RunState::Interrupted, Some(error)),
        Err(error) => (RunState::Stopped, Some(error)),
    };
    if state == RunState::Finished {
        for (node, counts) in &checkpoint.counts.nodes {
            let (node, total) = (node.clone(), counts.rows);
            events.send(Event::StepTotal {
                node,
                total,
                estimate: false,
            });
        }
    }
    let mut stats = stats(&checkpoint.counts, state, started);
    stats.rows_resumed = rows_resumed;
    checkpoint.times.seconds = seconds_before + stats.seconds;
    if state == RunState::Finished {
        timings.finished = Some(rfc3339(SystemTime::now()));
        timings.seconds = Some(stats.seconds);
        write_json(
            &out.private,
            &metadata_path,
            &metadata(&plan, &out.identity, &checkpoint, &timings),
            true,
        )?;
    }
    Ok(Outcome {
        stats,
        counts: checkpoint.counts,
        times: checkpoint.times,
        already_finished: false,
        unwritten,
        stopped,
    })
}

/// How a session ended.
struct Ended {
    /// The last checkpoint.
    checkpoint: Checkpoint,
    /// The first cause.
    result: Result<(), RunError>,
    /// The user asked for it.
    interrupted: bool,
    /// Rows that were done and are not written.
    unwritten: u64,
}

/// What a run is made of once OUT is open.
struct Session<'a> {
    config: &'a RunConfig,
    broker: Arc<Broker>,
    events: &'a EventSender,
    status: &'a StatusLine,
    source: Box<dyn Source>,
    workers: Workers,
    writer: StreamWriter,
    outcomes: fs_err::File,
    ledger: Option<Arc<Ledger>>,
    checkpoint: Checkpoint,
    out: &'a OutDir,
    started: Instant,
}

impl Session<'_> {
    /// Runs until the input ends or something stops the run.
    fn run(self) -> Result<Ended, RunError> {
        let Self {
            config,
            broker,
            events,
            status,
            source,
            workers,
            writer,
            outcomes,
            ledger,
            checkpoint,
            out,
            started,
        } = self;
        let plan = config.plan.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(RunError::io(std::path::Path::new("the async runtime")))?;
        let cpu = Cpu::new().map_err(|error| RunError::Bug {
            message: error.to_string(),
        })?;
        let answers: Arc<dyn Answers> = match &ledger {
            Some(ledger) => ledger.clone(),
            None => Arc::new(NoAnswers),
        };
        let steps = plan.nodes.iter().map(|node| match &node.kind {
            NodeKind::Step(step) => {
                let step = Step::new(node, step, broker.clone(), answers.clone());
                let bug = || RunError::Bug {
                    message: format!("`{}` has no engine", node.id),
                };
                step.map(Some).ok_or_else(bug)
            }
            NodeKind::Apply(_) => Ok(None),
        });
        let steps = steps.collect::<Result<Vec<_>, _>>()?;
        let live = Arc::new(watch::live(&checkpoint.counts));
        let walker = Walker::new(plan.clone(), steps, cpu.clone())
            .with_workers(&workers)
            .with_live(live.clone());
        let walker = Arc::new(walker);
        drop(answers);

        let halt = Halt::default();
        let failure = Failure::default();
        let interrupted = Interrupted::default();
        let at_end = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel(1024);
        let position = checkpoint.position;
        let waiting = Arc::new(WaitingRows::from(position.ordinal));
        waiting.errors.store(checkpoint.counts.errors, Ordering::Relaxed);
        let feed = FeedGauge::default();
        let checkpoint_path = out.private.join("checkpoint.json");
        let committer = Committer {
            writer,
            started,
            seconds_before: checkpoint.times.seconds,
            checkpoint,
            checkpointer: Checkpointer::start(&checkpoint_path, events.clone())?,
            outcomes,
            nodes: plan.nodes.iter().map(|node| node.id.clone()).collect(),
            ledger: ledger.clone(),
            limit: config.errors,
            events: events.clone(),
            at_end: at_end.clone(),
            row_limit: config.limit,
            waiting: waiting.clone(),
            abandon: halt.abandon.clone(),
            parking: Parking::new(&out.private.join("parked")),
        };
        drop(ledger);
        let handle = runtime.handle().clone();
        let committing = {
            let stop = halt.clone();
            std::thread::Builder::new()
                .name("committer".into())
                .spawn(move || {
                    let done = committer.run(receiver, &handle);
                    // Whatever is still running has nobody left to hand its rows to.
                    stop.stop.cancel();
                    stop.abandon.cancel();
                    done
                })
        };
        let committing = committing.map_err(RunError::io(std::path::Path::new("a writer thread")))?;

        if let Ok(mut line) = status.lock() {
            let (broker, waiting, feed) = (broker.clone(), waiting.clone(), feed.clone());
            let nodes = watch::node_infos(&plan);
            // The committer ends when all senders are gone: this is none.
            let backlog = sender.downgrade();
            *line = Some(Box::new(move || Status {
                rows_waiting: waiting.rows.load(Ordering::Relaxed),
                behind: Some(waiting.behind.load(Ordering::Relaxed)),
                nodes: nodes.clone(),
                traffic: live.traffic(),
                entries: live.entries(),
                errors: waiting.errors.load(Ordering::Relaxed),
                engines: broker.load().into_iter().map(engine_status).collect(),
                feed: feed.get(),
                disk_is_behind: backlog.upgrade().is_some_and(|sender| sender.capacity() == 0),
                recent: broker.recent(),
            }));
        }
        let executor = Executor {
            walker,
            rows_in_flight: rows_in_flight(&plan, config.batch_size, cpu.threads()),
            cpu,
            batch_size: config.batch_size,
            committer: sender,
            halt: halt.clone(),
            failure: failure.clone(),
            at_end,
            first: position.ordinal,
            events: events.clone(),
            feed,
        };
        let executed = runtime.block_on(async {
            if config.signals {
                dispatcher::watch_signals(halt.clone(), interrupted.clone(), events.clone())
                    .map_err(RunError::io(std::path::Path::new("signals")))?;
            }
            tokio::spawn(wind_down(halt.clone(), broker));
            let executed = executor.run(source).await;
            if executed.is_err() {
                halt.stop.cancel();
            }
            executed
        });
        let committed = tokio_join(committing);
        if let Ok(mut line) = status.lock() {
            *line = None;
        }
        runtime.shutdown_background();
        drop(workers);
        let (checkpoint, committed) = committed?;
        // The first cause wins: what failed in a row or in the reader, then what failed in writing.
        let cause = failure.take().map_or(Ok(()), Err).and(executed).and(committed);
        Ok(Ended {
            checkpoint,
            result: cause,
            interrupted: interrupted.get(),
            unwritten: waiting.rows.load(Ordering::Relaxed),
        })
    }
}

fn engine_status(load: EngineLoad) -> EngineStatus {
    EngineStatus {
        name: load.engine,
        in_flight: load.in_flight,
        waiting: load.waiting,
        limit: load.limit,
        trouble: load.cause,
        retry_in: load.retry_in.map(|time| time.as_secs_f64()),
    }
}

type Committed = (Checkpoint, Result<(), RunError>);

fn tokio_join(thread: std::thread::JoinHandle<Committed>) -> Result<Committed, RunError> {
    thread.join().map_err(|_| RunError::Bug {
        message: "the committer panicked".into(),
    })
}

/// Once the run is told to stop: no new requests, a grace for those in flight, then the end.
async fn wind_down(halt: Halt, broker: Arc<Broker>) {
    halt.stop.cancelled().await;
    broker.stop();
    tokio::select! {
        () = halt.abandon.cancelled() => {}
        () = tokio::time::sleep(dispatcher::GRACE) => halt.abandon.cancel(),
    }
}

/// Enough unfinished rows to keep every engine and every core busy.
fn rows_in_flight(plan: &Plan, batch_size: usize, threads: usize) -> usize {
    use crate::spec::Concurrency;
    let slots: usize = plan
        .engines
        .iter()
        .map(|engine| match engine.concurrency {
            Concurrency::Auto => AUTO_CONCURRENCY,
            Concurrency::Fixed(n) => n,
        })
        .sum();
    let least = if slots == 0 {
        4 * threads * batch_size.min(4096)
    } else {
        4 * slots
    };
    least.max(2 * batch_size.min(65_536)).min(1 << 20)
}

fn identity(config: &RunConfig) -> Result<Identity, RunError> {
    let plan = &config.plan;
    let input = config.input.fingerprints()?;
    let engines = plan
        .engines
        .iter()
        .map(|engine| format!("{} {} {}", engine.name, engine.backend.as_str(), engine.model));
    let mut seed = [0; 8];
    seed.iter_mut().for_each(|byte| *byte = fastrand::u8(..));
    Ok(Identity {
        version: outdir::VERSION,
        run_id: seed.iter().map(|byte| format!("{byte:02x}")).collect(),
        chain: config.chain_digest.clone(),
        graph: blake3::hash(config.graph.to_string().as_bytes())
            .to_hex()
            .to_string(),
        vars: Value::Object(plan.vars.json.clone()),
        engines: engines.collect(),
        input,
        format: config.format.name().into(),
        extension: match &config.format {
            Format::Custom(sink) => Some(sink.extension().to_owned()),
            Format::Jsonl | Format::Parquet => None,
        },
        max_rows: config.max_rows,
        flattened: config.flattened,
    })
}

/// Rows to do: those there are, or those asked for; both may be unknown.
fn at_most(limit: Option<u64>, rows: Option<u64>) -> Option<u64> {
    [limit, rows].into_iter().flatten().min()
}

/// Looks whether the stream of a finished run is the same; other inputs were recognised before.
fn read_again(config: &RunConfig, done: &Checkpoint, identity: &Identity) -> Result<(), RunError> {
    if !identity.input.iter().any(|of| of.stream) {
        return Ok(());
    }
    let mut source = config.input.open(done.position, None)?;
    if done.limit.is_none() && source.next_chunk(1, 1)?.is_some() {
        return Err(SourceError::goes_on(done.position.ordinal).into());
    }
    Ok(())
}

/// A finished run is done unless a larger `--limit` asks for more.
fn is_done(checkpoint: &Checkpoint, limit: Option<u64>) -> bool {
    let more = match (checkpoint.limit, limit) {
        (None, _) => false,
        // The input may have ended before the old limit; reading on then finds nothing, which is fine.
        (Some(_), None) => true,
        (Some(old), Some(new)) => new > old,
    };
    checkpoint.finished && !more
}

fn stats(counts: &Counts, state: RunState, started: Instant) -> RunStats {
    RunStats {
        state,
        rows_in: counts.rows_in,
        rows_out: counts.rows_out,
        rows_failed: counts.errors,
        rows_resumed: 0,
        seconds: started.elapsed().as_secs_f64(),
        usage: counts.usage(),
    }
}
