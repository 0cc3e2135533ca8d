//! What came of a proof.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;

use super::problems::{Problem, ProblemKind};
use crate::node::output::BranchCounts;
use crate::run::NodeCounts;

/// What was found of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verdict {
    /// The folder OUT.
    pub out: PathBuf,
    /// True if nothing is wrong.
    pub proven: bool,
    /// The run's name; empty if it could not be read, as what follows is then.
    pub run_id: String,
    /// Input rows of which every fate was followed.
    pub rows: u64,
    /// Rows at the end of the main line.
    pub rows_out: u64,
    /// Input rows that failed on the main line.
    pub rows_failed: u64,
    /// Fates by node, in chain order, as the outcomes tell them; tokens as `metadata.json` does.
    pub nodes: IndexMap<String, NodeCounts>,
    /// How rows came to each branch, in chain order, and what came of them there.
    pub branches: IndexMap<String, BranchCounts>,
    /// Lines of `errors/` by kind.
    pub errors: IndexMap<String, u64>,
    /// Shards whose bytes are those that were written.
    pub shards: u64,
    /// Lines that match their schemas.
    pub lines: u64,
    /// The custom sink whose files only have digests to check, if there is one.
    pub sink: Option<String>,
    /// What is wrong: of each kind the first 20.
    pub problems: Vec<Problem>,
    /// All problems by kind.
    pub problem_counts: IndexMap<ProblemKind, u64>,
}
