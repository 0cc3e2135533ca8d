//! Runs that start their engines themselves: what crashes, hangs or does not start costs time, and no row that is not its own cause.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Ran, until};
use crate::verify::proven;
use crate::warm_harness::{Yard, kill, pid};

const RUN: &[&str] = &["run", "chain.yaml", "in.jsonl", "out", "--json-logs"];

/// The events of a run.
fn events(ran: &Ran) -> Vec<Value> {
    let lines = ran.stderr.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["event"] == name).collect()
}

/// The servers of a run itself, and what they left.
fn own(yard: &Yard) -> Vec<String> {
    let folder = yard.path().join("out/.chainette/engines");
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.ends_with(".log")).collect()
}

#[track_caller]
fn nothing_is_left(yard: &Yard) {
    assert_eq!(own(yard), [""; 0]);
    yard.until_nothing_is_left();
}

#[test]
fn a_server_that_dies_costs_no_row() {
    let yard = Yard::new("concurrency: 3", "--die-after 25");
    let ran = yard.invoke(RUN);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.fates("s"), "60/60/0/0/0/0");
    proven(&ran.out).expect("proven");
    let crashes = events(&ran);
    let crashes = named(&crashes, "engine_crashed");
    assert!((1..=3).contains(&crashes.len()), "{crashes:?}");
    assert_eq!(yard.started("small"), crashes.len() + 1);
    nothing_is_left(&yard);
}

#[test]
fn a_row_that_kills_the_server_alone_twice_fails() {
    let yard = Yard::new("concurrency: 3", "");
    yard.bench.write("chain.yaml", "");
    yard.declare(
        "chain.yaml",
        &[("small", "concurrency: 3", "--latency-ms 5 --die-at say:31:")],
    );
    let chain = std::fs::read_to_string(yard.path().join("chain.yaml")).expect("written");
    yard.bench
        .write("chain.yaml", chain.replace("say {{ a }}", "say:{{ row_id }}:"));
    let ran = yard.invoke(RUN);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(ran.fates("s"), "60/59/0/0/0/1");
    let error = ran.error();
    assert_eq!(
        (error["row_id"].as_str(), error["kind"].as_str()),
        (Some("31"), Some("engine_crash"))
    );
    insta::assert_snapshot!(error["message"].as_str().expect("a message"), @"the request brought the engine down twice while nothing else was in flight");
    let all = events(&ran);
    let crashes = named(&all, "engine_crashed");
    assert!((2..=4).contains(&crashes.len()), "{crashes:?}");
    let last = crashes.last().expect("counted");
    assert_eq!(last["in_flight"], 1, "the suspect was alone: {last}");
    // Its answer is on file: the same command has nothing to ask.
    let again = yard.invoke(RUN);
    assert_eq!(again.code, 0, "{}", again.stderr);
    nothing_is_left(&yard);
}

#[test]
fn one_dead_replica_does_not_stop_the_others() {
    let yard = Yard::new("concurrency: 2, replicas: 2", "--latency-ms 30");
    let mut run = yard.spawn(RUN);
    let folder = yard.path().join("out/.chainette/engines");
    let handoff = folder.join("small-0.json");
    until("two servers", || {
        handoff.exists() && folder.join("small-1.json").exists()
    });
    let text = std::fs::read(&handoff).expect("a handoff");
    let server: Value = serde_json::from_slice(&text).expect("JSON");
    kill(pid(&server["pid"]));
    let status = run.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert_eq!(yard.bench.opened().fates("s"), "60/60/0/0/0/0");
    nothing_is_left(&yard);
}

