//! Questions about a user's JSON Schema that span several of its parts.

use serde_json::{Map, Value};

use super::schema::Inexpressible;

/// References followed in a row before a schema counts as one that only points at itself.
const MAX_HOPS: usize = 32;

/// The target of a local `$ref` (`#`, `#/$defs/X`).
pub(super) fn resolve<'a>(root: &'a Value, pointer: &str) -> Result<&'a Value, Inexpressible> {
    let path = pointer.strip_prefix('#').ok_or(Inexpressible)?;
    root.pointer(path).ok_or(Inexpressible)
}

/// True when a schema lets null through.
pub(super) fn allows_null(root: &Value, schema: &Value, hops: usize) -> bool {
    let Value::Object(map) = schema else {
        return schema != &Value::Bool(false);
    };
    if hops > MAX_HOPS {
        return false;
    }
    let allows = |part: &Value| allows_null(root, part, hops + 1);
    let by_type = match map.get("type") {
        Some(Value::String(kind)) => kind == "null",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "null"),
        _ => true,
    };
    let by_value = match (map.get("const"), map.get("enum")) {
        (Some(value), _) => value.is_null(),
        (None, Some(Value::Array(values))) => values.contains(&Value::Null),
        _ => true,
    };
    let by_ref = match map.get("$ref").and_then(Value::as_str) {
        Some(pointer) => resolve(root, pointer).is_ok_and(allows),
        None => true,
    };
    let some = |key| match map.get(key) {
        Some(Value::Array(parts)) => parts.iter().any(allows),
        _ => true,
    };
    let all = match map.get("allOf") {
        Some(Value::Array(parts)) => parts.iter().all(allows),
        _ => true,
    };
    by_type && by_value && by_ref && some("anyOf") && some("oneOf") && all
}

/// One schema that says what a schema and its `allOf` parts say together, where that is simple:
/// objects with their properties side by side, and constraints that do not contradict.
pub(super) fn all_of(
    root: &Value,
    map: &Map<String, Value>,
    parts: &Value,
) -> Result<Map<String, Value>, Inexpressible> {
    let mut merged = map.clone();
    merged.shift_remove("allOf");
    for part in parts.as_array().ok_or(Inexpressible)? {
        let part = flat(root, part, 0)?;
        merge(&mut merged, &part)?;
    }
    Ok(merged)
}

/// A part with its own `$ref` and `allOf` taken in.
fn flat(root: &Value, part: &Value, hops: usize) -> Result<Map<String, Value>, Inexpressible> {
    let map = part.as_object().ok_or(Inexpressible)?;
    if hops > MAX_HOPS {
        return Err(Inexpressible);
    }
    let mut own = map.clone();
    let pointer = own.shift_remove("$ref");
    let parts = own.shift_remove("allOf");
    if let Some(pointer) = pointer.as_ref().and_then(Value::as_str) {
        merge(&mut own, &flat(root, resolve(root, pointer)?, hops + 1)?)?;
    }
    for part in parts.as_ref().and_then(Value::as_array).into_iter().flatten() {
        merge(&mut own, &flat(root, part, hops + 1)?)?;
    }
    Ok(own)
}

/// Adds `from` to `into`.
fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) -> Result<(), Inexpressible> {
    for (key, value) in from {
        let Some(old) = into.get_mut(key) else {
            into.insert(key.clone(), value.clone());
            continue;
        };
        if old == value {
            continue;
        }
        match (key.as_str(), old, value) {
            ("properties", Value::Object(old), Value::Object(new)) => {
                for (name, schema) in new {
                    match old.get_mut(name) {
                        None => {
                            old.insert(name.clone(), schema.clone());
                        }
                        Some(had) if had == schema => {}
                        Some(had) => *had = serde_json::json!({"allOf": [had.take(), schema]}),
                    }
                }
            }
            ("required", Value::Array(old), Value::Array(new)) => {
                for name in new {
                    if !old.contains(name) {
                        old.push(name.clone());
                    }
                }
            }
            ("enum", Value::Array(old), Value::Array(new)) => {
                old.retain(|value| new.contains(value));
            }
            ("type", old, new) => {
                let both = both_types(old, new).ok_or(Inexpressible)?;
                *old = both;
            }
            ("minimum" | "exclusiveMinimum" | "minItems" | "minLength", old, new) => {
                if new.as_f64() > old.as_f64() {
                    *old = new.clone();
                }
            }
            ("maximum" | "exclusiveMaximum" | "maxItems" | "maxLength", old, new) => {
                if new.as_f64() < old.as_f64() {
                    *old = new.clone();
                }
            }
            ("additionalProperties", old, Value::Bool(false)) => *old = Value::Bool(false),
            ("additionalProperties", Value::Bool(false), _) => {}
            // The first of two explanations, and of two checks that the wire need not carry.
            ("title" | "description" | "$comment" | "default" | "examples" | "pattern" | "format", ..) => {}
            ("$defs" | "definitions", ..) => {}
            _ => return Err(Inexpressible),
        }
    }
    Ok(())
}

/// The types that two `type` keywords have in common.
fn both_types(a: &Value, b: &Value) -> Option<Value> {
    let list = |value: &Value| -> Vec<String> {
        match value {
            Value::String(kind) => vec![kind.clone()],
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).map(Into::into).collect(),
            _ => Vec::new(),
        }
    };
    let (a, b) = (list(a), list(b));
    let narrows = |kind: &str, other: &[String]| {
        other
            .iter()
            .any(|o| o == kind || (kind == "integer" && o == "number"))
    };
    let mut both: Vec<&String> = a.iter().filter(|kind| narrows(kind, &b)).collect();
    both.extend(b.iter().filter(|kind| !a.contains(kind) && narrows(kind, &a)));
    match both.as_slice() {
        [] => None,
        [kind] => Some(kind.as_str().into()),
        kinds => Some(serde_json::json!(kinds)),
    }
}
