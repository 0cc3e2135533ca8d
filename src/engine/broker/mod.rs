//! Lending: rows get a lease on an engine, earlier rows first, while it can take them.
//!
//! Each engine has one gate. It bounds the requests in flight, and it closes when the engine cannot
//! take work, so that an outage costs waiting time and never a row.

mod attached;
mod gate;
mod keeper;
mod launching;
mod lease;
mod memory;
mod orders;
pub mod pace;
mod place;
#[cfg(feature = "embedded")]
mod pooled;
mod queue;
pub mod rate;
pub mod stage;
mod suspects;
mod tending;

pub use keeper::Prepare;
pub use launching::preparation;
pub use lease::Lease;
#[cfg(feature = "embedded")]
pub(in crate::engine) use memory::{Booking, Eviction};
pub use memory::{Budget, MemoryLedger, Resident};
pub use orders::{ServerState, ServerView, Sharing};

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::client::adapter;
#[cfg(feature = "embedded")]
use crate::engine::embedded::{Tended, in_process};
use crate::engine::supervise::Supervisor;
use crate::engine::{SetupError, SharedEngine, Stop};
use crate::event::{EngineStats, EventSender, Exchange, Recent, Retrying, Switching};
use crate::plan::EngineIx;
use crate::spec::{Concurrency, EngineSpec};
use gate::Gate;
use keeper::Keeper;
use orders::Orders;
use pace::Pace;
use place::Place;
use rate::Rate;
use stage::Stage;

/// Requests at a model in this process: those that its workers are at, and enough that wait for them.
#[cfg(feature = "embedded")]
const WAITING: usize = 64;

/// The engines of a run. Clones share them.
#[derive(Clone, Debug)]
pub struct Broker {
    gates: Vec<Arc<Gate>>,
    events: EventSender,
    stopped: CancellationToken,
    /// Where requests are told of, if anyone wants to see them.
    recent: Option<Recent>,
    /// Rows that sleep before they are asked again.
    retrying: Arc<Mutex<Retrying>>,
    /// Which engines are loaded, where they do not all fit together.
    stage: Option<Arc<Stage>>,
    /// The servers that are ours to run.
    servers: Vec<Kept>,
    memory: MemoryLedger,
    keepers: TaskTracker,
    /// The end of the keepers.
    ended: CancellationToken,
    /// How servers are shared with other processes.
    shares: Sharing,
    orders: Orders,
    /// The models in this process.
    #[cfg(feature = "embedded")]
    pools: Vec<Arc<dyn Tended>>,
}

/// A server with its place.
#[derive(Clone)]
struct Kept {
    gate: Arc<Gate>,
    at: usize,
    spec: Arc<EngineSpec>,
    prepare: Arc<Prepare>,
}

/// What one engine is doing, for progress lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineLoad {
    /// Its name.
    pub engine: String,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that wait for a lease.
    pub waiting: usize,
    /// Requests it may have in flight.
    pub limit: usize,
    /// Rows that are parked until it is loaded.
    pub parked: u64,
    /// Why rows wait for it, while they do.
    pub cause: Option<String>,
    /// How long until it is asked again.
    pub retry_in: Option<Duration>,
    /// What is done about it while it has no server.
    pub absent: Option<String>,
    /// How long until its rate limit lets the next request go, while that is what rows wait for.
    pub limited: Option<Duration>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kept({:?}, {})", self.gate, self.at)
    }
}

impl Broker {
    /// Sets up the engines of a plan, in its order. Connects to nothing.
    ///
    /// # Errors
    /// A declaration that cannot work: no such environment variable, no valid address.
    pub fn new(specs: &[EngineSpec], events: EventSender) -> Result<Self, SetupError> {
        let mut broker = Self::empty(events);
        for spec in specs {
            broker = broker.with_spec(spec)?;
        }
        Ok(broker)
    }

