//! The command line: resuming, refusing, limits, signals, logs, full disks.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Bench, tree};
use crate::server::{Answer, TestServer, answer_from_schema};

const JQ: &str = "name: t\nvars: {k: 1}\nsteps:\n  - {id: n, apply: {jq: '. + {m: (.n * $vars.k)}'}}\n  - {id: half, apply: {jq: 'select(.n % 2 == 0)'}}\n";

fn rows(n: usize) -> String {
    (0..n)
        .map(|n| format!("{{\"n\":{n},\"text\":\"row {n}\"}}\n"))
        .collect()
}

fn step_chain(server: &TestServer, prompt: &str) -> String {
    format!(
        "name: t\nengines: {{e: {{backend: openai, model: m, endpoint: \"{}\", concurrency: 8}}}}\nsteps:\n  - id: ask\n    \
         engine: e\n    user_prompt: \"{prompt}\"\n    output_model: {{label: a | b}}\n",
        server.url()
    )
}

#[test]
fn a_finished_run_says_so_and_changes_nothing() {
    let bench = Bench::new(JQ, rows(10) + "bad\n");
    assert_eq!(bench.run(&[]).code, 3);
    let files = |ran: &crate::harness::Ran| {
        let metadata = fs::read(ran.out.join("metadata.json")).expect("metadata.json");
        (tree(&ran.out), metadata)
    };
    let before = files(&bench.run(&[]));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("finished already"), "{}", ran.stderr);
    assert!(files(&ran) == before);
}

#[test]
fn another_run_is_refused_by_name() {
    let bench = Bench::new(JQ, rows(10));
    assert_eq!(bench.run(&[]).code, 0);
    let before = tree(&bench.opened().out);
    let refused = |extra: &[&str], difference: &str| {
        let ran = bench.run(extra);
        assert_eq!(ran.code, 2, "{extra:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(difference), "{extra:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("--overwrite"), "{}", ran.stderr);
        assert!(tree(&ran.out) == before, "nothing is written");
    };
    refused(&["--set", "k=2"], "the vars differ");
    refused(&["--max-lines-per-file", "3"], "--max-lines-per-file differs");
    refused(&["--no-flattened"], "--no-flattened differs");
    bench.write("chain.yaml", JQ.replace("half", "other"));
    refused(&[], "the chain file was changed");
    bench.write("chain.yaml", JQ);
    bench.write("in.jsonl", rows(11));
    refused(&[], "the input is another one or was changed");
    let ran = bench.run(&["--overwrite"]);
    assert_eq!((ran.code, ran.lines("n").len()), (0, 11), "{}", ran.stderr);
}

#[test]
fn resume_keeps_the_answers_that_still_fit() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), rows(20));
    assert_eq!(bench.run(&[]).code, 0);
    assert_eq!(server.stats().asked, 20);
    // Ten more rows, and a node more: no old question changed.
    bench.write("in.jsonl", rows(30));
    bench.write(
        "chain.yaml",
        step_chain(&server, "{{ text }}") + "  - {id: n, apply: {jq: .}}\n",
    );
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, ran.lines("n").len()), (0, 30), "{}", ran.stderr);
    assert_eq!(server.stats().asked, 30);
    bench.write("chain.yaml", step_chain(&server, "Now {{ text }}"));
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, server.stats().asked), (0, 60), "{}", ran.stderr);
    assert!(
        !ran.out.join("n").exists(),
        "a node that is gone leaves no folder"
    );
}

#[test]
fn a_larger_limit_goes_on() {
    let bench = Bench::new(JQ, rows(1000));
    let shards = ["--max-lines-per-file", "70"];
    for limit in ["77", "140", "500"] {
        let ran = bench.run(&[&shards[..], &["--limit", limit]].concat());
        assert_eq!(ran.lines("n").len().to_string(), limit, "{}", ran.stderr);
    }
    let before = bench.run(&[&shards[..], &["--limit", "100"]].concat());
    assert!(before.stderr.contains("finished already"), "{}", before.stderr);
    let ran = bench.run(&shards);
    let in_parts = tree(&ran.out);
    fs::remove_dir_all(&ran.out).expect("the folder goes");
    let ran = bench.run(&shards);
    assert!(tree(&ran.out) == in_parts);
}

#[test]
fn one_process_per_folder() {
    let server = TestServer::start(|_| Answer::Hang);
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), rows(5));
    let mut first = bench
        .command(&[])
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    while server.stats().in_flight == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(&format!("(PID {})", first.id())),
        "{}",
        ran.stderr
    );
    first.kill().expect("it still runs");
    first.wait().expect("it ends");
}

