//! Raw JSON text: checking it, walking its fields, printing jq values.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use jaq_json::{Num, Val};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::BadRecord;

/// Objects nested deeper than this are refused: parsers further on recurse.
pub(super) const MAX_DEPTH: usize = 120;

/// Checks that `text` is one JSON object that every later reader can take.
///
/// Returns the text itself, or a rewritten one if a key stands twice.
pub(super) fn check_object(text: &str) -> Result<Cow<'_, str>, BadRecord> {
    check_depth(text)?;
    // `RawValue` skips escapes without decoding them; a lone surrogate must not slip through.
    if memchr::memmem::find(text.as_bytes(), b"\\u").is_some() {
        serde_json::from_str::<serde_json::Value>(text).map_err(syntax)?;
    }
    let keys: Keys<'_> = match serde_json::from_str(text) {
        Ok(keys) => keys,
        Err(error) => return Err(not_object(text).unwrap_or_else(|| syntax(error))),
    };
    if !keys.has_duplicate() {
        return Ok(text.into());
    }
    let mut fields = indexmap::IndexMap::new();
    for (key, value) in &keys.0 {
        fields.insert(key, value.get());
    }
    let mut out = Vec::with_capacity(text.len());
    out.push(b'{');
    for (i, (key, value)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_str(&mut out, key);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
    String::from_utf8(out)
        .map(Into::into)
        .map_err(|e| BadRecord::Syntax(e.to_string()))
}

/// The top-level keys of an object with their raw values.
struct Keys<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Keys<'_> {
    fn has_duplicate(&self) -> bool {
        if self.0.len() <= 16 {
            return self
                .0
                .iter()
                .enumerate()
                .any(|(i, (k, _))| self.0.iter().skip(i + 1).any(|(l, _)| k == l));
        }
        let mut seen = std::collections::HashSet::with_capacity(self.0.len());
        self.0.iter().any(|(k, _)| !seen.insert(k))
    }
}

impl<'de> Deserialize<'de> for Keys<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Keys<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut keys = Vec::with_capacity(8);
                while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
                    keys.push((key, map.next_value::<&'de RawValue>()?));
                }
                Ok(Keys(keys))
            }
        }
        d.deserialize_map(V)
    }
}

/// A key, borrowed when it holds no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Key<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Self::Value, E> {
                Ok(Key(s.into()))
            }
            fn visit_str<E>(self, s: &str) -> Result<Self::Value, E> {
                Ok(Key(s.to_owned().into()))
            }
        }
        d.deserialize_str(V)
    }
}

fn syntax(error: serde_json::Error) -> BadRecord {
    // The row is one line: serde's "at line 1 column N" says only the column.
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).to_owned();
    BadRecord::Syntax(format!("{text} at column {}", error.column()))
}

/// Says what a text is when it is JSON, but not an object.
fn not_object(text: &str) -> Option<BadRecord> {
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    Some(BadRecord::NotObject(match text.as_bytes().first()? {
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        b'{' => return None,
        _ => "a number",
    }))
}

/// Refuses texts whose brackets nest too deep; brackets in strings do not count.
fn check_depth(text: &str) -> Result<(), BadRecord> {
    if memchr::memchr2_iter(b'{', b'[', text.as_bytes())
        .take(MAX_DEPTH + 1)
        .count()
        <= MAX_DEPTH
    {
        return Ok(());
    }
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(BadRecord::TooDeep);
                }
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// The fields of a checked JSON object: `("\"key\"", "value")`, both as they stand in the text.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a str,
}

/// Walks the fields of an object that is known to be valid JSON.
pub(crate) fn raw_fields(object: &str) -> Fields<'_> {
    Fields {
        rest: object.trim_start().strip_prefix('{').unwrap_or(""),
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', ',']);
        if !rest.starts_with('"') {
            return None;
        }
        let (key, rest) = rest.split_at_checked(skip_value(rest))?;
        let rest = rest.trim_start_matches([' ', '\t', '\n', '\r', ':']);
        let (value, rest) = rest.split_at_checked(skip_value(rest))?;
        self.rest = rest;
        Some((key, value))
    }
}

