//! Outputs as CSV: `cargo run --example custom_sink -- reviews.jsonl out/`.
//!
//! Anything can stand in the place of the file: a sink is also where rows are handed to a database, by `row_id`.
#![allow(clippy::indexing_slicing, clippy::print_stdout)]

use std::error::Error;
use std::io::Write;

use chainette::chain::{Chain, Node};
use chainette::sink::{Rows, Shard, Sink};
use serde_json::json;

/// A CSV file per shard; its columns are those that the chain's models declare, and one for all other fields.
pub struct Csv;

/// The column of fields that no model declares: a JSON object.
const OTHER: &str = "_other";

impl Sink for Csv {
    fn name(&self) -> &str {
        "csv-1"
    }

    fn extension(&self) -> &str {
        "csv"
    }

    fn write(
        &self,
        shard: &Shard<'_>,
        rows: &mut Rows<'_>,
        out: &mut dyn Write,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let declared = shard.schema["properties"].as_object();
        let columns: Vec<&String> = declared.into_iter().flat_map(|fields| fields.keys()).collect();
        let names = columns.iter().map(|name| quoted(name));
        writeln!(
            out,
            "{}",
            names.chain([OTHER.to_owned()]).collect::<Vec<_>>().join(",")
        )?;
        for row in rows {
            let row = row?;
            let (mut cells, mut other) = (vec![String::new(); columns.len()], Vec::new());
            for (key, value) in row.fields() {
                let name: String = serde_json::from_str(key)?;
                match columns.iter().position(|column| **column == name) {
                    Some(at) => cells[at] = cell(value)?,
                    None => other.push(format!("{key}:{value}")),
                }
            }
            cells.push(match other.is_empty() {
                true => String::new(),
                false => quoted(&format!("{{{}}}", other.join(","))),
            });
            writeln!(out, "{}", cells.join(","))?;
        }
        Ok(())
    }
}

/// A JSON value in a line of CSV: text as it is, null as nothing, the rest as JSON.
fn cell(raw: &str) -> serde_json::Result<String> {
    Ok(match raw {
        "null" => String::new(),
        text if text.starts_with('"') => quoted(&serde_json::from_str::<String>(text)?),
        json => quoted(json),
    })
}

/// With quotes around it where CSV needs them.
fn quoted(text: &str) -> String {
    if text.is_empty() || text.contains(['"', ',', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

/// Counts the words of reviews.
pub fn words() -> Result<Chain, Box<dyn Error>> {
    let chain = Chain::builder("words")
        .set("input_model", json!({"text": "string", "stars": "integer?"}))
        .node(
            Node::jq(
                "words",
                "{first: ((.text / \" \")[0] // \"\"), words: (.text / \" \" | length)}",
            )
            .output_model(json!({"first": "string", "words": "integer"})),
        )
        .build()?;
    Ok(chain)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(input), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: custom_sink IN.jsonl OUT".into());
    };
    let stats = words()?.job(input, out).sink(Csv).run()?.into_result()?;
    println!("{} rows in, {} out", stats.rows_in, stats.rows_out);
    Ok(())
}
