//! Questions about the shape of a plan.

use super::{ApplyPlan, Item, Line, NodeKind, Plan};

impl Plan {
    /// True when a Step stands on these items or in a branch off them.
    pub fn asks(&self, items: &[Item]) -> bool {
        self.any(items, &|kind| matches!(kind, NodeKind::Step(_)))
    }

    /// True when rows must wait for somebody there: an engine, or a process of an Apply.
    pub fn waits(&self, items: &[Item]) -> bool {
        let waits =
            |kind: &NodeKind| matches!(kind, NodeKind::Step(_) | NodeKind::Apply(ApplyPlan::Process(_)));
        self.any(items, &waits)
    }

    /// True when a node on these items or in a branch off them is so.
    fn any(&self, items: &[Item], is: &dyn Fn(&NodeKind) -> bool) -> bool {
        items.iter().any(|item| match item {
            Item::Node(ix) => self.nodes.get(ix.0).is_some_and(|node| is(&node.kind)),
            Item::Group(group) => group
                .branches
                .iter()
                .filter_map(|ix| self.branches.get(ix.0))
                .any(|branch| self.any(&branch.line.0, is)),
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
