//! A chain whose Applies are Rust closures: `cargo run --example closures -- in.jsonl out/`.
//!
//! Prints how many rows went in and came out.
#![allow(clippy::print_stdout)]

use std::error::Error;

use chainette::plan::{Closures, compile};
use chainette::row::Record;
use chainette::run::{RunConfig, run_to_end};
use chainette::spec::ChainInput;

const CHAIN: &str = "
name: squares
steps:
  - {id: square, apply: {closure: square}, output_model: {n: integer, square: integer}}
  - {id: even, apply: {closure: even}}
";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(input), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: closures IN.jsonl OUT".into());
    };
    let closures = Closures::none()
        .with("square", |row| square(row).map(|row| vec![row]))
        .with("even", |row| {
            let keep = number(row, "square")? % 2 == 0;
            Ok(keep.then(|| row.clone()).into_iter().collect())
        });
    let chain = ChainInput {
        text: Some(CHAIN.into()),
        ..ChainInput::file("squares.yaml")
    };
    let compiled = compile(&chain, &closures).map_err(|report| report.to_string())?;
    let outcome = run_to_end(RunConfig::new(compiled.plan, input, out))?;
    println!(
        "{} rows in, {} out, {} failed",
        outcome.stats.rows_in, outcome.stats.rows_out, outcome.stats.rows_failed
    );
    outcome.stopped.map_or(Ok(()), |error| Err(error.into()))
}

/// `{"n": 3}` → `{"n": 3, "square": 9}`; what a closure returns as an error is that row's failure.
fn square(row: &Record) -> Result<Record, String> {
    let n = number(row, "n")?;
    let square = n.checked_mul(n).ok_or("the square is too large")?;
    Record::parse(&format!("{{\"n\":{n},\"square\":{square}}}")).map_err(|error| error.to_string())
}

fn number(row: &Record, field: &str) -> Result<i64, String> {
    row.get(field)
        .and_then(|raw| raw.parse().ok())
        .ok_or_else(|| format!("`{field}` is no integer"))
}
