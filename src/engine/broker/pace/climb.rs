//! Finds the knee of a server whose capacity nobody tells: the concurrency beyond which throughput no longer grows.
//!
//! A hill climb. It stays at one level (requests in flight), measures the throughput there, tries the level above
//! and the level below in turn, and moves when throughput says so: up when more in flight got more done, down when
//! fewer got as much done. Latency needs no rule of its own: in flight = throughput × latency (Little's law), so
//! latency that grows without throughput is a level too many.
//!
//! Measurements scatter. What a level got done is remembered while nothing changes, so that the same comparison gets
//! sharper each time; a level whose throughput changes is forgotten with its neighbours, and the search doubles
//! (or halves) its way to the new knee.

use std::time::Duration;

use tokio::time::Instant;

use super::Done;
use super::meter::Meter;

/// Twice the requests in flight must get at least this share of twice the work done, on a logarithmic scale.
const WORTH: f64 = 0.15;
/// The throughput that fewer in flight may cost, ln.
const LOSS: f64 = 0.02;
/// The smallest and the largest step between levels, ln.
const STEP: (f64, f64) = (0.22, std::f64::consts::LN_2);
/// A trial lasts for so many latencies, and at least so long.
const TRIAL: (f64, f64) = (3.0, 1.0);
/// The level above is tried about so often; the level below less and less often, up to this.
const EVERY: Duration = Duration::from_secs(3);
const SELDOM: Duration = Duration::from_secs(48);
/// A change of throughput at one level is news beyond so many standard errors, and so much, ln.
const NEWS: (f64, f64) = (3.0, 0.1);
/// Small deviations to one side add up to news, as far as each is larger than this (a CUSUM chart).
const SLACK: f64 = 0.75;
/// A request is worth its tokens and this many: the work of reading it, and all there is where tokens are not told.
/// Rows with longer replies are no slower a server.
const PROMPT: f64 = 32.0;
/// Fewer requests than this are no measurement.
const FEW: f64 = 12.0;

/// Which level is being measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trial {
    /// The one that stands.
    Here,
    /// One with more in flight.
    Above,
    /// One with fewer.
    Below,
}

/// Where a measurement stands.
#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Requests in flight still move to the level, one more or one less with each request that ends.
    Moving,
    /// The requests of the level before must have ended first.
    Settling { until: Instant, left: usize },
    /// Measuring since then, looked at once every period.
    Measuring {
        since: Instant,
        period: Duration,
        next: Instant,
    },
}

/// What a finished request has made of the level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// It stands where it stood.
    No,
    /// More in flight got more done.
    Up,
    /// Fewer in flight got as much done.
    Down,
}

/// The search.
#[derive(Debug)]
pub(super) struct Climb {
    /// The level that stands.
    base: usize,
    /// The level that is tried, or `base`.
    level: usize,
    /// The limit on its way to `level`.
    limit: usize,
    max: usize,
    trial: Trial,
    stage: Stage,
    /// What is being measured now, and what is remembered of the three levels.
    window: Meter,
    here: Meter,
    above: (usize, Meter),
    below: (usize, Meter),
    /// Where the knee is being looked for with large steps.
    seeking: Option<Trial>,
    /// By how much throughput fell when it was last forgotten, ln: the knee may have fallen as far.
    fell: f64,
    /// How far throughput at this level has drifted up and down, in standard errors beyond [`SLACK`].
    drift: [f64; 2],
    /// How much more the measurements scatter than chance alone would make them: variance, 1 = a Poisson process.
    scatter: f64,
    /// Mean latency of the last requests, s.
    latency: f64,
    next_above: Option<Instant>,
    next_below: Option<Instant>,
    below_every: Duration,
    /// How many more may go with each request that ends, on the way to a level.
    stride: usize,
}

impl Climb {
    /// Begins at a level and looks upwards.
    pub(super) fn new(start: usize, max: usize) -> Self {
        Self {
            base: start,
            level: start,
            limit: start,
            max,
            trial: Trial::Here,
            stage: Stage::Moving,
            window: Meter::default(),
            here: Meter::default(),
            above: (0, Meter::default()),
            below: (0, Meter::default()),
            seeking: Some(Trial::Above),
            scatter: 1.0,
            latency: 0.0,
            next_above: None,
            next_below: None,
            below_every: EVERY,
            fell: 0.0,
            drift: [0.0; 2],
            stride: 3,
        }
    }

    /// Requests that may be in flight now.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// The level that stands, whatever is being tried.
    pub(super) fn base(&self) -> usize {
        self.base
    }

    /// Goes on from another level, and never beyond `max`.
    pub(super) fn restart(&mut self, now: Instant, base: usize, max: usize) {
        self.max = max.max(1);
        self.stride = 1;
        self.base = base.clamp(1, self.max);
        self.forget();
        self.seeking = None;
        self.next_above = Some(now + self.pause(EVERY, 2.0));
        self.next_below = Some(now + self.pause(SELDOM, 16.0));
        self.stay();
        self.limit = self.base;
    }

