//! Runs over engines in turns that end early, go on, are edited or tried again; and what watchers see of them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use chainette::engine::broker::Broker;
use chainette::engine::broker::stage::Stage;
use chainette::event::{Event, Progress, Report};
use chainette::run::{Dispatcher, RunConfig};
use serde_json::{Value, json};

use crate::diagnostics::good;
use crate::harness::{BINARY, Bench, assert_same, ends_within, rows, signal, stderr_of, tree, until};
use crate::judge::{Judge, settle};
use crate::server::{Answer, Dice, TestServer};
use crate::switching::{
    CONCURRENCY, Engines, answer, back_and_forth, chains, echo, in_turns, room, step, turned, with,
};

#[test]
fn fail_fast_stops_while_rows_are_parked() {
    let engines = Engines::start(echo);
    let picky =
        json!({"id": "picky", "apply": {"jq": "if $chain_input.a == 20 then error(\"no\") else . end"}});
    let steps = json!([step("first", "a"), picky, step("second", "b")]);
    let bench = Bench::new(&engines.chain(&steps), rows(60));
    let ran = turned(&bench, &["--fail-fast"], "a;b", room(1000));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(!ran.out.join(".chainette/spill").exists());
    let again = bench.run(&[]);
    let second = again.lines("second").len();
    assert_eq!((again.code, second), (3, 59), "{}", again.stderr);
    assert_eq!(engines.server.stats().asked_again, 0);
}

/// Rows that a run parked are not done; the next one asks what is missing, and nothing else.
#[test]
fn ctrl_c_while_rows_are_parked() {
    for at in [20, 70, 100] {
        let engines = Engines::start(|asked| echo(asked).after(Duration::from_millis(4)));
        let bench = Bench::new(&engines.chain(&back_and_forth()), rows(40));
        let mut command = in_turns(&bench, &["--batch-size", "4"], "a;b", room(1000));
        let mut child = command
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        until("answer", || engines.server.answered() >= at);
        signal(&child, "-INT");
        let code = ends_within(&mut child, Duration::from_secs(100));
        let said = stderr_of(&mut child);
        assert_eq!(code, 130, "{said}");
        let out = bench.opened().out;
        assert!(!out.join(".chainette/spill").exists());
        // Whether engines fit together is no part of what a run is.
        let again = bench.run(&[]);
        let third = again.lines("third").len();
        assert_eq!((again.code, third), (0, 40), "{}", again.stderr);
        let stats = engines.server.stats();
        assert_eq!((stats.asked, stats.asked_again), (120, 0), "at {at}: {said}");
    }
}

/// Starts a run whose engines are loaded in turns; its output goes to a file.
fn spawn(bench: &Bench, args: &[&str]) -> std::process::Child {
    let mut command = in_turns(bench, args, "a;b;c", room(60));
    let file = fs::File::create(bench.dir.path().join("stderr.txt")).expect("a file can be made");
    let command = command.stderr(file).stdout(Stdio::null());
    command.spawn().expect("the command starts")
}

fn killed(format: &str, chain: usize) {
    const KILLS: u64 = 8;
    let engines = Engines::start(|asked| answer(asked).after(Duration::from_millis(2)));
    let server = &engines.server;
    let (name, steps) = chains().swap_remove(chain);
    let bench = Bench::new(&engines.chain(&steps), rows(300));
    let shards = ["--batch-size", "16", "--max-lines-per-file", "70", "--quiet"];
    let args = [&["--format", format][..], &shards].concat();
    let ran = bench.run(&args);
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    let whole = tree(&ran.out);
    settle(server);
    let mut unkilled = Judge::default();
    unkilled.take(&server.take_log());
    fs::remove_dir_all(&ran.out).expect("OUT can be removed");

    let mut dice = Dice::new(format!("turns {format} {name}").as_bytes());
    let mut judge = Judge::default();
    for left in (1..=KILLS).rev() {
        let share = (unkilled.good * 19 / 20).saturating_sub(judge.good) * 3 / (left + 1) / 2;
        let target = server.answered() + dice.below(share + 1);
        let mut child = spawn(&bench, &args);
        let goes_on = crate::cli::progress(&mut child, || server.answered() >= target);
        assert!(goes_on, "{name}: it ended with {left} kills to go");
        let at = Instant::now();
        crate::cli::kill(&mut child);
        settle(server);
        judge.kill(at, &server.take_log());
    }
    // It may be finished where all engines fit.
    let ran = bench.run(&args);
    assert!(matches!(ran.code, 0 | 3), "{name}: {}", ran.stderr);
    settle(server);
    judge.take(&server.take_log());
    assert_same(&whole, &tree(&bench.opened().out));
    let again = judge.asked_again();
    assert_eq!(judge.requests, unkilled.requests + again, "{name}");
    let most = judge.most();
    assert!(most <= CONCURRENCY, "{name}: {most} asked again after one kill");
    assert!(judge.longest < Duration::from_secs(1), "{name}");
    assert!(!bench.opened().out.join(".chainette/spill").exists());
}

