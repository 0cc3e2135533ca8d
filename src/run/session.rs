//! From an open OUT to the last checkpoint: everything that works at the same time while a run is under way.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::RunError;
use super::checkpoint::{Checkpoint, Checkpointer};
use super::committer::{Committer, WaitingRows};
use super::config::RunConfig;
use super::dispatcher::{self, StatusLine};
use super::executor::{Executor, Failure, FeedGauge, Halt};
use super::identity;
use super::ledger::Ledger;
use super::lock::Holding;
use super::outdir::OutDir;
use super::parking::Parking;
use super::spill::Spill;
use super::switching::Staging;
use super::watch;
use crate::engine::broker::{Broker, EngineLoad};
use crate::engine::supervise::{Policy, Supervisor};
use crate::event::{EngineStatus, Event, EventSender, Status};
use crate::failpoint;
use crate::node::answer::{Answers, NoAnswers};
use crate::node::step::Step;
use crate::node::{Cpu, Walker, Workers};
use crate::plan::{NodeKind, Plan};
use crate::sink::StreamWriter;
use crate::source::Source;

/// How long rows that were given up may take to notice.
const LAST_LOOK: Duration = Duration::from_secs(2);
/// Requests that an `auto` engine may come to have in flight.
const AUTO_CONCURRENCY: usize = 256;

/// How a session ended.
pub(super) struct Ended {
    /// The last checkpoint.
    pub(super) checkpoint: Checkpoint,
    /// The first cause.
    pub(super) result: Result<(), RunError>,
    /// The user asked for it.
    pub(super) interrupted: bool,
    /// Rows that were done and are not written.
    pub(super) unwritten: u64,
}

/// What a run is made of once OUT is open.
pub(super) struct Session<'a> {
    pub(super) config: &'a RunConfig,
    pub(super) broker: Arc<Broker>,
    pub(super) events: &'a EventSender,
    pub(super) status: &'a StatusLine,
    pub(super) source: Box<dyn Source>,
    pub(super) workers: Workers,
    pub(super) writer: StreamWriter,
    pub(super) outcomes: fs_err::File,
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) checkpoint: Checkpoint,
    pub(super) out: &'a OutDir,
    pub(super) started: Instant,
}

