//! Which engines are loaded, where those of a chain do not all fit together.
//!
//! A stage holds one *set* of engines at a time. Rows that need another engine are parked, and the stage goes on to the
//! next set when the loaded one has nothing left to do. It is told what happens and decides; it starts and stops nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Budget;
use crate::engine::provision::Need;
use crate::plan::EngineIx;

/// The sets of engines, and which of them is loaded.
#[derive(Debug)]
pub struct Stage {
    sets: Vec<Vec<EngineIx>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Index of the set.
    loaded: usize,
    /// By engine: rows that are parked for it.
    parked: BTreeMap<EngineIx, u64>,
    switches: u64,
    /// The set before this one, until an engine is lent.
    before: Option<usize>,
}

/// How the input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feeding {
    /// Rows come, or are expected to.
    More,
    /// None came for a while.
    Idle,
    /// It is at its end.
    Ended,
}

/// What a stage decides by, besides what it counts itself.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Rows on their way.
    pub in_flight: usize,
    /// More rows may be parked.
    pub has_room: bool,
    /// The input.
    pub feeding: Feeding,
    /// The engine that a new row meets first of those in sets.
    pub first: EngineIx,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Lead rows on that were parked for the loaded set.
    Resume,
    /// Take new rows; before these set out, [`Stage::enter`].
    Read,
    /// Wait until a row on its way ends or is parked.
    Wait,
    /// All is done.
    End,
}

