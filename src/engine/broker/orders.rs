//! What keepers can be told from outside: to drain their servers, all of an engine or none.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Broker;
use super::gate::Gate;
use super::keeper::Keeper;
use super::place::Health;
use crate::engine::supervise::Ready;
use crate::engine::warm::WarmFolder;
use crate::event::Event;

/// How long after its deadline the outcome of a drain is waited for, where no outcome is settled.
const LATE: Duration = Duration::from_secs(1);

/// How servers are shared with other processes.
#[derive(Clone, Debug, Default)]
pub enum Sharing {
    /// They are this run's alone.
    #[default]
    Own,
    /// Where there is a server that `engine up` keeps, that is used.
    Uses(WarmFolder),
    /// They are kept for others: started at once and whenever they end, and drained only when nobody uses them.
    Lends(WarmFolder),
}

impl Sharing {
    /// Where others' servers may be.
    pub(super) fn used(&self) -> Option<&WarmFolder> {
        match self {
            Self::Uses(folder) => Some(folder),
            Self::Own | Self::Lends(_) => None,
        }
    }

    /// True when they are kept whether or not a row waits.
    pub(super) fn always(&self) -> bool {
        matches!(self, Self::Lends(_))
    }
}

/// The wish that a server takes no more requests, and is stopped when all servers of its engine are idle.
#[derive(Debug)]
pub(super) struct Drain {
    until: Instant,
    all: Arc<Agreement>,
    done: oneshot::Sender<bool>,
}

/// Between the servers of an engine: either all become idle in time and are stopped, or none is.
#[derive(Debug)]
struct Agreement(watch::Sender<Votes>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Votes {
    /// So many are not idle yet.
    Missing(usize),
    /// All are.
    All,
    /// One was not in time.
    Failed,
}

impl Agreement {
    fn of(servers: usize) -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(match servers {
            0 => Votes::All,
            servers => Votes::Missing(servers),
        })))
    }

    /// One more is idle.
    fn is_idle(&self) {
        self.0.send_modify(|votes| {
            *votes = match *votes {
                Votes::Missing(1) => Votes::All,
                Votes::Missing(n) => Votes::Missing(n.saturating_sub(1)),
                settled => settled,
            }
        });
    }

    /// Waits until all are idle; for ever if one is not in time.
    async fn reached(&self) {
        let mut votes = self.0.subscribe();
        if votes.wait_for(|votes| *votes == Votes::All).await.is_err() {
            std::future::pending().await
        }
    }

    /// The time is over: true when the servers go on.
    fn expired(&self) -> bool {
        self.0.send_if_modified(|votes| {
            let open = matches!(votes, Votes::Missing(_));
            if open {
                *votes = Votes::Failed;
            }
            open
        });
        *self.0.borrow() == Votes::Failed
    }
}

impl Drain {
    /// For a server that is not there: it is idle. True when all were in time, and it is to stay away.
    pub(super) async fn absent(self) -> bool {
        self.all.is_idle();
        let reached = tokio::time::timeout_at(self.until, self.all.reached()).await;
        let over = reached.is_ok() || !self.all.expired();
        let _gone = self.done.send(over);
        over
    }
}

impl Keeper {
    /// Tells how many requests are in flight at the server; of those of other processes only whether there are any.
    pub(super) fn in_use(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let (gate, at) = (Arc::clone(&self.gate), self.at);
        let lent = match &self.shares {
            Sharing::Lends(folder) => Some((folder.clone(), format!("{}-{at}", gate.name()))),
            Sharing::Own | Sharing::Uses(_) => None,
        };
        move || {
            let others = lent
                .as_ref()
                .is_some_and(|(folder, label)| folder.is_leased(label));
            gate.in_flight(at).max(usize::from(others))
        }
    }

    /// Drains a server that is there.
    pub(super) async fn drained(&self, ready: Ready, order: Drain) -> Drained {
        let Drain { until, all, done } = order;
        self.gate.drain(self.at);
        self.events.send(Event::EngineDraining {
            engine: self.gate.name().to_owned(),
            replica: self.replica(),
            reason: "asked for".to_owned(),
        });
        let label = format!("{}-{}", self.gate.name(), self.replica());
        let (mut held, voted) = (None, AtomicBool::new(false));
        let draining = ready.drain();
        let idle = async {
            self.gate.quiet_at(self.at).await;
            if let Sharing::Lends(folder) = &self.shares {
                match folder.hold(&label).await {
                    // Kept until the server has ended.
                    Ok(lock) => held = Some(lock),
                    Err(error) => {
                        tracing::warn!(%error, "a lease cannot be looked at");
                        std::future::pending().await
                    }
                }
            }
            voted.store(true, Ordering::Relaxed);
            all.is_idle();
            all.reached().await;
        };
        let idle = async {
            tokio::select! {
                // Nobody is waited for any more.
                () = self.stop.cancelled() => {}
                () = idle => {}
            }
        };
        let deadline = until.saturating_duration_since(Instant::now());
        let outcome = match draining.wait(idle, deadline).await {
            Ok(stopped) => {
                if !stopped.clean {
                    tracing::warn!(engine = self.gate.name(), how = %stopped.how, "a server did not end cleanly");
                }
                if !voted.into_inner() {
                    // It ended by itself, or nobody waits for its requests any more.
                    all.is_idle();
                }
                // The others may still be at work.
                let reached = tokio::select! {
                    () = self.stop.cancelled() => true,
                    reached = tokio::time::timeout_at(until, all.reached()) => reached.is_ok(),
                };
                if reached || !all.expired() {
                    Drained::Stopped
                } else {
                    Drained::Ended
                }
            }
            Err(ready) if all.expired() => {
                self.gate.undrain(self.at);
                Drained::Serves(Box::new(ready))
            }
            Err(ready) => {
                ready.stop().await;
                Drained::Stopped
            }
        };
        drop(held);
        if !matches!(outcome, Drained::Serves(_)) {
            self.gate.absent(self.at, "drained", false);
            self.events.send(Event::EngineReleased {
                engine: self.gate.name().to_owned(),
                replica: self.replica(),
                reason: "drained".to_owned(),
            });
        }
        let _gone = done.send(matches!(outcome, Drained::Stopped));
        outcome
    }
}

