//! Signals: what is in flight is waited for, written and gone on with.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Bench, COPY, ends_within, rows, signal, stderr_of, tree, tree_of, two_steps, until};
use crate::logs::events;
use crate::resuming::{step_chain, texts};
use crate::server::answer_from_schema;
use crate::server::{Answer, TestServer};
use std::sync::atomic::AtomicUsize;

/// Requests get 5 s and hang for ever; the rest is for a machine that does much else.
const PATIENT: Duration = Duration::from_secs(50);
/// Less than those 5 s, and many times what an end takes.
const AT_ONCE: Duration = Duration::from_millis(4800);

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
    let code = ends_within(&mut child, Duration::from_secs(100));
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
    interrupted("-INT", 1, PATIENT);
}

#[test]
fn sigterm_gives_requests_five_seconds() {
    interrupted("-TERM", 1, PATIENT);
}

#[test]
fn ctrl_c_twice_stops_at_once() {
    interrupted("-INT", 2, AT_ONCE);
}

/// A jq program that runs for a minute holds nobody up.
#[test]
fn ctrl_c_does_not_wait_for_jq() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: 'if .a == 40 then last(repeat(1)) else . end'}}\n";
    for (times, within) in [(1, PATIENT), (2, AT_ONCE)] {
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
        assert!(start.elapsed() < within, "{:?}", start.elapsed());
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
    assert!(asked.elapsed() < PATIENT, "it took {:?}", asked.elapsed());
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

/// True once somebody reads the FIFO.
fn is_read(fifo: &Path) -> Option<fs::File> {
    let mut options = fs::File::options();
    options.write(true).custom_flags(nix::libc::O_NONBLOCK);
    options.open(fifo).ok()
}

/// A signal comes while the chain is still being read, and while a function is still being loaded.
#[test]
fn a_signal_before_the_run() {
    for name in ["-INT", "-TERM", "-HUP"] {
        let bench = Bench::new(COPY, rows(3));
        let chain = bench.dir.path().join("chain.yaml");
        fs::remove_file(&chain).expect("the chain is there");
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&chain, mode).expect("a FIFO can be made");
        let mut child = bench.spawn(&[]);
        let mut writer = None;
        until("reader of the chain", || {
            writer = writer.take().or_else(|| is_read(&chain));
            writer.is_some()
        });
        signal(&child, name);
        let code = ends_within(&mut child, Duration::from_secs(60));
        let said = stderr_of(&mut child);
        assert_eq!(code, 130, "{name}: {said}");
        assert_eq!(
            said,
            "interrupted before any row was taken; the same command starts again\n"
        );
        assert!(!bench.dir.path().join("out").exists());
    }
}

#[test]
fn a_signal_while_a_function_is_loaded() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {python: 'slow.py:f'}}\n";
    let bench = Bench::new(chain, rows(3));
    bench.write(
        "slow.py",
        "import os, time\nopen('pid.part', 'w').write(str(os.getpid()))\nos.rename('pid.part', 'pid')\n\
         time.sleep(600)\n\ndef f(item):\n    return item\n",
    );
    let mut child = bench.spawn(&["--json-logs"]);
    let pid = bench.dir.path().join("pid");
    until("function that loads", || pid.exists());
    signal(&child, "-TERM");
    let code = ends_within(&mut child, Duration::from_secs(60));
    let said = stderr_of(&mut child);
    assert_eq!(code, 130, "{said}");
    let events = events(&said);
    let last = events.last().expect("an event");
    assert_eq!(last["event"], "warning");
    assert!(
        last["message"]
            .as_str()
            .expect("text")
            .starts_with("interrupted before any row"),
        "{said}"
    );
    let pid = fs::read_to_string(pid).expect("its process id");
    let proc = Path::new("/proc").join(pid.trim());
    until("end of the worker", || !proc.exists());
}
