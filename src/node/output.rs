//! What rows leave behind: lines for every sink, fates, counts.

use serde::{Deserialize, Serialize};

use super::timing::Timing;
use crate::event::Usage;
use crate::row::ErrorKind;

/// What became of one row at one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It left this many rows, at least one.
    Emitted(u32),
    /// An Apply left nothing.
    Filtered,
    /// Its `when` was false.
    Skipped,
    /// It failed under `on_error: null`.
    Nulled,
    /// It failed.
    Failed,
}

/// JSON lines, each ended by a newline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// The text.
    pub bytes: Vec<u8>,
    /// How many lines.
    pub count: u64,
}

impl Lines {
    /// Ends the line that was just written.
    pub fn end_line(&mut self) {
        self.bytes.push(b'\n');
        self.count += 1;
    }

    fn append(&mut self, other: &mut Self) {
        if self.bytes.is_empty() {
            std::mem::swap(&mut self.bytes, &mut other.bytes);
        } else {
            self.bytes.append(&mut other.bytes);
        }
        self.count += std::mem::take(&mut other.count);
    }
}

/// The fates of the rows that came to a node, in order, as runs of equal fates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fates(pub Vec<(Fate, u64)>);

impl Fates {
    /// Adds rows with one fate.
    pub fn push(&mut self, fate: Fate, rows: u64) {
        match self.0.last_mut() {
            Some((last, n)) if *last == fate => *n += rows,
            _ => self.0.push((fate, rows)),
        }
    }

    fn append(&mut self, other: &mut Self) {
        for (fate, rows) in other.0.drain(..) {
            self.push(fate, rows);
        }
    }
}

/// How often joined and unjoined rows came out of a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchCounts {
    /// Rows that came to the branch.
    pub rows: u64,
    /// Its `when` (or its group's) was false.
    pub skipped: u64,
    /// Rows for which something in it failed.
    pub failed: u64,
}

/// Failures of one kind at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// The node or branch; none for bad input lines.
    pub node: Option<String>,
    /// The kind, as in `errors/`.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// One of their messages.
    pub example: String,
}

/// What one node did besides writing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeOutput {
    /// The fates of the rows that came to it.
    pub fates: Fates,
    /// Tokens of all replies, also of those that were asked again.
    pub prompt_tokens: u64,
    /// See `prompt_tokens`.
    pub completion_tokens: u64,
    /// Seconds of the rows that were measured.
    #[serde(default, skip_serializing_if = "Timing::is_empty")]
    pub timing: Timing,
}

/// The counts of an [`Output`]: everything but its lines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// By node.
    pub nodes: Vec<NodeOutput>,
    /// By branch.
    pub branches: Vec<BranchCounts>,
    /// Input rows.
    pub rows: u64,
    /// For each input row in order: whether it failed on the main line, as runs.
    pub failed: Vec<(bool, u64)>,
    /// Failures by place and kind.
    pub failures: Vec<Failures>,
}

/// Everything that some consecutive input rows leave behind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// Lines by node.
    pub nodes: Vec<Lines>,
    /// Lines of `flattened/`.
    pub flattened: Lines,
    /// Lines of `errors/`.
    pub errors: Lines,
    /// The counts.
    pub tally: Tally,
}

impl Output {
    /// Nothing yet, for a plan with so many nodes and branches.
    pub fn new(nodes: usize, branches: usize) -> Self {
        Self {
            nodes: vec![Lines::default(); nodes],
            tally: Tally {
                nodes: vec![NodeOutput::default(); nodes],
                branches: vec![BranchCounts::default(); branches],
                ..Tally::default()
            },
            ..Self::default()
        }
    }

    /// Counts a row's fate at a node.
    pub fn fate(&mut self, node: usize, fate: Fate) {
        if let Some(node) = self.tally.nodes.get_mut(node) {
            node.fates.push(fate, 1);
        }
    }

    /// Counts tokens at a node.
    pub fn usage(&mut self, node: usize, usage: Usage) {
        if let Some(node) = self.tally.nodes.get_mut(node) {
            node.prompt_tokens += usage.prompt_tokens;
            node.completion_tokens += usage.completion_tokens;
        }
    }

