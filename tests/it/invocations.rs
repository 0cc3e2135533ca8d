//! Whole invocations of `chainette run`: exit codes, what stands on stderr, what lies on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, run, tree};
use crate::server::{Answer, TestServer};

const COPY: &str = "name: copy\nsteps:\n  - {id: n, apply: {jq: .}}\n";
const PICKY: &str =
    "name: picky\nsteps:\n  - {id: n, apply: {jq: 'if .bad then error(\"no\") else . end'}}\n";
const BINARY: &str = env!("CARGO_BIN_EXE_chainette");

fn rows(n: usize) -> String {
    (0..n).map(|n| format!("{{\"a\":{n}}}\n")).collect()
}

/// `chainette ARGS` in the bench's folder.
fn chainette(bench: &Bench, args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .current_dir(bench.dir.path())
        .args(args)
        .env("NO_COLOR", "1");
    command.env_remove("CHAINETTE_LOG").env_remove("RUST_BACKTRACE");
    command
}

fn invoke(bench: &Bench, args: &[&str]) -> Ran {
    bench.ran(&chainette(bench, args).output().expect("the command starts"))
}

/// Runs into another folder and gives its tree.
fn tree_of(bench: &Bench, out: &str, extra: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let ran = invoke(bench, &[&["run", "chain.yaml", "in.jsonl", out], extra].concat());
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    tree(&bench.dir.path().join(out))
}

/// Every file and folder with its bytes, private ones too; only the lock may be touched.
fn everything(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            let bytes = if path.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).expect("a file")
            };
            if !path.ends_with(".chainette/lock") {
                found.insert(path.display().to_string(), bytes);
            }
        }
    }
    found
}

fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(done.expect("kill starts").success());
}

fn until(what: &str, reached: impl Fn() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no {what} within a minute"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of a process, or a panic after `limit`.
fn ends_within(child: &mut Child, limit: Duration) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code().unwrap_or(-1);
        }
        if start.elapsed() > limit {
            child.kill().expect("a child can be killed");
            let _reaped = child.wait();
            panic!("it did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn spawn(bench: &Bench, extra: &[&str]) -> Child {
    bench
        .command(extra)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

fn stderr_of(child: &mut Child) -> String {
    let mut text = String::new();
    let pipe = child.stderr.as_mut().expect("stderr is piped");
    pipe.read_to_string(&mut text).expect("stderr is UTF-8");
    text
}

/// A stderr with times, speeds and process ids taken out.
macro_rules! assert_stderr {
    ($text:expr) => {
        insta::with_settings!({filters => vec![
            (r"\d+\.\d s( \([\d,]+/s\))?", "[time]"),
            (r"(?m) +[\d.]+ (ns|µs|ms|s) +±.*$", "  [times]"),
            (r"PID \d+", "PID [pid]"),
            (r"/tmp/\.tmp\w+", "[dir]"),
        ]}, { insta::assert_snapshot!($text) })
    };
}

/// Two Steps: `first` asks for the text, `second` for what first said.
fn two_steps(server: &TestServer) -> Value {
    json!({
        "name": "two", "vars": {"tone": "kind"},
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 4}},
        "steps": [
            {"id": "first", "engine": "e", "user_prompt": "say {{ a }}"},
            {"id": "second", "engine": "e", "user_prompt": "{{ vars.tone }}: {{ first.text }}"},
        ],
    })
}

fn echo() -> TestServer {
    TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())))
}

// ---- exit codes ----

#[test]
fn all_rows_done_is_0() {
    let (_bench, ran) = run(COPY, rows(3));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_stderr!(ran.stderr);
}

#[test]
fn failed_rows_are_3() {
    let (_bench, ran) = run(PICKY, "{\"a\":1}\n{\"bad\":true}\nno json\n");
    assert_eq!(ran.code, 3);
    assert_stderr!(ran.stderr);
}

#[test]
fn a_run_that_stops_is_1() {
    let bench = Bench::new(PICKY, rows(300).replace("\"a\"", "\"bad\""));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 1);
    assert_stderr!(ran.stderr);
    // Again: it does not sneak past the limit chunk by chunk.
    for _ in 0..3 {
        let again = bench.run(&[]);
        assert_eq!(
            (again.code, again.metadata()["state"].clone()),
            (1, json!("running")),
            "{}",
            again.stderr
        );
    }
    assert_eq!(bench.run(&["--max-errors", "100%"]).code, 3);
}