    /// Adds an engine by its declaration.
    ///
    /// # Errors
    /// As for [`Broker::new`].
    pub fn with_spec(mut self, spec: &EngineSpec) -> Result<Self, SetupError> {
        let rate = Rate::new(spec.rpm, spec.tpm);
        let gate = self.gate(
            &spec.name,
            adapter(spec)?,
            spec.concurrency,
            rate,
            spec.engine_wait,
        );
        self.put(gate);
        Ok(self)
    }

    /// No engines yet.
    pub fn empty(events: EventSender) -> Self {
        Self {
            gates: Vec::new(),
            events,
            stopped: CancellationToken::new(),
            recent: None,
            retrying: Arc::default(),
            stage: None,
            servers: Vec::new(),
            memory: MemoryLedger::new(Budget::default()),
            keepers: TaskTracker::new(),
            ended: CancellationToken::new(),
            shares: Sharing::Own,
            orders: Orders::default(),
            #[cfg(feature = "embedded")]
            pools: Vec::new(),
        }
    }

    /// Books the memory of servers there.
    #[must_use]
    pub fn with_memory(self, memory: MemoryLedger) -> Self {
        Self { memory, ..self }
    }

    /// Adds an engine whose servers are ours to run, one for each of its replicas. Nothing is started before
    /// [`Broker::start`].
    ///
    /// # Errors
    /// As for [`Broker::new`].
    pub fn with_servers(mut self, spec: &EngineSpec, servers: Vec<Arc<Prepare>>) -> Result<Self, SetupError> {
        let places = servers.iter().map(|_| {
            let pace = Pace::new(spec.concurrency, None);
            Place::new(None, true, pace)
        });
        let gate = Gate::new(
            &spec.name,
            adapter(spec)?,
            places.collect(),
            Rate::new(spec.rpm, spec.tpm),
            spec.engine_wait,
            self.events.clone(),
        );
        let spec = Arc::new(spec.clone());
        let kept = servers.into_iter().enumerate().map(|(at, prepare)| Kept {
            gate: Arc::clone(&gate),
            at,
            spec: Arc::clone(&spec),
            prepare,
        });
        self.servers.extend(kept);
        self.put(gate);
        Ok(self)
    }

    /// Adds an engine whose model runs in this process. Nothing is loaded before [`Broker::start`] and a first request.
    #[cfg(feature = "embedded")]
    #[must_use]
    pub fn with_model(mut self, spec: &EngineSpec, prepare: &Arc<Prepare>) -> Self {
        let (pools, engine) = in_process(spec, prepare, &self.memory, &self.events, &self.ended);
        let concurrency = match spec.concurrency {
            // As many as are worked on at the same time, and as many that wait for them.
            Concurrency::Fixed(n) => Concurrency::Fixed(n.saturating_mul(2)),
            Concurrency::Auto => Concurrency::Fixed(WAITING),
        };
        let rate = Rate::new(None, None);
        let gate = self.gate(&spec.name, Arc::new(engine), concurrency, rate, spec.engine_wait);
        self.pools.extend(pools);
        self.put(gate);
        self
    }

    /// Begins to keep the servers: each is started when a row first waits for its engine, or at once where the engine
    /// is not `lazy`. Call it within a tokio runtime, once, and [`Broker::shutdown`] at the end.
    pub fn start(&self, supervisor: &Supervisor) {
        for kept in &self.servers {
            let keeper = Keeper {
                gate: Arc::clone(&kept.gate),
                at: kept.at,
                spec: Arc::clone(&kept.spec),
                prepare: Arc::clone(&kept.prepare),
                supervisor: supervisor.clone(),
                memory: self.memory.clone(),
                events: self.events.clone(),
                stop: self.ended.clone(),
                shares: self.shares.clone(),
            };
            let post = self.orders.to(kept.gate.name(), kept.at);
            self.keepers.spawn(keeper.run(post));
        }
        #[cfg(feature = "embedded")]
        for pool in &self.pools {
            self.keepers.spawn(pool.tend());
        }
    }

