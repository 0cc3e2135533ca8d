//! The chain as `graph.json` has it: as much of it as decides which rows come where.

use std::collections::HashMap;

use serde_json::Value;

use crate::node::output::Fate;

/// One place on a line.
#[derive(Debug)]
pub(super) enum Item {
    /// A node, by its index.
    Node(usize),
    /// Branches that start from the same row, by their indices.
    Group {
        /// It has a `when`.
        when: bool,
        branches: Vec<usize>,
    },
}

/// A Step or an Apply.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: String,
    /// Its outputs are written.
    pub(super) written: bool,
    is_step: bool,
    when: bool,
    /// `on_error: null`.
    nulls: bool,
}

impl Node {
    /// True for a fate that rows can have at this node.
    pub(super) fn may(&self, fate: Fate) -> bool {
        match fate {
            Fate::Emitted(children) => children == 1 || (children > 1 && !self.is_step),
            Fate::Filtered => !self.is_step,
            Fate::Skipped => self.when,
            Fate::Nulled => self.nulls,
            // A condition fails its row whatever `on_error` says.
            Fate::Failed => self.when || !self.nulls,
        }
    }
}

/// A side line.
#[derive(Debug, Default)]
pub(super) struct Branch {
    pub(super) id: String,
    pub(super) when: bool,
    pub(super) joined: bool,
    pub(super) collect: bool,
    pub(super) line: Vec<Item>,
    /// The index of its first node: where failures of the branch itself stand among others.
    pub(super) order: usize,
}

/// The chain.
#[derive(Debug)]
pub(super) struct Graph {
    /// In chain order.
    pub(super) nodes: Vec<Node>,
    /// In chain order.
    pub(super) branches: Vec<Branch>,
    pub(super) main: Vec<Item>,
}

impl Graph {
    /// Reads the value of a `graph.json`; the error is what is wrong with it.
    pub(super) fn read(graph: &Value) -> Result<Self, String> {
        let list = |key: &str| {
            let list = graph.get(key).and_then(Value::as_array);
            list.ok_or_else(|| format!("it has no list `{key}`"))
        };
        let nodes: Vec<Node> = list("nodes")?.iter().map(node).collect::<Result<_, _>>()?;
        let mut branches: Vec<Branch> = list("branches")?.iter().map(branch).collect::<Result<_, _>>()?;
        let mut places = Places {
            nodes: index(nodes.iter().map(|node| &node.id)),
            branches: index(branches.iter().map(|branch| &branch.id)),
            lines: HashMap::new(),
        };
        let main = places.line(list("main")?)?;
        if let Some(id) = places.nodes.keys().chain(places.branches.keys()).next() {
            return Err(format!("`{id}` stands nowhere in `main`"));
        }
        for (ix, (line, order)) in places.lines {
            if let Some(branch) = branches.get_mut(ix) {
                (branch.line, branch.order) = (line, order);
            }
        }
        Ok(Self {
            nodes,
            branches,
            main,
        })
    }

    /// Where failures of a node or a branch stand among others of the same row.
    pub(super) fn orders(&self) -> HashMap<String, usize> {
        let nodes = self.nodes.iter().enumerate().map(|(ix, node)| (&node.id, ix));
        let branches = self.branches.iter().map(|branch| (&branch.id, branch.order));
        let all = nodes.chain(branches);
        all.map(|(id, order)| (id.clone(), order)).collect()
    }
}

/// What is not placed yet, by id, and the lines of branches that are.
struct Places<'a> {
    nodes: HashMap<&'a str, usize>,
    branches: HashMap<&'a str, usize>,
    /// By branch: its items, and the index of its first node.
    lines: HashMap<usize, (Vec<Item>, usize)>,
}

/// Ids with their places in a list. They own their texts' borrow, not the list's.
fn index<'a>(ids: impl Iterator<Item = &'a String>) -> HashMap<&'a str, usize> {
    ids.enumerate().map(|(ix, id)| (id.as_str(), ix)).collect()
}

impl Places<'_> {
    /// A line: ids of nodes, and groups. Nothing stands twice.
    fn line(&mut self, items: &[Value]) -> Result<Vec<Item>, String> {
        let place = |item: &Value| match item {
            Value::String(id) => {
                let ix = self.nodes.remove(id.as_str());
                ix.map(Item::Node)
                    .ok_or_else(|| format!("`{id}` in `main` is no node, or stands there twice"))
            }
            item => {
                let branches = item.get("parallel").and_then(Value::as_array);
                let branches = branches.ok_or("`main` holds what is neither a node nor a group")?;
                let branches: Vec<usize> = branches
                    .iter()
                    .map(|branch| self.branch(branch))
                    .collect::<Result<_, _>>()?;
                if branches.is_empty() {
                    return Err("a group has no branches".to_owned());
                }
                Ok(Item::Group {
                    when: has(item, "when"),
                    branches,
                })
            }
        };
        items.iter().map(place).collect()
    }

    fn branch(&mut self, branch: &Value) -> Result<usize, String> {
        let id = text(branch, "branch")?;
        let ix = self.branches.remove(id);
        let ix = ix.ok_or_else(|| format!("`{id}` in `main` is no branch, or stands there twice"))?;
        let steps = branch.get("steps").and_then(Value::as_array);
        let line = self.line(steps.ok_or_else(|| format!("the branch `{id}` has no steps"))?)?;
        let order = match line.first() {
            Some(Item::Node(ix)) => *ix,
            Some(Item::Group { branches, .. }) => {
                let first = branches.first().and_then(|ix| self.lines.get(ix));
                first.map_or(usize::MAX, |(_, order)| *order)
            }
            None => usize::MAX,
        };
        self.lines.insert(ix, (line, order));
        Ok(ix)
    }
}

fn node(node: &Value) -> Result<Node, String> {
    Ok(Node {
        id: text(node, "id")?.to_owned(),
        written: node.get("yield_output") != Some(&Value::Bool(false)),
        is_step: text(node, "kind")? == "step",
        when: has(node, "when"),
        nulls: node.get("on_error").is_some_and(|value| value == "null"),
    })
}

fn branch(branch: &Value) -> Result<Branch, String> {
    Ok(Branch {
        id: text(branch, "id")?.to_owned(),
        when: has(branch, "when"),
        joined: has(branch, "join"),
        collect: branch.get("collect") == Some(&Value::Bool(true)),
        ..Branch::default()
    })
}

/// True for a field that is there and not null.
fn has(value: &Value, key: &str) -> bool {
    value.get(key).is_some_and(|value| !value.is_null())
}

fn text<'v>(value: &'v Value, key: &str) -> Result<&'v str, String> {
    let text = value.get(key).and_then(Value::as_str);
    text.ok_or_else(|| format!("something in it has no `{key}`"))
}