#[test]
fn nothing_is_written_on_exit_2() {
    let bench = Bench::new(COPY, rows(3));
    let dir = bench.dir.path();
    bench.write("bad.yaml", "name: t\nsteps:\n  - {id: n, appply: {jq: .}}\n");
    bench.write("in.txt", "");
    bench.write("file", "");
    bench.write("other.jsonl", "{}\n");
    fs::create_dir_all(dir.join("folder.jsonl")).expect("a folder can be made");
    fs::create_dir_all(dir.join("foreign/000")).expect("a folder can be made");
    bench.write("foreign/000/000.jsonl", "mine");
    assert_eq!(bench.run(&[]).code, 0);
    let before = everything(dir);
    let mut said = String::new();
    for args in [
        "bad.yaml in.jsonl new",
        "none.yaml in.jsonl new",
        "chain.yaml none.jsonl new",
        "chain.yaml folder.jsonl new",
        "chain.yaml in.txt new",
        "chain.yaml in.jsonl foreign",
        "chain.yaml in.jsonl foreign --overwrite",
        "chain.yaml in.jsonl foreign --resume",
        "chain.yaml in.jsonl file",
        "chain.yaml in.jsonl file/below",
        "chain.yaml in.jsonl new --set tone=x",
        "chain.yaml other.jsonl out",
        "chain.yaml in.jsonl new --max-errors many",
        "chain.yaml in.jsonl new --max-lines-per-file 0",
        "chain.yaml in.jsonl new --overwrite --resume",
        "chain.yaml in.jsonl",
    ] {
        let ran = invoke(
            &bench,
            &["run"].into_iter().chain(args.split(' ')).collect::<Vec<_>>(),
        );
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args}: {}", ran.stderr);
        assert_eq!(everything(dir), before, "{args}");
        said += &format!("$ {args}\n{}\n", ran.stderr);
    }
    assert_stderr!(said);
}

// ---- the same command again ----

#[test]
fn a_finished_out_stays_as_it_is() {
    for (input, code) in [(rows(10), 0), (rows(10) + "no json\n", 3)] {
        let (bench, ran) = run(COPY, input);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        let before = everything(&ran.out);
        let again = bench.run(&[]);
        assert_eq!(again.code, code);
        assert_eq!(
            again.stderr,
            "out is finished already: nothing to do (--overwrite starts again)\n"
        );
        let quiet = bench.run(&["--quiet"]);
        assert_eq!((quiet.code, quiet.stderr.as_str()), (code, ""));
        let json = bench.run(&["--json-logs"]);
        let events = events(&json.stderr);
        let last = events.last().expect("an event");
        assert_eq!(
            (json.code, &last["event"], &last["state"]),
            (code, &json!("run_finished"), &json!("finished"))
        );
        for more in [
            ["--limit", "5"],
            ["--resume", "--no-icons"],
            ["--batch-size", "3"],
        ] {
            assert_eq!(bench.run(&more).code, code);
        }
        assert_eq!(everything(&ran.out), before);
    }
}

#[test]
fn the_same_bytes_come_out_again() {
    let input = rows(700) + "no json\n{\"bad\":1}\n" + &rows(700);
    let bench = Bench::new(PICKY, input);
    let shards = ["--max-lines-per-file", "333"];
    let first = tree_of(&bench, "a", &shards);
    assert_eq!(
        first["errors/000.jsonl"].iter().filter(|b| **b == b'\n').count(),
        2
    );
    for (out, batch) in [("b", "1"), ("c", "100000"), ("d", "17")] {
        assert_eq!(
            tree_of(&bench, out, &[&shards[..], &["--batch-size", batch]].concat()),
            first
        );
    }
}

