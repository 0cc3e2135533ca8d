//! Starting a server: spawned, waited for, handed on.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::ask::{About, Ask};
use super::failed::{Cause, Failed, advice, says_taken};
use super::files::{Files, private_folder, replace};
use super::guard::{self, Guarded, Order};
use super::log::Log;
use super::processes::Process;
use super::readiness::{Waiting, over};
use super::ready::{Parts, Ready};
use super::sweep::{Found, Running, Swept, clear, running, sweep};
use super::{Handoff, Model, Policy, Progress};
use crate::engine::provision::{Mode, PreparedEngine};
use crate::event::{Event, EventSender};
use crate::spec::Backend;

/// Starts servers, keeps their files in one folder, and leaves nothing behind. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Supervisor {
    folder: PathBuf,
    policy: Policy,
    program: PathBuf,
    events: EventSender,
    /// Servers that were ready once, by name and digest.
    lived: Arc<Mutex<HashSet<String>>>,
}

impl Supervisor {
    /// Keeps the files of its servers in `folder`, which is made, for us alone, when the first one is started.
    ///
    /// Every server runs under a guard process. Guards are started from `$CHAINETTE_GUARD`; else from this program,
    /// if it is `chainette` or called [`guard_main`](super::guard_main) first in its `main`; else from the `chainette`
    /// beside it, one folder up, or on PATH.
    pub fn new(folder: impl Into<PathBuf>, policy: Policy, events: EventSender) -> Self {
        let folder = folder.into();
        Self {
            // Guards and later commands may work in another directory.
            folder: std::path::absolute(&folder).unwrap_or(folder),
            policy,
            program: guard::program(),
            events,
            lived: Arc::default(),
        }
    }

