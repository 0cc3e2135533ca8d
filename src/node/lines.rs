//! How rows are written as JSON lines; untouched values are spliced as they came.

use crate::plan::{Item, Node, Plan};
use crate::row::{Named, Record, RowId, write_str};

use super::output::Lines;
use super::walk::{Failure, Origin, State};

/// How much of a bad input line is shown.
const RAW_SHOWN: usize = 4096;

/// A node's line: its row id, then the record's fields.
pub(super) fn node(lines: &mut Lines, node: &str, id: &RowId, record: &Record) {
    let out = &mut lines.bytes;
    row_id(out, id);
    let text = record.text();
    if memchr::memmem::find(text.as_bytes(), b"row_id").is_some() || text.contains('\\') {
        for (key, value) in record.fields() {
            let renamed = record_key_is_row_id(key);
            out.push(b',');
            if renamed {
                out.extend_from_slice(format!("\"{node}.row_id\"").as_bytes());
            } else {
                out.extend_from_slice(key.as_bytes());
            }
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        }
        out.push(b'}');
    } else {
        // The object as it stands, without its opening brace.
        let fields = text.get(1..).unwrap_or_default();
        let empty = fields.trim_start().starts_with('}');
        out.extend_from_slice(if empty { b"}" } else { b"," });
        if !empty {
            out.extend_from_slice(fields.as_bytes());
        }
    }
    lines.end_line();
}

fn record_key_is_row_id(key: &str) -> bool {
    key == "\"row_id\""
        || (key.contains('\\') && serde_json::from_str::<String>(key).is_ok_and(|k| k == "row_id"))
}

/// A line of `flattened/` for a row at the end of the main line.
pub(super) fn flattened(lines: &mut Lines, plan: &Plan, row: &State) {
    let out = &mut lines.bytes;
    row_id(out, &row.id);
    prefixed(out, "chain_input", &row.input);
    for item in &plan.main.0 {
        match item {
            Item::Node(ix) => {
                let Some(Node { id, name, .. }) = plan.nodes.get(ix.0) else {
                    continue;
                };
                if let Some(Named::Record(record)) = row.names.get(name.0) {
                    prefixed(out, id, record);
                }
            }
            Item::Group(group) => {
                let joins = group
                    .branches
                    .iter()
                    .filter_map(|ix| plan.branches.get(ix.0)?.join);
                for name in joins {
                    let Some(alias) = plan.names.get(name.0) else {
                        continue;
                    };
                    match row.names.get(name.0) {
                        Some(Named::Record(record)) => prefixed(out, alias, record),
                        Some(Named::List(records)) => {
                            out.extend_from_slice(format!(",\"{alias}\":[").as_bytes());
                            for (i, record) in records.iter().enumerate() {
                                if i > 0 {
                                    out.push(b',');
                                }
                                out.extend_from_slice(record.text().as_bytes());
                            }
                            out.push(b']');
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    out.push(b'}');
    lines.end_line();
}

/// A line of `errors/` for a row that failed on its way.
pub(super) fn error(lines: &mut Lines, failure: &Failure, origin: &Origin, input: &Record) {
    let Failure {
        row_id: id,
        node,
        child,
        branch,
        error,
        ..
    } = failure;
    let out = &mut lines.bytes;
    row_id(out, id);
    field(out, "node", node);
    if let Some(branch) = branch {
        field(out, "branch", branch);
    }
    field(out, "kind", error.kind.as_str());
    field(out, "message", &error.message);
    if let Some(attempts) = error.attempts {
        out.extend_from_slice(format!(",\"attempts\":{attempts}").as_bytes());
    }
    place(out, origin);
    if let Some(child) = child {
        field(out, "child", &child.to_string());
    }
    out.extend_from_slice(b",\"chain_input\":");
    out.extend_from_slice(input.text().as_bytes());
    if let Some(reply) = &error.reply {
        field(out, "reply", reply);
    }
    out.push(b'}');
    lines.end_line();
}

/// A line of `errors/` for an input line that is no row, or breaks `input_model`.
pub(super) fn bad_input(
    lines: &mut Lines,
    id: &RowId,
    origin: &Origin,
    message: &str,
    input: Result<&Record, &[u8]>,
) {
    let out = &mut lines.bytes;
    row_id(out, id);
    field(out, "kind", crate::row::ErrorKind::InvalidInput.as_str());
    field(out, "message", message);
    place(out, origin);
    out.extend_from_slice(b",\"chain_input\":");
    match input {
        Ok(record) => out.extend_from_slice(record.text().as_bytes()),
        Err(raw) => {
            out.extend_from_slice(b"null");
            let shown = raw.get(..RAW_SHOWN.min(raw.len())).unwrap_or_default();
            // A character cut in two at the end is left out, anything else that is no UTF-8 replaced.
            let shown = match std::str::from_utf8(shown) {
                Err(error) if error.error_len().is_none() => {
                    shown.get(..error.valid_up_to()).unwrap_or_default()
                }
                _ => shown,
            };
            field(out, "raw", &String::from_utf8_lossy(shown));
        }
    }
    out.push(b'}');
    lines.end_line();
}

fn row_id(out: &mut Vec<u8>, id: &RowId) {
    use std::io::Write as _;
    let _infallible = write!(out, "{{\"row_id\":\"{id}\"");
}

fn place(out: &mut Vec<u8>, origin: &Origin) {
    if let Some(file) = &origin.file {
        field(out, "file", file);
        out.extend_from_slice(format!(",\"line\":{}", origin.line).as_bytes());
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    write_str(out, value);
}

/// A record's fields as columns `<name>.<field>`.
fn prefixed(out: &mut Vec<u8>, name: &str, record: &Record) {
    for (key, value) in record.fields() {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.push(b'.');
        out.extend_from_slice(key.get(1..).unwrap_or_default().as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
}
