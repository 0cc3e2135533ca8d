//! A user's JSON Schema, rewritten to what a backend's structured outputs understand.
//!
//! The strictest is OpenAI's subset (platform.openai.com, "Structured Outputs", "Supported schemas"):
//! the root is a plain object; every object has `additionalProperties: false` and lists all its
//! properties as required; no `allOf`, `oneOf`, `not`, `if`, tuples or open maps. Every backend gets
//! schemas of that shape, as they also lead a small model best; a [`Subset`] says what may be kept
//! beyond it. What is dropped here is checked afterwards, when the reply is validated against the
//! user's own schema.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::merge;
use super::restore::{Undo, UndoIx, UndoNode};
use super::subset::{OPENAI, Subset};

/// An output model as one wire takes it, and the way back. Made once per Step.
#[derive(Clone, Debug)]
pub struct PreparedSchema {
    /// The schema in the backend's form (`response_format`, Ollama's `format`), as JSON text.
    pub(crate) format: Box<serde_json::value::RawValue>,
    wire: Wire,
}

/// What [`rewrite`] made of a schema.
#[derive(Clone, Debug)]
pub struct Wire {
    /// The schema to send.
    pub schema: Value,
    /// False: the subset cannot express the schema, it is sent as the user wrote it.
    pub strict: bool,
    /// The root was no plain object: the value asked for is the field `value` of one.
    pub wrapped: bool,
    undo: Undo,
}

impl PreparedSchema {
    /// Rewrites a schema to a subset and puts it into a backend's form.
    pub fn new(schema: &Value, subset: &Subset, form: impl FnOnce(&Wire) -> Value) -> Self {
        let wire = rewrite(schema, subset);
        // A `Value` always prints; the fallback is the weakest format there is.
        let format = serde_json::value::to_raw_value(&form(&wire))
            .unwrap_or_else(|_| serde_json::value::RawValue::NULL.to_owned());
        Self { format, wire }
    }

    /// A schema for an engine that takes any: sent as it is, nothing to undo.
    pub fn as_is(schema: &Value) -> Self {
        let format = serde_json::value::to_raw_value(schema)
            .unwrap_or_else(|_| serde_json::value::RawValue::NULL.to_owned());
        let wire = Wire {
            schema: schema.clone(),
            strict: false,
            wrapped: false,
            undo: Undo::default(),
        };
        Self { format, wire }
    }

    /// In the form of OpenAI's `response_format`; `name` is shown to the model by some servers.
    pub fn openai(name: &str, schema: &Value) -> Self {
        Self::new(schema, &OPENAI, |wire| json_schema(name, wire))
    }

    /// The rewritten schema.
    pub fn wire(&self) -> &Wire {
        &self.wire
    }

    /// [`Wire::restore`].
    pub fn restore(&self, reply: &str) -> String {
        self.wire.restore(reply)
    }
}

impl Wire {
    /// Undoes the rewriting on a reply: compact JSON text in, compact JSON text out, numbers and key
    /// order untouched.
    ///
    /// Takes the value out of its wrapping and drops the nulls that stand for absent optional fields.
    pub fn restore(&self, reply: &str) -> String {
        let inner = if self.wrapped { unwrap(reply) } else { reply };
        self.undo.apply(inner)
    }
}

/// The field that carries a wrapped value.
const VALUE: &str = "value";

/// The value in `{"value": …}`; a reply that is no such object is left as it is.
fn unwrap(reply: &str) -> &str {
    let mut fields = crate::row::raw_fields(reply);
    match (fields.next(), fields.next()) {
        (Some(("\"value\"", value)), None) => value,
        _ => reply,
    }
}

/// A schema as `response_format` of OpenAI, vLLM and llama.cpp.
pub(super) fn json_schema(name: &str, wire: &Wire) -> Value {
    json!({
        "type": "json_schema",
        "json_schema": {"name": name, "strict": wire.strict, "schema": wire.schema},
    })
}

/// Rewrites a schema to OpenAI's strict subset.
pub fn strict(schema: &Value) -> Wire {
    rewrite(schema, &OPENAI)
}

/// Rewrites a schema to a subset.
pub fn rewrite(schema: &Value, subset: &Subset) -> Wire {
    Rewriter::new(schema, subset)
        .run()
        .unwrap_or_else(|Inexpressible| Wire {
            schema: schema.clone(),
            strict: false,
            wrapped: false,
            undo: Undo::default(),
        })
}

/// The subset cannot say this.
#[derive(Debug)]
pub(super) struct Inexpressible;

