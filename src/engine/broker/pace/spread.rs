//! After a push-back requests go out one by one, at the rate that the server took before: everyone who waited out a
//! pause would otherwise come at once, and be pushed back again.
//!
//! It is also what finds a limit of requests per minute that the server does not tell: the rate begins a little below
//! what was got through, and rises until the server pushes back again.

use std::time::Duration;

use tokio::time::Instant;

/// The rate after a push-back, as a part of what was got through before, and what it gains each second.
const BEGIN: f64 = 0.92;
const GAIN: f64 = 0.01;
/// After so many seconds without a push-back the rate was too low, and grows by this factor each second. Where the
/// server minds the number in flight, the rate is only there to begin without a rush.
const PATIENCE: (f64, f64) = (15.0, 2.0);
const HASTE: f64 = 1.2;
/// Below this rate, per second, all of it goes the more slowly: it is requests that tell, not seconds.
const SLOW: f64 = 5.0;
/// A push-back so soon after the pause: the rate was far too high.
const SOON: Duration = Duration::from_secs(2);
/// Then this part of it is tried, at the second one in a row this, and half from the third on.
const SOON_PARTS: [f64; 2] = [0.85, 0.7];
/// A pause this long is part of the server's count of requests per time.
const LONG: Duration = Duration::from_secs(5);
/// The lowest rate, per second.
const SLOWEST: f64 = 0.02;
/// How far a late timer may be made up for.
const LATE: Duration = Duration::from_millis(10);

/// The rate at which requests go out; none before the first push-back.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// Requests per second after the last push-back, and since when it rises from there.
    base: Option<(f64, Instant)>,
    /// The next request goes no sooner.
    next: Option<Instant>,
    /// What was answered since requests went out again, and when that was.
    cycle: Option<(u64, Instant)>,
    /// Push-backs in a row, each soon after the one before.
    soon: usize,
    /// A push-back that no request has followed yet: its time and the rate then.
    pushed: Option<(Instant, f64)>,
    /// Seconds before haste.
    patience: f64,
    /// The last pause that the server asked for, in seconds.
    pause: f64,
}

impl Spread {
    /// The next request goes no sooner.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A request was answered.
    pub(super) fn finished(&mut self) {
        if let Some((done, _)) = &mut self.cycle {
            *done += 1;
        }
    }

    /// The server pushed back. `most`: requests per second by what is in flight; `by_rate`: their number is not
    /// what the server minds.
    pub(super) fn pushed_back(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        most: f64,
        by_rate: bool,
    ) {
        self.soon = match self.base {
            Some((_, since)) if by_rate && now < since + SOON => self.soon + 1,
            _ => 0,
        };
        let rate = match self.base {
            Some((base, since)) if by_rate && now < since + SOON => {
                base * SOON_PARTS.get(self.soon - 1).copied().unwrap_or(0.5)
            }
            Some((base, since)) if by_rate => self.rate(base, since, now) * BEGIN,
            Some((base, since)) => self.rate(base, since, now).min(most),
            None => most,
        };
        self.patience = if by_rate { PATIENCE.0 } else { PATIENCE.1 };
        self.pushed = Some((now, rate));
        self.pause = retry_after
            .map_or(1.0, |wait| wait.as_secs_f64())
            .clamp(0.05, 0.5 / SLOWEST);
        if let Some(wait) = retry_after {
            self.next = self.next.max(now.checked_add(wait));
        }
    }

    /// A request goes; `most`: requests per second that the limit lets through.
    pub(super) fn released(&mut self, now: Instant, most: f64) {
        let (done, since) = *self.cycle.get_or_insert((0, now));
        if let Some((pushed, rate)) = self.pushed.take() {
            let base = if now.saturating_duration_since(pushed) >= LONG {
                (done as f64).max(0.5) / now.saturating_duration_since(since).as_secs_f64()
            } else {
                rate
            };
            // Where nothing got through at all, no rate was learnt: the server's own pauses say how patient to be.
            let least = if done == 0 { 0.5 / self.pause } else { SLOWEST };
            self.base = Some((base.max(least), now));
            self.cycle = Some((0, now));
        }
        let Some((base, since)) = self.base else { return };
        let rate = self.rate(base, since, now);
        if rate > 2.0 * most {
            // The limit alone holds requests back now.
            (self.base, self.next) = (None, None);
            return;
        }
        let from = self
            .next
            .map_or(now, |next| next.max(now.checked_sub(LATE).unwrap_or(now)));
        self.next = from.checked_add(Duration::from_secs_f64(1.0 / rate));
    }

    /// Requests per second, that long after a push-back.
    fn rate(&self, base: f64, since: Instant, now: Instant) -> f64 {
        let age = now.saturating_duration_since(since).as_secs_f64() / (SLOW / base).clamp(1.0, SLOW);
        base * (1.0 + GAIN * age) * HASTE.powf((age - self.patience).clamp(0.0, 300.0))
    }
}