#[test]
fn every_difference_is_named() {
    let bench = Bench::new(
        "name: t\nvars: {v: 1}\nsteps:\n  - {id: n, apply: {jq: .}}\n",
        rows(10),
    );
    assert_eq!(bench.run(&[]).code, 0);
    let before = everything(&bench.dir.path().join("out"));
    let refused = |extra: &[&str]| {
        let ran = bench.run(extra);
        assert_eq!(ran.code, 2, "{extra:?}: {}", ran.stderr);
        assert_eq!(everything(&ran.out), before);
        ran.stderr
    };
    let mut said = refused(&["--set", "v=2"]);
    said += &refused(&["--max-lines-per-file", "7"]);
    said += &refused(&["--no-flattened"]);
    said += &refused(&["--set", "v=2", "--max-lines-per-file", "7", "--no-flattened"]);
    let path = bench.dir.path().join("in.jsonl");
    let old = fs::metadata(&path)
        .and_then(|meta| meta.modified())
        .expect("a time");
    let set_time = |time| {
        let file = fs::File::options().write(true).open(&path).expect("the input");
        file.set_modified(time).expect("a time can be set");
    };
    set_time(old + Duration::from_secs(5));
    said += &refused(&[]);
    bench.write("in.jsonl", rows(10).replace('9', "8"));
    set_time(old);
    said += &refused(&[]);
    bench.write("in.jsonl", rows(11));
    set_time(old);
    said += &refused(&[]);
    bench.write("in.jsonl", rows(10));
    set_time(old);
    bench.write(
        "chain.yaml",
        "name: t\nvars: {v: 1}\nsteps:\n  - {id: n, apply: {jq: '., .'}}\n",
    );
    said += &refused(&[]);
    assert_stderr!(said);
    let ran = bench.run(&["--overwrite"]);
    assert_eq!((ran.code, ran.lines("n").len()), (0, 20), "{}", ran.stderr);
}

#[test]
fn resume_asks_only_what_changed() {
    let server = echo();
    let chain = two_steps(&server).to_string();
    let bench = Bench::new(&chain, rows(20));
    let asked = |extra: &[&str]| {
        server.clear_log();
        let ran = bench.run(extra);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        server.stats().asked
    };
    assert_eq!(asked(&[]), 40);
    assert_eq!(asked(&["--resume", "--max-lines-per-file", "6"]), 0);
    assert_eq!(
        asked(&["--resume", "--max-lines-per-file", "6", "--no-flattened"]),
        0
    );
    assert!(!bench.dir.path().join("out/flattened").exists());
    assert_eq!(asked(&["--resume", "--set", "tone=harsh"]), 20);
    assert_eq!(
        asked(&["--resume"]),
        0,
        "the answers to the first vars are still on file"
    );
    let path = bench.dir.path().join("in.jsonl");
    let file = fs::File::options().write(true).open(path).expect("the input");
    file.set_modified(std::time::UNIX_EPOCH)
        .expect("a time can be set");
    assert_eq!(asked(&["--resume"]), 0);
    bench.write("in.jsonl", rows(25).replace("\"a\":3}", "\"a\":\"three\"}"));
    assert_eq!(asked(&["--resume"]), 2 * 6);
    bench.write(
        "chain.yaml",
        chain.replace("{{ vars.tone }}:", "{{ vars.tone }}!"),
    );
    assert_eq!(asked(&["--resume"]), 25);
    assert_eq!(tree(&bench.dir.path().join("out")), tree_of(&bench, "fresh", &[]));
    assert_eq!(asked(&["--overwrite"]), 50);
    assert_eq!(
        tree(&bench.dir.path().join("out")),
        tree_of(&bench, "fresh", &["--overwrite"])
    );
}

