//! What the pools of an engine add to what its gate knows.

use std::sync::Arc;

use super::EngineLoad;
use crate::engine::embedded::{Metrics, Tended};
use crate::event::{EngineStats, ModelStats};

/// Adds what the engine's models did, over all its pools.
pub(super) fn stats(pools: &[Arc<dyn Tended>], mut stats: EngineStats) -> EngineStats {
    for pool in pools.iter().filter(|pool| pool.name() == stats.engine) {
        *stats.models.get_or_insert_default() += did(&pool.metrics());
    }
    stats
}

fn did(metrics: &Metrics) -> ModelStats {
    ModelStats {
        loads: metrics.loads,
        loading: metrics.loading,
        workers: metrics.most_workers as u64,
        busy: metrics.busy,
        panics: metrics.panics,
        reused_tokens: metrics.reused_tokens,
    }
}

/// Tells what is done about a model that is not there. What the gate has let in waits for it then.
pub(super) fn load(pools: &[Arc<dyn Tended>], load: EngineLoad) -> EngineLoad {
    let own = || pools.iter().filter(|pool| pool.name() == load.engine);
    if own().any(|pool| pool.is_at_work()) {
        return load;
    }
    let Some(absent) = own().find_map(|pool| pool.absent()) else {
        return load;
    };
    EngineLoad {
        in_flight: 0,
        waiting: load.waiting + load.in_flight,
        absent: Some(absent),
        ..load
    }
}
