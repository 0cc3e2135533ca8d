//! The JSON Schemas of what a run writes.

use serde_json::{Map, Value, json};

use crate::plan::{Item, Node, Plan};

/// Follows a root `$ref`, so that the fields are at hand.
fn root_of(schema: &Value) -> &Value {
    schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|r| schema.pointer(r.strip_prefix('#')?))
        .unwrap_or(schema)
}

/// The schema of a line in `<node_id>/`: the node's record with its `row_id`.
pub fn record_schema(node: &Node) -> Value {
    let mut properties = Map::new();
    properties.insert("row_id".to_owned(), json!({"type": "string"}));
    let mut required = vec![json!("row_id")];
    let mut out = json!({"type": "object"});
    let clash = format!("{}.row_id", node.id);
    let rename = |name: &str| match name {
        "row_id" => clash.clone(),
        other => other.to_owned(),
    };
    let schema = node.model.as_ref().map(|m| self_contained(&node.id, m.schema()));
    if let Some(schema) = &schema {
        let root = root_of(schema);
        let fields = root.get("properties").and_then(Value::as_object);
        for (name, field) in fields.into_iter().flatten() {
            properties.insert(rename(name), field.clone());
        }
        let names = root.get("required").and_then(Value::as_array);
        required.extend(
            names
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|n| json!(rename(n))),
        );
        if fields.is_some()
            && let Some(more) = root.get("additionalProperties")
        {
            put(&mut out, "additionalProperties", more.clone());
        }
        if let Some(defs) = schema.get("$defs") {
            put(&mut out, "$defs", defs.clone());
        }
    }
    put(&mut out, "properties", Value::Object(properties));
    put(&mut out, "required", Value::Array(required));
    out
}

/// A model whose root can be changed: where its parts refer to the root (or to anything but a definition)
/// the root as it was becomes a definition of its own.
fn self_contained(name: &str, schema: &Value) -> Value {
    let mut out = root_of(schema).clone();
    if let Some(defs) = schema.get("$defs") {
        put(&mut out, "$defs", defs.clone());
    }
    if !refers_to_root(schema) {
        return out;
    }
    let mut columns = Columns::default();
    if let Some(prefix) = columns.keep(name, schema) {
        rebase(&mut out, &prefix);
        put(&mut out, "$defs", Value::Object(columns.defs));
    }
    out
}

/// True when a reference leads to something that is no definition.
fn refers_to_root(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.iter().any(|(key, value)| match value {
            Value::String(reference) if key == "$ref" => !reference.starts_with("#/$defs/"),
            _ if is_data(key) => false,
            _ => refers_to_root(value),
        }),
        Value::Array(items) => items.iter().any(refers_to_root),
        _ => false,
    }
}

/// Keywords whose values are no schemas.
fn is_data(key: &str) -> bool {
    matches!(key, "enum" | "const" | "default" | "examples")
}

fn put(out: &mut Value, key: &str, value: Value) {
    if let Value::Object(map) = out {
        map.insert(key.to_owned(), value);
    }
}

/// What stands before the first dot of the columns of `flattened/`, in their order; a `collect: true`
/// alias is a column of its own.
pub fn flattened_names(plan: &Plan) -> Vec<&str> {
    let mut names = vec!["chain_input"];
    for item in &plan.main.0 {
        match item {
            Item::Node(ix) => names.extend(plan.nodes.get(ix.0).map(|node| node.id.as_str())),
            Item::Group(group) => {
                let branches = group.branches.iter().filter_map(|ix| plan.branches.get(ix.0));
                let joins = branches.filter_map(|branch| plan.names.get(branch.join?.0));
                names.extend(joins.map(String::as_str));
            }
        }
    }
    names
}

/// The schema of a line in `flattened/`: only `row_id` is sure to be there, since a skipped node
/// and a null alias leave their columns out.
pub fn flattened_schema(plan: &Plan) -> Value {
    let mut columns = Columns::default();
    if let Some(model) = &plan.input_model {
        columns.record("chain_input", model.schema());
    }
    for item in &plan.main.0 {
        match item {
            Item::Node(ix) => {
                if let Some(node) = plan.nodes.get(ix.0).filter(|n| n.yield_output)
                    && let Some(model) = &node.model
                {
                    columns.record(&node.id, model.schema());
                }
            }
            Item::Group(group) => {
                for branch in group.branches.iter().filter_map(|ix| plan.branches.get(ix.0)) {
                    let Some(alias) = branch.join.and_then(|j| plan.names.get(j.0)) else {
                        continue;
                    };
                    match &branch.leaves {
                        leaves if branch.collect => columns.list(alias, leaves.as_ref()),
                        Some(schema) => columns.record(alias, schema),
                        None => {}
                    }
                }
            }
        }
    }
    let mut properties = Map::new();
    properties.insert("row_id".to_owned(), json!({"type": "string"}));
    properties.extend(columns.properties);
    let mut out = json!({"type": "object", "properties": properties, "required": ["row_id"]});
    if !columns.defs.is_empty() {
        put(&mut out, "$defs", Value::Object(columns.defs));
    }
    out
}

#[derive(Default)]
struct Columns {
    properties: Map<String, Value>,
    /// Whole models whose fields refer to one another, by name.
    defs: Map<String, Value>,
}

impl Columns {
    fn record(&mut self, name: &str, schema: &Value) {
        let fields = root_of(schema).get("properties").and_then(Value::as_object);
        let prefix = self.keep(name, schema);
        for (field, value) in fields.into_iter().flatten() {
            let mut value = value.clone();
            if let Some(prefix) = &prefix {
                rebase(&mut value, prefix);
            }
            self.properties.insert(format!("{name}.{field}"), value);
        }
    }

    fn list(&mut self, name: &str, schema: Option<&Value>) {
        let items = match schema {
            None => json!({"type": "object"}),
            Some(schema) => match self.keep(name, schema) {
                Some(prefix) => json!({"$ref": prefix}),
                None => schema.clone(),
            },
        };
        self.properties
            .insert(name.to_owned(), json!({"type": "array", "items": items}));
    }

    /// Keeps a model whose parts refer to one another as a whole; gives its place.
    fn keep(&mut self, name: &str, schema: &Value) -> Option<String> {
        if !schema.to_string().contains("\"$ref\"") {
            return None;
        }
        let prefix = format!("#/$defs/{name}");
        let mut whole = schema.clone();
        rebase(&mut whole, &prefix);
        self.defs.insert(name.to_owned(), whole);
        Some(prefix)
    }
}

/// Moves the references of a document to its new place.
fn rebase(schema: &mut Value, prefix: &str) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map.iter_mut() {
                match value {
                    Value::String(reference) if key == "$ref" => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("{prefix}{rest}");
                        }
                    }
                    _ if is_data(key) => {}
                    _ => rebase(value, prefix),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| rebase(v, prefix)),
        _ => {}
    }
}