/// One pass over a schema.
struct Rewriter<'a> {
    root: &'a Value,
    subset: &'a Subset,
    /// `$ref` pointer → name in `$defs` and its undo node.
    refs: HashMap<String, (String, UndoIx)>,
    defs: Map<String, Value>,
    undo: Undo,
    /// How deep the pass is, against schemas that only unfold into themselves.
    depth: usize,
}

impl<'a> Rewriter<'a> {
    fn new(root: &'a Value, subset: &'a Subset) -> Self {
        Self {
            root,
            subset,
            refs: HashMap::new(),
            defs: Map::new(),
            undo: Undo::default(),
            depth: 0,
        }
    }

    fn run(mut self) -> Result<Wire, Inexpressible> {
        let (schema, at) = self.rewrite(self.root)?;
        // `#` as a reference becomes a definition, so that wrapping cannot change what it means.
        let plain = schema.get("type").and_then(Value::as_str) == Some("object");
        let mut schema = if plain {
            schema
        } else {
            json!({"type": "object", "properties": {VALUE: schema}, "required": [VALUE], "additionalProperties": false})
        };
        if let Some(root) = schema.as_object_mut().filter(|_| !self.defs.is_empty()) {
            root.insert("$defs".to_owned(), Value::Object(self.defs));
        }
        self.undo.finish(at);
        Ok(Wire {
            schema,
            strict: true,
            wrapped: !plain,
            undo: self.undo,
        })
    }

    /// Rewrites one schema; also says how to undo it on a value.
    fn rewrite(&mut self, schema: &Value) -> Result<(Value, UndoIx), Inexpressible> {
        self.depth += 1;
        if self.depth > 100 {
            return Err(Inexpressible);
        }
        let result = match schema {
            Value::Object(map) if self.subset.open && says_nothing(map) => {
                let mut out = Map::new();
                notes(map, &mut out);
                Ok((Value::Object(out), Undo::NOTHING))
            }
            Value::Object(map) => self.rewrite_map(map),
            _ => Err(Inexpressible),
        };
        self.depth -= 1;
        result
    }

    fn rewrite_map(&mut self, map: &Map<String, Value>) -> Result<(Value, UndoIx), Inexpressible> {
        if let Some(parts) = map.get("allOf") {
            let merged = merge::all_of(self.root, map, parts)?;
            return self.rewrite(&Value::Object(merged));
        }
        if let Some(pointer) = map.get("$ref").and_then(Value::as_str) {
            return self.reference(pointer, map);
        }
        if let Some(value) = map.get("const") {
            return one_of_values(map, std::slice::from_ref(value));
        }
        if let Some(values) = map.get("enum").and_then(Value::as_array) {
            return one_of_values(map, values);
        }
        if let Some(parts) = map
            .get("anyOf")
            .or_else(|| map.get("oneOf"))
            .and_then(Value::as_array)
        {
            // Beside properties the parts only narrow (`required` of one or the other): dropped.
            if !map.contains_key("properties") {
                return self.any_of(map, parts);
            }
        }
        match map.get("type") {
            Some(Value::String(kind)) => self.typed(map, kind),
            Some(Value::Array(kinds)) => self.types(map, kinds),
            None if map.contains_key("properties") => self.typed(map, "object"),
            None if map.contains_key("items") => self.typed(map, "array"),
            _ => Err(Inexpressible),
        }
    }

    /// A `$ref` stays one; its target moves to `$defs`.
    fn reference(
        &mut self,
        pointer: &str,
        map: &Map<String, Value>,
    ) -> Result<(Value, UndoIx), Inexpressible> {
        let (name, at) = match self.refs.get(pointer) {
            Some(known) => known.clone(),
            None => {
                let target = merge::resolve(self.root, pointer)?.clone();
                let name = self.def_name(pointer);
                let at = self.undo.reserve();
                self.refs.insert(pointer.to_owned(), (name.clone(), at));
                self.defs.insert(name.clone(), Value::Null);
                let (schema, inner) = self.rewrite(&target)?;
                self.undo.fill(at, UndoNode::Same(inner));
                self.defs.insert(name.clone(), schema);
                (name, at)
            }
        };
        let mut out = Map::new();
        out.insert("$ref".to_owned(), format!("#/$defs/{name}").into());
        // A `$ref` with neighbours is refused by OpenAI, a description aside.
        notes(map, &mut out);
        Ok((Value::Object(out), at))
    }

    /// A free name in `$defs` for a pointer's target.
    fn def_name(&self, pointer: &str) -> String {
        let last = pointer.rsplit('/').next().unwrap_or_default();
        let clean: String = last
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        let base = if last == "#" || clean.is_empty() {
            "root"
        } else {
            clean.as_str()
        };
        let mut name = base.to_owned();
        let mut n = 2;
        while self.defs.contains_key(&name) {
            name = format!("{base}_{n}");
            n += 1;
        }
        name
    }

