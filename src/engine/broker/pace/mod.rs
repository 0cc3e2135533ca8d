//! How many requests one server may have in flight, and when the next may go.
//!
//! Pure bookkeeping under the gate's lock: no task, no clock of its own, no chance. The gate
//!
//! - lets a request in while fewer than [`Pace::limit`] are in flight and [`Pace::release_at`] names no later time
//!   (else it looks again then), and says so by [`Pace::released`];
//! - tells every request that was answered ([`Pace::finished`]), whatever happened to the server meanwhile;
//! - tells one push-back for a wave of them ([`Pace::pushed_back`]).
//!
//! | concurrency | limit |
//! | --- | --- |
//! | a number | that many at most; halved by a push-back, and grows back |
//! | `auto`, the server tells its slots | the slots and a few more, [`surplus`], so that no slot is empty between two requests |
//! | `auto` | starts with 8, then follows the knee of throughput (`climb.rs`) |
//!
//! What pushed back is remembered: the limit stays below it, and tries it again after 5 s, 10 s, … 60 s. After a
//! pause requests go out one by one, at the rate that the server took before (`spread.rs`).

mod climb;
mod meter;
mod spread;

use std::time::Duration;

use tokio::time::Instant;

use crate::spec::Concurrency;
use climb::{Climb, Moved};
use spread::Spread;

/// Where `auto` starts when nobody knows the server's slots, and the most that it comes to. Each request in flight is
/// a connection: many systems allow a process 1,024 open files.
pub const AUTO: (usize, usize) = (8, 512);

/// No request is taken to last for longer.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What pushed back is tried again after so long, then after twice as long each time.
const HOLD: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Of fewer in flight than this it is chance that two push-backs come at the same number.
const FEW: usize = 8;
const OFTEN: u32 = 6;

/// The limit below a wall grows by this part of it until the wall is tried again: one in ten.
const CREEP: f64 = 0.1;

/// A request that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// From its start to the end of its reply.
    pub took: Duration,
    /// Tokens of the reply; 0 where the server does not say.
    pub tokens: u64,
    /// Whether rows were waiting for a place when it ended.
    pub queued: bool,
    /// Requests in flight before it ended, itself among them.
    pub in_flight: usize,
}

/// Why a limit moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has not: it is what the run began with.
    Start,
    /// The server said how many slots it has.
    Slots,
    /// More in flight got more done.
    Faster,
    /// Fewer in flight got as much done.
    Enough,
    /// The server pushed back: 429, 503 or a timeout.
    PushedBack,
    /// It grows back after a push-back.
    Recovered,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "as it began",
            Self::Slots => "the server's slots",
            Self::Faster => "more in flight got more done",
            Self::Enough => "fewer in flight got as much done",
            Self::PushedBack => "the server pushed back",
            Self::Recovered => "grown back after a push-back",
        })
    }
}

/// What became of a limit, for the run's summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceSummary {
    /// The last one.
    pub limit: usize,
    /// The lowest and the highest that stood; what was only tried does not count.
    pub range: (usize, usize),
    /// Why it moved last.
    pub reason: Reason,
    /// Push-backs; a wave of them is one.
    pub push_backs: u64,
}

/// How many more than its slots a server is given: requests that wait there already when a slot falls empty.
///
/// Measured in the model of `tests/it/pace_model.rs`, slots busy with answers of 50 ms and 5 ms on the wire: of 4
/// slots 91 % without a surplus, 99.9 % with 2; of 16 slots 91 %, 98 % with 2, 99.9 % with 4; of 64 slots 91 %,
/// 99 % with 8, all with 16.
pub fn surplus(slots: usize) -> usize {
    (slots / 4).max(2)
}

/// The limit of one server and what moves it.
#[derive(Debug)]
pub struct Pace {
    /// What the user allows, or this machine.
    ceiling: usize,
    how: How,
    spread: Spread,
    wall: Option<Wall>,
    /// Mean latency of the last requests, s.
    latency: f64,
    /// Requests in flight, as was last told.
    in_flight: usize,
    /// Requests in flight at the last push-back, and how many in a row came at about that number.
    pushed: (usize, u32),
    summary: PaceSummary,
}

/// What moves a limit besides push-backs.
#[derive(Debug)]
enum How {
    /// Nothing: it grows back to the ceiling, by one per window of answers.
    Steady { limit: usize, window: usize, auto: bool },
    /// Throughput.
    Climbing(Box<Climb>),
}

/// More than `at` in flight were too many.
#[derive(Clone, Copy, Debug)]
struct Wall {
    at: usize,
    since: Instant,
    hold: Duration,
}

impl Pace {
    /// For a server with this many slots, as far as one knows them.
    pub fn new(concurrency: Concurrency, slots: Option<usize>) -> Self {
        let (limit, how) = match (concurrency, slots) {
            (Concurrency::Fixed(n), _) => (n.max(1), None),
            (Concurrency::Auto, Some(slots)) => (with_surplus(slots), None),
            (Concurrency::Auto, None) => (AUTO.0, Some(Box::new(Climb::new(AUTO.0, AUTO.1)))),
        };
        Self {
            ceiling: how.as_ref().map_or(limit, |_| AUTO.1),
            how: how.map_or(
                How::Steady {
                    limit,
                    window: 0,
                    auto: concurrency == Concurrency::Auto,
                },
                How::Climbing,
            ),
            spread: Spread::default(),
            wall: None,
            latency: 0.0,
            in_flight: 0,
            pushed: (0, 0),
            summary: PaceSummary {
                limit,
                range: (limit, limit),
                reason: Reason::Start,
                push_backs: 0,
            },
        }
    }

