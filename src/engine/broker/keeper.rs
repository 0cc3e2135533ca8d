//! Who looks after one server of an engine: starts it when a row waits, watches it, starts it again, lets it go.
//!
//! A keeper is a task. It owns the server and the memory booked for it; the gate only hears whether there is one.

use std::sync::Arc;

use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::memory::{Booking, MemoryLedger};
use crate::engine::client::watched;
use crate::engine::provision::{Need, PreparedEngine};
use crate::engine::supervise::{Breaker, Failed, Ready, Restarts, Supervisor};
use crate::event::{Event, EventSender};
use crate::spec::EngineSpec;

/// Prepares a server anew: what it needs may be gone, and its port taken. It may take long (a download), and tells of it.
pub type Prepare = dyn Fn(&dyn Fn(String)) -> Result<PreparedEngine, String> + Send + Sync;

/// One server of an engine, and all it takes to run it.
pub(super) struct Keeper {
    pub(super) gate: Arc<Gate>,
    /// Which server.
    pub(super) at: usize,
    pub(super) spec: Arc<EngineSpec>,
    pub(super) prepare: Arc<Prepare>,
    pub(super) need: Need,
    pub(super) supervisor: Supervisor,
    pub(super) memory: MemoryLedger,
    pub(super) events: EventSender,
    /// The end of the run.
    pub(super) stop: CancellationToken,
}

/// Why there is no server.
enum Over {
    /// The run is over.
    Stopped,
    /// We let it go; a row that waits has it started again.
    Released,
    /// It ended, hung or did not start; it is tried again.
    Failed {
        why: String,
        /// A suspect that was alone there explains it.
        explained: bool,
    },
    /// It can never be started.
    Hopeless(String),
}

