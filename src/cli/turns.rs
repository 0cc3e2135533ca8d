//! Which engines of a chain can be loaded at the same time.

use super::engine::Planned;
use crate::engine::broker::stage;
use crate::failpoint;
use crate::plan::{EngineIx, Plan};

/// The engines that are loaded together, set by set; none where all of them fit together.
pub(super) fn sets(plan: &Plan, planned: &Planned) -> Vec<Vec<EngineIx>> {
    let sets = match failpoint::sets() {
        Some(named) => {
            let index = |name: &String| {
                let at = plan.engines.iter().position(|engine| engine.name == *name)?;
                Some(EngineIx(at))
            };
            let sets = named.iter().map(|set| set.iter().filter_map(index).collect());
            sets.filter(|set: &Vec<_>| !set.is_empty()).collect()
        }
        None => stage::sets(&planned.needs(), planned.budget()),
    };
    if sets.len() < 2 { Vec::new() } else { sets }
}

/// The same for a look at a chain, on a machine that may not have what it takes to run it.
pub(super) fn expected(plan: &Plan) -> Vec<Vec<EngineIx>> {
    sets(plan, &Planned::as_far_as_known(&plan.engines, &plan.resources))
}
