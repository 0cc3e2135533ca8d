//! The run once more, without its values: each row is led along its way by the outcomes alone, and every line that
//! it must have left is looked for where it must stand.

use super::folder::Folder;
use super::graph::{Branch, Graph, Item};
use super::line::ErrorKey;
use super::problems::{Problem, ProblemKind, Problems};
use crate::node::output::{BranchCounts, Entry, Fate, RowFate, Runs};
use crate::row::{ErrorKind, RowId};
use crate::run::{Counts, Outcomes};

/// Fates that are taken one by one.
#[derive(Debug)]
struct Cursor<T> {
    runs: std::vec::IntoIter<(T, u64)>,
    /// The fate that comes next, and how often.
    now: Option<(T, u64)>,
}

impl<T> Default for Cursor<T> {
    fn default() -> Self {
        Self {
            runs: Vec::new().into_iter(),
            now: None,
        }
    }
}

impl<T: Copy> Cursor<T> {
    fn of(runs: Runs<T>) -> Self {
        let mut runs = runs.0.into_iter();
        let now = runs.next();
        Self { runs, now }
    }

    fn peek(&self) -> Option<T> {
        self.now.map(|(fate, _)| fate)
    }

    fn next(&mut self) -> Option<T> {
        let (fate, rows) = self.now.as_mut()?;
        let fate = *fate;
        *rows -= 1;
        if *rows == 0 {
            self.now = self.runs.next();
        }
        Some(fate)
    }
}

/// Why the outcomes cannot be followed further: they contradict the graph, or themselves.
#[derive(Debug)]
pub(super) struct Broken(String);

/// Where and why a row failed.
#[derive(Clone, Debug)]
struct Failure {
    row_id: RowId,
    order: usize,
    node: String,
    child: Option<RowId>,
    branch: Option<String>,
    why: Why,
}

/// What can have been the cause of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Something at a node.
    Node,
    /// The condition of a branch or a group.
    Condition,
    /// A branch that left too many rows.
    Join,
}

impl Why {
    fn may_be(self, kind: &str) -> bool {
        let is = |of: ErrorKind| kind == of.as_str();
        match self {
            Self::Node => !is(ErrorKind::InvalidInput) && !is(ErrorKind::JoinCardinality),
            Self::Condition => is(ErrorKind::Template),
            Self::Join => is(ErrorKind::JoinCardinality),
        }
    }
}

/// How the rows of a line ended.
#[derive(Default)]
struct Ends {
    rows: Vec<RowId>,
    failed: Vec<Failure>,
    /// Failures in unjoined branches.
    aside: Vec<Failure>,
}

/// The run, followed through its outcomes.
pub(super) struct Replay<'a> {
    graph: &'a Graph,
    /// The fates of the commit that is followed, by node and by branch.
    fates: Vec<Cursor<Fate>>,
    entries: Vec<Cursor<Entry>>,
    /// By node; none where nothing is written.
    pub(super) nodes: Vec<Option<Folder<'a, RowId>>>,
    pub(super) flattened: Option<Folder<'a, RowId>>,
    pub(super) errors: Folder<'a, ErrorKey>,
    /// What was found to be so.
    pub(super) counts: Counts,
    pub(super) found: Problems,
}

/// What the outcomes are called in reports.
pub(super) const OUTCOMES: &str = ".chainette/outcomes";

impl<'a> Replay<'a> {
    /// Nothing followed yet.
    pub(super) fn new(
        graph: &'a Graph,
        nodes: Vec<Option<Folder<'a, RowId>>>,
        flattened: Option<Folder<'a, RowId>>,
        errors: Folder<'a, ErrorKey>,
        found: Problems,
    ) -> Self {
        let counts = Counts {
            nodes: graph
                .nodes
                .iter()
                .map(|node| (node.id.clone(), Default::default()))
                .collect(),
            branches: graph
                .branches
                .iter()
                .map(|branch| (branch.id.clone(), BranchCounts::default()))
                .collect(),
            ..Counts::default()
        };
        Self {
            graph,
            fates: Vec::new(),
            entries: Vec::new(),
            nodes,
            flattened,
            errors,
            counts,
            found,
        }
    }

    /// Follows the rows of one commit; false when they cannot be followed, which was told then. `line` is its
    /// line in the file.
    pub(super) fn follow(&mut self, outcomes: Outcomes, line: u64) -> bool {
        match self.commit(outcomes) {
            Ok(()) => true,
            Err(Broken(text)) => {
                let problem = Problem::of(ProblemKind::Outcomes, OUTCOMES, text);
                self.found.add(problem.at(line));
                false
            }
        }
    }

