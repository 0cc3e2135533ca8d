//! The lines of one folder in both runs, side by side by row id.

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::{Failure, FieldPair, FolderDiff, Sample, SampleRow, Which};
use crate::audit::equal::{fields, same};
use crate::audit::{AuditError, Line, Lines};
use crate::row::unquoted;

/// So many fields of a folder have a count of their own.
const MAX_FIELDS: usize = 1_000;
/// Where a row came from, in `errors`: it may have been given under another path.
const ORIGIN: [&str; 2] = ["file", "line"];

/// Failures of both runs, by node and kind.
pub(super) type Failures = IndexMap<(Option<String>, String), Counts>;

/// Failures of one node and kind.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) only_a: u64,
    pub(super) only_b: u64,
    pub(super) both: u64,
}

/// What was found so far.
pub(super) struct Rows {
    pub(super) folder: FolderDiff,
    pub(super) failures: Failures,
    typed: bool,
    sample: usize,
}

impl Rows {
    /// Nothing yet.
    pub(super) fn new(folder: &str, typed: bool, sample: usize) -> Self {
        Self {
            folder: FolderDiff {
                folder: folder.to_owned(),
                written_by: Which::Both,
                only_a: 0,
                only_b: 0,
                equal: 0,
                different: 0,
                fields: IndexMap::new(),
                further_fields: 0,
                sample: Sample::default(),
            },
            failures: IndexMap::new(),
            // `errors` are JSON lines in every format.
            typed: typed && folder != "errors",
            sample,
        }
    }

    /// Reads both to their ends.
    pub(super) fn compare(&mut self, a: Lines, b: Lines) -> Result<(), AuditError> {
        let is_errors = self.folder.folder == "errors";
        let (mut a, mut b) = (Groups::new(a, is_errors), Groups::new(b, is_errors));
        a.advance()?;
        b.advance()?;
        loop {
            let (of_a, of_b): (&[Line], &[Line]) = match (a.lines.first(), b.lines.first()) {
                (None, None) => return Ok(()),
                (Some(x), Some(y)) if x.row_id == y.row_id => (&a.lines, &b.lines),
                (Some(x), Some(y)) if x.row_id > y.row_id => (&[], &b.lines),
                (None, Some(_)) => (&[], &b.lines),
                (Some(_), _) => (&a.lines, &[]),
            };
            if is_errors {
                self.errors(of_a, of_b);
            } else {
                self.pair(of_a.first(), of_b.first());
            }
            let (from_a, from_b) = (!of_a.is_empty(), !of_b.is_empty());
            if from_a {
                a.advance()?;
            }
            if from_b {
                b.advance()?;
            }
        }
    }

    /// The failures of one row.
    fn errors(&mut self, a: &[Line], b: &[Line]) {
        let mut rest: Vec<(&Line, Place<'_>)> = b.iter().map(|line| (line, Place::of(line))).collect();
        for line in a {
            let place = Place::of(line);
            let at = rest.iter().position(|(_, known)| known.is_same_place(&place));
            let twin = at.map(|at| rest.swap_remove(at));
            self.count(Some(&place), twin.as_ref().map(|(_, place)| place));
            self.pair(Some(line), twin.map(|(line, _)| line));
        }
        rest.sort_by_key(|(line, _)| line.line);
        for (line, place) in rest {
            self.count(None, Some(&place));
            self.pair(None, Some(line));
        }
    }

    /// Counts failures by node and kind.
    fn count(&mut self, a: Option<&Place<'_>>, b: Option<&Place<'_>>) {
        let mut counts = |place: &Place<'_>, add: fn(&mut Counts)| {
            add(self
                .failures
                .entry((place.node(), place.kind.to_owned()))
                .or_default());
        };
        match (a, b) {
            (Some(a), Some(b)) if a.kind == b.kind => counts(a, |counts| counts.both += 1),
            (a, b) => {
                a.inspect(|a| counts(a, |counts| counts.only_a += 1));
                b.inspect(|b| counts(b, |counts| counts.only_b += 1));
            }
        }
    }

    /// A row that one of them has, or both.
    fn pair(&mut self, a: Option<&Line>, b: Option<&Line>) {
        let (count, sample, line) = match (a, b) {
            (Some(a), Some(b)) => return self.both(a, b),
            (Some(a), None) => (&mut self.folder.only_a, &mut self.folder.sample.only_a, a),
            (None, Some(b)) => (&mut self.folder.only_b, &mut self.folder.sample.only_b, b),
            (None, None) => return,
        };
        *count += 1;
        if sample.len() < self.sample {
            let failure = (self.folder.folder == "errors").then(|| Place::of(line).failure());
            sample.push(SampleRow {
                row_id: line.row_id.to_string(),
                failure,
                fields: Vec::new(),
            });
        }
    }

