//! The parts of a chain, written in Rust.

use std::fmt::Display;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::plan::ClosureFn;
use crate::row::Record;

/// A Step, an Apply or a group.
///
/// Every key of the chain file that has no method of its own is set with [`Node::set`]. Nothing is checked
/// here: [`ChainBuilder::build`](super::ChainBuilder::build) reports all problems at once.
#[derive(Clone)]
pub struct Node {
    pub(super) fields: Map<String, Value>,
    pub(super) closures: Vec<(String, Arc<ClosureFn>)>,
}

impl Node {
    fn new(fields: Value) -> Self {
        let fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        Self {
            fields,
            closures: Vec::new(),
        }
    }

    /// A Step: one call of `engine` per row, with this user prompt (a Jinja2 template).
    pub fn step(id: &str, engine: &str, user_prompt: &str) -> Self {
        Self::new(json!({"id": id, "engine": engine, "user_prompt": user_prompt}))
    }

    /// A Step that embeds: the vector of this input (a Jinja2 template), as `{"embedding": [...]}`.
    pub fn embed(id: &str, engine: &str, input: &str) -> Self {
        Self::new(json!({"id": id, "engine": engine, "task": "embed", "input": input}))
    }

    /// An Apply with a jq program.
    pub fn jq(id: &str, program: &str) -> Self {
        Self::new(json!({"id": id, "apply": {"jq": program}}))
    }

    /// An Apply with a Rust closure: the current item in, 0..n rows out; an `Err` is that row's failure.
    ///
    /// It may be called from several threads at once, and again for rows that were not committed when a run
    /// was killed: it should depend on nothing but its row.
    pub fn apply<F>(id: &str, run: F) -> Self
    where
        F: Fn(&Record) -> Result<Vec<Record>, String> + Send + Sync + 'static,
    {
        let mut node = Self::new(json!({"id": id, "apply": {"closure": id}}));
        node.closures.push((id.to_owned(), Arc::new(run)));
        node
    }

    /// An Apply with a Rust closure over your own types: one row in, one row out.
    ///
    /// The item is read into `In` (a row that does not fit is that row's failure) and `Out` must serialise
    /// to a JSON object, else it becomes `{"value": ...}`.
    pub fn map<In, Out, E, F>(id: &str, run: F) -> Self
    where
        In: DeserializeOwned,
        Out: Serialize,
        E: Display,
        F: Fn(In) -> Result<Out, E> + Send + Sync + 'static,
    {
        Self::flat_map(id, move |row| run(row).map(|row| [row]))
    }

    /// As [`Node::map`], with 0..n rows out.
    pub fn flat_map<In, Out, Rows, E, F>(id: &str, run: F) -> Self
    where
        In: DeserializeOwned,
        Out: Serialize,
        Rows: IntoIterator<Item = Out>,
        E: Display,
        F: Fn(In) -> Result<Rows, E> + Send + Sync + 'static,
    {
        Self::apply(id, move |record| {
            let row = record.read::<In>().map_err(|error| error.to_string())?;
            let rows = run(row).map_err(|error| error.to_string())?;
            rows.into_iter()
                .map(|row| Record::write(&row).map_err(|error| error.to_string()))
                .collect()
        })
    }

    /// Branches that start from the same row and run at the same time.
    pub fn parallel(branches: impl IntoIterator<Item = Branch>) -> Self {
        let mut node = Self::new(json!({}));
        let mut values = Vec::new();
        for branch in branches {
            values.push(Value::Object(branch.fields));
            node.closures.extend(branch.closures);
        }
        node.set("parallel", values)
    }

    /// The system prompt of a Step (a Jinja2 template).
    #[must_use]
    pub fn system_prompt(self, prompt: &str) -> Self {
        self.set("system_prompt", prompt)
    }

    /// What its outputs must be: the name of a model, a shorthand or a JSON Schema.
    #[must_use]
    pub fn output_model(self, model: impl Into<Value>) -> Self {
        self.set("output_model", model)
    }

    /// Rows for which this Jinja2 expression is false skip it.
    #[must_use]
    pub fn when(self, condition: &str) -> Self {
        self.set("when", condition)
    }

    /// Any other key of the chain file: `sampling`, `retries`, `on_error`, `yield_output`, `emoji`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }
}

/// A side line of a chain.
#[derive(Clone)]
pub struct Branch {
    fields: Map<String, Value>,
    closures: Vec<(String, Arc<ClosureFn>)>,
}

impl Branch {
    /// A branch without nodes yet.
    pub fn new(id: &str) -> Self {
        let Node { fields, closures } = Node::new(json!({"branch": id}));
        Self { fields, closures }
    }

    /// Its last output is known under this name after the group.
    #[must_use]
    pub fn join(self, alias: &str) -> Self {
        self.set("join", alias)
    }

    /// Joins the list of its outputs instead of exactly one.
    #[must_use]
    pub fn collect(self) -> Self {
        self.set("collect", true)
    }

    /// Rows for which this Jinja2 expression is false skip it.
    #[must_use]
    pub fn when(self, condition: &str) -> Self {
        self.set("when", condition)
    }

    /// Adds a node to its end.
    #[must_use]
    pub fn node(mut self, node: Node) -> Self {
        let steps = self.fields.entry("steps").or_insert_with(|| json!([]));
        if let Value::Array(steps) = steps {
            steps.push(Value::Object(node.fields));
        }
        self.closures.extend(node.closures);
        self
    }

    fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }
}