#[test]
fn kills_in_any_phase() {
    killed("jsonl", 1);
    killed("jsonl", 3);
}

#[test]
fn kills_in_any_phase_of_parquet() {
    killed("parquet", 2);
}

/// The engine whose turn it is does not come up: the run stops, and goes on when it does.
#[test]
fn an_engine_that_cannot_be_loaded() {
    let engines = Engines::start(echo);
    let mut other = TestServer::start(echo);
    other.stop();
    let steps = json!([step("first", "a"), step("second", "b")]);
    let mut chain: Value = serde_json::from_str(&engines.chain(&steps)).expect("JSON");
    chain["engines"]["b"]["endpoint"] = other.url().into();
    chain["engines"]["b"]["engine_wait"] = "1s".into();
    let bench = Bench::new(&chain.to_string(), rows(50));
    let ran = turned(&bench, &[], "a;b", room(1000));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("engine `b`"), "{}", ran.stderr);
    assert!(!ran.out.join(".chainette/spill").exists());
    assert_eq!(engines.server.stats().asked, 50);
    other.restart();
    let ran = turned(&bench, &[], "a;b", room(1000));
    assert_eq!((ran.code, ran.lines("second").len()), (0, 50), "{}", ran.stderr);
    let asked = (engines.server.stats().asked, other.stats().asked);
    assert_eq!(asked, (50, 50), "what `a` said was on file");
}

/// Failed rows are tried again, also those at the engine that is loaded last.
#[test]
fn a_retry_in_turns() {
    let well = Arc::new(AtomicBool::new(false));
    let now = well.clone();
    let engines = Engines::start(move |asked| match asked.user().ends_with('3') {
        true if !now.load(Ordering::SeqCst) => Answer::text("never"),
        _ => echo(asked),
    });
    let steps = json!([
        step("first", "a"),
        with(step("second", "b"), json!({"on_error": "null"})),
        step("third", "a"),
    ]);
    let bench = Bench::new(&engines.chain(&steps), rows(60));
    let ran = turned(&bench, &[], "a;b", room(20));
    assert_eq!((ran.code, ran.errors().len()), (3, 6), "{}", ran.stderr);
    well.store(true, Ordering::SeqCst);
    engines.server.clear_log();
    let ran = turned(&bench, &["--retry-errors"], "a;b", room(20));
    assert_eq!((ran.code, ran.lines("third").len()), (0, 60), "{}", ran.stderr);
    // Those that failed at `first` are asked there, and then at both that they had not come to.
    assert_eq!(engines.server.stats().asked, 6 * 3, "{}", ran.stderr);
    let found = tree(&ran.out);
    engines.server.clear_log();
    let whole = Bench::new(&engines.chain(&steps), rows(60));
    let whole = tree(&whole.run(&[]).out);
    let shards = |files: BTreeMap<String, Vec<u8>>| files.into_iter().filter(|(name, _)| name.contains('/'));
    assert_same(&shards(whole).collect(), &shards(found).collect());
}

/// What is asked anew after an edit, and what is not.
#[test]
fn an_edit_in_turns() {
    let engines = Engines::start(echo);
    let bench = Bench::new(&engines.chain(&back_and_forth()), rows(60));
    let ran = turned(&bench, &[], "a;b", room(20));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // The rows have moved: answers are found by what was asked.
    let mut edited = back_and_forth();
    for step in edited.as_array_mut().expect("a list") {
        let id = step["id"].as_str().expect("an id").to_owned();
        step["user_prompt"] = format!("{id} {{{{ chain_input.a }}}}").into();
    }
    bench.write("chain.yaml", engines.chain(&edited));
    let input: String = (0..70).rev().map(|n| format!("{{\"a\":{n}}}\n")).collect();
    bench.write("in.jsonl", input);
    engines.server.clear_log();
    let ran = turned(&bench, &["--resume"], "a;b", room(20));
    assert_eq!((ran.code, ran.lines("third").len()), (0, 70), "{}", ran.stderr);
    assert_eq!(engines.server.stats().asked, 3 * 10, "ten rows are new");
    let reused = format!("{} answers reused", 3 * 60);
    assert!(ran.stderr.contains(&reused), "{}", ran.stderr);
    let whole = Bench::new(
        &engines.chain(&edited),
        fs::read(bench.dir.path().join("in.jsonl")).expect("the input"),
    );
    assert_eq!(whole.run(&[]).lines("flattened"), ran.lines("flattened"));
}