impl Keeper {
    /// Keeps the server until the run is over; then nothing of it is left.
    pub(super) async fn run(self) {
        let mut restarts = Restarts::new(self.supervisor.policy());
        let mut wanted = !self.spec.launch.lazy;
        let mut failed: Option<String> = None;
        loop {
            if !wanted {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    () = self.gate.wanted() => {}
                }
            }
            wanted = false;
            let over = self.life(&mut restarts, failed.as_deref()).await;
            match over {
                Over::Stopped => return,
                Over::Hopeless(why) => return self.gate.dead(self.at, &why),
                Over::Released => failed = None,
                Over::Failed { why, explained } => {
                    let until = self.next_start(restarts.failed(Instant::now().into_std(), explained), &why);
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        () = sleep_until(until) => {}
                    }
                    failed = Some(why);
                }
            }
        }
    }

    /// Says when the server is started again.
    fn next_start(&self, breaker: Breaker, why: &str) -> Instant {
        let now = Instant::now();
        let until = match breaker {
            Breaker::Closed { until } => until.map_or(now, Instant::from_std),
            Breaker::HalfOpen => now,
            Breaker::Open { until } => {
                let until = Instant::from_std(until);
                self.events.send(Event::EngineWaiting {
                    engine: self.gate.name().to_owned(),
                    reason: format!("it failed too often in a row, last: {why}"),
                    retry_in_s: until.saturating_duration_since(now).as_secs_f64(),
                });
                until
            }
        };
        self.gate.not_there(self.at, why, Some(until));
        until
    }

    /// One life of the server: from room in memory to its end.
    async fn life(&self, restarts: &mut Restarts, failed: Option<&str>) -> Over {
        self.gate.absent(self.at, "waiting for room in memory", false);
        let booking = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Over::Stopped,
            booking = self.memory.book(&self.gate, &self.need) => booking,
        };
        let Some(booking) = booking else {
            return Over::Hopeless("needs more memory than `resources` has".to_owned());
        };
        if self.spec.launch.lazy && !self.gate.lock().is_wanted() {
            // Whoever waited has gone, or another server was quicker.
            return Over::Released;
        }
        match self.start(failed).await {
            Err(over) => over,
            Ok(ready) => {
                restarts.ready(Instant::now().into_std());
                self.serve(ready, &booking).await
            }
        }
    }

    /// Prepares and starts the server.
    async fn start(&self, failed: Option<&str>) -> Result<Ready, Over> {
        let reason = match failed {
            None => "starting".to_owned(),
            Some(why) => format!("starting again; before, {why}"),
        };
        self.gate.absent(self.at, "starting", true);
        self.tell_starting(&self.events, reason);
        let (prepare, events) = (Arc::clone(&self.prepare), self.events.clone());
        let (engine, replica) = (self.gate.name().to_owned(), self.replica());
        let work = tokio::task::spawn_blocking(move || {
            prepare(&|reason| {
                events.send(Event::EngineStarting {
                    engine: engine.clone(),
                    replica,
                    reason,
                });
            })
        });
        let prepared = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Over::Stopped),
            prepared = work => prepared,
        };
        let prepared = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(why)) => return Err(Over::Hopeless(format!("cannot be prepared: {why}"))),
            Err(_) => return Err(Over::Hopeless("cannot be prepared: a bug of ours".to_owned())),
        };
        match self.supervisor.start(prepared, &self.stop).await {
            Ok(ready) => Ok(ready),
            Err(_) if self.stop.is_cancelled() => Err(Over::Stopped),
            Err(failure) => {
                self.tell_log(&failure.log_tail);
                if failure.stillborn && failed.is_none() {
                    return Err(Over::Hopeless(in_full(&failure)));
                }
                Err(Over::Failed {
                    why: in_short(&failure),
                    explained: false,
                })
            }
        }
    }

    /// Watches a server that is ready, until it is not.
    async fn serve(&self, mut ready: Ready, booking: &Booking) -> Over {
        let progress = ready.progress();
        let engine = match watched(&self.spec.at(ready.url()), move || progress.seen()) {
            Ok(engine) => engine,
            Err(error) => {
                ready.stop().await;
                return Over::Hopeless(error.message);
            }
        };
        let (gate, at) = (Arc::clone(&self.gate), self.at);
        let hang = ready.hang_watch(move || gate.in_flight(at), self.spec.timeout.between_bytes);
        let mut hang = std::pin::pin!(hang);
        self.gate.opened(self.at, engine, ready.slots());
        self.events.send(Event::EngineReady {
            engine: self.gate.name().to_owned(),
        });
        let mut look = interval(self.supervisor.policy().maintenance);
        loop {
            let released = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.gate.drain(self.at);
                    self.release(ready, "the run is over").await;
                    return Over::Stopped;
                }
                exit = ready.ended() => return self.ended(ready, exit.to_string(), false).await,
                why = &mut hang => return self.ended(ready, why, true).await,
                by = booking.evict.asked() => Some(format!("makes room for {by}")),
                _ = look.tick() => {
                    let idle = self.gate.idle_for(self.at);
                    idle.filter(|idle| *idle >= self.spec.launch.idle_timeout).map(|_| "idle".to_owned())
                }
            };
            if let Some(why) = released
                && self.gate.close_if_idle(self.at, "not needed")
            {
                self.release(ready, &why).await;
                return Over::Released;
            }
        }
    }

    /// Stops a server that nobody uses.
    async fn release(&self, ready: Ready, why: &str) {
        let stopped = ready.stop().await;
        if !stopped.clean {
            tracing::warn!(engine = self.gate.name(), how = %stopped.how, "a server did not end cleanly");
        }
        self.events.send(Event::EngineReleased {
            engine: self.gate.name().to_owned(),
            replica: self.replica(),
            reason: why.to_owned(),
        });
    }

    /// Says that the server has ended by itself, and ends one that hangs.
    async fn ended(&self, ready: Ready, why: String, hangs: bool) -> Over {
        let in_flight = self.gate.in_flight(self.at);
        // First of all: those whose connections break want to know why.
        let explained = self.gate.crashed(self.at, &why);
        self.events.send(Event::EngineCrashed {
            engine: self.gate.name().to_owned(),
            replica: self.replica(),
            reason: why.clone(),
            in_flight,
            log: ready.log().display().to_string(),
        });
        self.tell_log(&ready.log_tail());
        if hangs {
            ready.kill().await;
        } else {
            ready.stop().await;
        }
        Over::Failed { why, explained }
    }

    fn replica(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }

    fn tell_starting(&self, events: &EventSender, reason: String) {
        events.send(Event::EngineStarting {
            engine: self.gate.name().to_owned(),
            replica: self.replica(),
            reason,
        });
    }

    fn tell_log(&self, lines: &[String]) {
        if !lines.is_empty() {
            self.events.send(Event::EngineLog {
                engine: self.gate.name().to_owned(),
                replica: self.replica(),
                lines: lines.to_vec(),
            });
        }
    }
}

/// Why a server did not start, and what to do, on one line.
fn in_short(failure: &Failed) -> String {
    let advice = failure
        .advice
        .map_or_else(String::new, |advice| format!("; {advice}"));
    format!("{}{advice}", failure.error)
}

/// The same with its last lines.
fn in_full(failure: &Failed) -> String {
    let mut text = in_short(failure);
    if !failure.log_tail.is_empty() {
        text += &format!("\n  the end of its log, {}:", failure.log.display());
        for line in &failure.log_tail {
            text += &format!("\n    {line}");
        }
    }
    text
}