/// `--resume` with a change, killed, and resumed again: the old answers are still used.
#[test]
fn a_killed_resume_keeps_the_old_answers() {
    let slow = Arc::new(AtomicBool::new(false));
    let hang = slow.clone();
    let server = TestServer::start(move |asked| {
        if hang.load(Ordering::SeqCst) && asked.user().contains("say 12") {
            return Answer::Hang;
        }
        Answer::text(format!("heard {}", asked.user()))
    });
    let chain = two_steps(&server).to_string();
    let bench = Bench::new(&chain, rows(20));
    assert_eq!(bench.run(&["--batch-size", "2"]).code, 0);
    bench.write(
        "chain.yaml",
        chain.replace("{{ vars.tone }}:", "{{ vars.tone }}!"),
    );
    slow.store(true, Ordering::SeqCst);
    server.clear_log();
    let mut child = spawn(&bench, &["--resume", "--batch-size", "2"]);
    until("answers", || server.stats().answered >= 19);
    child.kill().expect("a child can be killed");
    let _reaped = child.wait();
    slow.store(false, Ordering::SeqCst);
    let ran = bench.run(&["--batch-size", "2"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let stats = server.stats();
    assert!(stats.asked <= 20 + 4, "{stats:?}");
    assert_eq!(tree(&ran.out), tree_of(&bench, "fresh", &[]));
}

#[test]
fn a_larger_limit_goes_on() {
    let input = rows(50) + "no json\n" + &rows(50);
    let bench = Bench::new(PICKY, input);
    let shards = ["--max-lines-per-file", "8"];
    for limit in ["0", "3", "8", "9", "60"] {
        let ran = bench.run(&[&shards[..], &["--limit", limit]].concat());
        let (n, code) = (
            limit.parse::<usize>().expect("a number"),
            if limit == "60" { 3 } else { 0 },
        );
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert_eq!(ran.lines("n").len() + ran.lines("errors").len(), n);
        let whole = tree_of(
            &bench,
            &format!("to{limit}"),
            &[&shards[..], &["--limit", limit]].concat(),
        );
        assert_eq!(tree(&ran.out), whole, "--limit {limit}");
    }
    assert_eq!(bench.run(&shards).code, 3);
    assert_eq!(
        tree(&bench.dir.path().join("out")),
        tree_of(&bench, "whole", &shards)
    );
}

#[test]
fn one_process_per_out() {
    let server = TestServer::start(|_| Answer::Hang);
    let bench = Bench::new(&two_steps(&server).to_string(), rows(20));
    let mut child = spawn(&bench, &[]);
    until("request", || server.stats().in_flight > 0);
    let mut said = String::new();
    for extra in [&[][..], &["--resume"], &["--overwrite"]] {
        let ran = bench.run(extra);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(
            ran.stderr.contains(&format!("PID {}", child.id())),
            "{}",
            ran.stderr
        );
        said = ran.stderr;
    }
    assert_stderr!(said);
    child.kill().expect("a child can be killed");
    let _reaped = child.wait();
}

// ---- signals ----

fn interrupted(name: &str, times: usize, within: Duration) {
    let healed = Arc::new(AtomicBool::new(false));
    let good = healed.clone();
    let server = TestServer::start(move |asked| match asked.user() {
        "say 70" | "say 75" if !good.load(Ordering::SeqCst) => Answer::Hang,
        text => Answer::text(format!("heard {text}")),
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(200));
    let extra = ["--batch-size", "16", "--max-lines-per-file", "30"];
    let mut child = spawn(&bench, &extra);
    // Two of four slots hang; the rows after them go on until rows in flight are at their limit.
    until("stand-still", || {
        let before = server.answered();
        std::thread::sleep(Duration::from_millis(300));
        before > 140 && server.answered() == before
    });
    let start = Instant::now();
    for _ in 0..times {
        signal(&child, name);
        std::thread::sleep(Duration::from_millis(100));
    }
    let code = ends_within(&mut child, Duration::from_secs(20));
    let took = start.elapsed();
    let said = stderr_of(&mut child);
    assert_eq!(code, 130, "{said}");
    assert!(took < within, "{took:?}");
    assert!(said.contains("interrupted: the same command goes on"), "{said}");
    let ran = bench.ran(&Output {
        status: Default::default(),
        stdout: vec![],
        stderr: vec![],
    });
    assert_eq!(
        ran.lines("flattened").len(),
        70,
        "the rows before the one that hangs"
    );
    assert_eq!(ran.metadata()["state"], "running");
    healed.store(true, Ordering::SeqCst);
    let ran = bench.run(&extra);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let stats = server.stats();
    assert_eq!((stats.asked_again, stats.asked_again_although_answered), (2, 0));
    assert_eq!(tree(&ran.out), tree_of(&bench, "whole", &extra));
}

#[test]
fn ctrl_c_gives_requests_five_seconds() {
    interrupted("-INT", 1, Duration::from_millis(6500));
}

#[test]
fn sigterm_gives_requests_five_seconds() {
    interrupted("-TERM", 1, Duration::from_millis(6500));
}

#[test]
fn ctrl_c_twice_stops_at_once() {
    interrupted("-INT", 2, Duration::from_millis(1500));
}

/// A jq program that runs for a minute holds nobody up.
#[test]
fn ctrl_c_does_not_wait_for_jq() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: 'if .a == 40 then last(repeat(1)) else . end'}}\n";
    for (times, within) in [(1, 6500), (2, 1500)] {
        let bench = Bench::new(chain, rows(200));
        let mut child = spawn(&bench, &["--batch-size", "16"]);
        let checkpoint = bench.dir.path().join("out/.chainette/checkpoint.json");
        until("checkpoint", || checkpoint.exists());
        let start = Instant::now();
        for _ in 0..times {
            signal(&child, "-INT");
            std::thread::sleep(Duration::from_millis(100));
        }
        let code = ends_within(&mut child, Duration::from_secs(100));
        assert_eq!(code, 130);
        assert!(
            start.elapsed() < Duration::from_millis(within),
            "{:?}",
            start.elapsed()
        );
        bench.write("chain.yaml", COPY);
        let ran = bench.run(&["--resume"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
}

// ---- logs ----

/// The lines of `--json-logs`, checked one by one.
fn events(stderr: &str) -> Vec<Value> {
    const NAMES: &str = "run_started resumed chunk_started chunk_finished step_total rows_finished rows_failed \
        engine_starting engine_ready engine_waiting engine_draining engine_released engine_crashed engine_log \
        shard_rolled checkpoint warning run_finished error";
    let parse = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        let ts = event["ts"].as_str().expect("a time");
        let shape: String = ts
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000-00-00T00:00:00.000Z");
        let name = event["event"].as_str().expect("a name");
        assert!(NAMES.split(' ').any(|known| known == name), "{name}");
        event
    };
    stderr.lines().map(parse).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().expect("a name"))
        .collect()
}

#[test]
fn json_logs_are_json_and_never_per_row() {
    let bench = Bench::new(PICKY, rows(2000) + "no json\n{\"bad\":1}\n{\"bad\":1}\n");
    let ran = bench.run(&[
        "--json-logs",
        "--batch-size",
        "500",
        "--max-lines-per-file",
        "900",
    ]);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
    let events = events(&ran.stderr);
    let names = names(&events);
    assert_eq!(
        (names.first(), names.last()),
        (Some(&"run_started"), Some(&"run_finished"))
    );
    let count = |name: &str| names.iter().filter(|n| **n == name).count();
    assert_eq!((count("chunk_started"), count("chunk_finished")), (5, 5));
    assert_eq!(count("rows_failed"), 2);
    assert!(events.len() < 40, "{names:?}");
    let last = events.last().expect("an event");
    assert_eq!(
        json!([
            last["state"],
            last["rows_in"],
            last["rows_out"],
            last["rows_failed"],
            last["tokens"]
        ]),
        json!(["finished", 2003, 2000, 3, {"prompt": 0, "completion": 0}])
    );
    assert!(last["seconds"].is_number());
    let failed = events
        .iter()
        .find(|event| event["event"] == "rows_failed" && event["node"] == "n");
    let failed = failed.expect("an event");
    assert_eq!(
        json!([failed["kind"], failed["count"], failed["example"]]),
        json!(["apply", 2, "no"])
    );

    let bench = Bench::new(PICKY, rows(2000) + "{\"bad\":1}\n");
    let ran = bench.run(&["--json-logs", "--quiet"]);
    let quiet = self::events(&ran.stderr);
    assert_eq!((ran.code, self::names(&quiet)), (3, vec!["run_finished"]));
}

#[test]
fn json_logs_tell_errors_and_warnings_too() {
    // Bad usage, a bad chain, a bad input, a run that stops, a warning of the compiler.
    let bench = Bench::new(COPY, rows(3));
    bench.write("bad.yaml", "name: t\nsteps: 7\n");
    for args in [
        "--nope",
        "chain.yaml in.jsonl",
        "bad.yaml in.jsonl out",
        "chain.yaml none.jsonl out",
    ] {
        let args: Vec<&str> = ["run", "--json-logs"]
            .into_iter()
            .chain(args.split(' '))
            .collect();
        let ran = invoke(&bench, &args);
        assert_eq!(
            (ran.code, names(&events(&ran.stderr))),
            (2, vec!["error"]),
            "{args:?}"
        );
    }
    let bench = Bench::new(PICKY, "{\"bad\":1}\n");
    let ran = bench.run(&["--json-logs", "--quiet", "--fail-fast"]);
    assert_eq!(
        (ran.code, names(&events(&ran.stderr))),
        (1, vec!["run_finished", "error"])
    );

    let server = echo();
    let mut chain = two_steps(&server);
    chain["steps"][0]["on_error"] = json!("null");
    let bench = Bench::new(&chain.to_string(), rows(1));
    let ran = bench.run(&["--json-logs", "--quiet"]);
    assert_eq!(
        (ran.code, names(&events(&ran.stderr))),
        (0, vec!["warning", "run_finished"])
    );
    assert!(bench.run(&["--overwrite"]).stderr.contains("warning"));
}

/// Developer logs do not break the promise of JSON.
#[test]
fn developer_logs_are_json_lines_too() {
    let server = echo();
    let bench = Bench::new(&two_steps(&server).to_string(), rows(1));
    let ran = bench.ran(
        &bench
            .command(&["--json-logs"])
            .env("CHAINETTE_LOG", "trace")
            .output()
            .expect("the command starts"),
    );
    assert_eq!(ran.code, 0);
    for line in ran.stderr.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(value["event"].is_string() && value["ts"].is_string());
    }
}

