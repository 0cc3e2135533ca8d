//! A million generated rows, two closures at the same time, a join: `cargo run --release --example
//! huge_batch_demo -- out/`.
//!
//! Memory stays flat whatever the number of rows (`huge_batch_demo OUT [ROWS]`). Kill it and run it again: it
//! goes on where it stopped.
#![allow(clippy::print_stdout)]

use std::error::Error;

use chainette::chain::{Branch, Chain, Node};
use chainette::report::{Plain, Style};
use chainette::row::Record;
use chainette::source::Generated;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let out = args.next().ok_or("usage: huge_batch_demo OUT [ROWS]")?;
    let rows: u64 = args.next().map_or(Ok(1_000_000), |rows| rows.parse())?;

    let chain = Chain::builder("huge-batch-demo")
        .node(Node::parallel([
            Branch::new("square")
                .join("square")
                .node(Node::apply("squared", |row| {
                    let n = number(row)?;
                    record(&format!("{{\"value\":{}}}", n * n))
                })),
            Branch::new("parity")
                .join("parity")
                .node(Node::apply("odd_or_even", |row| {
                    let word = if number(row)? % 2 == 0 { "even" } else { "odd" };
                    record(&format!("{{\"value\":\"{word}\"}}"))
                })),
        ]))
        .node(Node::jq(
            "digest",
            "{n, square: $row.square.value, parity: $row.parity.value}",
        ))
        .build()?;

    let input = Generated::new(format!("0..{rows}"), move || {
        Box::new((0..rows).map(|n| format!("{{\"n\":{n}}}")))
    });
    let stats = chain
        .job_over(input, out)
        .report(Plain::stderr(Style::default()))
        .run()?
        .into_result()?;
    println!(
        "{} rows in, {} out, {:.0} rows/s",
        stats.rows_in,
        stats.rows_out,
        (stats.rows_in - stats.rows_resumed) as f64 / stats.seconds
    );
    Ok(())
}

fn number(row: &Record) -> Result<u64, String> {
    let n = row.get("n").and_then(|raw| raw.parse().ok());
    n.ok_or_else(|| "`n` is no number".to_owned())
}

fn record(text: &str) -> Result<Vec<Record>, String> {
    Ok(vec![Record::parse(text).map_err(|error| error.to_string())?])
}
