//! A row's way through the plan: nodes, fan-out, branches and joins.

pub mod preview;

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};

use crate::engine::Stop;
use crate::expr::{Scope, template::Template, when::When};
use crate::plan::{ApplyPlan, Item, Node, NodeIx, NodeKind, Plan, StepPlan};
use crate::row::{ErrorKind, Named, Record, RowError, RowId};
use crate::spec::{OnError, Task};

use super::apply::{self, Pool, Workers};
use super::cpu::{self, Cpu};
use super::lines;
use super::live::Live;
use super::memory::{Applied, Memory, News};
use super::output::{Fate, Output, RowFate};
use super::step::{Question, Step};

/// Leads rows through one plan.
pub struct Walker {
    pub(super) plan: Arc<Plan>,
    /// By node; none for Applies.
    pub(super) steps: Vec<Option<Step>>,
    pub(super) cpu: Cpu,
    /// By node; none but for Applies with processes of their own.
    pub(super) pools: Vec<Option<Arc<Pool>>>,
    pub(super) live: Arc<Live>,
    /// Rows go their own ways: each is counted, and timed, as it goes.
    pub(super) one_by_one: bool,
}

/// In a plan without Steps, one row of so many is timed, and all of the first [`TIMED_AT_FIRST`]: two looks
/// at the clock would cost a jq program of a microsecond a few percent.
const TIMED_ONE_OF: u64 = 16;
const TIMED_AT_FIRST: u64 = 512;

/// Where an input row came from, for its errors.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// The file, as the user named it.
    pub file: Option<Arc<str>>,
    /// The line in it, from 1.
    pub line: u64,
}

/// A row on its way.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) id: RowId,
    /// The input row.
    pub(super) input: Record,
    /// The current item.
    pub(super) item: Record,
    /// What every name of the plan holds on this row's line.
    pub(super) names: Vec<Named>,
    /// A node on this line emitted since the line began: the item is the line's own output.
    pub(super) emitted: bool,
    /// What it keeps for a next walk, in a run whose engines do not all fit together.
    pub(super) memory: Option<Arc<Memory>>,
}

impl State {
    /// Whether watchers are to be told: not of what a former walk has told them.
    pub(super) fn is_news(&self, news: News) -> bool {
        self.memory.as_ref().is_none_or(|memory| memory.is_news(news))
    }
}

/// A failure on its way to `errors/`.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) row_id: RowId,
    /// Chain order of the place, for sorting.
    pub(super) order: usize,
    pub(super) node: String,
    /// The failing child, when a join made it the parent's failure.
    pub(super) child: Option<RowId>,
    /// The unjoined branch whose row this is.
    pub(super) branch: Option<String>,
    pub(super) error: RowError,
}

/// How the rows of a line ended.
#[derive(Default)]
pub(super) struct Ends {
    /// Rows at the line's end, in order.
    pub(super) rows: Vec<State>,
    /// Rows that failed on this line.
    pub(super) failed: Vec<Failure>,
    /// Failures in unjoined branches off this line: done with, only to be written.
    pub(super) aside: Vec<Failure>,
}

impl Ends {
    fn append(&mut self, mut other: Self) {
        self.rows.append(&mut other.rows);
        self.failed.append(&mut other.failed);
        self.aside.append(&mut other.aside);
    }
}

/// What a node did with a row.
enum Done {
    /// The row goes on.
    On,
    /// It became several rows.
    Children(Vec<Record>),
    /// It ends here.
    Filtered,
    Failed(RowError),
}

impl Walker {
    /// Leads rows through `plan`; `steps` by node, none for Applies.
    pub fn new(plan: Arc<Plan>, steps: Vec<Option<Step>>, cpu: Cpu) -> Self {
        let one_by_one = plan.asks(&plan.main.0);
        Self {
            plan,
            steps,
            cpu,
            pools: Vec::new(),
            live: Arc::default(),
            one_by_one,
        }
    }

    /// Lends the walker the processes that run Applies.
    #[must_use]
    pub fn with_workers(self, workers: &Workers) -> Self {
        Self {
            pools: workers.pools(),
            ..self
        }
    }

    /// Counts for those who watch.
    #[must_use]
    pub fn with_live(mut self, live: Arc<Live>) -> Self {
        self.live = live;
        self
    }

