//! Chunks through the plan: several at a time, no barrier between them.

use std::future::Future;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::RunError;
use super::committer::{Message, Permits};
use super::switching::{Busy, Held, Staging};
use crate::engine::Stop;
use crate::event::{Event, EventSender, Feed};
use crate::node::output::Output;
use crate::node::{Arrival, Cpu, Walker};
use crate::source::{Chunk, Source, SourceError};

/// A chunk ends at this many bytes of input, however few rows that are.
const CHUNK_BYTES: usize = 1 << 20;
/// Input bytes of rows that are not finished.
const BYTES_IN_FLIGHT: usize = 64 << 20;
/// What one byte permit stands for.
const PERMIT_BYTES: usize = 1024;

/// How a run is told to end early.
#[derive(Clone, Debug, Default)]
pub struct Halt {
    /// Take no more rows, start no more requests.
    pub stop: CancellationToken,
    /// Drop what is in flight.
    pub abandon: CancellationToken,
}

/// Why the executor wants the run to end, first cause first.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<Mutex<Option<RunError>>>);

impl Failure {
    pub(super) fn set(&self, error: RunError) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }

    pub(super) fn take(&self) -> Option<RunError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What holds the reader up, for those who watch.
#[derive(Clone, Debug, Default)]
pub(super) struct FeedGauge(Arc<AtomicU8>);