    /// Counts a row's seconds at a node.
    pub fn took(&mut self, node: usize, seconds: f64) {
        if let Some(node) = self.tally.nodes.get_mut(node) {
            node.timing.add(seconds);
        }
    }

    /// Counts an input row.
    pub fn input_row(&mut self, failed: bool) {
        self.tally.rows += 1;
        push_run(&mut self.tally.failed, failed, 1);
    }

    /// Counts a line of `errors/`.
    pub fn failure(&mut self, node: Option<&str>, kind: ErrorKind, message: &str) {
        let known = self
            .tally
            .failures
            .iter_mut()
            .find(|f| f.node.as_deref() == node && f.kind == kind.as_str());
        match known {
            Some(known) => known.count += 1,
            None => self.tally.failures.push(Failures {
                node: node.map(str::to_owned),
                kind: kind.as_str().to_owned(),
                count: 1,
                example: message.to_owned(),
            }),
        }
    }

    /// Puts what later rows left behind after this.
    pub fn append(&mut self, mut other: Self) {
        for (mine, theirs) in self.nodes.iter_mut().zip(&mut other.nodes) {
            mine.append(theirs);
        }
        self.flattened.append(&mut other.flattened);
        self.errors.append(&mut other.errors);
        for (mine, theirs) in self.tally.nodes.iter_mut().zip(&mut other.tally.nodes) {
            mine.fates.append(&mut theirs.fates);
            mine.prompt_tokens += theirs.prompt_tokens;
            mine.completion_tokens += theirs.completion_tokens;
            mine.timing.merge(&theirs.timing);
        }
        for (mine, theirs) in self.tally.branches.iter_mut().zip(&other.tally.branches) {
            mine.rows += theirs.rows;
            mine.skipped += theirs.skipped;
            mine.failed += theirs.failed;
        }
        self.tally.rows += other.tally.rows;
        for (failed, rows) in other.tally.failed {
            push_run(&mut self.tally.failed, failed, rows);
        }
        for theirs in other.tally.failures {
            match self
                .tally
                .failures
                .iter_mut()
                .find(|f| f.node == theirs.node && f.kind == theirs.kind)
            {
                Some(mine) => mine.count += theirs.count,
                None => self.tally.failures.push(theirs),
            }
        }
    }

    /// Bytes of memory held, about: the lines, and what holds them (which is most of it for a short row).
    pub fn size(&self) -> usize {
        let lines: usize = self.lines().map(|lines| lines.bytes.capacity() + 64).sum();
        let tally =
            128 * (self.tally.nodes.len() + self.tally.failures.len()) + 64 * self.tally.branches.len();
        lines + tally + 512
    }

    fn lines(&self) -> impl Iterator<Item = &Lines> {
        self.nodes.iter().chain([&self.flattened, &self.errors])
    }

    /// Appends this to a buffer, to be read back by [`Output::decode`]: a JSON head, then the lines.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let head = Head {
            lines: self
                .lines()
                .map(|lines| (lines.bytes.len(), lines.count))
                .collect(),
            tally: self.tally.clone(),
        };
        let head = serde_json::to_vec(&head)?;
        out.extend_from_slice(&(head.len() as u64).to_le_bytes());
        out.extend_from_slice(&head);
        for lines in self.lines() {
            out.extend_from_slice(&lines.bytes);
        }
        Ok(())
    }

    /// Reads what [`Output::encode`] wrote; none if it is damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let (head, mut rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        let head: Head = serde_json::from_slice(head).ok()?;
        let mut all = Vec::with_capacity(head.lines.len());
        for (len, count) in head.lines {
            let (bytes, after) = rest.split_at_checked(len)?;
            all.push(Lines {
                bytes: bytes.to_vec(),
                count,
            });
            rest = after;
        }
        let errors = all.pop()?;
        let flattened = all.pop()?;
        Some(Self {
            nodes: all,
            flattened,
            errors,
            tally: head.tally,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    lines: Vec<(usize, u64)>,
    tally: Tally,
}

fn push_run(runs: &mut Vec<(bool, u64)>, value: bool, rows: u64) {
    match runs.last_mut() {
        Some((last, n)) if *last == value => *n += rows,
        _ => runs.push((value, rows)),
    }
}
