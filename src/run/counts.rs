//! The sums over all committed rows.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::event::Usage;
use crate::node::output::{BranchCounts, Fate, Output};
use crate::node::timing::Timing;
use crate::plan::Plan;

/// Fates and tokens of one node. `rows` is the sum of the five fates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounts {
    /// Rows that came to the node.
    pub rows: u64,
    /// Rows that left at least one row.
    pub emitted: u64,
    /// Rows of which an Apply left nothing.
    pub filtered: u64,
    /// Rows whose `when` was false.
    pub skipped: u64,
    /// Rows that failed under `on_error: null`.
    pub nulled: u64,
    /// Rows that failed.
    pub failed: u64,
    /// Rows it emitted.
    pub children: u64,
    /// Tokens of all requests.
    pub prompt_tokens: u64,
    /// Tokens of all replies.
    pub completion_tokens: u64,
}

impl NodeCounts {
    /// Adds rows with one fate.
    pub(crate) fn add(&mut self, fate: Fate, rows: u64) {
        self.rows += rows;
        match fate {
            Fate::Emitted(children) => {
                self.emitted += rows;
                self.children += rows * u64::from(children);
            }
            Fate::Filtered => self.filtered += rows,
            Fate::Skipped => self.skipped += rows,
            Fate::Nulled => self.nulled += rows,
            Fate::Failed => self.failed += rows,
        }
    }
}

/// The sums over all committed rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Input rows.
    pub rows_in: u64,
    /// Lines in `flattened/`.
    pub rows_out: u64,
    /// Lines in `errors/`.
    pub errors: u64,
    /// Input rows that failed on the main line.
    pub rows_failed: u64,
    /// Input rows before the first one that did not fail.
    pub leading_failed: u64,
    /// By node id, in chain order.
    pub nodes: IndexMap<String, NodeCounts>,
    /// By branch id, in chain order.
    pub branches: IndexMap<String, BranchCounts>,
    /// Lines of `errors/` by kind.
    pub kinds: IndexMap<String, u64>,
}

impl Counts {
    /// Nothing committed yet.
    pub fn new(plan: &Plan) -> Self {
        Self {
            nodes: plan
                .nodes
                .iter()
                .map(|node| (node.id.clone(), NodeCounts::default()))
                .collect(),
            branches: plan
                .branches
                .iter()
                .map(|b| (b.id.clone(), BranchCounts::default()))
                .collect(),
            ..Self::default()
        }
    }

    /// Adds what some rows left behind.
    pub fn add(&mut self, output: &Output) {
        let tally = &output.tally;
        self.rows_out += output.flattened.count;
        self.errors += output.errors.count;
        for (fate, rows) in &tally.input.0 {
            if fate.is_failure() {
                if self.leading_failed == self.rows_in {
                    self.leading_failed += rows;
                }
                self.rows_failed += rows;
            }
            self.rows_in += rows;
        }
        for (counts, node) in self.nodes.values_mut().zip(&tally.nodes) {
            for (fate, rows) in &node.fates.0 {
                counts.add(*fate, *rows);
            }
            counts.prompt_tokens += node.prompt_tokens;
            counts.completion_tokens += node.completion_tokens;
        }
        for (mine, theirs) in self.branches.values_mut().zip(&tally.branches) {
            let theirs = theirs.counts();
            mine.rows += theirs.rows;
            mine.skipped += theirs.skipped;
            mine.failed += theirs.failed;
        }
        for failures in &tally.failures {
            *self.kinds.entry(failures.kind.clone()).or_default() += failures.count;
        }
    }

    /// Tokens of all nodes.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for node in self.nodes.values() {
            usage += Usage {
                prompt_tokens: node.prompt_tokens,
                completion_tokens: node.completion_tokens,
            };
        }
        usage
    }
}

/// How long the committed rows took, over all resumes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Seconds of the run, of all its processes.
    pub seconds: f64,
    /// Seconds per row by node, in chain order: of a Step from lease to answer, of an Apply its own time.
    /// Answers from the ledger are not counted; jq-only plans measure one row of sixteen.
    pub nodes: Vec<Timing>,
}

impl Times {
    /// Adds what some rows took.
    pub fn add(&mut self, output: &Output) {
        self.nodes.resize(output.tally.nodes.len(), Timing::default());
        for (mine, theirs) in self.nodes.iter_mut().zip(&output.tally.nodes) {
            mine.merge(&theirs.timing);
        }
    }

    /// Of the time that all rows spent at nodes, the part spent at each; none if nothing was measured.
    pub fn shares(&self, counts: &Counts) -> Vec<Option<f64>> {
        let spent = self.nodes.iter().zip(counts.nodes.values());
        let spent: Vec<f64> = spent
            .map(|(timing, node)| timing.mean * (node.rows - node.skipped) as f64)
            .collect();
        let all: f64 = spent.iter().sum();
        let share = |spent: f64| (all > 0.0).then(|| spent / all);
        spent.into_iter().map(share).collect()
    }
}
