//! The failpoints of the ledger, and of a generation of outputs that takes another's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failpoints::{ARGS, Scenario, answer, chain, finished, input};
use crate::harness::Bench;
use crate::server::{Answer, TestServer};

/// A run whose segments are small.
pub const SEGMENTS: &[&str] = &[
    "ledger.opened",
    "ledger.written",
    "ledger.synced",
    "ledger.full_synced",
    "ledger.segment_created",
    "seal.begun",
    "seal.written",
    "seal.renamed",
    "seal.removed",
];
/// A run over rows that moved.
pub const EDITED: &[&str] = &[
    "reuse.written",
    "reuse.synced",
    "reuse.renamed",
    "reuse.dir_synced",
    "ledger.aliased",
];
/// A run whose failures are tried again.
pub const RETRIED: &[&str] = &[
    "reuse.written",
    "reuse.renamed",
    "ledger.voided",
    "ledger.written",
    "checkpoint.renamed",
    "sync.shard_renamed",
    "metadata.renamed",
    "swap.written",
    "swap.synced",
    "swap.renamed",
    "swap.dir_synced",
    "swap.taken_out",
    "swap.put_in",
    "swap.private_moved",
    "swap.file_moved",
    "swap.durable",
    "swap.unmarked",
];
/// The same where lines wait for a larger `--limit`.
pub const RETRIED_TO_A_LIMIT: &[&str] = &[
    "swap.put_in",
    "swap.lines_moved",
    "swap.private_moved",
    "swap.durable",
];

#[test]
fn small_segments() {
    let server = TestServer::start(answer);
    let bench = Bench::new(&chain(&server, "grade"), input());
    let env = [("CHAINETTE_SEGMENT_BYTES", "700")];
    Scenario::new(server, bench, &ARGS, &env, |_, _| ()).at_every(SEGMENTS);
}

#[test]
fn rows_that_moved() {
    let server = TestServer::start(answer);
    let bench = Bench::new(&chain(&server, "grade"), input());
    let args = [&ARGS[..], &["--resume"]].concat();
    let env = [("CHAINETTE_SEGMENT_BYTES", "700")];
    let prepare = |bench: &Bench, args: &[&str]| {
        finished(bench, args);
        bench.write(
            "in.jsonl",
            "{\"n\":100,\"text\":\"a new row\"}\n".to_owned() + &input(),
        );
    };
    Scenario::new(server, bench, &args, &env, prepare).at_every(EDITED);
}

/// An engine that fails some rows until it is well.
fn ill(args: &[&'static str]) -> Scenario {
    let is_well = Arc::new(AtomicBool::new(false));
    let now = is_well.clone();
    let server = TestServer::start(move |asked| {
        let text = asked.user();
        if text.ends_with('3') && !now.load(Ordering::SeqCst) {
            return Answer::text("never");
        }
        Answer::text(format!("{{\"g\":{}}}", text.len()))
    });
    let bench = Bench::new(&chain(&server, "grade"), input());
    let prepare = |bench: &Bench, args: &[&str]| {
        finished(bench, args);
        is_well.store(true, Ordering::SeqCst);
    };
    Scenario::new(server, bench, args, &[], prepare)
}

#[test]
fn failures_that_are_tried_again() {
    let scenario = ill(&[&ARGS[..], &["--retry-errors"]].concat());
    assert!((1..20).contains(&scenario.asked), "{}", scenario.asked);
    scenario.at_every(RETRIED);
}

#[test]
fn failures_that_are_tried_again_up_to_a_limit() {
    let args = [
        &ARGS[..],
        &["--retry-errors", "--format", "parquet", "--limit", "20"],
    ]
    .concat();
    let scenario = ill(&args);
    assert!((1..20).contains(&scenario.asked), "{}", scenario.asked);
    scenario.at_every(RETRIED_TO_A_LIMIT);
}
