//! What a row would ask, as far as that can be told without an answer (`run --dry-run`).

use std::collections::HashMap;

use bytes::Bytes;

use crate::engine::Rendered;
use crate::expr::template::Read;
use crate::expr::{NameIx, Visible};
use crate::plan::{ApplyPlan, Branch, BranchIx, EngineIx, Item, Node, NodeIx, NodeKind, StepPlan};
use crate::row::{Named, Record, RowError, RowId};
use crate::source::RawRow;
use crate::spec::{OnError, Task};

use super::apply::apply as apply_to;
use super::walk::{State, Walker};

/// Children of one fan-out that are followed.
pub const CHILDREN: usize = 3;

/// What becomes of one row at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The row.
    pub row_id: RowId,
    /// The node or branch.
    pub node: String,
    /// What happens there.
    pub what: Ahead,
}

/// What happens to a row at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// A Step asks this first.
    Request {
        /// Whom.
        engine: EngineIx,
        /// For what.
        task: Task,
        /// The body, byte for byte.
        body: Bytes,
    },
    /// What it does depends on the answers of these Steps.
    Waits(Vec<String>),
    /// The row fails.
    Fails(RowError),
    /// The row ends here.
    Filtered,
    /// Its `when` is false.
    Skipped,
    /// So many children; only the first few are followed.
    Children(usize),
}

/// What is not known yet on a row's line, each with the Steps it waits for.
#[derive(Clone, Debug, Default)]
struct Open {
    item: Vec<String>,
    names: HashMap<NameIx, Vec<String>>,
}

impl Open {
    /// The Steps that a value made from these reads waits for.
    fn waits<'a>(&self, reads: impl Iterator<Item = &'a Read>, visible: &Visible) -> Vec<String> {
        let mut steps = Vec::new();
        for read in reads {
            let named = visible.iter().find(|(name, _)| *name == read.name);
            let open = match (named, read.name.as_str()) {
                (Some((_, ix)), _) => self.names.get(ix).map_or(&[][..], Vec::as_slice),
                (None, "chain_input" | "row_id" | "vars") => &[],
                // The current item or one of its fields.
                (None, _) => self.item.as_slice(),
            };
            add(&mut steps, open);
        }
        steps
    }

    /// Every Step that anything here waits for.
    fn all(&self) -> Vec<String> {
        let mut steps = self.item.clone();
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(ix, _)| **ix);
        for (_, open) in names {
            add(&mut steps, open);
        }
        steps
    }
}

/// Adds what is not there yet.
fn add(steps: &mut Vec<String>, more: &[String]) {
    for step in more {
        if !steps.contains(step) {
            steps.push(step.clone());
        }
    }
}

/// A row on its way, with what is open.
#[derive(Clone, Debug)]
struct Ghost {
    state: State,
    open: Open,
}

impl Walker {
    /// What an input row would ask, in chain order; runs jq and templates, and asks nobody.
    pub fn preview(&self, row: &RawRow, data: &[u8]) -> Vec<Preview> {
        let mut seen = Vec::new();
        let (id, record) = self.arrival(row, data).checked(&self.plan);
        match record {
            Err(error) => seen.push(Preview {
                row_id: id,
                node: "chain_input".to_owned(),
                what: Ahead::Fails(error),
            }),
            Ok(record) => {
                let state = State {
                    id,
                    input: record.clone(),
                    item: record,
                    names: vec![Named::Unset; self.plan.names.len()],
                    emitted: false,
                    memory: None,
                };
                let open = Open::default();
                self.foresee(&self.plan.main.0, Ghost { state, open }, &mut seen);
            }
        }
        seen
    }