#[test]
fn a_folder_of_others_is_left_alone() {
    let bench = Bench::new(JQ, rows(5));
    fs::create_dir(bench.dir.path().join("out")).expect("a folder");
    bench.write("out/precious", "data");
    for extra in [&[][..], &["--overwrite"], &["--resume"]] {
        let ran = bench.run(extra);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert_eq!(tree(&ran.out).keys().collect::<Vec<_>>(), ["precious"]);
    }
}

#[test]
fn bad_usage_writes_nothing() {
    let bench = Bench::new(JQ, rows(5));
    bench.write("bad.yaml", "name: t\nsteps: [{id: n, aply: {jq: .}}]\n");
    let try_it = |args: &[&str], says: &str| {
        let mut command = bench.command(&[]);
        let mut command = {
            let program = command.get_program().to_owned();
            command = std::process::Command::new(program);
            command
                .current_dir(bench.dir.path())
                .args(args)
                .env("NO_COLOR", "1");
            command
        };
        let ran = bench.ran(&command.output().expect("the command starts"));
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{args:?}: {}", ran.stderr);
        assert!(!ran.out.exists(), "{args:?} wrote something");
    };
    try_it(&["run", "bad.yaml", "in.jsonl", "out"], "did you mean `apply`");
    try_it(&["run", "nope.yaml", "in.jsonl", "out"], "nope.yaml");
    try_it(
        &["run", "chain.yaml", "nope.jsonl", "out"],
        "cannot read nope.jsonl",
    );
    fs::create_dir(bench.dir.path().join("empty")).expect("a folder can be made");
    try_it(&["run", "chain.yaml", "empty", "out"], "no file in empty ends in");
    try_it(
        &["run", "chain.yaml", "chain.yaml", "out"],
        "its name ends in none of .jsonl",
    );
    try_it(
        &["run", "chain.yaml", "in.jsonl", "out", "--set", "nope=1"],
        "nope",
    );
    try_it(
        &["run", "chain.yaml", "in.jsonl", "out", "--max-errors", "many"],
        "neither a number of rows",
    );
    try_it(&["run", "chain.yaml", "in.jsonl"], "<OUT>");
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
    let bench = Bench::new(&step_chain(&slow, "{{ text }}"), rows(400));
    let run = bench
        .command(&[])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    while slow.answered() < 40 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let asked = Instant::now();
    signal(run.id(), "INT");
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

#[test]
fn the_second_signal_ends_at_once() {
    let server = TestServer::start(|_| Answer::Hang);
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), rows(5));
    let run = bench
        .command(&[])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    while server.stats().in_flight == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(run.id(), "TERM");
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    signal(run.id(), "TERM");
    let ran = bench.ran(&run.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        asked.elapsed()
    );
}

fn signal(pid: u32, name: &str) {
    let killed = std::process::Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status();
    assert!(killed.expect("kill is there").success());
}

#[test]
fn json_logs_are_one_object_per_line() {
    const NAMES: [&str; 20] = [
        "run_started",
        "resumed",
        "chunk_started",
        "chunk_finished",
        "step_total",
        "rows_finished",
        "rows_failed",
        "engine_starting",
        "engine_ready",
        "engine_waiting",
        "engine_draining",
        "engine_released",
        "engine_crashed",
        "engine_log",
        "shard_rolled",
        "checkpoint",
        "warning",
        "run_finished",
        "error",
        "",
    ];
    let bench = Bench::new(JQ, rows(5000) + "bad\n");
    let ran = bench.run(&["--json-logs", "--batch-size", "500"]);
    let events: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    for event in &events {
        assert!(
            NAMES.contains(&event["event"].as_str().expect("a name")),
            "{event}"
        );
        let ts = event["ts"].as_str().expect("a time");
        assert!(ts.len() == 24 && ts.ends_with('Z'), "{ts}");
    }
    // Per chunk: started, finished, two nodes; some more in all. Never per row.
    assert!(events.len() < 11 * 5 + 20, "{} events", events.len());
    let last = events.last().expect("the end");
    assert_eq!(
        (&last["event"], &last["rows_in"], &last["rows_out"]),
        (&"run_finished".into(), &5001.into(), &2500.into())
    );
    let ran = bench.run(&["--json-logs", "--quiet", "--overwrite"]);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    let ran = bench.run(&["--quiet", "--overwrite"]);
    assert_eq!((ran.code, ran.stderr.as_str(), ran.stdout.as_str()), (3, "", ""));
}

