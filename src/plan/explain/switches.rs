//! Where a run has to load other engines.

use serde_json::{Value, json};

use crate::plan::{EngineIx, NodeIx, NodeKind, Plan};

/// A place in a chain where engines are loaded that do not fit beside those before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The Step that needs one of them.
    pub before: NodeIx,
    /// Those that have to go.
    pub unloaded: Vec<EngineIx>,
    /// Those that come.
    pub loaded: Vec<EngineIx>,
}

/// The places where a row finds another set of engines loaded than it needs next, in chain order. `sets`: the engines
/// that fit together (`engine::broker::stage::sets`); an engine in none of them is always there.
pub fn switches(plan: &Plan, sets: &[Vec<EngineIx>]) -> Vec<Switch> {
    let mut found = Vec::new();
    let mut loaded: Option<&[EngineIx]> = None;
    for (ix, node) in plan.nodes.iter().enumerate() {
        let NodeKind::Step(step) = &node.kind else {
            continue;
        };
        let has = |set: &[EngineIx]| set.contains(&step.engine);
        let Some(needed) = sets.iter().find(|set| has(set)) else {
            continue;
        };
        match loaded {
            Some(set) if has(set) => continue,
            Some(set) => found.push(Switch {
                before: NodeIx(ix),
                unloaded: without(set, needed),
                loaded: without(needed, set),
            }),
            None => {}
        }
        loaded = Some(needed);
    }
    found
}

fn without(set: &[EngineIx], other: &[EngineIx]) -> Vec<EngineIx> {
    let all = set.iter().filter(|engine| !other.contains(engine));
    all.copied().collect()
}

impl Switch {
    /// The names of the engines that come, and of those that go.
    pub(super) fn names(&self, plan: &Plan) -> (String, String) {
        let names = |engines: &[EngineIx]| {
            let names = engines.iter().filter_map(|ix| plan.engines.get(ix.0));
            names
                .map(|engine| engine.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        (names(&self.loaded), names(&self.unloaded))
    }
}

/// The switches for programs: `[{"before": "digest", "unloads": ["small"], "loads": ["large"]}]`.
pub fn switches_json(plan: &Plan, sets: &[Vec<EngineIx>]) -> Value {
    let names = |engines: &[EngineIx]| {
        let names = engines.iter().filter_map(|ix| plan.engines.get(ix.0));
        names.map(|engine| engine.name.clone()).collect::<Vec<_>>()
    };
    let each = switches(plan, sets).into_iter().map(|switch| {
        json!({
            "before": plan.nodes.get(switch.before.0).map(|node| &node.id),
            "unloads": names(&switch.unloaded),
            "loads": names(&switch.loaded),
        })
    });
    each.collect()
}
