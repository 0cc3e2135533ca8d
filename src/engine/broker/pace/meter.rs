//! How fast work gets done at one level of concurrency.

use std::time::Duration;

/// Older measurements fade once so many newer requests stand beside them.
const MEMORY: f64 = 500.0;

/// What was done in how much time. Two of them compare by [`Meter::gain`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    /// Work done, in any unit.
    work: f64,
    /// Requests that did it.
    requests: f64,
    /// Seconds it took.
    seconds: f64,
}

impl Meter {
    /// A request that ended, and the work it did.
    pub(super) fn add(&mut self, work: f64) {
        self.work += work;
        self.requests += 1.0;
    }

    /// Says how long the measurement has lasted.
    pub(super) fn lasted(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
    }

    /// Requests that ended; a fraction where older ones have faded.
    pub(super) fn requests(&self) -> f64 {
        self.requests
    }

    /// Both together; of long memories the older part fades.
    pub(super) fn with(&self, newer: &Self) -> Self {
        let all = self.requests + newer.requests;
        let keep = if all > MEMORY {
            ((MEMORY - newer.requests) / self.requests.max(1.0)).clamp(0.0, 1.0)
        } else {
            1.0
        };
        Self {
            work: self.work * keep + newer.work,
            requests: self.requests * keep + newer.requests,
            seconds: self.seconds * keep + newer.seconds,
        }
    }

    /// Both together, unless they contradict each other: then only what is newer.
    pub(super) fn unless_news(&self, newer: &Self, scatter: f64) -> Self {
        let (gain, error) = newer.gain(self);
        if gain.abs() > 2.0 * error * scatter.sqrt() {
            return *newer;
        }
        self.with(newer)
    }

    /// Work per second.
    fn rate(&self) -> f64 {
        self.work / self.seconds.max(1e-9)
    }

    /// The logarithm of how many times faster this is than `other`, and its standard error where requests end at
    /// random (a Poisson process: the relative error of a count is 1/√n); 0 ± ∞ while one of them is empty.
    pub(super) fn gain(&self, other: &Self) -> (f64, f64) {
        if self.work <= 0.0 || other.work <= 0.0 {
            return (0.0, f64::INFINITY);
        }
        let error = (1.0 / self.requests + 1.0 / other.requests).sqrt();
        ((self.rate() / other.rate()).ln(), error)
    }
}
