//! The rows that a process has been given and has not answered.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::time::Instant;

use super::pool::Job;
use super::wire::Wire;

/// Ids of answered rows that are remembered: enough to know a repetition by; who repeats itself does so soon.
const REMEMBERED: usize = 4096;

/// A row in hand.
pub(super) struct Held {
    pub(super) job: Job,
    pub(super) since: Instant,
}

/// Whose answer came.
pub(super) enum Found {
    Job(Held),
    /// A row that was answered before; how often that happened.
    Repeated(u32),
    Unknown,
}

/// The rows that a process has been given and has not answered.
pub(super) struct Hand {
    rows: Rows,
    /// Bytes of their questions.
    pub(super) bytes: usize,
    given: u64,
}

enum Rows {
    /// Answered in order.
    Queue(VecDeque<Held>),
    /// Answered in any order, by row id; with the ids answered since the hand was last empty.
    Any {
        held: HashMap<String, (u64, Held)>,
        done: HashSet<String>,
        repeated: u32,
    },
}

impl Hand {
    pub(super) fn new(wire: Wire) -> Self {
        let rows = match wire {
            Wire::Python { .. } => Rows::Queue(VecDeque::new()),
            Wire::Command => Rows::Any {
                held: HashMap::new(),
                done: HashSet::new(),
                repeated: 0,
            },
        };
        Self {
            rows,
            bytes: 0,
            given: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.rows {
            Rows::Queue(held) => held.len(),
            Rows::Any { held, .. } => held.len(),
        }
    }

    pub(super) fn add(&mut self, job: Job) {
        self.bytes += job.question.len();
        self.given += 1;
        let held = Held {
            job,
            since: Instant::now(),
        };
        match &mut self.rows {
            Rows::Queue(rows) => rows.push_back(held),
            Rows::Any { held: rows, .. } => {
                rows.insert(held.job.row_id.clone(), (self.given, held));
            }
        }
    }

    pub(super) fn next(&mut self) -> Option<Held> {
        let Rows::Queue(rows) = &mut self.rows else {
            return None;
        };
        let held = rows.pop_front()?;
        self.bytes -= held.job.question.len();
        Some(held)
    }

    pub(super) fn find(&mut self, id: &str) -> Found {
        let Rows::Any { held, done, repeated } = &mut self.rows else {
            return Found::Unknown;
        };
        match held.remove(id) {
            Some((_, row)) => {
                self.bytes -= row.job.question.len();
                if done.len() >= REMEMBERED {
                    done.clear();
                }
                done.insert(id.to_owned());
                Found::Job(row)
            }
            None if done.contains(id) => {
                *repeated += 1;
                Found::Repeated(*repeated)
            }
            None => Found::Unknown,
        }
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        match &self.rows {
            Rows::Queue(rows) => rows.front().map(|held| held.since),
            Rows::Any { held, .. } => held.values().map(|(_, held)| held.since).min(),
        }
    }

    /// The rows in the order in which they were given.
    pub(super) fn into_jobs(self) -> VecDeque<Job> {
        match self.rows {
            Rows::Queue(rows) => rows.into_iter().map(|held| held.job).collect(),
            Rows::Any { held, .. } => {
                let mut rows: Vec<(u64, Held)> = held.into_values().collect();
                rows.sort_by_key(|(given, _)| *given);
                rows.into_iter().map(|(_, held)| held.job).collect()
            }
        }
    }
}
