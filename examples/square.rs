//! A chain made of Rust code: `cargo run --example square -- numbers.jsonl out/`.
//!
//! Takes rows like `{"n": 3}`; a row without a number is that row's failure and stops nothing.
#![allow(clippy::print_stdout)]

use std::error::Error;

use chainette::chain::{Chain, Node};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Deserialize)]
struct Number {
    n: i64,
}

#[derive(Serialize)]
struct Square {
    n: i64,
    square: i64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(input), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: square IN.jsonl OUT".into());
    };
    let square = |Number { n }: Number| match n.checked_mul(n) {
        Some(square) => Ok(Square { n, square }),
        None => Err("the square is too large"),
    };
    let chain = Chain::builder("squares")
        .node(Node::map("square", square).output_model(json!({"n": "integer", "square": "integer"})))
        // A closure over the row as it is: what is kept comes out byte for byte as it went in.
        .node(Node::apply("even", |row| {
            let square = row.get("square").and_then(|raw| raw.parse::<i64>().ok());
            let even = square.ok_or("no square")? % 2 == 0;
            Ok(even.then(|| row.clone()).into_iter().collect())
        }))
        .build()?;
    let stats = chain.job(input, out).run()?.into_result()?;
    println!(
        "{} rows in, {} out, {} failed",
        stats.rows_in, stats.rows_out, stats.rows_failed
    );
    Ok(())
}
