//! The one place where outputs are written: chunks come back in any order and are committed in theirs.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fs_err::File;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;

use super::RunError;
use super::checkpoint::{Checkpoint, Checkpointer, Job};
use super::ledger::Ledger;
use super::limits::ErrorLimit;
use super::lock::Holding;
use super::outcomes;
use super::parking::{Parked, Parking};
use crate::event::{Event, EventSender};
use crate::failpoint;
use crate::node::output::Output;
use crate::row::ErrorKind;
use crate::sink::StreamWriter;
use crate::source::Position;

/// Finished rows that wait for a straggler before them may hold this much memory; the rest waits on disk.
const WAITING_BYTES: usize = 16 << 20;
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);

/// Finished rows of chunks that are not complete, for progress lines.
#[derive(Debug)]
pub(super) struct WaitingRows {
    pub(super) rows: AtomicU64,
    /// The ordinal of the first row that is not committed.
    pub(super) behind: AtomicU64,
    /// Lines in `errors/`.
    pub(super) errors: AtomicU64,
}

impl From<u64> for WaitingRows {
    fn from(first: u64) -> Self {
        Self {
            rows: AtomicU64::new(0),
            behind: AtomicU64::new(first),
            errors: AtomicU64::new(0),
        }
    }
}

/// What a row may take of the memory in flight; given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Permits(pub(super) Vec<OwnedSemaphorePermit>);

/// News for the committer.
#[derive(Debug)]
pub(super) enum Message {
    /// A chunk went into the plan; its rows come back in as many parts, each with where reading goes on
    /// after it.
    Started { seq: u64, ends: Vec<Position> },
    /// One part is done.
    Done {
        seq: u64,
        part: usize,
        output: Box<Output>,
        permits: Permits,
    },
}

/// A chunk whose rows are not all committed.
struct Waiting {
    /// The parts that are not committed.
    parts: VecDeque<(Part, Position)>,
    /// How many are.
    committed: usize,
    missing: usize,
    rows: u64,
    failed: u64,
}

impl Waiting {
    fn new(ends: Vec<Position>) -> Self {
        let missing = ends.len();
        let parts = ends.into_iter().map(|end| (Part::Missing, end)).collect();
        Self {
            parts,
            committed: 0,
            missing,
            rows: 0,
            failed: 0,
        }
    }

    fn put(&mut self, part: usize, done: Part) {
        if let Some((slot, _)) = part
            .checked_sub(self.committed)
            .and_then(|at| self.parts.get_mut(at))
        {
            *slot = done;
            self.missing -= 1;
        }
    }

    /// The next part, if it is done.
    fn take(&mut self) -> Option<(Part, Position)> {
        let next = self
            .parts
            .pop_front_if(|(part, _)| !matches!(part, Part::Missing))?;
        self.committed += 1;
        Some(next)
    }
}

enum Part {
    Missing,
    Ready(Box<Output>),
    Parked(Parked),
}

/// Commits chunks.
pub(super) struct Committer {
    pub(super) writer: StreamWriter,
    pub(super) checkpoint: Checkpoint,
    pub(super) checkpointer: Checkpointer,
    pub(super) outcomes: File,
    pub(super) holding: Holding,
    pub(super) nodes: Vec<String>,
    /// By node: what the length of its vectors is kept under.
    pub(super) vectors: Vec<Option<String>>,
    pub(super) branches: Vec<String>,
    pub(super) ledger: Option<Arc<Ledger>>,
    /// Engines are asked, and what they say is not kept.
    pub(super) loses_answers: bool,
    pub(super) limit: ErrorLimit,
    pub(super) events: EventSender,
    /// Set by the reader when the input is at its end.
    pub(super) at_end: Arc<AtomicBool>,
    pub(super) row_limit: Option<u64>,
    pub(super) waiting: Arc<WaitingRows>,
    /// Cancelled when what is still running is given up, such as an Apply that takes its time.
    pub(super) abandon: CancellationToken,
    pub(super) parking: Parking,
    /// When this process took up the run, and the seconds of those before it.
    pub(super) started: Instant,
    pub(super) seconds_before: f64,
}

