//! What to run and how.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::dispatcher::Signals;
use super::limits::ErrorLimit;
use super::outdir::Existing;
use super::spill::DEFAULT_BYTES;
use crate::plan::Plan;
use crate::sink::Format;
use crate::source::{AtPath, Input};

/// What to run and how.
pub struct RunConfig {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The content of `graph.json`.
    pub graph: Value,
    /// BLAKE3 of the chain file, hexadecimal.
    pub chain_digest: String,
    /// Where the rows come from.
    pub input: Arc<dyn Input>,
    /// The folder OUT.
    pub out: PathBuf,
    /// What to do with an OUT that holds a run.
    pub existing: Existing,
    /// Ask failed rows again (`--retry-errors`); the outputs without these failures replace those that stand, as a
    /// whole.
    pub retry_errors: bool,
    /// The form of the outputs.
    pub format: Format,
    /// Lines per shard.
    pub max_rows: u64,
    /// Whether to write `flattened/`.
    pub flattened: bool,
    /// Rows per chunk.
    pub batch_size: usize,
    /// Input rows to take.
    pub limit: Option<u64>,
    /// Keep answers (not `--no-ledger`).
    pub ledger: bool,
    /// Bytes of disk for rows that wait for an engine which does not fit beside another (`resources.spill`).
    pub spill: u64,
    /// When failing rows stop the run.
    pub errors: ErrorLimit,
    /// Who hears of Ctrl-C, SIGTERM and SIGHUP; none leaves them alone.
    pub signals: Option<Signals>,
}

impl RunConfig {
    /// A run of `plan` over the input at a path, with the command's defaults, but without its signals.
    pub fn new(plan: Plan, input: impl Into<PathBuf>, out: impl Into<PathBuf>) -> Self {
        let out = out.into();
        Self::over(Arc::new(plan), Arc::new(AtPath::new(input, &out)), out)
    }

    /// As [`RunConfig::new`], for any input and a plan that may run more than once.
    pub fn over(plan: Arc<Plan>, input: Arc<dyn Input>, out: impl Into<PathBuf>) -> Self {
        let graph = crate::plan::explain::graph_json(&plan);
        Self {
            chain_digest: blake3::hash(graph.to_string().as_bytes()).to_hex().to_string(),
            batch_size: plan.batch_size,
            graph,
            input,
            out: out.into(),
            existing: Existing::Same,
            retry_errors: false,
            format: Format::Jsonl,
            max_rows: 100_000,
            flattened: true,
            limit: None,
            ledger: true,
            spill: plan.resources.spill.unwrap_or(DEFAULT_BYTES),
            errors: ErrorLimit::Hopeless,
            signals: None,
            plan,
        }
    }
}
