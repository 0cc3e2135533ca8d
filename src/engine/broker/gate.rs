//! The gate of one engine: who may call which of its servers now, who waits, and when it is given up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::lease::Lease;
use super::pace::{Done, Pace};
use super::place::{Health, Place};
use super::queue::{Grant, Queue, Waiter};
use super::rate::Rate;
use super::suspects::{Suspects, Who};
use super::{EngineLoad, backoff};
use crate::engine::{CallError, Pressure, Reply, SharedEngine, Stop};
use crate::event::{EngineStats, Event, EventSender, Usage};

/// A shorter `Retry-After` says nothing.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// One engine, its servers, its queue and its health.
pub(super) struct Gate {
    name: String,
    /// Prepares and renders requests.
    engine: SharedEngine,
    engine_wait: Duration,
    events: EventSender,
    pub(super) state: Mutex<State>,
    /// Told when rows wait and a server is missing.
    pub(super) wants: Notify,
    /// Told when a server has nothing in flight any more.
    pub(super) quiet: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) places: Vec<Place>,
    pub(super) queue: Queue,
    /// How many have queued up so far.
    arrivals: u64,
    /// The latest row that has.
    newest: u64,
    /// How many leases there were.
    leases: u64,
    pub(super) suspects: Suspects,
    /// The first fault since the last success.
    pub(super) since: Option<Instant>,
    pub(super) cause: String,
    /// The cause that readers of events know; none when they think that the engine is ready.
    pub(super) announced: Option<String>,
    stop: Option<Stop>,
    /// When the last lease was lent.
    pub(super) used: Instant,
    /// Requests and tokens per minute.
    rate: Rate,
    /// The next request may go no sooner, by the rate.
    limited: Option<Instant>,
    /// When the queue is looked at again, if that is settled.
    look: Option<Instant>,
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({})", self.name)
    }
}