    fn any_of(
        &mut self,
        map: &Map<String, Value>,
        parts: &[Value],
    ) -> Result<(Value, UndoIx), Inexpressible> {
        let mut wires = Vec::with_capacity(parts.len());
        let mut undos = Vec::with_capacity(parts.len());
        for part in parts {
            let mut part = part.clone();
            if let (Some(kind), Some(part)) = (map.get("type"), part.as_object_mut()) {
                let says_what = ["type", "$ref", "enum", "const", "anyOf", "oneOf", "allOf"];
                if !says_what.iter().any(|key| part.contains_key(*key)) {
                    part.insert("type".to_owned(), kind.clone());
                }
            }
            let (wire, undo) = self.rewrite(&part)?;
            if !wires.contains(&wire) {
                wires.push(wire);
                undos.push(undo);
            }
        }
        let at = self.undo.push(UndoNode::Any(undos));
        let mut out = Map::new();
        notes(map, &mut out);
        match wires.len() {
            0 => return Err(Inexpressible),
            _ => out.insert("anyOf".to_owned(), Value::Array(wires)),
        };
        Ok((Value::Object(out), at))
    }

    /// Several types: kept as a list when all are scalars, else one alternative each.
    fn types(&mut self, map: &Map<String, Value>, kinds: &[Value]) -> Result<(Value, UndoIx), Inexpressible> {
        let names: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
        if let [only] = names.as_slice() {
            return self.typed(map, only);
        }
        if names.iter().any(|kind| matches!(*kind, "object" | "array")) {
            let mut notes_only = Map::new();
            notes(map, &mut notes_only);
            let parts: Vec<Value> = names
                .iter()
                .map(|kind| {
                    let mut part = map.clone();
                    part.shift_remove("description");
                    part.shift_remove("title");
                    part.insert("type".to_owned(), (*kind).into());
                    Value::Object(part)
                })
                .collect();
            return self.any_of(&notes_only, &parts);
        }
        let mut out = Map::new();
        notes(map, &mut out);
        out.insert("type".to_owned(), json!(names));
        for kind in &names {
            self.keywords(map, kind, &mut out);
        }
        Ok((Value::Object(out), Undo::NOTHING))
    }

    fn typed(&mut self, map: &Map<String, Value>, kind: &str) -> Result<(Value, UndoIx), Inexpressible> {
        let mut out = Map::new();
        out.insert("type".to_owned(), kind.into());
        notes(map, &mut out);
        self.keywords(map, kind, &mut out);
        match kind {
            "object" => self.object(map, out),
            "array" => {
                if map.contains_key("prefixItems") {
                    return Err(Inexpressible);
                }
                let any = json!({});
                let items = match map.get("items") {
                    None if self.subset.open => &any,
                    items => items.ok_or(Inexpressible)?,
                };
                let (items, at) = self.rewrite(items)?;
                out.insert("items".to_owned(), items);
                let at = self.undo.push(UndoNode::Array(at));
                Ok((Value::Object(out), at))
            }
            "string" | "number" | "integer" | "boolean" | "null" => Ok((Value::Object(out), Undo::NOTHING)),
            _ => Err(Inexpressible),
        }
    }

    /// Copies the keywords that the subset knows for a type.
    fn keywords(&self, map: &Map<String, Value>, kind: &str, out: &mut Map<String, Value>) {
        for key in self.subset.kept(kind) {
            let Some(value) = map.get(*key) else { continue };
            let fits = match *key {
                "format" => value
                    .as_str()
                    .is_some_and(|format| self.subset.formats.contains(&format)),
                "minLength" | "maxLength" | "minItems" | "maxItems" => {
                    value.as_u64().is_some_and(|length| length <= self.subset.longest)
                }
                // llama.cpp refuses unanchored patterns, grammar compilers refuse look-around.
                "pattern" => value.as_str().is_some_and(|pattern| {
                    pattern.starts_with('^') && pattern.ends_with('$') && !pattern.contains("(?")
                }),
                _ => true,
            };
            if fits {
                out.insert((*key).to_owned(), value.clone());
            }
        }
    }

