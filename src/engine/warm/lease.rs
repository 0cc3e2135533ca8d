//! A run's lease on a warm server: a shared lock while it has requests in flight there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fs_err::File;

use super::folder::{WarmFolder, open_to_lock};
use crate::engine::supervise::Handoff;

/// Whoever only looks whether a lease is out has it for an instant: this often it is tried again.
const TRIES: u32 = 10;
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(3);

/// What this process may have in flight at one warm server. Clones share it.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: WarmFolder,
    server: Handoff,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    requests: usize,
    /// The shared lock; held while there are requests.
    file: Option<File>,
}

/// A request in flight.
#[derive(Debug)]
pub struct Leased(Lease);

impl Lease {
    /// Of a server as it was found.
    pub fn of(folder: &WarmFolder, server: &Handoff) -> Self {
        Self(Arc::new(Shared {
            folder: folder.clone(),
            server: server.clone(),
            state: Mutex::default(),
        }))
    }

    /// Asks to have one more request in flight; none when the server takes no more, or is gone.
    pub async fn enter(&self) -> Option<Leased> {
        for _ in 0..TRIES {
            match self.try_enter() {
                Ok(leased) => return leased,
                Err(Held) => tokio::time::sleep(AGAIN).await,
            }
        }
        None
    }

    fn try_enter(&self) -> Result<Option<Leased>, Held> {
        let mut state = self.state();
        if state.requests == 0 {
            let Some(file) = self.lock()? else { return Ok(None) };
            // The other way round a drain could begin between the look and the lock.
            if self.0.folder.still(&self.0.server).is_none_or(|now| now.draining) {
                return Ok(None);
            }
            state.file = Some(file);
        }
        state.requests += 1;
        Ok(Some(Leased(self.clone())))
    }

    /// The shared lock; none when there can be none.
    fn lock(&self) -> Result<Option<File>, Held> {
        let server = &self.0.server;
        let label = format!("{}-{}", server.pool_id, server.replica_id);
        let file = self.0.folder.file(&label, "lease");
        let Ok(file) = file.and_then(|path| open_to_lock(&path)) else {
            return Ok(None);
        };
        match file.file().try_lock_shared() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(Held),
            Err(std::fs::TryLockError::Error(_)) => Ok(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody has the exclusive lock.
struct Held;

impl Drop for Leased {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests = state.requests.saturating_sub(1);
        if state.requests == 0 {
            state.file = None;
        }
    }
}
