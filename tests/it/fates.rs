//! What happens to a row when …: every line of the README's table is a test here or in `fates_engine`.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, run};
use crate::server::{Answer, Asked, TestServer};

pub const GOOD: &str = r#"{"label":"a"}"#;

/// A chain of one Step `ask` with an output model.
pub fn step_chain(server: &TestServer, more: &str) -> String {
    format!(
        "name: t\nengines:\n  e: {{backend: openai, model: m, endpoint: \"{}\", concurrency: 4, engine_wait: 20s, \
         timeout: {{total: 20s}}}}\nmodels:\n  M: {{label: a | b}}\nsteps:\n  - id: ask\n    engine: e\n    \
         user_prompt: \"{{{{ text }}}}\"\n    output_model: M\n{more}",
        server.url()
    )
}

/// Runs one row through one Step; the server answers its n-th request with `answer(n, request)`.
pub fn ask(
    more: &str,
    answer: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static,
) -> (Ran, TestServer) {
    let n = AtomicUsize::new(0);
    let server = TestServer::start(move |asked| answer(n.fetch_add(1, Ordering::SeqCst), asked));
    let (_bench, ran) = run(&step_chain(&server, more), "{\"text\":\"hello\"}\n");
    (ran, server)
}

fn apply(jq: &str, input: impl AsRef<[u8]>) -> Ran {
    let program = serde_json::to_string(jq).expect("a string");
    run(
        &format!("name: t\nsteps:\n  - {{id: n, apply: {{jq: {program}}}}}\n"),
        input,
    )
    .1
}

