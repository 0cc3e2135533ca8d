//! Engines that do not fit together: rows wait on disk for the one that is not loaded, and leave the same files as if all
//! had been there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Bench, assert_same, ends_within, listing, rows, signal, stderr_of, tree, until,
};
use crate::judge::{Judge, settle};
use crate::server::{Answer, Asked, Dice, TestServer};

/// Requests in flight at most, at each engine.
const CONCURRENCY: usize = 4;

/// A server of all engines that keeps in which order their models were asked.
struct Engines {
    server: TestServer,
    models: Arc<Mutex<Vec<String>>>,
}

impl Engines {
    fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let models = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&models);
        let server = TestServer::start(move |asked| {
            let model = asked.body["model"].as_str().expect("a model").to_owned();
            heard.lock().expect("no panic").push(model);
            answer(asked)
        });
        Self { server, models }
    }

    /// A chain over the engines `a`, `b` and `c`.
    fn chain(&self, steps: &Value) -> String {
        let engine = |name: &str| {
            json!({"backend": "openai", "model": name, "endpoint": self.server.url(), "concurrency": CONCURRENCY})
        };
        json!({
            "name": "turns",
            "models": {"Graded": {"text": "string", "grade": "integer"}},
            "engines": {"a": engine("a"), "b": engine("b"), "c": engine("c")},
            "steps": steps,
        })
        .to_string()
    }

    /// How often another model was asked than before, since the last time.
    fn turns(&self) -> usize {
        let models = std::mem::take(&mut *self.models.lock().expect("no panic"));
        models.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

/// Replies are a function of the request: some are bad at first, some always; some faults pass, some stay.
fn answer(asked: &Asked) -> Answer {
    let mut dice = Dice::new(asked.user().as_bytes());
    let class = dice.below(60);
    let good = json!({"text": dice.words(5), "grade": dice.below(10)}).to_string();
    match class {
        4 | 5 if asked.attempt == 0 => return Answer::status(500, "boom"),
        6 if asked.attempt == 0 => return Answer::Close,
        8 => return Answer::status(502, "always"),
        9 => return Answer::status(400, "never this"),
        _ => {}
    }
    Answer::text(match class {
        0 => "never any JSON".to_owned(),
        1..=3 if asked.tries() == 0 => "{\"text\": 1}".to_owned(),
        _ => good,
    })
}

/// A Step on an engine; its prompt is like no other.
fn step(id: &str, engine: &str) -> Value {
    json!({
        "id": id, "engine": engine, "user_prompt": format!("{id} {{{{ row_id }}}}"), "output_model": "Graded",
        "retries": {"output": 1, "transport": 1},
    })
}

fn with(mut step: Value, more: Value) -> Value {
    let fields = step.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    step
}

/// Chains by name.
fn chains() -> Vec<(&'static str, Value)> {
    let branch = |id: &str, join: bool, steps: Value| {
        let mut branch = json!({"branch": id, "steps": steps});
        if join {
            branch["join"] = id.into();
        }
        branch
    };
    let fan = json!({"id": "fan", "apply": {"jq": "range($chain_input.a % 3) as $i | {i: $i}"}});
    let picky = json!({"id": "picky", "apply": {"jq":
        "if $chain_input.a % 17 == 7 then error(\"bad\") else select(.grade != 4) end"}});
    vec![
        ("a_b", json!([step("first", "a"), step("second", "b")])),
        ("a_b_a", json!([step("first", "a"), picky, step("second", "b"), step("third", "a")])),
        (
            "branches",
            json!([
                {"parallel": [
                    branch("x", true, json!([step("on_a", "a"), step("then_b", "b")])),
                    branch("y", true, json!([step("on_b", "b"), step("then_a", "a")])),
                    branch("z", false, json!([step("on_c", "c"), fan, step("child_b", "b")])),
                ]},
                with(step("end", "a"), json!({"when": "x.grade > 3"})),
            ]),
        ),
        (
            "fan_out",
            json!([
                fan,
                with(step("child", "a"), json!({"on_error": "null"})),
                {"branch": "aside", "when": "i == 0", "steps": [step("note", "b")]},
                with(step("skipped", "b"), json!({"when": "i == 1"})),
                {"branch": "list", "join": "list", "collect": true, "steps": [
                    {"id": "again", "apply": {"jq": "range(2) as $k | {k: $k}"}},
                    step("of_list", "c"),
                ]},
                step("last", "a"),
            ]),
        ),
    ]
}

/// The command with engines that are loaded in turns.
fn in_turns(bench: &Bench, extra: &[&str], sets: &str, spill: usize) -> Command {
    let mut command = bench.command(extra);
    command.env("CHAINETTE_SETS", sets);
    command.env("CHAINETTE_SPILL", spill.to_string());
    command
}

/// Disk for about so many rows.
fn room(rows: usize) -> usize {
    rows * 10 * 1024
}

/// The last event of a run with `--json-logs`.
fn finished(stderr: &str) -> Value {
    let last = stderr.lines().rfind(|line| line.contains("\"run_finished\""));
    serde_json::from_str(last.unwrap_or_else(|| panic!("no end: {stderr}"))).expect("JSON")
}

fn same_in_turns(format: &str) {
    for (name, steps) in chains() {
        let engines = Engines::start(answer);
        let bench = Bench::new(&engines.chain(&steps), rows(120));
        let args = ["--format", format, "--batch-size", "16", "--max-lines-per-file", "40"];
        let ran = bench.run(&args);
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
        let (whole, private) = (tree(&ran.out), listing(&ran.out.join(".chainette")));
        let (asked, code) = (engines.server.stats().asked, ran.code);
        for (sets, spill) in [("a;b;c", room(1000)), ("a;b;c", room(40)), ("a,c;b,c", room(20)), ("c;b,a", 0)] {
            fs::remove_dir_all(&ran.out).expect("OUT can be removed");
            engines.server.clear_log();
            engines.turns();
            let output = in_turns(&bench, &[&args[..], &["--json-logs"]].concat(), sets, spill).output();
            let turned = bench.ran(&output.expect("the command starts"));
            assert_eq!(turned.code, code, "{name} {sets}: {}", turned.stderr);
            assert_same(&whole, &tree(&turned.out));
            assert_eq!(listing(&turned.out.join(".chainette")), private, "{name} {sets}");
            let end = finished(&turned.stderr);
            assert_eq!(engines.server.stats().asked, asked, "{name} {sets}: something was asked twice, or not");
            assert_eq!(end["answers_reused"], 0);
            let switches = end["switches"].as_u64().expect("a count") as usize;
            assert!(switches > 0, "{name} {sets}: {end}");
            if sets == "a;b;c" {
                let turns = engines.turns();
                assert!(turns <= switches, "{name}: {turns} turns in {switches} switches");
            }
        }
    }
}

#[test]
fn turns_change_nothing() {
    same_in_turns("jsonl");
}

#[test]
fn turns_change_nothing_in_parquet() {
    same_in_turns("parquet");
}
