//! Vectors of texts as JSON: `{"embedding":[0.25,-1.5e-7]}`.
//!
//! A number stands in the shortest decimal form that is read back as the same 32-bit number, so that one vector
//! has one text, whoever sent it and in however many digits.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A reply that holds a vector.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Held<'a> {
    #[serde(borrow)]
    embedding: &'a RawValue,
}

/// The text of a vector. What is not finite becomes `null`, which [`read()`] refuses.
pub fn print(vector: &[f32]) -> String {
    // Numbers always print.
    let numbers = serde_json::to_string(vector).unwrap_or_default();
    format!("{{\"embedding\":{numbers}}}")
}

/// Reads what [`print()`] wrote, or what an engine of the user's says; the error is one line.
pub fn read(text: &str) -> Result<Vec<f32>, String> {
    // As an object only: a list would be read field by field.
    if !text.trim_start().starts_with('{') {
        return Err("the reply is no `{\"embedding\": [...]}`".to_owned());
    }
    let held: Held<'_> = serde_json::from_str(text)
        .map_err(|error| format!("the reply is no `{{\"embedding\": [...]}}`: {error}"))?;
    numbers(held.embedding.get())
}

/// The numbers of a JSON list, each as the nearest 32-bit number.
pub(crate) fn numbers(raw: &str) -> Result<Vec<f32>, String> {
    let inside = raw
        .trim()
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let Some(inside) = inside else {
        return Err(format!("the vector is {}, not a list of numbers", kind(raw)));
    };
    if inside.trim().is_empty() {
        return Err("the vector is empty".to_owned());
    }
    let mut vector = Vec::with_capacity(inside.len() / 10);
    // The text is JSON: a comma that does not part two numbers stands behind the start of something else.
    for (at, piece) in inside.split(',').enumerate() {
        let piece = piece.trim();
        let place = at + 1;
        if !piece.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            let found = kind(piece);
            return Err(match piece.starts_with('[') {
                true => format!(
                    "the vector's value {place} is {found}, not a number: a vector of each token, where one of the text is wanted"
                ),
                false => format!("the vector's value {place} is {found}, not a number"),
            });
        }
        let value: f32 = piece
            .parse()
            .map_err(|_| format!("the vector's value {place} is no number"))?;
        if !value.is_finite() {
            return Err(format!("the vector's value {place} is no finite 32-bit number"));
        }
        vector.push(value);
    }
    Ok(vector)
}

/// Little-endian 32-bit numbers in base64 (RFC 4648 §4), as OpenAI's `encoding_format: base64` has them.
pub(crate) fn base64(text: &str) -> Result<Vec<f32>, String> {
    let wrong = || "the vector is no base64 of 32-bit numbers".to_owned();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u32);
    for digit in text.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err(wrong()),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.extend((bits >> count).to_le_bytes().first());
            bits &= (1 << count) - 1;
        }
    }
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || count >= 6 {
        return Err(wrong());
    }
    let vector: Vec<f32> = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    match vector.iter().position(|value| !value.is_finite()) {
        _ if vector.is_empty() => Err("the vector is empty".to_owned()),
        Some(at) => Err(format!(
            "the vector's value {} is no finite 32-bit number",
            at + 1
        )),
        None => Ok(vector),
    }
}

/// What a JSON value is, for messages.
fn kind(raw: &str) -> &'static str {
    match raw.trim_start().as_bytes().first() {
        Some(b'"') => "a text",
        Some(b'[') => "a list",
        Some(b'{') => "an object",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        Some(_) => "a number",
        None => "nothing",
    }
}