#[test]
fn quiet_says_errors_only() {
    let bench = Bench::new(PICKY, rows(10) + "{\"bad\":1}\n");
    let ran = bench.run(&["--quiet"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (3, ""));
    let ran = bench.run(&["--quiet", "--overwrite", "--fail-fast"]);
    assert_eq!(ran.code, 1);
    assert_stderr!(ran.stderr);
    let ran = bench.run(&["--quiet", "--no-flattened"]);
    assert_eq!(ran.code, 2);
    assert_stderr!(ran.stderr);
}

#[test]
fn a_run_needs_no_reader_on_stderr() {
    let patience = Duration::from_secs(60);
    for extra in [
        &["--json-logs", "--batch-size", "1"][..],
        &["--batch-size", "1"],
        &["--quiet"],
        &["--nope"],
    ] {
        let code = if extra == ["--nope"] { 2 } else { 0 };
        // Nobody reads, and the pipe is full.
        let bench = Bench::new(COPY, rows(20_000));
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(&[b'\n'; 65536]).expect("a pipe holds 64 KiB");
        let mut child = bench
            .command(extra)
            .stderr(writer)
            .spawn()
            .expect("the command starts");
        assert_eq!(ends_within(&mut child, patience), code, "{extra:?}, full");
        drop(reader);
        // The reader is gone.
        let bench = Bench::new(COPY, rows(20_000));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut child = bench
            .command(extra)
            .stderr(writer)
            .spawn()
            .expect("the command starts");
        assert_eq!(ends_within(&mut child, patience), code, "{extra:?}, broken");
        // There is no stderr at all, nor stdout.
        let bench = Bench::new(COPY, rows(20_000));
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "exec \"$0\" run chain.yaml in.jsonl out \"$@\" >&- 2>&-",
            BINARY,
        ]);
        let mut child = shell
            .args(extra)
            .current_dir(bench.dir.path())
            .spawn()
            .expect("sh starts");
        assert_eq!(ends_within(&mut child, patience), code, "{extra:?}, closed");
    }
}