    /// Requests that may be in flight; at least 1.
    pub fn limit(&self) -> usize {
        match &self.how {
            How::Steady { limit, .. } => *limit,
            How::Climbing(climb) => climb.limit(),
        }
    }

    /// When the next request may go, if not yet: after a push-back they go one by one.
    pub fn release_at(&self, now: Instant) -> Option<Instant> {
        self.spread.next().filter(|next| *next > now)
    }

    /// A request goes now; `in_flight` counts it.
    pub fn released(&mut self, now: Instant, in_flight: usize) {
        self.in_flight = in_flight;
        self.spread
            .released(now, self.limit() as f64 / self.latency.max(1e-3));
    }

    /// A request was answered.
    pub fn finished(&mut self, now: Instant, done: Done) {
        let weight = (2.0 / (self.limit() as f64 + 1.0)).clamp(0.02, 0.2);
        let took = done.took.min(DAY).as_secs_f64();
        self.latency = if self.latency > 0.0 {
            self.latency + weight * (took - self.latency)
        } else {
            took
        };
        self.in_flight = done.in_flight.saturating_sub(1);
        self.spread.finished();
        let ceiling = self.ceiling(now);
        match &mut self.how {
            How::Steady { limit, window, .. } => {
                *window += 1;
                if *window >= *limit {
                    *window = 0;
                    if done.queued && *limit < ceiling {
                        *limit += 1;
                        self.moved(Reason::Recovered);
                    }
                }
            }
            How::Climbing(climb) => {
                let filled = done.queued && done.in_flight >= climb.limit();
                climb.set_max(
                    ceiling,
                    self.wall
                        .is_some_and(|wall| filled && now < wall.since + wall.hold),
                );
                match climb.finished(now, &done, self.latency) {
                    Moved::No => {}
                    Moved::Up => self.moved(Reason::Faster),
                    Moved::Down => self.moved(Reason::Enough),
                }
            }
        }
    }

    /// The server wants less: 429, 503, a timeout. Once for all that were refused together; `retry_after` is how long
    /// it wants nothing at all.
    pub fn pushed_back(&mut self, now: Instant, retry_after: Option<Duration>) {
        self.summary.push_backs += 1;
        let before = self.limit();
        let n = self.in_flight.max(1);
        let latency = if self.latency > 0.0 { self.latency } else { 1.0 };
        let same = n.abs_diff(self.pushed.0) <= n / 10;
        self.pushed = (n, if same { self.pushed.1 + 1 } else { 1 });
        let by_rate = if n < FEW {
            n == 1 || self.pushed.1 < OFTEN
        } else {
            self.wall.is_some_and(|wall| 5 * n < 3 * wall.at) && self.pushed.1 < 2
        };
        self.spread
            .pushed_back(now, retry_after, n as f64 / latency, by_rate);
        if let How::Steady { limit, window, .. } = &mut self.how {
            *limit = (*limit / 2).max(1);
            *window = 0;
        }
        if by_rate {
            return self.moved(Reason::PushedBack);
        }
        // Never more than before: of those in flight some may have gone when it was higher.
        let at = (n - (n / 20).max(1).min(n - 1)).min(before);
        let hold = match self.wall {
            // Where it was before: seldom again.
            Some(wall) if now >= wall.since + wall.hold / 8 && at.abs_diff(wall.at) <= 1 + at / 4 => {
                (wall.hold * 2).min(HOLD.1)
            }
            Some(wall) => wall.hold,
            None => HOLD.0,
        };
        self.wall = Some(Wall { at, since: now, hold });
        if let How::Climbing(climb) = &mut self.how {
            climb.restart(now, at, at);
        }
        self.moved(Reason::PushedBack);
    }

    /// The server has started, maybe as another one, and says how many slots it has.
    pub fn slots(&mut self, slots: Option<usize>) {
        let auto = !matches!(self.how, How::Steady { auto: false, .. });
        if !auto {
            return;
        }
        let fresh = Self::new(Concurrency::Auto, slots);
        let summary = self.summary;
        *self = Self { summary, ..fresh };
        self.moved(if slots.is_some() {
            Reason::Slots
        } else {
            Reason::Start
        });
    }

    /// What became of it so far.
    pub fn summary(&self) -> PaceSummary {
        self.summary
    }

    /// What the limit may grow to now.
    fn ceiling(&self, now: Instant) -> usize {
        match self.wall {
            Some(wall) if now < wall.since + wall.hold => {
                let part = now.saturating_duration_since(wall.since).as_secs_f64() / wall.hold.as_secs_f64();
                let more = (wall.at as f64 * CREEP * part) as usize;
                (wall.at + more).clamp(1, self.ceiling)
            }
            _ => self.ceiling,
        }
    }

    /// Notes the limit that stands.
    fn moved(&mut self, reason: Reason) {
        let limit = match &self.how {
            How::Steady { limit, .. } => *limit,
            How::Climbing(climb) => climb.base(),
        };
        let (low, high) = self.summary.range;
        self.summary = PaceSummary {
            limit,
            range: (low.min(limit), high.max(limit)),
            reason,
            ..self.summary
        };
    }
}

fn with_surplus(slots: usize) -> usize {
    let slots = slots.clamp(1, AUTO.1);
    slots + surplus(slots)
}
