//! The process of pools: starts their servers, keeps them, and does as commands tell it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::control::{self, Said, Wish};
use super::servers::Declared;
use crate::engine::broker::{Broker, ServerState, Sharing};
use crate::engine::warm::{Note, PoolLock, Stage, WarmFolder};
use crate::event::{Event, EventSender};

/// Between two looks at servers that start.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks for requests of runs.
const USED: Duration = Duration::from_millis(500);

/// Why servers are not there: a sentence, and what one of them wrote last.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) message: String,
    pub(super) log: Vec<String>,
}

impl Trouble {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            log: Vec::new(),
        }
    }
}

impl From<Trouble> for Said {
    fn from(Trouble { message, log }: Trouble) -> Self {
        Self::Failed { message, log }
    }
}

/// A pool of this process.
pub(super) struct Pool {
    folder: WarmFolder,
    name: String,
    events: EventSender,
    /// The last lines of its servers, as events told of them.
    logs: Arc<Mutex<BTreeMap<u32, Vec<String>>>>,
    note: Mutex<Note>,
    lock: Mutex<Option<PoolLock>>,
    /// What it keeps now; held while that changes.
    kept: tokio::sync::Mutex<Option<Kept>>,
    /// The same for whoever only looks.
    broker: Mutex<Option<Broker>>,
    /// It is to end.
    end: CancellationToken,
    /// Nothing of it is left.
    gone: CancellationToken,
}

/// Servers that are kept.
struct Kept {
    broker: Broker,
    declared: Declared,
}

impl Pool {
    /// A pool that nobody else keeps; none of its servers is started.
    ///
    /// # Errors
    /// Somebody keeps it, or its files cannot be made.
    pub(super) fn new(
        folder: &WarmFolder,
        name: &str,
        file: &Path,
        events: &EventSender,
    ) -> Result<Self, Trouble> {
        let wrong = |error: std::io::Error| Trouble::new(format!("cannot keep engine `{name}`: {error}"));
        folder.make().map_err(wrong)?;
        let lock = taken(folder, name).map_err(wrong)?.ok_or_else(|| {
            Trouble::new(format!(
                "engine `{name}` is kept by another process already; `chainette engine status` shows it"
            ))
        })?;
        let logs = Arc::<Mutex<BTreeMap<u32, Vec<String>>>>::default();
        let (told, out, own) = (Arc::clone(&logs), events.clone(), name.to_owned());
        let events = EventSender::new(move |event| {
            if let Event::EngineLog {
                engine,
                replica,
                lines,
            } = &event
                && *engine == own
            {
                locked(&told).insert(*replica, lines.clone());
            }
            out.send(event);
        });
        let pool = Self {
            folder: folder.clone(),
            name: name.to_owned(),
            events,
            logs,
            note: Mutex::new(Note::own(name, file.to_owned())),
            lock: Mutex::new(Some(lock)),
            kept: tokio::sync::Mutex::new(None),
            broker: Mutex::new(None),
            end: CancellationToken::new(),
            gone: CancellationToken::new(),
        };
        pool.write_note().map_err(wrong)?;
        Ok(pool)
    }

    /// Others are told what it will take of the machine.
    pub(super) fn books(&self, declared: &Declared) {
        self.noted(|note| declared.describe(note));
    }

    /// Starts its servers for the first time, and waits until all are ready.
    ///
    /// # Errors
    /// One was not: nothing of them is left.
    pub(super) async fn bring_up(&self, declared: Declared) -> Result<(), Trouble> {
        let mut kept = self.kept.lock().await;
        match self.started(&declared).await {
            Ok(broker) => {
                *locked(&self.broker) = Some(broker.clone());
                *kept = Some(Kept { broker, declared });
                self.noted(|note| note.stage = Stage::Up);
                Ok(())
            }
            Err(trouble) => {
                self.remove();
                Err(trouble)
            }
        }
    }

    /// Does as commands say until it is told to end; then nothing of it is left but logs.
    pub(super) async fn serve(self: &Arc<Self>, listener: &UnixListener, idle: Option<Duration>) {
        let mut unused = std::pin::pin!(self.unused(idle));
        loop {
            let connection = tokio::select! {
                biased;
                () = self.end.cancelled() => break,
                () = &mut unused => {
                    self.events.send(Event::EngineReleased {
                        engine: self.name.clone(),
                        replica: 0,
                        reason: "idle".to_owned(),
                    });
                    break;
                }
                accepted = listener.accept() => accepted,
            };
            let Ok((connection, _)) = connection else {
                // Out of file descriptors, say: later.
                sleep(USED).await;
                continue;
            };
            let pool = Arc::clone(self);
            tokio::spawn(async move {
                if let Some(wish) = control::wish(&connection).await {
                    let said = pool.does(wish).await;
                    control::say(&connection, &said).await;
                    if pool.gone.is_cancelled() {
                        pool.end.cancel();
                    }
                }
            });
        }
        self.down().await;
    }

