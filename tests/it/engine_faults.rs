//! What engines do to a run, seen from outside: a table of faults with what becomes of the row, and the wilder ones.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Bench, rows, stderr_of, tree, tree_of};
use crate::server::{Answer, Asked, TestServer};

/// One Step over rows `{"a": n}`, with patient clocks.
fn chain(server: &TestServer, retries: Value) -> String {
    json!({
        "name": "t",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 4,
                          "engine_wait": "100s", "max_reply": "1MB",
                          "timeout": {"first_byte": "101s", "between_bytes": "102s", "total": "103s"}}},
        "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "output_model": {"label": "string"},
                   "sampling": {"max_tokens": 9}, "retries": retries}],
    })
    .to_string()
}

fn good() -> Answer {
    Answer::text(r#"{"label":"a"}"#)
}

fn body(content: &Value) -> Answer {
    Answer::Raw(
        json!({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})
            .to_string()
            .into(),
    )
}

/// A fault by its name, and the answer that is one.
type Fault = (&'static str, Box<dyn Fn() -> Answer + Send + Sync>);

fn faults() -> Vec<Fault> {
    fn fault(name: &'static str, answer: impl Fn() -> Answer + Send + Sync + 'static) -> Fault {
        (name, Box::new(answer))
    }
    // Made once: their server must not be slow.
    let blank = Answer::Raw(vec![b' '; 100 << 20].into());
    let long = body(&"x ".repeat(10 << 20).into());
    vec![
        fault("closed before the reply", || Answer::Close),
        fault("closed in the reply", || Answer::CloseMidBody),
        fault("never answers", || Answer::Hang),
        fault("a byte at a time", || Answer::Drip {
            content: r#"{"label":"slow"}"#.into(),
            bytes: 1,
            every: Duration::from_millis(100),
        }),
        fault("a body of 100 MB", move || blank.clone()),
        fault("a text of 20 MB", move || long.clone()),
        fault("invalid UTF-8", || {
            Answer::Raw(
                b"{\"choices\":[{\"message\":{\"content\":\"\xff\xfe\"},\"finish_reason\":\"stop\"}]}"
                    .to_vec()
                    .into(),
            )
        }),
        fault("not JSON", || Answer::Raw("<html>welcome</html>".into())),
        fault("half of JSON", || {
            Answer::Raw(r#"{"choices":[{"message":"#.into())
        }),
        fault("nothing", || Answer::Raw("".into())),
        fault("another shape", || Answer::Raw(r#"{"result":"fine"}"#.into())),
        fault("no choice", || Answer::Raw(r#"{"choices":[]}"#.into())),
        fault("content that is no text", || body(&json!({"label": "a"}))),
        fault("an empty text", || Answer::text("")),
        fault("JSON, then prose", || {
            Answer::text("{\"label\":\"a\"}\nThat is my answer.")
        }),
        fault("two JSON values", || {
            Answer::text(r#"{"label":"a"} {"label":"b"}"#)
        }),
        fault("raw control characters", || {
            Answer::text("{\"label\":\"a\tb\nc\u{1}\"}")
        }),
        fault("JSON of another shape", || Answer::text(r#"{"label":1}"#)),
        fault("half a surrogate pair", || Answer::text(r#"{"label":"\ud800"}"#)),
        fault("white space to its limit", || {
            Answer::cut(format!("{{\"label\":{}", " ".repeat(600)))
        }),
        fault("repetition to its limit", || {
            Answer::cut(format!("{{\"label\":\"{}", "ha ".repeat(300)))
        }),
        fault("cut by its limit", || Answer::cut(r#"{"lab"#)),
        fault("500", || Answer::status(500, "boom")),
        fault("500 for a bad reply (llama.cpp)", || {
            Answer::status(
                500,
                "The model produced output that does not match the expected peg-native format",
            )
        }),
        fault("502", || Answer::status(502, "bad gateway")),
        fault("504", || Answer::status(504, "gateway timeout")),
        fault("400", || Answer::status(400, "unknown parameter")),
        fault("a context too long", || {
            Answer::status(
                400,
                "This model's maximum context length is 1024 tokens. However, you requested 2000",
            )
        }),
        fault("401", || Answer::status(401, "bad key")),
        fault("403", || Answer::status(403, "not yours")),
        fault("an unknown model", || Answer::Status {
            code: 404,
            headers: Vec::new(),
            body: json!({"error": {"message": "The model `m` does not exist", "code": "model_not_found"}})
                .to_string(),
        }),
        fault("a redirect", || Answer::status(301, "elsewhere")),
    ]
}

/// Each fault, whenever the row is asked: what becomes of it, and how often it was asked.
#[test]
fn every_fault_has_its_fate() {
    let lines: Vec<String> = std::thread::scope(|scope| {
        let running: Vec<_> = faults()
            .into_iter()
            .map(|(name, answer)| {
                scope.spawn(move || {
                    let server = TestServer::start(move |_| answer());
                    let mut chain = chain(&server, json!({"output": 1, "transport": 1}));
                    // One clock is short, the one that is meant.
                    chain = match name {
                        "never answers" => chain.replace("101s", "500ms"),
                        "a byte at a time" => chain.replace("103s", "1s"),
                        _ => chain,
                    };
                    let ran = Bench::new(&chain, rows(1)).run(&["--quiet"]);
                    let asked = server.stats().asked;
                    let what = match (ran.code, ran.errors().first()) {
                        (3, Some(error)) => {
                            format!(
                                "{} after {} replies: {}",
                                error["kind"], error["attempts"], error["message"]
                            )
                        }
                        (0, None) => ran.lines("ask").concat(),
                        _ => ran.stderr.trim().to_owned(),
                    };
                    format!("{name}: exit {}, asked {asked} times\n    {what}", ran.code)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|ran| ran.join().expect("no panic"))
            .collect()
    });
    insta::assert_snapshot!(lines.join("\n"));
}

/// Every request is refused several times before it is taken: no row fails, none uses up a try.
#[test]
fn a_storm_of_429() {
    let server = TestServer::start(|asked| match asked.seen {
        0 => Answer::Status {
            code: 429,
            headers: vec![("retry-after-ms", "150".into())],
            body: "{}".into(),
        },
        1 if asked.user().ends_with('7') => Answer::status(503, "overloaded"),
        _ => good(),
    });
    let bench = Bench::new(&chain(&server, json!({"output": 0, "transport": 0})), rows(24));
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "24/24/0/0/0/0"),
        "{}",
        ran.stderr
    );
    assert!(server.stats().asked >= 48, "{:?}", server.stats());
}

/// Requests at which the connection is cut, each time: only these rows fail, after their own tries.
#[test]
fn poison_rows_fail_alone() {
    let poison = |asked: &Asked| asked.user() == "say 3" || asked.user() == "say 11";
    let server = TestServer::start(move |asked| if poison(asked) { Answer::Close } else { good() });
    let bench = Bench::new(&chain(&server, json!({"output": 0, "transport": 2})), rows(40));
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (3, "40/38/0/0/0/2"),
        "{}",
        ran.stderr
    );
    let failed: Vec<Value> = ran.errors();
    let ids: Vec<&Value> = failed.iter().map(|error| &error["row_id"]).collect();
    assert_eq!(ids, ["3", "11"]);
    assert!(failed.iter().all(|error| error["kind"] == "http"), "{failed:?}");
    assert_eq!(server.stats().asked, 38 + 2 * 3);
}

/// A request that brings the whole server down, each time, for a while: it fails after its own tries, the others wait
/// and are answered.
#[test]
fn a_row_that_brings_the_engine_down() {
    let (deadly, down) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, fell) = (deadly.clone(), down.clone());
    let mut server = TestServer::start(move |asked| match asked.user() {
        "say 5" => {
            count.fetch_add(1, Ordering::SeqCst);
            fell.store(true, Ordering::SeqCst);
            Answer::Close
        }
        _ => good().after(Duration::from_millis(20)),
    });
    let chain = chain(&server, json!({"output": 0, "transport": 2}))
        .replace("\"concurrency\":4", "\"concurrency\":1");
    let bench = Bench::new(&chain, rows(20));
    let mut child = bench.spawn(&[]);
    let start = std::time::Instant::now();
    while child.try_wait().expect("a child can be waited for").is_none() {
        if down.swap(false, Ordering::SeqCst) {
            server.stop();
            std::thread::sleep(Duration::from_millis(300));
            server.restart();
        }
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().expect("it can be killed");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let said = stderr_of(&mut child);
    let ran = bench.opened();
    assert_eq!(ran.fates("ask"), "20/19/0/0/0/1", "{said}");
    assert_eq!(ran.error()["row_id"], "5", "{said}");
    assert_eq!(deadly.load(Ordering::SeqCst), 3);
}

/// Connections that a server closes after each reply are no fault.
#[test]
fn connections_are_closed_after_each_reply() {
    let server = TestServer::start(|asked| Answer::Status {
        code: 200,
        headers: vec![
            ("connection", "close".into()),
            ("content-type", "application/json".into()),
        ],
        body: json!({"choices": [{"message": {"content": format!("{{\"label\":\"{}\"}}", asked.user())},
                                  "finish_reason": "stop"}]})
        .to_string(),
    });
    let bench = Bench::new(&chain(&server, json!({"output": 0, "transport": 0})), rows(60));
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "60/60/0/0/0/0"),
        "{}",
        ran.stderr
    );
    assert_eq!(server.stats().asked, 60);
}

/// Nobody is there for longer than `engine_wait`: the run stops and names the engine, the cause and what to do; once it
/// is there, the same command goes on, and nothing was asked twice.
#[test]
fn an_engine_that_goes_away() {
    let mut server = TestServer::start(|_| good());
    let url = server.url();
    let chain = chain(&server, json!({"output": 0, "transport": 0})).replace("100s", "1s");
    let bench = Bench::new(&chain, rows(30));
    assert_eq!(bench.run(&["--limit", "10"]).code, 0);
    server.stop();
    let ran = bench.run(&["--quiet"]);
    assert_eq!((ran.code, ran.errors().len()), (1, 0), "{}", ran.stderr);
    let mut said = String::new();
    write!(said, "{}", ran.stderr.replace(&url, "[url]")).expect("a string grows");
    insta::assert_snapshot!(said);
    server.restart();
    let ran = bench.run(&[]);
    assert_eq!((ran.code, ran.lines("ask").len()), (0, 30), "{}", ran.stderr);
    assert_eq!(server.stats().asked, 30);
    assert!(tree(&ran.out) == tree_of(&bench, "whole", &[]));
}