#[test]
fn a_reader_that_never_reads_stops_nobody() {
    let bench = Bench::new(JQ, rows(20_000));
    let mut command = bench.command(&["--json-logs", "--batch-size", "2"]);
    let mut run = command
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let started = Instant::now();
    let code = loop {
        if let Some(status) = run.try_wait().expect("it can be waited for") {
            break status.code();
        }
        assert!(started.elapsed() < Duration::from_secs(60), "it hangs on its log");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((code, bench.opened().lines("n").len()), (Some(0), 20_000));
}

#[test]
fn a_full_disk_stops_the_run_and_loses_nothing() {
    let bench = Bench::new(JQ, rows(40_000));
    let small = bench.dir.path().join("small");
    fs::create_dir(&small).expect("a folder");
    // A file system of its own, in a mount namespace of its own where we may not mount otherwise.
    let script = format!(
        "set -e; mount -t tmpfs -o size=2m tmpfs small; \"$0\" run chain.yaml in.jsonl small/out 2>small.err && exit 9; \
         cp small.err first.err; mount -o remount,size=64m small; \"$0\" run chain.yaml in.jsonl small/out --quiet; \
         cp -r small/out out; umount small; : {}",
        small.display()
    );
    let root = fs::metadata("/proc/self").is_ok()
        && std::process::Command::new("id")
            .arg("-u")
            .output()
            .expect("id")
            .stdout
            == b"0\n";
    let mut command = std::process::Command::new(if root { "sh" } else { "unshare" });
    if !root {
        command.args(["-rm", "sh"]);
    }
    command
        .current_dir(bench.dir.path())
        .args(["-c", &script, env!("CARGO_BIN_EXE_chainette")]);
    let done = command.output().expect("a shell");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let said = fs::read_to_string(bench.dir.path().join("first.err")).expect("it said something");
    assert!(
        said.contains("cannot write small/out/") && said.contains("No space left"),
        "{said}"
    );
    assert!(said.contains("the same command goes on"), "{said}");
    let filled = tree(&bench.opened().out);
    fs::remove_dir_all(bench.dir.path().join("out")).expect("the folder goes");
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(tree(&ran.out) == filled);
}

#[test]
fn a_lost_shard_is_named() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), rows(50));
    let shards = ["--max-lines-per-file", "10"];
    assert_eq!(bench.run(&[&shards[..], &["--limit", "30"]].concat()).code, 0);
    fs::remove_file(bench.dir.path().join("out/ask/001.jsonl")).expect("the shard is there");
    let ran = bench.run(&shards);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("out/ask/001.jsonl was changed or removed"),
        "{}",
        ran.stderr
    );
    assert_eq!(server.stats().asked, 30);
}

#[test]
fn a_line_of_fifty_megabytes_is_a_row() {
    let mut input = b"{\"n\":1,\"text\":\"".to_vec();
    input.resize(50_000_000, b'x');
    input.extend_from_slice(b"\"}\n{\"n\":2}");
    let ran = Bench::new(JQ, input).run(&["--no-flattened"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lens: Vec<usize> = ran.lines("n").iter().map(String::len).collect();
    assert_eq!(lens, [50_000_021, "{\"row_id\":\"1\",\"n\":2,\"m\":2}".len()]);
}

#[test]
fn inspect_draws_and_checks() {
    let bench = Bench::new(JQ, "");
    for (format, starts) in [
        ("tree", "t\n"),
        ("json", "{\n  \"name\": \"t\""),
        ("dot", "digraph \"t\""),
        ("mermaid", "flowchart"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_chainette"))
            .current_dir(bench.dir.path())
            .args(["inspect", "chain.yaml", "--format", format])
            .output()
            .expect("the command starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.starts_with(starts),
            "{format}: {text}"
        );
    }
}

#[test]
fn ctrl_c_twice_does_not_wait_for_an_apply() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: '[range(1000000000000)] | length'}}\n";
    let bench = Bench::new(chain, rows(5));
    let run = bench
        .command(&[])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    std::thread::sleep(Duration::from_millis(500));
    signal(run.id(), "INT");
    std::thread::sleep(Duration::from_millis(100));
    let asked = Instant::now();
    signal(run.id(), "INT");
    let ran = bench.ran(&run.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(
        asked.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        asked.elapsed()
    );
}

#[test]
fn a_larger_limit_that_is_killed_is_no_finished_run() {
    let server = TestServer::start(|asked| match asked.user() {
        "row 7" if asked.seen == 0 => Answer::Hang,
        _ => answer_from_schema(asked),
    });
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), rows(9));
    assert_eq!(bench.run(&["--limit", "5"]).code, 0);
    let mut run = bench
        .command(&["--limit", "9"])
        .stderr(Stdio::null())
        .spawn()
        .expect("the command starts");
    while server.stats().asked < 9 {
        std::thread::sleep(Duration::from_millis(5));
    }
    run.kill().expect("it still runs");
    run.wait().expect("it ends");
    let ran = bench.run(&["--limit", "5"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let parts: Vec<String> = tree(&ran.out)
        .into_keys()
        .filter(|name| name.ends_with(".part"))
        .collect();
    assert!(parts.is_empty(), "a finished run has no open shards: {parts:?}");
    assert_eq!(ran.metadata()["rows"]["in"], 5);
    assert_eq!(
        (bench.run(&[]).code, bench.opened().lines("flattened").len()),
        (0, 9)
    );
}