    /// Is to end: the servers are stopped whoever uses them.
    pub(super) fn end(&self) {
        self.end.cancel();
    }

    /// True once it is to end.
    pub(super) fn is_ending(&self) -> bool {
        self.end.is_cancelled()
    }

    async fn does(&self, wish: Wish) -> Said {
        match wish {
            Wish::Status => self.status(),
            Wish::Down => {
                self.down().await;
                Said::Done
            }
            Wish::Drain { deadline } => self
                .drain(deadline)
                .await
                .map_or_else(Said::from, |()| Said::Done),
            Wish::Reload { deadline, file } => {
                let done = self.reload(deadline, file).await;
                done.map_or_else(Said::from, |()| Said::Done)
            }
        }
    }

    fn status(&self) -> Said {
        let broker = locked(&self.broker).clone();
        let kept = broker
            .map(|broker| broker.servers(&self.name))
            .unwrap_or_default();
        let servers = kept
            .into_iter()
            .map(|server| (word(server.state).to_owned(), server.what));
        Said::Status {
            servers: servers.collect(),
        }
    }

    /// Stops everything, whatever is under way.
    async fn down(&self) {
        self.noted(|note| note.stage = Stage::Ending);
        // Before the lock of `kept`: a drain under way has that, and ends by this.
        let broker = locked(&self.broker).take();
        if let Some(broker) = broker {
            broker.shutdown().await;
        }
        self.end.cancel();
        // A reload may have started others meanwhile.
        if let Some(kept) = self.kept.lock().await.take() {
            kept.broker.shutdown().await;
        }
        self.remove();
    }

    /// Stops its servers when nobody uses them.
    async fn drain(&self, deadline: Duration) -> Result<(), Trouble> {
        let mut held = self.kept.try_lock().map_err(|_| busy(&self.name))?;
        let kept = held.as_ref().ok_or_else(|| ending(&self.name))?;
        self.noted(|note| note.stage = Stage::Ending);
        if !kept.broker.drain(&self.name, deadline).await {
            self.noted(|note| note.stage = Stage::Up);
            return Err(not_in_time(&self.name, deadline));
        }
        if let Some(kept) = held.take() {
            kept.broker.shutdown().await;
        }
        locked(&self.broker).take();
        self.remove();
        Ok(())
    }

    /// Puts others in the place of its servers; the old ones again when those do not start.
    async fn reload(&self, deadline: Duration, file: Option<PathBuf>) -> Result<(), Trouble> {
        let mut held = self.kept.try_lock().map_err(|_| busy(&self.name))?;
        let kept = held.as_ref().ok_or_else(|| ending(&self.name))?;
        let old = kept.declared.clone();
        let (folder, name, before) = (self.folder.clone(), self.name.clone(), old.clone());
        let events = self.events.clone();
        let new = tokio::task::spawn_blocking(move || match file {
            Some(file) => Declared::read(&file, &name, &folder, &events),
            None => Ok(before),
        });
        let new = new
            .await
            .unwrap_or_else(|_| Err(Trouble::new("a bug of ours")))
            .map_err(|trouble| Trouble {
                message: format!("{}; the servers there are serve on", trouble.message),
                ..trouble
            })?;
        self.noted(|note| {
            new.describe(note);
            note.stage = Stage::Reloading;
        });
        if !kept.broker.drain(&self.name, deadline).await {
            self.noted(|note| {
                old.describe(note);
                note.stage = Stage::Up;
            });
            return Err(not_in_time(&self.name, deadline));
        }
        kept.broker.shutdown().await;
        *held = None;
        let failed = match self.started(&new).await {
            Ok(broker) => {
                self.keeps(&mut held, broker, new);
                return Ok(());
            }
            Err(failed) => failed,
        };
        self.noted(|note| old.describe(note));
        match self.started(&old).await {
            Ok(broker) => {
                self.keeps(&mut held, broker, old);
                Err(Trouble {
                    message: format!("{}; the servers as they were before are up again", failed.message),
                    ..failed
                })
            }
            Err(again) => {
                self.remove();
                Err(Trouble {
                    message: format!(
                        "{}; and as they were before, they do not start any more: {}; the pool is down",
                        failed.message, again.message
                    ),
                    ..failed
                })
            }
        }
    }

