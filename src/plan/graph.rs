//! Data flow between nodes.

use petgraph::graph::{DiGraph, NodeIndex};

use super::{Branch, Item, Line, NodeIx};

/// The graph of a plan: an edge wherever a row, or a joined branch's output, goes from node to node.
pub(super) fn build(nodes: usize, branches: &[Branch], main: &Line) -> DiGraph<NodeIx, ()> {
    let mut graph = DiGraph::with_capacity(nodes, nodes);
    let places: Vec<NodeIndex> = (0..nodes).map(|n| graph.add_node(NodeIx(n))).collect();
    let mut walk = Walk {
        graph,
        places,
        branches,
    };
    walk.line(main, &[]);
    walk.graph
}

struct Walk<'a> {
    graph: DiGraph<NodeIx, ()>,
    places: Vec<NodeIndex>,
    branches: &'a [Branch],
}

impl Walk<'_> {
    /// Walks a line that starts from `sources`; gives what the next node would start from.
    fn line(&mut self, line: &Line, sources: &[NodeIx]) -> Vec<NodeIx> {
        let mut sources = sources.to_vec();
        for item in &line.0 {
            match item {
                Item::Node(node) => {
                    for source in &sources {
                        self.edge(*source, *node);
                    }
                    sources = vec![*node];
                }
                Item::Group(group) => {
                    let fork = sources.clone();
                    for branch in &group.branches {
                        let Some(branch) = self.branches.get(branch.0) else {
                            continue;
                        };
                        let ends = self.line(&branch.line, &fork);
                        if branch.join.is_some() {
                            sources.extend(ends.into_iter().filter(|end| !fork.contains(end)));
                        }
                    }
                }
            }
        }
        sources
    }

    fn edge(&mut self, from: NodeIx, to: NodeIx) {
        if let (Some(a), Some(b)) = (self.places.get(from.0), self.places.get(to.0)) {
            self.graph.update_edge(*a, *b, ());
        }
    }
}
