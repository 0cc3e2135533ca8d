//! Using a server that `engine up` keeps, instead of one of our own.
//!
//! It is not ours: it is never stopped from here, and its memory is not booked. What becomes of it is seen in its handoff.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, interval};

use super::keeper::{Keeper, Over};
use super::orders::Post;
use crate::engine::client::adapter;
use crate::engine::client::probe::{State, probe};
use crate::engine::client::schema::PreparedSchema;
use crate::engine::supervise::{Handoff, Restarts};
use crate::engine::warm::{Found, Lease, WarmFolder};
use crate::engine::{CallError, Engine, Pressure, Rendered, Reply, Request, SharedEngine};
use crate::event::Event;

/// Between two looks at a handoff.
const LOOK: Duration = Duration::from_millis(200);

/// What a server does while we use it.
enum Seen {
    /// It takes requests.
    Serves,
    /// It takes no new ones.
    Drains,
    /// It is not there any more.
    Gone,
}

impl Keeper {
    /// Uses the server of a digest that `engine up` keeps, as long as there is one; none when there is none.
    pub(super) async fn attached(
        &self,
        digest: &str,
        restarts: &mut Restarts,
        post: &mut Post,
    ) -> Option<Over> {
        let folder = self.shares.used()?.clone();
        let mut patience: Option<Instant> = None;
        loop {
            let (here, digest, replica) = (folder.clone(), digest.to_owned(), self.replica());
            // A look at a few files; a disk that hangs holds up this server only.
            let found = tokio::task::spawn_blocking(move || here.find(&digest, replica));
            match found.await.unwrap_or(Found::None) {
                Found::None => return None,
                Found::Ready(server) => {
                    let at = self.spec.at(&server.url);
                    if probe(&at, self.supervisor.policy().health_patience).await.state == State::Ready {
                        restarts.ready(Instant::now().into_std());
                        return self.uses(&folder, *server, post).await;
                    }
                }
                Found::Coming(_) => {}
            }
            // Whoever keeps it starts it again; for as long as that may take, ours would only be in its way.
            let until = *patience.get_or_insert_with(|| Instant::now() + self.spec.launch.startup_timeout);
            if Instant::now() > until {
                return None;
            }
            self.gate
                .absent(self.at, "waiting for the server that `engine up` keeps", true);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Some(Over::Stopped),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Sends requests to a server that is not ours, until it is gone.
    async fn uses(&self, folder: &WarmFolder, server: Handoff, post: &mut Post) -> Option<Over> {
        let engine = match adapter(&self.spec.at(&server.url)) {
            Ok(engine) => engine,
            Err(error) => return Some(Over::Hopeless(error.message)),
        };
        let lease = Lease::of(folder, &server);
        self.gate
            .opened(self.at, Arc::new(Attached { engine, lease }), server.slots);
        self.tell_starting(
            &self.events,
            format!("uses server {} that `engine up` keeps", label(&server)),
        );
        self.events.send(Event::EngineReady {
            engine: self.gate.name().to_owned(),
        });
        let mut look = interval(LOOK);
        let mut draining = false;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.gate.drain(self.at);
                    return Some(Over::Stopped);
                }
                order = post.order() => {
                    // It is not ours to stop.
                    if order.absent().await {
                        return Some(Over::Stopped);
                    }
                }
                _ = look.tick() => {}
            }
            match (seen(folder, &server).await, draining) {
                (Seen::Serves, false) | (Seen::Drains, true) => {}
                (Seen::Serves, true) => {
                    draining = false;
                    self.gate.undrain(self.at);
                    self.events.send(Event::EngineReady {
                        engine: self.gate.name().to_owned(),
                    });
                }
                (Seen::Drains, false) => {
                    draining = true;
                    self.gate.drain(self.at);
                    self.events.send(Event::EngineDraining {
                        engine: self.gate.name().to_owned(),
                        replica: self.replica(),
                        reason: "whoever keeps it asked for that".to_owned(),
                    });
                }
                (Seen::Gone, _) => return Some(self.gone(draining)),
            }
        }
    }

    /// The server went away, under requests or not.
    fn gone(&self, drained: bool) -> Over {
        let in_flight = self.gate.in_flight(self.at);
        if drained || in_flight == 0 {
            self.gate
                .absent(self.at, "the server that `engine up` kept was stopped", false);
            return Over::Released;
        }
        let why = "the server that `engine up` keeps ended".to_owned();
        let explained = self.gate.crashed(self.at, &why);
        Over::Failed { why, explained }
    }
}

/// Its name in the folder.
fn label(server: &Handoff) -> String {
    format!("{}-{}", server.pool_id, server.replica_id)
}

/// What its files say of a server.
async fn seen(folder: &WarmFolder, server: &Handoff) -> Seen {
    let (folder, server) = (folder.clone(), server.clone());
    let now = tokio::task::spawn_blocking(move || folder.still(&server));
    match now.await.ok().flatten() {
        None => Seen::Gone,
        Some(now) if now.draining => Seen::Drains,
        Some(_) => Seen::Serves,
    }
}

/// A server that others use too: each request is under a lease that they can see.
struct Attached {
    engine: SharedEngine,
    lease: Lease,
}

impl Engine for Attached {
    fn prepare(&self, name: &str, schema: &serde_json::Value) -> PreparedSchema {
        self.engine.prepare(name, schema)
    }

    fn render(&self, request: &Request<'_>) -> Rendered {
        self.engine.render(request)
    }

    fn call<'a>(&'a self, rendered: &'a Rendered, turn: u32) -> BoxFuture<'a, Result<Reply, CallError>> {
        Box::pin(async move {
            let Some(_leased) = self.lease.enter().await else {
                return Err(CallError::Engine {
                    message: "the server takes no new requests".to_owned(),
                    retry_after: None,
                    pressure: Pressure::Down,
                });
            };
            self.engine.call(rendered, turn).await
        })
    }
}
