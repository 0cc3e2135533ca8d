//! One worker's lives: rows in, answers out, and which row it was when a process dies.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{interval, sleep, timeout};

use super::life::{End, Life};
use super::pool::{Job, Pool};
use super::process::Process;
use super::wire::{self, Wire};
use crate::plan::Program;

/// Rows in a worker's hand, at most.
const MAX_WINDOW: usize = 1024;
/// Rows in a worker's hand at first.
const FIRST_WINDOW: usize = 16;
/// Bytes of questions in a worker's hand, beyond which it gets no more.
const MAX_IN_HAND: usize = 4 << 20;
/// A window whose rows are answered sooner is too small, later too large.
const PACE: std::ops::Range<Duration> = Duration::from_millis(20)..Duration::from_millis(100);
/// How long a function may take to load.
const START: Duration = Duration::from_secs(600);
/// How long a command is watched before it is first asked: one that cannot run ends at once.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// The same for one whose last life brought no answer.
const LONG_LOOK: Duration = Duration::from_secs(1);
/// Starts that may fail one after another.
const STARTS: u32 = 3;
/// How long a process may take to end once it has closed a pipe.
const CLOSING: Duration = Duration::from_secs(1);
/// Rows that killed their worker one after another, from where on all others in hand are asked alone.
const MANY: u32 = 3;

/// One of a pool's workers: a process at a time.
pub(super) struct Worker {
    pool: Arc<Pool>,
    /// Rows that were in hand when a process died, to be asked one at a time.
    suspects: VecDeque<Job>,
    /// Rows that may be in hand.
    window: usize,
}

