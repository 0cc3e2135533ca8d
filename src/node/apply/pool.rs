//! The workers of one Apply, seen from its rows: a queue, and the answers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::WorkerError;
use super::wire::{self, Answer, Wire};
use super::worker::Worker;
use crate::engine::Stop;
use crate::event::{Event, EventSender, counted};
use crate::expr::{Scope, Visible};
use crate::plan::{ApplyPlan, NodeKind, Plan, ProcessPlan};
use crate::row::Record;

/// Rows that may kill their worker one after another, with no answer in between, before the run stops.
const HOPELESS: u32 = 20;
/// Warnings about one Apply's workers; the log has the rest.
const MAX_WARNINGS: u32 = 5;

/// A row that waits for its answer.
pub(super) struct Job {
    /// Its id, by which a command answers.
    pub(super) row_id: String,
    /// The line that asks.
    pub(super) question: Vec<u8>,
    /// It was in hand when a worker died, and is asked alone.
    pub(super) suspect: bool,
    /// Where the answer goes, and how long the process took for it.
    pub(super) reply: oneshot::Sender<(Answer, Duration)>,
}

/// The workers of one Apply.
pub(crate) struct Pool {
    pub(super) node: String,
    pub(super) plan: ProcessPlan,
    /// Known once the first worker has started.
    pub(super) wire: OnceLock<Wire>,
    vars: String,
    queue: Mutex<VecDeque<Job>>,
    /// There may be something in the queue.
    pub(super) ready: Notify,
    /// The run is over, or the workers are hopeless.
    pub(super) closed: CancellationToken,
    failure: OnceLock<String>,
    /// Rows that killed their worker since the last answer.
    barren: AtomicU32,
    /// A worker has answered, or lived for a while without being asked.
    pub(super) proven: AtomicBool,
    warnings: AtomicU32,
    /// Rows that were asked and are not answered, for those who watch.
    unanswered: AtomicU64,
    /// The user knows that a program has not answered for long.
    told_of_silence: AtomicBool,
    events: EventSender,
}

impl Pool {
    /// Has a row answered by a worker; returns also how long that took, without the time in the queue.
    ///
    /// # Errors
    /// [`Stop`] when the run is over or no worker can be kept alive; inside, the row's own message.
    pub(in crate::node) async fn ask(
        &self,
        scope: &Scope<'_>,
        visible: &Visible,
    ) -> Result<(Result<Vec<Record>, String>, Duration), Stop> {
        let wire = self.wire.get().copied().unwrap_or(Wire::Command);
        let (reply, answer) = oneshot::channel();
        let job = Job {
            row_id: scope.row_id.to_string(),
            question: wire.question(scope, visible, &self.vars),
            suspect: false,
            reply,
        };
        {
            // Under the lock: whoever gives up empties the queue after it closed, and would miss this row.
            let mut queue = self.queue();
            if self.closed.is_cancelled() {
                return Err(self.stopped());
            }
            queue.push_back(job);
        }
        self.ready.notify_one();
        let _counted = Unanswered::new(&self.unanswered);
        match answer.await {
            Ok((answer, took)) => Ok((answer.and_then(|outputs| wire::records(&outputs)), took)),
            Err(_) => Err(self.stopped()),
        }
    }

