//! Waiting for a server until it is ready: that it says so, and that it is ours which says it.

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;

use tokio::sync::watch;
use tokio::time::sleep;

use super::ask::{About, Ask, Health};
use super::failed::Cause;
use super::guard::{Guarded, Life, version_of};
use super::processes::{Listener, Process, listener};
use super::{Exit, Policy};
use crate::engine::provision::PreparedEngine;

/// How often a port is looked up in vain in the system's tables before the server is believed.
const UNSEEN: u32 = 3;
/// How often a listener is looked at before it is called a stranger.
const LOOKS: u32 = 3;

/// Resolves when the server, or its guard, has ended.
pub(super) async fn over(life: &mut watch::Receiver<Life>) -> Cause {
    let ended = life
        .wait_for(|life| life.gone || life.exit.is_some() || life.refused.is_some() || life.failed.is_some());
    match ended.await.as_deref() {
        Ok(Life {
            refused: Some(why), ..
        }) => Cause::NotStarted(why.clone()),
        Ok(Life {
            failed: Some(why), ..
        }) => Cause::Guard(why.clone()),
        Ok(Life {
            server: None,
            exit: Some(Exit::Guard(how)),
            ..
        }) => Cause::Guard(format!("the guard {how}")),
        Ok(Life { exit: Some(exit), .. }) => Cause::Ended(exit.clone()),
        _ => Cause::Ended(Exit::Guard("ended".to_owned())),
    }
}

/// A server that was just started.
pub(super) struct Waiting<'a> {
    pub(super) prepared: &'a PreparedEngine,
    pub(super) policy: &'a Policy,
    pub(super) guarded: &'a Guarded,
    pub(super) ask: &'a Ask,
    /// What guards are started from.
    pub(super) program: &'a Path,
}

impl Waiting<'_> {
    /// Until it is ready; `last` is what the last look gave.
    pub(super) async fn ready(&self, last: &mut String) -> Result<(Process, About), Cause> {
        let server = self.server().await;
        let mut pause = self.policy.poll_first;
        let mut unseen = 0;
        loop {
            let health = self.ask.health(self.policy.health_patience).await;
            // Whoever answers, it must be ours.
            let whose = match health {
                Health::Ready | Health::NotYet(_) => self.listener().await,
                Health::Nobody | Health::Silent => Listener::Unseen,
            };
            match (health, whose) {
                (Health::Ready | Health::NotYet(_), Listener::Other) => {
                    return Err(Cause::PortTaken {
                        port: self.prepared.port,
                        tries: 1,
                    });
                }
                (Health::Ready, Listener::Unseen) if unseen < UNSEEN => unseen += 1,
                (Health::Ready, _) => return Ok((server, self.about().await)),
                (Health::NotYet(said), _) => *last = said,
                (Health::Nobody, _) => *last = "nobody listened on its port".to_owned(),
                (Health::Silent, _) => *last = "it did not answer /health".to_owned(),
            }
            sleep(pause).await;
            pause = (pause * 2).min(self.policy.poll_most);
        }
    }

    /// The process, once there is one.
    async fn server(&self) -> Process {
        let mut life = self.guarded.life();
        let started = life.wait_for(|life| life.server.is_some()).await;
        match started.ok().and_then(|life| life.server) {
            Some(server) => server,
            // Then its end is heard elsewhere.
            None => std::future::pending().await,
        }
    }

    /// Whether it is the server, or a process of its, that listens.
    async fn listener(&self) -> Listener {
        let mut looks = 0;
        loop {
            let (host, port) = (self.prepared.host.clone(), self.prepared.port);
            let tree = self.guarded.tree();
            let looking = tokio::task::spawn_blocking(move || whose(&host, port, &tree));
            let found = looking.await.unwrap_or(Listener::Untold);
            looks += 1;
            // A process that was just started is in no tree yet.
            if found != Listener::Other || looks == LOOKS {
                return found;
            }
            sleep(self.policy.poll_first).await;
        }
    }

    /// What it says of itself; its version, if need be, as its program says it.
    async fn about(&self) -> About {
        let patience = self.policy.health_patience;
        let mut about = self.ask.about(patience).await;
        if let (None, Some(binary)) = (&about.version, self.prepared.binary.clone()) {
            let program = self.program.to_owned();
            let asking = tokio::task::spawn_blocking(move || version_of(&program, &binary, patience));
            about.version = asking.await.ok().flatten();
        }
        about
    }
}

/// Who listens at all addresses of a host.
fn whose(host: &str, port: u16, tree: &[Process]) -> Listener {
    let mut found = Listener::Unseen;
    for address in addresses(host) {
        match listener(address, port, tree) {
            Listener::Unseen => {}
            Listener::Other => return Listener::Other,
            known => found = known,
        }
    }
    found
}

/// Where requests to a host go.
fn addresses(host: &str) -> Vec<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = (host, 0).to_socket_addrs().into_iter().flatten();
    let found = found.map(|address| match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    });
    found.collect()
}