pub fn fields(error: &Value, names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| ((*name).to_owned(), error[*name].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn assert_bad_line(line: &[u8], message: &str) {
    let mut input = b"{\"a\":1}\n".to_vec();
    input.extend_from_slice(line);
    input.extend_from_slice(b"\n{\"a\":2}\n");
    let ran = apply(".", input);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let error = ran.error();
    assert_eq!(
        fields(
            &error,
            &["row_id", "node", "kind", "message", "file", "line", "chain_input"]
        ),
        json!({"row_id": "1", "node": null, "kind": "invalid_input", "message": message, "file": "in.jsonl",
               "line": 2, "chain_input": null})
    );
    assert!(error["raw"].is_string());
    assert_eq!(ran.lines("flattened").len(), 2);
    assert_eq!(ran.fates("n"), "2/2/0/0/0/0");
    assert_eq!(ran.metadata()["rows"]["in"], 3);
}

#[test]
fn a_line_is_not_json() {
    assert_bad_line(
        b"{\"a\":",
        "not valid JSON: EOF while parsing a value at column 5",
    );
}

#[test]
fn a_line_is_not_an_object() {
    assert_bad_line(b"[1]", "expected a JSON object, found an array");
}

#[test]
fn a_line_is_not_utf8() {
    assert_bad_line(b"{\"a\":\"\xff\"}", "not valid UTF-8 at byte 7");
}

#[test]
fn a_line_holds_half_a_surrogate_pair() {
    assert_bad_line(
        br#"{"a":"\ud800"}"#,
        "not valid JSON: unexpected end of hex escape at column 13",
    );
}

#[test]
fn a_line_nests_too_deep() {
    let line = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
    assert_bad_line(line.as_bytes(), "nested deeper than 120 levels");
}

#[test]
fn a_line_is_blank() {
    let ran = apply(".", "\u{feff}{\"a\":1}\r\n\r\n   \n{\"a\":2}");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("n"),
        [r#"{"row_id":"0","a":1}"#, r#"{"row_id":"1","a":2}"#]
    );
}

#[test]
fn a_key_stands_twice() {
    let ran = apply(".", "{\"a\": 1, \"b\": 1.10, \"a\": 2}\n");
    assert_eq!(
        ran.lines("flattened"),
        [r#"{"row_id":"0","chain_input.a":2,"chain_input.b":1.10,"n.a":2,"n.b":1.10}"#]
    );
}

#[test]
fn a_row_breaks_the_input_model() {
    let chain = "name: t\ninput_model: {a: integer}\nsteps:\n  - {id: n, apply: {jq: .}}\n";
    let (_bench, ran) = run(chain, "{\"a\":\"x\"}\n{\"a\":1,\"more\":2}\n");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(
        fields(&ran.error(), &["row_id", "kind", "chain_input", "raw"]),
        json!({
            "row_id": "0", "kind": "invalid_input", "chain_input": {"a": "x"}, "raw": null
        })
    );
    assert_eq!(ran.fates("n"), "1/1/0/0/0/0");
}

#[test]
fn a_template_reads_what_is_not_there() {
    let server = TestServer::start(|_| Answer::text(GOOD));
    let (_bench, ran) = run(&step_chain(&server, ""), "{\"other\":1}\n{\"text\":\"x\"}\n");
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(
        fields(&ran.error(), &["row_id", "node", "kind"]),
        json!({"row_id": "0", "node": "ask", "kind": "template"})
    );
    assert_eq!(ran.fates("ask"), "2/1/0/0/0/1");
    assert_eq!(server.stats().asked, 1);
}

#[test]
fn a_template_prints_a_null() {
    let server = TestServer::start(|_| Answer::text(GOOD));
    let (_bench, ran) = run(&step_chain(&server, ""), "{\"text\":null}\n");
    assert_eq!(ran.error()["kind"], "template");
    assert_eq!(server.stats().asked, 0);
}

#[test]
fn a_condition_is_undefined() {
    let chain = "name: t\nsteps:\n  - {id: n, when: missing > 1, apply: {jq: .}}\n";
    let (_bench, ran) = run(chain, "{\"a\":1}\n");
    assert_eq!(
        fields(&ran.error(), &["node", "kind"]),
        json!({"node": "n", "kind": "template"})
    );
    assert_eq!(ran.fates("n"), "1/0/0/0/0/1");
}

#[test]
fn a_condition_is_false() {
    let chain = "name: t\nsteps:\n  - {id: n, when: a > 1, apply: {jq: '{b: .a}'}}\n  - {id: m, apply: {jq: '{seen: ., n: $row.n}'}}\n";
    let (_bench, ran) = run(chain, "{\"a\":1}\n{\"a\":2}\n");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.fates("n"), "2/1/0/1/0/0");
    assert_eq!(
        ran.lines("m"),
        [
            r#"{"row_id":"0","seen":{"a":1},"n":null}"#,
            r#"{"row_id":"1","seen":{"b":2},"n":{"b":2}}"#,
        ]
    );
}

#[test]
fn an_apply_emits_nothing() {
    let ran = apply("select(.a > 1)", "{\"a\":1}\n{\"a\":2}\n");
    assert_eq!((ran.code, ran.fates("n").as_str()), (0, "2/1/1/0/0/0"));
    assert_eq!(
        ran.lines("flattened"),
        [r#"{"row_id":"1","chain_input.a":2,"n.a":2}"#]
    );
}

#[test]
fn an_apply_emits_no_object() {
    assert_eq!(
        apply(".a", "{\"a\":1.50}\n").lines("n"),
        [r#"{"row_id":"0","value":1.50}"#]
    );
}

#[test]
fn an_apply_emits_several_rows() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: '.a[] | {b: .}'}}\n  - {id: m, apply: {jq: 'range(.b) | {c: .}'}}\n";
    let (_bench, ran) = run(chain, "{\"a\":[2,0,1]}\n{\"a\":[1]}\n");
    assert_eq!(ran.fates("n"), "2/2/0/0/0/0");
    assert_eq!(ran.metadata()["nodes"]["n"]["children"], 4);
    assert_eq!(ran.fates("m"), "4/3/1/0/0/0");
    let ids: Vec<Value> = ran
        .values("m")
        .iter()
        .map(|line| line["row_id"].clone())
        .collect();
    assert_eq!(ids, ["0.0.0", "0.0.1", "0.2", "1"]);
}

#[test]
fn an_apply_fails() {
    let ran = apply(
        "if .a > 1 then error(\"too big\") else . end",
        "{\"a\":1}\n{\"a\":2}\n",
    );
    assert_eq!(ran.code, 3);
    assert_eq!(
        fields(
            &ran.error(),
            &["row_id", "node", "kind", "message", "attempts", "chain_input"]
        ),
        json!({
            "row_id": "1", "node": "n", "kind": "apply", "message": "too big", "attempts": null, "chain_input": {"a": 2}
        })
    );
    assert_eq!(ran.fates("n"), "2/1/0/0/0/1");
}

#[test]
fn an_apply_never_ends() {
    let ran = apply(
        "if .a > 1 then (def f: 1 + f; f) else . end",
        "{\"a\":1}\n{\"a\":2}\n",
    );
    assert_eq!(
        ran.error()["message"],
        "the program recurses too deep for one row"
    );
    assert_eq!(ran.fates("n"), "2/1/0/0/0/1");
}

#[test]
fn an_apply_breaks_its_output_model() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: '{a}'}, output_model: {a: integer}}\n";
    let (_bench, ran) = run(chain, "{\"a\":\"x\"}\n{\"a\":1}\n");
    assert_eq!(
        fields(&ran.error(), &["node", "kind"]),
        json!({"node": "n", "kind": "invalid_output"})
    );
    assert_eq!(ran.fates("n"), "2/1/0/0/0/1");
}