    fn keeps(&self, held: &mut Option<Kept>, broker: Broker, declared: Declared) {
        *locked(&self.broker) = Some(broker.clone());
        *held = Some(Kept { broker, declared });
        self.noted(|note| note.stage = Stage::Up);
    }

    /// Starts servers and waits until all are ready. When one is not, nothing of them is left.
    async fn started(&self, declared: &Declared) -> Result<Broker, Trouble> {
        locked(&self.logs).clear();
        let broker = declared
            .broker(self.events.clone())
            .map_err(|error| Trouble::new(error.to_string()))?
            .with_sharing(Sharing::Lends(self.folder.clone()));
        broker.start(&self.folder.supervisor(self.events.clone()));
        let outcome = loop {
            tokio::select! {
                () = self.end.cancelled() => break Err(Trouble::new(format!(
                    "engine `{}` was told to end before it was up",
                    self.name
                ))),
                () = sleep(LOOK) => {}
            }
            let kept = broker.servers(&self.name);
            let failed = kept
                .iter()
                .zip(0_u32..)
                .find(|(server, _)| matches!(server.state, ServerState::Failed | ServerState::Dead));
            if let Some((server, replica)) = failed {
                let why = server.what.as_deref().unwrap_or("did not start");
                // The log comes beside it.
                let why = why.split("\n  the end of its log").next().unwrap_or(why);
                let message = format!("server {replica} of engine `{}` {why}", self.name);
                let log = locked(&self.logs).get(&replica).cloned().unwrap_or_default();
                break Err(Trouble { message, log });
            }
            if kept.iter().all(|server| server.state == ServerState::Ready) {
                break Ok(());
            }
        };
        if let Err(trouble) = outcome {
            broker.shutdown().await;
            return Err(trouble);
        }
        Ok(broker)
    }

    /// Resolves when no run has used its servers for so long.
    async fn unused(&self, idle: Option<Duration>) {
        let Some(idle) = idle else {
            return std::future::pending().await;
        };
        let mut used = Instant::now();
        loop {
            sleep(USED.min(idle)).await;
            let Note { replicas, stage, .. } = locked(&self.note).clone();
            if stage != Stage::Up {
                // Nobody can use it.
                used = Instant::now();
                continue;
            }
            let (folder, name) = (self.folder.clone(), self.name.clone());
            let busy = tokio::task::spawn_blocking(move || {
                (0..replicas).any(|replica| folder.is_leased(&format!("{name}-{replica}")))
            });
            if busy.await.unwrap_or(true) {
                used = Instant::now();
            } else if used.elapsed() >= idle {
                return;
            }
        }
    }

    /// Changes what is said of it to others.
    fn noted(&self, change: impl FnOnce(&mut Note)) {
        change(&mut locked(&self.note));
        if locked(&self.lock).is_some()
            && let Err(error) = self.write_note()
        {
            tracing::warn!(%error, "a note cannot be written");
        }
    }

    fn write_note(&self) -> std::io::Result<()> {
        let note = locked(&self.note).clone();
        self.folder.write_note(&note)
    }

    /// Nothing is left but logs.
    pub(super) fn remove(&self) {
        if let Some(lock) = locked(&self.lock).take() {
            self.folder.remove_files_of(&lock, &self.name);
        }
        self.gone.cancel();
    }
}

/// The lock of a pool. Whoever cleans up may have it for an instant.
fn taken(folder: &WarmFolder, name: &str) -> std::io::Result<Option<PoolLock>> {
    for _ in 0..50 {
        if let Some(lock) = folder.lock(name)? {
            return Ok(Some(lock));
        }
        if folder.note(name).is_some() {
            break;
        }
        std::thread::sleep(LOOK);
    }
    Ok(None)
}

fn busy(name: &str) -> Trouble {
    Trouble::new(format!(
        "engine `{name}` is being started, drained or reloaded already; try again when that is over"
    ))
}

fn ending(name: &str) -> Trouble {
    Trouble::new(format!("engine `{name}` is being stopped"))
}

fn not_in_time(name: &str, deadline: Duration) -> Trouble {
    Trouble::new(format!(
        "engine `{name}` still has requests in flight after {}; it serves on: try again with a longer `--deadline`, or \
         stop it with `chainette engine down --pool {name}`",
        crate::report::duration(deadline.as_secs_f64())
    ))
}

/// The word for a state.
fn word(state: ServerState) -> &'static str {
    match state {
        ServerState::Ready => "ready",
        ServerState::Starting => "starting",
        ServerState::Draining => "draining",
        ServerState::Failed | ServerState::Dead => "failed",
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
