//! Who waits for an engine, and who of them goes next.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::gate::State;
use super::lease::Lease;
use super::suspects::Who;
use crate::engine::Stop;

/// Those who wait: by row (or the row behind which they stand), by the faults they met, in the order they came.
pub(super) type Queue = BTreeMap<(u64, u32, u64), Waiter>;

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Where the lease goes.
    pub(super) turn: oneshot::Sender<Result<Lease, Stop>>,
    /// What it is going to ask.
    pub(super) who: Who,
}

/// Who goes next, and where to.
pub(super) struct Grant {
    pub(super) key: (u64, u32, u64),
    pub(super) at: usize,
    /// It tries whether the server is back.
    pub(super) probe: bool,
    /// Nothing else may be in flight there.
    pub(super) alone: bool,
}

impl State {
    /// Those who still wait.
    pub(super) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.queue.values().filter(|waiter| !waiter.turn.is_closed())
    }

    /// True when somebody waits for a lease.
    pub(super) fn is_wanted(&self) -> bool {
        self.waiters().next().is_some()
    }

    /// True while somebody waits for a lease or has one.
    pub(super) fn is_in_use(&self) -> bool {
        self.is_wanted() || self.places.iter().any(|place| place.in_flight > 0)
    }

    /// Who goes next: the first in line to the server that has the least in flight; a suspect to one that has nothing,
    /// which is kept clear for it. Else the time to look again, if it is only that which is missing.
    pub(super) fn next(&self, now: Instant) -> Result<Grant, Option<Instant>> {
        let mut kept = None;
        if self.suspects.any_isolated() {
            let mut waiting = self.queue.iter();
            let suspect = waiting
                .find(|(_, waiter)| self.suspects.is_isolated(&waiter.who) && !waiter.turn.is_closed());
            if let Some((key, _)) = suspect {
                let (at, place) = self
                    .places
                    .iter()
                    .enumerate()
                    .filter(|(_, place)| place.can_serve())
                    .min_by_key(|(_, place)| place.in_flight)
                    .ok_or(None)?;
                if place.in_flight == 0
                    && let Some(probe) = place.admits(now)
                {
                    let alone = true;
                    return Ok(Grant {
                        key: *key,
                        at,
                        probe,
                        alone,
                    });
                }
                kept = Some(at);
            }
        }
        let innocent = |waiter: &Waiter| kept.is_none() || !self.suspects.is_isolated(&waiter.who);
        let waiter = self.queue.iter().find(|(_, waiter)| innocent(waiter));
        let (key, _) = waiter.ok_or(None)?;
        let places = self.places.iter().enumerate().filter(|(at, _)| Some(*at) != kept);
        let mut later: Option<Instant> = None;
        // One request at a time tries a server that was down, although others have room: else nobody would find out.
        let best = places
            .filter_map(|(at, place)| Some((at, place.admits(now)?, place)))
            .filter(|(_, _, place)| match place.pace.release_at(now) {
                None => true,
                Some(at) => {
                    later = Some(later.map_or(at, |other| other.min(at)));
                    false
                }
            })
            .min_by_key(|(_, probe, place)| (!probe, place.in_flight))
            .map(|(at, probe, _)| (at, probe));
        match best {
            Some((at, probe)) => Ok(Grant {
                key: *key,
                at,
                probe,
                alone: false,
            }),
            None => Err(later),
        }
    }
}