impl Stage {
    /// A stage over sets of engines that fit together, in chain order; the first is loaded. An engine may stand in several
    /// sets; one in none of them is always there.
    pub fn new(sets: Vec<Vec<EngineIx>>) -> Self {
        Self {
            sets,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sets, in the order they were given.
    pub fn sets(&self) -> &[Vec<EngineIx>] {
        &self.sets
    }

    fn set(&self, ix: usize) -> &[EngineIx] {
        self.sets.get(ix).map(Vec::as_slice).unwrap_or_default()
    }

    /// True for an engine that is loaded at times only.
    pub fn is_staged(&self, engine: EngineIx) -> bool {
        self.sets.iter().any(|set| set.contains(&engine))
    }

    /// The engines of the loaded set.
    pub fn loaded(&self) -> Vec<EngineIx> {
        self.set(self.state().loaded).to_vec()
    }

    /// Whether an engine may be asked now.
    pub fn admits(&self, engine: EngineIx) -> bool {
        self.set(self.state().loaded).contains(&engine) || !self.is_staged(engine)
    }

    /// Starts a run whose rows meet this engine first: its set is loaded, which is no switch.
    pub fn begin(&self, first: EngineIx) {
        *self.state() = State {
            loaded: self.set_of(first),
            ..State::default()
        };
    }

    /// The first set that an engine stands in.
    fn set_of(&self, engine: EngineIx) -> usize {
        let found = self.sets.iter().position(|set| set.contains(&engine));
        found.unwrap_or(0)
    }

    /// A row was parked for an engine. Rows on their way are counted by the caller: a row is counted here before it stops
    /// being one of those, and the other way round.
    pub fn parked(&self, engine: EngineIx) {
        *self.state().parked.entry(engine).or_default() += 1;
    }

    /// A row that was parked for an engine is on its way again.
    pub fn unparked(&self, engine: EngineIx) {
        let mut state = self.state();
        if let Some(rows) = state.parked.get_mut(&engine) {
            *rows = rows.saturating_sub(1);
        }
    }

    /// An engine was lent to a row.
    pub fn lent(&self, engine: EngineIx) {
        if self.is_staged(engine) {
            self.state().before = None;
        }
    }

    /// Decides what is to be done, and goes on to another set where that is it.
    pub fn next(&self, flow: &Flow) -> Next {
        let mut state = self.state();
        let rows = |state: &State, set: usize| {
            let rows = self.set(set).iter().filter_map(|engine| state.parked.get(engine));
            rows.sum::<u64>()
        };
        if rows(&state, state.loaded) > 0 {
            return Next::Resume;
        }
        let any = state.parked.values().any(|rows| *rows > 0);
        let is_quiet = flow.in_flight == 0;
        let is_first = self.set(state.loaded).contains(&flow.first);
        // With nothing parked a row may come however little room there is, or none ever would.
        let may_come = is_first && (flow.has_room || (is_quiet && !any));
        match flow.feeding {
            Feeding::More if may_come => return Next::Read,
            Feeding::Idle if may_come && !(is_quiet && any) => return Next::Read,
            _ if !is_quiet => return Next::Wait,
            // Its set is loaded when a row is there: perhaps none comes.
            Feeding::More | Feeding::Idle if !any => return Next::Read,
            Feeding::Ended if !any => return Next::End,
            _ => {}
        }
        // The lower index of equals: chains lead from one set to the next.
        let most = (0..self.sets.len()).rev().max_by_key(|set| rows(&state, *set));
        self.switch(&mut state, most.unwrap_or(0));
        Next::Resume
    }

    /// New rows set out that meet this engine first: loads its set. To be called with no row on its way, unless that set is
    /// loaded.
    pub fn enter(&self, first: EngineIx) {
        let mut state = self.state();
        if !self.set(state.loaded).contains(&first) {
            self.switch(&mut state, self.set_of(first));
        }
    }

    fn switch(&self, state: &mut State, to: usize) {
        if to == state.loaded {
            return;
        }
        state.before = Some(state.loaded);
        state.loaded = to;
        state.switches += 1;
    }

    /// How often another set was loaded.
    pub fn switches(&self) -> u64 {
        self.state().switches
    }

    /// Rows that are parked for an engine.
    pub fn rows(&self, engine: EngineIx) -> u64 {
        self.state().parked.get(&engine).copied().unwrap_or(0)
    }

    /// The engines that are being loaded, and those whose place they take; none once one of them was lent.
    pub fn switching(&self) -> Option<(Vec<EngineIx>, Vec<EngineIx>)> {
        let state = self.state();
        let (old, new) = (self.set(state.before?), self.set(state.loaded));
        let without = |set: &[EngineIx], other: &[EngineIx]| {
            let all = set.iter().filter(|engine| !other.contains(engine));
            all.copied().collect()
        };
        Some((without(new, old), without(old, new)))
    }
}

/// The engines that may be loaded at the same time, by what each needs (none: not ours to load). One set if all of them
/// fit together, none if there is nothing to load; else as many as it takes, each begun by the first engine, in chain
/// order, that has no set yet, and filled up in that order, at last with those that have one.
pub fn sets(needs: &[Option<Need>], budget: &Budget) -> Vec<Vec<EngineIx>> {
    let ours: Vec<(EngineIx, &Need)> = needs
        .iter()
        .enumerate()
        .filter_map(|(ix, need)| Some((EngineIx(ix), need.as_ref()?)))
        .collect();
    let mut sets: Vec<Vec<EngineIx>> = Vec::new();
    loop {
        let has_set = |engine: &EngineIx| sets.iter().any(|set| set.contains(engine));
        let (old, new): (Vec<_>, Vec<_>) = ours.iter().partition(|(engine, _)| has_set(engine));
        if new.is_empty() {
            return sets;
        }
        let mut set: Vec<(EngineIx, &Need)> = Vec::new();
        for (engine, need) in new.into_iter().chain(old) {
            let together = set.iter().map(|(_, need)| *need).chain([need]);
            // What does not fit alone has a set of its own; whoever loads it says what is wrong.
            if set.is_empty() || budget.holds(together) {
                set.push((engine, need));
            }
        }
        set.sort_unstable_by_key(|(engine, _)| *engine);
        sets.push(set.into_iter().map(|(engine, _)| engine).collect());
    }
}
