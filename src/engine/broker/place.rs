//! One server as a gate sees it: what is in flight there, and whether it takes more.

use std::collections::HashMap;

use tokio::sync::watch;
use tokio::time::Instant;

use super::pace::Pace;
use super::suspects::Who;
use crate::engine::SharedEngine;

/// Whether a server takes work.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Health {
    /// It does.
    Open,
    /// It wants less (429): nothing goes out until then, afterwards everything may.
    Paused {
        /// When that is.
        until: Instant,
    },
    /// It takes nothing: from then on, one request at a time tries whether it does.
    Down {
        /// When that is.
        until: Instant,
        /// One is under way.
        probing: bool,
    },
    /// There is no server now; who runs it says when there is.
    Absent {
        /// What is done about it, or why nothing is.
        what: String,
        /// It is being started, which has a clock of its own.
        starting: bool,
        /// Nothing is done before.
        until: Option<Instant>,
    },
    /// There will never be one.
    Dead,
    /// It works on what it has and gets no more.
    Draining,
}

/// A server, or where one is to be.
#[derive(Debug)]
pub(super) struct Place {
    /// Who answers; none while there is no server.
    pub(super) engine: Option<Answerer>,
    /// Somebody starts and stops the server, and tells the gate when it ends.
    pub(super) supervised: bool,
    pub(super) pace: Pace,
    pub(super) in_flight: usize,
    /// What is being asked, by lease: the suspects, should the server crash.
    pub(super) flying: HashMap<u64, Who>,
    /// It belongs to one suspect until that is answered or given back.
    pub(super) reserved: bool,
    pub(super) health: Health,
    /// Grows with every change for the worse. A request belongs to the epoch it started in; bad news from older ones
    /// was told already by the first of them.
    pub(super) epoch: u64,
    /// Faults in a row, each in another epoch.
    pub(super) faults: u32,
    /// Which of its servers in turn; grows when one ends.
    pub(super) life: watch::Sender<u64>,
    /// When its last lease was given back.
    pub(super) idle_since: Instant,
}

/// An engine without a Debug that could show an address.
#[derive(Clone)]
pub(super) struct Answerer(pub(super) SharedEngine);

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answerer")
    }
}

impl Place {
    pub(super) fn new(engine: Option<SharedEngine>, supervised: bool, pace: Pace) -> Self {
        Self {
            health: match engine {
                Some(_) => Health::Open,
                None => Health::Absent {
                    what: "not started yet".to_owned(),
                    starting: false,
                    until: None,
                },
            },
            engine: engine.map(Answerer),
            supervised,
            pace,
            in_flight: 0,
            flying: HashMap::new(),
            reserved: false,
            epoch: 0,
            faults: 0,
            life: watch::Sender::new(0),
            idle_since: Instant::now(),
        }
    }

    /// Whether one more may go there now, and if so, whether as a probe.
    pub(super) fn admits(&self, now: Instant) -> Option<bool> {
        if self.reserved || self.in_flight >= self.pace.limit() {
            return None;
        }
        match self.health {
            Health::Open => Some(false),
            Health::Paused { until } => (now >= until).then_some(false),
            Health::Down { until, probing } => (now >= until && !probing).then_some(true),
            Health::Absent { .. } | Health::Draining | Health::Dead => None,
        }
    }

    /// There is no server.
    pub(super) fn is_absent(&self) -> bool {
        matches!(self.health, Health::Absent { .. })
    }

    /// There is a server that takes requests, or will after a pause.
    pub(super) fn can_serve(&self) -> bool {
        self.engine.is_some() && !matches!(self.health, Health::Draining | Health::Dead)
    }

    /// When to look again, if it waits for a time.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.health {
            Health::Paused { until } | Health::Down { until, .. } => Some(until),
            _ => None,
        }
    }
}
