//! Who looks after one server of an engine: starts it when a row waits, watches it, starts it again, lets it go.
//!
//! A keeper is a task. It owns the server and the memory booked for it; the gate only hears whether there is one.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use tokio::time::{Instant, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::memory::{Booking, MemoryLedger};
use super::orders::{Drained, Post, Sharing};
use crate::engine::client::watched;
use crate::engine::provision::PreparedEngine;
use crate::engine::supervise::{Breaker, Failed, Ready, Restarts, Supervisor};
use crate::event::{Event, EventSender};
use crate::spec::EngineSpec;

/// Prepares a server anew: what it needs may be gone, and its port taken. It may take long (a download): it tells of that,
/// an empty text for no news, and ends when the answer is `Break`.
pub type Prepare = dyn Fn(&dyn Fn(&str) -> ControlFlow<()>) -> Result<PreparedEngine, String> + Send + Sync;

/// One server of an engine, and all it takes to run it.
pub(super) struct Keeper {
    pub(super) gate: Arc<Gate>,
    /// Which server.
    pub(super) at: usize,
    pub(super) spec: Arc<EngineSpec>,
    pub(super) prepare: Arc<Prepare>,
    pub(super) supervisor: Supervisor,
    pub(super) memory: MemoryLedger,
    pub(super) events: EventSender,
    /// The end of the run.
    pub(super) stop: CancellationToken,
    /// Who else may use the server, or whose may be used.
    pub(super) shares: Sharing,
}

