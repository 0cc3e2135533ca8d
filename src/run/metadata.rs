//! `metadata.json`: what a run was, and what became of its rows.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::checkpoint::{Checkpoint, pretty};
use super::config::RunConfig;
use super::counts::Counts;
use super::identity::engine_identity;
use super::{ErrorLimit, OutDir, RunError, outcomes};
use crate::node::timing::Timing;
use crate::plan::Plan;
use crate::spec::{Concurrency, EngineSpec};

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

/// The content of `metadata.json`. Whatever a kill, a resume or another machine may change stands in `run_id`,
/// `versions` and `timings`, and nowhere else.
///
/// # Errors
/// The outcomes of a finished run cannot be read back.
pub(super) fn metadata(
    config: &RunConfig,
    out: &OutDir,
    checkpoint: &Checkpoint,
    timings: &Timings,
) -> Result<Value, RunError> {
    let (plan, identity) = (&config.plan, &out.identity);
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
    let graph = pretty(&config.graph)?;
    let outcomes = match checkpoint.finished {
        true => json!({ "rows": rows_in, "blake3": outcomes::digest(&out.private_base().join("outcomes"))? }),
        false => Value::Null,
    };
    let mut timings = json!(timings.of(checkpoint));
    put(&mut timings, "configuration", configuration(config));
    let mut metadata = json!({
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
        "engines": engines(plan),
        "timings": timings,
        "shards": shards,
        "graph": { "bytes": graph.len(), "blake3": hex(&graph) },
        "outcomes": outcomes,
    });
    let Seals { content, whole } = seals(&metadata);
    put(&mut metadata, "seal", Value::String(content));
    if let Some(timings) = metadata.get_mut("timings") {
        put(timings, "seal", Value::String(whole));
    }
    Ok(metadata)
}

/// The engines that answered: what decides what each replies, not where it is or what opens its door.
fn engines(plan: &Plan) -> Map<String, Value> {
    let engine = |engine: &EngineSpec| {
        let identity = engine_identity(engine);
        let shown = json!({
            "backend": engine.backend.as_str(), "model": engine.model,
            "reasoning": engine.reasoning, "context": engine.context,
            "identity": hex(identity.as_bytes()),
        });
        (engine.name.clone(), shown)
    };
    plan.engines.iter().map(engine).collect()
}

/// What the last process of a run chose for itself; no output depends on it.
fn configuration(config: &RunConfig) -> Value {
    let engine = |engine: &EngineSpec| {
        let shown = json!({
            "endpoint": engine.shown_endpoint(),
            "concurrency": match engine.concurrency {
                Concurrency::Auto => json!("auto"),
                Concurrency::Fixed(n) => json!(n),
            },
        });
        (engine.name.clone(), shown)
    };
    let engines: Map<String, Value> = config.plan.engines.iter().map(engine).collect();
    let max_errors = match config.errors {
        ErrorLimit::Hopeless => Value::Null,
        ErrorLimit::FailFast => json!(0),
        ErrorLimit::Rows(rows) => json!(rows),
        ErrorLimit::Percent(percent) => json!(format!("{percent}%")),
    };
    json!({
        "batch_size": config.batch_size,
        "max_errors": max_errors,
        "ledger": config.ledger,
        "engines": engines,
    })
}

/// What tells that `metadata.json` was changed.
pub(crate) struct Seals {
    /// BLAKE3 of what a run is and left: two runs with this in common left the same files.
    pub(crate) content: String,
    /// BLAKE3 of everything, with the content's seal, but without this one.
    pub(crate) whole: String,
}

/// The seals of a metadata, whatever it says that they are. They are taken over its compact text, keys in the
/// order in which they stand.
pub(crate) fn seals(metadata: &Value) -> Seals {
    let mut content = metadata.clone();
    if let Value::Object(content) = &mut content {
        for changing in ["run_id", "versions", "timings", "seal"] {
            content.shift_remove(changing);
        }
    }
    let content = hex(content.to_string().as_bytes());
    let mut whole = metadata.clone();
    if let Value::Object(whole) = &mut whole {
        whole.shift_remove("seal");
        if let Some(Value::Object(timings)) = whole.get_mut("timings") {
            timings.shift_remove("seal");
        }
    }
    let whole = hex(format!("{content} {whole}").as_bytes());
    Seals { content, whole }
}

fn put(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(object) = object {
        object.insert(key.to_owned(), value);
    }
}

/// BLAKE3, hexadecimal.
fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// A time as RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| String::new(), |time| format!("{time:.3}"))
}
