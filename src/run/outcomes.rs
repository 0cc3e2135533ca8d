//! `.chainette/outcomes`: what became of every row at every node and branch, one JSON line per commit.
//!
//! `{"row":512,"rows":256,"input":"250o6i","nodes":{"a":"247e3x"},"branches":{"b":"200r47s"}}`: of the 256 input
//! rows from 512 on, 250 went their way on the main line and then 6 were bad; the fates of the rows that came to
//! `a`, in order; how rows came to the branch `b`. With the graph, that is every decision of the run: who reads it
//! can lead each row along its way again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use fs_err::{File, OpenOptions};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::RunError;
use crate::event::{counted, thousands};
use crate::node::output::{Entry, Fate, RowFate, Runs, Tally};

/// A fate as one letter, which a number may follow.
pub(crate) trait Letter: Copy + PartialEq {
    /// The letter, and the number of rows that were left where it is not one.
    fn letter(self) -> (char, Option<u32>);

    /// The fate of a letter; none if there is no such fate.
    fn of(letter: char, left: Option<u32>) -> Option<Self>;
}

impl Letter for Fate {
    fn letter(self) -> (char, Option<u32>) {
        match self {
            Self::Emitted(1) => ('e', None),
            Self::Emitted(left) => ('e', Some(left)),
            Self::Filtered => ('x', None),
            Self::Skipped => ('s', None),
            Self::Nulled => ('n', None),
            Self::Failed => ('f', None),
        }
    }

    fn of(letter: char, left: Option<u32>) -> Option<Self> {
        match (letter, left) {
            ('e', None) => Some(Self::Emitted(1)),
            ('e', Some(left)) if left > 1 => Some(Self::Emitted(left)),
            ('x', None) => Some(Self::Filtered),
            ('s', None) => Some(Self::Skipped),
            ('n', None) => Some(Self::Nulled),
            ('f', None) => Some(Self::Failed),
            _ => None,
        }
    }
}

impl Letter for Entry {
    fn letter(self) -> (char, Option<u32>) {
        let letter = match self {
            Self::Entered => 'r',
            Self::Skipped => 's',
            Self::Failed => 'f',
            Self::GroupFailed => 'g',
        };
        (letter, None)
    }

    fn of(letter: char, left: Option<u32>) -> Option<Self> {
        match (letter, left) {
            ('r', None) => Some(Self::Entered),
            ('s', None) => Some(Self::Skipped),
            ('f', None) => Some(Self::Failed),
            ('g', None) => Some(Self::GroupFailed),
            _ => None,
        }
    }
}

impl Letter for RowFate {
    fn letter(self) -> (char, Option<u32>) {
        let letter = match self {
            Self::Done => 'o',
            Self::Failed => 'f',
            Self::Invalid => 'i',
        };
        (letter, None)
    }

    fn of(letter: char, left: Option<u32>) -> Option<Self> {
        match (letter, left) {
            ('o', None) => Some(Self::Done),
            ('f', None) => Some(Self::Failed),
            ('i', None) => Some(Self::Invalid),
            _ => None,
        }
    }
}

/// Runs of fates as text: `12e` is twelve rows that left one row each, `3e:4,` three that left four each.
fn encode_runs<T: Letter>(runs: &Runs<T>) -> String {
    let mut out = String::new();
    for (fate, rows) in &runs.0 {
        let (letter, left) = fate.letter();
        // Writing to a text cannot fail.
        let _infallible = match (*rows, left) {
            (1, None) => write!(out, "{letter}"),
            (rows, None) => write!(out, "{rows}{letter}"),
            (1, Some(left)) => write!(out, "{letter}:{left},"),
            (rows, Some(left)) => write!(out, "{rows}{letter}:{left},"),
        };
    }
    out
}

/// Reads what [`encode_runs`] wrote; none if it is damaged.
fn decode_runs<T: Letter>(text: &str) -> Option<Runs<T>> {
    let mut runs = Runs::default();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at_checked(digits)?;
        let rows = match number {
            "" => 1,
            number => number.parse().ok().filter(|rows| *rows > 1)?,
        };
        let letter = after.chars().next()?;
        rest = after.strip_prefix(letter)?;
        let left = match rest.strip_prefix(':') {
            None => None,
            Some(after) => {
                let (left, after) = after.split_once(',')?;
                rest = after;
                Some(left.parse().ok()?)
            }
        };
        runs.push(T::of(letter, left)?, rows);
    }
    Some(runs)
}

