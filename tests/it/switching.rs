//! Engines that do not fit together: rows wait on disk for the one that is not loaded, and leave the same files as if all
//! had been there.

use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainette::engine::broker::Broker;
use chainette::engine::broker::stage::Stage;
use chainette::engine::{FnEngine, Question, Reply};
use chainette::event::EventSender;
use chainette::run::{RunConfig, StatusLine};
use chainette::spec::Concurrency;
use serde_json::{Value, json};

use crate::diagnostics::good;
use crate::harness::{Bench, Ran, assert_same, listing, rows, tree};
use crate::server::{Answer, Asked, Dice, TestServer};

/// Requests in flight at most, at each engine.
pub const CONCURRENCY: usize = 4;

/// A server of all engines that keeps in which order their models were asked.
pub struct Engines {
    pub server: TestServer,
    models: Arc<Mutex<Vec<String>>>,
}

impl Engines {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
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
    pub fn chain(&self, steps: &Value) -> String {
        let engine = |name: &str| json!({"backend": "openai", "model": name, "endpoint": self.server.url(), "concurrency": CONCURRENCY});
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
pub fn answer(asked: &Asked) -> Answer {
    let mut dice = Dice::new(asked.user().as_bytes());
    let class = dice.below(160);
    let good = json!({"text": dice.words(5), "grade": dice.below(10)}).to_string();
    match class {
        4 if asked.attempt == 0 => return Answer::status(500, "boom"),
        6 if asked.attempt == 0 => return Answer::Close,
        8 => return Answer::status(502, "always"),
        9..=12 => return Answer::status(400, "never this"),
        _ => {}
    }
    Answer::text(match class {
        20..=23 => "never any JSON".to_owned(),
        30..=39 if asked.tries() == 0 => "{\"text\": 1}".to_owned(),
        _ => good,
    })
}

/// A Step on an engine; its prompt is like no other.
pub fn step(id: &str, engine: &str) -> Value {
    json!({
        "id": id, "engine": engine, "user_prompt": format!("{id} {{{{ row_id }}}}"), "output_model": "Graded",
        "retries": {"output": 1, "transport": 1},
    })
}

pub fn with(mut step: Value, more: Value) -> Value {
    let fields = step.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    step
}

/// Chains by name.
pub fn chains() -> Vec<(&'static str, Value)> {
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
        (
            "a_b_a",
            json!([step("first", "a"), picky, step("second", "b"), step("third", "a")]),
        ),
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
pub fn in_turns(bench: &Bench, extra: &[&str], sets: &str, spill: usize) -> Command {
    let mut command = bench.command(extra);
    command.env("CHAINETTE_SETS", sets);
    command.env("CHAINETTE_SPILL", spill.to_string());
    command
}

/// Runs to the end with engines that are loaded in turns.
pub fn turned(bench: &Bench, extra: &[&str], sets: &str, spill: usize) -> Ran {
    let output = in_turns(bench, extra, sets, spill).output();
    bench.ran(&output.expect("the command starts"))
}

/// Disk for about so many rows.
pub fn room(rows: usize) -> usize {
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
        let bench = Bench::new(&engines.chain(&steps), rows(80));
        let args = [
            "--format",
            format,
            "--batch-size",
            "16",
            "--max-lines-per-file",
            "40",
        ];
        let ran = bench.run(&args);
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
        let (whole, private) = (tree(&ran.out), listing(&ran.out.join(".chainette")));
        let (asked, code) = (engines.server.stats().asked, ran.code);
        for (sets, spill) in [("a;b;c", room(30)), ("a,c;b,c", room(20)), ("b,c;a", 0)] {
            fs::remove_dir_all(&ran.out).expect("OUT can be removed");
            engines.server.clear_log();
            engines.turns();
            let output = in_turns(&bench, &[&args[..], &["--json-logs"]].concat(), sets, spill).output();
            let turned = bench.ran(&output.expect("the command starts"));
            assert_eq!(turned.code, code, "{name} {sets}: {}", turned.stderr);
            assert_same(&whole, &tree(&turned.out));
            assert_eq!(listing(&turned.out.join(".chainette")), private, "{name} {sets}");
            let end = finished(&turned.stderr);
            assert_eq!(
                engines.server.stats().asked,
                asked,
                "{name} {sets}: something was asked twice, or not"
            );
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

/// What `run_finished` says of switches, and how often the models took turns.
fn switches(engines: &Engines, bench: &Bench, extra: &[&str], spill: Option<usize>) -> (usize, usize) {
    let mut command = bench.command(&[extra, &["--json-logs"]].concat());
    command.env("CHAINETTE_SETS", "a;b");
    command.envs(spill.map(|bytes| ("CHAINETTE_SPILL", bytes.to_string())));
    let ran = bench.ran(&command.output().expect("the command starts"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let told = finished(&ran.stderr)["switches"].as_u64().expect("a count");
    fs::remove_dir_all(&ran.out).expect("OUT can be removed");
    (told as usize, engines.turns())
}

/// Says what it heard.
pub fn echo(asked: &Asked) -> Answer {
    let text = format!("{} by {}", asked.user(), asked.body["model"]);
    Answer::text(json!({"text": text, "grade": 1}).to_string())
}

/// A chain that needs both engines in turns.
pub fn back_and_forth() -> Value {
    json!([step("first", "a"), step("second", "b"), step("third", "a")])
}

#[test]
fn the_default_budget_takes_many_rows_through_one_model() {
    const ROWS: usize = 12_000;
    let bench = Bench::new("", rows(ROWS));
    let engine = "backend: openai, endpoint: 'http://127.0.0.1:9/v1', concurrency: 64";
    let plan = good(&format!(
        "engines:\n  a: {{{engine}, model: a}}\n  b: {{{engine}, model: b}}\nsteps:\n  \
         - {{id: first, engine: a, user_prompt: '{{{{ a }}}}'}}\n  - {{id: second, engine: b, user_prompt: '{{{{ text }}}}'}}\n"
    ))
    .plan;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut broker = Broker::empty(EventSender::none());
    for name in ["a", "b"] {
        let asked = asked.clone();
        let engine = FnEngine::new(name, move |question: Question| {
            asked.lock().expect("no panic").push(name);
            let text = question.messages.last().map(|message| message.content.clone());
            async move { Ok(Reply::text(text.unwrap_or_default())) }
        });
        let wait = Duration::from_secs(60);
        broker = broker.with_engine(name, Arc::new(engine), Concurrency::Fixed(64), wait);
    }
    let sets = ["a", "b"].map(|name| vec![broker.index(name).expect("the engine is known")]);
    let broker = broker.with_stage(Some(Arc::new(Stage::new(sets.to_vec()))));
    let dir = bench.dir.path();
    let config = RunConfig::new(plan, dir.join("in.jsonl"), dir.join("out"));
    let (events, status) = (EventSender::none(), StatusLine::default());
    let outcome = chainette::run::run(config, Arc::new(broker), &events, &status).expect("it runs");
    let (done, switches) = (outcome.stats.rows_out as usize, outcome.stats.switches as usize);
    assert_eq!((done, switches), (ROWS, 1), "all rows fit");
    assert!(switches <= 2 + ROWS / 5_000);
    let asked = asked.lock().expect("no panic");
    assert_eq!(asked.len(), 2 * ROWS);
    assert_eq!(
        asked.windows(2).filter(|pair| pair[0] != pair[1]).count(),
        switches
    );
}

#[test]
fn less_disk_is_more_switches() {
    const ROWS: usize = 600;
    let engines = Engines::start(echo);
    let bench = Bench::new(&engines.chain(&back_and_forth()), rows(ROWS));
    let mut last = 0;
    for (room_for, most) in [(1000, 2), (250, 2 * 4), (60, 2 * 20)] {
        let spill = Some(room(room_for));
        let (told, turns) = switches(&engines, &bench, &["--batch-size", "8"], spill);
        assert_eq!(told, turns, "{room_for}");
        assert!(
            told > last && told <= most,
            "{room_for}: {told} switches after {last}"
        );
        last = told;
    }
}

/// `resources.spill` of the chain is what counts.
#[test]
fn the_chain_says_how_much_disk_there_is() {
    let engines = Engines::start(echo);
    let mut chain: Value = serde_json::from_str(&engines.chain(&back_and_forth())).expect("JSON");
    chain["resources"] = json!({"spill": "200KiB"});
    let bench = Bench::new(&chain.to_string(), rows(100));
    let (told, turns) = switches(&engines, &bench, &["--batch-size", "5"], None);
    assert_eq!(told, turns);
    assert!((2 * 100 / 25..=2 * 100 / 15).contains(&told), "{told} switches");
}

#[test]
fn a_limit_and_what_comes_after_it() {
    let engines = Engines::start(answer);
    let (_, steps) = chains().swap_remove(1);
    let bench = Bench::new(&engines.chain(&steps), rows(150));
    let whole = bench.run(&["--max-lines-per-file", "40", "--limit", "1000"]);
    let (whole, asked) = (tree(&whole.out), engines.server.stats().asked);
    fs::remove_dir_all(bench.dir.path().join("out")).expect("OUT can be removed");
    engines.server.clear_log();
    for limit in ["30", "77", "1000"] {
        let args = [
            "--max-lines-per-file",
            "40",
            "--limit",
            limit,
            "--batch-size",
            "7",
        ];
        let ran = turned(&bench, &args, "a;b", room(20));
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    }
    let out = bench.opened().out;
    assert_same(&whole, &tree(&out));
    assert_eq!(engines.server.stats().asked, asked);
}

/// Without a ledger a parked row still knows what it was answered.
#[test]
fn no_ledger() {
    let engines = Engines::start(answer);
    for (name, steps) in chains() {
        let bench = Bench::new(&engines.chain(&steps), rows(60));
        let whole = bench.run(&[]);
        let (whole, asked) = (tree(&whole.out), engines.server.stats().asked);
        fs::remove_dir_all(bench.dir.path().join("out")).expect("OUT can be removed");
        engines.server.clear_log();
        let ran = turned(&bench, &["--no-ledger"], "a;b;c", room(20));
        assert_eq!(engines.server.stats().asked, asked, "{name}: {}", ran.stderr);
        assert_same(&whole, &tree(&ran.out));
        assert!(!ran.out.join(".chainette/spill").exists());
        engines.server.clear_log();
    }
}
