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
mod commands;
mod commit_points;
mod engine;
mod fates;
#[path = "gen.rs"]
mod generate;
mod harness;
mod inputs;
mod invocations;
mod jq;
mod kill;
mod pipes;
mod promises;
mod property;
mod reference;
mod reference_test;
mod review;
mod schema;
mod server;
mod server_test;
mod step;
mod tape;
mod twins;