    /// A row that both have.
    fn both(&mut self, a: &Line, b: &Line) {
        if a.raw == b.raw {
            self.folder.equal += 1;
            return;
        }
        let pairs = self.differing(&a.raw, &b.raw);
        if pairs.is_empty() {
            self.folder.equal += 1;
            return;
        }
        let folder = &mut self.folder;
        folder.different += 1;
        for (name, of_a, of_b) in &pairs {
            if !folder.fields.contains_key(name) && folder.fields.len() >= MAX_FIELDS {
                folder.further_fields += 1;
                continue;
            }
            let field = folder.fields.entry(name.clone()).or_default();
            field.rows += 1;
            field.only_a += u64::from(of_b.is_none());
            field.only_b += u64::from(of_a.is_none());
        }
        if folder.sample.different.len() < self.sample {
            let value = |raw: Option<&str>| raw.and_then(|raw| RawValue::from_string(raw.to_owned()).ok());
            let fields = pairs.into_iter().map(|(field, a, b)| FieldPair {
                field,
                a: value(a),
                b: value(b),
            });
            let failure = (folder.folder == "errors").then(|| Place::of(b).failure());
            folder.sample.different.push(SampleRow {
                row_id: a.row_id.to_string(),
                failure,
                fields: fields.collect(),
            });
        }
    }

    /// The fields in which two lines differ.
    fn differing<'l>(&self, a: &'l str, b: &'l str) -> Vec<(String, Option<&'l str>, Option<&'l str>)> {
        let is_errors = self.folder.folder == "errors";
        let counts = |name: &str| !(is_errors && ORIGIN.contains(&name));
        let (a, b) = (fields(a, self.typed), fields(b, self.typed));
        let of_both = a.iter().filter_map(|(name, of_a)| {
            let of_b = b.get(name).copied();
            let is_same = of_b.is_some_and(|of_b| same(of_a, of_b, self.typed));
            (!is_same).then_some((name, Some(*of_a), of_b))
        });
        let only_b = b
            .iter()
            .filter(|(name, _)| !a.contains_key(*name))
            .map(|(name, of_b)| (name, None, Some(*of_b)));
        of_both
            .chain(only_b)
            .filter(|(name, ..)| counts(name))
            .map(|(name, of_a, of_b)| (name.to_string(), of_a, of_b))
            .collect()
    }
}

/// Lines with the same row id, which is one line but in `errors`.
struct Groups {
    source: Lines,
    /// The lines of the row that is next; none at the end.
    lines: Vec<Line>,
    ahead: Option<Line>,
    many: bool,
}

impl Groups {
    fn new(source: Lines, many: bool) -> Self {
        Self {
            source,
            lines: Vec::new(),
            ahead: None,
            many,
        }
    }

    fn advance(&mut self) -> Result<(), AuditError> {
        self.lines.clear();
        self.lines.extend(self.ahead.take());
        for line in self.source.by_ref() {
            let line = line?;
            let Some(first) = self.lines.first() else {
                self.lines.push(line);
                continue;
            };
            if line.row_id > first.row_id {
                self.ahead = Some(line);
                return Ok(());
            }
            let again = line.row_id == first.row_id;
            if !again || !self.many {
                let problem = match again {
                    true => format!("row {} stands there twice", line.row_id),
                    false => format!("row {} stands after row {}", line.row_id, first.row_id),
                };
                return Err(line.bad(problem));
            }
            self.lines.push(line);
        }
        Ok(())
    }
}

/// Where and how a row failed: the values of a line of `errors` as they stand there.
struct Place<'l> {
    node: Option<&'l str>,
    branch: Option<&'l str>,
    kind: &'l str,
    message: &'l str,
}

impl<'l> Place<'l> {
    fn of(line: &'l Line) -> Self {
        let fields = fields(&line.raw, false);
        let get = |name: &str| fields.get(name).copied();
        Self {
            node: get("node"),
            branch: get("branch"),
            kind: inner(get("kind").unwrap_or_default()),
            message: get("message").unwrap_or_default(),
        }
    }

    fn is_same_place(&self, other: &Self) -> bool {
        (self.node, self.branch) == (other.node, other.branch)
    }

    fn node(&self) -> Option<String> {
        self.node.map(|node| unquoted(node).into_owned())
    }

    fn failure(&self) -> Failure {
        Failure {
            node: self.node(),
            kind: self.kind.to_owned(),
            message: unquoted(self.message).into_owned(),
        }
    }
}

/// A word without its quotes.
fn inner(raw: &str) -> &str {
    raw.trim_matches('"')
}
