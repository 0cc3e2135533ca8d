//! What flows: rows, their ids, and the ways a row can fail.

mod json;
mod record;

pub use json::{compact, write_str};
pub(crate) use json::{raw_fields, raw_items, skip_value, unquoted};
pub use record::{BadRecord, Fields, Record};

use std::fmt;
use std::sync::Arc;

/// The identity of a row: the ordinal of its input line, then the child numbers it took on its way.
///
/// `"17"` is the 18th input row, `"17.2.0"` the first child of its third child. The order is the
/// output order: by ordinal, then parents before children, then by child number.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId {
    ordinal: u64,
    path: Vec<u32>,
}

impl RowId {
    /// The id of the input row with this zero-based ordinal.
    pub fn root(ordinal: u64) -> Self {
        Self {
            ordinal,
            path: Vec::new(),
        }
    }

    /// The id of this row's `k`-th child.
    pub fn child(&self, k: u32) -> Self {
        let mut path = Vec::with_capacity(self.path.len() + 1);
        path.extend_from_slice(&self.path);
        path.push(k);
        Self {
            ordinal: self.ordinal,
            path,
        }
    }

    /// The row id of a text, as [`RowId`] is printed.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.');
        let ordinal = number(numbers.next()?)?.parse().ok()?;
        let path: Option<Vec<u32>> = numbers.map(|k| number(k)?.parse().ok()).collect();
        Some(Self { ordinal, path: path? })
    }

    /// The zero-based ordinal of the input row this row descends from.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }
}

/// A number as it is printed: no sign, no leading zero.
fn number(text: &str) -> Option<&str> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_number.then_some(text)
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ordinal)?;
        self.path.iter().try_for_each(|k| write!(f, ".{k}"))
    }
}

/// What a name in scope holds for one row.
#[derive(Clone, Debug, Default)]
pub enum Named {
    /// The node has not run on this row's line (yet).
    #[default]
    Unset,
    /// Skipped, nulled, or an alias whose branch left nothing.
    Null,
    /// A node's output, or what a joined branch left.
    Record(Record),
    /// What a `collect: true` branch left.
    List(Arc<[Record]>),
    /// Reasoning text (`<id>_reasoning`).
    Text(Arc<str>),
}

/// Why a row failed: the closed list of CHAIN.md §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// The input line is no JSON object, or breaks `input_model`.
    InvalidInput,
    /// A template or `when` could not be rendered for this row.
    Template,
    /// The engine did not answer in time, more often than `retries.transport` allows.
    Timeout,
    /// The engine refused this request, or answered with a server error too often.
    Http,
    /// The request is longer than the engine's context.
    ContextLength,
    /// No reply matched the output model.
    InvalidOutput,
    /// The reply was cut at its token limit, and again at twice that limit.
    Truncated,
    /// The reply ran into white space or repetition, and again when asked again.
    Runaway,
    /// The request crashes the engine.
    EngineCrash,
    /// An Apply failed on this row.
    Apply,
    /// A joined branch left more than one row.
    JoinCardinality,
}

impl ErrorKind {
    /// Every kind, in the order of CHAIN.md.
    pub const ALL: [Self; 11] = [
        Self::InvalidInput,
        Self::Template,
        Self::Timeout,
        Self::Http,
        Self::ContextLength,
        Self::InvalidOutput,
        Self::Truncated,
        Self::Runaway,
        Self::EngineCrash,
        Self::Apply,
        Self::JoinCardinality,
    ];

    /// True for what an engine did, and may not do again.
    pub fn is_of_engine(self) -> bool {
        match self {
            Self::Timeout
            | Self::Http
            | Self::ContextLength
            | Self::InvalidOutput
            | Self::Truncated
            | Self::Runaway
            | Self::EngineCrash => true,
            Self::InvalidInput | Self::Template | Self::Apply | Self::JoinCardinality => false,
        }
    }

    /// The name in `errors/` and in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::Template => "template",
            Self::Timeout => "timeout",
            Self::Http => "http",
            Self::ContextLength => "context_length",
            Self::InvalidOutput => "invalid_output",
            Self::Truncated => "truncated",
            Self::Runaway => "runaway",
            Self::EngineCrash => "engine_crash",
            Self::Apply => "apply",
            Self::JoinCardinality => "join_cardinality",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A row's failure: data for `errors/`, never an `Err` of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowError {
    /// Which of the documented kinds.
    pub kind: ErrorKind,
    /// The cause; holds no times, ports or process ids, so that a rerun writes the same bytes.
    pub message: String,
    /// Replies received from the engine before giving up (Steps only).
    pub attempts: Option<u32>,
    /// The last reply's text, when there was one (Steps only).
    pub reply: Option<String>,
}

impl RowError {
    /// A failure that involved no engine.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            attempts: None,
            reply: None,
        }
    }
}
