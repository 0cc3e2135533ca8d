//! The same command again: what is refused, what is asked again, what was altered meanwhile.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::{
    Bench, COPY, PICKY, assert_stderr, echo, ends_within, everything, rows, run, signal, stderr_of, tree,
    tree_of, two_steps, until,
};
use crate::logs::events;
use crate::server::answer_from_schema;
use crate::server::{Answer, TestServer};

/// A Step `ask` that answers `prompt` with a label.
pub fn step_chain(server: &TestServer, prompt: &str) -> String {
    format!(
        "name: t\nengines: {{e: {{backend: openai, model: m, endpoint: \"{}\", concurrency: 8}}}}\nsteps:\n  - id: ask\n    \
         engine: e\n    user_prompt: \"{prompt}\"\n    output_model: {{label: a | b}}\n",
        server.url()
    )
}

/// Rows `{"n": n, "text": "row n"}`.
pub fn texts(n: usize) -> String {
    (0..n)
        .map(|n| format!("{{\"n\":{n},\"text\":\"row {n}\"}}\n"))
        .collect()
}

#[test]
fn a_finished_out_stays_as_it_is() {
    for (input, code) in [(rows(10), 0), (rows(10) + "no json\n", 3)] {
        let (bench, ran) = run(COPY, input);
        assert_eq!(ran.code, code, "{}", ran.stderr);
        let before = everything(&ran.out);
        let again = bench.run(&[]);
        assert_eq!(again.code, 0);
        assert_eq!(
            again.stderr,
            "out is finished already: nothing to do (--overwrite starts again)\n"
        );
        let quiet = bench.run(&["--quiet"]);
        assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
        let json = bench.run(&["--json-logs"]);
        let events = events(&json.stderr);
        let last = events.last().expect("an event");
        assert_eq!(
            (json.code, &last["event"], &last["state"]),
            (0, &json!("run_finished"), &json!("finished"))
        );
        for more in [
            ["--limit", "11"],
            ["--resume", "--no-icons"],
            ["--batch-size", "3"],
        ] {
            assert_eq!(bench.run(&more).code, 0);
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
        "name: t\nvars: {v: 1}\nsteps:\n  - {id: n, apply: {jq: '$vars.v as $v | .'}}\n",
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
        "name: t\nvars: {v: 1}\nsteps:\n  - {id: n, apply: {jq: '$vars.v as $v | ., .'}}\n",
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
    let mut child = bench.spawn(&["--resume", "--batch-size", "2"]);
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
    let mut child = bench.spawn(&[]);
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

/// The input goes while the run reads it: what is open stays readable; a resume says what is missing.
#[test]
fn the_input_is_removed() {
    let server = TestServer::start(|asked| match asked.user() {
        "say 50" => Answer::Hang,
        text => Answer::text(format!("heard {text}")),
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(100));
    let mut child = bench.spawn(&["--batch-size", "10"]);
    until("answers", || server.stats().answered >= 100);
    fs::remove_file(bench.dir.path().join("in.jsonl")).expect("the input can be removed");
    signal(&child, "-INT");
    signal(&child, "-INT");
    assert_eq!(ends_within(&mut child, Duration::from_secs(60)), 130);
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
    let mut child = bench.spawn(&["--batch-size", "10"]);
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
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        said += &format!("{name}\n{}", ran.stderr);
        // As it says.
        let ran = bench.run(&[&shards[..], &["--resume"]].concat());
        assert_eq!(
            (ran.code, ran.lines("errors").len()),
            (1, 1),
            "{name}: {}",
            ran.stderr
        );
    }
    assert_stderr!(said);
}

#[test]
fn resume_keeps_the_answers_that_still_fit() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), texts(20));
    assert_eq!(bench.run(&[]).code, 0);
    assert_eq!(server.stats().asked, 20);
    // Ten more rows, and a node more: no old question changed.
    bench.write("in.jsonl", texts(30));
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
fn a_lost_shard_is_named() {
    let server = TestServer::start(answer_from_schema);
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), texts(50));
    let shards = ["--max-lines-per-file", "10"];
    assert_eq!(bench.run(&[&shards[..], &["--limit", "30"]].concat()).code, 0);
    fs::remove_file(bench.dir.path().join("out/ask/001.jsonl")).expect("the shard is there");
    let ran = bench.run(&shards);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("out/ask/001.jsonl was changed or removed"),
        "{}",
        ran.stderr
    );
    assert_eq!(server.stats().asked, 30);
}

#[test]
fn a_larger_limit_that_is_killed_is_no_finished_run() {
    let server = TestServer::start(|asked| match asked.user() {
        "row 7" if asked.seen == 0 => Answer::Hang,
        _ => answer_from_schema(asked),
    });
    let bench = Bench::new(&step_chain(&server, "{{ text }}"), texts(9));
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