    /// Counts a row's fate at a node.
    fn fate(&self, ix: NodeIx, fate: Fate, state: &State, out: &mut Output) {
        out.fate(ix.0, fate);
        if self.one_by_one && state.is_news(News::Fate(ix.0, fate)) {
            self.live.fate(ix.0, fate);
        }
    }

    /// Whether an Apply is timed on this row.
    fn is_timed(&self, id: &RowId) -> bool {
        let ordinal = id.ordinal();
        self.one_by_one || ordinal < TIMED_AT_FIRST || ordinal.is_multiple_of(TIMED_ONE_OF)
    }

    /// Leads one input row to its end and writes what it leaves behind to `out`.
    pub(super) async fn row(
        &self,
        id: RowId,
        input: Record,
        origin: &Origin,
        memory: Option<Arc<Memory>>,
        out: &mut Output,
    ) -> Result<(), Stop> {
        let names = vec![Named::Unset; self.plan.names.len()];
        let state = State {
            id,
            input: input.clone(),
            item: input.clone(),
            names,
            emitted: false,
            memory,
        };
        let ends = self.line(&self.plan.main.0, state, out).await?;
        for row in &ends.rows {
            lines::flattened(&mut out.flattened, &self.plan, row);
        }
        out.input_row(match ends.failed.is_empty() {
            true => RowFate::Done,
            false => RowFate::Failed,
        });
        let mut failures = ends.failed;
        failures.extend(ends.aside);
        failures.sort_by(|a, b| (&a.row_id, a.order).cmp(&(&b.row_id, b.order)));
        for failure in &failures {
            out.failure(Some(&failure.node), failure.error.kind, &failure.error.message);
            lines::error(&mut out.errors, failure, origin, &input);
        }
        Ok(())
    }

