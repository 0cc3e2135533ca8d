//! What is known about a record before any row exists.

use serde_json::Value;

use crate::expr::model::{Lookup, lookup, top_fields};

/// The schemas that a record may have; unknown when anything is possible.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    schemas: Option<Vec<Value>>,
    /// Some of it was read off a jq program: good for names, but no promise about the types of values.
    inferred: bool,
}

impl Shape {
    /// Anything.
    pub(super) fn unknown() -> Self {
        Self::of(None)
    }

    /// Nothing yet.
    pub(super) fn none() -> Self {
        Self {
            schemas: Some(Vec::new()),
            inferred: false,
        }
    }

    /// Records of one schema, or anything.
    pub(super) fn of(schema: Option<&Value>) -> Self {
        Self {
            schemas: schema.map(|s| vec![s.clone()]),
            inferred: false,
        }
    }

    /// What a program leaves, as far as it can be told from its text.
    pub(super) fn inferred(schema: Option<&Value>) -> Self {
        Self {
            inferred: schema.is_some(),
            ..Self::of(schema)
        }
    }

    /// Either of the two.
    pub(super) fn or(self, other: Self) -> Self {
        let (Some(mut mine), Some(theirs)) = (self.schemas, other.schemas) else {
            return Self::unknown();
        };
        for schema in theirs {
            if !mine.contains(&schema) {
                mine.push(schema);
            }
        }
        Self {
            schemas: Some(mine),
            inferred: self.inferred || other.inferred,
        }
    }

    /// The schema, when there is exactly one.
    pub(super) fn single(&self) -> Option<&Value> {
        match self.schemas.as_deref() {
            Some([one]) => Some(one),
            _ => None,
        }
    }

    /// The same, when a model says so.
    pub(super) fn declared(&self) -> Option<&Value> {
        self.single().filter(|_| !self.inferred)
    }

    /// What a path finds: missing only when every schema says so.
    pub(super) fn lookup(&self, path: &[&str]) -> Lookup {
        let mut missing: Option<Lookup> = None;
        for schema in self.schemas.iter().flatten() {
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
        for schema in self.schemas.iter().flatten() {
            for field in top_fields(schema) {
                if !all.iter().any(|f| f == field) {
                    all.push(field.to_owned());
                }
            }
        }
        all
    }
}
