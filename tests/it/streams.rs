//! Streams through the whole program: a Step that streams, faults inside, runaways cut early, kills.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chainette::spec::Backend;
use serde_json::{Value, json};

use crate::cli;
use crate::harness::{Bench, Ran, run, tree};
use crate::raw::{Body, Raw, RawServer};
use crate::server::{Answer, Asked, Dice, TestServer};

const GOOD: &str = r#"{"label":"a"}"#;

fn chain(url: &str, more: &str) -> String {
    format!(
        "name: s\nmodels: {{M: {{label: a | b}}}}\nengines:\n  e: {{backend: openai, model: m, endpoint: \"{url}\", concurrency: 4}}\n\
         steps:\n  - id: grade\n    engine: e\n    user_prompt: \"{{{{ text }}}}\"\n    output_model: M\n{more}"
    )
}

fn ask(
    more: &str,
    rows: usize,
    answer: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static,
) -> (Ran, TestServer) {
    let n = AtomicUsize::new(0);
    let server = TestServer::start(move |asked| answer(n.fetch_add(1, Ordering::SeqCst), asked));
    let input: String = (0..rows).map(|n| format!("{{\"text\":\"row {n}\"}}\n")).collect();
    let (_bench, ran) = run(&chain(&server.url(), more), input);
    (ran, server)
}

fn streamed(asked: &Asked) -> bool {
    asked.body["stream"] == true
}

#[test]
fn long_replies_are_streamed_and_short_ones_are_not() {
    for (sampling, expected) in [
        ("", true),
        ("    sampling: {max_tokens: 512}\n", false),
        ("    sampling: {max_tokens: 513}\n", true),
        ("    sampling: {max_completion_tokens: 512}\n", false),
    ] {
        let (ran, _server) = ask(sampling, 3, move |_, asked| {
            assert_eq!(streamed(asked), expected);
            assert_eq!(asked.body.get("stream_options").is_some(), expected);
            Answer::text(GOOD)
        });
        assert_eq!(ran.code, 0, "{sampling}: {}", ran.stderr);
        let tokens = &ran.metadata()["tokens"];
        assert!(ran.values("grade").iter().all(|line| line["label"] == "a"));
        assert_eq!(ran.fates("grade"), "3/3/0/0/0/0", "{tokens}");
    }
}

#[test]
fn a_runaway_stream_is_cut_asked_again_and_given_up() {
    let (ran, server) = ask("", 1, |_, _| Answer::Endless("ha ".into()));
    let error = ran.error();
    assert_eq!(
        (&error["kind"], &error["attempts"]),
        (&json!("runaway"), &json!(2))
    );
    let reply = error["reply"].as_str().expect("the reply is shown");
    assert!((2048..2400).contains(&reply.len()), "{}", reply.len());
    // The server never finished either of them: the client went away.
    let stats = server.stats();
    assert_eq!((stats.asked, stats.answered), (2, 0));
    let log = server.log();
    assert!(log.iter().all(|line| line.answered.is_none()), "{log:?}");
}

#[test]
fn a_runaway_stream_is_cut_and_the_next_reply_is_good() {
    let seeds = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = Arc::clone(&seeds);
    let (ran, server) = ask("", 1, move |n, asked| {
        seen.lock().expect("no panic").push(asked.seed());
        if n == 0 {
            Answer::Endless("\n\t".into())
        } else {
            Answer::text(GOOD)
        }
    });
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
    let seeds = seeds.lock().expect("no panic").clone();
    assert_eq!(
        seeds,
        [None, Some(1)],
        "another seed, or the reply would be the same"
    );
}

#[test]
fn json_that_runs_away_after_its_end_is_an_answer() {
    let (ran, server) = ask("", 1, |_, asked| match streamed(asked) {
        true => Answer::cut(format!("{GOOD}{}", " ".repeat(5_000))),
        false => Answer::text("not streamed"),
    });
    assert_eq!((ran.code, server.stats().asked), (0, 1), "{}", ran.stderr);
}

