//! The JSON Schemas (draft 2020-12) of chain files and engines files, for editors.
//!
//! Made of the loader's own lists of keys and the tables in `keys`, so that the two cannot differ
//! unnoticed. Editors understand drafts unequally well: only keywords that also exist in draft 7 are used.

mod keys;

use serde_json::{Map, Value, json};

use super::names::{JINJA, JINJA_MORE, RESERVED};
use crate::expr::model::{JSON_SCHEMA_KEYS, TYPES};
use crate::spec::accepted;
use keys::{Key, def};

/// A mapping of the chain file: what the loader takes and what the schema describes.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Its definition in the schema.
    pub name: &'static str,
    /// The keys that the loader takes.
    pub accepted: &'static [&'static str],
    /// The keys that have a description.
    pub described: Vec<&'static str>,
}

/// Every mapping of the chain file, for the test that loader and schema agree.
pub fn mappings() -> Vec<Mapping> {
    TABLES
        .iter()
        .map(|(name, accepted, keys)| Mapping {
            name,
            accepted,
            described: described(name, keys),
        })
        .collect()
}

fn described(mapping: &str, own: &[Key]) -> Vec<&'static str> {
    let more = if mapping == "pool" { keys::ENGINE } else { &[] };
    own.iter().chain(more).map(|(key, ..)| *key).collect()
}

/// A mapping's definition, the loader's keys, and what they mean; a pool has the engine's keys besides its own.
type Table = (&'static str, &'static [&'static str], &'static [Key]);

const TABLES: &[Table] = &[
    ("chain", accepted::CHAIN, keys::CHAIN),
    ("step", accepted::STEP, keys::STEP),
    ("apply", accepted::APPLY, keys::APPLY),
    ("apply_kind", accepted::APPLY_KEYS, keys::APPLY_KINDS),
    ("group", accepted::GROUP, keys::GROUP),
    ("branch", accepted::BRANCH, keys::BRANCH),
    ("sampling", accepted::SAMPLING, keys::SAMPLING),
    ("retries", accepted::RETRIES, keys::RETRIES),
    ("timeout", accepted::TIMEOUT, keys::TIMEOUT),
    ("engine", accepted::ENGINE, keys::ENGINE),
    ("pool", accepted::POOL, keys::POOL),
    ("served_model", accepted::MODEL, keys::MODEL),
    ("memory", accepted::MEMORY, keys::MEMORY),
    ("resources", accepted::RESOURCES, keys::RESOURCES),
];

/// The schema of a chain file.
pub fn chain() -> Value {
    let mut root = head("chainette chain", "A chain: what every input row goes through.");
    root.extend(object(properties("chain", accepted::CHAIN), &["steps"]));
    root.insert("$defs".to_owned(), definitions());
    Value::Object(root)
}

/// The schema of an engines file (`--engines FILE`).
pub fn engines_file() -> Value {
    let mut root = head("chainette engines", "Engines that chains can share.");
    root.extend(object(properties("chain", accepted::ENGINES_FILE), &[]));
    root.insert(
        "anyOf".to_owned(),
        json!([{"required": ["engines"]}, {"required": ["pools"]}]),
    );
    root.insert("$defs".to_owned(), definitions());
    Value::Object(root)
}

fn head(title: &str, description: &str) -> Map<String, Value> {
    let mut root = Map::new();
    for (key, value) in [
        ("$schema", "https://json-schema.org/draft/2020-12/schema"),
        ("title", title),
        ("description", description),
    ] {
        root.insert(key.to_owned(), value.into());
    }
    root
}

/// An object schema with these keys and no others.
fn object(properties: Map<String, Value>, required: &[&str]) -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("additionalProperties".to_owned(), json!(false));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    schema.insert("properties".to_owned(), properties.into());
    schema
}

/// The properties of a mapping, in the loader's order.
fn properties(mapping: &str, accepted: &[&str]) -> Map<String, Value> {
    let table = TABLES.iter().find(|(name, ..)| *name == mapping);
    let keys = table.map_or(&[][..], |(.., keys)| keys);
    // A pool is an engine with a name.
    let more = if mapping == "pool" { keys::ENGINE } else { &[] };
    let property = |name: &&str| {
        let found = keys.iter().chain(more).find(|(key, ..)| key == name);
        let schema = found.map_or_else(
            || json!({}),
            |(_, about, value)| {
                let mut schema = value();
                if let Value::Object(fields) = &mut schema {
                    fields.insert("description".to_owned(), describe(mapping, name, about).into());
                }
                schema
            },
        );
        ((*name).to_owned(), schema)
    };
    accepted.iter().map(property).collect()
}

