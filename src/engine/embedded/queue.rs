//! The requests that wait for a model, shared by those who ask and the workers that answer.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};

use super::batch::{Failure, Job};
use super::capability::{Capability, LoadError, ModelError};

/// What a pool has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Requests answered.
    pub answered: u64,
    /// Requests that the model failed.
    pub failed: u64,
    /// Models loaded.
    pub loads: u64,
    /// Panics of workers.
    pub panics: u64,
    /// Most workers at the same time.
    pub most_workers: usize,
    /// Most requests that waited at the same time.
    pub most_waiting: usize,
    /// Time that workers spent at work, all together.
    pub busy: Duration,
    /// Time that loads took.
    pub loading: Duration,
    /// Tokens of requests that were not worked on again: earlier requests began with them.
    pub reused_tokens: u64,
}

/// What is done about a model that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Coming {
    /// Its files are fetched and looked at.
    #[default]
    Prepared,
    /// There is no room for it.
    Booked,
    /// It is loaded.
    Loaded,
}

/// Requests that wait for a model.
pub(super) struct Queue<C: Capability> {
    state: Mutex<State<C>>,
    /// Workers wait for requests, or for their end.
    work: Condvar,
    /// A request came and no worker is free.
    pub(super) wanted: Notify,
    /// Places for those who wait.
    pub(super) places: Arc<Semaphore>,
    request_timeout: Duration,
}

struct State<C: Capability> {
    waiting: VecDeque<Job<C>>,
    /// Workers with a model.
    ready: usize,
    /// Of those, at work.
    busy: usize,
    /// Since when so many are: the time before is in the metrics.
    busy_since: Instant,
    /// Of those with a model, they load it anew after a panic.
    anew: usize,
    /// What is done about the first model.
    coming: Coming,
    /// Workers are to end.
    retired: bool,
    /// No more requests are taken.
    closed: bool,
    /// Replies under way are not waited for.
    cut: bool,
    idle_since: Instant,
    metrics: Metrics,
}

impl<C: Capability> State<C> {
    /// So many workers are at work from now on.
    fn at_work(&mut self, busy: usize) {
        let now = Instant::now();
        self.metrics.busy += busy_time(self.busy, now.saturating_duration_since(self.busy_since));
        (self.busy, self.busy_since) = (busy, now);
    }

    /// A model was loaded.
    fn loaded(&mut self, took: Duration) {
        self.metrics.loads += 1;
        self.metrics.loading += took;
    }
}

/// The time that so many workers were at work.
fn busy_time(workers: usize, each: Duration) -> Duration {
    each.saturating_mul(u32::try_from(workers).unwrap_or(u32::MAX))
}

