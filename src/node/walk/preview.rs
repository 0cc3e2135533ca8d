//! Leads rows through a plan as far as that needs no engine: up to the prompts of the first Steps.
//!
//! Finds what would fail before anything is asked, paid or written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde::Serialize;

use super::{State, Walker, set};
use crate::expr::jq::item_fields;
use crate::expr::template::{FIXED_NAMES, Template};
use crate::node::apply::apply as apply_to;
use crate::node::chunk::valid;
use crate::plan::{ApplyPlan, Branch, Group, Item, Node, NodeIx, NodeKind, Plan, StepPlan};
use crate::row::{ErrorKind, Named, Record, RowError, RowId};
use crate::source::Chunk;
use crate::spec::{OnError, suggest};

/// What the rows showed.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    /// Rows looked at.
    pub rows: u64,
    /// There was no time for all of the rows asked for.
    pub out_of_time: bool,
    /// Rows of which something would stand in errors/.
    pub rows_failed: u64,
    /// The fields of the input rows, in order of their first appearance.
    pub fields: IndexMap<String, Field>,
    /// What happened at each node, in chain order.
    pub nodes: IndexMap<String, NodeFindings>,
    /// What would fail, by node and kind.
    pub failures: Vec<FailureGroup>,
    /// Reads of fields that no row has, where that fails no row.
    pub never_found: Vec<NeverFound>,
}

/// A field of the input.
#[derive(Debug, Default, Serialize)]
pub struct Field {
    /// Rows that have it.
    pub rows: u64,
    /// Rows by the JSON type of its value.
    pub types: BTreeMap<&'static str, u64>,
}

/// What happened at a node.
#[derive(Debug, Default, Serialize)]
pub struct NodeFindings {
    /// Rows that came.
    pub rows: u64,
    /// Rows that an Apply passed on.
    pub emitted: u64,
    /// Rows that an Apply filtered out.
    pub filtered: u64,
    /// Rows for which `when` is false.
    pub skipped: u64,
    /// Rows that `on_error: null` lets go on.
    pub nulled: u64,
    /// Rows that would fail here.
    pub failed: u64,
    /// Prompts that a Step would send.
    pub prompts: u64,
    /// The shortest and the longest of them, in characters, system prompt included.
    pub prompt_characters: Option<(usize, usize)>,
    /// Rows that end here, because only a run can tell what comes out.
    pub stopped: u64,
    #[serde(skip)]
    fields: BTreeMap<String, u64>,
}

/// Failures of one kind at one place.
#[derive(Debug, Serialize)]
pub struct FailureGroup {
    /// The node or branch; none for rows that cannot start.
    pub node: Option<String>,
    /// As in errors/.
    pub kind: &'static str,
    /// How many.
    pub count: u64,
    /// The first ones, with different messages.
    pub examples: Vec<Example>,
}

/// A failing row.
#[derive(Debug, Serialize)]
pub struct Example {
    /// Its id.
    pub row_id: String,
    /// The line of the input it stands on.
    pub line: u64,
    /// The message that errors/ would hold.
    pub message: String,
}

/// A template reads a field that stands in no row.
#[derive(Debug, Serialize)]
pub struct NeverFound {
    /// The node.
    pub node: String,
    /// As it is written.
    pub read: String,
    /// Rows that came to the node.
    pub rows: u64,
    /// "did you mean …", or what there is.
    pub help: Option<String>,
}

/// Different messages shown per kind and node.
const EXAMPLES: usize = 3;

/// How the rows of a line ended.
#[derive(Default)]
struct Way {
    /// Rows at the end of the line.
    rows: Vec<State>,
    /// Something failed.
    failed: bool,
    /// Something needs an engine's reply to go on.
    open: bool,
}

impl Way {
    fn failed() -> Self {
        let failed = true;
        Self {
            failed,
            ..Self::default()
        }
    }

    fn open() -> Self {
        let open = true;
        Self {
            open,
            ..Self::default()
        }
    }

