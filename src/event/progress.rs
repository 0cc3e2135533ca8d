//! How far a run is, as watchers are told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::Usage;

/// One request to an engine and what came of it: no prompt, no header, at most the beginning of a problem.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exchange {
    /// The Step.
    pub node: String,
    /// The row.
    pub row_id: String,
    /// The engine.
    pub engine: String,
    /// The number of the try, from 1.
    pub attempt: u32,
    /// `answered`, `bad_reply`, `refused`, `failed` (asked again if retries are left) or `engine` (the row waits).
    pub status: &'static str,
    /// From the lease to the answer, in milliseconds.
    pub ms: u64,
    /// Tokens of request and reply, where there is a reply.
    pub usage: Usage,
    /// What was wrong; the first 60 characters.
    pub problem: Option<String>,
    /// Requests before this one that were not told because there were too many.
    pub missed: u64,
}

/// Requests kept for a reader that comes by now and then.
const RECENT: usize = 16;

/// The last requests, for `--verbose`; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<(VecDeque<Exchange>, u64)>>);

impl Recent {
    /// Adds one; the oldest goes when there are too many.
    pub fn push(&self, mut exchange: Exchange) {
        if let Some(problem) = &mut exchange.problem
            && let Some((end, _)) = problem.char_indices().nth(60)
        {
            problem.truncate(end);
            problem.push('…');
        }
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.0.len() == RECENT {
            recent.0.pop_front();
            recent.1 += 1;
        }
        recent.0.push_back(exchange);
    }

    /// Takes what came since the last time.
    pub fn take(&self) -> Vec<Exchange> {
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = std::mem::take(&mut recent.1);
        let mut all: Vec<_> = recent.0.drain(..).collect();
        if let Some(first) = all.first_mut() {
            first.missed = missed;
        }
        all
    }
}

/// A node as watchers need to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its id.
    pub id: String,
    /// Its sign: the user's, or that of its kind.
    pub icon: String,
    /// The engine of a Step.
    pub engine: Option<String>,
    /// What answers an Apply's rows in processes of its own: `program` or `function`.
    pub process: Option<&'static str>,
    /// Branches around it.
    pub depth: usize,
    /// The innermost of them.
    pub branch: Option<String>,
    /// The highest number that a branch around it has within its group, from 0.
    pub rank: usize,
    /// The node whose rows it gets (by index); none: it gets the input rows.
    pub after: Option<usize>,
    /// The branches (by index) that a row enters on its way from there.
    pub through: Vec<usize>,
    /// Rows can be lost or left out on the way from there.
    pub leaky: bool,
}

/// Rows at a node, over all resumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Rows that came.
    pub came: u64,
    /// Rows that got their fate.
    pub done: u64,
    /// Rows that went on from it.
    pub left: u64,
    /// Rows that failed.
    pub failed: u64,
    /// Rows answered from the ledger by this process.
    pub reused: u64,
    /// Rows that were done before this process started.
    pub before: u64,
}

/// Rows at the entry of a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Rows that came.
    pub came: u64,
    /// Rows that skipped it.
    pub skipped: u64,
}

/// What an engine is at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStatus {
    /// Its name.
    pub name: String,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
    /// Slots.
    pub limit: usize,
    /// Rows that wait on disk until it is loaded.
    pub parked: u64,
    /// Why it takes no requests now.
    pub trouble: Option<String>,
    /// Seconds until it is asked again, or started again.
    pub retry_in: Option<f64>,
    /// What is done about it while it has no server.
    pub absent: Option<String>,
    /// Seconds until its rate limit lets the next request go, while that is what rows wait for.
    pub limited: Option<f64>,
}

/// Engines that take the place of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switching {
    /// Those that are being loaded.
    pub to: Vec<String>,
    /// Those in whose place they come.
    pub from: Vec<String>,
}

/// Rows that sleep for a while after a fault of the transport, before they are asked again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retrying {
    /// How many.
    pub rows: usize,
    /// What happened to the last of them.
    pub reason: String,
}

/// What holds the reader of the input up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Feed {
    /// Nothing: it reads.
    #[default]
    Reading,
    /// As many rows are unfinished as may be.
    Full,
    /// The input is at its end.
    AtEnd,
}

/// What a run is at, asked for when a progress line is due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Status {
    /// Finished rows of chunks that are not complete.
    pub rows_waiting: u64,
    /// The first row that is not written.
    pub behind: Option<u64>,
    /// The nodes in chain order.
    pub nodes: Arc<[NodeInfo]>,
    /// Their rows.
    pub traffic: Vec<Traffic>,
    /// The branches' rows.
    pub entries: Vec<Entries>,
    /// Lines in `errors/`, over all resumes.
    pub errors: u64,
    /// The engines.
    pub engines: Vec<EngineStatus>,
    /// Engines that are being loaded in the place of others.
    pub switching: Option<Switching>,
    /// Rows that each node's processes have to answer, by node; none where no processes are.
    pub unanswered: Vec<u64>,
    /// Rows that sleep before they are asked again.
    pub retrying: Retrying,
    /// What holds the reader up.
    pub feed: Feed,
    /// Finished rows wait for the disk.
    pub disk_is_behind: bool,
    /// The last requests (`--verbose`).
    pub recent: Vec<Exchange>,
}

/// How far a node is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeProgress {
    /// Its rows.
    pub traffic: Traffic,
    /// Rows it has to do, as in [`Event::StepTotal`](crate::event::Event::StepTotal); none when nobody can know.
    pub total: Option<Total>,
    /// Rows per second since this process started, without those answered from the ledger.
    pub rate: f64,
    /// Rows per second lately.
    pub recent: f64,
    /// The rate that is reckoned with: the recent one, as soon as it says enough.
    pub speed: f64,
    /// Seconds until it is done at that speed.
    pub eta: Option<f64>,
}

/// Rows to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many.
    pub rows: u64,
    /// Reckoned from how many rows the nodes before it left so far.
    pub estimate: bool,
}

/// A count over a run, for progress lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// The chain's name.
    pub chain: String,
    /// Input rows committed before this process started.
    pub rows_before: u64,
    /// Answers on file then.
    pub answers_before: u64,
    /// Input rows committed by this process.
    pub rows: u64,
    /// Lines in `errors/`, over all resumes.
    pub failed: u64,
    /// Input rows in all, if known.
    pub total: Option<u64>,
    /// The nodes, in chain order.
    pub nodes: Vec<NodeProgress>,
    /// Seconds since this process started the run.
    pub seconds: f64,
    /// Input rows done per second since then.
    pub rate: f64,
    /// Input rows done per second lately (up to ten seconds).
    pub recent: f64,
    /// Seconds until the slowest node is done.
    pub eta: Option<f64>,
    /// Seconds for which the first row that is not written has been the same.
    pub stuck: f64,
    /// What the run is at right now.
    pub status: Status,
    /// Events that a slow reader missed.
    pub dropped: u64,
}

impl Progress {
    /// Input rows done, over all resumes: committed, or waiting for a straggler.
    pub fn done(&self) -> u64 {
        self.rows_before + self.rows + self.status.rows_waiting
    }
}
