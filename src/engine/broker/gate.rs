//! The gate of one engine: who may call it now, who waits, and when it is given up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::pace::Pace;
use super::{EngineLoad, backoff};
use crate::engine::{CallError, Pressure, Rendered, Reply, SharedEngine, Stop};
use crate::event::{Event, EventSender};
use crate::spec::Concurrency;

/// A shorter `Retry-After` says nothing.
const LEAST_WAIT: Duration = Duration::from_millis(10);

/// One engine, its queue and its health.
pub(super) struct Gate {
    name: String,
    engine: SharedEngine,
    engine_wait: Duration,
    events: EventSender,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    in_flight: usize,
    queue: Queue,
    /// How many have queued up so far.
    arrivals: u64,
    /// The latest row that has.
    newest: u64,
    health: Health,
    /// Grows with every change for the worse. A request belongs to the epoch it started in; bad news
    /// from older ones was told already by the first of them.
    epoch: u64,
    /// Faults in a row, each in another epoch.
    faults: u32,
    /// The first fault since the last success.
    since: Option<Instant>,
    cause: String,
    /// The cause that readers of events know; none when they think that the engine is ready.
    announced: Option<String>,
    stop: Option<Stop>,
}

/// Whether the engine takes work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Health {
    Open,
    /// It wants less (429): nothing goes out until then, afterwards everything may.
    Paused {
        until: Instant,
    },
    /// It takes nothing: from then on, one request at a time tries whether it does.
    Down {
        until: Instant,
        probing: bool,
    },
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gate({})", self.name)
    }
}

