//! The pools of a program that uses this library.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;

use super::capability::{Capability, Loader};
use super::pool::{Pool, PoolConfig, PoolNews};
use super::queue::Metrics;
use crate::engine::broker::{Budget, MemoryLedger};
use crate::engine::provision::Machine;
use crate::spec::Resources;

/// Pools that share the memory of a machine.
///
/// ```no_run
/// use std::sync::Arc;
/// use chainette::engine::Message;
/// use chainette::engine::embedded::{Generate, GgufText, PoolConfig, Pools, TextGenerator};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let pools = Pools::new();
/// let writer = pools.add::<TextGenerator>(
///     PoolConfig::new("writer"),
///     Arc::new(GgufText::new("examples/models/reviews.gguf")),
/// );
/// pools.start();
/// let reply = writer
///     .ask(Generate {
///         messages: vec![Message::user("Review: It broke after two days.")],
///         ..Generate::default()
///     })
///     .await?;
/// println!("{}", reply.text);
/// pools.shutdown().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pools(Arc<Inner>);

struct Inner {
    memory: MemoryLedger,
    tasks: TaskTracker,
    /// Pools, and whether they are looked after already.
    all: Mutex<Vec<(Box<dyn Tended>, bool)>>,
}

/// A pool, whatever it is for.
pub(in crate::engine) trait Tended: Send + Sync {
    /// See [`Pool::tend`].
    fn tend(&self) -> BoxFuture<'static, ()>;
    /// See [`Pool::close`].
    fn close(&self);
    /// See [`Pool::name`]: that of its engine.
    fn name(&self) -> &str;
    /// See [`Pool::is_at_work`].
    fn is_at_work(&self) -> bool;
    /// See [`Pool::absent`].
    fn absent(&self) -> Option<String>;
    /// See [`Pool::metrics`].
    fn metrics(&self) -> Metrics;
}

impl std::fmt::Debug for dyn Tended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tended")
    }
}

impl<C: Capability> Tended for Pool<C> {
    fn tend(&self) -> BoxFuture<'static, ()> {
        let pool = self.clone();
        Box::pin(async move { pool.tend().await })
    }

    fn close(&self) {
        Pool::close(self);
    }

    fn name(&self) -> &str {
        Pool::name(self)
    }

    fn is_at_work(&self) -> bool {
        Pool::is_at_work(self)
    }

    fn absent(&self) -> Option<String> {
        Pool::absent(self)
    }

    fn metrics(&self) -> Metrics {
        Pool::metrics(self)
    }
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pools")
    }
}

impl Default for Pools {
    fn default() -> Self {
        Self::new()
    }
}

impl Pools {
    /// No pools yet, which may take 80 % of the machine's memory together, or of the cgroup's.
    pub fn new() -> Self {
        Self::within(Budget::of(&Machine::look(), &Resources::default()))
    }

    /// The same, with so much memory.
    pub fn within(budget: Budget) -> Self {
        Self(Arc::new(Inner {
            memory: MemoryLedger::new(budget),
            tasks: TaskTracker::new(),
            all: Mutex::default(),
        }))
    }

    /// Adds a pool. It answers once [`Pools::start`] was called after that; requests may come before.
    pub fn add<C: Capability>(&self, config: PoolConfig, loader: Arc<dyn Loader<C>>) -> Pool<C> {
        self.add_heard(config, loader, |_| {})
    }

    /// The same, with someone who hears what happens to it.
    pub fn add_heard<C: Capability>(
        &self,
        config: PoolConfig,
        loader: Arc<dyn Loader<C>>,
        hear: impl Fn(PoolNews) + Send + Sync + 'static,
    ) -> Pool<C> {
        let pool = Pool::new(config, loader, self.0.memory.clone(), hear);
        let mut all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((Box::new(pool.clone()), false));
        pool
    }

    /// Begins to look after the pools there are. Call it within a tokio runtime.
    pub fn start(&self) {
        let mut all = self.0.all.lock().unwrap_or_else(PoisonError::into_inner);
        for (pool, tended) in all.iter_mut().filter(|(_, tended)| !tended) {
            *tended = true;
            self.0.tasks.spawn(pool.tend());
        }
    }

    /// Memory that the models have booked.
    pub fn memory(&self) -> &MemoryLedger {
        &self.0.memory
    }

    /// Takes no more requests, gives replies under way a few seconds, and lets all models go.
    pub async fn shutdown(&self) {
        for (pool, _) in self.0.all.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            pool.close();
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}
