//! What rows leave behind: lines for every sink, fates, counts.

use serde::{Deserialize, Serialize};

pub use super::fates::{Entry, Fate, RowFate, Runs};
use super::timing::Timing;
use crate::event::Usage;
use crate::row::ErrorKind;

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

/// How rows came to a branch, and what came of them there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchOutput {
    /// How the rows came to it.
    pub entries: Runs<Entry>,
    /// Rows for which something in it failed.
    pub failed: u64,
}

impl BranchOutput {
    /// The sums.
    pub fn counts(&self) -> BranchCounts {
        let sum = |wanted: fn(Entry) -> bool| {
            let all = self.entries.0.iter().filter(|(entry, _)| wanted(*entry));
            all.map(|(_, rows)| rows).sum()
        };
        BranchCounts {
            rows: sum(|entry| entry != Entry::GroupFailed),
            skipped: sum(|entry| entry == Entry::Skipped),
            failed: self.failed,
        }
    }
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
    pub fates: Runs<Fate>,
    /// Tokens of all replies, also of those that were asked again.
    pub prompt_tokens: u64,
    /// See `prompt_tokens`.
    pub completion_tokens: u64,
    /// How many numbers its vectors have; 0 where none came.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dimension: u32,
    /// Seconds of the rows that were measured.
    #[serde(default, skip_serializing_if = "Timing::is_empty")]
    pub timing: Timing,
}

/// True for what need not be written.
#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The counts of an [`Output`]: everything but its lines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// By node.
    pub nodes: Vec<NodeOutput>,
    /// By branch.
    pub branches: Vec<BranchOutput>,
    /// Input rows.
    pub rows: u64,
    /// What became of the input rows on the main line.
    pub input: Runs<RowFate>,
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
                branches: vec![BranchOutput::default(); branches],
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

    /// Notes how many numbers a node's vectors have; 0 says nothing.
    pub fn dimension(&mut self, node: usize, dimension: u32) {
        if let Some(node) = self.tally.nodes.get_mut(node).filter(|_| dimension > 0) {
            node.dimension = dimension;
        }
    }

    /// Counts a row's seconds at a node.
    pub fn took(&mut self, node: usize, seconds: f64) {
        if let Some(node) = self.tally.nodes.get_mut(node) {
            node.timing.add(seconds);
        }
    }

    /// Counts an input row.
    pub fn input_row(&mut self, fate: RowFate) {
        self.tally.rows += 1;
        self.tally.input.push(fate, 1);
    }

    /// Counts a row that came to a branch.
    pub fn entry(&mut self, branch: usize, entry: Entry) {
        if let Some(branch) = self.tally.branches.get_mut(branch) {
            branch.entries.push(entry, 1);
        }
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
            mine.dimension = mine.dimension.max(theirs.dimension);
            mine.timing.merge(&theirs.timing);
        }
        for (mine, theirs) in self.tally.branches.iter_mut().zip(&mut other.tally.branches) {
            mine.entries.append(&mut theirs.entries);
            mine.failed += theirs.failed;
        }
        self.tally.rows += other.tally.rows;
        self.tally.input.append(&mut other.tally.input);
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