    /// Follows a row along the rest of a line: the rows at its end; none where one failed.
    fn foresee(&self, line: &[Item], mut row: Ghost, seen: &mut Vec<Preview>) -> Option<Vec<Ghost>> {
        let mut rest = line.iter();
        while let Some(item) = rest.next() {
            let next = match item {
                Item::Group(group) => {
                    let runs = match &group.when {
                        None => Ok(true),
                        Some(when) => {
                            let reads = when.reads().iter();
                            // Inside a group the names are those at the fork.
                            let visible = self.visible(group.branches.first());
                            let waits = row.open.waits(reads, &visible);
                            if waits.is_empty() {
                                self.holds(Some(when), &row.state).map_err(Some)
                            } else {
                                let name = group.branches.first().and_then(|ix| self.plan.branches.get(ix.0));
                                let name = name.map_or("parallel", |branch| branch.id.as_str());
                                tell(seen, &row, name, Ahead::Waits(waits));
                                Err(None)
                            }
                        }
                    };
                    let mut joined = Vec::new();
                    for ix in &group.branches {
                        let Some(branch) = self.plan.branches.get(ix.0) else {
                            continue;
                        };
                        let left = match &runs {
                            Ok(runs) => self.foresee_branch(*ix, branch, *runs, &row, seen),
                            Err(None) => Left::Open(row.open.all()),
                            Err(Some(error)) => {
                                tell(seen, &row, &branch.id, Ahead::Fails(error.clone()));
                                return None;
                            }
                        };
                        if let Some(alias) = branch.join {
                            joined.push((alias, left));
                        }
                    }
                    for (alias, left) in joined {
                        match left {
                            Left::Failed => return None,
                            Left::Open(steps) => {
                                row.open.names.insert(alias, steps);
                            }
                            Left::Value(value) => set(&mut row.state, alias, value),
                        }
                    }
                    continue;
                }
                Item::Node(ix) => match self.plan.nodes.get(ix.0) {
                    Some(node) => (node, self.foresee_node(*ix, node, &mut row, seen)),
                    None => continue,
                },
            };
            let (node, children) = match next {
                (_, Next::On) => continue,
                (_, Next::Failed) => return None,
                (node, Next::Children(children)) => (node, children),
            };
            if children.is_empty() {
                tell(seen, &row, &node.id, Ahead::Filtered);
                return Some(Vec::new());
            }
            tell(seen, &row, &node.id, Ahead::Children(children.len()));
            let mut ends = Vec::new();
            for (k, record) in children.into_iter().take(CHILDREN).enumerate() {
                let mut child = row.clone();
                child.state.id = row.state.id.child(u32::try_from(k).unwrap_or(u32::MAX));
                emit(&mut child.state, node, record);
                ends.extend(self.foresee(rest.as_slice(), child, seen).unwrap_or_default());
            }
            return Some(ends);
        }
        Some(vec![row])
    }

    /// Runs a node as far as it can be.
    fn foresee_node(&self, ix: NodeIx, node: &Node, row: &mut Ghost, seen: &mut Vec<Preview>) -> Next {
        if let Some(when) = &node.when {
            let waits = row.open.waits(when.reads().iter(), &node.visible);
            if !waits.is_empty() {
                tell(seen, row, &node.id, Ahead::Waits(waits.clone()));
                leave_open(row, node, waits);
                return Next::On;
            }
            match self.holds(Some(when), &row.state) {
                Ok(true) => {}
                Ok(false) => {
                    tell(seen, row, &node.id, Ahead::Skipped);
                    if node.yield_output {
                        set(&mut row.state, node.name, Named::Null);
                    }
                    return Next::On;
                }
                Err(error) => {
                    tell(seen, row, &node.id, Ahead::Fails(error));
                    return Next::Failed;
                }
            }
        }
        match &node.kind {
            NodeKind::Step(plan) => self.foresee_step(ix, node, plan, row, seen),
            NodeKind::Apply(apply) => {
                let waits = match apply {
                    // Its workers are started by a run only.
                    ApplyPlan::Process(_) => vec![node.id.clone()],
                    ApplyPlan::Jq(_) if reads_rows(node) => row.open.all(),
                    _ => row.open.item.clone(),
                };
                if !waits.is_empty() {
                    leave_open(row, node, waits);
                    return Next::On;
                }
                match apply_to(node, apply, &self.scope(&row.state)) {
                    Err(error) => {
                        tell(seen, row, &node.id, Ahead::Fails(error));
                        Next::Failed
                    }
                    Ok(mut records) => match (records.pop(), records.is_empty()) {
                        (Some(record), true) => {
                            emit(&mut row.state, node, record);
                            Next::On
                        }
                        (last, _) => {
                            records.extend(last);
                            Next::Children(records)
                        }
                    },
                }
            }
        }
    }

