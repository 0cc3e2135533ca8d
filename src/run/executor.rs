//! Chunks through the plan: several at a time, no barrier between them.

use std::future::Future;
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
use crate::engine::Stop;
use crate::event::{Event, EventSender, Feed};
use crate::node::output::Output;
use crate::node::{Cpu, Walker};
use crate::source::{Chunk, Source};

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
    fn set(&self, feed: Feed) {
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
        let rows = Arc::new(Semaphore::new(self.rows_in_flight));
        let bytes = Arc::new(Semaphore::new(BYTES_IN_FLIGHT / PERMIT_BYTES));
        let starter = Arc::new(Starter {
            walker: self.walker,
            cpu: self.cpu.clone(),
            runtime: tokio::runtime::Handle::current(),
            committer: self.committer,
            halt: self.halt.clone(),
            failure: self.failure,
            asking: self.asking,
        });
        let mut total = self.first;
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.halt.stop.cancelled() => return Ok(()),
                chunk = read.recv() => chunk,
            };
            let chunk = match chunk {
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => {
                    self.feed.set(Feed::AtEnd);
                    self.at_end.store(true, Ordering::Release);
                    let node = "chain_input".into();
                    let estimate = false;
                    self.events.send(Event::StepTotal {
                        node,
                        total,
                        estimate,
                    });
                    return Ok(());
                }
                Some(Err(error)) => return Err(error.into()),
                None => {
                    return Err(RunError::Bug {
                        message: "the reader thread ended".into(),
                    });
                }
            };
            let permits = async {
                let row_permits =
                    u32::try_from(chunk.rows.len().min(self.rows_in_flight)).unwrap_or(u32::MAX);
                let byte_permits = chunk.rows.iter().map(|row| cost(row.span.len())).sum::<usize>();
                let byte_permits =
                    u32::try_from(byte_permits.min(BYTES_IN_FLIGHT / PERMIT_BYTES)).unwrap_or(u32::MAX);
                let rows = rows.clone().acquire_many_owned(row_permits).await.ok()?;
                Some((rows, bytes.clone().acquire_many_owned(byte_permits).await.ok()?))
            };
            self.feed.set(Feed::Full);
            let permits = tokio::select! {
                biased;
                () = self.halt.stop.cancelled() => return Ok(()),
                permits = permits => permits,
            };
            let Some((rows, bytes)) = permits else {
                return Ok(());
            };
            total = chunk.end.ordinal;
            self.feed.set(Feed::Reading);
            self.events.send(Event::ChunkStarted {
                seq: chunk.seq,
                rows: chunk.rows.len() as u64,
            });
            // Rows that go their own ways are also committed one by one; the last ends where the chunk does.
            let mut ends = vec![chunk.end];
            if starter.walker.asks() {
                let before = chunk.rows.iter().rev().skip(1).rev().map(|row| row.end);
                ends.splice(0..0, before);
            }
            let started = Message::Started { seq: chunk.seq, ends };
            if starter.committer.send(started).await.is_err() {
                return Ok(());
            }
            let starter = starter.clone();
            self.cpu
                .spawn(move || starter.start(&chunk, Permits(vec![rows, bytes])));
        }
    }
}

/// Byte permits for a row.
fn cost(bytes: usize) -> usize {
    bytes / PERMIT_BYTES + 1
}

/// What starting a chunk takes; lives until the chunk's last row is done.
struct Starter {
    walker: Arc<Walker>,
    cpu: Cpu,
    runtime: tokio::runtime::Handle,
    committer: mpsc::Sender<Message>,
    halt: Halt,
    failure: Failure,
    asking: TaskTracker,
}

type Walk = Pin<Box<dyn Future<Output = Result<Output, Stop>> + Send>>;

impl Starter {
    /// Runs a chunk as far as it goes on the CPU pool; rows that ask an engine go on as tasks.
    fn start(self: &Arc<Self>, chunk: &Chunk, permits: Permits) {
        let started = catch_unwind(AssertUnwindSafe(|| {
            if self.walker.asks() {
                self.start_rows(chunk, permits)
            } else if self.walker.waits() {
                self.start_chunk(chunk, permits)
            } else {
                self.run_chunk(chunk, permits)
            }
        }));
        if started.is_err() {
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
        let _runtime = self.runtime.enter();
        for (part, row) in chunk.rows.iter().enumerate() {
            let mut own = Permits::default();
            if let [rows, bytes] = permits.0.as_mut_slice() {
                own.0.extend(rows.split(1));
                // A row beyond all permits holds those there are.
                let cost = cost(row.span.len()).min(bytes.num_permits());
                own.0.extend(bytes.split(cost));
            }
            let walker = self.walker.clone();
            let arrival = walker.arrival(row, &chunk.data);
            let mut walk: Walk = Box::pin(async move {
                let mut out = walker.output();
                walker.arrived(arrival, &mut out).await?;
                Ok(out)
            });
            // Up to its first question a row is CPU work, and this is the thread for it.
            match walk.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => {
                    if let Some(done) = self.done(chunk.seq, part, result, own) {
                        let _gone = self.committer.blocking_send(done);
                    }
                }
                Poll::Pending => {
                    let (starter, seq) = (self.clone(), chunk.seq);
                    let followed = async move { starter.follow(seq, part, walk, own).await };
                    self.asking.spawn_on(followed, &self.runtime);
                }
            }
        }
    }

    /// Follows a row to its end, or until the run is abandoned.
    async fn follow(&self, seq: u64, part: usize, walk: Walk, permits: Permits) {
        let walk = AssertUnwindSafe(walk);
        let result = tokio::select! {
            biased;
            () = self.halt.abandon.cancelled() => return,
            result = futures::FutureExt::catch_unwind(walk) => result,
        };
        match result {
            Err(_) => self.fail(RunError::Bug {
                message: "a row panicked".into(),
            }),
            Ok(result) => {
                if let Some(done) = self.done(seq, part, result, permits) {
                    let _gone = self.committer.send(done).await;
                }
            }
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
            starter.follow(seq, 0, walk, permits).await;
        });
    }

    fn done(&self, seq: u64, part: usize, result: Result<Output, Stop>, permits: Permits) -> Option<Message> {
        match result {
            Ok(output) => Some(Message::Done {
                seq,
                part,
                output: Box::new(output),
                permits,
            }),
            // The row is not done: a resumed run takes it up again.
            Err(Stop::Interrupted) => None,
            Err(stop) => {
                self.fail(RunError::Stop(stop));
                None
            }
        }
    }

    fn fail(&self, error: RunError) {
        self.failure.set(error);
        self.halt.stop.cancel();
    }
}
