//! One line of a folder: is it JSON, does it begin with its row id, does it match its schema?

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::expr::model::Model;
use crate::row::{ErrorKind, Record, RowId, raw_fields};

/// Checks the lines of one folder.
pub(super) struct LineCheck {
    /// None where every object with a row id will do.
    model: Option<Model>,
    /// The lines come from columns, which have no field where there may have been a null.
    nulls_are_lost: bool,
}

/// What is known of a line. `K` is what it is compared by.
#[derive(Debug)]
pub(super) struct Checked<K> {
    /// None where it cannot be told which row it is.
    pub(super) key: Option<K>,
    /// What is wrong with it.
    pub(super) problem: Option<String>,
}

impl<K> Checked<K> {
    fn bad(problem: impl Into<String>) -> Self {
        Self {
            key: None,
            problem: Some(problem.into()),
        }
    }
}

impl LineCheck {
    /// The check against a schema; the error is what is wrong with the schema.
    pub(super) fn new(schema: &Value, nulls_are_lost: bool) -> Result<Self, String> {
        let open = json!({
            "type": "object", "properties": {"row_id": {"type": "string"}}, "required": ["row_id"],
        });
        let model = match *schema == open {
            true => None,
            false => Some(Model::from_schema(schema.clone())?),
        };
        Ok(Self {
            model,
            nulls_are_lost,
        })
    }

    /// Takes every object with a row id.
    pub(super) fn any() -> Self {
        Self {
            model: None,
            nulls_are_lost: false,
        }
    }

    /// Checks a line; its key is its row id.
    pub(super) fn row(&self, line: &[u8]) -> Checked<RowId> {
        let (text, row_id) = match read(line) {
            Ok(read) => read,
            Err(problem) => return Checked::bad(problem),
        };
        let problem = match &self.model {
            None => Record::parse(text).err().map(|error| error.to_string()),
            Some(model) => value(text).and_then(|value| self.fits(model, value)).err(),
        };
        Checked {
            key: Some(row_id),
            problem,
        }
    }

    /// Checks a line of `errors/`; `orders` tells where failures of a node or branch stand among others.
    pub(super) fn error(&self, line: &[u8], orders: &HashMap<String, usize>) -> Checked<ErrorKey> {
        let (text, row_id) = match read(line) {
            Ok(read) => read,
            Err(problem) => return Checked::bad(problem),
        };
        let value = match value(text) {
            Ok(value) => value,
            Err(problem) => return Checked::bad(problem),
        };
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let node = text("node");
        let order = match &node {
            None => 0,
            Some(node) => orders.get(node).copied().unwrap_or(usize::MAX),
        };
        let key = ErrorKey {
            row_id,
            order,
            node,
            branch: text("branch"),
            child: text("child"),
            kind: text("kind").unwrap_or_default(),
        };
        let model = self.model.as_ref();
        let problem = model.and_then(|model| self.fits(model, value).err());
        Checked {
            key: Some(key),
            problem,
        }
    }

    fn fits(&self, model: &Model, value: Value) -> Result<(), String> {
        let result = match self.nulls_are_lost {
            true => model.validate_without_nulls(value),
            false => model.validate(&value),
        };
        result.map_err(|problem| format!("it does not match its schema: {problem}"))
    }
}

/// What a line of `errors/` is compared by. In the order of the file: by row, then by place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ErrorKey {
    pub(super) row_id: RowId,
    /// Where its node or branch stands in the chain.
    pub(super) order: usize,
    pub(super) node: Option<String>,
    pub(super) branch: Option<String>,
    pub(super) child: Option<String>,
    pub(super) kind: String,
}

impl Ord for ErrorKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.row_id, self.order).cmp(&(&other.row_id, other.order))
    }
}

impl PartialOrd for ErrorKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The JSON Schema of a line of `errors/`.
pub(super) fn error_schema() -> Value {
    let kinds: Vec<&str> = ErrorKind::ALL.into_iter().map(ErrorKind::as_str).collect();
    json!({
        "type": "object",
        "required": ["row_id", "kind", "message", "chain_input"],
        "additionalProperties": false,
        "properties": {
            "row_id": {"type": "string"},
            "node": {"type": "string"},
            "branch": {"type": "string"},
            "kind": {"enum": kinds},
            "message": {"type": "string", "minLength": 1},
            "attempts": {"type": "integer", "minimum": 0},
            "file": {"type": "string"},
            "line": {"type": "integer", "minimum": 1},
            "child": {"type": "string"},
            "chain_input": {"type": ["object", "null"]},
            "reply": {"type": "string"},
            "raw": {"type": "string"},
        },
    })
}

/// The text of a line, and the row id it begins with.
fn read(line: &[u8]) -> Result<(&str, RowId), String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not valid UTF-8")?;
    let id = match raw_fields(text).next() {
        Some(("\"row_id\"", id)) => id.strip_prefix('"').and_then(|id| id.strip_suffix('"')),
        // What is no JSON is told as such.
        _ => {
            return Err(value(text)
                .err()
                .unwrap_or_else(|| "it does not begin with its row_id".into()));
        }
    };
    let id = id.and_then(RowId::parse);
    Ok((text, id.ok_or("its row_id is none")?))
}

/// A line as a value; numbers beyond a double are the largest double, as jq takes them.
fn value(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(_) => match Record::parse(text) {
            Ok(record) => Ok(record.to_json()),
            Err(error) => Err(error.to_string()),
        },
    }
}
