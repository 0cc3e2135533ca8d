//! A server that is ready, and its ends.

use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use super::ask::Ask;
use super::files::{Files, replace};
use super::guard::{Guarded, Life};
use super::hang;
use super::log::Log;
use super::processes::Process;
use super::{Exit, Handoff, Policy, Progress};

/// A server that was ready. Owns it: dropping this ends the server, soon; [`Ready::stop`] waits for that.
pub struct Ready(Box<Parts>);

/// What a ready server is made of.
pub(super) struct Parts {
    pub(super) guarded: Guarded,
    pub(super) life: watch::Receiver<Life>,
    pub(super) server: Process,
    pub(super) handoff: Handoff,
    pub(super) files: Files,
    pub(super) log: Log,
    pub(super) ask: Ask,
    pub(super) policy: Policy,
    pub(super) progress: Progress,
}

/// How a server that was stopped ended. Nothing of it is left but its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Its status, or the signal.
    pub how: Exit,
    /// It ended as one that is asked to: status 0, or SIGTERM.
    pub clean: bool,
}

impl From<Exit> for Stopped {
    fn from(how: Exit) -> Self {
        let clean = how.is_clean();
        Self { how, clean }
    }
}

impl Ready {
    pub(super) fn new(parts: Parts) -> Self {
        let ready = Self(Box::new(parts));
        // It may have ended just before the handoff was written.
        if ready.0.life.borrow().exit.is_some() {
            ready.0.files.remove_handoff_of(ready.0.server);
        }
        ready
    }

    /// What is on disk for those who may use it.
    pub fn handoff(&self) -> &Handoff {
        &self.0.handoff
    }

    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.0.handoff.url
    }

    /// Requests it works on at the same time, where that is known.
    pub fn slots(&self) -> Option<usize> {
        self.0.handoff.slots
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        self.0.log.path()
    }

    /// The last lines of its log since it was started, safe to show.
    pub fn log_tail(&self) -> Vec<String> {
        self.0.log.tail(self.0.policy.log_tail)
    }

    /// Where its clients count what they see of its work.
    pub fn progress(&self) -> Progress {
        self.0.progress.clone()
    }

    /// Resolves when it, or its guard, has ended by itself. May be dropped and called again.
    pub async fn ended(&mut self) -> Exit {
        let ended = self.0.life.wait_for(|life| life.exit.is_some()).await;
        let exit = ended.ok().and_then(|life| life.exit.clone());
        exit.unwrap_or_else(|| Exit::Guard("ended".to_owned()))
    }

    /// Looks at it until it hangs, and gives the reason: it missed health checks, or made no progress for
    /// `between_bytes` with `in_flight` requests. Never resolves for one whose progress cannot be seen, or that has ended.
    pub fn hang_watch<F>(
        &self,
        in_flight: F,
        between_bytes: Duration,
    ) -> impl Future<Output = String> + Send + use<F>
    where
        F: Fn() -> usize + Send + Sync + 'static,
    {
        let (ask, policy) = (self.0.ask.clone(), self.0.policy.clone());
        let (progress, life) = (self.progress(), self.0.life.clone());
        async move {
            let reason = hang::watch(ask, policy, progress, in_flight, between_bytes).await;
            if life.borrow().exit.is_some() {
                // Its end is told elsewhere.
                return std::future::pending().await;
            }
            reason
        }
    }

    /// Ends it: SIGTERM to it and all that it started, after 3 s a second one, after 2 s SIGKILL. Its requests should be
    /// over or closed: some servers do not end before. It is waited for, and its files but the log are removed.
    pub async fn stop(self) -> Stopped {
        self.0.guarded.stop().await.into()
    }

    /// Ends one that hangs: SIGKILL to it and all that it started.
    pub async fn kill(self) -> Stopped {
        self.0.guarded.kill().await.into()
    }

    /// Marks it as one that takes no new requests, in its handoff too.
    pub fn drain(mut self) -> Draining {
        self.mark(true);
        Draining(self)
    }

    fn mark(&mut self, draining: bool) {
        self.0.handoff.draining = draining;
        if self.0.life.borrow().exit.is_some() {
            return;
        }
        if let Err(error) = replace(&self.0.files.handoff, &self.0.handoff) {
            tracing::warn!(%error, "the handoff of a draining server cannot be written");
        }
        // As it is removed when it ends: that may have been meanwhile.
        if self.0.life.borrow().exit.is_some() {
            self.0.files.remove_handoff_of(self.0.server);
        }
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Ready").field(&self.0.handoff).finish()
    }
}

/// A server that takes no new requests. Dropping this ends it.
#[derive(Debug)]
pub struct Draining(Ready);

impl Draining {
    /// Stops it once `idle` says that nothing is in flight, or it ended by itself. At the deadline it is given back
    /// as it was, to serve on.
    ///
    /// # Errors
    /// It was not idle in time; the error is the server.
    pub async fn wait(
        mut self,
        idle: impl Future<Output = ()>,
        deadline: Duration,
    ) -> Result<Stopped, Ready> {
        let over = tokio::select! {
            biased;
            _ = self.0.ended() => true,
            () = idle => true,
            () = tokio::time::sleep(deadline) => false,
        };
        if over {
            Ok(self.0.stop().await)
        } else {
            Err(self.abort())
        }
    }

    /// Gives it back, to serve on.
    pub fn abort(mut self) -> Ready {
        self.0.mark(false);
        self.0
    }

    /// What is on disk for those who may use it.
    pub fn handoff(&self) -> &Handoff {
        self.0.handoff()
    }
}
