//! Two finished runs compared: how they were made, what they wrote, what it cost.

mod made;
mod rows;

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{AuditError, Options, Outputs, RowTotals, Tokens};

pub use made::{Changed, InputDiff, Made, Pair};

/// What differs between two finished runs, A and B.
///
/// Rows are the same row when they have the same row id in the same folder. Values are compared as JSON:
/// numbers by value, objects whatever the order of their keys. Where one of the runs wrote Parquet, a field that
/// is null is one that was left out, and decimal fractions are doubles.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// True when both wrote the same: no row, field or failure differs. How they were made may differ.
    pub same: bool,
    /// The run A.
    pub a: Side,
    /// The run B.
    pub b: Side,
    /// What differs in chain, vars, input and options.
    pub made: Made,
    /// What they wrote: nodes in chain order, then `flattened`, then `errors`.
    pub folders: Vec<FolderDiff>,
    /// Failures by node and kind, where there are any.
    pub failures: Vec<FailureDiff>,
    /// Tokens of every Step, in chain order.
    pub tokens: Vec<TokenDiff>,
}

/// One of two runs.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Its folder.
    #[serde(serialize_with = "lossy")]
    pub out: PathBuf,
    /// Its name.
    pub run_id: String,
    /// Its chain's name.
    pub chain: String,
    /// Its rows.
    pub rows: RowTotals,
    /// How it was told to write.
    pub options: Options,
}

/// A path that is not UTF-8 is shown as well as it can be.
fn lossy<S: serde::Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl Side {
    fn of(outputs: &Outputs) -> Self {
        Self {
            out: outputs.out.clone(),
            run_id: outputs.run_id.clone(),
            chain: outputs.chain.name.clone(),
            rows: outputs.rows,
            options: outputs.options.clone(),
        }
    }
}

/// Which of two runs has something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Both.
    Both,
    /// Only A.
    A,
    /// Only B.
    B,
}

/// What differs in a folder. Lines of `errors` are of the same row when they also tell of the same place; the
/// `file` and `line` that they name are not compared.
#[derive(Clone, Debug, Serialize)]
pub struct FolderDiff {
    /// Its name.
    pub folder: String,
    /// Who writes it; the rows of one that only one of them writes are counted, not read.
    pub written_by: Which,
    /// Rows that B does not have.
    pub only_a: u64,
    /// Rows that A does not have.
    pub only_b: u64,
    /// Rows that both have and that say the same.
    pub equal: u64,
    /// Rows that both have and that do not.
    pub different: u64,
    /// In what they differ, by field in the order in which that was first seen.
    pub fields: IndexMap<String, FieldDiff>,
    /// Differences in further fields, when there are more than 1,000.
    pub further_fields: u64,
    /// The first rows of each sort.
    pub sample: Sample,
}

impl FolderDiff {
    /// True when no row differs.
    pub fn is_same(&self) -> bool {
        self.only_a + self.only_b + self.different == 0
    }
}

/// How many rows differ in a field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FieldDiff {
    /// Rows that differ in it.
    pub rows: u64,
    /// Those of them in which B has no such field.
    pub only_a: u64,
    /// Those of them in which A has no such field.
    pub only_b: u64,
}

/// The first rows that differ, as many as were asked for of each sort.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// Rows that B does not have.
    pub only_a: Vec<SampleRow>,
    /// Rows that A does not have.
    pub only_b: Vec<SampleRow>,
    /// Rows that both have and that differ.
    pub different: Vec<SampleRow>,
}

/// A row that differs.
#[derive(Clone, Debug, Serialize)]
pub struct SampleRow {
    /// Its row id.
    pub row_id: String,
    /// What a line of `errors` tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The fields in which it differs; none of a row that only one of them has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldPair>,
}

/// What a line of `errors` tells.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Where it failed; none for an input line that is no row.
    pub node: Option<String>,
    /// The kind.
    pub kind: String,
    /// The cause.
    pub message: String,
}

/// A field of both rows; left out where one has none.
#[derive(Clone, Debug, Serialize)]
pub struct FieldPair {
    /// Its name.
    pub field: String,
    /// In A, as it stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub a: Option<Box<RawValue>>,
    /// In B, as it stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub b: Option<Box<RawValue>>,
}

/// Failures at a node, of a kind. One counts as in both when the same row failed there with that kind in both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureDiff {
    /// The node; none for input lines that are no rows.
    pub node: Option<String>,
    /// The kind.
    pub kind: String,
    /// Failures that B does not have.
    pub only_a: u64,
    /// Failures that A does not have.
    pub only_b: u64,
    /// Failures in both.
    pub both: u64,
}

