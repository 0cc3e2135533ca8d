//! A place at a server, lent for one request.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::gate::Gate;
use super::rate::Ticket;
use super::suspects::Who;
use crate::engine::{BROKEN, CallError, Pressure, Rendered, Reply, SharedEngine};
use crate::row::ErrorKind;

/// How long a broken connection waits for the news that the server has ended.
const NEWS: Duration = Duration::from_secs(2);

/// A place at an engine. Dropping it gives the place back.
pub struct Lease {
    pub(super) gate: Arc<Gate>,
    /// Which server.
    pub(super) at: usize,
    pub(super) id: u64,
    pub(super) engine: SharedEngine,
    /// Whoever runs the server tells when it ends.
    pub(super) supervised: bool,
    pub(super) epoch: u64,
    /// Changes when the server ends.
    pub(super) life: watch::Receiver<u64>,
    pub(super) probe: bool,
    /// What the rate took it for.
    pub(super) ticket: Mutex<Option<Ticket>>,
}

impl Lease {
    /// Calls the engine once and tells the gate what came of it.
    ///
    /// After [`CallError::Engine`] the row asks the broker for a new lease: that waits as long as the
    /// engine needs. After [`CallError::Fatal`] the broker has given the engine up, and says so there.
    pub async fn call(&self, rendered: &Rendered, turn: u32) -> Result<Reply, CallError> {
        let who = rendered.digest;
        let start = Instant::now();
        if !self.supervised {
            let result = self.engine.call(rendered, turn).await;
            self.gate.report(self, &who, start.elapsed(), &result);
            return result;
        }
        if self.gate.is_condemned(&who) {
            return Err(condemned());
        }
        let flying = Flying::new(self, who);
        let mut result = self.engine.call(rendered, turn).await;
        if matches!(&result, Err(CallError::Transport { kind: ErrorKind::Http, message }) if message == BROKEN)
            && self.has_ended().await
        {
            result = Err(match self.gate.is_condemned(&who) {
                true => condemned(),
                false => CallError::Engine {
                    message: "the server ended while it answered".to_owned(),
                    retry_after: None,
                    pressure: Pressure::Down,
                },
            });
        }
        drop(flying);
        self.gate.report(self, &who, start.elapsed(), &result);
        result
    }

    /// What the rate took the request for, once.
    pub(super) fn take_ticket(&self) -> Option<Ticket> {
        self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// True when the server has ended, or does so within a moment.
    async fn has_ended(&self) -> bool {
        let mut life = self.life.clone();
        matches!(tokio::time::timeout(NEWS, life.changed()).await, Ok(Ok(())))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let gate = Arc::clone(&self.gate);
        gate.give_back(self);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({:?}, server {})", self.gate, self.at)
    }
}

/// What becomes of a request that brings servers down.
fn condemned() -> CallError {
    CallError::Refused {
        kind: ErrorKind::EngineCrash,
        message: "the request brought the engine down twice while nothing else was in flight".to_owned(),
    }
}

/// A request under way at a supervised server.
struct Flying<'a>(&'a Lease);

impl<'a> Flying<'a> {
    fn new(lease: &'a Lease, who: Who) -> Self {
        lease.gate.takes_off(lease.at, lease.id, who);
        Self(lease)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.gate.lands(self.0.at, self.0.id);
    }
}
