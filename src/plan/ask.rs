//! Questions about the shape of a plan.

use super::{Item, Line, NodeKind, Plan};

impl Plan {
    /// True when a Step stands on these items or in a branch off them.
    pub fn asks(&self, items: &[Item]) -> bool {
        items.iter().any(|item| match item {
            Item::Node(ix) => self
                .nodes
                .get(ix.0)
                .is_some_and(|node| matches!(node.kind, NodeKind::Step(_))),
            Item::Group(group) => group
                .branches
                .iter()
                .filter_map(|ix| self.branches.get(ix.0))
                .any(|branch| self.asks(&branch.line.0)),
        })
    }

    /// The chain order of the first node on a line.
    pub fn first_node(&self, line: &Line) -> usize {
        match line.0.first() {
            Some(Item::Node(ix)) => ix.0,
            Some(Item::Group(group)) => group
                .branches
                .first()
                .and_then(|ix| self.branches.get(ix.0))
                .map_or(usize::MAX, |branch| self.first_node(&branch.line)),
            None => usize::MAX,
        }
    }
}
