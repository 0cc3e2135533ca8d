//! What watchers are told: how far each node is, what it has to do, how fast it goes.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{Entries, NodeInfo, NodeProgress, Progress, Status, Total, Traffic};
use crate::plan::{ApplyPlan, Branch, Item, Line, Node, NodeKind, Plan, Program};

use super::counts::Counts;
use crate::node::live::Live;

/// "Lately" is this many seconds.
const WINDOW: f64 = 10.0;
/// Samples are kept this far apart, in seconds.
const APART: f64 = 0.5;
/// Before a window is this long, its rate says less than that of the whole run.
const ENOUGH: f64 = 4.0;

/// Counters that go on from what is committed.
pub(super) fn live(counts: &Counts) -> Live {
    let nodes = counts.nodes.values().map(|node| Traffic {
        came: node.rows,
        done: node.rows,
        left: node.children + node.skipped + node.nulled,
        failed: node.failed,
        reused: 0,
        before: node.rows,
    });
    let branches = counts.branches.values().map(|branch| Entries {
        came: branch.rows,
        skipped: branch.skipped,
    });
    Live::new(nodes, branches)
}

/// The nodes of a plan as watchers need to know them, in chain order.
pub(super) fn node_infos(plan: &Plan) -> Arc<[NodeInfo]> {
    let mut infos: Vec<NodeInfo> = plan.nodes.iter().map(|node| named(plan, node)).collect();
    let way = Way::default();
    follow(plan, &plan.main, way, &mut infos);
    infos.into()
}

fn named(plan: &Plan, node: &Node) -> NodeInfo {
    let (icon, engine) = match &node.kind {
        NodeKind::Step(step) => ("🤖", plan.engines.get(step.engine.0)),
        NodeKind::Apply(_) => ("🔧", None),
    };
    let process = match &node.kind {
        NodeKind::Apply(ApplyPlan::Process(process)) => Some(match process.program {
            Program::Python { .. } => "function",
            Program::Command { .. } => "program",
        }),
        _ => None,
    };
    NodeInfo {
        id: node.id.clone(),
        icon: node.emoji.clone().unwrap_or_else(|| icon.to_owned()),
        engine: engine.map(|engine| engine.name.clone()),
        process,
        ..NodeInfo::default()
    }
}

/// How rows come to a place.
#[derive(Clone, Default)]
struct Way {
    depth: usize,
    branch: Option<String>,
    rank: usize,
    after: Option<usize>,
    through: Vec<usize>,
    leaky: bool,
}

fn follow(plan: &Plan, line: &Line, mut way: Way, infos: &mut [NodeInfo]) {
    for item in &line.0 {
        match item {
            Item::Node(ix) => {
                if let Some(info) = infos.get_mut(ix.0) {
                    info.depth = way.depth;
                    info.branch.clone_from(&way.branch);
                    info.rank = way.rank;
                    info.after = way.after;
                    info.through = std::mem::take(&mut way.through);
                    info.leaky = std::mem::take(&mut way.leaky);
                }
                way.after = Some(ix.0);
            }
            Item::Group(group) => {
                let branches = group
                    .branches
                    .iter()
                    .filter_map(|ix| Some((ix.0, plan.branches.get(ix.0)?)));
                for (k, (ix, branch)) in branches.enumerate() {
                    follow(plan, &branch.line, into(&way, k, ix, branch), infos);
                    // A joined branch that fails takes its row along.
                    way.leaky |= branch.join.is_some();
                }
            }
        }
    }
}

fn into(way: &Way, k: usize, ix: usize, branch: &Branch) -> Way {
    let mut inner = way.clone();
    inner.depth += 1;
    inner.branch = Some(branch.id.clone());
    inner.rank = inner.rank.max(k);
    inner.through.push(ix);
    inner
}

/// How many rows each node has to do, given the input's.
///
/// A node gets what the one before it left, and of the rows still to come there as many as it left of each
/// so far; less what skips a branch on the way. None where the input's number is not known.
fn totals(status: &Status, input: Option<u64>) -> Vec<Option<Total>> {
    let mut totals: Vec<Option<Total>> = Vec::with_capacity(status.nodes.len());
    for (at, (info, here)) in status.nodes.iter().zip(&status.traffic).enumerate() {
        let arriving = match info.after {
            None => input.map(|rows| (rows as f64, false)),
            Some(before) => totals.get(before).copied().flatten().map(|total| {
                let before = status.traffic.get(before).copied().unwrap_or_default();
                leaving(total, before)
            }),
        };
        totals.push(arriving.map(|(mut rows, mut estimate)| {
            for branch in &info.through {
                let Entries { came, skipped } = status.entries.get(*branch).copied().unwrap_or_default();
                if skipped > 0 {
                    rows *= (came - skipped) as f64 / came as f64;
                    estimate = true;
                }
            }
            if info.leaky {
                let from = info.after.map_or(0, |before| before + 1);
                let between = status.traffic.get(from..at).unwrap_or_default();
                let lost: u64 = between.iter().map(|node| node.failed).sum();
                rows -= lost as f64;
                estimate |= lost > 0;
            }
            let rows = (rows.max(0.0).round() as u64).max(here.came);
            Total { rows, estimate }
        }));
    }
    totals
}