    /// Renders a Step's first request where nothing in it waits.
    fn foresee_step(
        &self,
        ix: NodeIx,
        node: &Node,
        plan: &StepPlan,
        row: &mut Ghost,
        seen: &mut Vec<Preview>,
    ) -> Next {
        let Some(Some(step)) = self.steps.get(ix.0) else {
            return Next::On;
        };
        let reads = plan
            .system
            .iter()
            .chain([&plan.user])
            .flat_map(|prompt| prompt.reads());
        let waits = row.open.waits(reads, &node.visible);
        if !waits.is_empty() {
            tell(seen, row, &node.id, Ahead::Waits(waits));
        } else {
            match self.prompts(plan, &row.state) {
                Ok((system, user)) => {
                    let Rendered { body, .. } = step.first_request(system.as_deref(), &user);
                    let engine = plan.engine;
                    let task = plan.task;
                    tell(seen, row, &node.id, Ahead::Request { engine, task, body });
                }
                Err(error) => {
                    tell(seen, row, &node.id, Ahead::Fails(error));
                    if plan.on_error == OnError::FailRow {
                        return Next::Failed;
                    }
                    if node.yield_output {
                        set(&mut row.state, node.name, Named::Null);
                    }
                    return Next::On;
                }
            }
        }
        leave_open(row, node, vec![node.id.clone()]);
        row.open.names.insert(plan.reasoning, vec![node.id.clone()]);
        Next::On
    }

    fn foresee_branch(
        &self,
        ix: BranchIx,
        branch: &Branch,
        group_runs: bool,
        at: &Ghost,
        seen: &mut Vec<Preview>,
    ) -> Left {
        if let (Some(when), true) = (&branch.when, group_runs) {
            let waits = at.open.waits(when.reads().iter(), &self.visible(Some(&ix)));
            if !waits.is_empty() {
                tell(seen, at, &branch.id, Ahead::Waits(waits.clone()));
                return Left::Open(waits);
            }
        }
        let runs = match group_runs {
            true => self.holds(branch.when.as_ref(), &at.state),
            false => Ok(false),
        };
        let ends = match runs {
            Err(error) => {
                tell(seen, at, &branch.id, Ahead::Fails(error));
                return Left::Failed;
            }
            Ok(false) => {
                tell(seen, at, &branch.id, Ahead::Skipped);
                Vec::new()
            }
            Ok(true) => {
                let mut row = at.clone();
                row.state.emitted = false;
                match self.foresee(&branch.line.0, row, seen) {
                    Some(ends) => ends,
                    None => return Left::Failed,
                }
            }
        };
        let open: Vec<String> = ends.iter().flat_map(|end| end.open.item.clone()).collect();
        if let Some(first) = open.first() {
            return Left::Open(vec![first.clone()]);
        }
        let rows = ends.into_iter().map(|end| end.state).collect();
        match self.join(branch, &at.state, rows, Vec::new()) {
            Ok(value) => Left::Value(value),
            Err(failure) if branch.join.is_some() => {
                tell(seen, at, &branch.id, Ahead::Fails(failure.error));
                Left::Failed
            }
            Err(_) => Left::Value(Named::Null),
        }
    }

    /// The names that a branch's `when` can read: those of its first node, which are those at the fork.
    fn visible(&self, branch: Option<&BranchIx>) -> Visible {
        let first = branch
            .and_then(|ix| self.plan.branches.get(ix.0))
            .and_then(|branch| self.plan.nodes.get(self.plan.first_node(&branch.line)));
        first.map_or_else(|| Vec::new().into(), |node| node.visible.clone())
    }
}

/// How a row goes on after a node.
enum Next {
    /// As one row.
    On,
    /// As none or several, made of these.
    Children(Vec<Record>),
    /// Not at all.
    Failed,
}

/// What a branch leaves on the line it joins.
enum Left {
    Value(Named),
    Open(Vec<String>),
    Failed,
}

/// True when a jq program may read more of the row than its current item.
fn reads_rows(node: &Node) -> bool {
    let program = node.program.as_deref().unwrap_or_default();
    program.replace("$row_id", "").contains("$row")
}

fn tell(seen: &mut Vec<Preview>, row: &Ghost, node: &str, what: Ahead) {
    seen.push(Preview {
        row_id: row.state.id.clone(),
        node: node.to_owned(),
        what,
    });
}

/// Notes that a node's output, and with it the current item, waits for Steps.
fn leave_open(row: &mut Ghost, node: &Node, steps: Vec<String>) {
    row.state.emitted = true;
    if node.yield_output {
        row.open.names.insert(node.name, steps.clone());
    }
    row.open.item = steps;
}

fn emit(state: &mut State, node: &Node, record: Record) {
    state.emitted = true;
    if node.yield_output {
        set(state, node.name, Named::Record(record.clone()));
    }
    state.item = record;
}

fn set(state: &mut State, name: NameIx, value: Named) {
    if let Some(slot) = state.names.get_mut(name.0) {
        *slot = value;
    }
}
