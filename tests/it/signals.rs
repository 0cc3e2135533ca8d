//! Signals: what is in flight is waited for, written and gone on with.

use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Bench, COPY, ends_within, rows, signal, stderr_of, tree, tree_of, two_steps, until};
use crate::resuming::{step_chain, texts};
use crate::server::answer_from_schema;
use crate::server::{Answer, TestServer};
use std::sync::atomic::AtomicUsize;

fn interrupted(name: &str, times: usize, within: Duration) {
    let healed = Arc::new(AtomicBool::new(false));
    let good = healed.clone();
    let server = TestServer::start(move |asked| match asked.user() {
        "say 70" | "say 75" if !good.load(Ordering::SeqCst) => Answer::Hang,
        text => Answer::text(format!("heard {text}")),
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(200));
    let extra = ["--batch-size", "16", "--max-lines-per-file", "30"];
    let mut child = bench.spawn(&extra);
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
        let mut child = bench.spawn(&["--batch-size", "16"]);
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

#[test]
fn ctrl_c_commits_and_resumes() {
    // After the first 40 the server takes its time, so that the run is under way however late the signal comes.
    let (seen, hurry) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let slow = TestServer::start({
        let hurry = hurry.clone();
        move |asked| {
            let early = seen.fetch_add(1, Ordering::Relaxed) < 40 || hurry.load(Ordering::Relaxed);
            answer_from_schema(asked).after(Duration::from_millis(if early { 60 } else { 1_000 }))
        }
    });
    let bench = Bench::new(&step_chain(&slow, "{{ text }}"), texts(400));
    let run = bench
        .command(&[])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    while slow.answered() < 40 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let asked = Instant::now();
    signal(&run, "-INT");
    hurry.store(true, Ordering::Relaxed);
    let ran = bench.ran(&run.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "it took {:?}",
        asked.elapsed()
    );
    assert!(ran.stderr.contains("the same command goes on"), "{}", ran.stderr);
    assert!(ran.metadata()["state"] == "running");
    // One chunk holds all rows: what was done of it is written all the same, up to the first row that was
    // still waiting for its turn; what was done beyond it is on file.
    let written = ran.lines("flattened").len();
    let kept = ran
        .stderr
        .split(" more rows are done")
        .next()
        .filter(|_| ran.stderr.contains("more rows are"));
    let kept = kept
        .and_then(|text| text.rsplit('\n').next()?.parse::<usize>().ok())
        .unwrap_or(0);
    assert!(written > 0 && written + kept >= 40, "{}", ran.stderr);
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.lines("flattened").len()),
        (0, 400),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("resuming"), "{}", ran.stderr);
    // Requests in flight at the signal were waited for.
    assert_eq!(slow.stats().asked, 400);
}
