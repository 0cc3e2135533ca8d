//! Looking into a self-contained JSON Schema.

use serde_json::Value;

/// The types of the shorthand.
pub const TYPES: [&str; 6] = ["string", "integer", "number", "boolean", "object", "any"];

/// What a path finds in a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The schema declares it.
    Declared,
    /// The schema allows it without declaring it.
    Possible,
    /// No valid record has it.
    Missing {
        /// How many names of the path exist.
        depth: usize,
        /// What the last existing one has instead.
        fields: Vec<String>,
    },
}

/// Follows `$ref`s within the document.
pub(super) fn resolve<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
    let mut schema = schema;
    // A chain of references longer than this goes in circles.
    for _ in 0..32 {
        match schema.get("$ref").and_then(Value::as_str) {
            None => return Some(schema),
            Some("#") => return Some(root),
            Some(reference) => schema = root.pointer(reference.strip_prefix('#')?)?,
        }
    }
    None
}

/// The declared fields of the root.
pub fn top_fields(schema: &Value) -> Vec<&str> {
    resolve(schema, schema)
        .and_then(|s| s.get("properties"))
        .and_then(Value::as_object)
        .map(|p| p.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

/// Follows field names from the root.
pub fn lookup(root: &Value, path: &[&str]) -> Lookup {
    let mut schema = root;
    for (depth, name) in path.iter().enumerate() {
        let Some(here) = resolve(root, schema) else {
            return Lookup::Possible;
        };
        if let Some(next) = here.get("properties").and_then(|p| p.get(name)) {
            schema = next;
            continue;
        }
        let composed = [
            "allOf",
            "anyOf",
            "oneOf",
            "if",
            "patternProperties",
            "$dynamicRef",
            "dependentSchemas",
        ];
        if composed.iter().any(|key| here.get(key).is_some()) {
            return Lookup::Possible;
        }
        let scalar = here
            .get("type")
            .and_then(Value::as_str)
            .is_some_and(|t| matches!(t, "string" | "integer" | "number" | "boolean" | "null"));
        if scalar || here.get("additionalProperties") == Some(&Value::Bool(false)) {
            let fields = here
                .get("properties")
                .and_then(Value::as_object)
                .map(|p| p.keys().cloned().collect())
                .unwrap_or_default();
            return Lookup::Missing { depth, fields };
        }
        return Lookup::Possible;
    }
    Lookup::Declared
}

/// Checks that only objects can match the root.
pub(super) fn check_root(root: &Value) -> Result<(), String> {
    if is_object(root, root, 0) {
        return Ok(());
    }
    let mut schema = root;
    for _ in 0..32 {
        let Some(reference) = schema.get("$ref").and_then(Value::as_str) else {
            return Err("the root of a model must be an object".to_owned());
        };
        let target = match reference {
            "#" => Some(root),
            other => other.strip_prefix('#').and_then(|pointer| root.pointer(pointer)),
        };
        match target {
            Some(next) => schema = next,
            None => return Err(format!("`$ref: {reference}` points to nothing")),
        }
    }
    Err("its `$ref`s go in a circle and never come to a schema".to_owned())
}

fn is_object(root: &Value, schema: &Value, depth: usize) -> bool {
    let Some(here) = resolve(root, schema) else {
        return false;
    };
    if depth > 16 {
        return false;
    }
    match here.get("type") {
        Some(Value::String(t)) => return t == "object",
        Some(Value::Array(types)) => return types.iter().all(|t| t == "object") && !types.is_empty(),
        _ => {}
    }
    let all = |key: &str| {
        here.get(key)
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty() && list.iter().all(|s| is_object(root, s, depth + 1)))
    };
    let some = |key: &str| {
        here.get(key)
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|s| is_object(root, s, depth + 1)))
    };
    all("anyOf") || all("oneOf") || some("allOf") || here.get("properties").is_some_and(Value::is_object)
}
