//! A pool: models of one kind in this process, loaded when they are needed and let go when they are not.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::batch::{Failure, Job};
use super::capability::{Capability, LoadError, Loader, ModelError, Size};
use super::queue::{Coming, Metrics, Queue};
use super::worker::{Loaded, Told, Worker};
use crate::engine::broker::{Booking, Eviction, MemoryLedger, Resident};
use crate::engine::provision::bytes;

/// How long replies under way may take at the end.
const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at threads that are to end.
const LOOK: Duration = Duration::from_millis(5);

/// How a pool is to work.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Its name in messages.
    pub name: String,
    /// Most workers, each with a model of its own; none: as many as the model is worth.
    pub workers: Option<usize>,
    /// Requests that may wait before those who ask must.
    pub queue: usize,
    /// How long a model may take to load.
    pub load_timeout: Duration,
    /// How long a reply may take, from when a worker has the request.
    pub request_timeout: Duration,
    /// A model that was not used for so long is let go.
    pub idle_timeout: Duration,
    /// Between two looks for that.
    pub maintenance: Duration,
    /// Threads that all workers compute with, together.
    pub threads: usize,
}

impl PoolConfig {
    /// The usual numbers: as many workers as the model is worth, a queue of 64, 300 s to load, 30 min a reply, 180 s idle, all processors.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            workers: None,
            queue: 64,
            load_timeout: Duration::from_secs(300),
            request_timeout: Duration::from_secs(1800),
            idle_timeout: Duration::from_secs(180),
            maintenance: Duration::from_secs(5),
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// Why a pool gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(LoadError),
    /// The model gave no answer to this request.
    #[error(transparent)]
    Model(ModelError),
    /// The reply was not there in time.
    #[error("no reply within {0:?}")]
    Late(Duration),
    /// The pool was shut down.
    #[error("the pool was shut down")]
    Closed,
}

/// What happens to a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolNews {
    /// A worker loads its model.
    Loading {
        /// Which, from 0.
        worker: usize,
    },
    /// It has.
    Loaded {
        /// Which.
        worker: usize,
        /// How long that took.
        took: Duration,
    },
    /// The model cannot be loaded; everyone who waited has heard.
    Failed {
        /// Why.
        why: LoadError,
    },
    /// A model panicked, and is loaded anew.
    Panicked {
        /// What it said.
        why: String,
    },
    /// All models of the pool are gone.
    Released {
        /// Why.
        why: String,
    },
}

/// Who hears of it. Called now and then, never for a request; it must not block.
pub type Hear = dyn Fn(PoolNews) + Send + Sync;

/// Models of one kind. Clones share it.
pub struct Pool<C: Capability>(Arc<Inner<C>>);

impl<C: Capability> Clone for Pool<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Capability> std::fmt::Debug for Pool<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({}, {})", self.0.config.name, C::NAME)
    }
}

struct Inner<C: Capability> {
    config: PoolConfig,
    loader: Arc<dyn Loader<C>>,
    queue: Arc<Queue<C>>,
    memory: MemoryLedger,
    hear: Box<Hear>,
    stop: CancellationToken,
    /// How the ledger knows the pool.
    resident: Arc<dyn Resident>,
}

/// A pool as the memory ledger sees it.
struct Known<C: Capability> {
    name: String,
    queue: Arc<Queue<C>>,
}

impl<C: Capability> Resident for Known<C> {
    fn name(&self) -> &str {
        &self.name
    }

    fn unused_since(&self) -> Option<Instant> {
        self.queue.idle_since()
    }
}

impl<C: Capability> Pool<C> {
    /// A pool without models. [`Pool::tend`] must run for it to have any.
    pub fn new(
        config: PoolConfig,
        loader: Arc<dyn Loader<C>>,
        memory: MemoryLedger,
        hear: impl Fn(PoolNews) + Send + Sync + 'static,
    ) -> Self {
        let queue = Arc::new(Queue::new(config.queue.max(1), config.request_timeout));
        let resident = Arc::new(Known {
            name: config.name.clone(),
            queue: Arc::clone(&queue),
        });
        Self(Arc::new(Inner {
            config,
            loader,
            queue,
            memory,
            hear: Box::new(hear),
            stop: CancellationToken::new(),
            resident,
        }))
    }

