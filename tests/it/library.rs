//! Chains run from Rust.

use std::fs;

use chainette::chain::{Chain, CustomEngine, Node};
use chainette::engine::{FnEngine, Reply};
use chainette::run::RunError;
use serde_json::json;

use crate::harness::folder;

/// A file whose chain calls a closure and asks an engine that no file declares an address for.
const CHAIN: &str = "name: t\nvars: {times: 1}\nsteps:\n  - {id: doubled, apply: {closure: double}}\n  - {id: said, engine: mine, user_prompt: '{{ n }} * {{ vars.times }}'}\n";
const ENGINES: &str = "engines: {mine: {backend: openai, model: m, endpoint: 'http://127.0.0.1:9/v1'}}\n";

#[test]
fn a_chain_file_with_closures_engines_and_vars() {
    let dir = folder(&[
        ("chain.yaml", CHAIN),
        ("engines.yaml", ENGINES),
        ("in.jsonl", "{\"n\":3}\n{\"n\":\"x\"}\n"),
    ]);
    let echo = FnEngine::new("echo", |question: chainette::engine::Question| async move {
        let asked = question.messages.last().map(|message| message.content.clone());
        Ok(Reply::text(asked.unwrap_or_default()))
    });
    let chain = Chain::file(dir.path().join("chain.yaml"))
        .engines_file(dir.path().join("engines.yaml"))
        .var("times", 7)
        .closure("double", |row| {
            let n: i64 = row
                .get("n")
                .and_then(|n| n.parse().ok())
                .ok_or("`n` is no integer")?;
            let text = json!({"n": 2 * n}).to_string();
            Ok(vec![
                chainette::row::Record::parse(&text).map_err(|error| error.to_string())?,
            ])
        })
        .engine("mine", CustomEngine::new(echo))
        .build()
        .expect("a good chain");
    let out = dir.path().join("out");
    let stats = chain
        .job(dir.path().join("in.jsonl"), &out)
        .run()
        .expect("it runs")
        .stats;
    assert_eq!((stats.rows_in, stats.rows_out, stats.rows_failed), (2, 1, 1));
    let said = fs::read_to_string(out.join("said/000.jsonl")).expect("the outputs");
    assert_eq!(said, "{\"row_id\":\"0\",\"text\":\"6 * 7\"}\n");
    let errors = fs::read_to_string(out.join("errors/000.jsonl")).expect("the errors");
    assert!(errors.contains("`n` is no integer"), "{errors}");
}

#[test]
fn a_chain_file_that_is_not_there_is_a_problem() {
    let problems = Chain::file("/nowhere/chain.yaml")
        .build()
        .err()
        .expect("no chain");
    assert!(problems.to_string().contains("/nowhere/chain.yaml"), "{problems}");
}

#[test]
fn shards_without_rows_are_refused() {
    let dir = folder(&[("in.jsonl", "{}\n")]);
    let chain = Chain::builder("t")
        .node(Node::jq("a", "."))
        .build()
        .expect("a good chain");
    let mut job = chain.job(dir.path().join("in.jsonl"), dir.path().join("out"));
    job.config.max_rows = 0;
    let error = job.run().expect_err("no rows");
    assert!(matches!(error, RunError::Zero { field: "max_rows" }), "{error}");
    assert!(error.is_usage() && !dir.path().join("out").exists());
}