    /// Leads a row along the rest of a line.
    pub(super) fn line<'a>(
        &'a self,
        line: &'a [Item],
        mut state: State,
        out: &'a mut Output,
    ) -> BoxFuture<'a, Result<Ends, Stop>> {
        async move {
            let mut ends = Ends::default();
            let mut rest = line.iter();
            while let Some(item) = rest.next() {
                match item {
                    Item::Node(ix) => match self.node(*ix, &mut state, out).await? {
                        Done::On => {}
                        Done::Filtered => return Ok(ends),
                        Done::Failed(error) => {
                            let node = self.node_at(*ix).map(|node| node.id.clone()).unwrap_or_default();
                            ends.failed.push(Failure {
                                row_id: state.id,
                                order: ix.0,
                                node,
                                child: None,
                                branch: None,
                                error,
                            });
                            return Ok(ends);
                        }
                        Done::Children(records) => {
                            ends.append(self.children(*ix, rest.as_slice(), &state, records, out).await?);
                            return Ok(ends);
                        }
                    },
                    Item::Group(group) => {
                        if let Some(failure) = self.group(group, &mut state, out, &mut ends.aside).await? {
                            ends.failed.push(failure);
                            return Ok(ends);
                        }
                    }
                }
            }
            ends.rows.push(state);
            Ok(ends)
        }
        .boxed()
    }

    /// Leads each child of a fan-out along the rest of the line.
    async fn children(
        &self,
        ix: NodeIx,
        rest: &[Item],
        parent: &State,
        records: Vec<Record>,
        out: &mut Output,
    ) -> Result<Ends, Stop> {
        let mut ends = Ends::default();
        let mut children = Vec::with_capacity(records.len());
        for (k, record) in records.into_iter().enumerate() {
            let id = parent.id.child(u32::try_from(k).unwrap_or(u32::MAX));
            let mut child = State { id, ..parent.clone() };
            self.emit(ix, &mut child, record, out);
            children.push(child);
        }
        if !self.plan.waits(rest) {
            for child in children {
                ends.append(self.line(rest, child, out).await?);
            }
            return Ok(ends);
        }
        let walks = children.into_iter().map(|child| async move {
            let mut out = self.output();
            let ends = self.line(rest, child, &mut out).await?;
            Ok::<_, Stop>((ends, out))
        });
        for (more, its) in side_by_side(walks).await? {
            ends.append(more);
            out.append(its);
        }
        Ok(ends)
    }

    /// Runs one node on a row.
    async fn node(&self, ix: NodeIx, state: &mut State, out: &mut Output) -> Result<Done, Stop> {
        let Some(node) = self.node_at(ix) else {
            return Ok(Done::On);
        };
        if self.one_by_one && state.is_news(News::Came(ix.0)) {
            self.live.came(ix.0);
        }
        match self.holds(node.when.as_ref(), state) {
            Ok(true) => {}
            Ok(false) => {
                self.fate(ix, Fate::Skipped, state, out);
                set(state, node, Named::Null);
                return Ok(Done::On);
            }
            Err(error) => return Ok(self.fail(ix, error, state, out)),
        }
        match &node.kind {
            NodeKind::Step(step) => self.step(ix, node, step, state, out).await,
            NodeKind::Apply(apply) => {
                let (done, took) = self.applied(ix, node, apply, state).await?;
                if let Some(took) = took {
                    out.took(ix.0, took.as_secs_f64());
                }
                Ok(match done {
                    Err(error) => self.fail(ix, error, state, out),
                    Ok(mut records) => {
                        let fate = match records.len() {
                            0 => Fate::Filtered,
                            n => Fate::Emitted(u32::try_from(n).unwrap_or(u32::MAX)),
                        };
                        self.fate(ix, fate, state, out);
                        match (records.pop(), records.is_empty()) {
                            (None, _) => Done::Filtered,
                            (Some(record), true) => {
                                self.emit(ix, state, record, out);
                                Done::On
                            }
                            (Some(last), false) => {
                                records.push(last);
                                Done::Children(records)
                            }
                        }
                    }
                })
            }
        }
    }

    /// Runs an Apply on a row; one that is not ours, and may not be pure, on its first walk only.
    async fn applied(
        &self,
        ix: NodeIx,
        node: &Node,
        apply: &ApplyPlan,
        state: &State,
    ) -> Result<Applied, Stop> {
        let is_ours = matches!(apply, ApplyPlan::Jq(_));
        let memory = state.memory.as_ref().filter(|_| !is_ours);
        if let Some(known) = memory.and_then(|memory| memory.applied(&node.id, &state.id)) {
            return Ok(known);
        }
        let timed = self.is_timed(&state.id);
        let applied = match apply {
            ApplyPlan::Process(_) => match self.pools.get(ix.0) {
                Some(Some(pool)) => {
                    let (emitted, took) = pool.ask(&self.scope(state), &node.visible).await?;
                    (apply::checked(node, emitted), Some(took))
                }
                _ => timed_apply(node, apply, &self.scope(state), timed),
            },
            // Cheap to reach on the pool itself: nothing is cloned there.
            _ if cpu::on_pool() => timed_apply(node, apply, &self.scope(state), timed),
            _ => self.apply_elsewhere(ix, state).await,
        };
        if let Some(memory) = memory {
            memory.keep_applied(&node.id, &state.id, &applied);
        }
        Ok(applied)
    }

    fn fail(&self, ix: NodeIx, error: RowError, state: &State, out: &mut Output) -> Done {
        self.fate(ix, Fate::Failed, state, out);
        Done::Failed(error)
    }

    /// Runs an Apply on the CPU pool for a row that is on the async side.
    async fn apply_elsewhere(&self, ix: NodeIx, state: &State) -> Applied {
        let (plan, state) = (self.plan.clone(), state.clone());
        let work = move || match plan.nodes.get(ix.0) {
            Some(
                node @ Node {
                    kind: NodeKind::Apply(apply),
                    ..
                },
            ) => timed_apply(node, apply, &scope(&plan, &state), true),
            _ => (Ok(Vec::new()), None),
        };
        let crashed = || RowError::new(ErrorKind::Apply, "the Apply panicked on this row");
        self.cpu.run(work).await.unwrap_or_else(|| (Err(crashed()), None))
    }

    async fn step(
        &self,
        ix: NodeIx,
        node: &Node,
        plan: &StepPlan,
        state: &mut State,
        out: &mut Output,
    ) -> Result<Done, Stop> {
        let Some(Some(step)) = self.steps.get(ix.0) else {
            return Ok(Done::On);
        };
        let result = match self.prompts(plan, state) {
            Err(error) => Err(error),
            Ok((system, user)) => {
                let checked = !plan.free_text && plan.task == Task::Generate;
                let model = node.model.as_ref().filter(|_| checked);
                let outcome = step
                    .ask_with(
                        Question {
                            row_id: &state.id,
                            system,
                            user,
                            model,
                        },
                        state.memory.as_deref(),
                    )
                    .await?;
                out.usage(ix.0, outcome.usage);
                out.dimension(ix.0, outcome.dimension);
                match outcome.took {
                    Some(took) => out.took(ix.0, took.as_secs_f64()),
                    None if state.is_news(News::Reused(ix.0)) => self.live.reused(ix.0),
                    None => {}
                }
                outcome.result
            }
        };
        match result {
            Ok((record, reasoning)) => {
                self.fate(ix, Fate::Emitted(1), state, out);
                self.emit(ix, state, record, out);
                if let (true, Some(text), Some(slot)) = (
                    node.yield_output,
                    reasoning,
                    state.names.get_mut(plan.reasoning.0),
                ) {
                    *slot = Named::Text(text);
                }
                Ok(Done::On)
            }
            Err(_) if plan.on_error == OnError::Null => {
                self.fate(ix, Fate::Nulled, state, out);
                set(state, node, Named::Null);
                Ok(Done::On)
            }
            Err(error) => Ok(self.fail(ix, error, state, out)),
        }
    }

    /// A Step's system and user prompt for a row.
    pub(super) fn prompts(
        &self,
        plan: &StepPlan,
        state: &State,
    ) -> Result<(Option<String>, String), RowError> {
        let scope = self.scope(state);
        let render = |template: &Template| {
            template
                .render(&scope)
                .map_err(|message| RowError::new(ErrorKind::Template, message))
        };
        let system = plan.system.as_ref().map(render).transpose()?;
        Ok((system, render(&plan.user)?))
    }

    /// Makes a record the row's current item and the node's output.
    fn emit(&self, ix: NodeIx, state: &mut State, record: Record, out: &mut Output) {
        let Some(node) = self.node_at(ix) else { return };
        state.emitted = true;
        if node.yield_output {
            if let Some(written) = out.nodes.get_mut(ix.0) {
                lines::node(written, &node.id, &state.id, &record);
            }
            set(state, node, Named::Record(record.clone()));
        }
        state.item = record;
    }

    pub(super) fn holds(&self, when: Option<&When>, state: &State) -> Result<bool, RowError> {
        match when {
            None => Ok(true),
            Some(when) => when
                .eval(&self.scope(state))
                .map_err(|message| RowError::new(ErrorKind::Template, message)),
        }
    }

    fn node_at(&self, ix: NodeIx) -> Option<&Node> {
        self.plan.nodes.get(ix.0)
    }

    pub(super) fn scope<'a>(&'a self, state: &'a State) -> Scope<'a> {
        scope(&self.plan, state)
    }

    /// An empty output for this plan.
    pub fn output(&self) -> Output {
        Output::new(self.plan.nodes.len(), self.plan.branches.len())
    }
}

