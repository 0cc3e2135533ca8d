//! `chainette inspect --input`: rows are checked up to the first prompts.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{folder, invoke, listing};

const PREVIEW: &str = "\
input_model: {text: string, stars: integer?}
engines: {e: {backend: openai, model: m, endpoint: 'http://127.0.0.1:9/v1'}}
steps:
  - {id: tidy, apply: {jq: 'if .text == \"boom\" then error(\"boom\") elif .text == \"two\" then ., . else . end'}}
  - {id: keep, apply: {jq: 'select(.text != \"drop\")'}}
  - parallel:
      - branch: words
        join: words
        collect: true
        steps: [{id: word, apply: {jq: '.text | split(\" \")[] | {word: .}'}}]
      - branch: aside
        when: stars is defined
        steps: [{id: note, engine: e, user_prompt: 'Stars: {{ stars }} {{ auther|default(\"-\") }}'}]
  - {id: grade, engine: e, system_prompt: 'You grade.', user_prompt: '{{ text }} {{ author }} {{ words|length }}'}
  - {id: last, apply: {jq: .}}
";

const ROWS: &str = "\
{\"text\":\"good one\",\"stars\":5,\"author\":\"A\"}
{\"text\":\"no author\"}
{\"text\":\"boom\",\"author\":\"B\"}
{\"text\":\"drop\",\"author\":\"B\"}
{\"text\":\"two\",\"author\":\"B\"}

{\"text\":7}
not json
{\"text\":\"null author\",\"author\":null,\"stars\":1}
";

#[test]
fn rows_are_checked_up_to_the_first_prompts() {
    let dir = folder(&[("chain.yaml", PREVIEW), ("rows.jsonl", ROWS)]);
    let before = listing(dir.path());
    let (code, stdout, stderr) = invoke(dir.path(), &["inspect", "chain.yaml", "--input", "rows.jsonl"]);
    assert_eq!((code, stderr.as_str()), (3, ""), "{stdout}");
    insta::assert_snapshot!("rows_are_checked", stdout);
    let json = [
        "inspect",
        "chain.yaml",
        "--input",
        "rows.jsonl",
        "--format",
        "json",
    ];
    let (code, stdout, _) = invoke(dir.path(), &json);
    assert_eq!(code, 3);
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        (&found["rows"], &found["rows_failed"]),
        (&json!(8), &json!(5)),
        "{found:#}"
    );
    assert_eq!(
        found["nodes"]["last"]["rows"], 0,
        "no reply, no further: {found:#}"
    );
    assert_eq!(listing(dir.path()), before, "nothing is written");
}

#[test]
fn jq_reads_of_fields_that_no_row_has_are_named() {
    let cases = [
        (".auther", ".auther"),
        ("{title, by: .auther}", ".auther"),
        ("{title, auther}", ".auther"),
        (".auther.name | {name: .nome}", ".auther"),
        ("select(.titel != \"x\")", ".titel"),
        (".a.b // .title", ".a"),
        (". as $row | {x: .titel, y: $row.title}", ".titel"),
        ("if .titel then . else .title end", ".titel"),
        (". + {n: (.titel | length)}", ".titel"),
        (".title", ""),
        (".[\"title\"], .[.title]", ""),
        (".titel = .title", ""),
        ("has(\"titel\")", ""),
        ("{titel: .title} | .titel", ""),
        ("del(.titel)", ""),
        ("$row.chain_input.titel", ""),
    ];
    let rows = "{\"title\":\"x\",\"author\":{\"name\":\"y\"}}\n";
    for (program, missing) in cases {
        let chain = json!({"steps": [{"id": "n", "apply": {"jq": program}}]}).to_string();
        let dir = folder(&[("chain.yaml", &chain), ("rows.jsonl", rows)]);
        let args = [
            "inspect",
            "chain.yaml",
            "--input",
            "rows.jsonl",
            "--format",
            "json",
        ];
        let (_, stdout, stderr) = invoke(dir.path(), &args);
        let found: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{program}: {stderr}"));
        let found = found["never_found"].as_array().expect("a list");
        let reads: Vec<&str> = found.iter().filter_map(|miss| miss["read"].as_str()).collect();
        assert_eq!(reads.join(" "), missing, "{program}");
        if missing == ".auther" {
            assert_eq!(found[0]["help"], "did you mean `author`?");
        }
    }
}

#[test]
fn what_the_check_finds_is_what_a_run_finds() {
    // Without Steps the check goes all the way: its failures are those of errors/.
    let chain = "\
input_model: {n: integer}
steps:
  - {id: odd, apply: {jq: 'if .n % 5 == 0 then error(\"five\") elif .n % 3 == 0 then ., {n: 0} elif .n % 7 == 0 then empty else . end'}}
  - branch: b
    join: b
    when: n % 2 == 0
    steps: [{id: many, apply: {jq: 'range(if .n == 4 then 2 else 1 end) as $i | {n: $i}'}}]
  - branch: aside
    steps: [{id: strict, apply: {jq: 'if .n == 8 then {n: \"x\"} else . end'}, output_model: {n: integer}}]
  - {id: sum, when: n < 100, apply: {jq: '{s: (.n + ($row.b.n // 0))}'}}
";
    let rows: String = (1..40).map(|n| format!("{{\"n\":{n}}}\n")).collect::<String>() + "{\"n\":\"x\"}\n{\n";
    let dir = folder(&[("chain.yaml", chain), ("rows.jsonl", &rows)]);
    let args = [
        "inspect",
        "chain.yaml",
        "--input",
        "rows.jsonl",
        "--format",
        "json",
    ];
    let (code, stdout, stderr) = invoke(dir.path(), &args);
    assert_eq!(code, 3, "{stderr}");
    let found: Value = serde_json::from_str(&stdout).expect("JSON");
    let (code, _, stderr) = invoke(dir.path(), &["run", "chain.yaml", "rows.jsonl", "out"]);
    assert_eq!(code, 3, "{stderr}");
    let errors = fs::read_to_string(dir.path().join("out/errors/000.jsonl")).expect("errors");
    let errors: Vec<Value> = errors
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let metadata = fs::read_to_string(dir.path().join("out/metadata.json")).expect("metadata");
    let metadata: Value = serde_json::from_str(&metadata).expect("JSON");
    let groups = found["failures"].as_array().expect("failures");
    let total: u64 = groups.iter().map(|g| g["count"].as_u64().expect("a count")).sum();
    assert_eq!(total, errors.len() as u64, "{groups:#?}\n{errors:#?}");
    for group in groups {
        let same = |e: &&Value| e["node"] == group["node"] && e["kind"] == group["kind"];
        let count = errors.iter().filter(same).count() as u64;
        assert_eq!(group["count"], count, "{group:#}");
        for example in group["examples"].as_array().expect("examples") {
            let known = errors.iter().any(|e| {
                e["row_id"] == example["row_id"] && e["line"] == example["line"] && e["kind"] == group["kind"]
            });
            assert!(known, "{example:#}");
        }
    }
    for node in ["odd", "many", "strict", "sum"] {
        for fate in ["rows", "filtered", "skipped", "failed", "emitted"] {
            assert_eq!(
                found["nodes"][node][fate], metadata["nodes"][node][fate],
                "{node} {fate}"
            );
        }
    }
}

#[test]
fn good_rows_are_0_and_bad_input_is_2() {
    let dir = folder(&[
        ("chain.yaml", "steps: [{id: a, apply: {jq: .}}]\n"),
        ("bad.yaml", "steps: [{id: a, aply: {jq: .}}]\n"),
        ("rows.jsonl", "{\"a\":1}\n{\"a\":2}\nbad\n"),
        ("empty.jsonl", ""),
        ("rows.txt", "{}\n"),
    ]);
    let code = |args: &[&str]| {
        let (code, _, stderr) = invoke(dir.path(), &[&["inspect"], args].concat());
        (code, stderr)
    };
    assert_eq!(
        code(&["chain.yaml", "--input", "rows.jsonl", "--rows", "2"]),
        (0, String::new())
    );
    assert_eq!(code(&["chain.yaml", "--input", "rows.jsonl"]).0, 3);
    assert_eq!(
        code(&["chain.yaml", "--input", "empty.jsonl"]),
        (0, String::new())
    );
    for args in [
        &["bad.yaml", "--input", "rows.jsonl"][..],
        &["chain.yaml", "--input", "gone.jsonl"],
        &["chain.yaml", "--input", "rows.txt"],
        &["chain.yaml", "--input", "rows.jsonl", "--format", "dot"],
    ] {
        let (code, stderr) = code(args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.to_lowercase().contains("error"), "{args:?}: {stderr}");
    }
}
