//! The shards of one folder, read once from the first to the last: digests, lines, and the rows they hold in
//! step with those that the outcomes tell of.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::line::Checked;
use super::problems::{Problem, ProblemKind, Problems};
use super::shard::{Check, Form, Opened, Rows, Shard};
use crate::event::{counted, thousands};
use crate::row::RowId;
use crate::sink::Rolled;

/// What lines of a folder are compared by; the order is that of the file.
pub(super) trait Key: Ord + Clone + Send {
    /// The row.
    fn row(&self) -> &RowId;
}

impl Key for RowId {
    fn row(&self) -> &RowId {
        self
    }
}

impl Key for super::line::ErrorKey {
    fn row(&self) -> &RowId {
        &self.row_id
    }
}

/// The shard that is being read.
struct Open {
    shard: Shard,
    rows: Rows,
    /// Lines that were read.
    lines: u64,
    /// Its bytes are not those of the run, which was told.
    altered: bool,
}

/// A line that was read.
struct Line<K> {
    file: Arc<str>,
    number: u64,
    /// None where it cannot be told which row it is.
    key: Option<K>,
}

/// A folder on its way from the first line to the last.
pub(super) struct Folder<'a, K> {
    name: String,
    form: Form,
    shards: VecDeque<Shard>,
    check: Box<Check<'a, K>>,
    open: Option<Open>,
    /// Lines that were read and not taken.
    block: VecDeque<Line<K>>,
    /// Where the line stands that was taken last.
    place: (Arc<str>, u64),
    /// The row that was matched last.
    last: Option<K>,
    /// Rows of a shard that cannot be read: there is nothing to compare them with.
    unread: u64,
    /// There were such rows.
    pub(super) has_gaps: bool,
    /// Rows that were expected.
    pub(super) expected: u64,
    /// Rows that the metadata tells of.
    told: u64,
    /// Lines that are what they should be.
    pub(super) good_lines: u64,
    /// Shards that are what the run wrote.
    pub(super) good_shards: u64,
}

impl<'a, K: Key> Folder<'a, K> {
    /// A folder with the shards that the metadata names.
    pub(super) fn new(
        out: &Path,
        name: &str,
        form: Form,
        shards: Vec<(PathBuf, Rolled)>,
        check: Box<Check<'a, K>>,
    ) -> Self {
        let told = shards.iter().map(|(_, rolled)| rolled.rows).sum();
        let shards = shards.into_iter().map(|(path, rolled)| Shard {
            file: path
                .strip_prefix(out)
                .unwrap_or(&path)
                .display()
                .to_string()
                .into(),
            path,
            rolled,
        });
        Self {
            name: format!("{name}/"),
            form,
            shards: shards.collect(),
            check,
            open: None,
            block: VecDeque::new(),
            place: ("".into(), 0),
            last: None,
            unread: 0,
            has_gaps: false,
            expected: 0,
            told,
            good_lines: 0,
            good_shards: 0,
        }
    }

    /// Compares the next line with the row that should come next; gives the line if it is that row's.
    pub(super) fn expect(&mut self, want: &K, found: &mut Problems) -> Option<K> {
        self.expected += 1;
        if self.form == Form::Opaque {
            return None;
        }
        loop {
            self.load(found);
            let Some(Line { file, number, key }) = self.block.front() else {
                if self.unread > 0 {
                    self.unread -= 1;
                } else {
                    let problem = Problem::of(ProblemKind::Row, &self.name, "it is missing at the end");
                    found.add(problem.row(want.row()));
                }
                return None;
            };
            match key.as_ref().map(|key| key.cmp(want)) {
                // A line that nobody can read takes the place of a row; it was told already.
                None => {
                    self.take();
                    return None;
                }
                Some(Ordering::Equal) => {
                    self.last = self.take();
                    return self.last.clone();
                }
                Some(Ordering::Less) => self.refuse(found),
                // One line too many, or one too few? The line behind it tells.
                Some(Ordering::Greater) if self.is_next(want) => self.refuse(found),
                Some(Ordering::Greater) => {
                    let other = key.as_ref().map(|key| key.row().to_string()).unwrap_or_default();
                    let text = format!("it is missing: row {other} stands in its place");
                    let problem = Problem::of(ProblemKind::Row, &**file, text).at(*number);
                    found.add(problem.row(want.row()));
                    return None;
                }
            }
        }
    }

    /// True if the line behind the next one is that of a row.
    fn is_next(&self, want: &K) -> bool {
        let second = self.block.get(1).and_then(|line| line.key.as_ref());
        second.is_some_and(|key| key.cmp(want) == Ordering::Equal)
    }