    fn commit(&mut self, mut outcomes: Outcomes) -> Result<(), Broken> {
        let graph = self.graph;
        self.fates.clear();
        for node in &graph.nodes {
            let runs = outcomes.nodes.swap_remove(&node.id).unwrap_or_default();
            if let Some(counts) = self.counts.nodes.get_mut(&node.id) {
                for (fate, rows) in &runs.0 {
                    if !node.may(*fate) {
                        let text = format!("no row can be {} at `{}`", word(*fate), node.id);
                        return Err(Broken(text));
                    }
                    counts.add(*fate, *rows);
                }
            }
            self.fates.push(Cursor::of(runs));
        }
        self.entries.clear();
        for branch in &graph.branches {
            let runs = outcomes.branches.swap_remove(&branch.id).unwrap_or_default();
            self.entries.push(Cursor::of(runs));
        }
        let strangers = outcomes.nodes.keys().chain(outcomes.branches.keys());
        if let Some(id) = strangers.into_iter().next() {
            return Err(Broken(format!(
                "`{id}` is neither a node nor a branch of graph.json"
            )));
        }
        let mut ordinal = outcomes.row;
        for (fate, rows) in outcomes.input.0 {
            for _ in 0..rows {
                self.row(ordinal, fate)?;
                ordinal += 1;
            }
        }
        let left = graph.nodes.iter().map(|node| &node.id).zip(&self.fates);
        let left = left.filter(|(_, fates)| fates.now.is_some()).map(|(id, _)| id);
        let entries = graph.branches.iter().map(|branch| &branch.id).zip(&self.entries);
        let entries = entries.filter(|(_, fates)| fates.now.is_some()).map(|(id, _)| id);
        match left.chain(entries).next() {
            None => Ok(()),
            Some(id) => Err(Broken(format!("`{id}` has more fates than rows that came to it"))),
        }
    }

    /// Leads one input row to its ends.
    fn row(&mut self, ordinal: u64, said: RowFate) -> Result<(), Broken> {
        let id = RowId::root(ordinal);
        let mut ends = Ends::default();
        if said != RowFate::Invalid {
            let graph = self.graph;
            self.line(&graph.main, &id, &mut ends)?;
        }
        for row in &ends.rows {
            if let Some(folder) = &mut self.flattened {
                folder.expect(row, &mut self.found);
            }
        }
        self.counts.rows_out += ends.rows.len() as u64;
        let failed = said == RowFate::Invalid || !ends.failed.is_empty();
        if failed != said.is_failure() {
            let word = |failed| if failed { "fails" } else { "does not fail" };
            return Err(Broken(format!(
                "row {ordinal} {} by what its nodes say, and {} by what is said of the row",
                word(failed),
                word(said.is_failure())
            )));
        }
        if failed {
            if self.counts.leading_failed == self.counts.rows_in {
                self.counts.leading_failed += 1;
            }
            self.counts.rows_failed += 1;
        }
        self.counts.rows_in += 1;
        if said == RowFate::Invalid {
            self.failed(None, id);
            return Ok(());
        }
        let mut failures = ends.failed;
        failures.append(&mut ends.aside);
        failures.sort_by(|a, b| (&a.row_id, a.order).cmp(&(&b.row_id, b.order)));
        for failure in failures {
            let row = failure.row_id.clone();
            self.failed(Some(failure), row);
        }
        Ok(())
    }

    /// Looks for a row's line in `errors/`; that of a bad input line if there is no failure.
    fn failed(&mut self, failure: Option<Failure>, row_id: RowId) {
        self.counts.errors += 1;
        let why = failure.as_ref().map(|failure| failure.why);
        let want = match failure {
            None => ErrorKey {
                row_id,
                order: 0,
                node: None,
                branch: None,
                child: None,
                kind: ErrorKind::InvalidInput.as_str().to_owned(),
            },
            Some(failure) => ErrorKey {
                row_id: failure.row_id,
                order: failure.order,
                node: Some(failure.node),
                branch: failure.branch,
                child: failure.child.map(|child| child.to_string()),
                kind: String::new(),
            },
        };
        let Some(line) = self.errors.expect(&want, &mut self.found) else {
            return;
        };
        for (field, want, is) in [
            ("node", &want.node, &line.node),
            ("branch", &want.branch, &line.branch),
            ("child", &want.child, &line.child),
        ] {
            if want != is {
                let text = format!("its `{field}` is {}, not {}", shown(is), shown(want));
                let problem = self.errors.here(ProblemKind::Row, text);
                self.found.add(problem.row(&line.row_id));
            }
        }
        let fits = why.map_or(line.kind == want.kind, |why| why.may_be(&line.kind));
        if !fits {
            let text = format!("its `kind` cannot be {} there", line.kind);
            let problem = self.errors.here(ProblemKind::Row, text);
            self.found.add(problem.row(&line.row_id));
        }
        *self.counts.kinds.entry(line.kind).or_default() += 1;
    }