/// A function that says something else each time would send its rows from engine to engine for ever.
#[test]
fn a_function_that_is_not_pure() {
    let engines = Engines::start(echo);
    let random = json!({"id": "random", "apply": {"python": "lib.py:f"}});
    let steps = json!([
        random,
        with(step("first", "a"), json!({"user_prompt": "first {{ random.r }}"})),
        step("second", "b"),
        with(step("third", "a"), json!({"user_prompt": "third {{ random.r }}"})),
    ]);
    let bench = Bench::new(&engines.chain(&steps), rows(40));
    let function = "import random\ndef f(item):\n    if item['a'] % 10 == 9: raise ValueError('nine')\n    return {'r': random.random()}\n";
    bench.write("lib.py", function);
    let ran = turned(&bench, &[], "a;b", room(15));
    assert_eq!((ran.code, ran.lines("third").len()), (3, 36), "{}", ran.stderr);
    assert_eq!(engines.server.stats().asked, 3 * 36);
    for row in ran.values("flattened") {
        let said = row["third.text"].as_str().expect("a text");
        let of = row["random.r"].to_string();
        assert!(said.starts_with(&format!("third {of}")), "{said} for {of}");
    }
}

/// Rows of a stream are finished though it goes on some day.
#[test]
fn a_stream_that_is_silent() {
    let engines = Engines::start(echo);
    let steps = json!([step("first", "a"), step("second", "b")]);
    let bench = Bench::new(&engines.chain(&steps), "");
    let mut command = Command::new(BINARY);
    command.current_dir(bench.dir.path());
    command.args(["run", "chain.yaml", "-", "out", "--json-logs"]);
    command.envs([("CHAINETTE_SETS", "a;b"), ("CHAINETTE_PATIENCE", "40")]);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let mut events = stderr
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.expect("a line")).expect("JSON"));
    for part in [0..3, 3..7] {
        let wanted = part.len() as u64;
        let part: String = part.map(|n| format!("{{\"a\":{n}}}\n")).collect();
        stdin.write_all(part.as_bytes()).expect("it is read");
        let mut done = 0;
        while done < wanted {
            let event = events.next().expect("the run is on");
            if event["event"] == "chunk_finished" {
                done += event["rows"].as_u64().expect("rows");
            }
        }
    }
    drop(stdin);
    let last = events.last().expect("it ends");
    assert_eq!(
        (&last["rows_in"], &last["state"]),
        (&json!(7), &json!("finished"))
    );
    assert!(ends_within(&mut child, Duration::from_secs(100)) == 0);
}

/// Keeps the most that a watcher was ever told of each node, as came, done and reused.
struct Watcher(Arc<Mutex<Vec<[u64; 3]>>>);

impl Report for Watcher {
    fn event(&mut self, _: SystemTime, _: &Event, progress: &Progress) {
        self.tick(progress);
    }

    fn tick(&mut self, progress: &Progress) {
        let mut seen = self.0.lock().expect("no panic");
        for (at, node) in progress.status.traffic.iter().enumerate() {
            if seen.len() <= at {
                seen.push([0; 3]);
            }
            let now = [node.came, node.done, node.reused];
            for (most, now) in seen[at].iter_mut().zip(now) {
                *most = now.max(*most);
            }
        }
    }

    fn every(&self) -> Duration {
        Duration::from_millis(5)
    }
}

/// A row that is led three times is one row to those who watch, and as slow as it was.
#[test]
fn watchers_count_a_parked_row_once() {
    const SLOW: Duration = Duration::from_millis(30);
    let engines = Engines::start(|asked| echo(asked).after(SLOW));
    let branch = json!({"branch": "side", "join": "side", "steps": [step("beside", "b")]});
    let steps = json!([
        step("first", "a"),
        branch,
        step("second", "b"),
        step("third", "a")
    ]);
    let bench = Bench::new("", rows(24));
    let plan = good(&engines.chain(&steps)).plan;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let dispatcher = Dispatcher::start(vec![Box::new(Watcher(seen.clone()))]).expect("a thread");
    let events = dispatcher.events();
    let broker = Broker::new(&plan.engines, events.clone()).expect("engines can be set up");
    let sets = ["a", "b"].map(|name| vec![broker.index(name).expect("the engine is known")]);
    let stage = Arc::new(Stage::new(sets.to_vec()));
    let broker = Arc::new(broker.with_stage(Some(stage)));
    let dir = bench.dir.path();
    let config = RunConfig::new(plan, dir.join("in.jsonl"), dir.join("out"));
    let outcome = chainette::run::run(config, broker, &events, &dispatcher.status).expect("it runs");
    dispatcher.finish(Event::RunFinished(outcome.stats.clone()));
    assert_eq!((outcome.stats.rows_out, outcome.stats.switches), (24, 2));
    let seen = seen.lock().expect("no panic").clone();
    assert!(
        seen.iter()
            .all(|[came, done, reused]| *came <= 24 && *done <= 24 && *reused == 0),
        "{seen:?}"
    );
    assert!(seen[0][0] == 24 && seen[1][0] > 0, "it was watched: {seen:?}");
    for timing in &outcome.times.nodes {
        assert_eq!(timing.count, 24);
        assert!(timing.min >= SLOW.as_secs_f64(), "{timing:?}");
    }
}