// ---- disks ----

/// Runs a shell script that may mount: `$B` is the binary. Its stdout.
fn with_mounts(bench: &Bench, script: &str) -> String {
    // As root, else as root of a namespace of its own, else by sudo. Mounts go when the script ends.
    let ways: [&[&str]; 3] = [
        &["unshare", "-m"],
        &["unshare", "-rm"],
        &["sudo", "-n", "unshare", "-m"],
    ];
    for way in ways {
        let mut command = Command::new(way[0]);
        command
            .args(&way[1..])
            .args(["sh", "-c"])
            .current_dir(bench.dir.path());
        let probe = command.arg("mount -t tmpfs tmpfs /mnt").output();
        if !probe.is_ok_and(|probe| probe.status.success()) {
            continue;
        }
        let mut command = Command::new(way[0]);
        command
            .args(&way[1..])
            .args(["sh", "-eu", "-c"])
            .current_dir(bench.dir.path());
        let script = format!("B={BINARY}; export NO_COLOR=1\n{script}");
        let output = command.arg(script).output().expect("unshare starts");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{out}{err}");
        return out.into_owned();
    }
    panic!("this test needs to mount a tmpfs: run it as root, or allow user namespaces");
}

#[test]
fn the_disk_is_full() {
    let input: String = (0..3000)
        .map(|n| format!("{{\"a\":{n},\"text\":\"{}\"}}\n", "x".repeat(1000)))
        .collect();
    let bench = Bench::new(PICKY, input);
    let said = with_mounts(
        &bench,
        "mkdir disk; mount -t tmpfs -o size=24m tmpfs disk\n\
         head -c 20M /dev/zero > disk/filler\n\
         for again in 1 2; do $B run chain.yaml in.jsonl disk/out --quiet 2>&1 || echo \"exit $?\"; done\n\
         rm disk/filler\n\
         $B run chain.yaml in.jsonl disk/out --quiet\n\
         $B run chain.yaml in.jsonl whole --quiet\n\
         cp -r disk/out out",
    );
    assert_stderr!(said);
    let dir = bench.dir.path();
    assert_eq!(tree(&dir.join("out")), tree(&dir.join("whole")));
}

