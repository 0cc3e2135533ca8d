//! How two runs were made: chain, vars, input, options.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::audit::Outputs;
use crate::source::{self, Fingerprint};

/// What differs in how two runs were made.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// The chain files are the same, byte by byte.
    pub same_chain_file: bool,
    /// The chains mean the same: their graphs with all models.
    pub same_graph: bool,
    /// Nodes that B's chain does not have, in chain order.
    pub nodes_only_a: Vec<String>,
    /// Nodes that A's chain does not have, in chain order.
    pub nodes_only_b: Vec<String>,
    /// What differs in the chain itself, as `graph.json` calls it: `name`, `input_model`, `models`, and `main` for
    /// the order of its nodes, where both have the same ones.
    pub chain: Vec<String>,
    /// Nodes and branches of both that differ, in chain order.
    pub changed: Vec<Changed>,
    /// Backends and models of engines that differ, under `<engine>.backend` and `<engine>.model`.
    pub engines: Vec<Pair>,
    /// Vars that differ.
    pub vars: Vec<Pair>,
    /// Whether the inputs are the same.
    pub input: InputDiff,
    /// Options of the runs that differ.
    pub options: Vec<Pair>,
}

/// A node or branch that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// Its id.
    pub id: String,
    /// In what it differs, as `graph.json` calls it.
    pub keys: Vec<String>,
}

/// A named value of both; left out where one has none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Its name.
    pub name: String,
    /// In A.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<Value>,
    /// In B.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<Value>,
}

/// Whether two inputs are the same, by size and the digest of the first and last MiB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InputDiff {
    /// By all that is known.
    Same,
    /// They are not: how that was seen.
    Different(String),
    /// They came through pipes, and begin with the same row.
    Unknown,
}

impl Made {
    pub(super) fn of(a: &Outputs, b: &Outputs) -> Self {
        let only = |a: &Outputs, b: &Outputs| {
            let only = a.nodes.keys().filter(|node| !b.nodes.contains_key(*node));
            only.cloned().collect()
        };
        let mut changed = Vec::new();
        for list in ["nodes", "branches"] {
            let (of_a, of_b) = (by_id(&a.graph, list), by_id(&b.graph, list));
            changed.extend(of_a.into_iter().filter_map(|(id, a)| {
                let (_, b) = of_b.iter().find(|(known, _)| *known == id)?;
                let keys = differing(a, b);
                let id = id.to_owned();
                (!keys.is_empty()).then_some(Changed { id, keys })
            }));
        }
        let same_nodes = a.nodes.keys().eq(b.nodes.keys());
        let keys = ["name", "input_model", "models", "main"];
        let chain = keys.into_iter().filter(|key| *key != "main" || same_nodes);
        let chain = chain.filter(|key| a.graph.get(*key) != b.graph.get(*key));
        Self {
            chain: chain.map(str::to_owned).collect(),
            same_chain_file: a.chain.digest == b.chain.digest,
            same_graph: a.chain.graph_digest == b.chain.graph_digest,
            nodes_only_a: only(a, b),
            nodes_only_b: only(b, a),
            changed,
            engines: pairs(&engines(a), &engines(b)),
            vars: pairs(&a.vars, &b.vars),
            input: InputDiff::of(&a.input, &b.input),
            options: pairs(&options(a), &options(b)),
        }
    }

    /// True when nothing differs.
    pub fn is_same(&self) -> bool {
        let lists = [self.engines.len(), self.vars.len(), self.options.len()];
        self.same_graph
            && self.same_chain_file
            && self.input == InputDiff::Same
            && lists.iter().all(|len| *len == 0)
    }
}

impl InputDiff {
    fn of(a: &[Fingerprint], b: &[Fingerprint]) -> Self {
        let alike = |(a, b): (&Fingerprint, &Fingerprint)| {
            (a.size, &a.digest, a.stream) == (b.size, &b.digest, b.stream)
        };
        if a.len() != b.len() || !a.iter().zip(b).all(alike) {
            let phrase = source::difference(a, b);
            return Self::Different(phrase.unwrap_or_default());
        }
        match a.iter().any(|file| file.stream) {
            true => Self::Unknown,
            false => Self::Same,
        }
    }
}

/// Nodes or branches of a graph by their id.
fn by_id<'a>(graph: &'a Value, list: &str) -> Vec<(&'a str, &'a Map<String, Value>)> {
    let items = graph.get(list).and_then(Value::as_array).into_iter().flatten();
    let items = items.filter_map(Value::as_object);
    items
        .filter_map(|item| Some((item.get("id")?.as_str()?, item)))
        .collect()
}

/// The keys in which two objects of a graph differ, but what follows from other nodes.
fn differing(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<String> {
    let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
    keys.filter(|key| key.as_str() != "can_be_null" && a.get(*key) != b.get(*key))
        .cloned()
        .collect()
}

/// The entries in which two objects differ.
fn pairs(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<Pair> {
    let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
    names
        .filter(|name| a.get(*name) != b.get(*name))
        .map(|name| Pair {
            name: name.clone(),
            a: a.get(name).cloned(),
            b: b.get(name).cloned(),
        })
        .collect()
}

/// What `graph.json` says of the engines of a run: backend and model, each by its path.
fn engines(outputs: &Outputs) -> Map<String, Value> {
    let engines = outputs.graph.get("engines").and_then(Value::as_object);
    let mut found = Map::new();
    for (name, engine) in engines.into_iter().flatten() {
        for (key, value) in engine.as_object().into_iter().flatten() {
            found.insert(format!("{name}.{key}"), value.clone());
        }
    }
    found
}

/// The options of a run under their names in its metadata.
fn options(outputs: &Outputs) -> Map<String, Value> {
    match json!(outputs.options) {
        Value::Object(options) => options,
        _ => Map::new(),
    }
}