/// What came of a drain.
pub(super) enum Drained {
    /// All servers of the engine are stopped, and stay so.
    Stopped,
    /// It ended by itself, and others were not in time: it is to be there again.
    Ended,
    /// One was not in time: the server goes on.
    Serves(Box<Ready>),
}

/// What reaches a keeper, and what it leaves.
#[derive(Debug)]
pub(super) struct Post {
    /// What it is told to do.
    orders: mpsc::Receiver<Drain>,
    kept: Option<Drain>,
    last: Arc<Mutex<Option<String>>>,
}

impl Post {
    /// The keeper gives up.
    pub(super) fn gives_up(&self, why: &str) {
        *locked(&self.last) = Some(why.to_owned());
    }

    /// Leaves an order for later.
    pub(super) fn again(&mut self, order: Drain) {
        self.kept = Some(order);
    }

    /// The next order; never, when there can be none.
    pub(super) async fn order(&mut self) -> Drain {
        if let Some(order) = self.kept.take() {
            return order;
        }
        match self.orders.recv().await {
            Some(order) => order,
            None => std::future::pending().await,
        }
    }
}

/// How to reach the keepers.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders(Arc<Mutex<Vec<Address>>>);

#[derive(Clone, Debug)]
struct Address {
    engine: String,
    at: usize,
    order: mpsc::Sender<Drain>,
    /// Why it gave up.
    last: Arc<Mutex<Option<String>>>,
}

impl Orders {
    /// One more keeper.
    pub(super) fn to(&self, engine: &str, at: usize) -> Post {
        let (order, orders) = mpsc::channel(1);
        let last = Arc::default();
        locked(&self.0).push(Address {
            engine: engine.to_owned(),
            at,
            order,
            last: Arc::clone(&last),
        });
        Post {
            orders,
            kept: None,
            last,
        }
    }

    /// The keepers of an engine.
    fn of(&self, engine: &str) -> Vec<Address> {
        let all = locked(&self.0);
        all.iter()
            .filter(|keeper| keeper.engine == engine)
            .cloned()
            .collect()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server of an engine, as far as its keeper is with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerView {
    /// What it is.
    pub state: ServerState,
    /// What is done about it, or why nothing is.
    pub what: Option<String>,
}

/// The state of a server that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It takes requests.
    Ready,
    /// It is being started, or waits for room.
    Starting,
    /// It takes no new requests.
    Draining,
    /// It failed, and is started again after a while.
    Failed,
    /// It cannot be started.
    Dead,
}

impl Broker {
    /// How servers are shared with other processes; before [`Broker::start`].
    #[must_use]
    pub fn with_sharing(self, shares: Sharing) -> Self {
        Self { shares, ..self }
    }

    /// Takes no new requests at an engine's servers, waits until nothing is in flight at any of them, and stops them.
    /// True when they were stopped; when one was not idle in time, all serve on.
    pub async fn drain(&self, engine: &str, deadline: Duration) -> bool {
        let mut keepers = self.orders.of(engine);
        keepers.retain(|keeper| !keeper.order.is_closed());
        let (until, all) = (Instant::now() + deadline, Agreement::of(keepers.len()));
        let mut replies = Vec::new();
        for keeper in keepers {
            let (done, reply) = oneshot::channel();
            let all = Arc::clone(&all);
            if let Err(refused) = keeper.order.try_send(Drain { until, all, done }) {
                // It has ended meanwhile; or another drain is under way, whose outcome counts.
                refused.into_inner().all.is_idle();
                continue;
            }
            replies.push(reply);
        }
        // One whose work on a start cannot be ended at once hears of it too late to agree.
        let late = async {
            tokio::time::sleep_until(until + LATE).await;
            if !all.expired() {
                std::future::pending::<()>().await;
            }
        };
        let agreed = async {
            let mut drained = true;
            for reply in replies {
                // Who ended without a word has no server any more.
                drained &= reply.await.unwrap_or(true);
            }
            drained
        };
        tokio::select! {
            biased;
            drained = agreed => drained,
            () = late => false,
        }
    }

    /// The servers of an engine, in the order of their replicas.
    pub fn servers(&self, engine: &str) -> Vec<ServerView> {
        let gate = self.gates.iter().find(|gate| gate.name() == engine);
        let mut servers = gate.map(|gate| gate.servers()).unwrap_or_default();
        for keeper in self.orders.of(engine) {
            if let (Some(server), Some(why)) = (servers.get_mut(keeper.at), locked(&keeper.last).clone()) {
                server.what = Some(why);
            }
        }
        servers
    }
}

impl Gate {
    fn servers(&self) -> Vec<ServerView> {
        let of = |health: &Health| match health {
            Health::Open | Health::Paused { .. } | Health::Down { .. } => (ServerState::Ready, None),
            Health::Draining => (ServerState::Draining, None),
            Health::Dead => (ServerState::Dead, None),
            Health::Absent { what, until, .. } => {
                let state = if until.is_some() {
                    ServerState::Failed
                } else {
                    ServerState::Starting
                };
                (state, Some(what.clone()))
            }
        };
        let state = self.lock();
        let places = state.places.iter().map(|place| of(&place.health));
        places.map(|(state, what)| ServerView { state, what }).collect()
    }
}
