//! The runner against the reference interpreter: random chains (jq, Python and commands; every backend), inputs and
//! outputs of every kind, batch sizes, limits, faults and kills; same files.
//!
//! `PROPTEST_CASES=2000 PROPTEST_RNG_SEED=7 cargo test --test it property` asks more of it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use chainette::audit::{Outputs, diff};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use serde_json::Value;

use crate::generate::{BACKENDS, Chain, DECLARED, Kind, Means, Model, Node, answer, reply};
use crate::given::Given;
use crate::harness::tree;
use crate::reference::{self, Fates, Line, Outcome};
use crate::server::TestServer;
use crate::tape::Tape;
use crate::{cli, columns, lines, verify};

/// The functions and programs of process Applies.
const TWINS: &str = include_str!("twins.py");

/// Runs that had to switch between models.
static SWITCHED: AtomicUsize = AtomicUsize::new(0);

/// A tape that prints itself on one line.
#[derive(Clone)]
struct Bytes(Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&format!("{:?}", self.0))
    }
}

/// One random run.
#[derive(Clone, Debug)]
struct Case {
    chain: Bytes,
    input: Bytes,
    batch_size: usize,
    max_lines: usize,
    parquet: bool,
    faults: bool,
    /// A first run ends after so many rows: the checkpoint that the next ones go on from.
    limit: Option<usize>,
    kills: Vec<Kill>,
    /// Its Steps are on three engines that are loaded in turns; which, and with how much disk.
    turns: Option<(usize, usize)>,
}

/// A `kill -9`.
#[derive(Clone, Copy, Debug)]
struct Kill {
    /// After so many percent of the answers that are still to come; of a tenth of a second where nobody is asked.
    progress: u64,
    /// So many milliseconds later.
    later: u64,
}

fn cases(default: u32, seed: u64) -> TestRunner {
    let said = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let cases = said("PROPTEST_CASES").and_then(|cases| u32::try_from(cases).ok());
    TestRunner::new(Config {
        cases: cases.unwrap_or(default),
        rng_seed: RngSeed::Fixed(said("PROPTEST_RNG_SEED").unwrap_or(seed)),
        failure_persistence: None,
        max_shrink_time: 60_000,
        max_shrink_iters: 2_000,
        ..Config::default()
    })
}

fn any_case(rows: usize, kills: usize) -> impl Strategy<Value = Case> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most).prop_map(Bytes);
    let kill = (0_u64..100, 0_u64..20).prop_map(|(progress, later)| Kill { progress, later });
    let kills = prop::collection::vec(kill, kills.min(1)..=kills);
    (
        (bytes(140), bytes(rows * 3)),
        1_usize..30,
        1_usize..20,
        prop::bool::weighted(0.4),
        prop::bool::weighted(0.15),
        prop::option::weighted(0.3, 0_usize..50),
        kills,
    )
        .prop_map(
            |((chain, input), batch_size, max_lines, parquet, faults, limit, kills)| Case {
                chain,
                input,
                batch_size,
                max_lines,
                parquet,
                faults,
                limit,
                kills,
                turns: None,
            },
        )
}

/// The same chain with its Steps on the engines `e`, `f` and `g` in turn.
fn on_three(yaml: &str) -> String {
    let mut on = ["e", "f", "g"].iter().cycle();
    let mut lines: Vec<String> = Vec::new();
    let mut engine: Vec<String> = Vec::new();
    for line in yaml.lines() {
        let is_engine = line.starts_with("    ") && lines.iter().any(|line| line == "  e:");
        if is_engine && !lines.iter().any(|line| line == "steps:") {
            engine.push(line.to_owned());
        }
        lines.push(match line.strip_suffix("engine: \"e\"") {
            Some(before) => format!("{before}engine: {}", on.next().expect("a cycle")),
            None => line.to_owned(),
        });
    }
    let at = lines.iter().position(|line| line == "  e:").expect("an engine");
    for name in ["f", "g"] {
        let copy = [&[format!("  {name}:")], engine.as_slice()].concat();
        lines.splice(at..at, copy);
    }
    lines.join("\n")
}

