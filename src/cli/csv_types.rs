//! An `input_model` that no row of a CSV file can fit: its values are all strings.

use std::path::Path;

use serde_json::Value;

use crate::plan::Plan;

/// Says which fields of the input model are declared as what a value of `csv` never is.
pub(super) fn misfits(plan: &Plan, csv: Option<&Path>) -> Option<String> {
    let csv = csv?.display();
    let fields = plan
        .input_model
        .as_ref()?
        .schema()
        .get("properties")?
        .as_object()?;
    let misfits = fields
        .iter()
        .filter_map(|(name, schema)| Some((name, never_a_string(schema)?)));
    let (first, kind) = misfits.clone().next()?;
    let convert = if kind == "boolean" {
        "(. == \"true\")"
    } else {
        "tonumber"
    };
    let first = match first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => format!(".{first}"),
        false => format!(".[{}]", Value::from(first.as_str())),
    };
    let declared: Vec<String> = misfits
        .map(|(name, kind)| format!("`{name}` as {kind}"))
        .collect();
    Some(format!(
        "every value in {csv} is a string, and `input_model` declares {}: rows with such a column fail\n  \
         declare it string, and convert it in the first node: `jq: '{first} |= {convert}'`",
        declared.join(", ")
    ))
}

/// What a schema wants instead of a string.
fn never_a_string(schema: &Value) -> Option<String> {
    let kinds: Vec<&str> = match schema.get("type")? {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => vec![kind.as_str()?],
    };
    let typed = ["integer", "number", "boolean"];
    let kind = kinds.iter().find(|kind| typed.contains(kind))?;
    (!kinds.contains(&"string")).then(|| (*kind).to_owned())
}
