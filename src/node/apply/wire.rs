//! What workers are told and what they answer: one line each way per row.

use std::borrow::Cow;
use std::process::Command;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::expr::{NameIx, Scope, Visible};
use crate::plan::{ProcessPlan, Program};
use crate::row::{Named, Record, compact, write_str};
use crate::source::MAX_ROW_BYTES;

/// More outputs than this for one row are a runaway program.
const MAX_OUTPUTS: usize = 1_000_000;
/// An answer may be this long.
pub(super) const MAX_ANSWER: usize = MAX_ROW_BYTES;

/// The Python side.
const DRIVER: &str = include_str!("driver.py");

/// Which protocol a worker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// The driver's: answers in the order of the rows, after a greeting.
    Python {
        /// The function takes `row`.
        row: bool,
    },
    /// JSON lines with row ids, in any order.
    Command,
}

/// A row's outputs as a JSON list, or its error message.
pub(super) type Answer = Result<String, String>;

/// A line from a worker, understood.
pub(super) enum Heard<'a> {
    /// The answer for the row that was asked first.
    Next(Answer),
    /// The answer for a row.
    Row(Cow<'a, str>, Answer),
}

/// How to start a worker.
pub(super) fn launch(plan: &ProcessPlan) -> Command {
    let mut command = match &plan.program {
        Program::Python {
            interpreter,
            file,
            function,
            ..
        } => {
            let mut command = Command::new(interpreter);
            command
                .args(["-c", DRIVER])
                .arg(file)
                .arg(function)
                .arg(&plan.folder);
            command.args([MAX_OUTPUTS.to_string(), MAX_ANSWER.to_string()]);
            // Sets of strings come in the same order in every worker and on every resume.
            if std::env::var_os("PYTHONHASHSEED").is_none() {
                command.env("PYTHONHASHSEED", "0");
            }
            command
        }
        Program::Command {
            program, arguments, ..
        } => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
    };
    command.current_dir(&plan.folder);
    command
}

/// Reads the driver's first line: whether the function takes `row`, or why there is none.
pub(super) fn greeting(line: &[u8]) -> Result<Wire, String> {
    #[derive(Deserialize)]
    struct Greeting {
        row: bool,
    }
    if let Ok(Greeting { row }) = serde_json::from_slice(line) {
        return Ok(Wire::Python { row });
    }
    Err(serde_json::from_slice(line).unwrap_or_else(|_| format!("it greeted with `{}`", quoted(line))))
}

impl Wire {
    /// The line that asks for a row.
    pub(super) fn question(self, scope: &Scope<'_>, visible: &Visible, vars: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(scope.item.text().len() + 16);
        match self {
            Self::Python { row: false } => json(&mut out, scope.item.text()),
            Self::Python { row: true } => {
                out.push(b'[');
                json(&mut out, scope.item.text());
                out.push(b',');
                row(&mut out, scope, visible, vars);
                out.push(b']');
            }
            Self::Command => {
                out.extend_from_slice(format!("{{\"row_id\":\"{}\",\"item\":", scope.row_id).as_bytes());
                json(&mut out, scope.item.text());
                out.extend_from_slice(b",\"row\":");
                row(&mut out, scope, visible, vars);
                out.push(b'}');
            }
        }
        out.push(b'\n');
        out
    }

    /// Reads a line; the error says what is wrong with it.
    pub(super) fn hear(self, line: &[u8]) -> Result<Heard<'_>, String> {
        let bad = || format!("wrote a line that is no answer: `{}`", quoted(line));
        let text = std::str::from_utf8(line).map_err(|_| bad())?;
        match self {
            Self::Python { .. } => match line.first() {
                Some(b'[') => Ok(Heard::Next(Ok(text.to_owned()))),
                Some(b'"') => {
                    let message = serde_json::from_str(text).map_err(|_| bad())?;
                    Ok(Heard::Next(Err(message)))
                }
                _ => Err(bad()),
            },
            Self::Command => {
                let line: Line<'_> = serde_json::from_str(text).map_err(|_| bad())?;
                let answer = match (line.error, line.outputs) {
                    (Some(error), _) => {
                        Err(serde_json::from_str(error.get()).unwrap_or_else(|_| error.get().into()))
                    }
                    (None, Some(outputs)) => Ok(outputs.get().to_owned()),
                    (None, None) => Err("the program answered with neither `outputs` nor `error`".to_owned()),
                };
                Ok(Heard::Row(line.row_id, answer))
            }
        }
    }
}

/// An answer of a command.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    row_id: Cow<'a, str>,
    #[serde(borrow)]
    outputs: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The records of an answer; anything but an object `v` becomes `{"value": v}`.
pub(super) fn records(outputs: &str) -> Result<Vec<Record>, String> {
    let values: Vec<&RawValue> =
        serde_json::from_str(outputs).map_err(|_| "the program's `outputs` are no list".to_owned())?;
    if values.len() > MAX_OUTPUTS {
        return Err(format!("more than {MAX_OUTPUTS} outputs for one row"));
    }
    let record = |value: &RawValue| {
        let text = value.get();
        let record = if text.starts_with('{') {
            Record::parse(text)
        } else {
            Record::parse(&format!("{{\"value\":{text}}}"))
        };
        record.map_err(|error| format!("an output is {error}"))
    };
    values.into_iter().map(record).collect()
}

/// Appends JSON on one line: a line break can only stand between tokens.
fn json(out: &mut Vec<u8>, text: &str) {
    if memchr::memchr2(b'\n', b'\r', text.as_bytes()).is_some() {
        out.extend_from_slice(compact(text).as_bytes());
    } else {
        out.extend_from_slice(text.as_bytes());
    }
}

/// Appends everything that a node can see.
fn row(out: &mut Vec<u8>, scope: &Scope<'_>, visible: &Visible, vars: &str) {
    out.extend_from_slice(format!("{{\"row_id\":\"{}\",\"chain_input\":", scope.row_id).as_bytes());
    json(out, scope.chain_input.text());
    out.extend_from_slice(b",\"vars\":");
    out.extend_from_slice(vars.as_bytes());
    for (name, NameIx(ix)) in visible.iter() {
        let value = match scope.names.get(*ix) {
            None | Some(Named::Unset) => continue,
            Some(value) => value,
        };
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        match value {
            Named::Unset | Named::Null => out.extend_from_slice(b"null"),
            Named::Record(record) => json(out, record.text()),
            Named::List(records) => {
                out.push(b'[');
                for (i, record) in records.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    json(out, record.text());
                }
                out.push(b']');
            }
            Named::Text(text) => write_str(out, text),
        }
    }
    out.push(b'}');
}

/// The start of a line, to be shown.
fn quoted(line: &[u8]) -> String {
    let shown = String::from_utf8_lossy(line.get(..line.len().min(800)).unwrap_or_default());
    match shown.char_indices().nth(200) {
        Some((at, _)) => format!("{}…", shown.get(..at).unwrap_or_default()),
        None => shown.into_owned(),
    }
}
