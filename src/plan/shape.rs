//! What is known about a record before any row exists.

use serde_json::Value;

use crate::expr::model::{Lookup, lookup, top_fields};

/// The schemas that a record may have; unknown when anything is possible.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape(Option<Vec<Value>>);

impl Shape {
    /// Anything.
    pub(super) fn unknown() -> Self {
        Self(None)
    }

    /// Nothing yet.
    pub(super) fn none() -> Self {
        Self(Some(Vec::new()))
    }

    /// Records of one schema, or anything.
    pub(super) fn of(schema: Option<&Value>) -> Self {
        Self(schema.map(|s| vec![s.clone()]))
    }

    /// Either of the two.
    pub(super) fn or(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(mut mine), Some(theirs)) => {
                for schema in theirs {
                    if !mine.contains(&schema) {
                        mine.push(schema);
                    }
                }
                Self(Some(mine))
            }
            _ => Self(None),
        }
    }

    /// The schema, when there is exactly one.
    pub(super) fn single(&self) -> Option<&Value> {
        match self.0.as_deref() {
            Some([one]) => Some(one),
            _ => None,
        }
    }

    /// What a path finds: missing only when every schema says so.
    pub(super) fn lookup(&self, path: &[&str]) -> Lookup {
        let mut missing: Option<Lookup> = None;
        for schema in self.0.iter().flatten() {
            match lookup(schema, path) {
                found @ Lookup::Missing { .. } => missing = Some(missing.unwrap_or(found)),
                found => return found,
            }
        }
        missing.unwrap_or(Lookup::Possible)
    }

    /// Every declared top-level field.
    pub(super) fn fields(&self) -> Vec<String> {
        let mut all = Vec::new();
        for schema in self.0.iter().flatten() {
            for field in top_fields(schema) {
                if !all.iter().any(|f| f == field) {
                    all.push(field.to_owned());
                }
            }
        }
        all
    }
}