    fn append(&mut self, mut other: Self) {
        self.rows.append(&mut other.rows);
        self.failed |= other.failed;
        self.open |= other.open;
    }
}

/// Leads rows as far as that needs no engine, until `patience` is used up. CPU work.
pub fn preview(walker: &Walker, chunks: impl Iterator<Item = Chunk>, patience: Duration) -> Findings {
    let start = Instant::now();
    let mut preview = Preview {
        walker,
        findings: Findings::default(),
        line: 0,
        bad: false,
    };
    for node in &walker.plan.nodes {
        let findings = NodeFindings::default();
        preview.findings.nodes.insert(node.id.clone(), findings);
    }
    'rows: for chunk in chunks {
        for row in &chunk.rows {
            // A program that never ends is stopped on every row, each time after a minute.
            if start.elapsed() > patience {
                preview.findings.out_of_time = true;
                break 'rows;
            }
            preview.row(&chunk, row);
        }
    }
    preview.never_found();
    let order = |group: &FailureGroup| group.node.as_deref().map(|id| place(&walker.plan, id));
    preview.findings.failures.sort_by_key(order);
    preview.findings
}

struct Preview<'a> {
    walker: &'a Walker,
    findings: Findings,
    /// Of the row on its way.
    line: u64,
    /// Something of the row on its way failed.
    bad: bool,
}

