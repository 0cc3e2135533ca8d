//! chainette runs chains of model calls over millions of rows: resumable, row-true, in flat memory.
//!
//! The modules stand in the order in which data flows through them. A chain file becomes a plan, a plan
//! runs over an input and writes a folder:
//!
//! ```
//! use chainette::plan::{Closures, compile};
//! use chainette::run::{RunConfig, run_to_end};
//! use chainette::spec::ChainInput;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (input, out) = (dir.path().join("in.jsonl"), dir.path().join("out"));
//! std::fs::write(&input, "{\"text\": \"hello\"}\n")?;
//! let chain = "{name: shout, steps: [{id: up, apply: {jq: '{text: (.text | ascii_upcase)}'}}]}";
//! let chain = ChainInput { text: Some(chain.into()), ..ChainInput::file("shout.yaml") };
//! let compiled = compile(&chain, &Closures::none()).map_err(|report| report.to_string())?;
//!
//! let outcome = run_to_end(RunConfig::new(compiled.plan, &input, &out))?;
//! assert_eq!(outcome.stats.rows_out, 1);
//! let lines = std::fs::read_to_string(out.join("up/000.jsonl"))?;
//! assert_eq!(lines, "{\"row_id\":\"0\",\"text\":\"HELLO\"}\n");
//! # Ok(())
//! # }
//! ```

/// What flows: rows, their ids, the ways a row can fail.
pub mod row;
/// Facts about the flow, and who may read them.
pub mod event;
/// What time it is.
mod clock;
/// Where tests make a run fail; nothing in what users build.
#[cfg(not(feature = "failpoints"))]
mod failpoint;
/// Where tests make a run fail; nothing in what users build.
#[cfg(feature = "failpoints")]
pub mod failpoint;
/// 1: what the user wrote.
pub mod spec;
/// 2: what it says: templates, conditions, jq programs, models.
pub mod expr;
/// 3: what we will run: a chain in which every name is resolved.
pub mod plan;
/// 4: rows in.
pub mod source;
/// 5: who answers: engines and the broker that lends them.
pub mod engine;
/// 6: what happens to a chunk and its rows.
pub mod node;
/// 7: rows out.
pub mod sink;
/// 8: the loop: chunks through the plan, commits, checkpoints, the ledger.
pub mod run;
/// 9: what a finished run left, read again: verified, compared.
pub mod audit;
/// 9: who watches: progress lines, JSON logs, the summary.
pub mod report;
/// 10: who asks, from Rust: chains made of code.
pub mod chain;
/// 10: who asks: the command line.
pub mod cli;

/// The README's Rust compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