impl Case {
    /// The chain file.
    fn yaml(&self, url: &str) -> String {
        let yaml = self.chain().yaml(url);
        match self.turns {
            Some(_) => on_three(&yaml),
            None => yaml,
        }
    }

    fn env(&self) -> Vec<(&'static str, String)> {
        const SETS: [&str; 4] = ["e;f;g", "e,f;g", "g;e,f", "e,g;f,g"];
        let Some((sets, rows)) = self.turns else {
            return Vec::new();
        };
        let spill = (rows * 10 * 1024).to_string();
        vec![
            ("CHAINETTE_SETS", SETS[sets % SETS.len()].into()),
            ("CHAINETTE_SPILL", spill),
        ]
    }

    fn chain(&self) -> Chain {
        Tape::new(&self.chain.0).chain()
    }

    fn given(&self) -> Given {
        Tape::new(&self.input.0).given(90)
    }

    /// What the reference says, and how often it asked.
    fn expected(&self) -> (Outcome, u64) {
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        let outcome = reference::run(
            &self.chain(),
            &self.given().lines,
            self.max_lines,
            &move |system, user, again, limit| {
                count.set(count.get() + 1);
                reply(system, user, again, limit)
            },
        );
        (outcome, asked.get())
    }

    fn args(&self, input: &str, out: &str, batch_size: usize) -> Vec<String> {
        let format = if self.parquet { "parquet" } else { "jsonl" };
        let mut args: Vec<String> = ["run", "chain.yaml", input, out, "--format", format]
            .map(str::to_owned)
            .into();
        args.extend(["--batch-size".into(), batch_size.to_string()]);
        args.extend(["--max-lines-per-file".into(), self.max_lines.to_string()]);
        args
    }
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
    let (chain, given) = (case.chain(), case.given());
    fs::write(dir.join("chain.yaml"), case.yaml(&server.url())).expect("the chain can be written");
    fs::write(dir.join("twins.py"), TWINS).expect("the functions can be written");
    given.write(dir);
    let (mut expected, asked) = case.expected();
    let context = || format!("{}\n---\n{}\n", case.yaml("URL"), given.describe());
    let spawn = |args: &[String]| {
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let stdin = given.stdin.as_ref().map(|bytes| {
            fs::write(dir.join("stdin"), bytes).expect("a file can be written");
            fs::File::open(dir.join("stdin")).expect("a file can be opened")
        });
        let stdin = stdin.map_or_else(Stdio::null, Stdio::from);
        cli::spawn_with(dir, &args, stdin, &case.env())
    };

