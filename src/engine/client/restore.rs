//! The way back from the strict subset: which nulls of a reply stand for absent fields.

use std::collections::HashMap;

use crate::row::{raw_fields, skip_value};

/// The place of a node in [`Undo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UndoIx(usize);

/// How to undo one schema's rewriting on a value.
#[derive(Clone, Debug)]
pub(super) enum UndoNode {
    /// Nothing to undo.
    Keep,
    /// What another node says (a `$ref`).
    Same(UndoIx),
    /// An object's fields.
    Object(HashMap<String, Field>),
    /// Every item.
    Array(UndoIx),
    /// The alternative that the value is one of.
    Any(Vec<UndoIx>),
}

/// One property.
#[derive(Clone, Debug)]
pub(super) struct Field {
    /// It is optional and may not be null: a null means that it is absent.
    pub(super) drop_null: bool,
    /// The values it may take, as JSON text, when they are listed.
    pub(super) values: Option<Vec<String>>,
    /// How to undo its value.
    pub(super) undo: UndoIx,
}

/// The undo nodes of a schema; `$ref`s make it a graph.
#[derive(Clone, Debug)]
pub(super) struct Undo {
    nodes: Vec<UndoNode>,
    /// The root; none when no reply ever changes.
    root: Option<UndoIx>,
}

impl Default for Undo {
    fn default() -> Self {
        Self {
            nodes: vec![UndoNode::Keep],
            root: None,
        }
    }
}

impl Undo {
    /// The node that keeps everything.
    pub(super) const NOTHING: UndoIx = UndoIx(0);

    pub(super) fn push(&mut self, node: UndoNode) -> UndoIx {
        self.nodes.push(node);
        UndoIx(self.nodes.len() - 1)
    }

    /// A node that is filled later: a definition may contain itself.
    pub(super) fn reserve(&mut self) -> UndoIx {
        self.push(UndoNode::Keep)
    }

    pub(super) fn fill(&mut self, at: UndoIx, node: UndoNode) {
        if let Some(slot) = self.nodes.get_mut(at.0) {
            *slot = node;
        }
    }

    pub(super) fn finish(&mut self, root: UndoIx) {
        let changes = self
            .nodes
            .iter()
            .any(|node| matches!(node, UndoNode::Object(fields) if fields.values().any(|f| f.drop_null)));
        self.root = changes.then_some(root);
    }

    /// Undoes on a value given as compact JSON text.
    pub(super) fn apply(&self, value: &str) -> String {
        let Some(root) = self.root else {
            return value.to_owned();
        };
        let mut out = String::with_capacity(value.len());
        self.write(root, value, &mut out, 0);
        out
    }

    fn write(&self, at: UndoIx, value: &str, out: &mut String, depth: usize) {
        // Deeper than any record may be: the reply is refused later anyway.
        if depth > 256 {
            return out.push_str(value);
        }
        match self.nodes.get(at.0) {
            Some(UndoNode::Same(other)) => self.write(*other, value, out, depth + 1),
            Some(UndoNode::Object(fields)) if value.starts_with('{') => {
                out.push('{');
                let mut first = true;
                for (key, value) in raw_fields(value) {
                    let field = fields.get(name(key).as_ref());
                    if value == "null" && field.is_some_and(|field| field.drop_null) {
                        continue;
                    }
                    if !first {
                        out.push(',');
                    }
                    first = false;
                    out.push_str(key);
                    out.push(':');
                    match field {
                        Some(field) => self.write(field.undo, value, out, depth + 1),
                        None => out.push_str(value),
                    }
                }
                out.push('}');
            }
            Some(UndoNode::Array(item)) if value.starts_with('[') => {
                out.push('[');
                for (i, value) in items(value).enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    self.write(*item, value, out, depth + 1);
                }
                out.push(']');
            }
            Some(UndoNode::Any(parts)) => match self.choose(parts, value, depth) {
                Some(part) => self.write(part, value, out, depth + 1),
                None => out.push_str(value),
            },
            _ => out.push_str(value),
        }
    }

    /// The alternative a value was made by: the best fit in kind, field names and listed values.
    fn choose(&self, parts: &[UndoIx], value: &str, depth: usize) -> Option<UndoIx> {
        let mut best: Option<(usize, UndoIx)> = None;
        for part in parts {
            let score = self.fit(*part, value, depth + 1);
            if score > 0 && best.is_none_or(|(top, _)| score > top) {
                best = Some((score, *part));
            }
        }
        best.map(|(_, part)| part)
    }

    /// How well a node fits a value; 0: not at all.
    fn fit(&self, at: UndoIx, value: &str, depth: usize) -> usize {
        if depth > 256 {
            return 0;
        }
        match self.nodes.get(at.0) {
            Some(UndoNode::Same(other)) => self.fit(*other, value, depth + 1),
            Some(UndoNode::Any(parts)) => parts
                .iter()
                .map(|part| self.fit(*part, value, depth + 1))
                .max()
                .unwrap_or(0),
            Some(UndoNode::Object(fields)) if value.starts_with('{') => {
                let mut known = 0;
                let mut count = 0;
                let mut told = 0;
                for (key, value) in raw_fields(value) {
                    count += 1;
                    let Some(field) = fields.get(name(key).as_ref()) else {
                        continue;
                    };
                    known += 1;
                    let null = value == "null" && field.drop_null;
                    if let Some(values) = field.values.as_ref().filter(|_| !null) {
                        if !values.iter().any(|listed| same_text(listed, value)) {
                            return 1;
                        }
                        told += 1;
                    }
                }
                // Strict replies carry exactly an alternative's fields; others are a poorer fit.
                let exact = usize::from(known == count && known == fields.len());
                2 + told + known + exact * 1_000_000
            }
            Some(UndoNode::Array(item)) if value.starts_with('[') => {
                2 + items(value)
                    .next()
                    .map_or(0, |first| self.fit(*item, first, depth + 1))
            }
            _ => 0,
        }
    }
}

/// A key without its quotes and escapes.
fn name(raw: &str) -> std::borrow::Cow<'_, str> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if !inner.contains('\\') {
        return inner.into();
    }
    serde_json::from_str::<String>(raw).map_or_else(|_| inner.into(), Into::into)
}

/// True when two JSON scalars are one value, however a string is escaped.
fn same_text(a: &str, b: &str) -> bool {
    a == b || (a.starts_with('"') && b.starts_with('"') && name(a) == name(b))
}

/// The items of a valid compact JSON array.
fn items(array: &str) -> impl Iterator<Item = &str> {
    let mut rest = array.strip_prefix('[').unwrap_or_default();
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([',', ' ', '\t', '\n', '\r']);
        if rest.is_empty() || rest.starts_with(']') {
            return None;
        }
        let (value, tail) = rest.split_at_checked(skip_value(rest))?;
        rest = tail;
        (!value.is_empty()).then_some(value)
    })
}