/// What a key means, and whether this version acts on it.
fn describe(mapping: &str, key: &str, about: &str) -> String {
    let engine = matches!(mapping, "engine" | "pool");
    let served = !engine || !accepted::ENGINE_UNSERVED.contains(&key);
    if served {
        about.to_owned()
    } else {
        format!("{about} (Not supported in this version.)")
    }
}

fn definitions() -> Value {
    let mut defs = Map::new();
    let required: [(&str, &[&str]); 12] = [
        ("step", &["id", "engine"]),
        ("apply", &["id", "apply"]),
        ("apply_kind", &[]),
        ("group", &["parallel"]),
        ("branch", &["branch", "steps"]),
        ("retries", &[]),
        ("timeout", &[]),
        ("engine", &["backend", "model"]),
        ("pool", &["id", "model"]),
        ("served_model", &["id"]),
        ("memory", &[]),
        ("resources", &[]),
    ];
    for (name, required) in required {
        let accepted = TABLES.iter().find(|(mapping, ..)| *mapping == name);
        let accepted = accepted.map_or(&[][..], |(_, accepted, _)| accepted);
        defs.insert(
            name.to_owned(),
            object(properties(name, accepted), required).into(),
        );
    }
    let mut extend = |name: &str, more: Value| {
        if let (Some(Value::Object(schema)), Value::Object(more)) = (defs.get_mut(name), more) {
            schema.extend(more);
        }
    };
    extend("step", keys_of_the_task());
    extend("apply_kind", one_of_the_applies());
    extend(
        "branch",
        json!({
            "if": {"required": ["collect"], "properties": {"collect": {"const": true}}},
            "then": {"required": ["join"]},
        }),
    );
    extend("engine", endpoint_needed("backend"));
    extend(
        "pool",
        json!({
            "oneOf": [{"required": ["engine"]}, {"required": ["backend"]}],
            "allOf": [endpoint_needed("engine"), endpoint_needed("backend")],
        }),
    );
    let more = json!({
        "line": {"type": "array", "minItems": 1, "items": def("item")},
        "item": item(),
        "sampling": {
            "type": "object",
            "properties": properties("sampling", accepted::SAMPLING),
            "propertyNames": {"not": {"enum": accepted::SAMPLING_TAKEN}},
        },
        "engines": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[A-Za-z0-9_.-]{1,64}$"},
            "additionalProperties": def("engine"),
        },
        "pools": {"type": ["array", "null"], "items": def("pool")},
        "text": {"type": ["string", "number", "boolean"]},
        "name": name(),
        "duration": {
            "type": "string",
            "pattern": "^\\s*(?=[0-9.]*[1-9])[0-9]*\\.?[0-9]*\\s*(ms|s|min|h)\\s*$",
            "examples": ["500ms", "10s", "5min", "2h"],
        },
        "size": {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {
                    "type": "string",
                    "pattern": "^\\s*(?=[0-9.]*[1-9])[0-9]*\\.?[0-9]*\\s*(B|KiB|MiB|GiB|kB|KB|MB|GB)\\s*$",
                    "examples": ["64KiB", "16MiB", "1GiB"],
                },
            ],
        },
    });
    for more in [more, models()] {
        if let Value::Object(more) = more {
            defs.extend(more);
        }
    }
    defs.into()
}

/// What a Step has depends on its task.
fn keys_of_the_task() -> Value {
    let others = |own: &[&str]| -> Map<String, Value> {
        let foreign = accepted::STEP.iter().filter(|key| !own.contains(key));
        foreign.map(|key| ((*key).to_owned(), json!(false))).collect()
    };
    json!({
        "if": {"required": ["task"], "properties": {"task": {"const": "embed"}}},
        "then": {"required": ["input"], "properties": others(accepted::EMBED)},
        "else": {"required": ["user_prompt"], "properties": others(accepted::GENERATE)},
    })
}

/// `apply` runs exactly one thing.
fn one_of_the_applies() -> Value {
    let kinds = accepted::APPLY_KINDS.iter();
    let alternatives: Vec<Value> = kinds.map(|kind| json!({"required": [kind]})).collect();
    json!({"oneOf": alternatives})
}

/// Servers of these backends are always someone else's; `key` says the backend.
fn endpoint_needed(key: &str) -> Value {
    json!({
        "if": {"required": [key], "properties": {key: {"enum": accepted::ATTACHED}}},
        "then": {"required": ["endpoint"]},
    })
}

