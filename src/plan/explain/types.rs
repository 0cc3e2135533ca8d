//! JSON Schemas as short types for people: `{label: positive | negative, score: number?}`.

use serde_json::Value;

/// Nested objects are written out to this depth.
const MAX_DEPTH: usize = 3;
/// Fields or alternatives shown of one object or enum.
const MAX_ITEMS: usize = 12;

/// The type of what a schema describes; `any` where it says nothing.
pub(super) fn type_of(schema: &Value) -> String {
    write(schema, schema, 0)
}

fn write(root: &Value, schema: &Value, depth: usize) -> String {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = match reference.strip_prefix('#') {
            Some("") => Some(root),
            Some(pointer) => root.pointer(pointer),
            None => None,
        };
        let name = reference
            .rsplit('/')
            .next()
            .unwrap_or(reference)
            .trim_start_matches('#');
        return match target {
            // The root's own fields are what is asked for; elsewhere a name says enough.
            Some(target) if depth == 0 => write(root, target, depth + 1),
            _ if name.is_empty() => "{…}".to_owned(),
            _ => name.to_owned(),
        };
    }
    if let Some(value) = schema.get("const") {
        return literal(value);
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return join(values.iter().map(literal), values.len(), " | ");
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema.get(key).and_then(Value::as_array) {
            let types = choices.iter().map(|choice| write(root, choice, depth + 1));
            return join(types, choices.len(), " | ");
        }
    }
    match schema.get("type") {
        Some(Value::Array(types)) => {
            let types_of = types.iter().map(|one| one.as_str().unwrap_or("any").to_owned());
            join(types_of, types.len(), " | ")
        }
        Some(Value::String(name)) if name == "array" => match schema.get("items") {
            Some(items) => format!("[{}]", write(root, items, depth + 1)),
            None => "[any]".to_owned(),
        },
        Some(Value::String(name)) if name != "object" => name.clone(),
        _ if schema.get("properties").is_some() => object(root, schema, depth),
        Some(_) => "object".to_owned(),
        None => "any".to_owned(),
    }
}

fn object(root: &Value, schema: &Value, depth: usize) -> String {
    let fields = schema.get("properties").and_then(Value::as_object);
    let required = schema.get("required").and_then(Value::as_array);
    if depth > MAX_DEPTH {
        return "{…}".to_owned();
    }
    let fields: Vec<String> = fields
        .into_iter()
        .flatten()
        .map(|(name, field)| {
            let optional = !required.is_some_and(|all| all.iter().any(|one| one == name.as_str()));
            let mark = if optional { "?" } else { "" };
            format!("{name}: {}{mark}", write(root, field, depth + 1))
        })
        .collect();
    let len = fields.len();
    format!("{{{}}}", join(fields.into_iter(), len, ", "))
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn join(items: impl Iterator<Item = String>, len: usize, between: &str) -> String {
    let mut shown: Vec<String> = items.take(MAX_ITEMS).collect();
    if len > MAX_ITEMS {
        shown.push(format!("… {} more", len - MAX_ITEMS));
    }
    shown.join(between)
}