#[test]
fn what_dies_at_once_stops_the_run_with_its_words() {
    let yard = Yard::new("concurrency: 1", "--nonsense");
    let ran = yard.invoke(&["run", "chain.yaml", "in.jsonl", "out"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let told = ran.stderr.replace(&yard.path().display().to_string(), "DIR");
    let error: Vec<&str> = told
        .lines()
        .skip_while(|line| !line.starts_with("error:"))
        .collect();
    insta::assert_snapshot!(error.join("\n"));
    nothing_is_left(&yard);
    // Mended, the same command goes on.
    yard.declare("chain.yaml", &[("small", "concurrency: 1", "")]);
    let ran = yard.invoke(&["run", "chain.yaml", "in.jsonl", "out", "--resume"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn one_that_is_never_ready_is_given_up_after_engine_wait() {
    let yard = Yard::new(
        "concurrency: 1, startup_timeout: 300ms, engine_wait: 3s",
        "--never-listen",
    );
    let ran = yard.invoke(RUN);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let all = events(&ran);
    assert!(named(&all, "engine_crashed").len() >= 2, "{}", ran.stderr);
    let error = named(&all, "error");
    let message = error.last().expect("it says why")["message"]
        .as_str()
        .expect("text");
    assert!(
        message.contains("engine_wait") && message.contains("was not ready within 0.3 s"),
        "{message}"
    );
    nothing_is_left(&yard);
}

#[test]
fn an_idle_server_is_let_go_and_comes_back() {
    let yard = Yard::new("concurrency: 2, idle_timeout: 200ms", "");
    let mut run = yard.command(&["run", "chain.yaml", "-", "out", "--json-logs"]);
    run.stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut run = run.spawn().expect("it starts");
    let mut input = run.stdin.take().expect("piped");
    writeln!(input, "{{\"a\": 1}}\n{{\"a\": 2}}").expect("it reads");
    input.flush().expect("it reads");
    let mut lines = BufReader::new(run.stderr.take().expect("piped")).lines();
    let idle = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("engine_released"));
    assert!(idle.expect("it is let go").contains("\"idle\""));
    writeln!(input, "{{\"a\": 3}}").expect("it reads");
    drop(input);
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert_eq!(run.wait().expect("it ends").code(), Some(0), "{rest:?}");
    assert_eq!(yard.bench.opened().fates("s"), "3/3/0/0/0/0");
    assert_eq!(yard.started("small"), 2);
    nothing_is_left(&yard);
}

#[test]
fn one_that_is_not_lazy_is_started_without_a_row() {
    for (fields, servers) in [("concurrency: 2, lazy: false", 1), ("concurrency: 2", 0)] {
        let yard = Yard::new(fields, "");
        let chain = std::fs::read_to_string(yard.path().join("chain.yaml")).expect("written");
        // No row comes to the Step, and the run is not over before a server can be.
        let slow = "steps:\n  - {id: wait, apply: {command: [sh, -c, 'sleep 5; cat']}}\n  - {when: 'false', ";
        yard.bench
            .write("chain.yaml", chain.replace("steps:\n  - {", slow));
        let ran = yard.invoke(RUN);
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
        assert_eq!(yard.started("small"), servers, "{}", ran.stderr);
        nothing_is_left(&yard);
    }
}

#[test]
fn one_that_hangs_is_ended_and_asked_again() {
    // Its counters stand still at the second life's end only: the first hangs, the second is another process.
    let yard = Yard::new("concurrency: 1, timeout: {between_bytes: 2s}", "");
    let marker = yard.path().join("hung");
    yard.declare(
        "chain.yaml",
        &[(
            "small",
            "concurrency: 1, timeout: {between_bytes: 2s}",
            &format!("--like llamacpp --hang-once {}", marker.display()),
        )],
    );
    let ran = yard.invoke(RUN);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.fates("s"), "60/60/0/0/0/0");
    let all = events(&ran);
    let crashes = named(&all, "engine_crashed");
    assert_eq!(crashes.len(), 1, "{crashes:?}");
    assert!(
        crashes[0]["reason"].as_str().expect("text").contains("progress"),
        "{crashes:?}"
    );
    nothing_is_left(&yard);
}

#[test]
fn interrupted_while_it_starts_it_leaves_nothing() {
    let yard = Yard::new("concurrency: 1", "--boot-delay-ms 60000");
    let mut run = yard.spawn(RUN);
    let folder = yard.path().join("out/.chainette/engines");
    until("a server that starts", || folder.join("small-0.pid").exists());
    crate::warm_harness::send(run.id(), nix::sys::signal::Signal::SIGTERM);
    assert_eq!(run.wait().expect("it ends").code(), Some(130));
    nothing_is_left(&yard);
}