/// Why there is no server.
pub(super) enum Over {
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
    pub(super) async fn run(self, mut post: Post) {
        let mut restarts = Restarts::new(self.supervisor.policy());
        let mut wanted = !self.spec.launch.lazy;
        let always = self.shares.always();
        let mut failed: Option<String> = None;
        loop {
            if !wanted {
                tokio::select! {
                    biased;
                    () = self.stop.cancelled() => return,
                    order = post.order() => if order.absent().await { return } else { continue },
                    () = self.gate.wanted() => {}
                }
            }
            wanted = always;
            let over = self.life(&mut restarts, failed.as_deref(), &mut post).await;
            match over {
                Over::Stopped => return,
                Over::Hopeless(why) => {
                    post.gives_up(&why);
                    return self.gate.dead(self.at, &why);
                }
                Over::Released => failed = None,
                Over::Failed { why, explained } => {
                    let until = self.next_start(restarts.failed(Instant::now().into_std(), explained), &why);
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        order = post.order() => if order.absent().await { return },
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
    async fn life(&self, restarts: &mut Restarts, failed: Option<&str>, post: &mut Post) -> Over {
        self.gate.absent(self.at, "being prepared", true);
        let stop = self.stop.child_token();
        let prepared = match self.unless_drained(post, &stop, self.prepared(&stop)).await {
            Ok(prepared) => prepared,
            // It could be prepared before: what is missing now may come back.
            Err(Over::Hopeless(why)) if failed.is_some() => {
                let explained = false;
                return Over::Failed { why, explained };
            }
            Err(over) => return over,
        };
        if let Some(over) = self.attached(&prepared.spec_digest, restarts, post).await {
            return over;
        }
        let start = self.started(prepared, failed, &stop);
        match self.unless_drained(post, &stop, start).await {
            Ok((ready, booking)) => {
                restarts.ready(Instant::now().into_std());
                self.serve(ready, &booking, post).await
            }
            Err(over) => over,
        }
    }

    /// Does a part of a start. A drain ends it: a server that is not there yet has nothing to wait for.
    async fn unless_drained<T>(
        &self,
        post: &mut Post,
        stop: &CancellationToken,
        work: impl Future<Output = Result<T, Over>>,
    ) -> Result<T, Over> {
        let mut work = std::pin::pin!(work);
        let order = tokio::select! {
            biased;
            done = &mut work => return done,
            order = post.order() => order,
        };
        stop.cancel();
        if let Ok(done) = work.await {
            // It was there in that moment: who serves hears of the order.
            post.again(order);
            return Ok(done);
        }
        self.gate.absent(self.at, "drained", false);
        Err(if order.absent().await {
            Over::Stopped
        } else {
            Over::Released
        })
    }

    /// The server, from room in memory to its first answer.
    async fn started(
        &self,
        prepared: PreparedEngine,
        failed: Option<&str>,
        stop: &CancellationToken,
    ) -> Result<(Ready, Booking), Over> {
        self.gate.absent(self.at, "waiting for room in memory", false);
        let booking = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Over::Stopped),
            booking = self.memory.book(&self.gate, &prepared.need) => booking,
        };
        let Some(booking) = booking else {
            return Err(Over::Hopeless("needs more memory than engines may use here beside those that `engine up` keeps: raise `resources`, lower `context` or `concurrency`, or stop one of those with `chainette engine down --pool ID`".to_owned()));
        };
        if self.spec.launch.lazy && !self.gate.lock().is_wanted() {
            // Whoever waited has gone, or another server was quicker.
            return Err(Over::Released);
        }
        self.gate.absent(self.at, "starting", true);
        let reason = match failed {
            None => "starting".to_owned(),
            Some(why) => format!("starting again: it {why}"),
        };
        self.tell_starting(&self.events, reason);
        match self.supervisor.start(prepared, stop).await {
            Ok(ready) => Ok((ready, booking)),
            Err(_) if stop.is_cancelled() => Err(Over::Stopped),
            Err(failure) => {
                self.tell_crash(in_short(&failure), 0, &failure.log);
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

    /// All that a start needs.
    async fn prepared(&self, stop: &CancellationToken) -> Result<PreparedEngine, Over> {
        let (prepare, events) = (Arc::clone(&self.prepare), self.events.clone());
        let (engine, replica, over) = (self.gate.name().to_owned(), self.replica(), stop.clone());
        let work = tokio::task::spawn_blocking(move || {
            prepare(&|news| {
                if over.is_cancelled() {
                    return ControlFlow::Break(());
                }
                if !news.is_empty() {
                    let (engine, reason) = (engine.clone(), news.to_owned());
                    events.send(Event::EngineStarting {
                        engine,
                        replica,
                        reason,
                    });
                }
                ControlFlow::Continue(())
            })
        });
        let prepared = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Over::Stopped),
            prepared = work => prepared,
        };
        match prepared {
            Ok(Ok(prepared)) => Ok(prepared),
            Ok(Err(why)) => Err(Over::Hopeless(format!("cannot be prepared: {why}"))),
            Err(_) => Err(Over::Hopeless("cannot be prepared: a bug of ours".to_owned())),
        }
    }

    /// Watches a server that is ready, until it is not.
    async fn serve(&self, mut ready: Ready, booking: &Booking, post: &mut Post) -> Over {
        let progress = ready.progress();
        let engine = match watched(&self.spec.at(ready.url()), move || progress.seen()) {
            Ok(engine) => engine,
            Err(error) => {
                ready.stop().await;
                return Over::Hopeless(error.message);
            }
        };
        let hang = ready.hang_watch(self.in_use(), self.spec.timeout.between_bytes);
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
                    let why = if self.shares.always() { "asked for" } else { "the run is over" };
                    self.release(ready, why).await;
                    return Over::Stopped;
                }
                exit = ready.ended() => return self.ended(ready, exit.to_string(), false).await,
                order = post.order() => {
                    match self.drained(ready, order).await {
                        Drained::Stopped => return Over::Stopped,
                        Drained::Ended => return Over::Released,
                        Drained::Serves(same) => ready = *same,
                    }
                    continue;
                }
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
        self.tell_crash(why.clone(), in_flight, ready.log());
        self.tell_log(&ready.log_tail());
        if hangs {
            ready.kill().await;
        } else {
            ready.stop().await;
        }
        Over::Failed { why, explained }
    }

    pub(super) fn replica(&self) -> u32 {
        u32::try_from(self.at).unwrap_or(u32::MAX)
    }

    pub(super) fn tell_starting(&self, events: &EventSender, reason: String) {
        events.send(Event::EngineStarting {
            engine: self.gate.name().to_owned(),
            replica: self.replica(),
            reason,
        });
    }

    fn tell_crash(&self, reason: String, in_flight: usize, log: &Path) {
        self.events.send(Event::EngineCrashed {
            engine: self.gate.name().to_owned(),
            replica: self.replica(),
            reason,
            in_flight,
            log: log.display().to_string(),
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