impl<C: Capability> Queue<C> {
    pub(super) fn new(places: usize, request_timeout: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                ready: 0,
                busy: 0,
                busy_since: Instant::now(),
                anew: 0,
                coming: Coming::default(),
                retired: false,
                closed: false,
                cut: false,
                idle_since: Instant::now(),
                metrics: Metrics::default(),
            }),
            work: Condvar::new(),
            wanted: Notify::new(),
            places: Arc::new(Semaphore::new(places)),
            request_timeout,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Takes a request in.
    pub(super) fn push(&self, job: Job<C>) {
        let mut state = self.lock();
        if state.closed {
            let _gone = job.answer.send(Err(Failure::Closed));
            return;
        }
        state.waiting.push_back(job);
        state.metrics.most_waiting = state.metrics.most_waiting.max(state.waiting.len());
        let free = state.ready > state.busy && !state.retired;
        drop(state);
        if free {
            self.work.notify_one();
        } else {
            self.wanted.notify_one();
        }
    }

    /// Puts requests back, before all others: a panic of the model had its cause in one of them.
    pub(super) fn put_back(&self, jobs: Vec<Job<C>>) {
        let mut state = self.lock();
        for job in jobs.into_iter().rev() {
            state.waiting.push_front(job);
        }
        drop(state);
        self.work.notify_one();
    }

    /// A worker has a model.
    pub(super) fn worker_ready(&self, took: Duration) {
        let mut state = self.lock();
        state.ready += 1;
        state.idle_since = Instant::now();
        state.loaded(took);
        state.metrics.most_workers = state.metrics.most_workers.max(state.ready);
    }

    /// A worker has no model any more.
    pub(super) fn worker_gone(&self) {
        let mut state = self.lock();
        state.ready -= 1;
        let left = state.ready;
        drop(state);
        if left == 0 {
            self.wanted.notify_one();
        }
    }

    /// Waits for the next request; none when the worker is to end. It counts as busy until [`Self::rest`].
    pub(super) fn next(&self) -> Option<Job<C>> {
        let mut state = self.lock();
        loop {
            if state.retired {
                return None;
            }
            while let Some(job) = state.waiting.pop_front() {
                if job.answer.is_closed() {
                    continue;
                }
                let busy = state.busy + 1;
                state.at_work(busy);
                let more = !state.waiting.is_empty();
                drop(state);
                if more {
                    self.wanted.notify_one();
                }
                return Some(job);
            }
            if state.busy == 0 {
                state.idle_since = Instant::now();
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A request that can be worked on beside others, if one waits.
    pub(super) fn next_beside(&self) -> Option<Job<C>> {
        let mut state = self.lock();
        loop {
            if state.waiting.front()?.alone {
                return None;
            }
            let job = state.waiting.pop_front()?;
            if !job.answer.is_closed() {
                return Some(job);
            }
        }
    }

    /// A worker has done its batch.
    pub(super) fn rest(&self) {
        let mut state = self.lock();
        let busy = state.busy - 1;
        state.at_work(busy);
        if state.busy == 0 {
            state.idle_since = Instant::now();
        }
    }

    pub(super) fn answered(&self, reply: &Result<C::Reply, ModelError>) {
        let metrics = &mut self.lock().metrics;
        match reply {
            Ok(reply) => {
                metrics.answered += 1;
                metrics.reused_tokens += C::reused_tokens(reply);
            }
            Err(_) => metrics.failed += 1,
        }
    }

    /// A worker's model panicked, and is loaded anew.
    pub(super) fn panicked(&self) {
        let mut state = self.lock();
        state.metrics.panics += 1;
        state.anew += 1;
    }

    /// That is over; how long it took if the model is there again.
    pub(super) fn came_anew(&self, took: Option<Duration>) {
        let mut state = self.lock();
        state.anew -= 1;
        if let Some(took) = took {
            state.loaded(took);
        }
    }

    /// What is done about the first model from now on.
    pub(super) fn is_coming(&self, coming: Coming) {
        self.lock().coming = coming;
    }

    /// Whether any worker has requests.
    pub(super) fn is_at_work(&self) -> bool {
        self.lock().busy > 0
    }

    /// What is done about a model while requests wait and there is none.
    pub(super) fn coming(&self) -> Option<Coming> {
        let state = self.lock();
        match state.anew {
            _ if state.waiting.is_empty() || state.ready > state.anew => None,
            0 => Some(state.coming),
            _ => Some(Coming::Loaded),
        }
    }

    pub(super) fn metrics(&self) -> Metrics {
        let state = self.lock();
        let mut metrics = state.metrics.clone();
        metrics.busy += busy_time(state.busy, state.busy_since.elapsed());
        metrics
    }

    /// Since when nobody has used the model; none while somebody does.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (state.busy == 0 && state.waiting.is_empty()).then_some(state.idle_since)
    }

    /// Whether a request waits that no worker will take soon.
    pub(super) fn is_wanting(&self) -> bool {
        let state = self.lock();
        !state.waiting.is_empty() && (state.busy == state.ready || state.retired)
    }

    /// Tells the workers to end if nobody uses the model. True when they will.
    pub(super) fn retire_if_idle(&self) -> bool {
        let mut state = self.lock();
        let idle = state.busy == 0 && state.waiting.is_empty();
        state.retired |= idle;
        drop(state);
        if idle {
            self.work.notify_all();
        }
        idle
    }

    /// Tells the workers to end when they have done what they are at.
    pub(super) fn retire(&self) {
        self.lock().retired = true;
        self.work.notify_all();
    }

    /// There may be workers again.
    pub(super) fn revive(&self) {
        let mut state = self.lock();
        state.retired = false;
        state.coming = Coming::default();
    }

    /// Takes no more requests; those that wait get none of an answer.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.retired = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.work.notify_all();
        for job in waiting {
            let _gone = job.answer.send(Err(Failure::Closed));
        }
        self.places.close();
    }

    /// Replies under way are given up.
    pub(super) fn cut(&self) {
        self.lock().cut = true;
    }

    /// Whether replies under way are given up.
    pub(super) fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// Everyone who waits hears that the model cannot be loaded.
    pub(super) fn fail_all(&self, error: &LoadError) {
        let waiting = std::mem::take(&mut self.lock().waiting);
        for job in waiting {
            let _gone = job.answer.send(Err(Failure::Load(error.clone())));
        }
    }
}
