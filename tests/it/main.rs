//! The integration tests: one binary, one module per subject.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stderr
)]

mod broken_inputs;
mod broker;
mod chains;
mod cli;
mod columns;
mod commands;
mod commands2;
mod commit_points;
mod demos;
mod conformance;
mod dry_run;
mod diagnostics;
mod engine;
mod fates;
#[path = "gen.rs"]
mod generate;
mod given;
mod harness;
mod inputs;
mod help;
mod https;
mod invocations;
mod jq;
mod kill;
mod lines;
mod parquet;
mod processes;
mod pipes;
mod promises;
mod property;
mod raw;
mod pty;
mod reference;
mod reference_test;
mod requests;
mod review;
mod schema;
mod screens;
mod schema_file;
mod server;
mod server_test;
mod step;
mod streams;
mod tape;
mod twins;
