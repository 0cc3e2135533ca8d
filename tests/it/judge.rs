//! Tells from the test server's log what kills have cost, process by process; of a request it keeps some 50 bytes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::server::{Logged, TestServer};

/// Whose requests were asked again, and after which kill: the server's log, taken in piece by piece.
#[derive(Debug, Default)]
pub struct Judge {
    /// By request (a part of its digest, and its attempt): the number of the process that asked it last, and
    /// when it was answered.
    asked: HashMap<(u64, u32), (usize, Option<Instant>)>,
    /// When each process was killed, in turn.
    killed: Vec<Instant>,
    /// Requests asked again, by the kill that cost them.
    per_kill: Vec<usize>,
    /// All requests.
    pub requests: usize,
    /// Different requests answered with 200.
    pub good: u64,
    /// Requests asked again that had been answered just before the kill.
    pub answered: usize,
    /// How long before it at most.
    pub longest: Duration,
}

impl Judge {
    /// Takes in what one process asked: all since the kill before.
    pub fn take(&mut self, log: &[Logged]) {
        let process = self.killed.len();
        self.requests += log.len();
        for line in log {
            let (part, _) = line.digest.split_first_chunk().expect("32 bytes");
            let key = (u64::from_le_bytes(*part), line.attempt);
            let answered = line.answered.filter(|_| line.status == 200).is_some();
            let Some((asker, before)) = self.asked.insert(key, (process, line.answered)) else {
                self.good += u64::from(answered);
                continue;
            };
            assert!(
                asker < process,
                "asked again though nothing was killed in between"
            );
            self.per_kill[asker] += 1;
            match before {
                None => self.good += u64::from(answered),
                Some(at) => {
                    self.answered += 1;
                    self.longest = self.longest.max(self.killed[asker].saturating_duration_since(at));
                }
            }
        }
    }

    /// A process was killed; `log` is what it had asked.
    pub fn kill(&mut self, at: Instant, log: &[Logged]) {
        self.take(log);
        self.killed.push(at);
        self.per_kill.push(0);
    }

    /// Requests asked again, over all kills.
    pub fn asked_again(&self) -> usize {
        self.per_kill.iter().sum()
    }

    /// The most that one kill cost.
    pub fn most(&self) -> usize {
        self.per_kill.iter().copied().max().unwrap_or(0)
    }
}

/// Waits until nothing has arrived or been in flight for a while: what a dead process had sent may still be
/// on its way to the server.
pub fn settle(server: &TestServer) {
    let (mut arrived, mut quiet) = (0, Instant::now());
    while quiet.elapsed() < Duration::from_millis(25) {
        std::thread::sleep(Duration::from_millis(2));
        let (now, in_flight) = server.traffic();
        if in_flight > 0 || now != arrived {
            (arrived, quiet) = (now, Instant::now());
        }
    }
}