/// Rows that will have left a node in the end, and whether that is a guess.
fn leaving(total: Total, node: Traffic) -> (f64, bool) {
    let to_come = total.rows.saturating_sub(node.done) as f64;
    let (done, left) = (node.done as f64, node.left as f64);
    let each = if node.done == 0 { 1.0 } else { left / done };
    let is_guess = total.estimate || (node.left != node.done && to_come > 0.0);
    (left + to_come * each, is_guess)
}

/// Rows done at some time.
struct Sample {
    at: f64,
    /// By node, without those answered from the ledger.
    nodes: Vec<u64>,
    rows: u64,
}

/// Follows a run by what is polled of it. It looks at no clock: times are those of the progress it is given.
#[derive(Default)]
pub struct Tracker {
    window: VecDeque<Sample>,
    /// The first row that is not written, and since when.
    behind: (Option<u64>, f64),
    /// The totals that readers know of.
    told: Vec<Option<Total>>,
}

impl Tracker {
    /// Brings rates, totals and times to go up to date with `progress.status`.
    pub fn update(&mut self, progress: &mut Progress) {
        let status = &progress.status;
        // Failures show before they are written.
        let failed = status.traffic.iter().map(|node| node.failed).sum();
        progress.failed = status.errors.max(failed);
        let now = Sample {
            at: progress.seconds,
            nodes: status.traffic.iter().map(asked).collect(),
            rows: progress.rows + status.rows_waiting,
        };
        if status.behind != self.behind.0 {
            self.behind = (status.behind, now.at);
        }
        progress.stuck = now.at - self.behind.1;
        let seconds = now.at.max(0.001);
        // The oldest sample that is not older than the window; at first, the beginning of the run.
        while self.window.get(1).is_some_and(|next| now.at - next.at >= WINDOW) {
            self.window.pop_front();
        }
        let start = Sample {
            at: 0.0,
            nodes: Vec::new(),
            rows: 0,
        };
        let old = self.window.front().unwrap_or(&start);
        let span = (now.at - old.at).max(0.001);
        progress.rate = now.rows as f64 / seconds;
        progress.recent = now.rows.saturating_sub(old.rows) as f64 / span;
        let totals = totals(status, progress.total);
        let nodes = status.traffic.iter().zip(totals).enumerate();
        let nodes = nodes.map(|(at, (traffic, total))| {
            let done = asked(traffic);
            let rate = done as f64 / seconds;
            let recent = done.saturating_sub(old.nodes.get(at).copied().unwrap_or(0)) as f64 / span;
            let speed = if span >= ENOUGH { recent } else { rate };
            let to_do = total.map(|total| total.rows.saturating_sub(traffic.done));
            NodeProgress {
                traffic: *traffic,
                total,
                rate,
                recent,
                speed,
                eta: to_do.filter(|_| speed > 0.0).map(|rows| rows as f64 / speed),
            }
        });
        progress.nodes = nodes.collect();
        progress.eta = time_to_go(status, &progress.nodes);
        if self.window.back().is_none_or(|last| now.at - last.at >= APART) {
            if self.window.is_empty() {
                self.window.push_back(start);
            }
            self.window.push_back(now);
        }
    }

    /// The totals that changed by a percent or more, or became certain, since they were last told.
    pub fn news(&mut self, progress: &Progress) -> Vec<(String, Total)> {
        self.told.resize(progress.nodes.len(), None);
        let mut news = Vec::new();
        let infos = progress.status.nodes.iter().zip(&progress.nodes);
        for ((info, node), told) in infos.zip(&mut self.told) {
            let Some(total) = node.total else { continue };
            let is_news = told.is_none_or(|old| {
                old.estimate != total.estimate || old.rows.abs_diff(total.rows) * 100 > old.rows
            });
            if is_news {
                *told = Some(total);
                news.push((info.id.clone(), total));
            }
        }
        news
    }
}

/// Seconds until the last node is done: that of the engine with the most to do, whose Steps share its
/// speed, or of an Apply. None while that cannot be known, as when an engine takes no requests.
fn time_to_go(status: &Status, nodes: &[NodeProgress]) -> Option<f64> {
    let mut engines: Vec<(&str, f64, f64)> = Vec::new();
    let mut longest: Option<f64> = None;
    for (info, node) in status.nodes.iter().zip(nodes) {
        let to_do = node.total?.rows.saturating_sub(node.traffic.done) as f64;
        let Some(engine) = &info.engine else {
            longest = longest.into_iter().chain(node.eta).reduce(f64::max);
            continue;
        };
        match engines.iter_mut().find(|(name, ..)| name == engine) {
            Some((_, sum, speed)) => {
                *sum += to_do;
                *speed += node.speed;
            }
            None => engines.push((engine, to_do, node.speed)),
        }
    }
    if status.engines.iter().any(|engine| engine.trouble.is_some()) {
        return None;
    }
    for (_, to_do, speed) in engines {
        if to_do > 0.0 {
            let time = Some(to_do / speed).filter(|time| time.is_finite())?;
            longest = Some(longest.map_or(time, |longest| longest.max(time)));
        }
    }
    longest
}

/// Rows done by this process that took their time.
fn asked(traffic: &Traffic) -> u64 {
    traffic
        .done
        .saturating_sub(traffic.before)
        .saturating_sub(traffic.reused)
}