impl Gate {
    /// A gate before these servers; `engine` prepares and renders requests.
    pub(super) fn new(
        name: &str,
        engine: SharedEngine,
        places: Vec<Place>,
        rate: Rate,
        engine_wait: Duration,
        events: EventSender,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            engine,
            engine_wait,
            events,
            state: Mutex::new(State {
                places,
                queue: Queue::new(),
                arrivals: 0,
                newest: 0,
                leases: 0,
                suspects: Suspects::default(),
                since: None,
                cause: String::new(),
                announced: None,
                stop: None,
                used: Instant::now(),
                rate,
                limited: None,
                look: None,
            }),
            wants: Notify::new(),
            quiet: Notify::new(),
        })
    }

    /// A gate before one server that is there, or that somebody else runs.
    pub(super) fn before(
        name: &str,
        engine: SharedEngine,
        (pace, rate): (Pace, Rate),
        engine_wait: Duration,
        events: EventSender,
    ) -> Arc<Self> {
        let place = Place::new(Some(Arc::clone(&engine)), false, pace);
        Self::new(name, engine, vec![place], rate, engine_wait, events)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn engine(&self) -> &SharedEngine {
        &self.engine
    }

    pub(super) fn load(&self) -> EngineLoad {
        let state = self.lock();
        let open = state.places.iter().any(|place| place.health == Health::Open);
        let absent = state.places.iter().find_map(|place| match &place.health {
            Health::Absent { what, until, .. } => Some((what.clone(), *until)),
            Health::Draining => Some(("draining".to_owned(), None)),
            _ => None,
        });
        let absent = absent.filter(|_| !open);
        let until = state.places.iter().filter_map(Place::until).min();
        EngineLoad {
            engine: self.name.clone(),
            in_flight: state.places.iter().map(|place| place.in_flight).sum(),
            waiting: state.waiters().count(),
            limit: state.places.iter().map(|place| place.pace.limit()).sum(),
            parked: 0,
            cause: until.filter(|_| !open).map(|_| state.cause.clone()),
            retry_in: until
                .or(absent.as_ref().and_then(|(_, until)| *until))
                .filter(|_| !open)
                .map(|until| until.saturating_duration_since(Instant::now())),
            absent: absent.filter(|_| until.is_none()).map(|(what, _)| what),
            limited: state
                .limited
                .map(|at| at.saturating_duration_since(Instant::now()))
                .filter(|wait| !wait.is_zero()),
        }
    }

    /// What became of its concurrency, over all its servers.
    pub(super) fn pace(&self) -> EngineStats {
        let state = self.lock();
        let mut stats = EngineStats {
            engine: self.name.clone(),
            ..EngineStats::default()
        };
        for place in &state.places {
            let pace = place.pace.summary();
            stats.limit += pace.limit;
            stats.least += pace.range.0;
            stats.most += pace.range.1;
            stats.push_backs += pace.push_backs;
            stats.reason = pace.reason.to_string();
        }
        stats
    }

    pub(super) async fn acquire(self: &Arc<Self>, row: u64, faults: u32, who: Who) -> Result<Lease, Stop> {
        // Only a gate that is gone drops a place unanswered.
        self.queue_up(row, faults, who)?
            .await
            .unwrap_or(Err(Stop::Interrupted))
    }

    /// Takes a place in the queue.
    fn queue_up(
        self: &Arc<Self>,
        row: u64,
        faults: u32,
        who: Who,
    ) -> Result<oneshot::Receiver<Result<Lease, Stop>>, Stop> {
        let (turn, lease) = oneshot::channel();
        let mut state = self.lock();
        if let Some(stop) = &state.stop {
            return Err(stop.clone());
        }
        let arrival = state.arrivals;
        state.arrivals += 1;
        state.newest = state.newest.max(row);
        if faults == 0 && !state.is_in_use() {
            self.begins_to_wait(&mut state);
        }
        // Behind those who wait now, and before the rows that come later: a stream of new rows starves nobody.
        let rank = if faults == 0 { row } else { state.newest };
        state.queue.insert((rank, faults, arrival), Waiter { turn, who });
        let missing = state.places.iter().any(Place::is_absent);
        self.pump(state);
        if missing {
            self.wants.notify_waiters();
        }
        Ok(lease)
    }

    /// Somebody waits where nobody did: patience is counted from now on, however long ago the engine failed.
    fn begins_to_wait(self: &Arc<Self>, state: &mut State) {
        if state.since.is_some() {
            let now = Instant::now();
            state.since = Some(now);
            self.wake(self.patience_ends(now), None);
        }
    }

    /// No request can succeed: the run stops.
    pub(super) fn give_up(&self, message: &str) {
        self.stop(Stop::Engine {
            engine: self.name.clone(),
            message: message.to_owned(),
        });
    }

    /// Tells the user something that stops nothing.
    pub(super) fn warn(&self, message: String) {
        self.events.send(Event::Warning { message });
    }

    /// Turns everyone away from now on; the first reason stays.
    pub(super) fn stop(&self, stop: Stop) {
        let mut state = self.lock();
        let queue = halt(&mut state, stop);
        drop(state);
        turn_away(queue);
    }

    /// No code panics while it holds the lock; if one did, the state is still whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in whoever may go, or gives the engine up. Every change of the state ends here.
    pub(super) fn pump(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        // Only at the front: looking at everyone each time would be quadratic in the rows that wait.
        while let Some(first) = state.queue.first_entry()
            && first.get().turn.is_closed()
        {
            first.remove();
        }
        let now = Instant::now();
        if let Some(stop) = self.given_up(&state, now) {
            let queue = halt(&mut state, stop);
            drop(state);
            return turn_away(queue);
        }
        let mut granted = Vec::new();
        state.limited = None;
        let later = loop {
            let Grant {
                key,
                at,
                probe,
                alone,
            } = match state.next(now) {
                Ok(grant) => grant,
                Err(later) => break later,
            };
            let estimate = state.rate.estimate();
            let ticket = match state.rate.admit(now, estimate) {
                Ok(ticket) => ticket,
                Err(later) => {
                    state.limited = Some(later);
                    break Some(later);
                }
            };
            let Some(waiter) = state.queue.remove(&key) else {
                break None;
            };
            state.leases += 1;
            state.used = now;
            let id = state.leases;
            let Some((place, engine)) = state.places.get_mut(at).and_then(|place| {
                let engine = place.engine.clone()?;
                Some((place, engine))
            }) else {
                break None;
            };
            if let (true, Health::Down { probing, .. }) = (probe, &mut place.health) {
                *probing = true;
            }
            place.in_flight += 1;
            place.pace.released(now, place.in_flight);
            place.reserved |= alone;
            let lease = Lease {
                gate: Arc::clone(self),
                at,
                id,
                engine: engine.0,
                supervised: place.supervised,
                epoch: place.epoch,
                life: place.life.subscribe(),
                probe,
                ticket: Mutex::new(Some(ticket)),
            };
            granted.push((waiter.turn, lease));
        };
        if let Some(later) = later {
            self.look_again(&mut state, later);
        }
        drop(state);
        for (turn, lease) in granted {
            // Someone who just left drops the lease, and that gives it back.
            let _left = turn.send(Ok(lease));
        }
    }

    /// Looks at the queue again then; of all such times the first counts.
    fn look_again(self: &Arc<Self>, state: &mut State, at: Instant) {
        if state.look.is_some_and(|look| look <= at) {
            return;
        }
        state.look = Some(at);
        let gate = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            let Some(gate) = gate.upgrade() else { return };
            let mut state = gate.lock();
            if state.look == Some(at) {
                state.look = None;
            }
            gate.pump(state);
        });
    }

    /// The reason to stop, once rows wait, nothing is in flight or being started, and `engine_wait` is over.
    fn given_up(&self, state: &State, now: Instant) -> Option<Stop> {
        let waited = now.saturating_duration_since(state.since?);
        let hope = |place: &Place| {
            place.in_flight > 0
                || matches!(place.health, Health::Open | Health::Absent { starting: true, .. })
        };
        if state.places.iter().any(hope) || state.queue.is_empty() || waited < self.engine_wait {
            return None;
        }
        let then = match state.places.iter().any(|place| place.supervised) {
            true => "mend what ends it",
            false => "bring it up",
        };
        Some(Stop::Engine {
            engine: self.name.clone(),
            message: format!(
                "answered no request for {:?} (`engine_wait`), last: {}; {then}",
                self.engine_wait, state.cause
            ),
        })
    }

    /// What a call told about a server, and how long it took.
    pub(super) fn report(
        self: &Arc<Self>,
        lease: &Lease,
        who: &Who,
        took: Duration,
        result: &Result<Reply, CallError>,
    ) {
        if let Some(limits) = lease.engine.limits() {
            self.lock().rate.learn(Instant::now(), &limits);
        }
        match result {
            Ok(reply) => self.succeeded(lease, who, took, reply.usage),
            Err(CallError::Refused { .. }) => self.succeeded(lease, who, took, Usage::default()),
            Err(CallError::Engine {
                message,
                retry_after,
                pressure,
            }) => self.failed(lease, message, *retry_after, *pressure),
            // The row's own fault, mostly. As the answer to a probe it is no sign of health.
            Err(CallError::Transport { message, .. }) => {
                if lease.probe {
                    self.failed(lease, message, None, Pressure::Down);
                }
            }
            Err(CallError::Fatal { message }) => self.give_up(&format!("cannot be used: {message}")),
        }
    }

    fn succeeded(self: &Arc<Self>, lease: &Lease, who: &Who, took: Duration, usage: Usage) {
        let now = Instant::now();
        let mut state = self.lock();
        state.since = None;
        state.suspects.answered(who);
        if let Some(ticket) = lease.take_ticket() {
            let tokens = usage.prompt_tokens + usage.completion_tokens;
            state.rate.settle(ticket, now, tokens);
        }
        let queued = !state.queue.is_empty();
        let Some(place) = state.places.get_mut(lease.at) else {
            return;
        };
        let done = Done {
            took,
            tokens: usage.completion_tokens,
            queued,
            in_flight: place.in_flight,
        };
        place.pace.finished(now, done);
        if lease.epoch != place.epoch {
            return;
        }
        place.faults = 0;
        if place.health != Health::Draining {
            place.health = Health::Open;
        }
        let ready = state.announced.take().is_some();
        self.pump(state);
        if ready {
            self.events.send(Event::EngineReady {
                engine: self.name.clone(),
            });
        }
    }

    fn failed(
        self: &Arc<Self>,
        lease: &Lease,
        message: &str,
        retry_after: Option<Duration>,
        pressure: Pressure,
    ) {
        let now = Instant::now();
        let mut state = self.lock();
        let since = state.since;
        let Some(place) = state.places.get_mut(lease.at) else {
            return;
        };
        if lease.epoch != place.epoch {
            // One wave of refusals is one fault; only a longer `Retry-After` is news.
            if let (
                Some(wait),
                Health::Paused { until }
                | Health::Down {
                    until,
                    probing: false,
                },
            ) = (retry_after, &mut place.health)
            {
                *until = (*until).max(now + wait);
                let until = *until;
                self.wake(until, since);
            }
            return;
        }
        if !place.can_serve() {
            return;
        }
        // "Retry at once" from an engine that has just refused is no leave to hammer it.
        let wait = retry_after
            .filter(|wait| *wait >= LEAST_WAIT)
            .unwrap_or_else(|| backoff(place.faults));
        let until = now + wait;
        place.epoch += 1;
        place.faults += 1;
        if pressure != Pressure::Down {
            place.pace.pushed_back(now, retry_after);
        }
        place.health = match pressure {
            Pressure::Busy => Health::Paused { until },
            Pressure::Down | Pressure::Overloaded => Health::Down {
                until,
                probing: false,
            },
        };
        state.since.get_or_insert(now);
        message.clone_into(&mut state.cause);
        let news = state.announced.as_deref() != Some(message);
        if news {
            state.announced = Some(message.to_owned());
        }
        self.wake(until, state.since);
        // Another server may take what this one refused.
        self.pump(state);
        if news {
            self.events.send(Event::EngineWaiting {
                engine: self.name.clone(),
                reason: message.to_owned(),
                retry_in_s: wait.as_secs_f64(),
            });
        }
    }

    /// Looks at the queue again when the pause, or the patience, is over.
    pub(super) fn wake(self: &Arc<Self>, until: Instant, since: Option<Instant>) {
        let at = since.map_or(until, |since| until.min(since + self.engine_wait));
        let gate = Arc::downgrade(self);
        tokio::spawn(async move {
            // Patience may end first; then the pause is still to be waited out.
            for at in [at, until] {
                tokio::time::sleep_until(at).await;
                let Some(gate) = gate.upgrade() else { return };
                gate.pump(gate.lock());
            }
        });
    }

    /// When rows have waited long enough for an engine that has failed since then.
    pub(super) fn patience_ends(&self, since: Instant) -> Instant {
        since + self.engine_wait
    }

    /// Takes a lease back.
    pub(super) fn give_back(self: &Arc<Self>, lease: &Lease) {
        let mut state = self.lock();
        let Some(place) = state.places.get_mut(lease.at) else {
            return;
        };
        place.in_flight = place.in_flight.saturating_sub(1);
        place.reserved = false;
        place.idle_since = Instant::now();
        let quiet = place.in_flight == 0;
        let same = lease.epoch == place.epoch;
        if let Health::Down { probing, .. } = &mut place.health {
            // A probe that ended without news: the next in line tries.
            if lease.probe && same {
                *probing = false;
            }
        }
        self.pump(state);
        if quiet {
            self.quiet.notify_waiters();
        }
    }
}

/// Notes why the gate is shut for good; those who are to be told.
fn halt(state: &mut State, stop: Stop) -> (Queue, Stop) {
    let stop = state.stop.get_or_insert(stop).clone();
    (std::mem::take(&mut state.queue), stop)
}

fn turn_away((queue, stop): (Queue, Stop)) {
    for waiter in queue.into_values() {
        let _left = waiter.turn.send(Err(stop.clone()));
    }
}