impl Preview<'_> {
    fn row(&mut self, chunk: &Chunk, row: &crate::source::RawRow) {
        let arrival = self.walker.arrival(row, &chunk.data);
        self.findings.rows += 1;
        self.line = arrival.origin.line;
        self.bad = false;
        if let Ok(record) = &arrival.record {
            self.fields(record);
        }
        match valid(&self.walker.plan, &arrival.record) {
            Err(message) => {
                let error = RowError::new(ErrorKind::InvalidInput, message);
                self.fail(None, &arrival.id, error);
            }
            Ok(record) => {
                let state = State {
                    id: arrival.id,
                    input: record.clone(),
                    item: record.clone(),
                    names: vec![Named::Unset; self.walker.plan.names.len()],
                    emitted: false,
                    memory: None,
                };
                self.line(&self.walker.plan.main.0, state);
            }
        }
        self.findings.rows_failed += u64::from(self.bad);
    }

    fn fields(&mut self, record: &Record) {
        for (key, value) in record.fields() {
            let name = serde_json::from_str(key).unwrap_or_default();
            let field = self.findings.fields.entry(name).or_default();
            field.rows += 1;
            *field.types.entry(json_type(value)).or_default() += 1;
        }
    }

    fn line(&mut self, line: &[Item], mut state: State) -> Way {
        let mut rest = line.iter();
        while let Some(item) = rest.next() {
            let way = match item {
                Item::Node(ix) => self.node(*ix, &mut state, rest.as_slice()),
                Item::Group(group) => self.group(group, &mut state),
            };
            if let Some(way) = way {
                return way;
            }
        }
        Way {
            rows: vec![state],
            ..Way::default()
        }
    }

    /// What a row does at a node; none when the same row goes on.
    fn node(&mut self, ix: NodeIx, state: &mut State, rest: &[Item]) -> Option<Way> {
        let walker = self.walker;
        let node = walker.plan.nodes.get(ix.0)?;
        self.arrive(node, &state.item);
        match walker.holds(node.when.as_ref(), state) {
            Ok(true) => {}
            Ok(false) => {
                self.at(node).skipped += 1;
                set(state, node, Named::Null);
                return None;
            }
            Err(error) => return Some(self.fail_at(node, state, error)),
        }
        match &node.kind {
            NodeKind::Step(step) => self.step(node, step, state),
            NodeKind::Apply(apply @ ApplyPlan::Jq(_)) => match apply_to(node, apply, &walker.scope(state)) {
                Ok(records) => self.emit(node, state, records, rest),
                Err(error) => Some(self.fail_at(node, state, error)),
            },
            // User code is for a run.
            NodeKind::Apply(_) => {
                self.at(node).stopped += 1;
                Some(Way::open())
            }
        }
    }

    /// Makes what an Apply emitted the row's items.
    fn emit(&mut self, node: &Node, state: &mut State, records: Vec<Record>, rest: &[Item]) -> Option<Way> {
        let mut records = records;
        let give = |state: &mut State, record: Record| {
            state.emitted = true;
            set(state, node, Named::Record(record.clone()));
            state.item = record;
        };
        if records.is_empty() {
            self.at(node).filtered += 1;
            return Some(Way::default());
        }
        self.at(node).emitted += 1;
        if records.len() == 1 {
            give(state, records.pop()?);
            return None;
        }
        let mut way = Way::default();
        for (k, record) in records.into_iter().enumerate() {
            let id = state.id.child(u32::try_from(k).unwrap_or(u32::MAX));
            let mut child = State { id, ..state.clone() };
            give(&mut child, record);
            way.append(self.line(rest, child));
        }
        Some(way)
    }

    /// Renders what a Step would send.
    fn step(&mut self, node: &Node, step: &StepPlan, state: &mut State) -> Option<Way> {
        match self.walker.prompts(step, state) {
            Ok((system, user)) => {
                let system = system.map_or(0, |system| system.chars().count());
                let characters = system + user.chars().count();
                let seen = self.at(node);
                seen.prompts += 1;
                let (least, most) = seen.prompt_characters.unwrap_or((characters, characters));
                seen.prompt_characters = Some((least.min(characters), most.max(characters)));
                Some(Way::open())
            }
            Err(_) if step.on_error == OnError::Null => {
                self.at(node).nulled += 1;
                set(state, node, Named::Null);
                None
            }
            Err(error) => Some(self.fail_at(node, state, error)),
        }
    }

    /// Leads a row through the branches of a group; none when it goes on on its line.
    fn group(&mut self, group: &Group, state: &mut State) -> Option<Way> {
        let walker = self.walker;
        let branches: Vec<&Branch> = group
            .branches
            .iter()
            .filter_map(|ix| walker.plan.branches.get(ix.0))
            .collect();
        let runs = match walker.holds(group.when.as_ref(), state) {
            Ok(runs) => runs,
            Err(error) => {
                let first = branches.first().map(|branch| branch.id.as_str());
                self.fail(first, &state.id, error);
                return Some(Way::failed());
            }
        };
        let mut joined = Vec::new();
        let (mut failed, mut open) = (false, false);
        for branch in branches {
            let way = self.branch(branch, runs, state);
            let Some(name) = branch.join else { continue };
            failed |= way.failed;
            open |= way.open;
            if way.failed || way.open {
                continue;
            }
            match walker.join(branch, state, way.rows, Vec::new()) {
                Ok(value) => joined.push((name, value)),
                Err(failure) => {
                    self.fail(Some(&branch.id), &state.id, failure.error);
                    failed = true;
                }
            }
        }
        if failed {
            return Some(Way::failed());
        }
        // What comes next may read an alias that only a run can fill.
        if open {
            return Some(Way::open());
        }
        for (name, value) in joined {
            if let Some(slot) = state.names.get_mut(name.0) {
                *slot = value;
            }
        }
        None
    }

    fn branch(&mut self, branch: &Branch, group_runs: bool, state: &State) -> Way {
        let runs = match group_runs {
            true => self.walker.holds(branch.when.as_ref(), state),
            false => Ok(false),
        };
        match runs {
            Ok(false) => Way::default(),
            Ok(true) => {
                let emitted = false;
                let state = State {
                    emitted,
                    ..state.clone()
                };
                self.line(&branch.line.0, state)
            }
            Err(error) => {
                self.fail(Some(&branch.id), &state.id, error);
                Way::failed()
            }
        }
    }

    fn at(&mut self, node: &Node) -> &mut NodeFindings {
        self.findings.nodes.entry(node.id.clone()).or_default()
    }

    fn arrive(&mut self, node: &Node, item: &Record) {
        let seen = self.at(node);
        seen.rows += 1;
        for (key, _) in item.fields() {
            let name = serde_json::from_str(key).unwrap_or_default();
            *seen.fields.entry(name).or_default() += 1;
        }
    }

    fn fail_at(&mut self, node: &Node, state: &State, error: RowError) -> Way {
        self.at(node).failed += 1;
        self.fail(Some(&node.id), &state.id, error);
        Way::failed()
    }

    fn fail(&mut self, node: Option<&str>, row_id: &RowId, error: RowError) {
        self.bad = true;
        let RowError { kind, message, .. } = error;
        let kind = kind.as_str();
        let groups = &mut self.findings.failures;
        let known = groups
            .iter()
            .position(|g| g.node.as_deref() == node && g.kind == kind);
        let at = known.unwrap_or_else(|| {
            let node = node.map(str::to_owned);
            let (count, examples) = (0, Vec::new());
            groups.push(FailureGroup {
                node,
                kind,
                count,
                examples,
            });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(at) else { return };
        group.count += 1;
        if group.examples.len() < EXAMPLES && group.examples.iter().all(|e| e.message != message) {
            let row_id = row_id.to_string();
            let line = self.line;
            group.examples.push(Example {
                row_id,
                line,
                message,
            });
        }
    }

    /// Looks for templates and jq programs that tolerate a missing field which no row has: most likely a typing
    /// error.
    fn never_found(&mut self) {
        let mut found = Vec::new();
        for node in &self.walker.plan.nodes {
            let Some(seen) = self.findings.nodes.get(&node.id).filter(|seen| seen.rows > 0) else {
                continue;
            };
            for field in node.program.as_deref().map(item_fields).unwrap_or_default() {
                let item = seen.fields.keys().map(String::as_str);
                if !seen.fields.contains_key(&field) {
                    found.push(NeverFound {
                        node: node.id.clone(),
                        read: format!(".{field}"),
                        rows: seen.rows,
                        help: suggest(&field, item),
                    });
                }
            }
            for template in templates(node) {
                for read in template.reads().iter().filter(|read| read.optional) {
                    let named = node.visible.iter().any(|(name, _)| *name == read.name);
                    let input = self.findings.fields.keys().map(String::as_str);
                    let item = seen.fields.keys().map(String::as_str);
                    let (field, has) = match (read.name.as_str(), read.fields.first()) {
                        (name, _) if named && name != "item" => continue,
                        ("chain_input", Some(field)) => (field, input.collect::<Vec<_>>()),
                        ("item", Some(field)) => (field, item.collect()),
                        (name, _) if FIXED_NAMES.contains(&name) => continue,
                        (_, _) => (&read.name, item.collect()),
                    };
                    if !has.contains(&field.as_str()) {
                        found.push(NeverFound {
                            node: node.id.clone(),
                            read: read.path(),
                            rows: seen.rows,
                            help: suggest(field, has),
                        });
                    }
                }
            }
        }
        self.findings.never_found = found;
    }
}

/// The chain order of a node, or of a branch's first one.
fn place(plan: &Plan, id: &str) -> usize {
    let branch = || plan.branches.iter().find(|branch| branch.id == id);
    let node = plan.nodes.iter().position(|node| node.id == id);
    node.or_else(|| branch().map(|branch| plan.first_node(&branch.line)))
        .unwrap_or(usize::MAX)
}

/// The templates of a Step.
fn templates(node: &Node) -> impl Iterator<Item = &Template> {
    let step = match &node.kind {
        NodeKind::Step(step) => Some(step),
        NodeKind::Apply(_) => None,
    };
    step.into_iter()
        .flat_map(|step| step.system.iter().chain([&step.user]))
}

/// The type of a JSON value, as JSON Schema calls it.
fn json_type(raw: &str) -> &'static str {
    match raw.as_bytes().first() {
        Some(b'"') => "string",
        Some(b'{') => "object",
        Some(b'[') => "array",
        Some(b't' | b'f') => "boolean",
        Some(b'n') => "null",
        _ if raw.contains(['.', 'e', 'E']) => "number",
        _ => "integer",
    }
}