    fn object(
        &mut self,
        map: &Map<String, Value>,
        mut out: Map<String, Value>,
    ) -> Result<(Value, UndoIx), Inexpressible> {
        let none = Map::new();
        let properties = match map.get("properties") {
            Some(Value::Object(properties)) => properties,
            _ => &none,
        };
        // Fields that are named by a pattern only: closing the object would forbid them.
        if map.contains_key("patternProperties") {
            return Err(Inexpressible);
        }
        // An open map is the point of such a schema; one that merely does not forbid more fields is not.
        let others = match map.get("additionalProperties") {
            Some(Value::Bool(false)) => false.into(),
            None if !properties.is_empty() => false.into(),
            _ if !self.subset.open => return Err(Inexpressible),
            None | Some(Value::Bool(true)) => true.into(),
            Some(schema) => match self.rewrite(schema)? {
                (wire, Undo::NOTHING) => wire,
                _ => return Err(Inexpressible),
            },
        };
        let required: Vec<&str> = map
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        if required.iter().any(|name| !properties.contains_key(*name)) {
            return Err(Inexpressible);
        }
        let mut wires = Map::new();
        let mut fields = Vec::with_capacity(properties.len());
        for (name, schema) in properties {
            let (wire, undo) = self.rewrite(schema)?;
            let optional = !required.contains(&name.as_str());
            fields.push((
                name.clone(),
                super::restore::Field {
                    drop_null: optional && !merge::allows_null(self.root, schema, 0),
                    values: values_of(&wire),
                    undo,
                },
            ));
            wires.insert(name.clone(), if optional { nullable(wire) } else { wire });
        }
        let names: Vec<Value> = wires.keys().map(|name| name.as_str().into()).collect();
        out.insert("properties".to_owned(), Value::Object(wires));
        out.insert("required".to_owned(), Value::Array(names));
        out.insert("additionalProperties".to_owned(), others);
        let at = self.undo.push(UndoNode::Object(fields.into_iter().collect()));
        Ok((Value::Object(out), at))
    }
}

/// Copies what only explains.
fn notes(map: &Map<String, Value>, out: &mut Map<String, Value>) {
    for key in ["title", "description"] {
        if let Some(Value::String(text)) = map.get(key) {
            out.insert(key.to_owned(), text.as_str().into());
        }
    }
}

/// True for a schema that every value matches.
fn says_nothing(map: &Map<String, Value>) -> bool {
    map.keys().all(|key| {
        matches!(
            key.as_str(),
            "title" | "description" | "default" | "examples" | "$comment"
        )
    })
}

/// `enum` and `const`: only scalars, with their type (OpenAI wants one everywhere).
fn one_of_values(map: &Map<String, Value>, values: &[Value]) -> Result<(Value, UndoIx), Inexpressible> {
    let mut kinds: Vec<&str> = Vec::new();
    for value in values {
        let kind = match value {
            Value::String(_) => "string",
            Value::Number(n) if n.is_i64() || n.is_u64() => "integer",
            Value::Number(_) => "number",
            Value::Bool(_) => "boolean",
            Value::Null => "null",
            Value::Array(_) | Value::Object(_) => return Err(Inexpressible),
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut out = Map::new();
    match kinds.as_slice() {
        [] => return Err(Inexpressible),
        [kind] => out.insert("type".to_owned(), (*kind).into()),
        kinds => out.insert("type".to_owned(), json!(kinds)),
    };
    notes(map, &mut out);
    out.insert("enum".to_owned(), Value::Array(values.to_vec()));
    Ok((Value::Object(out), Undo::NOTHING))
}

/// The values a field may take, as JSON text, when they are listed: they tell alternatives apart.
fn values_of(wire: &Value) -> Option<Vec<String>> {
    let values = wire.get("enum")?.as_array()?;
    Some(values.iter().map(Value::to_string).collect())
}

/// The same schema, null allowed.
fn nullable(mut schema: Value) -> Value {
    let null = json!({"type": "null"});
    let Some(map) = schema.as_object_mut() else {
        return schema;
    };
    if let Some(Value::Array(parts)) = map.get_mut("anyOf") {
        if !parts.contains(&null) {
            parts.push(null);
        }
        return schema;
    }
    let kinds = match map.get("type") {
        Some(Value::String(kind)) if kind == "null" => return schema,
        Some(Value::String(kind)) if !matches!(kind.as_str(), "object" | "array") => {
            json!([kind, "null"])
        }
        Some(Value::Array(kinds)) if kinds.iter().any(|kind| kind == "null") => return schema,
        Some(Value::Array(kinds)) => {
            let mut kinds = kinds.clone();
            kinds.push("null".into());
            Value::Array(kinds)
        }
        // Not `null` in `json!`, which would be the value.
        _ => return json!({"anyOf": [schema, {"type": "null"}]}),
    };
    map.insert("type".to_owned(), kinds);
    if let Some(Value::Array(values)) = map.get_mut("enum") {
        values.push(Value::Null);
    }
    schema
}
