//! How many requests and tokens per minute a server may be asked for: `rpm` and `tpm`, and what hosted APIs say of
//! their own limits.
//!
//! Pure bookkeeping under the gate's lock, as [`super::pace`]. The gate asks [`Rate::admit`] before each request, with
//! [`Rate::estimate`] for its tokens, and looks again at the time it is told; it settles the ticket when the answer
//! says how many tokens it took, and passes on what the engine's `limits()` say. A ticket that is not settled (no
//! answer, no usage in it) stands as estimated.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::client::limits::{Limits, Quota};

/// A bucket holds what flows into it in this time: no burst of a minute's worth.
const BURST_S: f64 = 1.0;
/// Below this part of a limit (or this many, where the limit is not told) the rest is spread over the time left.
const SMALL: (f64, f64) = (0.25, 16.0);
/// The running mean of tokens is that of about so many requests.
const MEAN_OF: f64 = 64.0;
/// Two answers tell whether a window slides when they lie this far apart.
const APART: Duration = Duration::from_millis(500);

/// A request that was admitted, and the tokens that it was taken for.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    tokens: u64,
}

/// The buckets of one server.
#[derive(Debug)]
pub struct Rate {
    /// Of requests, then of tokens.
    buckets: [Option<Bucket>; 2],
    /// What the server says is left.
    windows: [Option<Window>; 2],
    /// The last answer that was learnt from.
    learnt: Option<Instant>,
    /// Mean tokens of a request, and of how many.
    mean: (f64, f64),
}

impl Rate {
    /// With at most so many requests and tokens per minute.
    pub fn new(rpm: Option<f64>, tpm: Option<f64>) -> Self {
        Self {
            buckets: [rpm, tpm].map(|per_minute| per_minute.and_then(Bucket::new)),
            windows: [None, None],
            learnt: None,
            mean: (0.0, 0.0),
        }
    }

    /// The tokens that a request may take, prompt and reply: the mean of those settled. Before the first it is all
    /// that the bucket holds, so that not many are sent before one has told.
    pub fn estimate(&self) -> u64 {
        let [_, tokens] = &self.buckets;
        if self.mean.1 > 0.0 {
            self.mean.0.ceil() as u64
        } else {
            tokens.as_ref().map_or(0, |bucket| bucket.burst as u64)
        }
    }

    /// Lets a request go, or says when to ask again.
    ///
    /// # Errors
    /// The time at which it may go, if nothing else goes before; no later than an hour from now.
    pub fn admit(&mut self, now: Instant, tokens_estimate: u64) -> Result<Ticket, Instant> {
        let needs = [1.0, tokens_estimate as f64];
        let mut at = now;
        for ((bucket, window), need) in self.buckets.iter_mut().zip(&mut self.windows).zip(needs) {
            if let Some(bucket) = bucket {
                at = at.max(bucket.at(now, need));
            }
            if window.as_ref().is_some_and(|window| now >= window.reset) {
                *window = None;
            }
            if let Some(window) = window {
                at = at.max(window.at(now, need));
            }
        }
        if at > now {
            return Err(at);
        }
        for ((bucket, window), need) in self.buckets.iter_mut().zip(&mut self.windows).zip(needs) {
            if let Some(bucket) = bucket {
                bucket.level -= need;
            }
            if let Some(window) = window {
                window.take(now, need);
            }
        }
        Ok(Ticket {
            tokens: tokens_estimate,
        })
    }

    /// Puts the real tokens in the place of the estimate; 0 where the answer did not say.
    pub fn settle(&mut self, ticket: Ticket, now: Instant, tokens: u64) {
        if tokens == 0 {
            return;
        }
        let (mean, of) = &mut self.mean;
        *of = (*of + 1.0).min(MEAN_OF);
        *mean += (tokens as f64 - *mean) / *of;
        let less = ticket.tokens as f64 - tokens as f64;
        let [_, bucket] = &mut self.buckets;
        if let Some(bucket) = bucket {
            bucket.refill(now);
            bucket.level = (bucket.level + less).min(bucket.burst);
        }
        let [_, window] = &mut self.windows;
        if let Some(window) = window {
            window.left = (window.left + less).max(0.0);
        }
    }

    /// Takes in what the server says of its limits. Of one answer it learns once.
    pub fn learn(&mut self, now: Instant, limits: &Limits) {
        if self.learnt.is_some_and(|learnt| limits.at <= learnt) {
            return;
        }
        self.learnt = Some(limits.at);
        for (window, quota) in self.windows.iter_mut().zip([limits.requests, limits.tokens]) {
            if let Some(next) = Window::learn(window.as_ref(), now, limits.at, quota) {
                *window = Some(next);
            }
        }
    }
}

