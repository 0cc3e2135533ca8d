//! What chainette's ancestor promised and broke.

use serde_json::json;

use crate::harness::{Bench, run, tree};
use crate::server::{Answer, TestServer};

fn rows(n: usize) -> String {
    (0..n).map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

#[test]
fn ids_are_kept_when_a_row_fails() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: 'if .n == 1 then error(\"no\") else . end'}}\n";
    let (_bench, ran) = run(chain, rows(4));
    let ids: Vec<_> = ran
        .values("flattened")
        .iter()
        .map(|line| line["row_id"].clone())
        .collect();
    assert_eq!(ids, ["0", "2", "3"]);
    assert_eq!(ran.error()["row_id"], "1");
}

#[test]
fn a_group_may_come_first() {
    let chain = "name: t\nsteps:\n  - parallel:\n      - branch: a\n        join: a\n        steps: [{id: x, apply: {jq: '{v: (.n + 1)}'}}]\n      \
                 - branch: b\n        join: b\n        steps: [{id: y, apply: {jq: '{v: (.n * 10)}'}}]\n  \
                 - {id: tail, apply: {jq: '{sum: ($row.a.v + $row.b.v), n}'}}\n";
    let (_bench, ran) = run(chain, rows(2));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("tail"),
        [
            r#"{"row_id":"0","sum":1,"n":0}"#,
            r#"{"row_id":"1","sum":12,"n":1}"#
        ]
    );
    assert_eq!(
        ran.lines("flattened")[1],
        r#"{"row_id":"1","chain_input.n":1,"a.v":2,"b.v":10,"tail.sum":12,"tail.n":1}"#
    );
}

#[test]
fn an_alias_holds_its_branchs_last_output() {
    let chain = "name: t\nsteps:\n  - branch: a\n    join: last\n    steps:\n      - {id: x, apply: {jq: '{v: 1}'}}\n      \
                 - {id: y, apply: {jq: '{v: (.v + 1)}'}}\n      - {id: z, when: v > 5, apply: {jq: '{v: 9}'}}\n  \
                 - {id: tail, apply: {jq: '$row.last'}}\n";
    let (_bench, ran) = run(chain, rows(1));
    assert_eq!(ran.lines("tail"), [r#"{"row_id":"0","v":2}"#], "{}", ran.stderr);
}

#[test]
fn one_row_that_becomes_many_keeps_them_all() {
    let chain = "name: t\nsteps:\n  - {id: split, apply: {jq: 'range(50) as $i | {i: $i}'}}\n  - {id: keep, apply: {jq: .}}\n";
    let bench = Bench::new(chain, rows(40));
    let ran = bench.run(&["--batch-size", "7", "--max-lines-per-file", "300"]);
    let ids: Vec<String> = ran
        .values("flattened")
        .iter()
        .map(|line| line["row_id"].as_str().expect("a text").to_owned())
        .collect();
    let expected: Vec<String> = (0..40)
        .flat_map(|n| (0..50).map(move |i| format!("{n}.{i}")))
        .collect();
    assert_eq!(ids, expected);
    assert_eq!(ran.metadata()["nodes"]["keep"]["rows"], 2000);
}

#[test]
fn a_repeated_id_is_refused() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: .}}\n  - {id: n, apply: {jq: .}}\n";
    let (_bench, ran) = run(chain, rows(1));
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("duplicate"), "{}", ran.stderr);
    assert!(!ran.out.exists(), "nothing is written");
}

#[test]
fn no_shard_is_empty() {
    let bench = Bench::new(
        "name: t\nsteps:\n  - {id: n, apply: {jq: 'select(.n < 4)'}}\n",
        rows(6),
    );
    let ran = bench.run(&["--max-lines-per-file", "2"]);
    let shards: Vec<String> = tree(&ran.out)
        .into_keys()
        .filter(|name| name.contains('/'))
        .collect();
    assert_eq!(
        shards,
        [
            "flattened/000.jsonl",
            "flattened/001.jsonl",
            "n/000.jsonl",
            "n/001.jsonl"
        ]
    );
    let bench = Bench::new("name: t\nsteps:\n  - {id: n, apply: {jq: empty}}\n", rows(6));
    let ran = bench.run(&[]);
    let files: Vec<(String, usize)> = tree(&ran.out)
        .into_iter()
        .map(|(name, bytes)| (name, bytes.len()))
        .collect();
    let shards: Vec<_> = files.iter().filter(|(name, _)| name.contains('/')).collect();
    assert_eq!(shards, [&("flattened/000.jsonl".to_owned(), 0)]);
}

#[test]
fn stop_and_max_tokens_reach_the_wire() {
    let server = TestServer::start(|asked| {
        let seen = json!({"stop": asked.body["stop"], "max": asked.body["max_tokens"], "t": asked.body["temperature"],
                          "p": asked.body["top_p"], "seed": asked.body["seed"], "k": asked.body["top_k"]});
        Answer::text(seen.to_string())
    });
    let chain = format!(
        "name: t\nengines: {{e: {{backend: openai, model: m, endpoint: \"{}\"}}}}\nsteps:\n  - id: ask\n    engine: e\n    \
         user_prompt: hi\n    output_model: {{type: object}}\n    \
         sampling: {{stop: [END], max_tokens: 77, temperature: 0.5, top_p: 0.25, seed: 9, top_k: 3}}\n",
        server.url()
    );
    let (_bench, ran) = run(&chain, rows(1));
    assert_eq!(
        ran.lines("ask"),
        [r#"{"row_id":"0","stop":["END"],"max":77,"t":0.5,"p":0.25,"seed":9,"k":3}"#],
        "{}",
        ran.stderr
    );
}

#[test]
fn a_rerun_writes_the_same_bytes() {
    let chain = "name: t\nsteps:\n  - {id: n, apply: {jq: '. + {m: (.n * 2)}'}}\n";
    let first = Bench::new(chain, rows(1000));
    let ran = first.run(&["--batch-size", "3"]);
    let before = tree(&ran.out);
    std::fs::rename(&ran.out, first.dir.path().join("before")).expect("the folder moves");
    let ran = first.run(&["--batch-size", "999"]);
    assert_eq!(tree(&ran.out), before);
}

#[test]
fn the_shipped_chains_run() {
    let server = TestServer::start(crate::server::answer_from_schema);
    for (name, chain) in [
        ("reviews", include_str!("../../chains/reviews.yaml")),
        ("sentiment", include_str!("../../chains/sentiment.yaml")),
    ] {
        let chain = chain.replace("http://127.0.0.1:8080/v1", &server.url());
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models");
        let chain = chain.replace("../examples/models", models);
        let (_bench, ran) = run(&chain, include_str!("../../examples/reviews.jsonl"));
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        assert_eq!(ran.metadata()["rows"]["in"], 10);
    }
    assert_eq!(server.stats().answered, 20);
}