    /// Whether any server is ours to run, or any model.
    pub fn has_servers(&self) -> bool {
        #[cfg(feature = "embedded")]
        if !self.pools.is_empty() {
            return true;
        }
        !self.servers.is_empty()
    }

    /// Takes no more requests and stops every server that is ours; returns when nothing of them is left.
    pub async fn shutdown(&self) {
        self.stop();
        self.ended.cancel();
        #[cfg(feature = "embedded")]
        for pool in &self.pools {
            pool.close();
        }
        self.keepers.close();
        self.keepers.wait().await;
    }

    /// Lets every server go that nobody uses or waits for; with `force` all of them, for good, as [`Broker::shutdown`].
    pub async fn flush(&self, force: bool) {
        if force {
            self.shutdown().await;
        } else {
            self.memory.flush();
        }
    }

    /// The memory that servers have booked.
    pub fn memory(&self) -> &MemoryLedger {
        &self.memory
    }

    /// Adds an engine that the library's user made; or puts it in the place of the one of that name.
    #[must_use]
    pub fn with_engine(
        mut self,
        name: &str,
        engine: SharedEngine,
        concurrency: Concurrency,
        engine_wait: Duration,
    ) -> Self {
        let gate = self.gate(name, engine, concurrency, Rate::new(None, None), engine_wait);
        self.put(gate);
        self
    }

    /// A gate before a server that somebody else runs.
    fn gate(
        &self,
        name: &str,
        engine: SharedEngine,
        concurrency: Concurrency,
        rate: Rate,
        engine_wait: Duration,
    ) -> Arc<Gate> {
        let pace = Pace::new(concurrency, None);
        Gate::before(name, engine, (pace, rate), engine_wait, self.events.clone())
    }

    /// Adds a gate, or puts it in the place of the one of its name.
    fn put(&mut self, gate: Arc<Gate>) {
        match self.gates.iter_mut().find(|old| old.name() == gate.name()) {
            Some(old) => *old = gate,
            None => self.gates.push(gate),
        }
    }

    /// Tells of requests there.
    #[must_use]
    pub fn with_recent(mut self, recent: Option<Recent>) -> Self {
        self.recent = recent;
        self
    }

    /// Lends only engines that are loaded: a row that needs another is parked until that one is.
    #[must_use]
    pub fn with_stage(mut self, stage: Option<Arc<Stage>>) -> Self {
        self.stage = stage;
        self
    }

    /// Which engines are loaded; none where all of them fit together.
    pub fn stage(&self) -> Option<&Arc<Stage>> {
        self.stage.as_ref()
    }

    /// Tells of a request, if anyone wants to see it.
    pub(crate) fn tell(&self, engine: EngineIx, what: impl FnOnce() -> Exchange) {
        if let (Some(recent), Some(gate)) = (&self.recent, self.gates.get(engine.0)) {
            recent.push(Exchange {
                engine: gate.name().to_owned(),
                ..what()
            });
        }
    }

    /// The requests told of since the last time.
    pub(crate) fn recent(&self) -> Vec<Exchange> {
        self.recent.as_ref().map(Recent::take).unwrap_or_default()
    }

    /// The index of an engine by its name.
    pub fn index(&self, name: &str) -> Option<EngineIx> {
        self.gates
            .iter()
            .position(|gate| gate.name() == name)
            .map(EngineIx)
    }

    /// The engine itself, to prepare and render requests.
    pub fn engine(&self, engine: EngineIx) -> Option<&SharedEngine> {
        self.gates.get(engine.0).map(|gate| gate.engine())
    }

