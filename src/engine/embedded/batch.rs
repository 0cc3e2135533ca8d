//! Requests that a model works on at the same time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::capability::{Capability, ModelError};
use super::queue::Queue;

/// One request with the one who waits for its answer.
pub(super) struct Job<C: Capability> {
    pub(super) request: Arc<C::Request>,
    pub(super) answer: oneshot::Sender<Result<C::Reply, Failure>>,
    /// Tells that a worker has it.
    pub(super) taken: Option<oneshot::Sender<()>>,
    /// It is worked on without others: one of them made the model panic.
    pub(super) alone: bool,
    /// Its place in the queue.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    Model(ModelError),
    Load(super::LoadError),
    Closed,
}

/// Requests that a model works on at the same time. The model answers each by its place; as some are answered others can
/// be taken in.
pub struct Batch<C: Capability> {
    slots: Vec<Slot<C>>,
    queue: Arc<Queue<C>>,
    /// Requests at the same time.
    most: usize,
    /// Nobody else is let in.
    closed: bool,
}

struct Slot<C: Capability> {
    request: Arc<C::Request>,
    /// None once it is answered.
    answer: Option<oneshot::Sender<Result<C::Reply, Failure>>>,
    deadline: Instant,
}

impl<C: Capability> Batch<C> {
    pub(super) fn new(first: Job<C>, most: usize, queue: Arc<Queue<C>>) -> Self {
        let closed = first.alone;
        let mut batch = Self {
            slots: Vec::new(),
            queue,
            most,
            closed,
        };
        batch.add(first);
        batch.refill();
        batch
    }

    fn add(&mut self, mut job: Job<C>) {
        if let Some(taken) = job.taken.take() {
            let _gone = taken.send(());
        }
        drop(job.permit.take());
        self.slots.push(Slot {
            request: job.request,
            answer: Some(job.answer),
            deadline: Instant::now() + self.queue.request_timeout(),
        });
    }

    /// Requests so far, those that are answered included; places only grow.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The request at a place, while it waits for its answer.
    pub fn request(&self, at: usize) -> Option<Arc<C::Request>> {
        let slot = self.slots.get(at)?;
        slot.answer.is_some().then(|| Arc::clone(&slot.request))
    }

    /// Whether anybody still waits for the answer at a place.
    pub fn is_wanted(&self, at: usize) -> bool {
        let answer = self.slots.get(at).and_then(|slot| slot.answer.as_ref());
        answer.is_some_and(|answer| !answer.is_closed()) && !self.queue.is_cut()
    }

    /// After this the answer at a place is not waited for.
    pub fn deadline(&self, at: usize) -> Instant {
        self.slots.get(at).map_or_else(Instant::now, |slot| slot.deadline)
    }

    /// Answers a request. An answer to one that has its answer is dropped.
    pub fn answer(&mut self, at: usize, reply: Result<C::Reply, ModelError>) {
        if let Some(answer) = self.slots.get_mut(at).and_then(|slot| slot.answer.take()) {
            self.queue.answered(&reply);
            let _gone = answer.send(reply.map_err(Failure::Model));
        }
    }

    /// Whether more requests can be worked on at the same time.
    pub fn has_room(&self) -> bool {
        !self.closed && self.slots.iter().filter(|slot| slot.answer.is_some()).count() < self.most
    }

    /// Takes in as many of those that wait as there is room for; they are at the places from the former
    /// [`len`](Batch::len) on.
    pub fn refill(&mut self) {
        while self.has_room() {
            match self.queue.next_beside() {
                Some(job) => self.add(job),
                None => return,
            }
        }
    }

    /// What is left without an answer.
    pub(super) fn unanswered(self) -> Vec<Job<C>> {
        let slots = self.slots.into_iter();
        let open = slots.filter_map(|slot| Some((slot.answer?, slot.request)));
        open.map(|(answer, request)| Job {
            request,
            answer,
            taken: None,
            alone: true,
            permit: None,
        })
        .collect()
    }
}