/// An item of a line: its key says which kind it is, so that only that kind's problems are told.
fn item() -> Value {
    let kinds = [
        ("engine", "step"),
        ("apply", "apply"),
        ("parallel", "group"),
        ("branch", "branch"),
    ];
    let mut every = Map::new();
    for (_, kind) in kinds {
        if let Some((.., accepted, _)) = TABLES.iter().find(|(name, ..)| *name == kind) {
            every.extend(properties(kind, accepted));
        }
    }
    let mut otherwise = object(every, &[]);
    let any: Vec<Value> = kinds.iter().map(|(key, _)| json!({"required": [key]})).collect();
    otherwise.insert("anyOf".to_owned(), any.into());
    let mut schema = Value::Object(otherwise);
    for (key, kind) in kinds.into_iter().rev() {
        schema = json!({"if": {"required": [key]}, "then": def(kind), "else": schema});
    }
    if let Value::Object(fields) = &mut schema {
        fields.insert("type".to_owned(), json!("object"));
        // Editors offer these for an empty item; what they take is said by the kinds.
        let offered = kinds.map(|(key, kind)| {
            let about = properties(kind, &[key]).remove(key);
            let about = about.and_then(|mut property| property.get_mut("description").map(Value::take));
            (key.to_owned(), json!({"description": about}))
        });
        fields.insert(
            "properties".to_owned(),
            Value::Object(offered.into_iter().collect()),
        );
        fields.insert(
            "description".to_owned(),
            json!(
                "A Step (has `engine`), an Apply (has `apply`), a group (`parallel`) or a branch (`branch`)."
            ),
        );
    }
    schema
}

/// A node id, branch id or alias.
fn name() -> Value {
    let reserved: Vec<&str> = RESERVED
        .iter()
        .chain(&JINJA)
        .chain(&JINJA_MORE)
        .copied()
        .collect();
    json!({
        "type": "string",
        "pattern": "^[a-z][a-z0-9_]*$",
        "maxLength": 64,
        "not": {"anyOf": [{"enum": reserved}, {"pattern": "_reasoning$"}]},
    })
}

/// Models: a name, shorthand, or JSON Schema.
fn models() -> Value {
    let schema_keys: Vec<Value> = JSON_SCHEMA_KEYS
        .iter()
        .map(|key| json!({"required": [key]}))
        .collect();
    let spelled: Vec<String> = TYPES
        .iter()
        .flat_map(|t| [(*t).to_owned(), format!("{t}?")])
        .collect();
    let schemas = json!({"type": "array", "minItems": 1, "items": def("json_schema")});
    let types = [
        "string", "number", "integer", "boolean", "object", "array", "null",
    ];
    json!({
        "model": {
            "if": {"type": "string"},
            "then": {"minLength": 1},
            "else": def("model_mapping"),
        },
        "model_mapping": {
            "type": "object",
            "if": {"anyOf": schema_keys},
            "then": def("json_schema"),
            "else": def("shorthand"),
        },
        "shorthand": {
            "description": "Shorthand: `field: string`, `integer`, `number`, `boolean`, `object`, `any`, a model's name, `[T]`, `a | b | c` or a nested mapping; a trailing `?` makes a field optional.",
            "type": "object",
            "additionalProperties": def("field"),
        },
        "field": {
            "examples": TYPES,
            "if": {"type": "string"},
            "then": {"anyOf": [{"enum": spelled}, {"minLength": 1}]},
            "else": {
                "if": {"type": "array"},
                "then": {"minItems": 1, "maxItems": 1, "items": def("field")},
                "else": def("model_mapping"),
            },
        },
        "json_schema": {
            "description": "JSON Schema, draft 2020-12.",
            "type": ["object", "boolean"],
            "properties": {
                "type": {"anyOf": [
                    {"enum": types},
                    {"type": "array", "items": {"enum": types}, "minItems": 1, "uniqueItems": true},
                ]},
                "title": {"type": "string"},
                "description": {"type": "string"},
                "properties": {"type": "object", "additionalProperties": def("json_schema")},
                "required": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
                "additionalProperties": def("json_schema"),
                "items": def("json_schema"),
                "enum": {"type": "array"},
                "const": {},
                "$ref": {
                    "description": "The name of a model, `#/...`, or a file relative to the chain file; never a URL.",
                    "type": "string",
                    "not": {"pattern": "^[A-Za-z][A-Za-z0-9+.-]*://"},
                },
                "$defs": {"type": "object", "additionalProperties": def("json_schema")},
                "allOf": schemas.clone(),
                "anyOf": schemas.clone(),
                "oneOf": schemas,
                "minimum": {"type": "number"},
                "maximum": {"type": "number"},
                "minLength": {"type": "integer", "minimum": 0},
                "maxLength": {"type": "integer", "minimum": 0},
                "minItems": {"type": "integer", "minimum": 0},
                "maxItems": {"type": "integer", "minimum": 0},
                "pattern": {"type": "string"},
            },
        },
    })
}
