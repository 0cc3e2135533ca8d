//! JSON text as template values: looked into only where a template looks.

use std::fmt::Write as _;
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};

use crate::row::{Record, raw_fields, skip_value};

/// A JSON object as text.
#[derive(Debug)]
enum JsonObject {
    Record(Record),
    Nested(Box<str>),
}

impl JsonObject {
    fn text(&self) -> &str {
        match self {
            Self::Record(record) => record.text(),
            Self::Nested(text) => text,
        }
    }

    fn field(&self, name: &str) -> Option<Value> {
        match self {
            Self::Record(record) => record.get(name).map(to_value),
            // Only the top level of a record is known to be free of repeated keys: the last counts.
            Self::Nested(text) => raw_fields(text)
                .filter(|(key, _)| key_of(key) == name)
                .last()
                .map(|(_, value)| to_value(value)),
        }
    }
}

impl Object for JsonObject {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.field(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.field(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let mut keys: Vec<Value> = Vec::new();
        for (key, _) in raw_fields(self.text()) {
            let key = Value::from(key_of(key));
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Enumerator::Values(keys)
    }
}

fn key_of(raw: &str) -> String {
    serde_json::from_str(raw).unwrap_or_else(|_| raw.trim_matches('"').to_owned())
}

/// A record.
pub(super) fn record(record: &Record) -> Value {
    Value::from_object(JsonObject::Record(record.clone()))
}

/// A list of records.
pub(super) fn list(records: &[Record]) -> Value {
    records.iter().map(record).collect()
}

/// A raw JSON value. Integers beyond 128 bits and numbers beyond a double keep their text.
pub(super) fn to_value(raw: &str) -> Value {
    let raw = raw.trim();
    match raw.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<String>(raw) {
            Ok(text) => Value::from(text),
            Err(_) => Value::from(raw.trim_matches('"')),
        },
        Some(b'{') => Value::from_object(JsonObject::Nested(raw.into())),
        Some(b'[') => items(raw).map(to_value).collect(),
        Some(b't') => Value::from(true),
        Some(b'f') => Value::from(false),
        Some(b'n') | None => Value::from(()),
        Some(_) => number(raw),
    }
}

fn number(raw: &str) -> Value {
    if let Ok(n) = raw.parse::<i64>() {
        return Value::from(n);
    }
    if let Ok(n) = raw.parse::<i128>() {
        return Value::from(n);
    }
    if let Ok(n) = raw.parse::<u128>() {
        return Value::from(n);
    }
    let integer = raw.bytes().all(|b| b.is_ascii_digit() || b == b'-');
    match raw.parse::<f64>() {
        Ok(n) if n.is_finite() && !integer => Value::from(n),
        _ => Value::from(raw),
    }
}

/// The items of a JSON array.
fn items(raw: &str) -> impl Iterator<Item = &str> {
    let mut rest = raw.get(1..).unwrap_or_default();
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r', ',']);
        if rest.is_empty() || rest.starts_with(']') {
            return None;
        }
        let (item, after) = rest.split_at_checked(skip_value(rest))?;
        rest = after;
        Some(item)
    })
}

/// Writes a value as JSON with a space after `,` and `:`; what came as JSON text keeps its numbers.
pub(super) fn write_json(value: &Value, out: &mut String) {
    if let Some(object) = value.downcast_object_ref::<JsonObject>() {
        space(object.text(), out);
        return;
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let text = value.to_string();
            // JSON has no NaN and no infinity.
            let finite = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            out.push_str(if finite { &text } else { "null" });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                quote(&key.to_string(), out);
                out.push_str(": ");
                write_json(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_json(&item, out);
            }
            out.push(']');
        }
        _ => quote(&value.to_string(), out),
    }
}

fn quote(text: &str, out: &mut String) {
    let _infallible = write!(out, "{}", serde_json::Value::from(text));
}

/// JSON text with its own white space replaced by a space after `,` and `:`.
fn space(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some(first) = rest.bytes().next() {
        let len = match first {
            b'"' => skip_value(rest),
            _ => 1,
        };
        let (piece, after) = rest.split_at_checked(len).unwrap_or((rest, ""));
        match first {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b',' | b':' => {
                out.push_str(piece);
                out.push(' ');
            }
            _ => out.push_str(piece),
        }
        rest = after;
    }
}
