//! What we will run: a checked chain in which every name is resolved.

mod ask;
mod check;
mod compile;
pub mod diagnostic;
pub mod explain;
pub mod file_schema;
mod graph;
mod names;
mod process;
mod shape;
mod unused;

pub use compile::{Closures, Compiled, compile};
pub use diagnostic::{Report, Style};
pub use process::{ProcessPlan, Program};

use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use crate::expr::jq::JqProgram;
use crate::expr::model::Model;
use crate::expr::template::Template;
use crate::expr::when::When;
use crate::expr::{NameIx, Vars, Visible};
use crate::row::Record;
use crate::spec::{EngineSpec, OnError, Resources, Retries, Sampling, Task};

/// The index of a node in [`Plan::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIx(pub(crate) usize);

/// The index of a branch in [`Plan::branches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchIx(pub(crate) usize);

/// The index of an engine in [`Plan::engines`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineIx(pub(crate) usize);

/// A chain that can run. Only `compile` makes one.
#[derive(Debug)]
pub struct Plan {
    /// The chain's name.
    pub name: String,
    /// Rows per chunk; changes nothing in the outputs.
    pub batch_size: usize,
    /// `vars` with `--set` applied.
    pub vars: Vars,
    /// What every input row is checked against.
    pub input_model: Option<Model>,
    /// Named models, as JSON Schema (for `graph.json`).
    pub models: IndexMap<String, Value>,
    /// Every node id, alias and `<id>_reasoning`, by [`NameIx`].
    pub names: Vec<String>,
    /// Nodes in chain order, depth first: the order of errors and of columns.
    pub nodes: Vec<Node>,
    /// Branches in chain order, depth first.
    pub branches: Vec<Branch>,
    /// The engines that Steps use.
    pub engines: Vec<EngineSpec>,
    /// What these engines may use together of the machine.
    pub resources: Resources,
    /// The main line.
    pub main: Line,
    /// Nodes and data flow between them (for `inspect` and `graph.json`).
    pub graph: petgraph::graph::DiGraph<NodeIx, ()>,
}

/// Nodes and groups that a row goes through one after another.
#[derive(Debug, Default)]
pub struct Line(pub Vec<Item>);

/// One place on a line.
#[derive(Debug)]
pub enum Item {
    /// A Step or an Apply.
    Node(NodeIx),
    /// Branches that start from the same row.
    Group(Box<Group>),
}

/// Branches that run at the same time.
#[derive(Debug)]
pub struct Group {
    /// Rows for which this is false skip all its branches.
    pub when: Option<When>,
    /// Its branches in chain order.
    pub branches: Vec<BranchIx>,
}

/// A side line.
#[derive(Debug)]
pub struct Branch {
    /// The branch's id.
    pub id: String,
    /// Rows for which this is false skip it.
    pub when: Option<When>,
    /// The alias it is joined under.
    pub join: Option<NameIx>,
    /// Join the list of its outputs.
    pub collect: bool,
    /// What it runs.
    pub line: Line,
    /// The branch it stands in.
    pub parent: Option<BranchIx>,
    /// The JSON Schema of what it leaves, where one is known.
    pub leaves: Option<Value>,
    /// Why its alias can be null, when it can.
    pub nullable: Option<String>,
}

/// A Step or an Apply.
#[derive(Debug)]
pub struct Node {
    /// The node's id, also the name of its output folder.
    pub id: String,
    /// Where its output goes in the table of names.
    pub name: NameIx,
    /// Rows for which this is false skip it.
    pub when: Option<When>,
    /// False: neither written nor a name later.
    pub yield_output: bool,
    /// Shown in the tree.
    pub emoji: Option<String>,
    /// The names it can read.
    pub visible: Visible,
    /// The branch it stands in; none on the main line.
    pub branch: Option<BranchIx>,
    /// What its outputs are checked against; a Step without a model of the user's has `{"text": string}`.
    pub model: Option<Model>,
    /// The jq program as it was written (for `graph.json`); none for other nodes.
    pub program: Option<String>,
    /// Why its name can be null, when it can.
    pub nullable: Option<String>,
    /// What it leaves as far as its jq program tells, where no model says it: for the tree only.
    pub inferred: Option<Value>,
    /// What it does.
    pub kind: NodeKind,
}

/// What a node does.
#[derive(Debug)]
pub enum NodeKind {
    /// One model call per row.
    Step(Box<StepPlan>),
    /// A row in, 0..n rows out.
    Apply(ApplyPlan),
}

/// A model call.
#[derive(Debug)]
pub struct StepPlan {
    /// Who answers.
    pub engine: EngineIx,
    /// What it asks for.
    pub task: Task,
    /// The system prompt; none with [`Task::Embed`].
    pub system: Option<Template>,
    /// The user prompt; with [`Task::Embed`] the input.
    pub user: Template,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// How often to ask again.
    pub retries: Retries,
    /// What a failure does.
    pub on_error: OnError,
    /// Where reasoning text goes in the table of names.
    pub reasoning: NameIx,
    /// The user gave no model: the reply's text is the output. Never with [`Task::Embed`].
    pub free_text: bool,
}

/// A row transform.
#[derive(Debug)]
pub enum ApplyPlan {
    /// A jq program.
    Jq(JqProgram),
    /// A Rust closure that the library's user registered.
    Closure(Closure),
    /// A Python function or a command, run by processes of its own.
    Process(Box<ProcessPlan>),
}

/// What a registered closure is given: the current item; what it returns: 0..n records, or the row's error message.
pub type ClosureFn = dyn Fn(&Record) -> Result<Vec<Record>, String> + Send + Sync;

/// A registered Rust closure.
#[derive(Clone)]
pub struct Closure {
    /// The name the chain calls it by.
    pub name: String,
    /// The code.
    pub run: Arc<ClosureFn>,
}

impl std::fmt::Debug for Closure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Closure({})", self.name)
    }
}