    /// Reads what is left, in which no row is expected any more; with `compare` each is told.
    pub(super) fn finish(&mut self, compare: bool, found: &mut Problems) {
        loop {
            // A shard that cannot be read hides no other.
            self.unread = 0;
            self.load(found);
            match (self.block.is_empty(), compare) {
                (false, true) => self.refuse(found),
                (false, false) => drop(self.take()),
                (true, _) if self.unread > 0 => {}
                (true, _) => break,
            }
        }
        if compare && self.form == Form::Opaque && self.expected != self.told {
            let text = format!(
                "its shards hold {}, the run left {}",
                counted(self.told, "row"),
                thousands(self.expected)
            );
            found.add(Problem::of(ProblemKind::Row, &self.name, text));
        }
    }

    /// A problem of the line that was taken last.
    pub(super) fn here(&self, kind: ProblemKind, text: impl Into<String>) -> Problem {
        let (file, number) = &self.place;
        Problem::of(kind, &**file, text).at(*number)
    }

    fn take(&mut self) -> Option<K> {
        let Line { file, number, key } = self.block.pop_front()?;
        self.place = (file, number);
        key
    }

    /// Takes a line that should not be there.
    fn refuse(&mut self, found: &mut Problems) {
        let Some(key) = self.take() else { return };
        let text = match &self.last {
            Some(last) if *last == key => "it stands here again",
            Some(last) if *last > key => "it should not be here: it stands behind a later row",
            _ => "it should not be here",
        };
        found.add(self.here(ProblemKind::Row, text).row(key.row()));
    }

    /// Sees to it that there is a line to take, and one behind it, unless there is none.
    fn load(&mut self, found: &mut Problems) {
        while self.block.len() < 2 && self.unread == 0 {
            let Some(mut open) = self.open.take().or_else(|| self.next_shard(found)) else {
                // A shard that cannot be read is passed over; others may follow.
                if self.shards.is_empty() {
                    return;
                }
                continue;
            };
            match self.read(&mut open, found) {
                Ok(true) => self.open = Some(open),
                Ok(false) => self.close(open, found),
                Err(problem) => {
                    self.unread += open.shard.rolled.rows.saturating_sub(open.lines);
                    self.has_gaps = true;
                    let text = format!("it cannot be read ({problem})");
                    found.add(Problem::of(ProblemKind::Shard, &*open.shard.file, text));
                }
            }
        }
    }

    /// Opens the next shard; none if there is none, or if it is not there.
    fn next_shard(&mut self, found: &mut Problems) -> Option<Open> {
        let shard = self.shards.pop_front()?;
        let folder = self.name.trim_end_matches('/');
        match Rows::open(&shard, self.form, folder) {
            Ok(Opened::Rows(rows)) => Some(Open {
                shard,
                rows,
                lines: 0,
                altered: false,
            }),
            Ok(Opened::Bytes) => {
                self.good_shards += 1;
                None
            }
            Ok(Opened::Altered(rows, problem)) => {
                found.add(Problem::of(ProblemKind::Shard, &*shard.file, problem));
                let rows = rows?;
                Some(Open {
                    shard,
                    rows,
                    lines: 0,
                    altered: true,
                })
            }
            Err(problem) => {
                self.unread += shard.rolled.rows;
                self.has_gaps = true;
                found.add(Problem::of(ProblemKind::Shard, &*shard.file, problem));
                None
            }
        }
    }

    /// Reads and checks the next lines of a shard; false at its end.
    fn read(&mut self, open: &mut Open, found: &mut Problems) -> Result<bool, String> {
        let Some(checked) = open.rows.read(&*self.check)? else {
            return Ok(false);
        };
        for Checked { key, problem } in checked {
            open.lines += 1;
            match problem {
                None => self.good_lines += 1,
                Some(problem) => {
                    let mut problem =
                        Problem::of(ProblemKind::Line, &*open.shard.file, problem).at(open.lines);
                    if let Some(key) = &key {
                        problem = problem.row(key.row());
                    }
                    found.add(problem);
                }
            }
            self.block.push_back(Line {
                file: open.shard.file.clone(),
                number: open.lines,
                key,
            });
        }
        Ok(true)
    }

    /// Looks at the end of a shard whether it is what the metadata says.
    fn close(&mut self, open: Open, found: &mut Problems) {
        let Open {
            shard,
            rows,
            lines,
            altered,
        } = open;
        let said = &shard.rolled.rows;
        let problem = rows.problem(&shard.rolled);
        let problem = match (problem, lines == *said) {
            (None, true) => {
                self.good_shards += u64::from(!altered);
                return;
            }
            (Some(problem), true) => problem,
            (problem, false) => {
                let lines = format!("{} instead of {}", counted(lines, "line"), thousands(*said));
                problem.map_or(lines.clone(), |problem| format!("{problem}; {lines}"))
            }
        };
        found.add(Problem::of(ProblemKind::Shard, &*shard.file, problem));
    }
}