impl Worker {
    pub(super) fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            suspects: VecDeque::new(),
            window: FIRST_WINDOW,
        }
    }

    /// Starts the pool's first process.
    ///
    /// # Errors
    /// What is wrong with the program or the function.
    pub(super) async fn first_start(&mut self) -> Result<Process, String> {
        self.start(FIRST_LOOK).await
    }

    /// Works until the pool is closed.
    pub(super) async fn run(mut self, first: Option<Process>) {
        let pool = self.pool.clone();
        let mut next = first;
        let mut look = Duration::ZERO;
        loop {
            let process = match next.take() {
                Some(process) => process,
                None => {
                    let started = tokio::select! {
                        biased;
                        () = pool.closed.cancelled() => return,
                        started = self.restart(look) => started,
                    };
                    match started {
                        Ok(process) => process,
                        Err(message) => return pool.fail(message),
                    }
                }
            };
            let mut life = Life::new(process, pool.wire.get().copied().unwrap_or(Wire::Command));
            let Some(end) = self.live(&mut life).await else {
                // One that is busy with a row nobody waits for is not waited for either.
                if life.hand.len() == 0 {
                    life.process.farewell().await;
                }
                return;
            };
            let proven = life.answered > 0 || pool.proven.load(Ordering::Relaxed);
            look = if proven { Duration::ZERO } else { LONG_LOOK };
            self.end(life, end).await;
        }
    }

    async fn restart(&self, look: Duration) -> Result<Process, String> {
        let mut tries = 1;
        loop {
            match self.start(look).await {
                Err(message) if tries == STARTS => return Err(message),
                Err(message) => {
                    self.pool.warn(&format!("a worker does not start: {message}"));
                    sleep(Duration::from_secs(1)).await;
                    tries += 1;
                }
                started => return started,
            }
        }
    }

    /// Starts a process; Python greets once the function is loaded, a command is watched for a while.
    async fn start(&self, look: Duration) -> Result<Process, String> {
        let pool = &self.pool;
        let shown = match &pool.plan.program {
            Program::Python { interpreter, .. } => interpreter.display().to_string(),
            Program::Command { source, .. } => source.clone(),
        };
        let process = Process::start(wire::launch(&pool.plan), &pool.node, &pool.plan.folder)
            .map_err(|error| format!("cannot start `{shown}`: {error}"))?;
        if let Program::Command { .. } = pool.plan.program {
            if look.is_zero() || !process.ends_within(look).await {
                // One that outlives the long look is not what keeps it from answering.
                pool.proven.fetch_or(look == LONG_LOOK, Ordering::Relaxed);
                pool.wire.get_or_init(|| Wire::Command);
                return Ok(process);
            }
            let words = process.last_words.clone();
            let how = process.how_it_ended(CLOSING).await.unwrap_or_default();
            return Err(format!(
                "`{shown}` {how} before it was asked anything{}",
                words.as_cause()
            ));
        }
        let mut life = Life::new(process, Wire::Command);
        match timeout(START, life.first_line()).await {
            Err(_) => Err(format!(
                "`{shown}` did not load the function within {} s",
                START.as_secs()
            )),
            Ok(Some(line)) => {
                let wire = wire::greeting(&line)?;
                pool.wire.get_or_init(|| wire);
                Ok(life.process)
            }
            Ok(None) => {
                let words = life.process.last_words.clone();
                let how = life.process.how_it_ended(CLOSING).await;
                let how = how.unwrap_or_else(|| "closed its output".to_owned());
                Err(format!(
                    "`{shown}` {how} while it loaded the function{}",
                    words.as_cause()
                ))
            }
        }
    }

    /// Leads a process through its life; none when the pool was closed.
    async fn live(&mut self, life: &mut Life) -> Option<End> {
        let pool = self.pool.clone();
        let limit = pool.plan.timeout;
        let mut tick = interval((limit / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.feed(life);
            if let Err(end) = life.write() {
                return Some(end);
            }
            let writing = !life.unsent().is_empty();
            let input = life.process.input.as_ref().filter(|_| writing);
            tokio::select! {
                biased;
                () = pool.closed.cancelled() => return None,
                readable = life.process.output.readable() => {
                    if readable.is_err() {
                        return Some(End::Output);
                    }
                    if let Err(end) = life.read(&pool) {
                        return Some(end);
                    }
                    self.pace(life);
                }
                _ = async {
                    match input {
                        Some(input) => input.writable().await,
                        None => std::future::pending().await,
                    }
                } => {}
                () = pool.ready.notified(), if self.has_room(life) => {}
                _ = tick.tick() => {
                    life.tell_if_silent(&pool);
                    if let Some(end) = life.late(limit) {
                        return Some(end);
                    }
                }
            }
        }
    }

    fn has_room(&self, life: &Life) -> bool {
        life.input_gone.is_none()
            && !life.draining
            && self.suspects.is_empty()
            && !life.alone
            && life.hand.len() < self.window
            && life.hand.bytes < MAX_IN_HAND
    }

    /// Hands rows to the process: suspects one at a time, others as the window allows.
    fn feed(&mut self, life: &mut Life) {
        if life.input_gone.is_some() || life.draining {
            return;
        }
        if life.hand.len() == 0 {
            life.alone = false;
            while let Some(job) = self.suspects.pop_front() {
                if !job.reply.is_closed() {
                    life.alone = true;
                    life.give(job);
                    return;
                }
            }
        }
        if !self.has_room(life) {
            return;
        }
        let window = self.window;
        self.pool.take(|job| {
            life.give(job);
            life.hand.len() < window && life.hand.bytes < MAX_IN_HAND
        });
    }

    /// Fits the window to the speed of the answers, so that slow rows spread over all workers.
    fn pace(&mut self, life: &mut Life) {
        if life.since_change < self.window || life.alone {
            return;
        }
        life.since_change = 0;
        if life.latency < PACE.start {
            self.window = (self.window * 2).min(MAX_WINDOW);
        } else if life.latency > PACE.end {
            self.window = (self.window / 2).max(1);
        }
    }

    /// Buries a process, and finds out which row it was.
    async fn end(&mut self, life: Life, end: End) {
        let pool = self.pool.clone();
        // A process may also die of what came before: only the first row of its life is condemned for that.
        let fresh = life.alone && life.answered == 0;
        let took = life.quiet();
        let mut in_hand = life.hand.into_jobs();
        let words = life.process.last_words.clone();
        let how = match &end {
            End::Output => life.process.how_it_ended(CLOSING).await,
            End::Input => life.process.how_it_ended(CLOSING).await,
            End::Wrong(_) | End::Late => {
                drop(life.process);
                None
            }
        };
        let how = match (how, &end) {
            (Some(how), _) => how,
            (None, End::Output) => "closed its output".to_owned(),
            (None, End::Input) => "closed its input".to_owned(),
            (None, End::Wrong(what)) => what.clone(),
            (None, End::Late) => format!("gave no answer within {}", shown(pool.plan.timeout)),
        };
        pool.warn(&format!(
            "a worker {how}{}; another takes its place",
            words.as_cause()
        ));
        let certain = fresh || matches!(end, End::Late);
        match in_hand.pop_front() {
            Some(job) if certain && in_hand.is_empty() => {
                // Nobody waits for it when the run was abandoned.
                let failed = Err(format!("the worker {how} on this row"));
                let _unwanted = job.reply.send((failed, took));
                if pool.condemned(&how) < MANY {
                    // The rows behind it have nothing to answer for.
                    pool.put_back(std::mem::take(&mut self.suspects).into_iter());
                }
            }
            Some(first) => {
                in_hand.push_front(first);
                for mut job in in_hand.into_iter().rev() {
                    job.suspect = true;
                    self.suspects.push_front(job);
                }
            }
            None => {}
        }
    }
}

/// `300 s`, `500 ms`.
fn shown(limit: Duration) -> String {
    if limit.subsec_nanos() == 0 {
        format!("{} s", limit.as_secs())
    } else {
        format!("{} ms", limit.as_millis())
    }
}
