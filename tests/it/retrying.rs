//! `--retry-errors`: failed rows are asked again, and the outputs without these failures replace those that stand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, assert_same, assert_stderr, everything, listing, tree, tree_of, until};
use crate::server::{Answer, Asked, TestServer};

/// What ails the engine.
const WELL: usize = 0;
const ILL: usize = 1;
/// It is well, and does not answer the request of row 15 to `second`.
const STUCK: usize = 2;
/// Only what an `on_error: null` hides is left of the illness.
const HIDDEN: usize = 3;

/// An engine that fails some rows while it is ill.
struct Engine {
    state: Arc<AtomicUsize>,
    server: TestServer,
}

impl Engine {
    fn new() -> Self {
        let state = Arc::new(AtomicUsize::new(ILL));
        let now = state.clone();
        let server = TestServer::start(move |asked| answer(asked, now.load(Ordering::SeqCst)));
        Self { state, server }
    }

    fn is(&self, state: usize) {
        self.state.store(state, Ordering::SeqCst);
        self.server.clear_log();
    }
}

fn answer(asked: &Asked, state: usize) -> Answer {
    let prompt = asked.user().to_owned();
    let ends = |ends: &[&str]| ends.iter().any(|end| prompt.ends_with(end));
    match state {
        STUCK if prompt == "second 15" => Answer::Hang,
        ILL if prompt.starts_with("first") && ends(&["3"]) => Answer::text("no JSON"),
        ILL if prompt.starts_with("second") && ends(&["5"]) => Answer::status(500, "boom"),
        ILL if prompt.starts_with("side") && ends(&["7"]) => Answer::status(400, "no"),
        ILL if prompt.starts_with("each") && ends(&["8 0", "8 1"]) => Answer::text("no JSON"),
        ILL | HIDDEN if prompt.starts_with("maybe") && ends(&["6"]) => Answer::text("no JSON"),
        _ => Answer::text(json!({"said": prompt}).to_string()),
    }
}

/// Steps on the main line, in a joined fan-out, in a branch of its own, and one whose failures are null.
fn chain(engine: &Engine) -> Value {
    let step = |id: &str, prompt: &str| {
        json!({
            "id": id, "engine": "e", "user_prompt": prompt, "output_model": {"said": "string"},
            "retries": {"output": 1, "transport": 0},
        })
    };
    let mut maybe = step("maybe", "maybe {{ chain_input.a }}");
    maybe["on_error"] = "null".into();
    json!({
        "name": "retry",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": engine.server.url(), "concurrency": 4}},
        "steps": [
            step("first", "first {{ a }}"),
            maybe,
            {"parallel": [
                {"branch": "pair", "join": "pair", "collect": true, "steps": [
                    {"id": "fan", "apply": {"jq": "range(2) as $k | {a: $chain_input.a, k: $k}"}},
                    step("each", "each {{ a }} {{ k }}"),
                ]},
                {"branch": "aside", "steps": [step("side", "side {{ chain_input.a }}")]},
            ]},
            step("second", "second {{ chain_input.a }}"),
            {"id": "sum", "apply": {"jq": "if $chain_input.a == 77 then error(\"never\") else {n: 1} end"}},
        ],
    })
}

fn input() -> String {
    let row = |n: usize| match n {
        50 => "no json\n".to_owned(),
        n => format!("{{\"a\":{n}}}\n"),
    };
    (0..100).map(row).collect()
}

/// A run on the ill engine, which is well from now on.
fn ill_run(options: &[&str]) -> (Engine, Bench) {
    let engine = Engine::new();
    let bench = Bench::new(&chain(&engine).to_string(), input());
    let ran = bench.run(options);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    engine.is(WELL);
    (engine, bench)
}

/// Lines of errors/ by node.
fn failures(ran: &Ran) -> Vec<(String, usize)> {
    let mut all: Vec<(String, usize)> = Vec::new();
    for line in ran.errors() {
        let node = line["node"].as_str().unwrap_or("input").to_owned();
        match all.iter_mut().find(|(name, _)| *name == node) {
            Some((_, count)) => *count += 1,
            None => all.push((node, 1)),
        }
    }
    all.sort();
    all
}

fn named(all: &[(&str, usize)]) -> Vec<(String, usize)> {
    all.iter()
        .map(|(node, count)| ((*node).to_owned(), *count))
        .collect()
}

