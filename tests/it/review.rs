//! Defects found in review; each test failed before its fix.

use std::time::{Duration, Instant};

use chainette::engine::broker::Broker;
use chainette::event::EventSender;

use crate::engine::{block_on, hello, spec};
use crate::harness::{Bench, run};
use crate::server::{Answer, TestServer};

#[test]
fn a_declared_engine_shows_no_secrets() {
    let mut spec = spec("https://user:pass-word@host:8000/v1?key=query-secret");
    spec.headers = vec![("x-team".into(), "header-secret".into())];
    let shown = format!("{spec:?}");
    for secret in ["pass-word", "query-secret", "header-secret"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(
        shown.contains("https://host:8000/v1") && shown.contains("x-team"),
        "{shown}"
    );
}

/// A row that would end the process fails alone.
fn fails_alone(program: &str, row: &str, message: &str) {
    let chain = serde_json::json!({"name": "bad", "steps": [{"id": "a", "apply": {"jq": program}}]});
    let (_bench, ran) = run(&chain.to_string(), format!("{{\"good\":1}}\n{row}\n"));
    assert_eq!(ran.code, 3, "{program}: {}", ran.stderr);
    assert_eq!(ran.error()["message"], message, "{program}");
    assert_eq!(ran.lines("flattened").len(), 1);
}

#[test]
fn json_in_a_text_that_nests_too_deep_fails_its_row() {
    let deep = serde_json::json!({"text": "[".repeat(400_000)}).to_string();
    let program = "if .text then .text | fromjson | {n: 1} else . end";
    fails_alone(program, &deep, "JSON in a text may nest 1000 levels at most");
    let hidden = serde_json::json!({"text": format!("#\"\n{}", "[".repeat(400_000))}).to_string();
    fails_alone(program, &hidden, "JSON in a text may nest 1000 levels at most");
}

#[test]
fn a_text_repeated_too_often_fails_its_row() {
    let message = "a repeated text may have 256 MiB at most";
    for program in [
        "if .n then {t: (\"ab\" * .n)} else . end",
        "if .n then {t: (.n * \"ab\")} else . end",
        "if .n then {t: \"ab\"} + {n} | .n as $n | .t *= $n else . end",
    ] {
        fails_alone(program, "{\"n\": 100000000000000}", message);
    }
}

#[test]
fn products_are_what_they_were() {
    // As they came out before `*` was bounded.
    let program = r#"{a: [(1, 2) * (3, 4)], b: ("ab" * 3), c: ({x: {y: 1}} * {x: {z: 2}}), d: (2 | . *= (3, 4) | [.]), e: ({k: 3} | .k *= 2), f: ([1, 2] | map(. * 2))}"#;
    let chain = serde_json::json!({"name": "good", "steps": [{"id": "a", "apply": {"jq": format!("[{program}] | {{all: .}}")}}]});
    let (_bench, ran) = run(&chain.to_string(), "{}\n");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("a")[0],
        r#"{"row_id":"0","all":[{"a":[3,4,6,8],"b":"ababab","c":{"x":{"y":1,"z":2}},"d":[6],"e":{"k":6},"f":[2,4]},{"a":[3,4,6,8],"b":"ababab","c":{"x":{"y":1,"z":2}},"d":[8],"e":{"k":6},"f":[2,4]}]}"#
    );
}

#[test]
fn a_retry_after_of_zero_is_no_leave_to_hammer() {
    let start = Instant::now();
    let server = TestServer::start(move |_| {
        if start.elapsed() < Duration::from_millis(900) {
            Answer::Status {
                code: 429,
                headers: vec![("retry-after", "0".into())],
                body: String::new(),
            }
        } else {
            Answer::text("ok")
        }
    });
    let broker = Broker::new(&[spec(&server.url())], EventSender::none()).expect("good");
    block_on(async {
        let ix = broker.index("small").expect("the engine is known");
        let rendered = hello(broker.engine(ix).expect("the engine is known").as_ref());
        loop {
            let lease = broker
                .acquire(ix, 0, 0, [0; 32])
                .await
                .expect("the engine comes back");
            if lease.call(&rendered, 0).await.is_ok() {
                break;
            }
        }
    });
    assert!(server.stats().asked <= 5, "{} requests", server.stats().asked);
}

#[test]
fn a_percentage_of_errors_does_not_depend_on_the_chunks() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: 'if .bad then error(\"no\") else . end'}}\n";
    let row = |n: usize| format!("{{\"n\":{n},\"bad\":{}}}\n", (40..51).contains(&n));
    for (rows, code) in [(100, 1), (128, 1), (99, 3)] {
        for batch in ["1", "64", "100", "256"] {
            let bench = Bench::new(chain, (0..rows).map(row).collect::<String>());
            let ran = bench.run(&["--max-errors", "10%", "--batch-size", batch]);
            assert_eq!(
                ran.code, code,
                "{rows} rows, --batch-size {batch}: {}",
                ran.stderr
            );
            let message = "11 of the first 100 rows failed";
            assert_eq!(ran.stderr.contains(message), code == 1, "{}", ran.stderr);
        }
    }
    // Later on too: in one chunk the bad rows would be made up for by the good ones after them.
    let row = |n: usize| format!("{{\"n\":{n},\"bad\":{}}}\n", (200..230).contains(&n));
    for batch in ["7", "230", "1000"] {
        let bench = Bench::new(chain, (0..1000).map(row).collect::<String>());
        let ran = bench.run(&["--max-errors", "10%", "--batch-size", batch]);
        assert_eq!(ran.code, 1, "--batch-size {batch}: {}", ran.stderr);
    }
}