/// A short reply runs away: from then on the Step streams. What comes of the rows is the same as if
/// it had not, or had from the start.
#[test]
fn streaming_after_a_runaway_changes_no_output() {
    let rows = 40;
    let answer = |asked: &Asked| {
        let mut dice = Dice::new(asked.user().as_bytes());
        match dice.below(4) {
            // Longer than its limit of tokens seems to allow: one token may be many characters.
            0 => Answer::Endless("      haha".into()),
            1 if asked.seed().is_none() => Answer::Endless("  ".into()),
            _ => Answer::text(GOOD),
        }
    };
    let late = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&late);
    let (short, _server) = ask("    sampling: {max_tokens: 500}\n", rows, move |_, asked| {
        count.fetch_add(usize::from(streamed(asked)), Ordering::SeqCst);
        answer(asked)
    });
    let late = late.load(Ordering::SeqCst);
    assert!(late > 0 && late < rows * 2, "some were streamed: {late}");
    let (long, _server) = ask("    sampling: {max_tokens: 600}\n", rows, move |_, asked| {
        assert!(streamed(asked));
        answer(asked)
    });
    assert_eq!((short.code, long.code), (3, 3), "{}", short.stderr);
    assert_eq!(short.lines("errors"), long.lines("errors"));
    assert_eq!(short.lines("flattened"), long.lines("flattened"));
    assert!(short.errors().iter().all(|error| error["kind"] == "runaway"));
}

#[test]
fn faults_inside_a_stream_are_faults_of_the_try() {
    let (ran, server) = ask("    retries: {transport: 3}\n", 1, |n, _| match n {
        0 => Answer::CloseMidBody,
        1 => Answer::ErrorInside(json!({"error": {"message": "boom", "type": "server_error", "code": 500}})),
        // The engine is busy: at no cost.
        2 => Answer::ErrorInside(
            json!({"error": {"message": "Model is overloaded", "error_type": "overloaded", "code": 429}}),
        ),
        3 => Answer::CloseMidBody,
        _ => Answer::text(GOOD),
    });
    assert_eq!((ran.code, server.stats().asked), (0, 5), "{}", ran.stderr);
    let (ran, _server) = ask("    retries: {transport: 1}\n", 1, |_, _| {
        Answer::ErrorInside(json!({"error": {"message": "boom", "type": "server_error"}}))
    });
    let error = ran.error();
    assert_eq!(error["kind"], "http");
    assert_eq!(error["message"], "the engine broke off its reply: boom");
    // llama.cpp: a bad reply of one row.
    let (ran, server) = ask("", 1, |n, _| match n {
        0 => Answer::ErrorInside(
            json!({"error": {"code": 500, "message": "The model produced output that does not match the expected peg-native format"}}),
        ),
        _ => Answer::text(GOOD),
    });
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
    // Too long, said inside the stream: never asked again.
    let (ran, server) = ask("", 1, |_, _| {
        Answer::ErrorInside(
            json!({"error": "Input validation error: `inputs` must have less than 10 tokens. Given: 20", "error_type": "validation"}),
        )
    });
    assert_eq!(
        (&ran.error()["kind"], server.stats().asked),
        (&json!("context_length"), 1)
    );
}

