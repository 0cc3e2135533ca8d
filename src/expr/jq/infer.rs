//! What a jq program leaves, where its text tells: types for the tree, and fields that cannot be there.

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Term};
use jaq_core::load::{Lexer, Parser};
use jaq_core::ops::Math;
use jaq_core::path::{Part, Path};
use serde_json::{Map, Value, json};

/// The JSON Schema of a program's outputs, given that of the current item; none where it is not known.
pub(crate) fn infer(source: &str, item: Option<&Value>) -> Option<Value> {
    let tokens = Lexer::new(source).lex().ok()?;
    let term = Parser::new(&tokens).parse(|p| p.term()).ok()?;
    // A part of it would take its references along, and they would point to another root.
    let item = item.filter(|schema| !refers(schema));
    let schema = type_of(&term, item)?;
    schema.get("properties").is_some().then_some(schema)
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

/// The schema of a term's outputs: every one of them matches it, or is null where an optional field was read.
fn type_of(term: &Term<&str>, item: Option<&Value>) -> Option<Value> {
    match term {
        Term::Id => item.cloned(),
        Term::Num(_) => Some(json!({"type": "number"})),
        Term::Str(..) => Some(json!({"type": "string"})),
        Term::Arr(inner) => Some(match inner.as_ref().and_then(|inner| type_of(inner, item)) {
            Some(items) => json!({"type": "array", "items": items}),
            None => json!({"type": "array"}),
        }),
        Term::Obj(fields) => object(fields, item),
        Term::BinOp(left, BinaryOp::Pipe(None), right) => {
            let left = type_of(left, item);
            type_of(right, left.as_ref())
        }
        Term::BinOp(left, BinaryOp::Math(Math::Add), right) => {
            merged(type_of(left, item)?, type_of(right, item)?)
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
            let mut schema = type_of(head, item)?;
            for (part, _) in parts {
                schema = match part {
                    Part::Index(Term::Str(None, name)) => {
                        let [StrPart::Str(name)] = name.as_slice() else {
                            return None;
                        };
                        schema.get("properties")?.get(*name)?.clone()
                    }
                    Part::Range(None, None) => schema.get("items")?.clone(),
                    _ => return None,
                };
            }
            Some(schema)
        }
        _ => None,
    }
}

/// `{a: 1, b}`; a value of which nothing is known is `any`.
fn object(fields: &[(Term<&str>, Option<Term<&str>>)], item: Option<&Value>) -> Option<Value> {
    let mut properties = Map::new();
    for (key, value) in fields {
        let Term::Str(None, parts) = key else { return None };
        let [StrPart::Str(name)] = parts.as_slice() else {
            return None;
        };
        let field = match value {
            Some(value) => type_of(value, item),
            None => item.and_then(|item| item.get("properties")?.get(*name).cloned()),
        };
        properties.insert((*name).to_owned(), field.unwrap_or_else(|| json!({})));
    }
    let required: Vec<&String> = properties.keys().collect();
    Some(json!({
        "type": "object", "required": required, "properties": properties, "additionalProperties": false,
    }))
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
fn merged(left: Value, right: Value) -> Option<Value> {
    let kind = |schema: &Value| schema.get("type").and_then(Value::as_str).map(str::to_owned);
    if kind(&left)? != kind(&right)? {
        return None;
    }
    let (Some(mine), Some(theirs)) = (left.get("properties"), right.get("properties")) else {
        return (left == right).then_some(left);
    };
    let mut properties = mine.as_object()?.clone();
    properties.extend(theirs.as_object()?.clone());
    let mut required: Vec<Value> = Vec::new();
    for side in [&left, &right] {
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
    if let (Value::Object(sum), true) = (&mut sum, is_closed(&left) && is_closed(&right)) {
        sum.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    Some(sum)
}