impl Committer {
    /// Commits until all senders are gone; then writes the last checkpoint.
    ///
    /// Returns the checkpoint, and the error that stopped it, if one did.
    pub(super) fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        runtime: &tokio::runtime::Handle,
    ) -> (Checkpoint, Result<(), RunError>) {
        let committed = self.commit_all(&mut messages, runtime);
        if !self.abandon.is_cancelled() {
            // Every request that was sent has its answer.
            self.checkpoint.in_flight = 0;
        }
        let result = match committed {
            Ok(complete) => self.sync_answers().and_then(|()| self.close(complete)),
            // What was committed before the limit was reached stays.
            Err(error @ RunError::TooManyErrors { .. }) => self
                .sync_answers()
                .and_then(|()| self.submit(false))
                .and_then(|()| self.checkpointer.wait())
                .and(Err(error)),
            // After any other failure nothing more is named: the last checkpoint stands.
            Err(error) => Err(error),
        };
        // Whatever could not be done in an OUT that is gone, that is why.
        let result = result.or_else(|error| self.holding.check().and(Err(error)));
        (self.checkpoint, result)
    }

    /// True in the end when every row that was started is committed.
    fn commit_all(
        &mut self,
        messages: &mut mpsc::Receiver<Message>,
        runtime: &tokio::runtime::Handle,
    ) -> Result<bool, RunError> {
        // A run that was over its limit does not go on chunk by chunk.
        self.limit.check(&self.checkpoint.counts, &[])?;
        let mut waiting: BTreeMap<u64, Waiting> = BTreeMap::new();
        let mut next = 0;
        let every = failpoint::every(CHECKPOINT_EVERY);
        let (mut last, mut looked) = (Instant::now(), Instant::now());
        let mut dirty = false;
        loop {
            self.ledger.as_ref().map_or(Ok(()), |ledger| ledger.check())?;
            if looked.elapsed() >= every {
                // Answers that nobody will find must not be asked for.
                self.holding.check()?;
                looked = Instant::now();
            }
            let message = match messages.try_recv() {
                Ok(message) => Some(message),
                Err(_) => {
                    let news = async {
                        tokio::select! {
                            biased;
                            message = messages.recv() => message.map(Some),
                            () = self.abandon.cancelled() => None,
                            () = tokio::time::sleep(every) => Some(None),
                        }
                    };
                    match runtime.block_on(news) {
                        Some(message) => message,
                        None => break,
                    }
                }
            };
            match message {
                None => {}
                Some(Message::Started { seq, ends }) => {
                    waiting.insert(seq, Waiting::new(ends));
                }
                Some(Message::Done {
                    seq,
                    part,
                    output,
                    permits,
                }) => {
                    self.waiting.rows.fetch_add(output.tally.rows, Ordering::Relaxed);
                    let done = self.hold(output, seq == next)?;
                    drop(permits);
                    if let Some(chunk) = waiting.get_mut(&seq) {
                        chunk.put(part, done);
                    }
                }
            }
            while let Some(mut chunk) = waiting
                .first_entry()
                .filter(|c| *c.key() == next && c.get().missing == 0)
            {
                self.commit(next, chunk.get_mut())?;
                chunk.remove();
                next += 1;
                dirty = true;
            }
            if last.elapsed() >= every
                && let Some(chunk) = waiting.get_mut(&next)
            {
                // A slow engine may take minutes for a chunk: its first rows need not wait for its last.
                dirty |= self.commit(next, chunk)?;
            }
            if dirty && last.elapsed() >= every && self.checkpointer.idle()? {
                self.submit(false)?;
                (last, dirty) = (Instant::now(), false);
            }
        }
        if let Some(chunk) = waiting.get_mut(&next) {
            self.commit(next, chunk)?;
            self.waiting.rows.fetch_sub(chunk.rows, Ordering::Relaxed);
        }
        Ok(waiting.is_empty())
    }

    /// Brings the answers of rows that are not committed to the disk too.
    fn sync_answers(&self) -> Result<(), RunError> {
        self.ledger.as_ref().map_or(Ok(()), |ledger| ledger.sync())
    }

    /// Keeps a finished part until its turn comes; those of the chunk that is next stay in memory.
    fn hold(&mut self, output: Box<Output>, is_next: bool) -> Result<Part, RunError> {
        if is_next || self.parking.in_memory + output.size() <= WAITING_BYTES {
            self.parking.in_memory += output.size();
            return Ok(Part::Ready(output));
        }
        self.parking.park(&output).map(Part::Parked)
    }

    /// Writes the finished rows at the beginning of a chunk everywhere; true if there were any.
    fn commit(&mut self, seq: u64, chunk: &mut Waiting) -> Result<bool, RunError> {
        let mut whole: Option<Output> = None;
        let mut position = None;
        while let Some((part, end)) = chunk.take() {
            let output = match part {
                Part::Ready(output) => {
                    self.parking.in_memory = self.parking.in_memory.saturating_sub(output.size());
                    *output
                }
                Part::Parked(parked) => self.parking.fetch(parked)?,
                Part::Missing => break,
            };
            position = Some(end);
            match &mut whole {
                None => whole = Some(output),
                Some(whole) => whole.append(output),
            }
        }
        let (Some(output), Some(position)) = (whole, position) else {
            return Ok(false);
        };
        self.pass("commit.begun")?;
        self.holding.check()?;
        self.writer.append(&output)?;
        self.pass("commit.appended")?;
        self.write_outcomes(&output)?;
        self.pass("commit.outcomes_written")?;
        self.checkpoint.counts.add(&output);
        for (key, node) in self.vectors.iter().zip(&output.tally.nodes) {
            if let (Some(key), 1..) = (key, node.dimension) {
                self.checkpoint.dimensions.insert(key.clone(), node.dimension);
            }
        }
        self.checkpoint.position = position;
        self.waiting.behind.store(position.ordinal, Ordering::Relaxed);
        let errors = self.checkpoint.counts.errors;
        self.waiting.errors.store(errors, Ordering::Relaxed);
        self.checkpoint.times.add(&output);
        chunk.rows += output.tally.rows;
        let fates = &output.tally.input.0;
        let failed = fates
            .iter()
            .filter(|(fate, _)| fate.is_failure())
            .map(|(_, rows)| rows);
        chunk.failed += failed.sum::<u64>();
        self.tell(&output);
        if chunk.parts.is_empty() {
            self.waiting.rows.fetch_sub(chunk.rows, Ordering::Relaxed);
            let Waiting { rows, failed, .. } = *chunk;
            self.events.send(Event::ChunkFinished { seq, rows, failed });
        }
        self.limit.check(&self.checkpoint.counts, &output.tally.input.0)?;
        self.pass("commit.limit_checked")?;
        Ok(true)
    }

    /// A failpoint between two files.
    fn pass(&self, place: &str) -> Result<(), RunError> {
        failpoint::hit(place).map_err(RunError::io(self.outcomes.path()))
    }

    /// Appends what became of some rows to `.chainette/outcomes`.
    fn write_outcomes(&mut self, output: &Output) -> Result<(), RunError> {
        let first = self.checkpoint.counts.rows_in;
        let line = outcomes::line(first, &output.tally, &self.nodes, &self.branches).map_err(|error| {
            RunError::Bug {
                message: error.to_string(),
            }
        })?;
        self.outcomes
            .write_all(&line)
            .map_err(RunError::io(self.outcomes.path()))?;
        self.checkpoint.outcomes += line.len() as u64;
        Ok(())
    }

    fn tell(&self, output: &Output) {
        let tally = &output.tally;
        for (id, node) in self.nodes.iter().zip(&tally.nodes) {
            let rows = node.fates.0.iter().map(|(_, rows)| rows).sum();
            if rows > 0 {
                self.events.send(Event::RowsFinished {
                    node: id.clone(),
                    rows,
                });
            }
        }
        for failures in &tally.failures {
            let kind = ErrorKind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == failures.kind);
            self.events.send(Event::RowsFailed {
                node: failures.node.clone().unwrap_or_else(|| "chain_input".into()),
                kind: kind.unwrap_or(ErrorKind::Apply),
                count: failures.count,
                example: failures.example.clone(),
            });
        }
    }

    fn submit(&mut self, finished: bool) -> Result<(), RunError> {
        let (sinks, unsynced) = self.writer.snapshot()?;
        self.checkpoint.sinks = sinks;
        self.checkpoint.finished = finished;
        self.checkpoint.limit = self.row_limit;
        if self.loses_answers {
            self.checkpoint.unkept = self.checkpoint.position.ordinal;
        }
        self.checkpoint.times.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        if let Some(ledger) = &self.ledger {
            self.checkpoint.answers_from = ledger.first_needed(self.checkpoint.position.ordinal);
        }
        let outcomes = self
            .outcomes
            .try_clone()
            .map_err(RunError::io(self.outcomes.path()))?;
        self.checkpointer.submit(Job {
            checkpoint: self.checkpoint.clone(),
            unsynced,
            outcomes,
        })
    }

    /// The last checkpoint: of a finished run, or of what was committed before it stopped.
    fn close(&mut self, complete: bool) -> Result<(), RunError> {
        // The reader may be at the end while rows were given up on their way.
        let finished = complete && self.at_end.load(Ordering::Acquire);
        if finished {
            self.pass("commit.finishing")?;
            self.writer.finish(self.row_limit.is_some())?;
            self.pass("commit.finished")?;
        }
        self.submit(finished)?;
        self.checkpointer.wait()
    }
}
