//! What is wrong with an OUT, as it is found.

use indexmap::IndexMap;
use serde::Serialize;

/// What a problem is about, in the order of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The run is not at its end.
    Unfinished,
    /// `metadata.json` is not what the run wrote.
    Metadata,
    /// `graph.json` is not what the run wrote.
    Graph,
    /// A private file is not what the run wrote.
    Private,
    /// The outcomes are gone, damaged, or cannot be true.
    Outcomes,
    /// A file that should not be there.
    Stray,
    /// A shard is gone, or not what the run wrote.
    Shard,
    /// A line is no row, or does not match its schema.
    Line,
    /// A row is missing, stands twice, or should not be there.
    Row,
    /// A count in `metadata.json` does not add up.
    Count,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What it is about.
    pub kind: ProblemKind,
    /// The file, below OUT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in it (the row of a Parquet file), from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_id: Option<String>,
    /// What was expected and what was found, in one line.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            write!(f, ": ")?;
        }
        if let Some(row) = &self.row_id {
            write!(f, "row {row}: ")?;
        }
        write!(f, "{}", self.message)
    }
}

impl Problem {
    /// A problem of a file as a whole.
    pub(super) fn of(kind: ProblemKind, file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            file: Some(file.into()),
            line: None,
            row_id: None,
            message: message.into(),
        }
    }

    /// The same at a line.
    pub(super) fn at(self, line: u64) -> Self {
        Self {
            line: Some(line),
            ..self
        }
    }

    /// The same of a row.
    pub(super) fn row(self, row: &impl ToString) -> Self {
        Self {
            row_id: Some(row.to_string()),
            ..self
        }
    }
}

/// Problems of one kind that are kept.
pub(super) const SHOWN: usize = 20;

/// All problems by kind: the first of each, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Problems(IndexMap<ProblemKind, (Vec<Problem>, u64)>);

impl Problems {
    pub(super) fn add(&mut self, problem: Problem) {
        let (shown, count) = self.0.entry(problem.kind).or_default();
        *count += 1;
        if shown.len() < SHOWN {
            shown.push(problem);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first problems of each kind, and how many there are by kind.
    pub(super) fn into_parts(mut self) -> (Vec<Problem>, IndexMap<ProblemKind, u64>) {
        self.0.sort_unstable_keys();
        let counts = self.0.iter().map(|(kind, (_, count))| (*kind, *count)).collect();
        let shown = self.0.into_values().flat_map(|(shown, _)| shown).collect();
        (shown, counts)
    }
}
