//! The runner against the reference interpreter: random chains, inputs, batch sizes, faults and kills; same files.
//!
//! `PROPTEST_CASES=2000 cargo test --test it property` asks more of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use serde_json::Value;

use crate::cli;
use crate::generate::{Chain, answer, reply};
use crate::lines;
use crate::reference::{self, Fates, Outcome};
use crate::server::TestServer;
use crate::tape::Tape;

/// One random run.
#[derive(Clone, Debug)]
struct Case {
    chain: Vec<u8>,
    input: Vec<u8>,
    batch_size: usize,
    max_lines: usize,
    faults: bool,
    /// Milliseconds until each `kill -9`.
    kills: Vec<u64>,
}

fn cases(default: u32, seed: u64) -> TestRunner {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    TestRunner::new(Config {
        cases: cases.unwrap_or(default),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_time: 60_000,
        max_shrink_iters: 2_000,
        ..Config::default()
    })
}

fn any_case(rows: usize, kills: usize) -> impl Strategy<Value = Case> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let kills = prop::collection::vec(1_u64..120, kills.min(1)..=kills);
    (
        bytes(140),
        bytes(rows * 3),
        1_usize..30,
        1_usize..20,
        prop::bool::weighted(0.15),
        kills,
    )
        .prop_map(|(chain, input, batch_size, max_lines, faults, kills)| Case {
            chain,
            input,
            batch_size,
            max_lines,
            faults,
            kills,
        })
}

/// The same function of a prompt, for the reference.
fn expected(chain: &Chain, input: &[u8], max_lines: usize) -> Outcome {
    reference::run(
        chain,
        input,
        "in.jsonl",
        max_lines,
        &|system, user, again, limit| reply(system, user, again, limit),
    )
}

/// The wording of messages is no part of the contract; that there is one is.
fn hide_messages(files: &mut BTreeMap<String, String>) -> Result<(), TestCaseError> {
    const KEY: &str = "\"message\":";
    for (_, text) in files.iter_mut().filter(|(name, _)| name.starts_with("errors/")) {
        let mut lines = String::new();
        for line in text.lines() {
            let at = line.find(KEY).map(|at| at + KEY.len());
            let at = at.ok_or_else(|| TestCaseError::fail(format!("no message: {line}")))?;
            let mut values = serde_json::Deserializer::from_str(&line[at..]).into_iter::<String>();
            let message = values.next().and_then(Result::ok).unwrap_or_default();
            prop_assert!(!message.is_empty(), "an empty message: {}", line);
            lines.push_str(&format!(
                "{}\"*\"{}\n",
                &line[..at],
                &line[at + values.byte_offset()..]
            ));
        }
        *text = lines;
    }
    Ok(())
}

/// A node's fates, wherever `metadata.json` keeps them.
fn fates(meta: &Value, id: &str) -> Option<Fates> {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64);
    let here = |value: &Value| {
        let get = |key| number(value, key);
        let (emitted, filtered) = (get("emitted")?, get("filtered")?);
        let (skipped, nulled, failed) = (get("skipped")?, get("nulled")?, get("failed")?);
        Some(Fates {
            emitted,
            filtered,
            skipped,
            nulled,
            failed,
            children: get("children")?,
        })
    };
    match meta {
        Value::Object(fields) => {
            let own = fields
                .get(id)
                .and_then(|v| here(v).or_else(|| here(v.get("fates")?)));
            own.or_else(|| fields.values().find_map(|v| fates(v, id)))
        }
        Value::Array(items) => items
            .iter()
            .find_map(|item| match item["id"] == id || item["node"] == id {
                true => here(item).or_else(|| here(item.get("fates")?)),
                false => fates(item, id),
            }),
        _ => None,
    }
}