    /// Starts guards from another program.
    pub fn with_guard(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    /// Where the files of its servers are; absolute.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The numbers.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Cleans up what others left in the folder: files of servers that are gone, and processes of servers whose guard is
    /// gone. Servers that somebody keeps are left alone, and so are another user's files. Blocks for as long as a guard
    /// whose owner died may need to end its server.
    ///
    /// # Errors
    /// The folder cannot be read, or is another user's. No folder is no error.
    pub fn sweep(&self) -> io::Result<Vec<Swept>> {
        sweep(&self.folder, &self.policy)
    }

    /// The servers in the folder that live, under a guard that lives.
    ///
    /// # Errors
    /// As [`Supervisor::sweep`].
    pub fn running(&self) -> io::Result<Vec<Running>> {
        running(&self.folder)
    }

    /// Starts a server and waits until it is ready, at most `startup_timeout`. When its port is taken it is started
    /// again on another one, `port_tries` times. If this is dropped, or the token cancelled, the server is ended.
    ///
    /// # Errors
    /// It ended, was not ready in time, or could not be started; then nothing of it is left but its log.
    pub async fn start(&self, prepared: PreparedEngine, cancel: &CancellationToken) -> Result<Ready, Failed> {
        let mut prepared = prepared;
        let mut tries = 1;
        loop {
            let port = prepared.port;
            let trouble = match self.attempt(&mut prepared, cancel).await {
                Ok(ready) => return Ok(ready),
                Err(trouble) => trouble,
            };
            let taken = matches!(trouble.cause, Cause::PortTaken { .. });
            let other = (taken && tries <= self.policy.port_tries).then(|| free_port(&prepared.host));
            let Some(Ok(other)) = other else {
                return Err(self.failed(&prepared, trouble, tries));
            };
            self.events.send(Event::EngineStarting {
                engine: prepared.engine.clone(),
                replica: prepared.replica,
                reason: format!("port {port} is taken by another program; on port {other}"),
            });
            prepared.port = other;
            tries += 1;
        }
    }

    /// One start, on one port. What it started is gone when it fails.
    async fn attempt(
        &self,
        prepared: &mut PreparedEngine,
        cancel: &CancellationToken,
    ) -> Result<Ready, Trouble> {
        let files = self.room_for(prepared).await?;
        let begun = Instant::now();
        if prepared.port == 0 {
            prepared.port =
                free_port(&prepared.host).map_err(|error| Trouble::new(Cause::Files(error.to_string())))?;
        } else if is_taken(&prepared.host, prepared.port) {
            return Err(Trouble::taken(prepared.port));
        }
        let ask = Ask::new(prepared).map_err(|why| Trouble::new(Cause::NotStarted(why)))?;
        let order = self.order(prepared, &files)?;
        let log = Log::from_here(&files.log, prepared);
        let guarded = Guarded::start(&self.program, order).map_err(|error| {
            let program = self.program.display();
            Trouble::new(Cause::Guard(format!("`{program}` does not start: {error}")))
        })?;
        let mut life = guarded.life();
        let waiting = Waiting {
            prepared,
            policy: &self.policy,
            guarded: &guarded,
            ask: &ask,
            program: &self.program,
        };
        let deadline = begun + prepared.startup_timeout;
        let mut last = "nobody listened on its port".to_owned();
        let outcome = tokio::select! {
            biased;
            cause = over(&mut life) => Err(cause),
            () = cancel.cancelled() => Err(Cause::Cancelled),
            ready = waiting.ready(&mut last) => ready,
            () = sleep_until(deadline) => {
                // `last` is borrowed by the arm above; it is put in below.
                Err(Cause::Late { waited: prepared.startup_timeout, last: String::new() })
            }
        };
        let outcome = match outcome {
            Ok((server, about)) => self
                .hand_over(prepared, server, about, &files)
                .map(|handoff| (server, handoff)),
            Err(cause) => Err(cause),
        };
        match outcome {
            Ok((server, handoff)) => Ok(Ready::new(Parts {
                guarded,
                life,
                server,
                handoff,
                files,
                log,
                ask,
                policy: self.policy.clone(),
                progress: Progress::default(),
            })),
            Err(cause) => {
                guarded.stop().await;
                let lines = log.tail(self.policy.log_tail);
                let cause = match cause {
                    Cause::Late { waited, .. } => Cause::Late { waited, last },
                    Cause::Ended(_) if says_taken(&lines) => {
                        return Err(Trouble {
                            lines,
                            ..Trouble::taken(prepared.port)
                        });
                    }
                    cause => cause,
                };
                let early = begun.elapsed() < self.policy.stillborn;
                let by_itself = matches!(cause, Cause::Ended(_) | Cause::NotStarted(_));
                Err(Trouble {
                    stillborn: early && by_itself && !self.lived(prepared),
                    cause,
                    lines,
                })
            }
        }
    }

    /// Makes the folder, and room in it for this server's files.
    async fn room_for(&self, prepared: &PreparedEngine) -> Result<Files, Trouble> {
        let (folder, label) = (self.folder.clone(), prepared.label());
        let policy = self.policy.clone();
        let cleared = tokio::task::spawn_blocking(move || {
            private_folder(&folder)?;
            let files = Files::new(&folder, &label)?;
            let found = clear(&files, &policy)?;
            io::Result::Ok((files, found))
        });
        let wrong = |error: &dyn std::fmt::Display| Trouble::new(Cause::Files(error.to_string()));
        match cleared
            .await
            .map_err(|error| wrong(&error))?
            .map_err(|error| wrong(&error))?
        {
            (_, Found::Kept { guard, owner }) => Err(Trouble::new(Cause::Busy { pid: guard, owner })),
            (files, Found::Nothing | Found::Swept(_)) => Ok(files),
        }
    }

    fn order(&self, prepared: &PreparedEngine, files: &Files) -> Result<Order, Trouble> {
        let binary = prepared.binary.clone().filter(|_| prepared.mode == Mode::Binary);
        let binary = binary.ok_or_else(|| {
            Trouble::new(Cause::NotStarted(
                "it has an `endpoint`, and is somebody else's to start".to_owned(),
            ))
        })?;
        Ok(Order {
            version: guard::VERSION,
            nonce: format!("{:032x}", fastrand::u128(..)),
            binary,
            arguments: prepared.arguments(),
            env: prepared.environment(),
            files: files.clone(),
            owner: Process::me(),
            first_term: self.policy.first_term,
            second_term: self.policy.second_term,
            log_most: self.policy.log_most,
        })
    }

    /// Writes the handoff of a server that is ready.
    fn hand_over(
        &self,
        prepared: &PreparedEngine,
        server: Process,
        about: About,
        files: &Files,
    ) -> Result<Handoff, Cause> {
        let handoff = Handoff {
            engine: prepared.backend.clone(),
            engine_version: about.version,
            provisioning_mode: prepared.mode,
            url: prepared.url(),
            pool_id: prepared.engine.clone(),
            replica_id: prepared.replica,
            model: Model {
                id: prepared.model_id.clone(),
                path: prepared.model_path.clone(),
                digest: prepared.model_digest.clone(),
            },
            flags: [prepared.lead.as_slice(), prepared.flags.as_slice()].concat(),
            device_mask: prepared.device_mask.clone(),
            pid: server.pid,
            start_time: server.start_time,
            slots: about.slots.or(prepared.slots),
            need: prepared.need.clone(),
            spec_digest: prepared.spec_digest.clone(),
            draining: false,
        };
        replace(&files.handoff, &handoff).map_err(|error| Cause::Files(error.to_string()))?;
        self.lives(prepared);
        if !about.metrics && wants_metrics(prepared) {
            self.events.send(Event::Warning {
                message: format!(
                    "engine `{}`: server {} has no /metrics: less is seen of how it gets on",
                    prepared.engine, prepared.replica
                ),
            });
        }
        Ok(handoff)
    }

    fn lives(&self, prepared: &PreparedEngine) {
        let mut lived = self.lived.lock().unwrap_or_else(PoisonError::into_inner);
        lived.insert(format!("{} {}", prepared.label(), prepared.spec_digest));
    }

    fn lived(&self, prepared: &PreparedEngine) -> bool {
        let lived = self.lived.lock().unwrap_or_else(PoisonError::into_inner);
        lived.contains(&format!("{} {}", prepared.label(), prepared.spec_digest))
    }

    fn failed(&self, prepared: &PreparedEngine, trouble: Trouble, tries: u32) -> Failed {
        let error = match trouble.cause {
            Cause::PortTaken { port, .. } => Cause::PortTaken { port, tries },
            cause => cause,
        };
        Failed {
            engine: prepared.engine.clone(),
            replica: prepared.replica,
            advice: advice(&error, &trouble.lines),
            error,
            log_tail: trouble.lines,
            log: self.folder.join(format!("{}.log", prepared.label())),
            stillborn: trouble.stillborn,
        }
    }
}

/// Why one start failed.
struct Trouble {
    cause: Cause,
    lines: Vec<String>,
    stillborn: bool,
}

impl Trouble {
    fn new(cause: Cause) -> Self {
        Self {
            cause,
            lines: Vec::new(),
            stillborn: false,
        }
    }

    fn taken(port: u16) -> Self {
        Self::new(Cause::PortTaken { port, tries: 1 })
    }
}

/// True when `/metrics` should be there.
fn wants_metrics(prepared: &PreparedEngine) -> bool {
    match prepared.protocol() {
        Some(Backend::LlamaCpp) => prepared.flags.iter().any(|flag| flag == "--metrics"),
        Some(Backend::Vllm | Backend::Tgi) => true,
        _ => false,
    }
}

/// A port that nobody listens on just now.
fn free_port(host: &str) -> io::Result<u16> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok(TcpListener::bind((host, 0))?.local_addr()?.port())
}

/// True when somebody listens there already. Whatever else may be wrong with the address, the server says itself.
fn is_taken(host: &str, port: u16) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    TcpListener::bind((host, port)).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}
