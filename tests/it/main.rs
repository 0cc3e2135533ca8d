//! The integration tests: one binary, one module per subject.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::print_stderr
)]

mod audit;
mod broken_inputs;
mod broker;
mod chains;
mod cli;
mod clock;
mod columns;
mod commands;
mod commit_points;
mod completions;
mod conformance;
#[path = "../../examples/custom_sink.rs"]
mod custom_sink;
mod demos;
mod diagnostics;
mod diff;
mod disks;
mod draining;
mod dry_run;
mod editing;
mod embed;
#[cfg(feature = "embedded")]
mod embedded;
#[cfg(feature = "embedded")]
mod embedded_shown;
#[cfg(feature = "embedded")]
mod embedded_text;
mod embedded_thinking;
mod embed_runs;
mod engine;
mod engine_commands;
mod engine_faults;
mod events;
mod failpoints;
mod failpoints_answers;
mod examples;
mod fates;
mod fates_engine;
#[path = "gen.rs"]
mod generate;
mod gguf_file;
mod given;
mod harness;
mod help;
mod https;
mod hub;
mod inputs;
mod invocations;
mod jq;
mod judge;
mod kill;
mod ledger;
mod library;
mod lines;
mod logs;
mod nulls;
mod out_faults;
mod pace;
mod pace_model;
mod parquet;
mod parquet_resume;
mod pipes;
mod place;
mod policies;
mod probing;
mod process_ends;
mod processes;
mod promises;
mod property;
mod provision;
mod provision_flags;
mod provision_hub;
mod pty;
mod rate;
mod raw;
mod readme;
mod reference;
mod reference_test;
mod refused;
mod renderer;
mod requests;
mod resuming;
mod retrying;
mod review;
mod review_engines;
mod row_check;
mod schema;
mod schema_file;
mod screens;
mod secrets;
mod served;
mod server;
mod server_test;
mod shown;
mod signals;
mod sinks;
mod stage;
mod started;
mod starter;
mod step;
mod streams;
mod supervise;
mod switching;
mod switching_ends;
mod tampering;
mod tape;
mod templates;
mod twins;
mod unused;
mod vectors;
mod verify;
mod warm;
mod warm_harness;
