//! A JSON object that is parsed only when somebody looks inside.

use std::sync::{Arc, OnceLock};

use jaq_json::Val;

use super::json;

/// One JSON object, shared cheaply between nodes.
///
/// It is kept as the text it came as, so that a value nobody touched is written as it was read
/// (`1.10`, 23-digit integers, key order); the jq value is built at most once.
#[derive(Clone, Debug)]
pub struct Record(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    text: Box<str>,
    val: OnceLock<Val>,
}

/// Why a text is not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Not JSON at all.
    #[error("not valid JSON: {0}")]
    Syntax(String),
    /// JSON, but not an object.
    #[error("expected a JSON object, found {0}")]
    NotObject(&'static str),
    /// Nested beyond what every consumer can handle.
    #[error("nested deeper than {} levels", json::MAX_DEPTH)]
    TooDeep,
    /// A jq value that JSON cannot express.
    #[error("{0}")]
    Inexpressible(String),
}

impl Record {
    /// Takes one JSON object as text; surrounding white space is dropped, the rest kept as it is.
    ///
    /// A key that stands twice keeps its first place and its last value.
    pub fn parse(text: &str) -> Result<Self, BadRecord> {
        let text = text.trim_matches([' ', '\t', '\n', '\r']);
        let text = json::check_object(text)?;
        Ok(Self(Arc::new(Inner {
            text: text.into(),
            val: OnceLock::new(),
        })))
    }

    /// Takes a jq value; anything but an object `v` becomes `{"value": v}`.
    pub fn from_val(val: Val) -> Result<Self, BadRecord> {
        let val = match val {
            Val::Obj(_) => val,
            other => Val::obj([(Val::utf8_str("value"), other)].into_iter().collect()),
        };
        let mut text = Vec::with_capacity(256);
        json::write_val(&mut text, &val, 0)?;
        let text = String::from_utf8(text).map_err(|e| BadRecord::Inexpressible(e.to_string()))?;
        Ok(Self(Arc::new(Inner {
            text: text.into_boxed_str(),
            val: OnceLock::from(val),
        })))
    }

    /// The object as JSON text.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The object as a jq value, built on first use.
    pub fn val(&self) -> &Val {
        self.0.val.get_or_init(|| {
            // The text was checked when the record was made; a value jq cannot hold reads as null.
            jaq_json::read::parse_single(self.0.text.as_bytes()).unwrap_or(Val::Null)
        })
    }

    /// True when both are one object in memory, so that a printed form can be used again.
    pub fn is_val(&self, other: &Val) -> bool {
        match (self.0.val.get(), other) {
            (Some(Val::Obj(a)), Val::Obj(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The fields in order: key as JSON text with its quotes, value as JSON text.
    pub fn fields(&self) -> Fields<'_> {
        json::raw_fields(&self.0.text)
    }

    /// The raw JSON value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields()
            .find(|(key, _)| json::key_is(key, name))
            .map(|(_, value)| value)
    }

    /// Takes anything that serialises; what is no JSON object `v` becomes `{"value": v}`.
    ///
    /// # Errors
    /// It cannot be JSON (a map with keys that are no texts), or nests too deep.
    pub fn write<T: serde::Serialize>(value: &T) -> Result<Self, BadRecord> {
        let text =
            serde_json::to_string(value).map_err(|error| BadRecord::Inexpressible(error.to_string()))?;
        if text.starts_with('{') {
            Self::parse(&text)
        } else {
            Self::parse(&format!("{{\"value\":{text}}}"))
        }
    }

    /// The object as a type of yours.
    ///
    /// # Errors
    /// A field is missing or of another type; the message says which, and where.
    pub fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0.text)
    }

    /// The object as a `serde_json` value (numbers beyond 64 bits lose precision; do not write it back).
    ///
    /// A number beyond a double (`1e999`) is the largest double, as jq takes it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::from_str(&self.0.text).unwrap_or_else(|_| json::clamped(&self.0.text))
    }
}

pub use json::Fields;