#[test]
fn failed_rows_are_asked_again_and_nothing_else() {
    for format in [&[][..], &["--format", "parquet"]] {
        let engine = Engine::new();
        let bench = Bench::new(&chain(&engine).to_string(), input());
        let shards = [format, &["--max-lines-per-file", "30"]].concat();
        let ran = bench.run(&shards);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        let hint = "42 rows are in out/errors/; the same command with --retry-errors asks them again\n";
        assert!(ran.stderr.ends_with(hint), "{}", ran.stderr);
        let ill = [
            ("each", 10),
            ("first", 10),
            ("input", 1),
            ("second", 10),
            ("side", 10),
            ("sum", 1),
        ];
        assert_eq!(failures(&ran), named(&ill));
        engine.is(WELL);
        let ran = bench.run(&[&shards[..], &["--retry-errors"]].concat());
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert_eq!(failures(&ran), named(&[("input", 1), ("sum", 1)]));
        // Rows that failed at `first` had everything before them; those that failed in `each`, both children and `second`.
        let stats = engine.server.stats();
        assert_eq!((stats.asked, stats.asked_again), (10 * 6 + 10 * 3 + 10 + 10, 0));
        assert_stderr!(ran.stderr);
        engine.is(HIDDEN);
        let fresh = tree_of(&bench, "fresh", &shards);
        assert_same(&fresh, &tree(&ran.out));
        let private = listing(&ran.out.join(".chainette"));
        assert!(
            !private.contains("next") && !private.contains("old"),
            "{private:?}"
        );
        engine.is(WELL);
        let before = everything(&ran.out);
        let again = bench.run(&shards);
        assert_eq!(again.code, 0, "{}", again.stderr);
        assert_same(&before, &everything(&ran.out));
        assert_eq!(engine.server.stats().asked, 0);
    }
}

#[test]
fn what_stands_stays_until_the_retry_is_done() {
    let (engine, bench) = ill_run(&[]);
    let out = bench.dir.path().join("out");
    let before = tree(&out);
    engine.is(STUCK);
    let mut asked = 0;
    // Killed, told to stop, killed; with and without the option.
    for (extra, signal) in [
        (&["--retry-errors"][..], "-KILL"),
        (&[], "-INT"),
        (&["--retry-errors"], "-KILL"),
    ] {
        let mut child = bench.spawn(&[extra, &["--batch-size", "3"]].concat());
        until("the request that hangs", || engine.server.stats().in_flight > 0);
        // It alone is left, or it holds up what is behind it.
        until("rest", || {
            let now = engine.server.stats().answered;
            std::thread::sleep(std::time::Duration::from_millis(100));
            now == engine.server.stats().answered
        });
        if signal == "-INT" {
            crate::harness::signal(&child, signal);
        }
        crate::harness::signal(&child, signal);
        let _reaped = child.wait();
        until("end of it", || engine.server.stats().in_flight == 0);
        assert_same(&before, &tree(&out));
        asked = asked.max(engine.server.stats().asked);
    }
    engine.state.store(WELL, Ordering::SeqCst);
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(failures(&ran), named(&[("input", 1), ("sum", 1)]));
    let stats = engine.server.stats();
    assert!(stats.asked_again <= 3 * 4, "only what was in flight: {stats:?}");
    engine.is(HIDDEN);
    assert_same(&tree_of(&bench, "fresh", &[]), &tree(&out));
}

