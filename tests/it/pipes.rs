//! Rows from stdin.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, tree};
use crate::inputs::{COPY, command};

fn piped(bench: &Bench, extra: &[&str]) -> Child {
    let mut command = command(bench, &[&["run", "chain.yaml", "-", "out"], extra].concat());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("the command starts")
}

/// Runs with these bytes on stdin.
fn pipe(bench: &Bench, bytes: &[u8], extra: &[&str]) -> Ran {
    let mut child = piped(bench, extra);
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let bytes = bytes.to_vec();
    let writing = std::thread::spawn(move || {
        // A reader that has enough closes the pipe.
        let _closed = stdin.write_all(&bytes);
    });
    let ran = bench.ran(&child.wait_with_output().expect("it ends"));
    writing.join().expect("the writer ends");
    ran
}

fn rows(range: std::ops::Range<usize>) -> String {
    range.map(|n| format!("{{\"a\":{n}}}\n")).collect()
}

#[test]
fn rows_of_a_slow_pipe_go_on_as_they_come() {
    let bench = Bench::new(COPY, "");
    let mut child = piped(&bench, &["--json-logs"]);
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let mut events = stderr.lines().map(|line| {
        let event: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        event
    });
    let mut done = 0;
    for part in [rows(0..1), rows(1..3) + "{\"a\":", "3}\n".to_owned()] {
        stdin.write_all(part.as_bytes()).expect("it is read");
        let lines = part.bytes().filter(|byte| *byte == b'\n').count() as u64;
        let mut seen = 0;
        // The pipe stays open: these rows are finished before the next ones are there.
        while seen < lines {
            let event = events.next().expect("the run is on");
            if event["event"] == "chunk_finished" {
                seen += event["rows"].as_u64().expect("rows");
            }
        }
        done += seen;
    }
    assert_eq!(done, 4);
    drop(stdin);
    let events: Vec<Value> = events.collect();
    assert!(
        events
            .iter()
            .any(|event| event["event"] == "step_total" && event["total"] == 4)
    );
    let ran = bench.ran(&child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, 0);
    assert_eq!(ran.lines("n").len(), 4);
}

#[test]
fn a_pipe_resumes_with_the_same_bytes() {
    let bench = Bench::new(COPY, "");
    let whole = rows(0..3000);
    let part = pipe(&bench, whole.as_bytes(), &["--limit", "1000"]);
    assert_eq!(part.code, 0, "{}", part.stderr);
    let before = tree(&part.out);
    let again = |bytes: &str, extra: &[&str], says: &str| {
        let ran = pipe(&bench, bytes.as_bytes(), extra);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
        assert_eq!(tree(&ran.out), before, "nothing is written");
    };
    again(&rows(1..3000), &[], "the input is another one");
    again(
        &whole.replace(":999}", ":-1}"),
        &[],
        "its first 1,000 rows differ",
    );
    again(
        &rows(0..999),
        &[],
        "it ends after 999 rows, 1,000 were read before",
    );
    again("", &[], "the input is another one");
    let ran = pipe(&bench, whole.as_bytes(), &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let finished = tree(&ran.out);
    // Finished: the same bytes are recognised, others are not passed over in silence.
    let ran = pipe(&bench, whole.as_bytes(), &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("is finished already"), "{}", ran.stderr);
    for more in [rows(0..3001), rows(0..2999) + "{\"a\":1}\n"] {
        let ran = pipe(&bench, more.as_bytes(), &[]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert!(ran.stderr.contains("stdin is another one"), "{}", ran.stderr);
    }
    let ran = pipe(&bench, rows(0..3001).as_bytes(), &["--resume"]);
    assert_eq!((ran.code, ran.lines("n").len()), (0, 3001), "{}", ran.stderr);
    let ran = pipe(&bench, whole.as_bytes(), &["--resume"]);
    assert_eq!((ran.code, tree(&ran.out)), (0, finished), "{}", ran.stderr);
}

#[test]
fn a_pipe_is_killed_and_resumes() {
    let bench = Bench::new(COPY, "");
    let whole = rows(0..2000);
    let mut child = piped(&bench, &["--json-logs", "--batch-size", "10"]);
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(rows(0..1500).as_bytes()).expect("it is read");
    let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
    let checkpoint = stderr
        .lines()
        .any(|line| line.expect("a line").contains("\"checkpoint\""));
    assert!(checkpoint, "a checkpoint is written while the pipe is open");
    child.kill().expect("it can be killed");
    child.wait().expect("it ends");
    let ran = pipe(&bench, whole.as_bytes(), &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("resuming"), "{}", ran.stderr);
    assert_eq!(ran.lines("n").len(), 2000);
    fs::rename(&ran.out, bench.dir.path().join("killed")).expect("it can be moved");
    assert_eq!(pipe(&bench, whole.as_bytes(), &[]).code, 0);
    assert_eq!(
        tree(&bench.dir.path().join("out")),
        tree(&bench.dir.path().join("killed"))
    );
}

#[test]
fn a_pipe_without_rows() {
    for bytes in ["", "\n\n  \n"] {
        let bench = Bench::new(COPY, "");
        for _ in 0..2 {
            let ran = pipe(&bench, bytes.as_bytes(), &[]);
            assert_eq!((ran.code, ran.lines("flattened").len()), (0, 0), "{}", ran.stderr);
        }
    }
    let bench = Bench::new(COPY, "");
    let ran = pipe(&bench, b"{\"a\":1}\nbad", &[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let error = ran.error();
    assert_eq!((&error["file"], &error["line"]), (&json!("-"), &json!(2)));
}