/// Tokens of a Step; none where a run has no such Step.
#[derive(Clone, Debug, Serialize)]
pub struct TokenDiff {
    /// The Step.
    pub node: String,
    /// In A.
    pub a: Option<Tokens>,
    /// In B.
    pub b: Option<Tokens>,
    /// By how much B has more prompt tokens than A, in percent of A's, to two places.
    pub prompt_percent: Option<f64>,
    /// By how much B has more completion tokens than A, in percent of A's, to two places.
    pub completion_percent: Option<f64>,
}

/// Compares two finished runs, reading all they wrote once, in flat memory: counts are kept, and `sample` rows
/// of each sort by folder.
///
/// ```no_run
/// use chainette::audit::{Outputs, diff};
///
/// # fn main() -> Result<(), chainette::audit::AuditError> {
/// let (a, b) = (Outputs::open("out-a".as_ref())?, Outputs::open("out-b".as_ref())?);
/// let diff = diff(&a, &b, 5)?;
/// for folder in diff.folders.iter().filter(|folder| !folder.is_same()) {
///     println!("{}: {} rows differ", folder.folder, folder.different);
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Shards are missing or damaged, or are those of a custom sink.
pub fn diff(a: &Outputs, b: &Outputs, sample: usize) -> Result<Diff, AuditError> {
    for outputs in [a, b] {
        outputs.check_readable()?;
        outputs.check_present()?;
    }
    let typed = [a, b].iter().any(|run| run.options.format == "parquet");
    let (in_a, in_b) = (a.folders(), b.folders());
    let nodes = merged(&names(a), &names(b));
    let last = ["flattened".to_owned(), "errors".to_owned()];
    let written = nodes.iter().chain(&last);
    let written = written.filter(|folder| in_a.contains(folder) || in_b.contains(folder));
    let mut folders = Vec::new();
    let mut failures = Vec::new();
    for folder in written {
        let by = match (in_a.contains(folder), in_b.contains(folder)) {
            (true, true) => Which::Both,
            (true, false) => Which::A,
            (false, _) => Which::B,
        };
        if by == Which::Both {
            let mut rows = rows::Rows::new(folder, typed, sample);
            rows.compare(a.lines(folder)?, b.lines(folder)?)?;
            failures.extend(std::mem::take(&mut rows.failures));
            folders.push(rows.folder);
        } else {
            let mut found = rows::Rows::new(folder, typed, sample).folder;
            found.written_by = by;
            (found.only_a, found.only_b) = (a.count(folder), b.count(folder));
            folders.push(found);
        }
    }
    let place = |node: &Option<String>| {
        let at = |node| nodes.iter().position(|known| known == node);
        node.as_ref().map(|node| at(node).unwrap_or(nodes.len()))
    };
    let mut failures: Vec<FailureDiff> = failures
        .into_iter()
        .map(|((node, kind), count)| FailureDiff {
            node,
            kind,
            only_a: count.only_a,
            only_b: count.only_b,
            both: count.both,
        })
        .collect();
    failures.sort_by(|x, y| (place(&x.node), &x.node, &x.kind).cmp(&(place(&y.node), &y.node, &y.kind)));
    Ok(Diff {
        same: folders.iter().all(FolderDiff::is_same),
        a: Side::of(a),
        b: Side::of(b),
        made: Made::of(a, b),
        folders,
        failures,
        tokens: nodes.iter().filter_map(|node| tokens(a, b, node)).collect(),
    })
}

/// The nodes of a run, in chain order.
fn names(outputs: &Outputs) -> Vec<String> {
    outputs.nodes.keys().cloned().collect()
}

/// All of both, in the order of A; what only B has stands after what it follows there.
fn merged(a: &[String], b: &[String]) -> Vec<String> {
    let mut all = a.to_vec();
    let mut at = 0;
    for name in b {
        match all.iter().position(|known| known == name) {
            Some(found) => at = found + 1,
            None => {
                all.insert(at, name.clone());
                at += 1;
            }
        }
    }
    all
}

/// Tokens of a node, if it is a Step in either run.
fn tokens(a: &Outputs, b: &Outputs, node: &str) -> Option<TokenDiff> {
    let of = |outputs: &Outputs| {
        let counts = outputs.nodes.get(node).filter(|_| outputs.is_step(node))?;
        Some(Tokens {
            prompt: counts.prompt_tokens,
            completion: counts.completion_tokens,
        })
    };
    let (a, b) = (of(a), of(b));
    if a.is_none() && b.is_none() {
        return None;
    }
    let percent = |of: fn(&Tokens) -> u64| {
        let (a, b) = (of(a.as_ref()?), of(b.as_ref()?));
        (a > 0).then(|| ((b as f64 - a as f64) / a as f64 * 10_000.0).round() / 100.0)
    };
    Some(TokenDiff {
        node: node.to_owned(),
        a,
        b,
        prompt_percent: percent(|tokens| tokens.prompt),
        completion_percent: percent(|tokens| tokens.completion),
    })
}