    /// No level beyond `max` is tried; with `go`, the level that stands goes there at once.
    pub(super) fn set_max(&mut self, max: usize, go: bool) {
        self.max = max.max(self.base);
        if go && self.trial == Trial::Here && self.base < self.max {
            self.base = self.max;
            self.level = self.max;
            self.limit = self.max;
        }
    }

    /// A request was answered; `latency` is the mean of the last ones, seconds.
    pub(super) fn finished(&mut self, now: Instant, done: &Done, latency: f64) -> Moved {
        self.latency = latency;
        // What holds requests back is not the limit: nothing can be learnt about it.
        let slack = 1 + self.limit / 16;
        if !done.queued || done.in_flight + slack < self.limit {
            self.window = Meter::default();
            if !matches!(self.stage, Stage::Moving) {
                self.settle(now);
            }
            return Moved::No;
        }
        match self.stage {
            Stage::Moving => {
                self.limit = match self.trial {
                    Trial::Above => (self.limit + self.stride).min(self.level),
                    Trial::Here | Trial::Below => self.level,
                };
                if self.limit == self.level && done.in_flight <= self.level + slack {
                    self.settle(now);
                }
                Moved::No
            }
            Stage::Settling { until, left } => {
                if now >= until || left == 0 {
                    self.measure(now);
                } else {
                    self.stage = Stage::Settling {
                        until,
                        left: left - 1,
                    };
                }
                Moved::No
            }
            Stage::Measuring { since, period, next } => {
                let mut moved = Moved::No;
                if now >= next {
                    // The last whole one that has passed; of a slow server several may have.
                    let passed = now.saturating_duration_since(since).as_secs_f64() / period.as_secs_f64();
                    let lasted = period.mul_f64(passed.floor().max(1.0));
                    self.window.lasted(lasted);
                    self.stage = Stage::Measuring {
                        since,
                        period,
                        next: since + lasted + period,
                    };
                    moved = self.judge(now, lasted);
                }
                if matches!(self.stage, Stage::Measuring { .. }) {
                    self.window.add(PROMPT + done.tokens as f64);
                }
                moved
            }
        }
    }

    /// The requests of the level before end within a latency.
    fn settle(&mut self, now: Instant) {
        self.stage = Stage::Settling {
            until: now + Duration::from_secs_f64(self.latency),
            left: self.level,
        };
    }

    /// Within one latency each place ends one request, also where all of them move in step: only whole ones count.
    fn measure(&mut self, now: Instant) {
        let period = Duration::from_secs_f64(self.latency.max(0.005));
        self.window = Meter::default();
        self.stage = Stage::Measuring {
            since: now,
            period,
            next: now + period,
        };
    }

    /// Looks at a measurement; it may be too early to say.
    fn judge(&mut self, now: Instant, lasted: Duration) -> Moved {
        if self.window.requests() < FEW {
            return Moved::No;
        }
        let whole = lasted.as_secs_f64() >= self.trial_length();
        match self.trial {
            Trial::Here => {
                self.judge_here(now, whole);
                Moved::No
            }
            Trial::Above => self.judge_above(now, whole),
            Trial::Below => self.judge_below(now, whole),
        }
    }

    /// Measured where it stands: remembers it, unless it has changed.
    fn judge_here(&mut self, now: Instant, whole: bool) {
        let (gain, chance) = self.window.gain(&self.here);
        if chance.is_finite() {
            let z = gain / (chance * self.scatter.sqrt());
            let drift = [
                (self.drift[0] + z - SLACK).max(0.0),
                (self.drift[1] - z - SLACK).max(0.0),
            ];
            let news = z.abs() > NEWS.0 || (whole && drift.iter().any(|sum| *sum > NEWS.0));
            if news && gain.abs() > NEWS.1 {
                self.forget();
                self.seeking = Some(if gain > 0.0 { Trial::Above } else { Trial::Below });
                self.fell = -gain;
                self.here = self.window;
                return self.go_on(now);
            }
            if !whole {
                return;
            }
            self.drift = drift;
            let raw = (gain / chance).powi(2).min(9.0);
            self.scatter = (self.scatter + 0.1 * (raw - self.scatter)).clamp(0.1, 4.0);
        } else if !whole && self.window.requests() < 2.0 * FEW {
            return;
        }
        self.here = self.here.with(&self.window);
        self.go_on(now)
    }

