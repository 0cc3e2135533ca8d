//! What a run says: `--json-logs`, `--quiet`, and readers that do not read.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{BINARY, Bench, COPY, PICKY, assert_stderr, echo, ends_within, rows, two_steps};

/// The lines of `--json-logs`, checked one by one.
pub fn events(stderr: &str) -> Vec<Value> {
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
        let ran = bench.invoke(&args);
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
