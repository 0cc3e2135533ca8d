//! The gate as those see it who start, watch and stop its servers.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::gate::Gate;
use super::memory::Resident;
use super::place::{Answerer, Health};
use super::suspects::{Crash, Who};
use crate::engine::SharedEngine;

impl Gate {
    /// Waits until a row waits for a lease.
    pub(super) async fn wanted(&self) {
        loop {
            let told = self.wants.notified();
            if self.lock().is_wanted() {
                return;
            }
            told.await;
        }
    }

    /// Waits until a server has nothing in flight.
    pub(super) async fn quiet_at(&self, at: usize) {
        loop {
            let told = self.quiet.notified();
            if self
                .lock()
                .places
                .get(at)
                .is_none_or(|place| place.in_flight == 0)
            {
                return;
            }
            told.await;
        }
    }

    /// What is being done about a server that is not there.
    pub(super) fn absent(self: &Arc<Self>, at: usize, what: &str, starting: bool) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(at) {
            place.health = Health::Absent {
                what: what.to_owned(),
                starting,
                until: None,
            };
            if place.engine.take().is_some() {
                // What is still on its way is no news of whoever comes next.
                place.epoch += 1;
            }
        }
        self.pump(state);
    }

    /// A server is there and takes requests.
    pub(super) fn opened(self: &Arc<Self>, at: usize, engine: SharedEngine, slots: Option<usize>) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(at) {
            place.engine = Some(Answerer(engine));
            place.health = Health::Open;
            place.epoch += 1;
            place.faults = 0;
            place.idle_since = Instant::now();
            place.pace.slots(slots);
        }
        state.announced = None;
        self.pump(state);
    }

    /// A server ended by itself: what was in flight there is suspect. True when that explains it.
    pub(super) fn crashed(self: &Arc<Self>, at: usize, cause: &str) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(place) = state.places.get_mut(at) else {
            return false;
        };
        let flying: Vec<Who> = place.flying.values().copied().collect();
        place.health = Health::Absent {
            what: "its server has ended".to_owned(),
            starting: false,
            until: None,
        };
        place.engine = None;
        place.epoch += 1;
        let life = place.life.clone();
        let crash = state.suspects.crashed(&flying);
        cause.clone_into(&mut state.cause);
        let since = *state.since.get_or_insert(now);
        self.wake(self.patience_ends(since), None);
        self.pump(state);
        life.send_modify(|life| *life += 1);
        crash == Crash::Isolated
    }

    /// There is no server, and why; until when nothing is tried.
    pub(super) fn not_there(self: &Arc<Self>, at: usize, why: &str, until: Option<Instant>) {
        let now = Instant::now();
        let mut state = self.lock();
        why.clone_into(&mut state.cause);
        let since = *state.since.get_or_insert(now);
        if let Some(place) = state.places.get_mut(at) {
            place.health = Health::Absent {
                what: why.to_owned(),
                starting: false,
                until,
            };
        }
        self.wake(self.patience_ends(since), None);
        self.pump(state);
    }

    /// There will never be a server. The engine is given up when none of its servers is left.
    pub(super) fn dead(self: &Arc<Self>, at: usize, why: &str) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(at) {
            place.health = Health::Dead;
        }
        let all = state.places.iter().all(|place| place.health == Health::Dead);
        drop(state);
        if all {
            self.give_up(why);
        } else {
            self.warn(format!(
                "a server of engine `{}` {why}; the others go on",
                self.name()
            ));
        }
    }

    /// No more requests for a server; those in flight go on.
    pub(super) fn drain(self: &Arc<Self>, at: usize) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(at)
            && place.engine.is_some()
        {
            place.health = Health::Draining;
            place.epoch += 1;
        }
        self.pump(state);
    }

    /// A drain was called off: the server takes requests again.
    pub(super) fn undrain(self: &Arc<Self>, at: usize) {
        let mut state = self.lock();
        if let Some(place) = state.places.get_mut(at)
            && place.health == Health::Draining
        {
            place.health = Health::Open;
        }
        self.pump(state);
    }

    /// Takes a server out of service if nobody uses it or waits for it; what is left of it is the caller's to stop.
    pub(super) fn close_if_idle(self: &Arc<Self>, at: usize, why: &str) -> bool {
        let mut state = self.lock();
        let wanted = state.is_wanted();
        let Some(place) = state.places.get_mut(at) else {
            return false;
        };
        if place.in_flight > 0 || wanted || place.engine.is_none() {
            return false;
        }
        place.engine = None;
        place.epoch += 1;
        place.health = Health::Absent {
            what: why.to_owned(),
            starting: false,
            until: None,
        };
        true
    }

    /// How long nobody has used or wanted a server; none while somebody does.
    pub(super) fn idle_for(&self, at: usize) -> Option<Duration> {
        let state = self.lock();
        let place = state.places.get(at)?;
        (place.in_flight == 0 && !state.is_wanted()).then(|| place.idle_since.elapsed())
    }

    /// Requests in flight at a server.
    pub(super) fn in_flight(&self, at: usize) -> usize {
        self.lock().places.get(at).map_or(0, |place| place.in_flight)
    }

    /// It brings servers down: it is not asked again.
    pub(super) fn is_condemned(&self, who: &Who) -> bool {
        self.lock().suspects.is_condemned(who)
    }

    /// A request goes out.
    pub(super) fn takes_off(&self, at: usize, lease: u64, who: Who) {
        if let Some(place) = self.lock().places.get_mut(at) {
            place.flying.insert(lease, who);
        }
    }

    /// A request is over.
    pub(super) fn lands(&self, at: usize, lease: u64) {
        if let Some(place) = self.lock().places.get_mut(at) {
            place.flying.remove(&lease);
        }
    }
}

impl Resident for Gate {
    fn name(&self) -> &str {
        Self::name(self)
    }

    fn unused_since(&self) -> Option<std::time::Instant> {
        let state = self.lock();
        (!state.is_in_use()).then(|| state.used.into_std())
    }
}