#[test]
fn failures_that_stay_are_written_again() {
    let (engine, bench) = ill_run(&[]);
    let before = tree(&bench.dir.path().join("out"));
    engine.is(ILL);
    let ran = bench.run(&["--retry-errors"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_same(&before, &tree(&ran.out));
    // A bad reply is asked for twice, a 500 and a 400 once; row by row.
    assert_eq!(engine.server.stats().asked, 10 * 2 + 20 * 2 + 10 + 10);
    engine.is(WELL);
    assert_eq!(bench.run(&["--retry-errors"]).code, 3);
    assert_eq!(engine.server.stats().asked, 110);
    engine.is(HIDDEN);
    assert_same(&tree_of(&bench, "fresh", &[]), &tree(&ran.out));
}

#[test]
fn nothing_to_try_again() {
    let engine = Engine::new();
    engine.is(WELL);
    let input = input().replace("no json", "{}").replace("{}", "{\"a\":50}");
    let bench = Bench::new(&chain(&engine).to_string(), input.replace("77", "177"));
    assert_eq!(bench.run(&[]).code, 0);
    let before = everything(&bench.dir.path().join("out"));
    engine.is(WELL);
    let ran = bench.run(&["--retry-errors"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_same(&before, &everything(&ran.out));
    assert_eq!(engine.server.stats().asked, 0);
    assert_stderr!(ran.stderr);
}

#[test]
fn without_answers_nothing_is_tried_again() {
    let mut said = String::new();
    for give_back in [true, false] {
        let (engine, bench) = ill_run(if give_back { &[] } else { &["--no-ledger"] });
        if give_back {
            assert_eq!(bench.invoke(&["clean", "out"]).code, 0);
        }
        let before = everything(&bench.dir.path().join("out"));
        let ran = bench.run(&["--retry-errors"]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert_same(&before, &everything(&ran.out));
        assert_eq!(engine.server.stats().asked, 0);
        said = ran.stderr;
    }
    assert_stderr!(said);
}

/// A run that gave up, and one whose chain was mended as well.
#[test]
fn an_unfinished_run_and_an_edited_one() {
    let (engine, bench) = ill_run(&["--overwrite"]);
    engine.is(ILL);
    let ran = bench.run(&["--overwrite", "--max-errors", "20", "--batch-size", "10"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    engine.is(WELL);
    let ran = bench.run(&["--retry-errors"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(failures(&ran), named(&[("input", 1), ("sum", 1)]));

    engine.is(ILL);
    assert_eq!(bench.run(&["--overwrite"]).code, 3);
    engine.is(WELL);
    let mut mended = chain(&engine);
    mended["steps"][4]["apply"]["jq"] = "{n: 2}".into();
    bench.write("chain.yaml", mended.to_string());
    assert_eq!(bench.run(&["--retry-errors"]).code, 2, "another chain");
    let ran = bench.run(&["--retry-errors", "--resume"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(failures(&ran), named(&[("input", 1)]));
    assert_eq!(engine.server.stats().asked, 110);
    engine.is(HIDDEN);
    assert_same(&tree_of(&bench, "fresh", &[]), &tree(&ran.out));
}

/// A failure that a former edit let another row have is not what a retry is given.
#[test]
fn a_retry_after_an_edit_asks() {
    let state = Arc::new(AtomicUsize::new(ILL));
    let now = state.clone();
    let server = TestServer::start(move |_| match now.load(Ordering::SeqCst) {
        ILL => Answer::text("no JSON"),
        _ => Answer::text("{\"said\":\"yes\"}"),
    });
    let chain = json!({
        "name": "retry",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 4}},
        "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "output_model": {"said": "string"},
                   "retries": {"output": 0}}],
    });
    let bench = Bench::new(&chain.to_string(), "{\"a\":1}\n{\"a\":1}\n{\"a\":2}\n");
    assert_eq!(bench.run(&[]).code, 3);
    bench.write("in.jsonl", "{\"a\":1}\n{\"a\":2}\n");
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, server.stats().asked), (3, 3), "{}", ran.stderr);
    state.store(WELL, Ordering::SeqCst);
    let ran = bench.run(&["--retry-errors"]);
    assert_eq!((ran.code, server.stats().asked), (0, 5), "{}", ran.stderr);
}

/// What fails for the first time on the way of a retry is not tried twice by it.
#[test]
fn a_new_failure_stays_one_through_a_kill() {
    let engine = Engine::new();
    let bench = Bench::new(&chain(&engine).to_string(), input());
    let ran = bench.run(&["--max-errors", "20", "--batch-size", "10"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    // Still ill: what was never asked fails now.
    engine.server.clear_log();
    let whole = bench.run(&["--retry-errors", "--max-errors", "1000"]);
    assert_eq!(whole.code, 3, "{}", whole.stderr);
    let log = engine.server.stats();
    assert!(log.asked_again <= 40, "replies that are asked for twice: {log:?}");
    // A retry that is over leaves nothing behind.
    let reuse = std::fs::read_to_string(whole.out.join(".chainette/reuse.json")).expect("it was written");
    assert!(!reuse.contains("again"), "{reuse}");
}

#[test]
fn what_a_retry_cannot_do_is_said() {
    let (engine, bench) = ill_run(&[]);
    let before = tree(&bench.dir.path().join("out"));
    engine.is(STUCK);
    let mut child = bench.spawn(&["--retry-errors"]);
    until("the request that hangs", || engine.server.stats().in_flight > 0);
    child.kill().expect("a child can be killed");
    let _reaped = child.wait();
    until("end of it", || engine.server.stats().in_flight == 0);
    // Fewer rows would take the place of more.
    let ran = bench.run(&["--limit", "20"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    let mut said = ran.stderr;
    assert_same(&before, &tree(&ran.out));
    let ran = bench.invoke(&["clean", "out"]);
    assert_eq!(ran.code, 2);
    said += &ran.stderr;
    // A stream cannot be read again from its start.
    let shell = format!(
        "cat in.jsonl | {} run chain.yaml - piped --quiet",
        crate::harness::BINARY
    );
    let piped = |extra: &str| {
        let mut command = std::process::Command::new("sh");
        let output = command
            .arg("-c")
            .arg(format!("{shell} {extra}"))
            .current_dir(bench.dir.path())
            .output();
        let output = output.expect("a shell starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    engine.is(ILL);
    assert_eq!(piped("").0, Some(3));
    let (code, text) = piped("--retry-errors");
    assert_eq!(code, Some(2), "{text}");
    said += &text;
    assert_stderr!(said);
}

/// As the README says: what `on_error: null` hides can be tried again.
#[test]
fn nulls_can_be_tried_again() {
    let (engine, bench) = ill_run(&[]);
    engine.is(ILL);
    let hides = chain(&engine);
    let mut shows = hides.clone();
    shows["steps"][1]
        .as_object_mut()
        .expect("a Step")
        .remove("on_error");
    bench.write("chain.yaml", shows.to_string());
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, engine.server.stats().asked), (3, 0), "{}", ran.stderr);
    engine.is(WELL);
    assert_eq!(bench.run(&["--retry-errors"]).code, 3);
    engine.is(WELL);
    bench.write("chain.yaml", hides.to_string());
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, engine.server.stats().asked), (3, 0), "{}", ran.stderr);
    assert_eq!(ran.metadata()["nodes"]["maybe"]["nulled"], 0);
    assert_same(&tree_of(&bench, "fresh", &[]), &tree(&ran.out));
}