#[test]
fn a_server_that_does_not_stream_is_read_all_the_same() {
    let (ran, _server) = ask("", 1, |_, asked| {
        assert!(streamed(asked));
        Answer::Raw(
            json!({"choices": [{"message": {"content": GOOD}, "finish_reason": "stop"}]})
                .to_string()
                .into(),
        )
    });
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn every_backend_runs_a_chain() {
    for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
        let (content_type, events) = match backend {
            Backend::Ollama => (
                "application/x-ndjson",
                vec![
                    json!({"message": {"role": "assistant", "content": "{\"label\":", "thinking": "hm"}, "done": false}),
                    json!({"message": {"role": "assistant", "content": "\"b\"}"}, "done": true, "done_reason": "stop",
                           "prompt_eval_count": 5, "eval_count": 6}),
                ],
            ),
            _ => (
                "text/event-stream",
                vec![
                    json!({"choices": [{"index": 0, "delta": {"reasoning_content": "hm", "content": null}}]}),
                    json!({"choices": [{"index": 0, "delta": {"content": GOOD.replace('a', "b").replace("lbbel", "label")}}]}),
                    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
                    json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}}),
                ],
            ),
        };
        let frame = |event: &Value| match backend {
            Backend::Ollama => format!("{event}\n").into_bytes(),
            _ => format!("data: {event}\n\n").into_bytes(),
        };
        let server = RawServer::start(Raw {
            status: 200,
            content_type,
            body: Body::Chunks(events.iter().map(frame).collect()),
        });
        let name = backend.as_str();
        let text = format!(
            "name: s\nmodels: {{M: {{label: a | b}}}}\nengines: {{e: {{backend: {name}, model: m, endpoint: \"{}\", reasoning: true}}}}\n\
             steps:\n  - {{id: grade, engine: e, user_prompt: \"{{{{ text }}}}\", output_model: M}}\n  \
             - {{id: after, engine: e, user_prompt: \"{{{{ grade_reasoning or '-' }}}}\", output_model: M}}\n",
            server.url
        );
        let (_bench, ran) = run(&text, "{\"text\":\"hi\"}\n");
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        assert_eq!(ran.values("grade")[0]["label"], "b", "{name}");
        let heard = server.heard();
        let prompts: Vec<&Value> = heard
            .iter()
            .map(|heard| &heard.body["messages"][0]["content"])
            .collect();
        assert_eq!(prompts, ["hi", "hm"], "{name}: thoughts are a name of their own");
        let tokens = ran.metadata()["tokens"].clone();
        assert_eq!(
            (&tokens["prompt"], &tokens["completion"]),
            (&json!(10), &json!(12)),
            "{name}: {tokens}"
        );
    }
}

#[test]
fn killed_streaming_runs_go_on_to_the_same_files() {
    let rows = 300;
    let input: String = (0..rows).map(|n| format!("{{\"text\":\"row {n}\"}}\n")).collect();
    let server = TestServer::start(|asked| {
        let mut dice = Dice::new(asked.user().as_bytes());
        match dice.below(20) {
            0 => Answer::Endless("la la ".into()),
            1 if asked.attempt == 0 => Answer::CloseMidBody,
            2 if asked.attempt == 0 => {
                Answer::ErrorInside(json!({"error": {"message": "boom", "type": "server_error"}}))
            }
            3 => Answer::text("never any JSON"),
            _ => Answer::text(GOOD),
        }
        .after(Duration::from_millis(1 + dice.below(4)))
    });
    let bench = Bench::new(
        &chain(&server.url(), "    retries: {transport: 1, output: 1}\n"),
        &input,
    );
    let dir = bench.dir.path();
    let mut killed = 0;
    while killed < 6 {
        let target = server.stats().asked + 30;
        let mut child = cli::spawn(dir, &["run", "chain.yaml", "in.jsonl", "out"]);
        let start = std::time::Instant::now();
        let mut ended = false;
        while server.stats().asked < target && !ended {
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "no progress for two minutes"
            );
            ended = child.try_wait().expect("a child can be waited for").is_some();
            std::thread::sleep(Duration::from_millis(1));
        }
        if ended {
            break;
        }
        cli::kill(&mut child);
        killed += 1;
    }
    assert!(killed >= 3, "the run ended after {killed} kills");
    let resumed = bench.run(&[]);
    assert_eq!(resumed.code, 3, "{}", resumed.stderr);
    let whole = Bench::new(
        &chain(&server.url(), "    retries: {transport: 1, output: 1}\n"),
        &input,
    );
    let ran = whole.run(&["--batch-size", "7"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert!(ran.errors().iter().any(|error| error["kind"] == "runaway"));
    let (one, other) = (tree(&ran.out), tree(&resumed.out));
    let private = |name: &str| name == "metadata.json";
    for (name, bytes) in &one {
        if !private(name) {
            assert!(other.get(name) == Some(bytes), "{name} differs");
        }
    }
    assert_eq!(one.len(), other.len());
}
