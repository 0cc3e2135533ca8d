//! Which engines of a chain can be loaded at the same time.

use std::sync::Arc;

use crate::engine::broker::stage::Stage;
use crate::failpoint;
use crate::plan::{EngineIx, Plan};

/// The engines that are loaded together, set by set; none where all of them fit together.
pub(super) fn sets(plan: &Plan) -> Vec<Vec<EngineIx>> {
    let named = failpoint::sets().unwrap_or_default();
    let index = |name: &String| {
        let at = plan.engines.iter().position(|engine| engine.name == *name)?;
        Some(EngineIx(at))
    };
    let sets = named.iter().map(|set| set.iter().filter_map(index).collect());
    let sets: Vec<Vec<EngineIx>> = sets.filter(|set: &Vec<_>| !set.is_empty()).collect();
    if sets.len() < 2 { Vec::new() } else { sets }
}

/// What decides which set is loaded; none where all engines fit together.
pub(super) fn stage(plan: &Plan) -> Option<Arc<Stage>> {
    let sets = sets(plan);
    (!sets.is_empty()).then(|| Arc::new(Stage::new(sets)))
}