/// The items of an array that is known to be valid JSON, each as it stands in the text.
pub(crate) fn raw_items(array: &str) -> impl Iterator<Item = &str> {
    let mut rest = array.trim_start().strip_prefix('[').unwrap_or("");
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

/// A valid JSON text as a value in which numbers beyond a double are the largest double.
pub(super) fn clamped(text: &str) -> serde_json::Value {
    use serde_json::Value;
    let text = text.trim_matches([' ', '\t', '\n', '\r']);
    match text.bytes().next() {
        Some(b'{') => Value::Object(
            raw_fields(text)
                .map(|(key, value)| (serde_json::from_str(key).unwrap_or_default(), clamped(value)))
                .collect(),
        ),
        Some(b'[') => Value::Array(raw_items(text).map(clamped).collect()),
        _ => serde_json::from_str(text).unwrap_or_else(|_| {
            let largest = if text.starts_with('-') { f64::MIN } else { f64::MAX };
            Value::from(largest)
        }),
    }
}

/// The length of the JSON value at the start of a valid JSON text.
pub(crate) fn skip_value(text: &str) -> usize {
    let bytes = text.as_bytes();
    match bytes.first() {
        Some(b'"') => skip_string(bytes),
        Some(b'{' | b'[') => {
            let mut depth = 0_usize;
            let mut at = 0;
            while let Some(byte) = bytes.get(at) {
                match byte {
                    b'"' => at += skip_string(bytes.get(at..).unwrap_or_default()),
                    b'{' | b'[' => {
                        depth += 1;
                        at += 1;
                    }
                    b'}' | b']' => {
                        depth -= 1;
                        at += 1;
                        if depth == 0 {
                            return at;
                        }
                    }
                    _ => at += 1,
                }
            }
            at
        }
        _ => bytes
            .iter()
            .position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' | b':'))
            .unwrap_or(bytes.len()),
    }
}

/// The length of the JSON string at the start of `bytes`, with its quotes.
fn skip_string(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = bytes.get(at..).and_then(|b| memchr::memchr2(b'"', b'\\', b)) {
        at += found;
        if bytes.get(at) == Some(&b'"') {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// True when a key as it stands in the text (with quotes) spells `name`.
pub(super) fn key_is(raw: &str, name: &str) -> bool {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains('\\') {
        return serde_json::from_str::<String>(raw).is_ok_and(|key| key == name);
    }
    inner == name
}

/// A key or string as it stands in the text, without quotes and escapes.
pub(crate) fn unquoted(raw: &str) -> Cow<'_, str> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains('\\')
        && let Ok(text) = serde_json::from_str::<String>(raw)
    {
        return text.into();
    }
    inner.into()
}

/// Drops the white space between the tokens of a valid JSON text.
pub fn compact(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let len = match byte {
            b'"' => skip_string(bytes.get(at..).unwrap_or_default()),
            b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            _ => bytes
                .get(at + 1..)
                .and_then(|rest| {
                    rest.iter()
                        .position(|b| matches!(b, b'"' | b' ' | b'\t' | b'\n' | b'\r'))
                })
                .map_or(bytes.len() - at, |n| n + 1),
        };
        out.push_str(text.get(at..at + len).unwrap_or_default());
        at += len;
    }
    out
}

/// Appends a string as JSON, quotes and escapes included.
pub fn write_str(out: &mut Vec<u8>, text: &str) {
    write_bytes_str(out, text.as_bytes());
}

fn write_bytes_str(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0c => b"\\f",
            0x00..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(bytes.get(from..at).unwrap_or_default());
        if escape.is_empty() {
            let _infallible = write!(out, "\\u{byte:04x}");
        } else {
            out.extend_from_slice(escape);
        }
        from = at + 1;
    }
    out.extend_from_slice(bytes.get(from..).unwrap_or_default());
    out.push(b'"');
}

/// Appends a jq value as compact JSON.
///
/// Like jq, a number that is none becomes `null` and an infinite one the largest finite number.
pub(super) fn write_val(out: &mut Vec<u8>, val: &Val, depth: usize) -> Result<(), BadRecord> {
    if depth > MAX_DEPTH {
        return Err(BadRecord::TooDeep);
    }
    match val {
        Val::Null => out.extend_from_slice(b"null"),
        Val::Bool(true) => out.extend_from_slice(b"true"),
        Val::Bool(false) => out.extend_from_slice(b"false"),
        Val::Num(num) => write_num(out, num),
        Val::TStr(text) | Val::BStr(text) => match std::str::from_utf8(text) {
            Ok(_) => write_bytes_str(out, text),
            Err(_) => write_str(out, &String::from_utf8_lossy(text)),
        },
        Val::Arr(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_val(out, item, depth + 1)?;
            }
            out.push(b']');
        }
        Val::Obj(fields) => {
            out.push(b'{');
            for (i, (key, value)) in fields.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                let (Val::TStr(_) | Val::BStr(_)) = key else {
                    return Err(BadRecord::Inexpressible(format!(
                        "an object key must be a string, found {key}"
                    )));
                };
                write_val(out, key, depth + 1)?;
                out.push(b':');
                write_val(out, value, depth + 1)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_num(out: &mut Vec<u8>, num: &Num) {
    let _infallible = match num {
        Num::Float(f) if f.is_nan() => write!(out, "null"),
        Num::Float(f) if f.is_infinite() => write!(out, "{:e}", f64::MAX.copysign(*f)),
        Num::Int(i) => write!(out, "{i}"),
        other => write!(out, "{other}"),
    };
}
