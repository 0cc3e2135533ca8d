//! When a server that failed is started again. Pure: it is told what time it is.

use std::time::{Duration, Instant};

use super::Policy;

/// Whether a start is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// Failures are met with a pause that grows.
    Closed {
        /// The next start is allowed from here on; none: at once.
        until: Option<Instant>,
    },
    /// Too many failures in a row: no start before this time; requests wait.
    Open {
        /// Then one start is tried.
        until: Instant,
    },
    /// That one start: it closes the breaker, or opens it again.
    HalfOpen,
}

/// The failures of one server, and what follows from them.
///
/// The owner calls [`Restarts::failed`] when a start failed or a server that was ready ended or hung, and
/// [`Restarts::ready`] when one is ready; [`Restarts::state`] says when the next start is allowed.
#[derive(Clone, Debug)]
pub struct Restarts {
    policy: Policy,
    dice: fastrand::Rng,
    /// In a row.
    failures: u32,
    /// When the next start is allowed.
    until: Option<Instant>,
    /// The breaker was opened, and no start was good since.
    open: bool,
    /// Since when it is ready.
    ready: Option<Instant>,
}

impl Restarts {
    /// Of a server that was never started.
    pub fn new(policy: &Policy) -> Self {
        Self::seeded(policy, fastrand::u64(..))
    }

    /// The same with a known jitter.
    pub fn seeded(policy: &Policy, seed: u64) -> Self {
        Self {
            policy: policy.clone(),
            dice: fastrand::Rng::with_seed(seed),
            failures: 0,
            until: None,
            open: false,
            ready: None,
        }
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// A server is ready. After an open breaker all is forgotten.
    pub fn ready(&mut self, now: Instant) {
        if self.open {
            self.failures = 0;
            self.open = false;
        }
        self.until = None;
        self.ready = Some(now);
    }

    /// A start failed, or a server that was ready ended or hung. `isolated`: it crashed at the one request that was
    /// under suspicion; that is the request's fault and does not count.
    pub fn failed(&mut self, now: Instant, isolated: bool) -> Breaker {
        let healthy = self
            .ready
            .take()
            .map(|since| now.saturating_duration_since(since));
        if healthy.is_some_and(|healthy| healthy >= self.policy.healthy_after) {
            self.failures = 0;
        }
        if !isolated {
            self.failures = self.failures.saturating_add(1);
        }
        let again = self.open && !isolated;
        if again || self.failures >= self.policy.breaker_failures {
            self.open = true;
            self.until = Some(now + self.policy.breaker_open);
        } else {
            self.until = Some(now + self.pause());
        }
        self.state(now)
    }

    /// Whether a start is allowed.
    pub fn state(&self, now: Instant) -> Breaker {
        let until = self.until.filter(|until| *until > now);
        match (self.open, until) {
            (true, Some(until)) => Breaker::Open { until },
            (true, None) => Breaker::HalfOpen,
            (false, until) => Breaker::Closed { until },
        }
    }

    /// The pause after so many failures: it doubles up to a limit, and differs a little from server to server.
    fn pause(&mut self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(31);
        let pause = self.policy.restart_first.saturating_mul(1 << doublings);
        let pause = pause.min(self.policy.restart_most);
        let share = self.policy.restart_jitter * (2.0 * self.dice.f64() - 1.0);
        pause.mul_f64((1.0 + share).max(0.0))
    }
}