    /// More in flight: it stays when that got more done.
    fn judge_above(&mut self, now: Instant, whole: bool) -> Moved {
        let measured = self.above.1.unless_news(&self.window, self.scatter);
        let (gain, error) = measured.gain(&self.here);
        let error = error * self.scatter.sqrt();
        let step = (self.level as f64 / self.base as f64).ln();
        let worth = WORTH * step;
        if gain - error > worth || (whole && gain > worth) {
            // Nearly as much more as was tried: the knee is far.
            if gain > 0.6 * step {
                self.seeking = Some(Trial::Above);
            }
            self.below = (self.base, self.here);
            self.here = measured;
            self.above = (0, Meter::default());
            self.base = self.level;
            self.go_on(now);
            return Moved::Up;
        }
        if whole || gain + 1.5 * error < worth {
            self.above.1 = measured;
            self.seeking = None;
            self.next_above = Some(now + self.pause(EVERY, 2.0));
            self.next_below.get_or_insert(now + self.pause(2 * EVERY, 16.0));
            self.stay();
        }
        Moved::No
    }

    /// Fewer in flight: it stays when that got as much done.
    fn judge_below(&mut self, now: Instant, whole: bool) -> Moved {
        let measured = self.below.1.unless_news(&self.window, self.scatter);
        let (gain, error) = measured.gain(&self.here);
        let error = error * self.scatter.sqrt();
        let step = (self.base as f64 / self.level as f64).ln();
        // As much as before, and surely not as much less as there are fewer in flight.
        let certain = gain - 2.5 * error > -0.5 * step;
        let seeking = self.seeking.is_some();
        let good = if seeking {
            gain - 1.5 * error > -0.3 * step || (whole && gain > -0.1 * step)
        } else {
            certain && gain > -LOSS && (whole || gain - error > -LOSS)
        };
        if good {
            self.above = (self.base, self.here);
            self.here = measured;
            self.below = (0, Meter::default());
            self.base = self.level;
            self.below_every = EVERY;
            self.next_below = Some(now);
            self.go_on(now);
            return Moved::Down;
        }
        let poor = if seeking { -0.25 * step } else { -LOSS };
        if whole || gain + error < poor {
            self.below.1 = measured;
            self.seeking = None;
            self.below_every = (self.below_every * 3).min(SELDOM);
            self.next_below = Some(now + self.pause(self.below_every, 16.0));
            self.stay();
        }
        Moved::No
    }

    /// Chooses what is tried next.
    fn go_on(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_none_or(|at| now >= at);
        let step = self.step();
        let up = ((self.base as f64 * step.exp()).round() as usize)
            .max(self.base + 1)
            .min(self.max);
        let down = ((self.base as f64 / step.exp()).round() as usize).min(self.base - 1);
        let trial = match self.seeking {
            Some(trial) => trial,
            None if due(self.next_above) => Trial::Above,
            None if due(self.next_below) => Trial::Below,
            None => Trial::Here,
        };
        match trial {
            Trial::Above if up > self.base => {
                if self.above.0 != up {
                    self.above = (up, Meter::default());
                }
                self.try_level(trial, up);
            }
            Trial::Below if down >= 1 => {
                if self.below.0 != down {
                    self.below = (down, Meter::default());
                }
                self.try_level(trial, down);
            }
            // There is no such level.
            Trial::Above => {
                self.seeking = None;
                self.next_above = Some(now + self.pause(EVERY, 2.0));
                self.stay();
            }
            Trial::Below => {
                self.seeking = None;
                self.next_below = Some(now + self.pause(SELDOM, 16.0));
                self.stay();
            }
            Trial::Here => {
                self.measure(now);
                if self.level != self.base || self.limit != self.base {
                    self.stay();
                }
                self.trial = Trial::Here;
            }
        }
    }

    /// Goes to a level, to measure it once it is reached.
    fn try_level(&mut self, trial: Trial, level: usize) {
        self.trial = trial;
        self.level = level;
        self.stage = Stage::Moving;
        self.window = Meter::default();
    }

    /// Back to the level that stands.
    fn stay(&mut self) {
        self.try_level(Trial::Here, self.base);
    }

    /// Nothing that was measured holds any more.
    fn forget(&mut self) {
        self.drift = [0.0; 2];
        self.here = Meter::default();
        self.above = (0, Meter::default());
        self.below = (0, Meter::default());
        self.below_every = EVERY;
        self.next_above = None;
        self.next_below = None;
    }

    /// The step between levels, ln: as large as a trial can tell apart.
    fn step(&self) -> f64 {
        match self.seeking {
            Some(Trial::Below) => return self.fell.clamp(STEP.1, 3.0 * STEP.1),
            Some(_) => return STEP.1,
            None => {}
        }
        let per_second = self.base as f64 / self.latency.max(1e-6);
        let requests = per_second * self.trial_length();
        (3.0 * (2.0 * self.scatter / requests).sqrt()).clamp(STEP.0, STEP.1)
    }

    /// Seconds that a trial lasts at most.
    fn trial_length(&self) -> f64 {
        (TRIAL.0 * self.latency).max(TRIAL.1)
    }

    /// A pause, longer where requests take long.
    fn pause(&self, pause: Duration, latencies: f64) -> Duration {
        pause.max(Duration::from_secs_f64(latencies * self.latency))
    }
}