    /// Leads a row along the rest of a line.
    fn line(&mut self, line: &'a [Item], id: &RowId, ends: &mut Ends) -> Result<(), Broken> {
        let mut rest = line.iter();
        while let Some(item) = rest.next() {
            match item {
                Item::Node(ix) => match self.fate(*ix, id)? {
                    Fate::Emitted(1) => self.left(*ix, id),
                    Fate::Emitted(children) => {
                        for k in 0..children {
                            self.left(*ix, &id.child(k));
                        }
                        for k in 0..children {
                            self.line(rest.as_slice(), &id.child(k), ends)?;
                        }
                        return Ok(());
                    }
                    Fate::Skipped | Fate::Nulled => {}
                    Fate::Filtered => return Ok(()),
                    Fate::Failed => {
                        let node = self.graph.nodes.get(*ix).map(|node| node.id.clone());
                        ends.failed.push(Failure {
                            row_id: id.clone(),
                            order: *ix,
                            node: node.unwrap_or_default(),
                            child: None,
                            branch: None,
                            why: Why::Node,
                        });
                        return Ok(());
                    }
                },
                Item::Group { when, branches } => {
                    if let Some(failure) = self.group(*when, branches, id, &mut ends.aside)? {
                        ends.failed.push(failure);
                        return Ok(());
                    }
                }
            }
        }
        ends.rows.push(id.clone());
        Ok(())
    }

    /// What became of a row at a node.
    fn fate(&mut self, ix: usize, id: &RowId) -> Result<Fate, Broken> {
        let fate = self.fates.get_mut(ix).and_then(Cursor::next);
        fate.ok_or_else(|| {
            let node = self.graph.nodes.get(ix).map_or("", |node| &node.id);
            Broken(format!("row {id} came to `{node}` and has no fate there"))
        })
    }

    /// Looks for the line that a node left of a row.
    fn left(&mut self, ix: usize, id: &RowId) {
        if let Some(Some(folder)) = self.nodes.get_mut(ix) {
            folder.expect(id, &mut self.found);
        }
    }

    /// Leads a row through the branches of a group; a failure is the row's.
    fn group(
        &mut self,
        when: bool,
        branches: &'a [usize],
        id: &RowId,
        aside: &mut Vec<Failure>,
    ) -> Result<Option<Failure>, Broken> {
        let graph = self.graph;
        if let Some(first) = branches.first()
            && let Some(entries) = self.entries.get_mut(*first)
            && entries.peek() == Some(Entry::GroupFailed)
        {
            entries.next();
            let first = graph.branches.get(*first).filter(|_| when);
            let failure = first.map(|branch| failure_of(branch, id, Why::Condition));
            let broken = || Broken(format!("row {id}: a condition failed where there is none"));
            return failure.map(Some).ok_or_else(broken);
        }
        let mut failure = None;
        for ix in branches {
            let Some(branch) = graph.branches.get(*ix) else {
                continue;
            };
            let entry = self.entries.get_mut(*ix).and_then(Cursor::next);
            let Some(entry) = entry else {
                let text = format!(
                    "row {id} came to the branch `{}` and has no fate there",
                    branch.id
                );
                return Err(Broken(text));
            };
            let mut ends = Ends::default();
            match entry {
                Entry::Entered => self.line(&branch.line, id, &mut ends)?,
                Entry::Skipped if branch.when || when => {}
                Entry::Failed if branch.when => {
                    ends.failed.push(failure_of(branch, id, Why::Condition));
                }
                Entry::Skipped | Entry::Failed | Entry::GroupFailed => {
                    let text = format!(
                        "row {id}: a condition of the branch `{}` decided where there is none",
                        branch.id
                    );
                    return Err(Broken(text));
                }
            }
            aside.append(&mut ends.aside);
            let failed = if branch.joined {
                let its = joined(branch, id, ends);
                let any = its.is_some();
                failure = failure.or(its);
                any
            } else {
                let any = !ends.failed.is_empty();
                aside.extend(ends.failed.into_iter().map(|mut failure| {
                    failure.branch.get_or_insert_with(|| branch.id.clone());
                    failure
                }));
                any
            };
            if let Some(counts) = self.counts.branches.get_mut(&branch.id) {
                counts.rows += 1;
                counts.skipped += u64::from(entry == Entry::Skipped);
                counts.failed += u64::from(failed);
            }
        }
        Ok(failure)
    }
}

/// Why a joined branch fails the row; none if it does not.
fn joined(branch: &Branch, id: &RowId, mut ends: Ends) -> Option<Failure> {
    ends.failed
        .sort_by(|a, b| (&a.row_id, a.order).cmp(&(&b.row_id, b.order)));
    if let Some(first) = ends.failed.into_iter().next() {
        let child = first.child.unwrap_or_else(|| first.row_id.clone());
        return Some(Failure {
            row_id: id.clone(),
            child: Some(child).filter(|child| child != id),
            ..first
        });
    }
    (!branch.collect && ends.rows.len() > 1).then(|| failure_of(branch, id, Why::Join))
}

fn failure_of(branch: &Branch, id: &RowId, why: Why) -> Failure {
    Failure {
        row_id: id.clone(),
        order: branch.order,
        node: branch.id.clone(),
        child: None,
        branch: None,
        why,
    }
}

fn word(fate: Fate) -> String {
    match fate {
        Fate::Emitted(children) => format!("made {children}"),
        Fate::Filtered => "filtered".into(),
        Fate::Skipped => "skipped".into(),
        Fate::Nulled => "nulled".into(),
        Fate::Failed => "failed".into(),
    }
}

fn shown(value: &Option<String>) -> String {
    value
        .as_ref()
        .map_or_else(|| "left out".to_owned(), |value| format!("`{value}`"))
}
