//! What happens to a row when its engine …: the other half of the README's table.

use std::time::Duration;

use serde_json::json;

use crate::fates::{GOOD, ask, fields, step_chain};
use crate::harness::{Bench, run};
use crate::server::{Answer, TestServer};

#[test]
fn a_step_is_answered() {
    let (ran, server) = ask("", |_, _| Answer::text(r#"{ "label" : "b" }"#));
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "1/1/0/0/0/0"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.lines("ask"), [r#"{"row_id":"0","label":"b"}"#]);
    assert_eq!(server.stats().asked, 1);
}

#[test]
fn a_reply_is_fenced_or_in_prose() {
    for text in [
        "```json\n{\"label\":\"a\"}\n```",
        "Sure! Here it is: {\"label\":\"a\"} Hope it helps.",
    ] {
        let (ran, server) = ask("", move |_, _| Answer::text(text));
        assert_eq!((ran.code, server.stats().asked), (0, 1), "{text}: {}", ran.stderr);
        assert_eq!(ran.lines("ask"), [r#"{"row_id":"0","label":"a"}"#]);
    }
}

#[test]
fn a_reply_is_bad_and_then_good() {
    let (ran, server) = ask("", |n, _| Answer::text(if n == 0 { "no idea" } else { GOOD }));
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
    assert_eq!(ran.fates("ask"), "1/1/0/0/0/0");
}

#[test]
fn every_reply_is_bad() {
    let (ran, server) = ask("", |_, _| Answer::text(r#"{"label":"c"}"#));
    assert_eq!(
        fields(&ran.error(), &["node", "kind", "attempts", "reply"]),
        json!({
            "node": "ask", "kind": "invalid_output", "attempts": 3, "reply": "{\"label\":\"c\"}"
        })
    );
    assert_eq!(
        (server.stats().asked, ran.fates("ask").as_str()),
        (3, "1/0/0/0/0/1")
    );
}

#[test]
fn a_reply_is_cut_and_then_good() {
    let (ran, server) = ask("    sampling: {max_tokens: 5}\n", |_, asked| {
        match asked.max_tokens() {
            Some(5) => Answer::cut(r#"{"lab"#),
            _ => Answer::text(GOOD),
        }
    });
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
}

#[test]
fn every_reply_is_cut() {
    let (ran, server) = ask("    sampling: {max_tokens: 5}\n", |_, _| Answer::cut(r#"{"lab"#));
    assert_eq!(
        fields(&ran.error(), &["kind", "attempts"]),
        json!({"kind": "truncated", "attempts": 2})
    );
    assert_eq!(server.stats().asked, 2);
}

#[test]
fn every_reply_runs_away() {
    let (ran, server) = ask("", |_, _| Answer::cut(format!("{{\"label\":{}", " ".repeat(500))));
    assert_eq!(
        fields(&ran.error(), &["kind", "attempts"]),
        json!({"kind": "runaway", "attempts": 2})
    );
    assert_eq!(server.stats().asked, 2);
}

#[test]
fn the_engine_rejects_its_own_output() {
    let message = "The model produced output that does not match the expected peg-native format";
    let (ran, server) = ask("", move |n, _| {
        if n == 0 {
            Answer::status(500, message)
        } else {
            Answer::text(GOOD)
        }
    });
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
}

#[test]
fn a_server_error_passes() {
    let (ran, server) = ask("", |n, _| {
        if n < 2 {
            Answer::status(500, "boom")
        } else {
            Answer::text(GOOD)
        }
    });
    assert_eq!((ran.code, server.stats().asked), (0, 3), "{}", ran.stderr);
}

#[test]
fn a_server_error_stays() {
    let (ran, server) = ask("    retries: {transport: 1}\n", |_, _| {
        Answer::status(502, "boom")
    });
    assert_eq!(
        fields(&ran.error(), &["kind", "attempts", "reply"]),
        json!({"kind": "http", "attempts": 0, "reply": null})
    );
    assert_eq!(
        (server.stats().asked, ran.fates("ask").as_str()),
        (2, "1/0/0/0/0/1")
    );
}

#[test]
fn the_connection_breaks() {
    let (ran, server) = ask("    retries: {transport: 1}\n", |_, _| Answer::CloseMidBody);
    assert_eq!(ran.error()["kind"], "http");
    assert_eq!(server.stats().asked, 2);
}

#[test]
fn the_engine_takes_too_long() {
    let server = TestServer::start(|_| Answer::Hang);
    let chain = step_chain(&server, "    retries: {transport: 1}\n").replace("total: 20s", "total: 500ms");
    let (_bench, ran) = run(&chain, "{\"text\":\"hello\"}\n");
    assert_eq!(ran.error()["kind"], "timeout");
    assert_eq!(server.stats().asked, 2);
}

#[test]
fn the_engine_refuses_the_request() {
    let (ran, server) = ask("", |_, _| Answer::status(400, "unknown parameter"));
    assert_eq!(
        fields(&ran.error(), &["kind", "attempts"]),
        json!({"kind": "http", "attempts": 0})
    );
    assert_eq!(server.stats().asked, 1);
}

#[test]
fn the_request_is_too_long() {
    let body = json!({"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 5,
                                "message": "the request exceeds the available context size"}});
    let (ran, server) = ask("", move |_, _| Answer::Status {
        code: 400,
        headers: vec![],
        body: body.to_string(),
    });
    assert_eq!(ran.error()["kind"], "context_length");
    assert_eq!(server.stats().asked, 1);
}

#[test]
fn the_engine_is_busy() {
    let (ran, server) = ask("    retries: {transport: 0, output: 0}\n", |n, _| match n {
        0 => Answer::Status {
            code: 429,
            headers: vec![("retry-after", "1".into())],
            body: "{}".into(),
        },
        _ => Answer::text(GOOD),
    });
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
}

#[test]
fn the_engine_is_loading() {
    let body = r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#;
    let (ran, _server) = ask("    retries: {transport: 0, output: 0}\n", move |n, _| match n {
        0..3 => Answer::Status {
            code: 503,
            headers: vec![],
            body: body.into(),
        },
        _ => Answer::text(GOOD),
    });
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "1/1/0/0/0/0"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_engine_is_down_for_a_while() {
    let mut server = TestServer::start(|_| Answer::text(GOOD));
    let bench = Bench::new(
        &step_chain(&server, "    retries: {transport: 0, output: 0}\n"),
        "{\"text\":\"x\"}\n",
    );
    server.stop();
    let run = bench
        .command(&[])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the command starts");
    std::thread::sleep(Duration::from_millis(700));
    server.restart();
    let ran = bench.ran(&run.wait_with_output().expect("the command ends"));
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "1/1/0/0/0/0"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_engine_stays_down() {
    let mut server = TestServer::start(|_| Answer::text(GOOD));
    let chain = step_chain(&server, "").replace("engine_wait: 20s", "engine_wait: 1s");
    let bench = Bench::new(&chain, "{\"text\":\"x\"}\n");
    server.stop();
    let ran = bench.run(&[]);
    assert_eq!((ran.code, ran.errors().len()), (1, 0), "{}", ran.stderr);
    assert!(ran.stderr.contains("engine `e`"), "{}", ran.stderr);
    server.restart();
    let ran = bench.run(&[]);
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "1/1/0/0/0/0"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_key_is_wrong() {
    let (ran, server) = ask("", |_, _| Answer::status(401, "bad key"));
    assert_eq!(
        (ran.code, ran.errors().len(), server.stats().asked),
        (1, 0, 1),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("401"), "{}", ran.stderr);
}

#[test]
fn a_step_fails_under_on_error_null() {
    let more = "    on_error: null\n  - {id: after, apply: {jq: '{ask: $row.ask, text}'}}\n";
    let (ran, _server) = ask(more, |_, _| Answer::status(400, "no"));
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "1/0/0/0/1/0"),
        "{}",
        ran.stderr
    );
    assert_eq!(
        ran.lines("after"),
        [r#"{"row_id":"0","ask":null,"text":"hello"}"#]
    );
}
