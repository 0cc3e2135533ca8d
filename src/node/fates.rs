//! What became of rows, as runs of equal fates in the order in which they came.

use serde::{Deserialize, Serialize};

/// What became of one row at one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fate {
    /// It left this many rows, at least one.
    Emitted(u32),
    /// An Apply left nothing.
    Filtered,
    /// Its `when` was false.
    Skipped,
    /// It failed under `on_error: null`.
    Nulled,
    /// It failed.
    Failed,
}

/// How one row came to a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// It went along the branch.
    Entered,
    /// The `when` of the branch, or of its group, was false.
    Skipped,
    /// The `when` of the branch failed.
    Failed,
    /// The `when` of its group failed: said of the group's first branch, and of no other.
    GroupFailed,
}

/// What became of one input row on the main line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowFate {
    /// It went its way; whether anything of it is left, its nodes say.
    Done,
    /// It, or a row that came of it, failed.
    Failed,
    /// It was no row that the chain takes.
    Invalid,
}

impl RowFate {
    /// True for a row that counts as failed.
    pub fn is_failure(self) -> bool {
        self != Self::Done
    }
}

/// Fates in order, as runs of equal ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Runs<T>(pub Vec<(T, u64)>);

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + PartialEq> Runs<T> {
    /// Adds rows with one fate.
    pub fn push(&mut self, fate: T, rows: u64) {
        match self.0.last_mut() {
            Some((last, n)) if *last == fate => *n += rows,
            _ => self.0.push((fate, rows)),
        }
    }

    /// Puts later fates after these.
    pub(super) fn append(&mut self, other: &mut Self) {
        for (fate, rows) in other.0.drain(..) {
            self.push(fate, rows);
        }
    }
}