#[test]
fn the_disk_is_full_before_anything() {
    let bench = Bench::new(COPY, rows(10));
    let said = with_mounts(
        &bench,
        "mkdir disk; mount -t tmpfs -o size=1m tmpfs disk; mkdir disk/out\n\
         cat /dev/zero > disk/filler 2>/dev/null || true\n\
         $B run chain.yaml in.jsonl disk/out --quiet 2>&1 || echo \"exit $?\"\n\
         rm disk/filler\n\
         $B run chain.yaml in.jsonl disk/out --quiet\n\
         cp -r disk/out out",
    );
    assert_stderr!(said);
    assert_eq!(tree(&bench.dir.path().join("out")), tree_of(&bench, "whole", &[]));
}

#[test]
fn the_disk_of_the_answers_is_full() {
    let server = TestServer::start(|asked| {
        Answer::text(format!(
            "{} {}",
            asked.user().split(' ').take(3).collect::<String>(),
            // Long, and no repetition: that would be cut.
            (0..4200).map(|n| format!("{n} ")).collect::<String>()
        ))
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(100));
    let said = with_mounts(
        &bench,
        "$B run chain.yaml in.jsonl out --quiet --limit 0; mount -t tmpfs -o size=8m tmpfs out/.chainette/answers\n\
         head -c 7M /dev/zero > out/.chainette/answers/filler\n\
         $B run chain.yaml in.jsonl out --quiet 2>&1 || echo \"exit $?\"\n\
         rm out/.chainette/answers/filler\n\
         $B run chain.yaml in.jsonl out --quiet",
    );
    assert_stderr!(said);
    let stats = server.stats();
    assert!(stats.asked_again <= 4, "{stats:?}");
    assert_eq!(tree(&bench.dir.path().join("out")), tree_of(&bench, "whole", &[]));
}

#[test]
fn out_is_read_only() {
    let bench = Bench::new(COPY, rows(10));
    let said = with_mounts(
        &bench,
        "mkdir disk; mount -t tmpfs tmpfs disk; mkdir disk/out; mount -o remount,ro disk\n\
         for out in disk/out disk/new; do\n\
         $B run chain.yaml in.jsonl $out 2>&1 || echo \"exit $?\"\n\
         done",
    );
    assert_stderr!(said);
}

// ---- inputs and shards ----

#[test]
fn an_input_without_rows() {
    for input in ["", "\n", "\n  \r\n\t\n", "\u{feff}"] {
        let (bench, ran) = run(COPY, input);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let files: Vec<String> = tree(&ran.out).into_keys().collect();
        assert_eq!(
            files,
            ["flattened/000.jsonl", "graph.json", "metadata.json"],
            "{input:?}"
        );
        assert_eq!(ran.metadata()["state"], "finished");
        assert_eq!(bench.run(&[]).code, 0);
    }
}

#[test]
fn the_last_line_has_no_end() {
    let (bench, ran) = run(COPY, rows(3));
    let whole = ran.lines("flattened");
    bench.write("in.jsonl", rows(3).trim_end());
    let ran = bench.run(&["--overwrite"]);
    assert_eq!((ran.code, ran.lines("flattened")), (0, whole));
}

/// Also: no more files are open at once than a process may have.
#[test]
fn three_thousand_shards() {
    let bench = Bench::new(COPY, rows(3000));
    let mut shell = Command::new("sh");
    let line =
        "ulimit -n 256; exec \"$0\" run chain.yaml in.jsonl out --max-lines-per-file 1 --batch-size 100000";
    let output = shell
        .args(["-c", line, BINARY])
        .current_dir(bench.dir.path())
        .output()
        .expect("sh starts");
    let ran = bench.ran(&output);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.lines("n").len(), 3000);
    assert_eq!(
        fs::read_to_string(ran.out.join("flattened/2999.jsonl")).expect("the last shard"),
        "{\"row_id\":\"2999\",\"chain_input.a\":2999,\"n.a\":2999}\n"
    );
    assert_eq!(
        ran.metadata()["shards"]["n"].as_array().expect("shards").len(),
        3000
    );
}

