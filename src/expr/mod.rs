//! What the chain says: templates, conditions, jq programs, models. Compiled once, evaluated per row.

pub mod jq;
pub mod model;
pub mod template;
pub mod when;

use std::ops::Range;
use std::sync::Arc;

use crate::row::{Named, Record, RowId};

/// The index of a node id, alias or `<id>_reasoning` in a plan's table of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameIx(pub(crate) usize);

/// The names a node can read, in chain order, each with its place in [`Scope::names`].
pub type Visible = Arc<[(String, NameIx)]>;

/// The chain's `vars`, converted once.
#[derive(Clone, Debug, Default)]
pub struct Vars {
    /// As JSON.
    pub json: serde_json::Map<String, serde_json::Value>,
    /// As a jq value.
    pub val: jaq_json::Val,
}

/// What expressions read for one row at one node.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The row's id.
    pub row_id: &'a RowId,
    /// The current item.
    pub item: &'a Record,
    /// The input row.
    pub chain_input: &'a Record,
    /// The chain's variables.
    pub vars: &'a Vars,
    /// Every name of the plan, by [`NameIx`].
    pub names: &'a [Named],
}

/// Why an expression does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExprError {
    /// The cause, one lowercase sentence.
    pub message: String,
    /// Byte range within the expression's source, where known.
    pub span: Option<Range<usize>>,
}
