//! What a walk over a template finds, and the source with a filter wherever a null must be refused.

use std::ops::Range;

use super::{Read, env};

/// The result of the walk.
#[derive(Debug)]
pub(super) struct Analysis {
    /// What is read, in source order.
    pub(super) reads: Vec<Read>,
    /// The names that a row's values are looked up for.
    pub(super) names: Vec<String>,
    /// Expressions that must not be null.
    pub(super) marks: Vec<Mark>,
}

/// An expression that a filter looks at.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) at: Range<usize>,
    /// What it is ordered against, by `<` and its like.
    pub(super) against: Option<Range<usize>>,
}

impl Mark {
    /// Not null.
    pub(super) fn new(at: Range<usize>) -> Self {
        Self { at, against: None }
    }

    /// The filter, with what it needs.
    fn filter(&self, source: &str) -> String {
        let text = |range: &Range<usize>| source.get(range.clone()).unwrap_or_default();
        match &self.against {
            None => env::NOT_NULL.to_owned(),
            Some(other) => format!("{}({}, {:?})", env::ORDERED, text(other), text(&self.at)),
        }
    }
}

impl Analysis {
    /// The source with every mark written as a filter.
    pub(super) fn rewritten(&self, source: &str) -> String {
        // At one place: first what ends here, the inner before the outer, then what begins, the
        // outer before the inner (the walk meets the outer first).
        let mut edits: Vec<(usize, bool, isize)> = Vec::new();
        for (order, mark) in (0_isize..).zip(&self.marks) {
            edits.push((mark.at.start, true, order));
            edits.push((mark.at.end, false, -order));
        }
        edits.sort_unstable();
        let mut out = String::with_capacity(source.len() + edits.len() * 12);
        let mut from = 0;
        for (at, opens, order) in edits {
            out.push_str(source.get(from..at).unwrap_or_default());
            from = at;
            if opens {
                out.push_str("((");
            } else if let Some(mark) = self.marks.get(order.unsigned_abs()) {
                out.push_str(")|");
                out.push_str(&mark.filter(source));
                out.push(')');
            }
        }
        out.push_str(source.get(from..).unwrap_or_default());
        out
    }
}
