//! What is known about a record before any row exists.

use serde_json::Value;

use crate::expr::model::{Lookup, lookup, top_fields};

/// The schemas that a record may have; unknown when anything is possible.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape(Option<Vec<Known>>);

/// A schema, and who says that it holds.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    schema: Value,
    /// A model, which outputs are checked against; else only a program's text.
    declared: bool,
}

impl Shape {
    /// Anything.
    pub(super) fn unknown() -> Self {
        Self(None)
    }

    /// Nothing yet.
    pub(super) fn none() -> Self {
        Self(Some(Vec::new()))
    }

    /// Records of a model, or anything.
    pub(super) fn of(schema: Option<&Value>) -> Self {
        Self::known(schema, true)
    }

    /// Records as a program's text describes them, or anything.
    pub(super) fn inferred(schema: Option<&Value>) -> Self {
        Self::known(schema, false)
    }

    fn known(schema: Option<&Value>, declared: bool) -> Self {
        Self(schema.map(|schema| {
            vec![Known {
                schema: schema.clone(),
                declared,
            }]
        }))
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
            Some([one]) => Some(&one.schema),
            _ => None,
        }
    }

    /// The schema, when there is exactly one and a model says it.
    pub(super) fn declared(&self) -> Option<&Value> {
        match self.0.as_deref() {
            Some([one]) if one.declared => Some(&one.schema),
            _ => None,
        }
    }

    fn schemas(&self) -> impl Iterator<Item = &Value> {
        self.0.iter().flatten().map(|known| &known.schema)
    }

    /// What a path finds: missing only when every schema says so.
    pub(super) fn lookup(&self, path: &[&str]) -> Lookup {
        let mut missing: Option<Lookup> = None;
        for schema in self.schemas() {
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
        for schema in self.schemas() {
            for field in top_fields(schema) {
                if !all.iter().any(|f| f == field) {
                    all.push(field.to_owned());
                }
            }
        }
        all
    }
}
