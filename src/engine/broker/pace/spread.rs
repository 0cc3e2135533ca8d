//! After a push-back requests go out one by one, at the rate that the server took before: everyone who waited out a
//! pause would otherwise come at once, and be pushed back again.
//!
//! It is also what finds a limit of requests per minute that the server does not tell: the rate begins a little below
//! what was granted, and rises until the server pushes back again.

use std::time::Duration;

use tokio::time::Instant;

use super::Cause;

/// The rate after a push-back, as a part of what was granted before, and what it gains each second.
const BEGIN: f64 = 0.95;
const GAIN: f64 = 0.02;
/// After so many seconds without a push-back the rate was too low, and grows by this part each second.
const PATIENCE: f64 = 10.0;
const HASTE: f64 = 1.2;
/// A pause that takes this part of all the time is no accident: the server counts requests per time.
const PAUSED: f64 = 0.25;
/// So does one this long.
const LONG: Duration = Duration::from_secs(5);
/// How far a late timer may be made up for.
const LATE: Duration = Duration::from_millis(10);

/// The rate at which requests go out; none before the first push-back.
#[derive(Debug, Default)]
pub(super) struct Spread {
    /// Requests per second that were granted, and since when the rate goes up from there.
    granted: Option<(f64, Instant)>,
    next: Option<Instant>,
    /// What was answered since then.
    cycle: Option<(u64, Instant)>,
    /// A push-back that no request has followed yet: its time and the rate then.
    pushed: Option<(Instant, f64, Cause)>,
    /// Whether the rate is to be kept, or only to be reached without a rush.
    keep: bool,
}

impl Spread {
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    pub(super) fn finished(&mut self) {
        if let Some((done, _)) = &mut self.cycle {
            *done += 1;
        }
    }

    /// `rate`: requests per second that were got through just before.
    pub(super) fn pushed_back(
        &mut self,
        now: Instant,
        retry_after: Option<Duration>,
        rate: f64,
        cause: Cause,
    ) {
        self.pushed = Some((now, rate, cause));
        if let Some(wait) = retry_after {
            self.next = self.next.max(now.checked_add(wait));
        }
    }

    /// `most`: requests per second that the limit lets through.
    pub(super) fn released(&mut self, now: Instant, most: f64) {
        let (done, since) = *self.cycle.get_or_insert((0, now));
        if let Some((pushed, rate, cause)) = self.pushed.take() {
            let whole = now.saturating_duration_since(since).as_secs_f64().max(1e-3);
            let pause = now.saturating_duration_since(pushed).as_secs_f64();
            self.keep = cause == Cause::Rate || pause >= LONG.as_secs_f64();
            let mean = (done as f64).max(0.5) / whole;
            let granted = if self.keep && (pause >= PAUSED * whole || whole >= 5.0) {
                mean
            } else {
                rate
            };
            self.granted = Some((granted.max(1.0 / 3600.0), now));
            self.cycle = Some((0, now));
        }
        let Some((granted, since)) = self.granted else {
            return;
        };
        let age = now.saturating_duration_since(since).as_secs_f64();
        let patience = if self.keep { PATIENCE } else { 0.0 };
        let rate = granted * (BEGIN + GAIN * age) * HASTE.powf((age - patience).clamp(0.0, 300.0));
        if rate > 2.0 * most && age > patience {
            // The limit alone holds requests back now.
            (self.granted, self.next) = (None, None);
            return;
        }
        let from = self
            .next
            .map_or(now, |next| next.max(now.checked_sub(LATE).unwrap_or(now)));
        self.next = from.checked_add(Duration::from_secs_f64(1.0 / rate.max(1e-4)));
    }
}