    /// Waits for a place at an engine. Dropping the lease gives it back; dropping the future leaves the queue.
    ///
    /// `digest` is that of the request: what was in flight when a server crashed is known by it.
    /// Earlier rows (ordinals of the input) go first, so that few rows wait for an earlier one to be written.
    /// A row whose request met a fault of the engine goes behind those that wait at that moment: a request that
    /// brings the engine down must not be the one that finds out, again and again, whether it is back.
    ///
    /// # Errors
    /// [`Stop`], when the run was stopped or the engine is given up; [`Stop::Parked`] while it is not loaded.
    pub async fn acquire(
        &self,
        engine: EngineIx,
        row: u64,
        faults: u32,
        digest: [u8; 32],
    ) -> Result<Lease, Stop> {
        if self.stage.as_ref().is_some_and(|stage| !stage.admits(engine)) && !self.stopped.is_cancelled() {
            return Err(Stop::Parked(engine));
        }
        match self.gates.get(engine.0) {
            Some(gate) => {
                let lease = gate.acquire(row, faults, digest).await?;
                if let Some(stage) = &self.stage {
                    stage.lent(engine);
                }
                Ok(lease)
            }
            None => Err(Stop::Interrupted),
        }
    }

    /// Takes no more requests: everyone who waits gets [`Stop::Interrupted`]; running calls go on.
    pub fn stop(&self) {
        self.stopped.cancel();
        for gate in &self.gates {
            gate.stop(Stop::Interrupted);
        }
    }

    /// Sleeps before a row is asked again, unless the run is stopped meanwhile; `reason` is why it must be.
    ///
    /// # Errors
    /// [`Stop::Interrupted`], when the run was stopped.
    pub async fn pause(&self, duration: Duration, reason: &str) -> Result<(), Stop> {
        let _counted = Sleeper::new(&self.retrying, reason);
        tokio::select! {
            () = tokio::time::sleep(duration) => Ok(()),
            () = self.stopped.cancelled() => Err(Stop::Interrupted),
        }
    }

    /// Rows that sleep before they are asked again.
    pub(crate) fn retrying(&self) -> Retrying {
        lock(&self.retrying).clone()
    }

    /// What became of the concurrency of each engine, and what models in this process did.
    pub fn paces(&self) -> Vec<EngineStats> {
        let stats = self.gates.iter().map(|gate| gate.pace());
        #[cfg(feature = "embedded")]
        let stats = stats.map(|stats| pooled::stats(&self.pools, stats));
        stats.collect()
    }

    /// What every engine is doing.
    pub fn load(&self) -> Vec<EngineLoad> {
        let loads = self.gates.iter().enumerate().map(|(ix, gate)| EngineLoad {
            parked: self.stage.as_ref().map_or(0, |stage| stage.rows(EngineIx(ix))),
            ..gate.load()
        });
        #[cfg(feature = "embedded")]
        let loads = loads.map(|load| pooled::load(&self.pools, load));
        loads.collect()
    }

    /// The engines that are being loaded in the place of others.
    pub(crate) fn switching(&self) -> Option<Switching> {
        let (to, from) = self.stage.as_ref()?.switching()?;
        let names = |engines: Vec<EngineIx>| {
            let gates = engines.into_iter().filter_map(|engine| self.gates.get(engine.0));
            gates.map(|gate| gate.name().to_owned()).collect()
        };
        Some(Switching {
            to: names(to),
            from: names(from),
        })
    }
}

/// A row that sleeps before it is asked again; counted until it is dropped.
struct Sleeper<'a>(&'a Mutex<Retrying>);

impl<'a> Sleeper<'a> {
    fn new(all: &'a Mutex<Retrying>, reason: &str) -> Self {
        let mut retrying = lock(all);
        retrying.rows += 1;
        reason.clone_into(&mut retrying.reason);
        drop(retrying);
        Self(all)
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        lock(self.0).rows -= 1;
    }
}

fn lock(retrying: &Mutex<Retrying>) -> std::sync::MutexGuard<'_, Retrying> {
    retrying.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pause after the `n`-th failure in a row (from 0): 0.5 s · 2ⁿ, at most 30 s, ± 20 %.
pub(crate) fn backoff(n: u32) -> Duration {
    let seconds = (0.5 * 2_f64.powi(n.min(10).cast_signed())).min(30.0);
    Duration::from_secs_f64(seconds * (0.8 + 0.4 * fastrand::f64()))
}