    /// Asks a model. Waits for a place in the queue, for a model to be loaded, and for the answer; dropping the future takes
    /// the request back.
    ///
    /// # Errors
    /// See [`PoolError`].
    pub async fn ask(&self, request: C::Request) -> Result<C::Reply, PoolError> {
        let queue = &self.0.queue;
        let permit = Arc::clone(&queue.places).acquire_owned().await;
        let permit = permit.map_err(|_| PoolError::Closed)?;
        let ((answer, mut answered), (taken, worked_on)) = (oneshot::channel(), oneshot::channel());
        queue.push(Job {
            request: Arc::new(request),
            answer,
            taken: Some(taken),
            alone: false,
            permit: Some(permit),
        });
        let early = tokio::select! {
            biased;
            reply = &mut answered => Some(reply),
            _ = worked_on => None,
        };
        let reply = match early {
            Some(reply) => reply,
            None => {
                // The model looks at the clock too; this one is for a model that does not.
                let most = self.0.config.request_timeout + GRACE;
                let reply = tokio::time::timeout(most, answered).await;
                reply.map_err(|_| PoolError::Late(self.0.config.request_timeout))?
            }
        };
        match reply {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(Failure::Model(error))) => Err(PoolError::Model(error)),
            Ok(Err(Failure::Load(error))) => Err(PoolError::Load(error)),
            Ok(Err(Failure::Closed)) | Err(_) => Err(PoolError::Closed),
        }
    }

    /// What the pool has done so far.
    pub fn metrics(&self) -> Metrics {
        self.0.queue.metrics()
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// Whether any of its models works on requests.
    pub fn is_at_work(&self) -> bool {
        self.0.queue.is_at_work()
    }

    /// What is done about a model while requests wait and there is none: `loading its model`. None once there is one.
    pub fn absent(&self) -> Option<String> {
        let coming = self.0.queue.coming()?;
        Some(match coming {
            Coming::Prepared => self
                .0
                .loader
                .doing()
                .unwrap_or_else(|| "being prepared".to_owned()),
            Coming::Booked => "waiting for room in memory".to_owned(),
            Coming::Loaded => "loading its model".to_owned(),
        })
    }

    /// Takes no more requests, gives those under way a few seconds, and lets all models go. [`Pool::tend`] returns when
    /// that is done.
    pub fn close(&self) {
        self.0.queue.close();
        self.0.stop.cancel();
    }

    /// Looks after the pool until [`Pool::close`]: loads a model when somebody asks, more when all are at work, and lets
    /// them go when nobody does.
    pub async fn tend(&self) {
        loop {
            tokio::select! {
                biased;
                () = self.0.stop.cancelled() => return,
                () = self.0.wanted() => {}
            }
            let mut crew = Crew::new(&self.0);
            match crew.begin().await {
                Ok(()) => crew.serve().await,
                Err(Begun::Stopped) => {}
                Err(Begun::Failed(error)) => {
                    self.0.queue.fail_all(&error);
                    (self.0.hear)(PoolNews::Failed { why: error });
                }
            }
            crew.leave().await;
            if self.0.stop.is_cancelled() {
                return;
            }
        }
    }
}

impl<C: Capability> Inner<C> {
    /// Waits until a request has no worker to go to.
    async fn wanted(&self) {
        loop {
            let told = self.queue.wanted.notified();
            if self.queue.is_wanting() {
                return;
            }
            told.await;
        }
    }
}

/// Why a first worker is not there.
enum Begun {
    Stopped,
    Failed(LoadError),
}

/// The workers of a pool, from the first one's begin to the last one's end.
struct Crew<'a, C: Capability> {
    pool: &'a Inner<C>,
    size: Option<Size>,
    threads: Vec<JoinHandle<()>>,
    /// Workers whose models are there.
    ready: usize,
    evict: Option<Arc<Eviction>>,
    tell: mpsc::UnboundedSender<Told>,
    told: mpsc::UnboundedReceiver<Told>,
    /// Why it ends.
    why: String,
}

impl<'a, C: Capability> Crew<'a, C> {
    fn new(pool: &'a Inner<C>) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        pool.queue.revive();
        Self {
            pool,
            size: None,
            threads: Vec::new(),
            ready: 0,
            evict: None,
            tell,
            told,
            why: "it is over".to_owned(),
        }
    }