impl FeedGauge {
    pub(super) fn set(&self, feed: Feed) {
        self.0.store(feed as u8, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Feed {
        let at = self.0.load(Ordering::Relaxed);
        let all = [Feed::Reading, Feed::Full, Feed::AtEnd];
        all.into_iter().find(|feed| *feed as u8 == at).unwrap_or_default()
    }
}

/// Leads chunks through the plan.
pub(super) struct Executor {
    pub(super) walker: Arc<Walker>,
    pub(super) cpu: Cpu,
    pub(super) batch_size: usize,
    /// Rows that may be unfinished at once.
    pub(super) rows_in_flight: usize,
    pub(super) committer: mpsc::Sender<Message>,
    pub(super) halt: Halt,
    pub(super) failure: Failure,
    pub(super) at_end: Arc<AtomicBool>,
    /// The ordinal of the first row that is read.
    pub(super) first: u64,
    pub(super) events: EventSender,
    pub(super) feed: FeedGauge,
    /// The rows that ask engines.
    pub(super) asking: TaskTracker,
    /// Where engines do not all fit together.
    pub(super) staging: Option<Arc<Staging>>,
}

impl Executor {
    /// Reads and starts chunks until the input ends or the run is told to stop.
    ///
    /// Rows that were started go on; each holds a sender to the committer until it is done.
    pub(super) async fn run(self, mut source: Box<dyn Source>) -> Result<(), RunError> {
        let (chunks, mut read) = mpsc::channel(2);
        let batch = self.batch_size.max(1);
        let reader = std::thread::Builder::new().name("source".into()).spawn(move || {
            loop {
                let chunk = source.next_chunk(batch, CHUNK_BYTES);
                let last = !matches!(chunk, Ok(Some(_)));
                if chunks.blocking_send(chunk).is_err() || last {
                    return;
                }
            }
        });
        reader.map_err(RunError::io(std::path::Path::new("a reader thread")))?;
        let starter = Arc::new(Starter {
            walker: self.walker,
            cpu: self.cpu,
            runtime: tokio::runtime::Handle::current(),
            committer: self.committer,
            halt: self.halt,
            failure: self.failure,
            asking: self.asking,
            staging: self.staging,
        });
        let mut intake = Intake {
            starter,
            rows: Arc::new(Semaphore::new(self.rows_in_flight)),
            bytes: Arc::new(Semaphore::new(BYTES_IN_FLIGHT / PERMIT_BYTES)),
            rows_in_flight: self.rows_in_flight,
            total: self.first,
            at_end: self.at_end,
            events: self.events,
            feed: self.feed,
        };
        match intake.starter.staging.clone() {
            Some(staging) => intake.run_in_turns(&staging, &mut read).await,
            None => {
                while intake.next_chunk(&mut read).await?.is_continue() {}
                Ok(())
            }
        }
    }
}

/// What comes from the reader: chunks, none at the end.
pub(super) type Read = mpsc::Receiver<Result<Option<Chunk>, SourceError>>;

/// What lets rows set out: as many as may be on their way at once.
pub(super) struct Intake {
    pub(super) starter: Arc<Starter>,
    rows: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    pub(super) rows_in_flight: usize,
    /// Rows that were read, over all resumes.
    total: u64,
    at_end: Arc<AtomicBool>,
    events: EventSender,
    pub(super) feed: FeedGauge,
}

impl Intake {
    /// Waits for a chunk and lets it set out; breaks when there is none any more, or the run is told to stop.
    async fn next_chunk(&mut self, read: &mut Read) -> Result<ControlFlow<()>, RunError> {
        let chunk = tokio::select! {
            biased;
            () = self.starter.halt.stop.cancelled() => return Ok(ControlFlow::Break(())),
            chunk = read.recv() => self.received(chunk)?,
        };
        Ok(match chunk {
            Some(chunk) => self.set_out(chunk).await,
            None => ControlFlow::Break(()),
        })
    }

    /// What the reader says; tells of the end.
    pub(super) fn received(
        &self,
        chunk: Option<Result<Option<Chunk>, SourceError>>,
    ) -> Result<Option<Chunk>, RunError> {
        match chunk {
            Some(Ok(Some(chunk))) => Ok(Some(chunk)),
            Some(Ok(None)) => {
                self.feed.set(Feed::AtEnd);
                self.at_end.store(true, Ordering::Release);
                self.events.send(Event::StepTotal {
                    node: "chain_input".into(),
                    total: self.total,
                    estimate: false,
                });
                Ok(None)
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(RunError::Bug {
                message: "the reader thread ended".into(),
            }),
        }
    }

    /// Waits until rows of so many bytes may be on their way; none when the run is told to stop.
    pub(super) async fn permits(&self, costs: impl ExactSizeIterator<Item = usize>) -> Option<Permits> {
        let row_permits = u32::try_from(costs.len().min(self.rows_in_flight)).unwrap_or(u32::MAX);
        let byte_permits = costs.map(cost).sum::<usize>().min(BYTES_IN_FLIGHT / PERMIT_BYTES);
        let byte_permits = u32::try_from(byte_permits).unwrap_or(u32::MAX);
        let permits = async {
            let rows = self.rows.clone().acquire_many_owned(row_permits).await.ok()?;
            let bytes = self.bytes.clone().acquire_many_owned(byte_permits).await.ok()?;
            Some(Permits(vec![rows, bytes]))
        };
        tokio::select! {
            biased;
            () = self.starter.halt.stop.cancelled() => None,
            permits = permits => permits,
        }
    }

    /// Lets a chunk set out once its rows may be on their way; breaks when the run is told to stop.
    pub(super) async fn set_out(&mut self, chunk: Chunk) -> ControlFlow<()> {
        self.feed.set(Feed::Full);
        let Some(permits) = self.permits(chunk.rows.iter().map(|row| row.span.len())).await else {
            return ControlFlow::Break(());
        };
        self.total = chunk.end.ordinal;
        self.feed.set(Feed::Reading);
        self.events.send(Event::ChunkStarted {
            seq: chunk.seq,
            rows: chunk.rows.len() as u64,
        });
        let starter = self.starter.clone();
        // Rows that go their own ways are also committed one by one; the last ends where the chunk does.
        let mut ends = vec![chunk.end];
        if starter.walker.asks() {
            let before = chunk.rows.iter().rev().skip(1).rev().map(|row| row.end);
            ends.splice(0..0, before);
        }
        let started = Message::Started { seq: chunk.seq, ends };
        if starter.committer.send(started).await.is_err() {
            return ControlFlow::Break(());
        }
        if let Some(staging) = &starter.staging {
            staging.set_out(chunk.rows.len());
        }
        self.starter.cpu.spawn(move || starter.start(&chunk, permits));
        ControlFlow::Continue(())
    }
}

/// Byte permits for a row.
fn cost(bytes: usize) -> usize {
    bytes / PERMIT_BYTES + 1
}

/// What starting a chunk takes; lives until the chunk's last row is done.
pub(super) struct Starter {
    pub(super) walker: Arc<Walker>,
    pub(super) cpu: Cpu,
    runtime: tokio::runtime::Handle,
    committer: mpsc::Sender<Message>,
    pub(super) halt: Halt,
    failure: Failure,
    asking: TaskTracker,
    staging: Option<Arc<Staging>>,
}

/// A row on its way.
pub(super) struct Going {
    seq: u64,
    part: usize,
    permits: Permits,
    /// What it takes to park it; none for a row that never needs to be.
    pub(super) held: Option<Held>,
    /// Counted among the rows on their way until it is dropped.
    pub(super) busy: Option<Busy>,
}

impl Going {
    pub(super) fn new(seq: u64, part: usize, permits: Permits) -> Self {
        Self {
            seq,
            part,
            permits,
            held: None,
            busy: None,
        }
    }

    /// Its chunk, and its place there.
    pub(super) fn place(&self) -> (u64, usize) {
        (self.seq, self.part)
    }
}

impl Permits {
    /// What a row of so many bytes takes of those of many.
    pub(super) fn split(&mut self, len: usize) -> Self {
        let mut own = Self::default();
        if let [rows, bytes] = self.0.as_mut_slice() {
            own.0.extend(rows.split(1));
            // A row beyond all permits holds those there are.
            own.0.extend(bytes.split(cost(len).min(bytes.num_permits())));
        }
        own
    }
}

type Walk = Pin<Box<dyn Future<Output = Result<Output, Stop>> + Send>>;

impl Starter {
    /// Runs a chunk as far as it goes on the CPU pool; rows that ask an engine go on as tasks.
    fn start(self: &Arc<Self>, chunk: &Chunk, permits: Permits) {
        self.guarded(|| {
            if self.walker.asks() {
                self.start_rows(chunk, permits)
            } else if self.walker.waits() {
                self.start_chunk(chunk, permits)
            } else {
                self.run_chunk(chunk, permits)
            }
        });
    }

    /// Stops the run if `f` panics, which lets rows set out.
    pub(super) fn guarded(&self, f: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(f)).is_err() {
            self.fail(RunError::Bug {
                message: "a chunk panicked".into(),
            });
        }
    }

    fn run_chunk(&self, chunk: &Chunk, permits: Permits) {
        if self.halt.abandon.is_cancelled() {
            return;
        }
        match self.walker.chunk(chunk) {
            None => self.fail(RunError::Bug {
                message: "an Apply waited on the CPU pool".into(),
            }),
            Some(Err(stop)) => self.fail(RunError::Stop(stop)),
            Some(Ok(output)) => {
                let done = Message::Done {
                    seq: chunk.seq,
                    part: 0,
                    output: Box::new(output),
                    permits,
                };
                // A committer that is gone has said why.
                let _gone = self.committer.blocking_send(done);
            }
        }
    }

    fn start_rows(self: &Arc<Self>, chunk: &Chunk, mut permits: Permits) {
        for (part, row) in chunk.rows.iter().enumerate() {
            let mut going = Going::new(chunk.seq, part, permits.split(row.span.len()));
            let arrival = self.walker.arrival(row, &chunk.data);
            if let Some(staging) = &self.staging {
                going.busy = Some(staging.clone().busy());
                going.held = Held::new(row, &arrival, Arc::default());
            }
            self.lead(arrival, going);
        }
    }

    /// Leads a row as far as it goes on the CPU pool, and from there as a task.
    pub(super) fn lead(self: &Arc<Self>, arrival: Arrival, going: Going) {
        let _runtime = self.runtime.enter();
        let walker = self.walker.clone();
        let memory = going.held.as_ref().map(|held| held.memory.clone());
        let mut walk: Walk = Box::pin(async move {
            let mut out = walker.output();
            walker.arrived_with(arrival, memory, &mut out).await?;
            Ok(out)
        });
        // Up to its first question a row is CPU work, and this is the thread for it.
        match walk.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => {
                if let Some(done) = self.done(going, result) {
                    let _gone = self.committer.blocking_send(done);
                }
            }
            Poll::Pending => {
                let starter = self.clone();
                let followed = async move { starter.follow(walk, going).await };
                self.asking.spawn_on(followed, &self.runtime);
            }
        }
    }

    /// Follows a row to its end, or until the run is abandoned.
    async fn follow(self: &Arc<Self>, walk: Walk, going: Going) {
        let walk = AssertUnwindSafe(walk);
        let result = tokio::select! {
            biased;
            () = self.halt.abandon.cancelled() => return,
            result = futures::FutureExt::catch_unwind(walk) => result,
        };
        let done = match result {
            Err(_) => {
                self.fail(RunError::Bug {
                    message: "a row panicked".into(),
                });
                None
            }
            // Its place is on disk.
            Ok(Err(Stop::Parked(engine))) => {
                let starter = self.clone();
                let parked = move || starter.done(going, Err(Stop::Parked(engine)));
                self.cpu.run(parked).await.flatten()
            }
            Ok(result) => self.done(going, result),
        };
        if let Some(done) = done {
            let _gone = self.committer.send(done).await;
        }
    }

    /// Sends all rows of a chunk on their way together; they stay on the CPU pool, and wait there without a thread.
    fn start_chunk(self: &Arc<Self>, chunk: &Chunk, permits: Permits) {
        let (starter, seq) = (self.clone(), chunk.seq);
        let arrivals = chunk.rows.iter().map(|row| self.walker.arrival(row, &chunk.data));
        let arrivals: Vec<_> = arrivals.collect();
        self.cpu.follow(async move {
            let walker = starter.walker.clone();
            let walk: Walk = Box::pin(async move { walker.together(arrivals).await });
            starter.follow(walk, Going::new(seq, 0, permits)).await;
        });
    }

    /// The news for the committer, if the row is done; a row that needs an engine which is not loaded is parked.
    fn done(&self, going: Going, result: Result<Output, Stop>) -> Option<Message> {
        match result {
            Ok(output) => Some(Message::Done {
                seq: going.seq,
                part: going.part,
                output: Box::new(output),
                permits: going.permits,
            }),
            // The row is not done: a resumed run takes it up again.
            Err(Stop::Interrupted) => None,
            Err(Stop::Parked(engine)) => {
                if let Some(staging) = &self.staging
                    && let Err(error) = staging.park(engine, going)
                {
                    self.fail(error);
                }
                None
            }
            Err(stop) => {
                self.fail(RunError::Stop(stop));
                None
            }
        }
    }

    pub(super) fn fail(&self, error: RunError) {
        self.failure.set(error);
        self.halt.stop.cancel();
    }
}