/// Branches off rows `{a}`; `inner` is the branch's list of steps.
fn branch(head: &str, inner: &str, input: &str) -> Ran {
    let chain = format!(
        "name: t\nsteps:\n  - parallel:\n      - branch: side\n        {head}\n        steps:\n          \
         - {inner}\n  - {{id: after, apply: {{jq: '{{side: $row.side}}'}}}}\n"
    );
    run(&chain, input).1
}

#[test]
fn a_joined_branch_filters_the_row() {
    let ran = branch("join: side", "{id: n, apply: {jq: empty}}", "{\"a\":1}\n");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("flattened"),
        [r#"{"row_id":"0","chain_input.a":1,"after.side":null}"#]
    );
    assert_eq!(ran.fates("n"), "1/0/1/0/0/0");
}

#[test]
fn a_joined_branch_is_skipped() {
    let ran = branch(
        "{join: side, when: a > 1}"
            .trim_matches(['{', '}'])
            .replace(", ", "\n        ")
            .as_str(),
        "{id: n, apply: {jq: .}}",
        "{\"a\":1}\n{\"a\":2}\n",
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("after"),
        [
            r#"{"row_id":"0","side":null}"#,
            r#"{"row_id":"1","side":{"a":2}}"#
        ]
    );
    assert_eq!(
        ran.metadata()["branches"]["side"],
        json!({"rows": 2, "skipped": 1, "failed": 0})
    );
}

#[test]
fn a_joined_branch_leaves_several_rows() {
    let ran = branch("join: side", "{id: n, apply: {jq: '., .'}}", "{\"a\":1}\n");
    assert_eq!(
        fields(&ran.error(), &["row_id", "node", "branch", "kind"]),
        json!({
            "row_id": "0", "node": "side", "branch": null, "kind": "join_cardinality"
        })
    );
    assert_eq!(ran.fates("after"), "0/0/0/0/0/0");
    assert_eq!(ran.lines("n").len(), 2);
}

#[test]
fn a_collected_branch_leaves_a_list() {
    let ran = branch(
        "join: side\n        collect: true",
        "{id: n, apply: {jq: 'range(.a) | {i: .}'}}",
        "{\"a\":0}\n{\"a\":2}\n",
    );
    assert_eq!(
        ran.lines("flattened"),
        [
            r#"{"row_id":"0","chain_input.a":0,"side":[],"after.side":[]}"#,
            r#"{"row_id":"1","chain_input.a":2,"side":[{"i":0},{"i":1}],"after.side":[{"i":0},{"i":1}]}"#,
        ]
    );
}

