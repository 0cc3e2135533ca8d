//! Column types that models declare: JSON Schema, read for types only.

use indexmap::IndexMap;
use serde_json::Value;

use super::infer::Guess;
use super::kind::Kind;
use crate::expr::model::VECTOR;

/// Schemas nested deeper than this are JSON text.
const MAX_DEPTH: usize = 64;
/// So is what is left of a field's schema after this many parts: references can multiply.
const MAX_PARTS: usize = 10_000;

/// The declared fields of an object schema. `root` is the document that references point into.
pub(super) fn fields(root: &Value) -> IndexMap<String, Guess> {
    let properties = root.get("properties").and_then(Value::as_object);
    let fields = properties.into_iter().flatten();
    fields
        .map(|(name, schema)| {
            let mut reader = Reader {
                root,
                open: Vec::new(),
                parts: 0,
            };
            (name.clone(), reader.guess(schema))
        })
        .collect()
}

struct Reader<'a> {
    root: &'a Value,
    /// References that are being followed: a schema that holds itself has no finite type.
    open: Vec<&'a str>,
    /// Schemas read so far.
    parts: usize,
}

impl<'a> Reader<'a> {
    /// What values of a schema are.
    fn guess(&mut self, schema: &'a Value) -> Guess {
        let json = Guess::Fixed(Kind::Json);
        let Some(map) = schema.as_object() else {
            return json;
        };
        self.parts += 1;
        if self.open.len() > MAX_DEPTH || self.parts > MAX_PARTS {
            return json;
        }
        if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
            let target = match reference.strip_prefix('#') {
                Some("") => Some(self.root),
                Some(pointer) => self.root.pointer(pointer),
                None => None,
            };
            let Some(target) = target.filter(|_| !self.open.contains(&reference)) else {
                return json;
            };
            self.open.push(reference);
            let guess = self.guess(target);
            self.open.pop();
            return guess;
        }
        if let Some(values) = map.get("enum").and_then(Value::as_array) {
            return either(values.iter().map(of_value)).unwrap_or(json);
        }
        if let Some(value) = map.get("const") {
            return known(of_value(value)).unwrap_or(json);
        }
        match map.get("type") {
            Some(Value::String(name)) => self.typed(name, schema),
            Some(Value::Array(names)) => {
                let names = names
                    .iter()
                    .filter_map(Value::as_str)
                    .filter(|name| *name != "null");
                let guesses: Vec<_> = names.map(|name| self.typed(name, schema)).collect();
                either(guesses.into_iter()).unwrap_or(json)
            }
            _ => self.composed(schema).unwrap_or(json),
        }
    }

    /// A schema without `type`.
    fn composed(&mut self, schema: &'a Value) -> Option<Guess> {
        if schema.get("properties").is_some() {
            return Some(self.typed("object", schema));
        }
        let list = |key: &str| schema.get(key).and_then(Value::as_array);
        // Each alternative counts as a level, also without a reference.
        self.open.push("");
        let guess = if let Some(all) = list("oneOf").or_else(|| list("anyOf")) {
            let guesses: Vec<_> = all
                .iter()
                .filter(|schema| schema.get("type").is_none_or(|name| name != "null"))
                .map(|schema| self.guess(schema))
                .collect();
            either(guesses.into_iter())
        } else if let Some(all) = list("allOf") {
            let guesses: Vec<_> = all.iter().map(|schema| self.guess(schema)).collect();
            guesses.into_iter().reduce(both)
        } else {
            None
        };
        self.open.pop();
        guess
    }

    fn typed(&mut self, name: &str, schema: &'a Value) -> Guess {
        match name {
            "boolean" => Guess::Fixed(Kind::Boolean),
            "integer" => Guess::Fixed(Kind::Integer),
            "number" => Guess::Fixed(Kind::Number),
            "string" => Guess::Fixed(Kind::Text),
            "null" => Guess::Unknown,
            "array" => self.list(schema),
            "object" => self.object(schema),
            _ => Guess::Fixed(Kind::Json),
        }
    }

    fn list(&mut self, schema: &'a Value) -> Guess {
        if schema.get("format").is_some_and(|format| format == VECTOR) {
            return Guess::Vector { size: None };
        }
        self.open.push("");
        let item = match (schema.get("prefixItems"), schema.get("items")) {
            // The places of a tuple may differ.
            (Some(_), _) => Guess::Fixed(Kind::Json),
            (None, Some(items)) => self.guess(items),
            (None, None) => Guess::Unknown,
        };
        self.open.pop();
        Guess::List {
            item: Box::new(item),
            declared: true,
        }
    }

    fn object(&mut self, schema: &'a Value) -> Guess {
        let more = schema.get("additionalProperties");
        if more.is_some_and(Value::is_object) || schema.get("patternProperties").is_some() {
            // A dictionary.
            return Guess::Fixed(Kind::Json);
        }
        self.open.push("");
        let properties = schema.get("properties").and_then(Value::as_object);
        let mut fields: IndexMap<String, Guess> = properties
            .into_iter()
            .flatten()
            .map(|(name, schema)| (name.clone(), self.guess(schema)))
            .collect();
        let parts = schema.get("allOf").and_then(Value::as_array);
        for part in parts.into_iter().flatten() {
            if let Guess::Struct { fields: more, .. } = self.guess(part) {
                for (name, guess) in more {
                    fields.entry(name).or_insert(guess);
                }
            }
        }
        self.open.pop();
        Guess::Struct {
            fields,
            declared: true,
            open: more != Some(&Value::Bool(false)),
        }
    }
}

fn of_value(value: &Value) -> Guess {
    match value {
        Value::Null => Guess::Unknown,
        Value::Bool(_) => Guess::Fixed(Kind::Boolean),
        Value::Number(n) if n.is_i64() => Guess::Fixed(Kind::Integer),
        Value::Number(n) if n.is_f64() => Guess::Fixed(Kind::Number),
        Value::String(_) => Guess::Fixed(Kind::Text),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => Guess::Fixed(Kind::Json),
    }
}

fn known(guess: Guess) -> Option<Guess> {
    (guess != Guess::Unknown).then_some(guess)
}

/// What holds values of each of these; none if there is nothing but null.
fn either(guesses: impl Iterator<Item = Guess>) -> Option<Guess> {
    guesses.filter_map(known).reduce(|a, b| match (a, b) {
        (a, b) if a == b => a,
        (Guess::Fixed(Kind::Integer), Guess::Fixed(Kind::Number))
        | (Guess::Fixed(Kind::Number), Guess::Fixed(Kind::Integer)) => Guess::Fixed(Kind::Number),
        _ => Guess::Fixed(Kind::Json),
    })
}

/// What holds values that are both: the fields of two objects, else the one that says more.
fn both(a: Guess, b: Guess) -> Guess {
    match (a, b) {
        (
            Guess::Struct { mut fields, open, .. },
            Guess::Struct {
                fields: more,
                open: open_too,
                ..
            },
        ) => {
            for (name, guess) in more {
                fields.entry(name).or_insert(guess);
            }
            Guess::Struct {
                fields,
                declared: true,
                open: open && open_too,
            }
        }
        (Guess::Fixed(Kind::Json) | Guess::Unknown, other) | (other, _) => other,
    }
}