impl Gate {
    pub(super) fn new(
        name: &str,
        engine: SharedEngine,
        concurrency: Concurrency,
        engine_wait: Duration,
        events: EventSender,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            engine,
            engine_wait,
            events,
            state: Mutex::new(State {
                pace: Pace::new(concurrency),
                in_flight: 0,
                queue: Queue::new(),
                arrivals: 0,
                newest: 0,
                health: Health::Open,
                epoch: 0,
                faults: 0,
                since: None,
                cause: String::new(),
                announced: None,
                stop: None,
            }),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn engine(&self) -> &SharedEngine {
        &self.engine
    }

    pub(super) fn load(&self) -> EngineLoad {
        let state = self.lock();
        EngineLoad {
            engine: self.name.clone(),
            in_flight: state.in_flight,
            waiting: state.queue.values().filter(|place| !place.is_closed()).count(),
            limit: state.pace.limit(),
            parked: 0,
            cause: (state.health != Health::Open).then(|| state.cause.clone()),
            retry_in: match state.health {
                Health::Paused { until } | Health::Down { until, .. } => {
                    Some(until.saturating_duration_since(Instant::now()))
                }
                Health::Open => None,
            },
        }
    }

    pub(super) async fn acquire(self: &Arc<Self>, row: u64, faults: u32) -> Result<Lease, Stop> {
        // Only a gate that is gone drops a place unanswered.
        self.queue_up(row, faults)?
            .await
            .unwrap_or(Err(Stop::Interrupted))
    }

    /// Takes a place in the queue.
    fn queue_up(
        self: &Arc<Self>,
        row: u64,
        faults: u32,
    ) -> Result<oneshot::Receiver<Result<Lease, Stop>>, Stop> {
        let (place, turn) = oneshot::channel();
        let mut state = self.lock();
        if let Some(stop) = &state.stop {
            return Err(stop.clone());
        }
        let arrival = state.arrivals;
        state.arrivals += 1;
        state.newest = state.newest.max(row);
        // Behind those who wait now, and before the rows that come later: a stream of new rows starves nobody.
        let rank = if faults == 0 { row } else { state.newest };
        state.queue.insert((rank, faults, arrival), place);
        self.pump(state);
        Ok(turn)
    }

    /// Turns everyone away from now on; the first reason stays.
    pub(super) fn stop(&self, stop: Stop) {
        let mut state = self.lock();
        let queue = halt(&mut state, stop);
        drop(state);
        turn_away(queue);
    }

    /// No code panics while it holds the lock; if one did, the state is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets in whoever may go, or gives the engine up. Every change of the state ends here.
    fn pump(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        // Only at the front: looking at everyone each time would be quadratic in the rows that wait.
        while let Some(first) = state.queue.first_entry()
            && first.get().is_closed()
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
        while state.in_flight < state.pace.limit() {
            let Some(probe) = state.admits(now) else { break };
            let Some((_, place)) = state.queue.pop_first() else {
                break;
            };
            if let (true, Health::Down { probing, .. }) = (probe, &mut state.health) {
                *probing = true;
            }
            state.in_flight += 1;
            granted.push((
                place,
                Lease {
                    gate: Arc::clone(self),
                    epoch: state.epoch,
                    probe,
                },
            ));
        }
        drop(state);
        for (place, lease) in granted {
            // Someone who just left drops the lease, and that gives it back.
            let _left = place.send(Ok(lease));
        }
    }

    /// The reason to stop, once rows wait, nothing is in flight and `engine_wait` is over.
    fn given_up(&self, state: &State, now: Instant) -> Option<Stop> {
        let waited = now.saturating_duration_since(state.since?);
        if state.health == Health::Open
            || state.in_flight > 0
            || state.queue.is_empty()
            || waited < self.engine_wait
        {
            return None;
        }
        Some(Stop::Engine {
            engine: self.name.clone(),
            message: format!(
                "answered no request for {:?} (`engine_wait`), last: {}; bring it up, then run the same command again to go on",
                self.engine_wait, state.cause
            ),
        })
    }

    /// What a call told about the engine.
    fn report(self: &Arc<Self>, epoch: u64, probe: bool, result: &Result<Reply, CallError>) {
        match result {
            Ok(_) | Err(CallError::Refused { .. }) => self.succeeded(epoch),
            Err(CallError::Engine {
                message,
                retry_after,
                pressure,
            }) => self.failed(epoch, message, *retry_after, *pressure),
            // The row's own fault, mostly. As the answer to a probe it is no sign of health.
            Err(CallError::Transport { message, .. }) => {
                if probe {
                    self.failed(epoch, message, None, Pressure::Down);
                }
            }
            Err(CallError::Fatal { message }) => self.stop(Stop::Engine {
                engine: self.name.clone(),
                message: format!("cannot be used: {message}"),
            }),
        }
    }

    fn succeeded(self: &Arc<Self>, epoch: u64) {
        let mut state = self.lock();
        state.since = None;
        if epoch != state.epoch {
            return;
        }
        let wanted_more = !state.queue.is_empty();
        state.pace.succeeded(wanted_more);
        state.faults = 0;
        state.health = Health::Open;
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
        epoch: u64,
        message: &str,
        retry_after: Option<Duration>,
        pressure: Pressure,
    ) {
        let now = Instant::now();
        let mut state = self.lock();
        if epoch != state.epoch {
            // One wave of refusals is one fault; only a longer `Retry-After` is news.
            if let (
                Some(wait),
                Health::Paused { until }
                | Health::Down {
                    until,
                    probing: false,
                },
            ) = (retry_after, &mut state.health)
            {
                *until = (*until).max(now + wait);
                let until = *until;
                self.wake(until, state.since);
            }
            return;
        }
        // "Retry at once" from an engine that has just refused is no leave to hammer it.
        let wait = retry_after
            .filter(|wait| *wait >= LEAST_WAIT)
            .unwrap_or_else(|| backoff(state.faults));
        let until = now + wait;
        state.epoch += 1;
        state.faults += 1;
        state.since.get_or_insert(now);
        message.clone_into(&mut state.cause);
        if pressure != Pressure::Down {
            state.pace.pushed_back();
        }
        state.health = match pressure {
            Pressure::Busy => Health::Paused { until },
            Pressure::Down | Pressure::Overloaded => Health::Down {
                until,
                probing: false,
            },
        };
        let news = state.announced.as_deref() != Some(message);
        if news {
            state.announced = Some(message.to_owned());
        }
        self.wake(until, state.since);
        drop(state);
        if news {
            self.events.send(Event::EngineWaiting {
                engine: self.name.clone(),
                reason: message.to_owned(),
                retry_in_s: wait.as_secs_f64(),
            });
        }
    }

    /// Looks at the queue again when the pause, or the patience, is over.
    fn wake(self: &Arc<Self>, until: Instant, since: Option<Instant>) {
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

    /// Takes a lease back.
    fn give_back(self: &Arc<Self>, epoch: u64, probe: bool) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        let same = epoch == state.epoch;
        if let Health::Down { probing, .. } = &mut state.health {
            // A probe that ended without news: the next in line tries.
            if probe && same {
                *probing = false;
            }
        }
        self.pump(state);
    }
}

impl State {
    /// Whether one more may go now, and if so, whether as a probe.
    fn admits(&self, now: Instant) -> Option<bool> {
        match self.health {
            Health::Open => Some(false),
            Health::Paused { until } => (now >= until).then_some(false),
            Health::Down { until, probing } => (now >= until && !probing).then_some(true),
        }
    }
}

/// Those who wait: by row (or the row behind which they stand), by the faults they met, in the order they came.
type Queue = BTreeMap<(u64, u32, u64), oneshot::Sender<Result<Lease, Stop>>>;

/// Notes why the gate is shut for good; those who are to be told.
fn halt(state: &mut State, stop: Stop) -> (Queue, Stop) {
    let stop = state.stop.get_or_insert(stop).clone();
    (std::mem::take(&mut state.queue), stop)
}

fn turn_away((queue, stop): (Queue, Stop)) {
    for place in queue.into_values() {
        let _left = place.send(Err(stop.clone()));
    }
}

/// A place at an engine. Dropping it gives the place back.
#[derive(Debug)]
pub struct Lease {
    gate: Arc<Gate>,
    epoch: u64,
    probe: bool,
}

impl Lease {
    /// Calls the engine once and tells the gate what came of it.
    ///
    /// After [`CallError::Engine`] the row asks the broker for a new lease: that waits as long as the
    /// engine needs. After [`CallError::Fatal`] the broker has given the engine up, and says so there.
    pub async fn call(&self, rendered: &Rendered, turn: u32) -> Result<Reply, CallError> {
        let result = self.gate.engine.call(rendered, turn).await;
        self.gate.report(self.epoch, self.probe, &result);
        result
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gate.give_back(self.epoch, self.probe);
    }
}