    let args = case.args(&given.name, "out", case.batch_size);
    if let Some(limit) = case.limit {
        let limit = ["--limit".to_owned(), limit.to_string()];
        let ran = cli::wait(dir, &mut spawn(&[args.as_slice(), &limit].concat()));
        prop_assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}\n{}", context());
        let proven = verify::proven(&dir.join("out"));
        proven.map_err(|error| TestCaseError::fail(format!("{error}\n{}", context())))?;
    }
    for kill in &case.kills {
        let mut child = spawn(&args);
        let answered = server.answered();
        let target = answered + asked.saturating_sub(answered) * kill.progress / 100;
        if target > answered {
            cli::progress(&mut child, || server.answered() >= target);
        } else if asked == 0 {
            thread::sleep(Duration::from_millis(kill.progress));
        }
        thread::sleep(Duration::from_millis(kill.later));
        cli::kill(&mut child);
    }
    let ran = cli::wait(dir, &mut spawn(&args));
    let switched = ran.stderr.contains("between models");
    SWITCHED.fetch_add(usize::from(switched), Ordering::Relaxed);
    let code = if expected.errors > 0 { 3 } else { 0 };
    // A run that had finished before, at its limit or before the last kill, says so and exits 0.
    let interrupted = !case.kills.is_empty() || case.limit.is_some();
    let done_before = interrupted && ran.code == Some(0) && ran.stderr.contains("finished already");
    prop_assert!(ran.code == Some(code) || done_before, "{ran:?}\n{}", context());

    let out = dir.join("out");
    let verdict =
        verify::proven(&out).map_err(|error| TestCaseError::fail(format!("{error}\n{}", context())))?;
    for (id, expected) in &expected.fates {
        let found = verdict.nodes.get(id).map(|counts| counts.failed);
        prop_assert_eq!(found, Some(expected.failed), "{} of {}", id, context());
    }
    if case.parquet {
        let declared: &[_] = if chain.input_model { &[DECLARED] } else { &[] };
        expected.files = columns::of_lines(&expected.files, &out, declared);
    } else if let Err(error) = lines::check(&out) {
        return Err(TestCaseError::fail(format!("{error}\n{}", context())));
    }
    let mut found = cli::tree(&out);
    prop_assert!(
        found.remove("graph.json").is_some(),
        "no graph.json\n{}",
        context()
    );
    hide_messages(&mut found)?;
    if let Some(difference) = cli::difference(&expected.files, &found) {
        return Err(TestCaseError::fail(format!("{difference}\n{}", context())));
    }
    let meta = fs::read_to_string(out.join("metadata.json")).expect("metadata.json is there");
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

    // Read back it is the same as the same run in the other format; what was interrupted as itself.
    let mut other = out.clone();
    if !interrupted {
        other = dir.join("other");
        let parquet = !case.parquet;
        let case = Case {
            parquet,
            ..case.clone()
        };
        let ran = cli::wait(dir, &mut spawn(&case.args(&given.name, "other", case.batch_size)));
        prop_assert!(ran.code == Some(code), "{ran:?}\n{}", context());
    }
    let read = |out: &Path| Outputs::open(out).map_err(|error| TestCaseError::fail(error.to_string()));
    let found =
        diff(&read(&out)?, &read(&other)?, 1).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert!(found.same, "{found:#?}\n{}", context());
    let lines: u64 = found.folders.iter().map(|folder| folder.equal).sum();
    let shards = meta["shards"].as_object().expect("an object").values();
    let shards = shards.flat_map(|shards| shards.as_array().into_iter().flatten());
    let written: u64 = shards.map(|shard| shard["rows"].as_u64().expect("a count")).sum();
    prop_assert_eq!(lines, written);

    // Wherever it ended or was killed, and whatever the batch: the same bytes as a run that nobody touched.
    if interrupted {
        let ran = cli::wait(
            dir,
            &mut spawn(&case.args(&given.name, "whole", 30 - case.batch_size)),
        );
        prop_assert!(ran.code == Some(code), "{ran:?}\n{}", context());
        let (killed, whole) = (tree(&out), tree(&dir.join("whole")));
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        prop_assert_eq!(names(&whole), names(&killed));
        for (name, bytes) in &whole {
            prop_assert!(
                killed[name] == *bytes,
                "{name}: killed {}, whole {}\n{}",
                String::from_utf8_lossy(&killed[name]),
                String::from_utf8_lossy(bytes),
                context()
            );
        }
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
    let mut runner = cases(40, 1);
    let result = runner.run(&any_case(60, 0), |case| one(&case, Duration::ZERO));
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn kills_change_nothing() {
    let mut runner = cases(14, 2);
    let result = runner.run(&any_case(90, 3), |case| one(&case, Duration::from_millis(3)));
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn engines_in_turns_change_nothing() {
    let mut runner = cases(24, 4);
    let turns = (any_case(60, 2), 0_usize..4, 0_usize..30);
    let turns = turns.prop_map(|(case, sets, room)| Case {
        turns: Some((sets, room)),
        ..case
    });
    let result = runner.run(&turns, |case| one(&case, Duration::from_millis(1)));
    result.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(
        SWITCHED.load(Ordering::Relaxed) > 4,
        "the cases are about something else"
    );
}

/// The generator makes what the properties are about, not one corner of it.
#[test]
fn the_generator_covers_the_contract() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut runner = cases(200, 3);
    let strategy = any_case(60, 0);
    for _ in 0..300 {
        let case = strategy.new_tree(&mut runner).expect("a case").current();
        let (chain, given) = (case.chain(), case.given());
        let (outcome, asked) = case.expected();
        let fates: Vec<_> = outcome.fates.values().collect();
        let errors: String = outcome
            .files
            .iter()
            .filter(|f| f.0.starts_with("errors"))
            .map(|f| &**f.1)
            .collect();
        let mut see = |what: &str, found: bool| {
            *seen.entry(what.to_owned()).or_default() += u32::from(found);
        };
        for kind in [
            "invalid_input",
            "template",
            "http",
            "invalid_output",
            "truncated",
            "runaway",
            "apply",
            "join_cardinality",
        ] {
            see(kind, errors.contains(&format!("\"kind\":\"{kind}\"")));
        }
        see("branch", errors.contains("\"branch\":"));
        see("child", errors.contains("\"child\":"));
        see("filtered", fates.iter().any(|f| f.filtered > 0));
        see("skipped", fates.iter().any(|f| f.skipped > 0));
        see("nulled", fates.iter().any(|f| f.nulled > 0));
        see("fan-out", fates.iter().any(|f| f.children > f.emitted));
        see("rows out", !outcome.files["flattened/000.jsonl"].is_empty());
        see("shards", outcome.files.keys().any(|f| f.ends_with("001.jsonl")));

        // Who computes, where something is computed.
        let nodes = chain.nodes();
        let emits = |id: &str| outcome.fates[id].emitted > 0;
        let applies = |found: fn(&Means) -> bool| {
            nodes
                .iter()
                .any(|node| emits(&node.id) && matches!(&node.kind, Kind::Apply(_, means) if found(means)))
        };
        see("python", applies(|means| matches!(means, Means::Python(_))));
        see("command", applies(|means| matches!(means, Means::Command(_))));
        for (at, backend) in BACKENDS.iter().enumerate() {
            let spoken = asked > 0 && chain.engine.backend == at;
            see(backend, spoken);
        }
        let limits = |found: fn(u64) -> bool| {
            nodes.iter().any(|node| {
                emits(&node.id) && matches!(&node.kind, Kind::Step(step) if found(step.max_tokens))
            })
        };
        let embeds = |node: &&Node| matches!(&node.kind, Kind::Step(step) if step.model == Model::Vector);
        see(
            "embed",
            nodes
                .iter()
                .filter(|node| embeds(node))
                .any(|node| emits(&node.id)),
        );
        let bad = |node: &Node| outcome.fates[&node.id].failed > 0;
        see(
            "no vector",
            nodes.iter().filter(|node| embeds(node)).any(|node| bad(node)),
        );
        see("streamed", limits(|limit| limit == 0 || limit > 512));
        see("not streamed", limits(|limit| (1..=512).contains(&limit)));
        see("auto", asked > 0 && chain.engine.concurrency.is_none());

        // Rows from where, and to where.
        let good = !outcome.files["flattened/000.jsonl"].is_empty();
        for ending in ["jsonl", "csv", "tsv", "parquet", "arrow", "gz", "zst"] {
            let is = |line: &Line| line.file.ends_with(&format!(".{ending}"));
            see(ending, good && given.lines.iter().any(is));
        }
        for place in ["-", "rows", "rows/**/*"] {
            see(place, good && given.name == place);
        }
        see("to parquet", good && case.parquet);
        let big = outcome.files["flattened/000.jsonl"].contains(DECLARED);
        see("rescued", case.parquet && chain.input_model && big);
    }
    eprintln!("cases of 300 with each: {seen:?}");
    assert!(seen.values().all(|count| *count >= 3), "{seen:?}");
}
