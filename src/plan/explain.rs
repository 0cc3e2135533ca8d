//! A plan shown: tree, `graph.json`, dot, mermaid.

mod schemas;
mod switches;
mod tree;
mod types;

use serde_json::{Map, Value, json};

use super::{ApplyPlan, EngineIx, Line, Node, NodeKind, Plan, Program, StepPlan};
use crate::plan::Item;
use crate::spec::{OnError, Sampling, Task};

pub use schemas::{flattened_names, flattened_schema, record_schema};
pub use switches::{Switch, switches, switches_json};
pub use tree::{TreeOptions, tree, tree_in_turns};

/// The value of `graph.json`: the DAG as specified, without secrets and without what a run may
/// choose for itself (batch size, endpoints, concurrency).
pub fn graph_json(plan: &Plan) -> Value {
    let nodes: Vec<Value> = plan.nodes.iter().map(|n| node_json(plan, n)).collect();
    let branches: Vec<Value> = plan
        .branches
        .iter()
        .map(|branch| {
            json!({
                "id": branch.id,
                "in": branch.parent.and_then(|p| plan.branches.get(p.0)).map(|p| &p.id),
                "when": branch.when.as_ref().map(|w| w.source()),
                "join": branch.join.and_then(|j| plan.names.get(j.0)),
                "collect": branch.collect,
                "can_be_null": branch.nullable,
            })
        })
        .collect();
    let engines: Map<String, Value> = plan
        .engines
        .iter()
        .map(|e| {
            let shown = json!({"backend": e.backend.as_str(), "model": e.model});
            (e.name.clone(), shown)
        })
        .collect();
    let schemas: Map<String, Value> = plan
        .nodes
        .iter()
        .map(|n| (n.id.clone(), record_schema(n)))
        .collect();
    let models: Map<String, Value> = plan
        .models
        .iter()
        .map(|(name, schema)| (name.clone(), schema.clone()))
        .collect();
    json!({
        "name": plan.name,
        "input_model": plan.input_model.as_ref().map(|m| m.schema()),
        "models": models,
        "engines": engines,
        "main": line_json(plan, &plan.main),
        "nodes": nodes,
        "branches": branches,
        "edges": edges(plan).into_iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
        "schemas": {"nodes": schemas, "flattened": flattened_schema(plan)},
    })
}

/// A line as nested lists: a node's id, or a group.
fn line_json(plan: &Plan, line: &Line) -> Value {
    line.0
        .iter()
        .map(|item| match item {
            Item::Node(ix) => json!(plan.nodes.get(ix.0).map(|n| &n.id)),
            Item::Group(group) => {
                let branches: Vec<Value> = group
                    .branches
                    .iter()
                    .filter_map(|ix| plan.branches.get(ix.0))
                    .map(|b| json!({"branch": b.id, "steps": line_json(plan, &b.line)}))
                    .collect();
                json!({"when": group.when.as_ref().map(|w| w.source()), "parallel": branches})
            }
        })
        .collect()
}

fn node_json(plan: &Plan, node: &Node) -> Value {
    let mut out = json!({
        "id": node.id,
        "branch": node.branch.and_then(|b| plan.branches.get(b.0)).map(|b| &b.id),
        "when": node.when.as_ref().map(|w| w.source()),
        "yield_output": node.yield_output,
        "emoji": node.emoji,
        "output_model": node.model.as_ref().map(|m| m.schema()),
        "can_be_null": node.nullable,
    });
    let more = match &node.kind {
        NodeKind::Step(step) => step_json(plan, step),
        NodeKind::Apply(ApplyPlan::Jq(_)) => json!({"kind": "apply", "apply": {"jq": node.program}}),
        NodeKind::Apply(ApplyPlan::Closure(c)) => json!({"kind": "apply", "apply": {"closure": c.name}}),
        NodeKind::Apply(ApplyPlan::Process(p)) => json!({"kind": "apply", "apply": process_json(&p.program)}),
    };
    if let (Value::Object(out), Value::Object(more)) = (&mut out, more) {
        out.extend(more);
    }
    out
}

/// What a process runs, as the chain says it; how many of them is a run's own choice.
fn process_json(program: &Program) -> Value {
    match program {
        Program::Python { source, digest, .. } => json!({"python": source, "digest": digest}),
        Program::Command {
            source,
            arguments,
            digests,
            ..
        } => {
            let words: Vec<&str> = std::iter::once(source)
                .chain(arguments)
                .map(String::as_str)
                .collect();
            let digests: Map<String, Value> = digests.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            json!({"command": words, "digests": digests})
        }
    }
}

fn step_json(plan: &Plan, step: &StepPlan) -> Value {
    let engine = plan.engines.get(step.engine.0).map(|e| &e.name);
    let retries = json!({"transport": step.retries.transport, "output": step.retries.output});
    let on_error = match step.on_error {
        OnError::FailRow => "fail_row",
        OnError::Null => "null",
    };
    if step.task == Task::Embed {
        return json!({
            "kind": "step",
            "engine": engine,
            "task": step.task.as_str(),
            "input": step.user.source(),
            "retries": retries,
            "on_error": on_error,
        });
    }
    json!({
        "kind": "step",
        "engine": engine,
        "system_prompt": step.system.as_ref().map(|t| t.source()),
        "user_prompt": step.user.source(),
        "free_text": step.free_text,
        "sampling": sampling_json(&step.sampling),
        "retries": retries,
        "on_error": on_error,
    })
}

