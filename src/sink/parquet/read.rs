//! A Parquet shard as the JSON lines it was made of.
//!
//! What the columns cannot tell apart stays so: a field that is null and one that was left out are both left
//! out, and `1.10` is `1.1`.

use std::collections::HashMap;
use std::path::Path;

use super::{JSON_TEXT, RESCUED};
use crate::row::{raw_fields, raw_items, unquoted};
use crate::source::{ParquetRows, SourceError};

/// The rows of a shard, one at a time.
pub(crate) struct ShardRows {
    rows: ParquetRows,
    /// The columns and parts of them that hold JSON text.
    texts: Texts,
    /// What a field `_rescued` of a node is called, as a key of JSON text.
    own_rescued: String,
    /// A row as its columns hold it.
    held: Vec<u8>,
}

/// Which parts of a value hold JSON text, by the names on the way there.
#[derive(Debug, Default)]
struct Texts {
    is_text: bool,
    parts: HashMap<String, Texts>,
}

impl ShardRows {
    /// Opens a shard of a folder.
    ///
    /// # Errors
    /// It cannot be read, or is no sound Parquet file.
    pub(crate) fn open(path: &Path, folder: &str) -> Result<Self, SourceError> {
        let rows = ParquetRows::open(path)?;
        let paths: Vec<Vec<String>> = rows
            .entry(JSON_TEXT)
            .and_then(|paths| serde_json::from_str(paths).ok())
            .unwrap_or_default();
        let mut texts = Texts::default();
        for path in paths {
            let part = path
                .into_iter()
                .fold(&mut texts, |part, name| part.parts.entry(name).or_default());
            part.is_text = true;
        }
        Ok(Self {
            rows,
            texts,
            own_rescued: format!("\"{folder}.{RESCUED}\""),
            held: Vec::new(),
        })
    }

    /// The next row as a JSON object; none at the end.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn next_line(&mut self) -> Result<Option<String>, SourceError> {
        self.held.clear();
        if !self.rows.next(&mut self.held)? {
            return Ok(None);
        }
        let held = String::from_utf8_lossy(&self.held);
        let mut line = String::with_capacity(held.len());
        line.push('{');
        for (key, raw) in raw_fields(&held).filter(|(_, raw)| *raw != "null") {
            let name = unquoted(key);
            if name != RESCUED {
                push_key(&mut line, self.key(key));
                restore(raw, self.texts.parts.get(&*name), &mut line);
                continue;
            }
            let rescued = unquoted(raw);
            for (key, raw) in raw_fields(&rescued).filter(|(_, raw)| *raw != "null") {
                push_key(&mut line, self.key(key));
                line.push_str(raw);
            }
        }
        line.push('}');
        Ok(Some(line))
    }

    /// The key of a field, whose column may have another name.
    fn key<'a>(&self, column: &'a str) -> &'a str {
        if column == self.own_rescued {
            "\"_rescued\""
        } else {
            column
        }
    }
}

/// Appends a typed value, with JSON where it holds JSON text and without the fields that are null.
fn restore(raw: &str, texts: Option<&Texts>, out: &mut String) {
    let part = |name: &str| texts.and_then(|texts| texts.parts.get(name));
    match raw.as_bytes().first() {
        Some(b'"') if texts.is_some_and(|texts| texts.is_text) => out.push_str(&unquoted(raw)),
        Some(b'{') => {
            out.push('{');
            for (key, raw) in raw_fields(raw).filter(|(_, raw)| *raw != "null") {
                push_key(out, key);
                restore(raw, part(&unquoted(key)), out);
            }
            out.push('}');
        }
        Some(b'[') => {
            let items = part("list").and_then(|list| list.parts.get("element"));
            out.push('[');
            for (at, raw) in raw_items(raw).enumerate() {
                if at > 0 {
                    out.push(',');
                }
                restore(raw, items, out);
            }
            out.push(']');
        }
        _ => out.push_str(raw),
    }
}

/// Begins a field of an object.
fn push_key(out: &mut String, key: &str) {
    if !out.ends_with('{') {
        out.push(',');
    }
    out.push_str(key);
    out.push(':');
}