fn scope<'a>(plan: &'a Plan, state: &'a State) -> Scope<'a> {
    Scope {
        row_id: &state.id,
        item: &state.item,
        chain_input: &state.input,
        vars: &plan.vars,
        names: &state.names,
    }
}

/// Makes a node's name hold a value, if the node has a name.
fn set(state: &mut State, node: &Node, value: Named) {
    if let (true, Some(slot)) = (node.yield_output, state.names.get_mut(node.name.0)) {
        *slot = value;
    }
}

fn timed_apply(node: &Node, apply: &ApplyPlan, scope: &Scope<'_>, timed: bool) -> Applied {
    let started = timed.then(Instant::now);
    let done = apply::apply(node, apply, scope);
    (done, started.map(|started| started.elapsed()))
}

/// Leads several ways to their ends; why they do not all have one, if one of them says so: the run's own cause to stop,
/// before the interruption that this brings to the others, before an engine that has to be waited for.
pub(super) async fn side_by_side<T>(
    walks: impl IntoIterator<Item = impl Future<Output = Result<T, Stop>>>,
) -> Result<Vec<T>, Stop> {
    let weight = |stop: &Option<Stop>| match stop {
        None => 0,
        Some(Stop::Parked(_)) => 1,
        Some(Stop::Interrupted) => 2,
        Some(Stop::Engine { .. } | Stop::Apply { .. } | Stop::Ledger(_)) => 3,
    };
    let mut all = Vec::new();
    let mut stop = None;
    for done in join_all(walks).await {
        match done.map_err(Some) {
            Ok(one) => all.push(one),
            Err(cause) if weight(&cause) > weight(&stop) => stop = cause,
            Err(_) => {}
        }
    }
    stop.map_or(Ok(all), Err)
}