impl Session<'_> {
    /// Runs until the input ends or something stops the run.
    pub(super) fn run(self) -> Result<Ended, RunError> {
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
            mut checkpoint,
            out,
            started,
        } = self;
        let plan = config.plan.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(RunError::io(Path::new("the async runtime")))?;
        let cpu = Cpu::new().map_err(|error| RunError::Bug {
            message: error.to_string(),
        })?;
        let answers: Arc<dyn Answers> = match &ledger {
            Some(ledger) => ledger.clone(),
            None => Arc::new(NoAnswers),
        };
        let vectors = identity::vectors_by_node(&plan);
        let dimension = |key: &Option<String>| {
            let known = key.as_ref().and_then(|key| checkpoint.dimensions.get(key));
            known.copied().unwrap_or(0)
        };
        let steps = plan
            .nodes
            .iter()
            .zip(&vectors)
            .map(|(node, key)| match &node.kind {
                NodeKind::Step(step) => {
                    let step = Step::new(node, step, broker.clone(), answers.clone());
                    let bug = || RunError::Bug {
                        message: format!("`{}` has no engine", node.id),
                    };
                    let step = step.map(|step| step.with_dimension(dimension(key)));
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
        let at_end = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel(1024);
        let position = checkpoint.position;
        let waiting = Arc::new(WaitingRows::from(position.ordinal));
        waiting.errors.store(checkpoint.counts.errors, Ordering::Relaxed);
        let feed = FeedGauge::default();
        let holding = Holding::of(&out.private, &out.path)?;
        let private = out.private_base();
        let checkpoint_path = private.join("checkpoint.json");
        checkpoint.in_flight = broker.load().iter().map(|engine| engine.limit as u64).sum();
        let committer = Committer {
            writer,
            started,
            seconds_before: checkpoint.times.seconds,
            checkpoint,
            checkpointer: Checkpointer::start(&checkpoint_path, events.clone(), holding.clone())?,
            outcomes,
            holding: holding.clone(),
            nodes: plan.nodes.iter().map(|node| node.id.clone()).collect(),
            vectors,
            branches: plan.branches.iter().map(|branch| branch.id.clone()).collect(),
            loses_answers: ledger.is_none() && plan.asks(&plan.main.0),
            ledger: ledger.clone(),
            limit: config.errors,
            events: events.clone(),
            at_end: at_end.clone(),
            row_limit: config.limit,
            waiting: waiting.clone(),
            abandon: halt.abandon.clone(),
            parking: Parking::new(&private.join("parked")),
        };
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
        let committing = committing.map_err(RunError::io(Path::new("a writer thread")))?;
        // Nothing between here and the release ends early.
        let signals = config.signals.as_ref();
        let interrupted = signals.map(|signals| signals.watch(halt.clone(), events.clone()));

        if let Ok(mut line) = status.lock() {
            let (broker, waiting, feed) = (broker.clone(), waiting.clone(), feed.clone());
            let nodes = watch::node_infos(&plan);
            let unanswered = workers.unanswered();
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
                switching: broker.switching(),
                unanswered: unanswered(),
                retrying: broker.retrying(),
                feed: feed.get(),
                disk_is_behind: backlog.upgrade().is_some_and(|sender| sender.capacity() == 0),
                recent: broker.recent(),
            }));
        }
        let staging = staging(
            &plan,
            &broker,
            &private.join("spill"),
            failpoint::spill_bytes(config.spill),
        );
        {
            let _runtime = runtime.enter();
            let engines = Supervisor::new(out.private.join("engines"), Policy::default(), events.clone());
            broker.start(&engines);
        }
        let asking = TaskTracker::new();
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
            asking: asking.clone(),
            staging: staging.clone(),
        };
        let executed = runtime.block_on(async {
            tokio::spawn(wind_down(halt.clone(), broker.clone()));
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
        // What came since the run was last looked at.
        for exchange in broker.recent() {
            events.send(Event::Request(exchange));
        }
        // Connections may go when nobody looks at them any more: one that we cut is no fault of an engine's, and
        // must not stand in the ledger as one.
        asking.close();
        let _best_effort = runtime.block_on(async { tokio::time::timeout(LAST_LOOK, asking.wait()).await });
        if let Some(ledger) = &ledger {
            // Whoever is later than that has lost its connection.
            ledger.close();
        }
        // Whatever we started is gone before the run says that it is over.
        runtime.block_on(broker.shutdown());
        runtime.shutdown_background();
        if let Some(staging) = &staging {
            staging.close();
        }
        drop(workers);
        failpoint::hit("session.ended").map_err(RunError::io(&out.path))?;
        if let Some(signals) = signals {
            signals.release();
        }
        let (checkpoint, committed) = committed?;
        // The first cause wins: what failed in a row or in the reader, then what failed in writing.
        let cause = failure.take().map_or(Ok(()), Err).and(executed).and(committed);
        // Whatever could not be done in an OUT that is gone, that is why.
        let cause = cause.or_else(|error| holding.check().and(Err(error)));
        Ok(Ended {
            checkpoint,
            result: cause,
            interrupted: interrupted.is_some_and(|interrupted| interrupted.get()),
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
        parked: load.parked,
        trouble: load.cause,
        retry_in: load.retry_in.map(|time| time.as_secs_f64()),
        absent: load.absent,
        limited: load.limited.map(|time| time.as_secs_f64()),
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

/// What lets rows take turns, if the engines of a plan do not all fit together.
fn staging(plan: &Plan, broker: &Broker, dir: &Path, bytes: u64) -> Option<Arc<Staging>> {
    let stage = broker.stage()?;
    let engines = plan.nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::Step(step) => Some(step.engine),
        NodeKind::Apply(_) => None,
    });
    let first = engines.into_iter().find(|engine| stage.is_staged(*engine))?;
    let spill = Spill::new(dir, bytes);
    Some(Arc::new(Staging::new(stage.clone(), first, spill)))
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
