//! What a jq program leaves, where its text tells: types for the tree, and fields that cannot be there.

use jaq_core::load::Parser;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Term};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use serde_json::{Map, Value, json};

use super::size;

/// The most schema nodes that are built for one program: a schema doubles with each `{a: ., b: .}`.
const MAX_NODES: usize = 10_000;

/// The deepest schema that is built.
const MAX_DEPTH: usize = 100;

/// The JSON Schema of a program's outputs, given that of the current item; none where it is not known.
pub(crate) fn infer(source: &str, item: Option<&Value>) -> Option<Value> {
    size::with_room(source, || read(source, item)).ok()?
}

fn read(source: &str, item: Option<&Value>) -> Option<Value> {
    let tokens = size::lex(source).ok()?.ok()?;
    let term = Parser::new(&tokens).parse(|p| p.term()).ok()?;
    // A part of it would take its references along, and they would point to another root.
    let item =
        item.filter(|schema| measure(schema, 0).is_some_and(|nodes| nodes < MAX_NODES) && !refers(schema));
    let mut inference = Inference { left: MAX_NODES };
    let schema = inference.type_of(&term, item)?;
    // What may be no object becomes a record of another shape.
    let is_known = inference.left > 0 && is_a(&schema, "object") && schema.get("properties").is_some();
    is_known.then_some(schema)
}

/// The nodes of a schema; none when it is too deep.
fn measure(schema: &Value, depth: usize) -> Option<usize> {
    match schema {
        _ if depth > MAX_DEPTH => None,
        Value::Object(fields) => sum(fields.values(), depth + 1),
        Value::Array(values) => sum(values.iter(), depth + 1),
        _ => Some(1),
    }
}

/// The nodes of schemas, and one for what holds them.
fn sum<'s>(mut schemas: impl Iterator<Item = &'s Value>, depth: usize) -> Option<usize> {
    schemas.try_fold(1, |sum, schema| Some(sum + measure(schema, depth)?))
}

/// True when a schema has exactly this type, null excluded.
fn is_a(schema: &Value, kind: &str) -> bool {
    schema.get("type").and_then(Value::as_str) == Some(kind)
}

/// True for a property that must be there.
fn is_required(schema: &Value, name: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|names| names.iter().any(|known| known == name))
}

/// The schema of a field that is always there; null stands for one that is not.
fn property<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    let known = is_a(schema, "object") && is_required(schema, name);
    schema.get("properties")?.get(name).filter(|_| known)
}

/// One walk over a program.
struct Inference {
    /// The schema nodes that may still be built; 0 when there were too many.
    left: usize,
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            fields.keys().any(|key| key == "$ref" || key == "$dynamicRef") || fields.values().any(refers)
        }
        Value::Array(values) => values.iter().any(refers),
        _ => false,
    }
}

impl Inference {
    /// The schema of a term's outputs: every one of them matches it.
    fn type_of(&mut self, term: &Term<&str>, item: Option<&Value>) -> Option<Value> {
        if self.left == 0 {
            return None;
        }
        let found = self.known(term, item)?;
        self.left = measure(&found, 0).map_or(0, |nodes| self.left.saturating_sub(nodes));
        (self.left > 0).then_some(found)
    }