    fn stopped(&self) -> Stop {
        match self.failure.get() {
            Some(message) => Stop::Apply {
                node: self.node.clone(),
                message: message.clone(),
            },
            None => Stop::Interrupted,
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes rows while `room` says so; wakes another worker if some are left.
    pub(super) fn take(&self, mut room: impl FnMut(Job) -> bool) {
        let mut queue = self.queue();
        while let Some(job) = queue.pop_front() {
            // A row that nobody waits for any more.
            if job.reply.is_closed() {
                continue;
            }
            if !room(job) {
                break;
            }
        }
        if !queue.is_empty() {
            self.ready.notify_one();
        }
    }

    /// Puts rows back, in order, before all others.
    pub(super) fn put_back(&self, jobs: impl DoubleEndedIterator<Item = Job>) {
        let mut queue = self.queue();
        for mut job in jobs.rev() {
            job.suspect = false;
            queue.push_front(job);
        }
        drop(queue);
        self.ready.notify_one();
    }

    /// A worker has answered.
    pub(super) fn answered(&self) {
        self.barren.store(0, Ordering::Relaxed);
        self.proven.store(true, Ordering::Relaxed);
    }

    /// A row has killed its worker; too many of them stop the run. Returns how many did so in a row.
    pub(super) fn condemned(&self, how: &str) -> u32 {
        let barren = self.barren.fetch_add(1, Ordering::Relaxed) + 1;
        if barren >= HOPELESS {
            self.fail(format!(
                "lost a worker on each of {HOPELESS} rows in a row; the last {how}"
            ));
        }
        barren
    }

    /// Gives up: every row that waits ends the run.
    pub(super) fn fail(&self, message: String) {
        let _first = self.failure.set(message);
        self.closed.cancel();
        self.queue().clear();
    }

    /// Tells the user, once, that a program has been given so many rows and has been silent for `time`.
    pub(super) fn warn_of_silence(&self, rows: u64, time: Duration) {
        if !self.told_of_silence.swap(true, Ordering::Relaxed) {
            self.warn(&format!(
                "the program has been given {} and has answered none for {} s; does it flush after each line?",
                counted(rows, "row"),
                time.as_secs()
            ));
        }
    }

    /// Tells the user about a worker, the first few times.
    pub(super) fn warn(&self, what: &str) {
        tracing::warn!(target: "worker", node = self.node, "{what}");
        if self.warnings.fetch_add(1, Ordering::Relaxed) < MAX_WARNINGS {
            let message = format!("`{}`: {what}", self.node);
            self.events.send(Event::Warning { message });
        }
    }
}

/// A row that is asked; counted until it is dropped.
struct Unanswered<'a>(&'a AtomicU64);

impl<'a> Unanswered<'a> {
    fn new(rows: &'a AtomicU64) -> Self {
        rows.fetch_add(1, Ordering::Relaxed);
        Self(rows)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({})", self.node)
    }
}

/// The workers of all Applies of a plan. Dropping it ends them all and waits until they are gone.
#[derive(Debug, Default)]
pub struct Workers {
    /// By node; none where no processes are.
    pools: Vec<Option<Arc<Pool>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Workers {
    /// Starts the workers of a plan; each program has been started once, and each function loaded, on return.
    ///
    /// # Errors
    /// A worker does not start, or its function cannot be loaded.
    pub fn start(plan: &Plan, events: &EventSender) -> Result<Self, WorkerError> {
        let vars = serde_json::Value::Object(plan.vars.json.clone()).to_string();
        let pools: Vec<Option<Arc<Pool>>> = plan
            .nodes
            .iter()
            .map(|node| match &node.kind {
                NodeKind::Apply(ApplyPlan::Process(process)) => Some(Arc::new(Pool {
                    node: node.id.clone(),
                    plan: ProcessPlan::clone(process),
                    wire: OnceLock::new(),
                    vars: vars.clone(),
                    queue: Mutex::default(),
                    ready: Notify::new(),
                    closed: CancellationToken::new(),
                    failure: OnceLock::new(),
                    barren: AtomicU32::new(0),
                    proven: AtomicBool::new(false),
                    warnings: AtomicU32::new(0),
                    unanswered: AtomicU64::new(0),
                    told_of_silence: AtomicBool::new(false),
                    events: events.clone(),
                })),
                _ => None,
            })
            .collect();
        let mut all: Vec<Arc<Pool>> = pools.iter().flatten().cloned().collect();
        let Some(first) = all.first() else {
            return Ok(Self::default());
        };
        let fault = |error: std::io::Error| WorkerError {
            node: first.node.clone(),
            message: format!("cannot start a thread for its workers: {error}"),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(fault)?;
        let (send, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("workers".into()).spawn({
            let all = std::mem::take(&mut all);
            move || runtime.block_on(tend(all, &send))
        });
        let workers = Self {
            thread: Some(thread.map_err(|error| WorkerError {
                node: String::new(),
                message: format!("cannot start a thread for workers: {error}"),
            })?),
            pools,
        };
        let gone = WorkerError {
            node: String::new(),
            message: "the thread for workers ended".into(),
        };
        started.recv().unwrap_or(Err(gone))?;
        Ok(workers)
    }

    /// How many rows each node's processes have to answer, at any time it is asked.
    pub(crate) fn unanswered(&self) -> impl Fn() -> Vec<u64> + Send + use<> {
        let pools = self.pools();
        let rows = |pool: &Option<Arc<Pool>>| {
            let pool = pool.as_ref();
            pool.map_or(0, |pool| pool.unanswered.load(Ordering::Relaxed))
        };
        move || pools.iter().map(rows).collect()
    }

    /// The pools, by node.
    pub(crate) fn pools(&self) -> Vec<Option<Arc<Pool>>> {
        self.pools.clone()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for pool in self.pools.iter().flatten() {
            pool.closed.cancel();
        }
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// Starts a first worker of each pool, says how that went, and then leads all workers to their ends.
async fn tend(pools: Vec<Arc<Pool>>, started: &std::sync::mpsc::SyncSender<Result<(), WorkerError>>) {
    let firsts = pools.iter().map(|pool| async {
        let mut worker = Worker::new(pool.clone());
        let process = worker.first_start().await.map_err(|message| WorkerError {
            node: pool.node.clone(),
            message,
        })?;
        Ok((worker, process))
    });
    let firsts: Result<Vec<_>, WorkerError> = join_all(firsts).await.into_iter().collect();
    let firsts = match firsts {
        Ok(firsts) => firsts,
        Err(error) => {
            let _gone = started.send(Err(error));
            return;
        }
    };
    let _gone = started.send(Ok(()));
    let mut tasks = Vec::new();
    for (worker, process) in firsts {
        tasks.push(tokio::spawn(worker.run(Some(process))));
    }
    for pool in &pools {
        for _ in 1..pool.plan.workers {
            tasks.push(tokio::spawn(Worker::new(pool.clone()).run(None)));
        }
    }
    join_all(tasks).await;
}