#[test]
fn a_joined_branch_fails() {
    let inner = "{id: n, apply: {jq: '(1, 2, 3) | {i: .}'}}\n          - {id: m, apply: {jq: 'if .i > 1 then error(\"no\") else . end'}}";
    let ran = branch("join: side\n        collect: true", inner, "{\"a\":1}\n");
    assert_eq!(
        fields(
            &ran.error(),
            &["row_id", "node", "branch", "kind", "child", "message"]
        ),
        json!({
            "row_id": "0", "node": "m", "branch": null, "kind": "apply", "child": "0.1", "message": "no"
        })
    );
    assert_eq!(
        (ran.fates("m").as_str(), ran.fates("after").as_str()),
        ("3/1/0/0/0/2", "0/0/0/0/0/0")
    );
    assert_eq!(ran.lines("m"), [r#"{"row_id":"0.0","i":1}"#]);
}

#[test]
fn an_unjoined_branch_fails() {
    let chain = "name: t\nsteps:\n  - branch: aside\n    steps:\n      - {id: n, apply: {jq: 'error(\"no\")'}}\n  - {id: after, apply: {jq: .}}\n";
    let (_bench, ran) = run(chain, "{\"a\":1}\n");
    assert_eq!(ran.code, 3);
    assert_eq!(
        fields(&ran.error(), &["row_id", "node", "branch", "kind", "child"]),
        json!({
            "row_id": "0", "node": "n", "branch": "aside", "kind": "apply", "child": null
        })
    );
    assert_eq!(ran.lines("flattened").len(), 1);
    assert_eq!(
        ran.metadata()["rows"],
        json!({"in": 1, "out": 1, "failed": 0, "errors": 1})
    );
}

#[test]
fn an_output_has_a_field_row_id() {
    let ran = apply("{row_id: \"mine\", a}", "{\"a\":1,\"row_id\":\"x\"}\n");
    assert_eq!(ran.lines("n"), [r#"{"row_id":"0","n.row_id":"mine","a":1}"#]);
    assert_eq!(
        ran.lines("flattened"),
        [r#"{"row_id":"0","chain_input.a":1,"chain_input.row_id":"x","n.row_id":"mine","n.a":1}"#]
    );
}

#[test]
fn the_first_hundred_rows_all_fail() {
    let input: String = (0..300).map(|n| format!("{{\"a\":{n}}}\n")).collect();
    let bench = Bench::new(
        "name: t\nsteps:\n  - {id: n, apply: {jq: 'error(\"no\")'}}\n",
        &input,
    );
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("--max-errors"), "{}", ran.stderr);
    let ran = bench.run(&["--max-errors", "100%"]);
    assert_eq!((ran.code, ran.errors().len()), (3, 300), "{}", ran.stderr);
}

#[test]
fn a_closure_panics() {
    use chainette::plan::{Closures, compile};
    use chainette::run::{RunConfig, run_to_end};
    use chainette::spec::ChainInput;

    let bench = Bench::new(
        "name: t\nsteps:\n  - {id: n, apply: {closure: grumpy}}\n",
        "{\"a\":1}\n{\"a\":2}\n",
    );
    let closures = Closures::none().with("grumpy", |record| match record.get("a") {
        Some("1") => Ok(vec![record.clone(), record.clone()]),
        _ => panic!("not this one"),
    });
    let dir = bench.dir.path();
    let compiled = compile(&ChainInput::file(dir.join("chain.yaml")), &closures).expect("the chain compiles");
    let config = RunConfig::new(compiled.plan, dir.join("in.jsonl"), dir.join("out"));
    let outcome = run_to_end(config).expect("the run starts");
    assert!(outcome.stopped.is_none(), "{:?}", outcome.stopped);
    let ran = bench.opened();
    assert_eq!(
        ran.lines("n"),
        [r#"{"row_id":"0.0","a":1}"#, r#"{"row_id":"0.1","a":1}"#]
    );
    assert_eq!(
        fields(&ran.error(), &["row_id", "kind", "message"]),
        json!({"row_id": "1", "kind": "apply", "message": "the closure `grumpy` panicked on this row"})
    );
    assert_eq!(ran.fates("n"), "2/1/0/0/0/1");
}

#[test]
fn the_readme_lists_every_test_here() {
    let readme = include_str!("../../README.md");
    let own = [include_str!("fates.rs"), include_str!("fates_engine.rs")].concat();
    let table = readme
        .split("## What happens to a row when")
        .nth(1)
        .expect("the table is there");
    let table = table.split("\n## ").next().expect("it ends somewhere");
    let mut listed: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.split('`').rev().nth(1).expect("a test"))
        .collect();
    let mut tests: Vec<&str> = own
        .split("#[test]\nfn ")
        .skip(1)
        .map(|rest| rest.split('(').next().expect("a name"))
        .filter(|name| *name != "the_readme_lists_every_test_here")
        .collect();
    listed.sort_unstable();
    tests.sort_unstable();
    assert_eq!(listed, tests);
    assert!(listed.len() >= 30);
}
