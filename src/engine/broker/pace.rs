//! How many requests an engine may have in flight: additive increase, multiplicative decrease.

use crate::spec::Concurrency;

/// Where `auto` starts and where it ends.
const AUTO_START: usize = 8;
const AUTO_MAX: usize = 256;

/// The limit of one engine and what moves it.
#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    max: usize,
    /// Successes since the limit last moved.
    successes: usize,
}

impl Pace {
    pub(super) fn new(concurrency: Concurrency, slots: Option<usize>) -> Self {
        let _ = slots;
        let (limit, max) = match concurrency {
            Concurrency::Auto => (AUTO_START, AUTO_MAX),
            Concurrency::Fixed(n) => (n.max(1), n.max(1)),
        };
        Self {
            limit,
            max,
            successes: 0,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// One more per window of successes, and only while the limit is what holds rows back.
    pub(super) fn succeeded(&mut self, wanted_more: bool) {
        self.successes += 1;
        if self.successes >= self.limit {
            self.successes = 0;
            if wanted_more && self.limit < self.max {
                self.limit += 1;
            }
        }
    }

    /// The server (re)started and said how many it works on.
    pub(super) fn slots(&mut self, slots: Option<usize>) {
        if let (true, Some(slots)) = (self.max == AUTO_MAX, slots) {
            self.limit = slots.max(1);
        }
    }

    /// The engine wants less. A fixed concurrency is halved too, and grows back to what was asked for.
    pub(super) fn pushed_back(&mut self) {
        self.limit = (self.limit / 2).max(1);
        self.successes = 0;
    }
}