/// A line as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    row: u64,
    rows: u64,
    input: String,
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    nodes: IndexMap<String, String>,
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    branches: IndexMap<String, String>,
}

/// What one commit says of consecutive input rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    /// The ordinal of the first row.
    pub(crate) row: u64,
    /// How many rows.
    pub(crate) rows: u64,
    /// What became of them on the main line.
    pub(crate) input: Runs<RowFate>,
    /// By node id, of nodes that rows came to.
    pub(crate) nodes: IndexMap<String, Runs<Fate>>,
    /// By branch id, of branches that rows came to.
    pub(crate) branches: IndexMap<String, Runs<Entry>>,
}

/// The line of a commit whose first row is `row`; `nodes` and `branches` are the plan's ids.
///
/// # Errors
/// It is no JSON, which is a bug.
pub(super) fn line(
    row: u64,
    tally: &Tally,
    nodes: &[String],
    branches: &[String],
) -> Result<Vec<u8>, serde_json::Error> {
    fn named<T: Letter>(ids: &[String], runs: Vec<&Runs<T>>) -> IndexMap<String, String> {
        let all = ids.iter().zip(runs).filter(|(_, runs)| !runs.0.is_empty());
        all.map(|(id, runs)| (id.clone(), encode_runs(runs))).collect()
    }
    let line = Line {
        row,
        rows: tally.rows,
        input: encode_runs(&tally.input),
        nodes: named(nodes, tally.nodes.iter().map(|node| &node.fates).collect()),
        branches: named(
            branches,
            tally.branches.iter().map(|branch| &branch.entries).collect(),
        ),
    };
    let mut line = serde_json::to_vec(&line)?;
    line.push(b'\n');
    Ok(line)
}

/// Reads a line back; the error is what is wrong with it.
fn read_line(text: &str) -> Result<Outcomes, String> {
    fn named<T: Letter>(all: IndexMap<String, String>) -> Result<IndexMap<String, Runs<T>>, String> {
        let read = |(id, text): (String, String)| {
            let runs = decode_runs(&text).ok_or_else(|| format!("the fates of `{id}` cannot be read"))?;
            Ok((id, runs))
        };
        all.into_iter().map(read).collect()
    }
    let line: Line = serde_json::from_str(text).map_err(|error| error.to_string())?;
    Ok(Outcomes {
        row: line.row,
        rows: line.rows,
        input: decode_runs(&line.input).ok_or("the fates of its input rows cannot be read")?,
        nodes: named(line.nodes)?,
        branches: named(line.branches)?,
    })
}

/// Opens the file where a checkpoint left it.
pub(super) fn open(path: &Path, bytes: u64) -> Result<File, RunError> {
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        if len < bytes {
            return Ok(Err(len));
        }
        file.set_len(bytes)?;
        Ok(Ok(file))
    };
    open()
        .map_err(RunError::io(path))?
        .map_err(|len| RunError::Damaged {
            path: PathBuf::from(path),
            problem: format!("{} instead of {}", counted(len, "byte"), thousands(bytes)),
        })
}

/// What is wrong with the outcomes of the first `rows` input rows, if something is.
pub(super) fn problem(path: &Path, rows: u64) -> Option<String> {
    let mut reader = match Reader::open(path) {
        Err(_) if rows == 0 => return None,
        Err(error) => return Some(error.to_string()),
        Ok(reader) => reader,
    };
    while reader.rows < rows {
        match reader.next() {
            Ok(Some(_)) => {}
            Ok(None) => return Some("it is shorter than it was".into()),
            Err(Unread::Io(error)) => return Some(error.to_string()),
            Err(Unread::Damaged(line, problem)) => return Some(format!("line {line}: {problem}")),
        }
    }
    None
}

/// Why outcomes cannot be read further.
#[derive(Debug)]
pub(crate) enum Unread {
    /// The file system said no.
    Io(std::io::Error),
    /// A line, from 1, is not what it was.
    Damaged(u64, String),
}

