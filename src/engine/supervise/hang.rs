//! Whether a server hangs.
//!
//! It does when it missed some health checks in a row, or when it made no progress for a time although requests are in
//! flight. Progress is what its clients see of streams, and what its own counters say. Where neither can be seen,
//! nothing is said of a server that has requests in flight: one that works on a long prompt may answer nobody.

use std::time::{Duration, Instant};

use super::Policy;
use super::ask::{Ask, Health};
use super::progress::Progress;
use crate::event::counted;

/// One look at a server that is ready.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// It answered the health check; none: it was not asked.
    pub(super) healthy: Option<bool>,
    /// Requests in flight.
    pub(super) in_flight: usize,
    /// Its counters could be read once.
    pub(super) counted: bool,
    /// Streams are under way.
    pub(super) streaming: bool,
    /// Something went forward since the look before.
    pub(super) moved: bool,
}

/// What the looks so far say. Pure: it is told what time it is.
#[derive(Clone, Debug)]
pub(super) struct Vigil {
    misses: u32,
    misses_most: u32,
    between_bytes: Duration,
    in_flight: usize,
    /// When something last went forward, or nothing had to.
    moved: Instant,
}

impl Vigil {
    /// A server that is well now.
    pub(super) fn new(policy: &Policy, between_bytes: Duration, now: Instant) -> Self {
        Self {
            misses: 0,
            misses_most: policy.health_misses,
            between_bytes,
            in_flight: 0,
            moved: now,
        }
    }

    /// Takes a look into account; the reason once it hangs.
    pub(super) fn look(&mut self, look: Look, now: Instant) -> Option<String> {
        let visible = look.counted || look.streaming;
        // A request that ended is progress, whoever can see more.
        let moved = look.moved || look.in_flight < self.in_flight;
        if moved || look.in_flight == 0 || self.in_flight == 0 || !visible {
            self.moved = now;
        }
        self.in_flight = look.in_flight;
        match look.healthy {
            // What works is not missed, however busy it is.
            Some(true) => self.misses = 0,
            Some(false) if moved || (look.in_flight > 0 && !visible) => self.misses = 0,
            Some(false) => self.misses += 1,
            None => {}
        }
        if self.misses >= self.misses_most {
            return Some(format!("missed {} health checks in a row", self.misses));
        }
        let still = now.saturating_duration_since(self.moved);
        (still >= self.between_bytes && look.in_flight > 0).then(|| {
            format!(
                "made no progress for {} s with {} in flight",
                still.as_secs(),
                counted(look.in_flight as u64, "request")
            )
        })
    }
}

/// Looks at a server until it hangs; gives the reason.
pub(super) async fn watch(
    ask: Ask,
    policy: Policy,
    progress: Progress,
    in_flight: impl Fn() -> usize + Send,
    between_bytes: Duration,
) -> String {
    let mut vigil = Vigil::new(&policy, between_bytes, Instant::now());
    // Often enough to see a pause of that length, and as often as health is checked.
    let every = policy
        .health_every
        .min(between_bytes / 4)
        .max(Duration::from_millis(20));
    let (mut seen, mut counters) = (progress.count(), None);
    let mut checked = Instant::now();
    loop {
        tokio::time::sleep(every).await;
        let due = checked.elapsed() >= policy.health_every;
        let busy = in_flight() > 0;
        let patience = policy.health_patience;
        let health = async {
            match due {
                true => Some(ask.health(patience).await == Health::Ready),
                false => None,
            }
        };
        // An idle server has nothing to count, and is left alone.
        let count = async {
            match busy {
                true => ask.counters(patience).await,
                false => None,
            }
        };
        let (healthy, now_counted) = tokio::join!(health, count);
        if due {
            checked = Instant::now();
        }
        let moved_by_count = now_counted.is_some() && now_counted != counters;
        if now_counted.is_some() {
            counters = now_counted;
        }
        let now_seen = progress.count();
        let look = Look {
            healthy,
            in_flight: in_flight(),
            counted: counters.is_some(),
            streaming: progress.is_streaming(),
            moved: moved_by_count || now_seen != seen,
        };
        seen = now_seen;
        if let Some(reason) = vigil.look(look, Instant::now()) {
            return reason;
        }
    }
}