fn check(case: &Case, dir: &Path, server: &TestServer) -> Result<(), TestCaseError> {
    let chain = Tape::new(&case.chain).chain();
    let input = Tape::new(&case.input).input(90);
    let yaml = chain.yaml(&server.url());
    fs::write(dir.join("chain.yaml"), &yaml).expect("the chain can be written");
    fs::write(dir.join("in.jsonl"), &input).expect("the input can be written");
    let expected = expected(&chain, &input, case.max_lines);
    let context = || {
        format!(
            "{}\n---\n{}\n",
            chain.yaml("URL"),
            String::from_utf8_lossy(&input)
        )
    };

    let (batch, lines) = (case.batch_size.to_string(), case.max_lines.to_string());
    let args = [
        "run",
        "chain.yaml",
        "in.jsonl",
        "out",
        "--batch-size",
        &batch,
        "--max-lines-per-file",
        &lines,
    ];
    for after in &case.kills {
        let mut child = cli::spawn(dir, &args);
        std::thread::sleep(Duration::from_millis(*after));
        cli::kill(&mut child);
    }
    let ran = cli::run(dir, &args);
    let code = if expected.errors > 0 { 3 } else { 0 };
    // A run that had finished before the last kill says so and exits 0.
    let done_before = !case.kills.is_empty() && ran.code == Some(0);
    prop_assert!(ran.code == Some(code) || done_before, "{ran:?}\n{}", context());

    if let Err(error) = lines::check(&dir.join("out")) {
        return Err(TestCaseError::fail(format!("{error}\n{}", context())));
    }
    let mut found = cli::tree(&dir.join("out"));
    prop_assert!(
        found.remove("graph.json").is_some(),
        "no graph.json\n{}",
        context()
    );
    hide_messages(&mut found)?;
    if let Some(difference) = cli::difference(&expected.files, &found) {
        return Err(TestCaseError::fail(format!("{difference}\n{}", context())));
    }
    let meta = fs::read_to_string(dir.join("out/metadata.json")).expect("metadata.json is there");
    let meta: Value = serde_json::from_str(&meta).expect("metadata.json is JSON");
    prop_assert_eq!(&meta["state"], "finished");
    for (id, expected) in &expected.fates {
        let found = fates(&meta, id).unwrap_or_default();
        prop_assert!(
            found == *expected,
            "{id}: expected {expected:?}, found {found:?}\n{}",
            context()
        );
    }
    Ok(())
}

fn one(case: &Case, latency: Duration) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let faults = case.faults;
    let server = TestServer::start(move |asked| match latency.is_zero() {
        true => answer(asked, faults),
        false => answer(asked, faults).after(latency),
    });
    check(case, dir.path(), &server)
}

#[test]
fn the_runner_writes_what_the_reference_writes() {
    let mut runner = cases(64, 1);
    let result = runner.run(&any_case(60, 0), |case| one(&case, Duration::ZERO));
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn kills_change_nothing() {
    let mut runner = cases(24, 2);
    let result = runner.run(&any_case(90, 5), |case| one(&case, Duration::from_millis(3)));
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

/// The generator makes what the properties are about, not one corner of it.
#[test]
fn the_generator_covers_the_contract() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let mut runner = cases(200, 3);
    let strategy = any_case(60, 0);
    for _ in 0..300 {
        let case = strategy.new_tree(&mut runner).expect("a case").current();
        let chain = Tape::new(&case.chain).chain();
        let outcome = expected(&chain, &Tape::new(&case.input).input(90), case.max_lines);
        let fates: Vec<_> = outcome.fates.values().collect();
        let errors: String = outcome
            .files
            .iter()
            .filter(|f| f.0.starts_with("errors"))
            .map(|f| &**f.1)
            .collect();
        let kinds = [
            "invalid_input",
            "template",
            "http",
            "invalid_output",
            "truncated",
            "runaway",
            "apply",
            "join_cardinality",
        ];
        for kind in kinds {
            *seen.entry(kind).or_default() += u32::from(errors.contains(&format!("\"kind\":\"{kind}\"")));
        }
        for (what, found) in [
            ("branch", errors.contains("\"branch\":")),
            ("child", errors.contains("\"child\":")),
            ("filtered", fates.iter().any(|f| f.filtered > 0)),
            ("skipped", fates.iter().any(|f| f.skipped > 0)),
            ("nulled", fates.iter().any(|f| f.nulled > 0)),
            ("fan-out", fates.iter().any(|f| f.children > f.emitted)),
            ("rows out", !outcome.files["flattened/000.jsonl"].is_empty()),
            ("shards", outcome.files.keys().any(|f| f.ends_with("001.jsonl"))),
        ] {
            *seen.entry(what).or_default() += u32::from(found);
        }
    }
    eprintln!("cases of 300 with each: {seen:?}");
    assert!(seen.values().all(|count| *count >= 3), "{seen:?}");
}