fn sampling_json(sampling: &Sampling) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            out.insert(key.to_owned(), value);
        }
    };
    put("temperature", json!(sampling.temperature));
    put("max_tokens", json!(sampling.max_tokens));
    put("top_p", json!(sampling.top_p));
    if !sampling.stop.is_empty() {
        put("stop", json!(sampling.stop));
    }
    put("seed", json!(sampling.seed));
    out.extend(sampling.extra.clone());
    Value::Object(out)
}

/// The data flow as pairs of node ids, in chain order.
pub fn edges(plan: &Plan) -> Vec<(&str, &str)> {
    let id = |ix: petgraph::graph::NodeIndex| {
        let node = plan.graph.node_weight(ix)?;
        Some((node.0, plan.nodes.get(node.0)?.id.as_str()))
    };
    let mut found: Vec<_> = plan
        .graph
        .edge_indices()
        .filter_map(|edge| plan.graph.edge_endpoints(edge))
        .filter_map(|(a, b)| Some((id(a)?, id(b)?)))
        .collect();
    found.sort_by_key(|(a, b)| (a.0, b.0));
    found.into_iter().map(|(a, b)| (a.1, b.1)).collect()
}

/// The graph in Graphviz' language. Ids are quoted: `node` and `edge` are words of it.
pub fn dot(plan: &Plan) -> String {
    dot_in_turns(plan, &[])
}

/// The same for engines that are loaded set by set: a Step before which others are loaded says so.
pub fn dot_in_turns(plan: &Plan, sets: &[Vec<EngineIx>]) -> String {
    let switches = switches(plan, sets);
    let mut out = format!("digraph {} {{\n  rankdir=LR;\n", dot_string(&plan.name));
    for (ix, node) in plan.nodes.iter().enumerate() {
        let shape = match node.kind {
            NodeKind::Step(_) => "box",
            NodeKind::Apply(_) => "ellipse",
        };
        let label = dot_string(&label(plan, node, switch_at(&switches, ix)));
        out.push_str(&format!("  \"{}\" [shape={shape}, label={label}];\n", node.id));
    }
    for (from, to) in edges(plan) {
        out.push_str(&format!("  \"{from}\" -> \"{to}\";\n"));
    }
    out.push_str("}\n");
    out
}

/// The switch before a node.
fn switch_at(switches: &[Switch], node: usize) -> Option<&Switch> {
    switches.iter().find(|switch| switch.before.0 == node)
}

/// What a node is called, and below it who does the work, and in whose place.
fn label(plan: &Plan, node: &Node, switch: Option<&Switch>) -> String {
    match &node.kind {
        NodeKind::Step(step) => match plan.engines.get(step.engine.0) {
            Some(engine) => {
                let instead = switch.map(|switch| format!("\nin the place of {}", switch.names(plan).1));
                let instead = instead.unwrap_or_default();
                format!("{}\n{}: {}{instead}", node.id, engine.name, engine.model)
            }
            None => node.id.clone(),
        },
        NodeKind::Apply(_) => node.id.clone(),
    }
}

/// A quoted string of Graphviz.
fn dot_string(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    let text: String = text
        .chars()
        .map(|c| match c {
            '\n' => "\\n".to_owned(),
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect();
    format!("\"{text}\"")
}

/// The graph in mermaid's language.
pub fn mermaid(plan: &Plan) -> String {
    mermaid_in_turns(plan, &[])
}

/// The same for engines that are loaded set by set, as in [`dot_in_turns`].
pub fn mermaid_in_turns(plan: &Plan, sets: &[Vec<EngineIx>]) -> String {
    let switches = switches(plan, sets);
    let mut out = String::from("flowchart LR\n");
    for (ix, node) in plan.nodes.iter().enumerate() {
        let label = mermaid_string(&label(plan, node, switch_at(&switches, ix)));
        // The prefix keeps ids such as `end` from being words of mermaid.
        out.push_str(&match node.kind {
            NodeKind::Step(_) => format!("  n_{}[{label}]\n", node.id),
            NodeKind::Apply(_) => format!("  n_{}([{label}])\n", node.id),
        });
    }
    for (from, to) in edges(plan) {
        out.push_str(&format!("  n_{from} --> n_{to}\n"));
    }
    out
}

/// A quoted label of mermaid, in which a line break is a tag and special characters are entities.
fn mermaid_string(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| match c {
            '\n' => "<br/>".to_owned(),
            '"' | '#' | '<' | '>' | '&' | '`' | '\\' | '[' | ']' | '{' | '}' | '|' => {
                format!("#{};", u32::from(c))
            }
            c if c.is_control() => " ".to_owned(),
            c => c.to_string(),
        })
        .collect();
    format!("\"{text}\"")
}