/// Reads the commits of a file one after another.
pub(crate) struct Reader {
    file: BufReader<File>,
    line: String,
    /// Lines read.
    number: u64,
    /// Input rows read.
    rows: u64,
}

impl Reader {
    /// Opens the file.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self {
            file: BufReader::new(File::open(path)?),
            line: String::new(),
            number: 0,
            rows: 0,
        })
    }

    /// The next commit; none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Outcomes>, Unread> {
        self.line.clear();
        if self.file.read_line(&mut self.line).map_err(Unread::Io)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let damaged = |problem| Unread::Damaged(self.number, problem);
        let text = self.line.strip_suffix('\n');
        let text = text.ok_or_else(|| damaged("it was cut off".to_owned()))?;
        let outcomes = read_line(text).map_err(damaged)?;
        if outcomes.row != self.rows {
            let problem = format!("it is of row {}, not {}", outcomes.row, self.rows);
            return Err(damaged(problem));
        }
        let said = outcomes.input.0.iter().map(|(_, rows)| *rows);
        let said = said.fold(0, u64::saturating_add);
        if said != outcomes.rows {
            let problem = format!("it has the fates of {said} input rows, not {}", outcomes.rows);
            return Err(damaged(problem));
        }
        self.rows = self.rows.saturating_add(outcomes.rows);
        Ok(Some(outcomes))
    }

    /// Input rows read so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The number of the line read last, from 1.
    pub(crate) fn line(&self) -> u64 {
        self.number
    }
}

/// A fingerprint of outcomes that does not depend on where commits began and ended: that differs with the batch
/// size and the number of kills, what became of the rows does not.
#[derive(Default)]
pub(crate) struct Digest(BTreeMap<String, Stream>);

/// The fates at one place.
#[derive(Default)]
struct Stream {
    hasher: blake3::Hasher,
    /// The last run may go on.
    open: Option<(char, Option<u32>, u64)>,
}

impl Stream {
    fn push<T: Letter>(&mut self, runs: &Runs<T>) {
        for (fate, rows) in &runs.0 {
            let (letter, left) = fate.letter();
            match &mut self.open {
                Some((open, its, n)) if *open == letter && *its == left => *n = n.saturating_add(*rows),
                _ => {
                    self.close();
                    self.open = Some((letter, left, *rows));
                }
            }
        }
    }

    fn close(&mut self) {
        if let Some((letter, left, rows)) = self.open.take() {
            let text = format!("{rows}{letter}{};", left.unwrap_or(1));
            self.hasher.update(text.as_bytes());
        }
    }
}

impl Digest {
    /// Adds the outcomes of the next rows.
    pub(crate) fn push(&mut self, outcomes: &Outcomes) {
        self.0
            .entry("input".to_owned())
            .or_default()
            .push(&outcomes.input);
        for (id, runs) in &outcomes.nodes {
            self.0.entry(format!("node {id}")).or_default().push(runs);
        }
        for (id, runs) in &outcomes.branches {
            self.0.entry(format!("branch {id}")).or_default().push(runs);
        }
    }

    /// BLAKE3 of everything that was added, hexadecimal.
    pub(crate) fn finish(self) -> String {
        let mut all = blake3::Hasher::new();
        for (name, mut stream) in self.0 {
            stream.close();
            let line = format!("{name} {}\n", stream.hasher.finalize().to_hex());
            all.update(line.as_bytes());
        }
        all.finalize().to_hex().to_string()
    }
}

/// The fingerprint of a whole file.
///
/// # Errors
/// The file cannot be read, or is not what it was.
pub(super) fn digest(path: &Path) -> Result<String, RunError> {
    let mut reader = Reader::open(path).map_err(RunError::io(path))?;
    let mut digest = Digest::default();
    loop {
        match reader.next() {
            Ok(Some(outcomes)) => digest.push(&outcomes),
            Ok(None) => return Ok(digest.finish()),
            Err(Unread::Io(error)) => return Err(RunError::io(path)(error)),
            Err(Unread::Damaged(line, problem)) => {
                let path = path.to_owned();
                let problem = format!("line {line}: {problem}");
                return Err(RunError::Damaged { path, problem });
            }
        }
    }
}
