//! `engine up` in the process that keeps the pools: with `--foreground` the one that was called, else one for each pool.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::control::listen;
use super::pool::{Pool, Trouble};
use super::servers::Declared;
use crate::engine::warm::WarmFolder;
use crate::event::EventSender;
use crate::run::Signals;

/// What is to be kept.
pub(super) struct Keeping {
    pub(super) folder: WarmFolder,
    /// The file that declares the pools, absolute.
    pub(super) file: PathBuf,
    pub(super) pools: Vec<String>,
    /// Servers that no run has used for so long are stopped.
    pub(super) idle: Option<Duration>,
    pub(super) events: EventSender,
}

/// Somebody who is told how far it is.
pub(super) trait Told: Sync {
    /// All pools have their room in memory.
    fn booked(&self) {}
    /// All servers are ready.
    fn up(&self);
}

/// Ends everything, from anywhere.
#[derive(Clone, Debug)]
pub(super) struct End(CancellationToken);

impl End {
    /// Ends at Ctrl-C and SIGTERM; the second one ends the program at once, and the guards end the servers.
    ///
    /// # Errors
    /// The system refuses a handler.
    pub(super) fn at_signals() -> std::io::Result<Self> {
        let end = Self(CancellationToken::new());
        let (own, again) = (end.clone(), AtomicBool::new(false));
        Signals::catch(move |_| {
            own.now();
            if again.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })?;
        Ok(end)
    }

    /// Ends it.
    pub(super) fn now(&self) {
        self.0.cancel();
    }
}

/// Starts the servers of all pools and keeps them until `end`, or until commands stopped them all. Nothing of them is
/// left then.
///
/// # Errors
/// One was not ready: then none is left. Being told to end before is no error.
pub(super) fn keep(keeping: Keeping, end: &End, told: &dyn Told) -> Result<(), Trouble> {
    let runtime = runtime()?;
    let kept = runtime.block_on(kept(keeping, end, told));
    runtime.shutdown_background();
    kept
}

async fn kept(keeping: Keeping, end: &End, told: &dyn Told) -> Result<(), Trouble> {
    let mut pools = Vec::new();
    let mut failed = None;
    for name in &keeping.pools {
        match booked(&keeping, name).await {
            Ok(pool) => pools.push(pool),
            Err(trouble) => {
                failed = Some(trouble);
                break;
            }
        }
    }
    let serving = pools.iter().map(|(pool, _, listener)| {
        let (pool, listener) = (Arc::clone(pool), Arc::clone(listener));
        let idle = keeping.idle;
        tokio::spawn(async move { pool.serve(&listener, idle).await })
    });
    let serving: Vec<_> = serving.collect();
    let all: Vec<Arc<Pool>> = pools.iter().map(|(pool, ..)| Arc::clone(pool)).collect();
    let ended = end.0.clone();
    let own = all.clone();
    let ending = tokio::spawn(async move {
        ended.cancelled().await;
        own.iter().for_each(|pool| pool.end());
    });
    if failed.is_none() {
        told.booked();
        let starting = pools
            .iter()
            .map(|(pool, declared, _)| pool.bring_up(declared.clone()));
        let (failures, stopped) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        // To its end for each of them, so that nothing of the others is left either.
        let starting = starting.zip(&all).map(async |(starts, pool)| match starts.await {
            Err(trouble) if pool.is_ending() => locked(&stopped).push(trouble),
            Err(trouble) => {
                locked(&failures).push(trouble);
                all.iter().for_each(|pool| pool.end());
            }
            Ok(()) => {}
        });
        join_all(starting).await;
        failed = locked(&failures).pop();
        if failed.is_none() && !end.0.is_cancelled() {
            // Commands stopped some of them; that is a failure where none is left.
            match locked(&stopped).pop_if(|_| all.iter().all(|pool| pool.is_ending())) {
                Some(trouble) => failed = Some(trouble),
                None => told.up(),
            }
        }
    }
    if failed.is_some() {
        end.now();
        all.iter().for_each(|pool| pool.end());
    }
    join_all(serving).await;
    ending.abort();
    failed.map_or(Ok(()), Err)
}

type Booked = (Arc<Pool>, Declared, Arc<tokio::net::UnixListener>);

/// A pool with its room in memory, and its socket.
async fn booked(keeping: &Keeping, name: &str) -> Result<Booked, Trouble> {
    let pool = Pool::new(&keeping.folder, name, &keeping.file, &keeping.events)?;
    let (file, own, folder) = (keeping.file.clone(), name.to_owned(), keeping.folder.clone());
    let events = keeping.events.clone();
    let read = tokio::task::spawn_blocking(move || Declared::read(&file, &own, &folder, &events)).await;
    let declared = read.unwrap_or_else(|_| Err(Trouble::new("a bug of ours")));
    let listener = listen(&keeping.folder, name)
        .map_err(|error| Trouble::new(format!("cannot listen to commands for engine `{name}`: {error}")));
    match declared.and_then(|declared| Ok((declared, listener?))) {
        Ok((declared, listener)) => {
            pool.books(&declared);
            Ok((Arc::new(pool), declared, Arc::new(listener)))
        }
        Err(trouble) => {
            pool.remove();
            Err(trouble)
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime() -> Result<Runtime, Trouble> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build();
    runtime.map_err(|error| Trouble::new(format!("cannot start: {error}")))
}
