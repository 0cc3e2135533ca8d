//! `metadata.json`: what a run was, and what became of its rows.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::checkpoint::Checkpoint;
use super::counts::Counts;
use super::identity::Identity;
use crate::node::timing::Timing;
use crate::plan::Plan;

/// Seconds and times of a run; the only part of the metadata that a rerun changes.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Timings {
    /// When this process started, RFC 3339 UTC.
    pub(super) started: String,
    /// When it ended.
    pub(super) finished: Option<String>,
    /// Seconds in between.
    pub(super) seconds: Option<f64>,
    /// Seconds of all processes that worked on the run.
    pub(super) run_seconds: f64,
    /// Seconds per row by node.
    pub(super) nodes: Map<String, Value>,
}

impl Timings {
    /// Takes over what a checkpoint says.
    fn of(&self, checkpoint: &Checkpoint) -> Self {
        let Checkpoint { counts, times, .. } = checkpoint;
        let shares = times.shares(counts);
        let nodes = counts.nodes.keys().zip(&times.nodes).zip(shares);
        let nodes = nodes.filter(|((_, timing), _)| !timing.is_empty());
        let line = |((id, timing), share): ((&String, &Timing), Option<f64>)| {
            let line = json!({
                "measured": timing.count, "mean": timing.mean, "sd": timing.sd(),
                "min": timing.min, "max": timing.max, "share": share,
            });
            (id.clone(), line)
        };
        Self {
            run_seconds: times.seconds,
            nodes: nodes.map(line).collect(),
            ..self.clone()
        }
    }
}

/// The content of `metadata.json`.
pub(super) fn metadata(
    plan: &Plan,
    identity: &Identity,
    checkpoint: &Checkpoint,
    timings: &Timings,
) -> Value {
    let Counts {
        rows_in,
        rows_out,
        errors,
        rows_failed,
        nodes,
        branches,
        kinds,
        ..
    } = &checkpoint.counts;
    let shards: Map<String, Value> = checkpoint
        .sinks
        .0
        .iter()
        .filter(|(_, state)| !state.rolled.is_empty())
        .map(|(name, state)| (name.clone(), json!(state.rolled)))
        .collect();
    let usage = checkpoint.counts.usage();
    json!({
        "run_id": identity.run_id,
        "state": if checkpoint.finished { "finished" } else { "running" },
        "versions": { "chainette": env!("CARGO_PKG_VERSION"), "files": identity.version },
        "chain": { "name": plan.name, "digest": identity.chain, "graph_digest": identity.graph },
        "vars": identity.vars,
        "input": identity.input,
        "options": {
            "format": identity.format,
            "max_lines_per_file": identity.max_rows,
            "flattened": identity.flattened,
            "limit": checkpoint.limit,
        },
        "rows": { "in": rows_in, "out": rows_out, "failed": rows_failed, "errors": errors },
        "errors": kinds,
        "nodes": nodes,
        "branches": branches,
        "tokens": { "prompt": usage.prompt_tokens, "completion": usage.completion_tokens },
        "timings": timings.of(checkpoint),
        "shards": shards,
    })
}

/// A time as RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}