    fn known(&mut self, term: &Term<&str>, item: Option<&Value>) -> Option<Value> {
        match term {
            Term::Id => item.cloned(),
            Term::Num(_) => Some(json!({"type": "number"})),
            Term::Str(..) => Some(json!({"type": "string"})),
            Term::Arr(inner) => Some(match inner.as_ref().and_then(|inner| self.type_of(inner, item)) {
                Some(items) => json!({"type": "array", "items": items}),
                None => json!({"type": "array"}),
            }),
            Term::Obj(fields) => self.object(fields, item),
            Term::BinOp(left, BinaryOp::Pipe(None), right) => {
                let left = self.type_of(left, item);
                self.type_of(right, left.as_ref())
            }
            Term::BinOp(left, BinaryOp::Math(Math::Add), right) => {
                let (left, right) = (self.type_of(left, item)?, self.type_of(right, item)?);
                merged(&left, &right)
            }
            Term::BinOp(_, BinaryOp::Cmp(_) | BinaryOp::And | BinaryOp::Or, _) => {
                Some(json!({"type": "boolean"}))
            }
            Term::Call(name, args) => match (*name, args.len()) {
                ("select", 1) => item.cloned(),
                ("length" | "tonumber" | "floor" | "round" | "ceil", 0) => Some(json!({"type": "number"})),
                ("tostring" | "tojson" | "ascii_downcase" | "ascii_upcase", 0) | ("join", 1) => {
                    Some(json!({"type": "string"}))
                }
                ("true" | "false" | "not", 0) | ("test" | "has" | "startswith" | "endswith", 1) => {
                    Some(json!({"type": "boolean"}))
                }
                _ => None,
            },
            Term::Path(head, Path(parts)) => {
                let mut schema = self.type_of(head, item)?;
                for (part, _) in parts {
                    schema = match part {
                        Part::Index(Term::Str(None, name)) => {
                            let [StrPart::Str(name)] = name.as_slice() else {
                                return None;
                            };
                            property(&schema, name)?.clone()
                        }
                        Part::Range(None, None)
                            if is_a(&schema, "array") && schema.get("prefixItems").is_none() =>
                        {
                            schema.get("items")?.clone()
                        }
                        _ => return None,
                    };
                }
                Some(schema)
            }
            _ => None,
        }
    }

    /// `{a: 1, b}`; a value of which nothing is known is `any`.
    fn object(&mut self, fields: &[(Term<&str>, Option<Term<&str>>)], item: Option<&Value>) -> Option<Value> {
        let mut properties = Map::new();
        for (key, value) in fields {
            let Term::Str(None, parts) = key else { return None };
            let [StrPart::Str(name)] = parts.as_slice() else {
                return None;
            };
            let field = match value {
                Some(value) => self.type_of(value, item),
                None => item.and_then(|item| property(item, name).cloned()),
            };
            properties.insert((*name).to_owned(), field.unwrap_or_else(|| json!({})));
        }
        let required: Vec<&String> = properties.keys().collect();
        Some(json!({
            "type": "object", "required": required, "properties": properties, "additionalProperties": false,
        }))
    }
}

/// True when an object has no fields but its properties.
fn is_closed(schema: &Value) -> bool {
    let plain = [
        "type",
        "required",
        "properties",
        "additionalProperties",
        "title",
        "description",
    ];
    let is_plain = schema
        .as_object()
        .is_some_and(|fields| fields.keys().all(|key| plain.contains(&key.as_str())));
    is_plain && schema.get("additionalProperties") == Some(&Value::Bool(false))
}

/// `left + right` of two objects, of two numbers, of two texts.
fn merged(left: &Value, right: &Value) -> Option<Value> {
    let kind = |schema: &Value| schema.get("type").and_then(Value::as_str).map(str::to_owned);
    if kind(left)? != kind(right)? {
        return None;
    }
    let (Some(mine), Some(theirs)) = (left.get("properties"), right.get("properties")) else {
        // Two values of an `enum` make one that it does not list.
        return Some(json!({"type": kind(left)?}));
    };
    let (mine, theirs) = (mine.as_object()?, theirs.as_object()?);
    let mut properties = mine.clone();
    if !is_closed(right) {
        // What the right side does not declare it may have all the same.
        properties.values_mut().for_each(|value| *value = json!({}));
    }
    for (name, value) in theirs {
        // A field that is not always there leaves the left side's, when that has one.
        let sure = is_required(right, name) || (!mine.contains_key(name) && is_closed(left));
        properties.insert(name.clone(), if sure { value.clone() } else { json!({}) });
    }
    let mut required: Vec<Value> = Vec::new();
    for side in [left, right] {
        for name in side
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            if !required.contains(name) {
                required.push(name.clone());
            }
        }
    }
    let mut sum = json!({"type": "object", "required": required, "properties": properties});
    if let (Value::Object(sum), true) = (&mut sum, is_closed(left) && is_closed(right)) {
        sum.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    Some(sum)
}