/// What may be used now, and flows in evenly.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    burst: f64,
    /// Below nothing after a request larger than the bucket.
    level: f64,
    filled: Option<Instant>,
}

impl Bucket {
    /// None without a limit that can be kept.
    fn new(per_minute: f64) -> Option<Self> {
        let per_second = per_minute / 60.0;
        let burst = (per_second * BURST_S).max(1.0);
        (per_second > 0.0 && burst.is_finite()).then_some(Self {
            per_second,
            burst,
            level: burst,
            filled: None,
        })
    }

    fn refill(&mut self, now: Instant) {
        let since = self
            .filled
            .map_or(Duration::ZERO, |filled| now.saturating_duration_since(filled));
        self.level = (self.level + self.per_second * since.as_secs_f64()).min(self.burst);
        self.filled = Some(now);
    }

    /// When there is so much; a request larger than the bucket goes when it is full.
    fn at(&mut self, now: Instant, need: f64) -> Instant {
        self.refill(now);
        later(now, (need.min(self.burst) - self.level) / self.per_second)
    }
}

/// What a server says is left of a limit.
#[derive(Clone, Copy, Debug)]
struct Window {
    left: f64,
    limit: Option<f64>,
    reset: Instant,
    /// What flows in per second meanwhile, where the limit is a bucket: OpenAI's `reset` is when it would be full.
    flow: Option<f64>,
    filled: Instant,
    /// An earlier answer, and the reset that it named.
    before: (Instant, Instant),
    /// The next one goes no sooner: what is left is spread.
    next: Instant,
}

impl Window {
    /// What a new answer makes of the window; none when it says too little.
    fn learn(old: Option<&Self>, now: Instant, at: Instant, quota: Quota) -> Option<Self> {
        let (left, span) = (quota.remaining? as f64, quota.reset?);
        let reset = at.checked_add(span)?;
        let limit = quota.limit.map(|limit| limit as f64);
        // The same window: its reset still lies ahead.
        let old = old.filter(|old| now < old.reset);
        let before = old.map_or((at, reset), |old| old.before);
        let apart = at.saturating_duration_since(before.0);
        let flow = if apart < APART {
            old.and_then(|old| old.flow)
        } else if reset > before.1 + apart / 2 {
            // A fixed window ends when it ends; a bucket is full the later, the more is taken out.
            limit
                .filter(|limit| *limit > left && !span.is_zero())
                .map(|limit| (limit - left) / span.as_secs_f64())
        } else {
            None
        };
        Some(Self {
            // Requests still on their way are in our count and maybe not in theirs.
            left: match old {
                Some(old) if flow.is_none() => left.min(old.left),
                _ => left,
            },
            limit,
            reset,
            flow,
            filled: now,
            before: if apart < APART { before } else { (at, reset) },
            next: old.map_or(now, |old| old.next),
        })
    }

    /// When so much may be used.
    fn at(&mut self, now: Instant, need: f64) -> Instant {
        let need = self.limit.map_or(need, |limit| need.min(limit));
        if let Some(flow) = self.flow {
            let since = now.saturating_duration_since(self.filled).as_secs_f64();
            self.left = (self.left + flow * since).min(self.limit.unwrap_or(f64::MAX));
            self.filled = now;
        }
        if self.left >= need {
            return self.next;
        }
        match self.flow {
            Some(flow) => later(now, (need - self.left) / flow),
            None => self.reset,
        }
    }

    fn take(&mut self, now: Instant, need: f64) {
        self.left = (self.left - need).max(0.0);
        let small = self.limit.map_or(SMALL.1, |limit| limit * SMALL.0);
        if self.left <= small && need > 0.0 {
            let per_second = match self.flow {
                Some(flow) => flow,
                None => {
                    (self.left + need) / self.reset.saturating_duration_since(now).as_secs_f64().max(1e-3)
                }
            };
            self.next = later(now, need / per_second.max(1e-9)).min(self.reset);
        }
    }
}

/// So many seconds from now, and never more than an hour.
fn later(now: Instant, seconds: f64) -> Instant {
    let wait = Duration::try_from_secs_f64(seconds.clamp(0.0, 3600.0)).unwrap_or_default();
    now.checked_add(wait).unwrap_or(now)
}
