//! Events for machines: each is in the schema, warnings once.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use chainette::event::{Event, Progress, Report, RunStats};
use chainette::report::events_schema;
use chainette::run::Dispatcher;
use serde_json::Value;

use crate::harness::Bench;
use crate::screens::{chain, holds_after, rows};
use crate::server::{Answer, TestServer, answer_from_schema};

/// The events of a run, each checked against the schema.
fn events(bench: &Bench, extra: &[&str]) -> (i32, Vec<Value>) {
    let ran = bench.run(&[extra, &["--json-logs"]].concat());
    (ran.code, checked(&ran.stderr))
}

/// The events in a text, each checked against the schema.
pub fn checked(stderr: &str) -> Vec<Value> {
    let schema: Value = serde_json::from_str(events_schema()).expect("the schema is JSON");
    let schema = jsonschema::validator_for(&schema).expect("the schema is one");
    let lines = stderr.lines().map(|line| {
        let event: Value = serde_json::from_str(line).expect(line);
        let problems: Vec<String> = schema.iter_errors(&event).map(|e| e.to_string()).collect();
        assert!(problems.is_empty(), "{line}\n{problems:?}");
        event
    });
    lines.collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

#[test]
fn a_warning_is_told_once() {
    struct Heard(Arc<Mutex<Vec<String>>>);
    impl Report for Heard {
        fn event(&mut self, _: SystemTime, event: &Event, _: &Progress) {
            self.0
                .lock()
                .expect("nobody panics")
                .push(event.name().to_owned());
        }
        fn tick(&mut self, _: &Progress) {}
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let dispatcher = Dispatcher::start(vec![Box::new(Heard(heard.clone()))]).expect("a thread");
    let events = dispatcher.events();
    for message in ["a", "b", "a", "a"] {
        let message = message.to_owned();
        events.send(Event::Warning { message });
    }
    dispatcher.finish(Event::RunFinished(RunStats::default()));
    assert_eq!(
        *heard.lock().expect("nobody panics"),
        ["warning", "warning", "run_finished"]
    );
}

#[test]
fn the_schema_knows_wrong_events() {
    let schema: Value = serde_json::from_str(events_schema()).expect("the schema is JSON");
    let schema = jsonschema::validator_for(&schema).expect("the schema is one");
    let ts = "2026-01-02T03:04:05.678Z";
    let is_one = |event: Value| schema.is_valid(&event);
    assert!(is_one(
        serde_json::json!({"ts": ts, "event": "checkpoint", "rows": 1})
    ));
    assert!(!is_one(
        serde_json::json!({"ts": ts, "event": "checkpoint", "rows": -1})
    ));
    assert!(!is_one(
        serde_json::json!({"ts": ts, "event": "checkpoint", "rows": 1, "more": 1})
    ));
    assert!(!is_one(serde_json::json!({"ts": ts, "event": "nothing"})));
    assert!(!is_one(
        serde_json::json!({"ts": "now", "event": "checkpoint", "rows": 1})
    ));
}

#[test]
fn every_event_is_in_the_schema() {
    // All well, then resumed with a larger limit.
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&chain(&server), rows(30) + "bad\n");
    let (code, well) = events(
        &bench,
        &["--limit", "20", "--verbose", "--max-lines-per-file", "7"],
    );
    assert_eq!(code, 3);
    assert!(!named(&well, "shard_rolled").is_empty());
    let totals = named(&well, "step_total");
    let last = |node: &str| {
        totals
            .iter()
            .rev()
            .find(|event| event["node"] == node)
            .map(|e| e["total"].clone())
    };
    assert_eq!(
        (last("clean"), last("sentiment"), last("note")),
        (Some(20.into()), Some(19.into()), Some(15.into()))
    );
    let (code, resumed) = events(&bench, &["--max-lines-per-file", "7"]);
    assert_eq!(
        (code, named(&resumed, "resumed")[0]["rows"].clone()),
        (3, 20.into())
    );
    assert_eq!(named(&resumed, "rows_failed")[0]["kind"], "invalid_input");
    // The summary's times are those of the whole run.
    let metadata = bench.opened().metadata();
    assert_eq!(metadata["timings"]["nodes"]["sentiment"]["measured"], 29);
    let seconds = metadata["timings"]["run_seconds"].as_f64().expect("seconds");
    let second = named(&resumed, "run_finished")[0]["seconds"]
        .as_f64()
        .expect("seconds");
    let first = named(&well, "run_finished")[0]["seconds"]
        .as_f64()
        .expect("seconds");
    assert!(
        seconds > second && seconds <= first + second,
        "{seconds} {first} {second}"
    );

    // An engine that makes rows wait, then refuses for good.
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let server = TestServer::start(
        move |_| match seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0..3 => Answer::status(503, "Loading model"),
            _ => Answer::status(401, "who are you"),
        },
    );
    let bench = Bench::new(&chain(&server), rows(3));
    let (code, stopped) = events(&bench, &[]);
    assert_eq!(code, 1);
    assert!(!named(&stopped, "engine_waiting").is_empty() && !named(&stopped, "error").is_empty());
    assert_eq!(named(&stopped, "run_finished")[0]["state"], "stopped");

    // Never begun; developer logs; interrupted.
    bench.write("chain.yaml", "name: t\nsteps: 3\n");
    let (code, refused) = events(&bench, &[]);
    assert_eq!((code, refused.len()), (2, 1));
    let server = holds_after(2);
    let bench = Bench::new(&chain(&server), rows(9));
    let mut command = bench.command(&["--json-logs", "--verbose"]);
    command
        .env("CHAINETTE_LOG", "debug")
        .stderr(std::process::Stdio::piped());
    let run = command.spawn().expect("the command starts");
    while server.stats().in_flight < 4 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = run.id().to_string();
    let kill = || std::process::Command::new("kill").args(["-INT", &pid]).status();
    assert!(kill().expect("kill starts").success());
    let ran = bench.ran(&run.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    let interrupted = checked(&ran.stderr);
    assert_eq!(named(&interrupted, "run_finished")[0]["state"], "interrupted");
    let requests = named(&interrupted, "request");
    assert!(
        requests.iter().any(|event| event["status"] == "answered"),
        "{}",
        ran.stderr
    );
}
