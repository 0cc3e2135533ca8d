//! The wall clock is set back, or forward, while a run is on: times that are shown may jump, nothing else does.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, rows, tree};
use crate::logs::events;
use crate::server::{Answer, Asked, TestServer};

/// `Wed, 21 Oct 2026 07:28:00 GMT`
fn http_date(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let time = jiff::Timestamp::from_second(seconds.as_secs().cast_signed()).expect("a time");
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// Some are told to come back in a second, by a date; some meet an error first; some never get through.
fn answer(asked: &Asked) -> Answer {
    let n: usize = asked.user().bytes().map(usize::from).sum();
    match (n % 7, asked.seen) {
        (0, 0) => Answer::Status {
            code: 429,
            headers: vec![("retry-after", http_date(server_time() + Duration::from_secs(1)))],
            body: "{}".into(),
        },
        (1, 0) => Answer::status(500, "boom"),
        (2, _) => Answer::text("never"),
        _ => Answer::text(json!({"g": n}).to_string()),
    }
}

/// The server's clock is right.
fn server_time() -> SystemTime {
    SystemTime::now()
}

/// No number of seconds, rate or count is below 0; what a field is called says what it is.
fn assert_no_negative(value: &Value, place: &str) {
    match value {
        Value::Number(number) => assert!(number.as_f64() >= Some(0.0), "{place}: {number}"),
        Value::Array(values) => values.iter().for_each(|value| assert_no_negative(value, place)),
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| assert_no_negative(value, &format!("{place}.{name}"))),
        _ => {}
    }
}

fn run(bench: &Bench, clock: &str, extra: &[&str]) -> Ran {
    let mut command = bench.command(&[&["--batch-size", "4"], extra].concat());
    let output = command.env("CHAINETTE_CLOCK", clock).output().expect("it starts");
    bench.ran(&output)
}

fn time(text: &Value) -> jiff::Timestamp {
    text.as_str().expect("a time").parse().expect("RFC 3339")
}

#[test]
fn a_clock_that_is_set_changes_no_output() {
    let mut whole = None;
    // Not at all; back before the run; back, then far forward; to before 1970; on, then back to where it was.
    for clock in [
        "",
        "-86400@1",
        "-3600@2,+90000000@9",
        "-4000000000@3",
        "+7200@3,-7200@8",
    ] {
        let server = TestServer::start(answer);
        let chain = json!({
            "name": "clock",
            "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 2,
                              "engine_wait": "60s"}},
            "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "output_model": {"g": "integer"},
                       "sampling": {"max_tokens": 9}, "retries": {"output": 1, "transport": 1}}],
        });
        let bench = Bench::new(&chain.to_string(), rows(16));
        let input = std::fs::File::options()
            .write(true)
            .open(bench.dir.path().join("in.jsonl"));
        let input = input.expect("the input");
        input
            .set_modified(SystemTime::UNIX_EPOCH)
            .expect("a time can be set");
        let half = run(&bench, clock, &["--json-logs", "--limit", "6"]);
        assert!(matches!(half.code, 0 | 3), "{clock}: {}", half.stderr);
        for event in events(&half.stderr) {
            assert_no_negative(&event, clock);
        }
        let ran = run(&bench, clock, &[]);
        assert_eq!(ran.code, 3, "{clock}: {}", ran.stderr);
        let negative = |word: &str| {
            word.strip_prefix('-')
                .is_some_and(|rest| rest.starts_with(char::is_numeric))
        };
        assert!(
            !ran.stderr.split_whitespace().any(negative),
            "{clock}: {}",
            ran.stderr
        );
        let metadata = ran.metadata();
        let timings = &metadata["timings"];
        assert_no_negative(timings, clock);
        assert!(
            time(&timings["started"]) <= time(&timings["finished"]),
            "{clock}: {timings}"
        );
        // By the wall clock it would be hours, or years.
        assert!(
            timings["run_seconds"].as_f64() < Some(600.0),
            "{clock}: {timings}"
        );
        let mut files = tree(&ran.out);
        // The address of the server is part of what was asked for.
        for name in ["graph.json", "metadata.json"] {
            files.remove(name).expect(name);
        }
        let whole = whole.get_or_insert_with(|| files.clone());
        assert_eq!(&files, whole, "{clock}");
    }
}