#[test]
fn a_chain_begins_with_a_group() {
    let chain = "name: t\nsteps:\n  - parallel:\n      - {branch: l, join: l, steps: [{id: x, apply: {jq: '{v: .a}'}}]}\n      \
        - {branch: r, steps: [{id: y, apply: {jq: '{v: (.a + 1)}'}}]}\n  - {id: z, apply: {jq: '{a, l: $row.l.v}'}}\n";
    let (_bench, ran) = run(chain, "{\"a\":1}\n");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("flattened"),
        [r#"{"row_id":"0","chain_input.a":1,"l.v":1,"z.a":1,"z.l":1}"#]
    );
    assert_eq!(ran.lines("y"), [r#"{"row_id":"0","v":2}"#]);
}

/// The input goes while the run reads it: what is open stays readable; a resume says what is missing.
#[test]
fn the_input_is_removed() {
    let server = TestServer::start(|asked| match asked.user() {
        "say 50" => Answer::Hang,
        text => Answer::text(format!("heard {text}")),
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(100));
    let mut child = spawn(&bench, &["--batch-size", "10"]);
    until("answers", || server.stats().answered >= 100);
    fs::remove_file(bench.dir.path().join("in.jsonl")).expect("the input can be removed");
    signal(&child, "-INT");
    signal(&child, "-INT");
    assert_eq!(ends_within(&mut child, Duration::from_secs(10)), 130);
    let before = everything(&bench.dir.path().join("out"));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 2);
    assert_stderr!(ran.stderr);
    assert_eq!(everything(&ran.out), before);
}

/// An input that loses its end while it is read is no finished input.
#[test]
fn the_input_is_cut_short() {
    let server = echo();
    let input = rows(3000).replace("{\"a\"", &format!("{{\"pad\":\"{}\",\"a\"", "x".repeat(4000)));
    let bench = Bench::new(&two_steps(&server).to_string(), &input);
    let mut child = spawn(&bench, &["--batch-size", "10"]);
    until("answers", || server.stats().answered >= 20);
    bench.write("in.jsonl", rows(1));
    let code = ends_within(&mut child, Duration::from_secs(60));
    let said = stderr_of(&mut child);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("in.jsonl was changed while it was read"), "{said}");
}

/// A file below OUT and what is done to it.
type Harm<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn a_shard_was_altered() {
    let input = rows(1000) + "{\"bad\":1}\n" + &rows(10);
    let bench = Bench::new(PICKY, input);
    let shards = ["--max-lines-per-file", "300", "--fail-fast", "--batch-size", "50"];
    let mut said = String::new();
    let cut = |path: &Path| {
        let file = fs::File::options().write(true).open(path).expect("the shard");
        file.set_len(100).expect("the shard can be cut");
    };
    let remove = |path: &Path| fs::remove_file(path).expect("the shard can be removed");
    let remove_folder = |path: &Path| fs::remove_dir_all(path).expect("the folder can be removed");
    let harms: [Harm<'_>; 6] = [
        ("n/001.jsonl", &cut),
        ("n/001.jsonl", &remove),
        ("flattened/003.jsonl.part", &cut),
        ("flattened/003.jsonl.part", &remove),
        ("n", &remove_folder),
        (".chainette/outcomes", &cut),
    ];
    for (name, harm) in harms {
        let ran = bench.run(&[&shards[..], &["--overwrite"]].concat());
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        harm(&ran.out.join(name));
        let ran = bench.run(&shards);
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        said += &format!("{name}\n{}", ran.stderr);
    }
    assert_stderr!(said);
}
