//! Where rows are right now, node by node, for whoever watches; outputs never depend on it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::output::{BranchCounts, BranchOutput, Fate, NodeOutput, Tally};
use crate::event::{Entries, Traffic};

/// Counters of all nodes and branches of a run.
#[derive(Debug, Default)]
pub struct Live {
    nodes: Vec<Node>,
    branches: Vec<Branch>,
}

#[derive(Debug, Default)]
struct Node {
    came: AtomicU64,
    done: AtomicU64,
    left: AtomicU64,
    failed: AtomicU64,
    reused: AtomicU64,
    before: u64,
}

#[derive(Debug, Default)]
struct Branch {
    came: AtomicU64,
    skipped: AtomicU64,
}

impl Live {
    /// Counters that go on from what is committed.
    pub fn new(
        nodes: impl IntoIterator<Item = Traffic>,
        branches: impl IntoIterator<Item = Entries>,
    ) -> Self {
        let node = |traffic: Traffic| Node {
            came: traffic.came.into(),
            done: traffic.done.into(),
            left: traffic.left.into(),
            failed: traffic.failed.into(),
            reused: 0.into(),
            before: traffic.before,
        };
        let branch = |entries: Entries| Branch {
            came: entries.came.into(),
            skipped: entries.skipped.into(),
        };
        Self {
            nodes: nodes.into_iter().map(node).collect(),
            branches: branches.into_iter().map(branch).collect(),
        }
    }

    /// A row came to a node.
    pub(super) fn came(&self, node: usize) {
        if let Some(node) = self.nodes.get(node) {
            add(&node.came, 1);
        }
    }

    /// A row got its fate at a node.
    pub(super) fn fate(&self, node: usize, fate: Fate) {
        if let Some(node) = self.nodes.get(node) {
            node.add(fate, 1);
        }
    }

    /// A row was answered from the ledger.
    pub(super) fn reused(&self, node: usize) {
        if let Some(node) = self.nodes.get(node) {
            add(&node.reused, 1);
        }
    }

    /// A row came to a branch.
    pub(super) fn entered(&self, branch: usize, skipped: bool) {
        if let Some(branch) = self.branches.get(branch) {
            add(&branch.came, 1);
            add(&branch.skipped, u64::from(skipped));
        }
    }

    /// All rows of a chunk were led to their ends at once.
    pub(super) fn add(&self, tally: &Tally) {
        for (live, NodeOutput { fates, .. }) in self.nodes.iter().zip(&tally.nodes) {
            for (fate, rows) in &fates.0 {
                add(&live.came, *rows);
                live.add(*fate, *rows);
            }
        }
        let branches = tally.branches.iter().map(BranchOutput::counts);
        for (live, BranchCounts { rows, skipped, .. }) in self.branches.iter().zip(branches) {
            add(&live.came, rows);
            add(&live.skipped, skipped);
        }
    }

    /// The nodes' counters now.
    pub fn traffic(&self) -> Vec<Traffic> {
        let read = |node: &Node| Traffic {
            // What is done has come before: read in this order it never looks otherwise.
            done: node.done.load(Ordering::Acquire),
            left: node.left.load(Ordering::Relaxed),
            failed: node.failed.load(Ordering::Relaxed),
            reused: node.reused.load(Ordering::Relaxed),
            came: node.came.load(Ordering::Acquire),
            before: node.before,
        };
        self.nodes.iter().map(read).collect()
    }

    /// The branches' counters now.
    pub fn entries(&self) -> Vec<Entries> {
        let read = |branch: &Branch| Entries {
            came: branch.came.load(Ordering::Relaxed),
            skipped: branch.skipped.load(Ordering::Relaxed),
        };
        self.branches.iter().map(read).collect()
    }
}

impl Node {
    fn add(&self, fate: Fate, rows: u64) {
        match fate {
            Fate::Emitted(children) => add(&self.left, rows * u64::from(children)),
            Fate::Skipped | Fate::Nulled => add(&self.left, rows),
            Fate::Failed => add(&self.failed, rows),
            Fate::Filtered => {}
        }
        self.done.fetch_add(rows, Ordering::Release);
    }
}

fn add(counter: &AtomicU64, rows: u64) {
    counter.fetch_add(rows, Ordering::Release);
}