    /// Loads the first model: there is one such attempt at a time, and everyone who asks waits for it.
    async fn begin(&mut self) -> Result<(), Begun> {
        let loader = Arc::clone(&self.pool.loader);
        let looked = tokio::task::spawn_blocking(move || loader.size());
        let size = tokio::select! {
            biased;
            () = self.pool.stop.cancelled() => return Err(Begun::Stopped),
            size = looked => size,
        };
        self.pool.queue.is_coming(Coming::Booked);
        let bug = |_| Begun::Failed(LoadError::new("its files cannot be looked at: a bug of ours"));
        let size = size.map_err(bug)?.map_err(Begun::Failed)?;
        let booking = tokio::select! {
            biased;
            () = self.pool.stop.cancelled() => return Err(Begun::Stopped),
            booking = self.pool.memory.book(&self.pool.resident, &size.need) => booking,
        };
        let Some(booking) = booking else {
            return Err(Begun::Failed(LoadError::new(format!(
                "it needs {} of memory, and engines may use {}\n  take a smaller model or `context`, or raise `resources: {{ram}}`",
                bytes(size.need.ram),
                bytes(self.pool.memory.budget().ram)
            ))));
        };
        self.evict = Some(booking.eviction());
        self.size = Some(size);
        let loaded = self.hire(booking)?;
        let timeout = self.pool.config.load_timeout;
        let loaded = tokio::select! {
            biased;
            () = self.pool.stop.cancelled() => return Err(Begun::Stopped),
            loaded = tokio::time::timeout(timeout, loaded) => loaded,
        };
        match loaded {
            Ok(Ok(Ok(took))) => {
                self.is_ready(took);
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(Begun::Failed(error)),
            Ok(Err(_)) => Err(Begun::Failed(LoadError::new("its worker ended"))),
            Err(_) => Err(Begun::Failed(LoadError::new(format!(
                "it was not loaded within {timeout:?}\n  raise `startup_timeout`"
            )))),
        }
    }

    /// Most workers.
    fn most(&self) -> usize {
        let worth = self.size.as_ref().map_or(1, |size| size.workers);
        self.pool.config.workers.unwrap_or(worth).max(1)
    }

    fn is_ready(&mut self, took: Duration) {
        (self.pool.hear)(PoolNews::Loaded {
            worker: self.ready,
            took,
        });
        self.ready += 1;
    }

    /// One more worker.
    fn hire(&mut self, booking: Booking) -> Result<oneshot::Receiver<Result<Duration, LoadError>>, Begun> {
        let config = &self.pool.config;
        let Some(size) = self.size.clone() else {
            return Err(Begun::Stopped);
        };
        self.pool.queue.is_coming(Coming::Loaded);
        (self.pool.hear)(PoolNews::Loading {
            worker: self.threads.len(),
        });
        let worker = Worker {
            name: config.name.clone(),
            loader: Arc::clone(&self.pool.loader),
            queue: Arc::clone(&self.pool.queue),
            size,
            threads: (config.threads / self.most()).max(1),
            booking,
            told: self.tell.clone(),
        };
        let (thread, loaded) = worker
            .start()
            .map_err(|error| Begun::Failed(LoadError::new(format!("a thread cannot be started: {error}"))))?;
        self.threads.push(thread);
        Ok(loaded)
    }

    /// Looks after the workers until they are to go.
    async fn serve(&mut self) {
        let mut look = tokio::time::interval(self.pool.config.maintenance);
        let mut coming: Option<Loaded> = None;
        let mut enough = false;
        loop {
            let evict = self.evict.clone();
            let evicted = async move {
                match evict {
                    Some(evict) => evict.asked().await,
                    None => std::future::pending().await,
                }
            };
            let may_hire = coming.is_none() && !enough && self.threads.len() < self.most();
            let release = tokio::select! {
                biased;
                () = self.pool.stop.cancelled() => return,
                told = self.told.recv() => match told {
                    Some(Told::Panicked(why)) => {
                        (self.pool.hear)(PoolNews::Panicked { why });
                        continue;
                    }
                    Some(Told::Ended(error)) => {
                        self.ready = self.ready.saturating_sub(1);
                        enough = true;
                        if self.ready > 0 {
                            continue;
                        }
                        if let Some(error) = error {
                            self.pool.queue.fail_all(&error);
                            self.why = error.to_string();
                        }
                        return;
                    }
                    None => return,
                },
                loaded = async { match &mut coming {
                    Some(coming) => coming.await,
                    None => std::future::pending().await,
                }} => {
                    coming = None;
                    match loaded {
                        Ok(Ok(took)) => self.is_ready(took),
                        // The others go on without it.
                        _ => enough = true,
                    }
                    continue;
                }
                () = self.pool.wanted(), if may_hire => {
                    let booking = self.size.as_ref().and_then(|size| self.pool.memory.try_book(&self.pool.resident, &size.need));
                    match booking.map(|booking| self.hire(booking)) {
                        Some(Ok(loaded)) => coming = Some(loaded),
                        _ => enough = true,
                    }
                    continue;
                }
                by = evicted => Some(format!("makes room for {by}")),
                _ = look.tick() => {
                    let idle = self.pool.queue.idle_since().map(|since| since.elapsed());
                    idle.filter(|idle| *idle >= self.pool.config.idle_timeout).map(|_| "idle".to_owned())
                }
            };
            if let Some(why) = release
                && coming.is_none()
                && self.pool.queue.retire_if_idle()
            {
                self.why = why;
                return;
            }
        }
    }

    /// Waits for the threads to end.
    async fn leave(self) {
        let Self {
            pool, threads, why, ..
        } = self;
        pool.queue.retire();
        if threads.is_empty() {
            return;
        }
        // A thread cannot be ended from outside: one that loads gives its memory back when it is done.
        let mut until = Instant::now() + GRACE;
        while !threads.iter().all(JoinHandle::is_finished) {
            if Instant::now() >= until {
                if pool.queue.is_cut() {
                    break;
                }
                pool.queue.cut();
                until += GRACE;
            }
            tokio::time::sleep(LOOK).await;
        }
        (pool.hear)(PoolNews::Released { why });
    }
}
