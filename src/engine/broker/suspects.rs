//! Who may have brought a server down: a pure record of crashes and of what was in flight at each.
//!
//! After a crash everything that was in flight is suspect, and asked again at no cost. What was in flight at two crashes
//! is asked alone from then on; what brings a server down alone, twice, is condemned: its row fails with `engine_crash`.

use std::collections::{HashMap, HashSet};

/// A request, by its digest.
pub(super) type Who = [u8; 32];

/// How often a request may bring a server down while it is the only one there.
const ALONE: u32 = 2;

/// The suspects of one engine.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// In flight at a crash and not answered since.
    seen: HashSet<Who>,
    /// In flight at two crashes: they are asked one at a time.
    isolated: HashSet<Who>,
    /// Crashes at which a request was the only one in flight.
    alone: HashMap<Who, u32>,
    condemned: HashSet<Who>,
}

/// What a crash was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// Nobody knows why.
    Unexplained,
    /// An isolated suspect was there alone: it says nothing of the server.
    Isolated,
}

impl Suspects {
    /// A server crashed while these were in flight.
    pub(super) fn crashed(&mut self, flying: &[Who]) -> Crash {
        let crash = match flying {
            [one] if self.isolated.contains(one) => Crash::Isolated,
            _ => Crash::Unexplained,
        };
        if let [one] = flying {
            let times = self.alone.entry(*one).or_default();
            *times += 1;
            if *times >= ALONE {
                self.condemned.insert(*one);
                self.seen.remove(one);
                self.isolated.remove(one);
                self.alone.remove(one);
                return crash;
            }
        }
        // Rows may ask the same: one crash is one, however often a request was in flight at it.
        let flying: HashSet<Who> = flying.iter().copied().collect();
        for who in flying {
            if !self.seen.insert(who) {
                self.isolated.insert(who);
            }
        }
        crash
    }

    /// It was answered: it does not bring servers down.
    pub(super) fn answered(&mut self, who: &Who) {
        if !self.seen.is_empty() || !self.alone.is_empty() {
            self.seen.remove(who);
            self.isolated.remove(who);
            self.alone.remove(who);
        }
    }

    /// It must be asked while nothing else is in flight.
    pub(super) fn is_isolated(&self, who: &Who) -> bool {
        self.isolated.contains(who)
    }

    /// True while some must be asked alone.
    pub(super) fn any_isolated(&self) -> bool {
        !self.isolated.is_empty()
    }

    /// It brought a server down alone, twice: it is not asked again.
    pub(super) fn is_condemned(&self, who: &Who) -> bool {
        self.condemned.contains(who)
    }
}
