//! `chainette verify`: every finished run is proven, and whatever is done to one is found.

use std::fs;
use std::io::Write;
use std::path::Path;

use chainette::audit::{Verdict, verify};
use chainette::sink::{Rows, Shard, Sink};
use serde_json::{Value, json};

use crate::harness::{self, Bench, Ran, echo, two_steps};
use crate::tampering::Out;

/// The verdict on a run that nobody touched; the error is what is wrong with it.
pub fn proven(out: &Path) -> Result<Verdict, String> {
    let verdict = verify(out).map_err(|error| error.to_string())?;
    let problems: Vec<String> = verdict.problems.iter().map(ToString::to_string).collect();
    if verdict.proven && problems.is_empty() {
        Ok(verdict)
    } else {
        Err(format!("not proven:\n{}", problems.join("\n")))
    }
}

/// Every kind of fate: bad input, fan-out, filtered, skipped and failed rows, branches of every kind.
const BUSY: &str = "\
name: busy
input_model: {n: integer}
steps:
  - id: fan
    apply: {jq: 'if .n == 5 then error(\"five\") elif .n % 4 == 3 then empty elif .n % 4 == 2 then ({n, k: 0}, {n, k: 1}) else {n, k: 0} end'}
    output_model: {n: integer, k: integer}
  - parallel:
      - branch: even
        join: even
        when: fan.n % 2 == 0
        steps:
          - {id: half, apply: {jq: '{half: (.n / 2)}'}, output_model: {half: number}}
          - {id: check, apply: {jq: 'if .half == 7 then error(\"seven\") else . end'}, yield_output: false}
      - branch: audit
        steps:
          - {id: note, apply: {jq: 'if .n == 8 then error(\"eight\") else {flag: true} end'}}
      - branch: list
        join: list
        collect: true
        steps:
          - {id: many, apply: {jq: 'range(.n % 3) | {i: .}'}}
  - {id: last, when: fan.n > 2, apply: {jq: '{text: \"number \\(.n)\"}'}}
";

/// Rows for [`BUSY`], of which two are bad.
fn busy_rows() -> String {
    let rows = (0..24).map(|n| match n {
        9 => "{\"n\":".to_owned(),
        10 => "{\"n\":\"ten\"}".to_owned(),
        n => format!("{{\"n\":{n}}}"),
    });
    rows.map(|row| row + "\n").collect()
}

/// A finished run of [`BUSY`].
pub fn busy(extra: &[&str]) -> (Bench, Ran) {
    let bench = Bench::new(BUSY, busy_rows());
    let args = ["--batch-size", "5", "--max-lines-per-file", "7", "--quiet"];
    let ran = bench.run(&[&args, extra].concat());
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    proven(&ran.out).expect("the run is proven");
    (bench, ran)
}

/// A Parquet null stands for a null and for a field that was left out.
#[test]
fn nulls_of_parquet_are_taken_for_what_they_were() {
    let chain = "\
name: nulls
models:
  Maybe:
    type: object
    required: [a, deep, list]
    additionalProperties: false
    properties:
      a: {type: [integer, \"null\"]}
      b: {type: integer}
      deep: {type: object, required: [x], properties: {x: {type: [string, \"null\"]}, y: {type: string}}}
      list: {type: array, items: {type: object, required: [x], properties: {x: {type: [boolean, \"null\"]}}}}
      either: {anyOf: [{type: object, required: [z], properties: {z: {type: [string, \"null\"]}}}, {type: integer}]}
steps:
  - {id: n, apply: {jq: .}, output_model: Maybe}
";
    let rows = [
        json!({"a": 1, "b": 2, "deep": {"x": "x", "y": "y"}, "list": [{"x": true}], "either": 3}),
        json!({"a": null, "deep": {"x": null}, "list": [{"x": null}, {"x": false}], "either": {"z": null}}),
        json!({"a": 3, "deep": {"x": null, "y": "y"}, "list": []}),
    ];
    let bench = Bench::new(chain, rows.map(|row| format!("{row}\n")).concat());
    let ran = bench.run(&["--format", "parquet"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let verdict = proven(&ran.out).expect("the run is proven");
    assert_eq!((verdict.rows, verdict.lines, verdict.shards), (3, 6, 2));
}

#[test]
fn what_is_proven_is_said() {
    let (bench, _ran) = busy(&[]);
    let said = |bench: &Bench, args: &[&str]| {
        let ran = bench.invoke(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
        ran.stdout
    };
    insta::assert_snapshot!("proof", said(&bench, &["verify", "out/"]));
    let verdict: Value = serde_json::from_str(&said(&bench, &["verify", "out", "--json"])).expect("JSON");
    assert_eq!(verdict["proven"], true);
    insta::assert_snapshot!("proof_json", json_of(&verdict));

    // The answers may be given back.
    let _none = fs::remove_dir_all(bench.dir.path().join("out/.chainette/answers"));
    assert!(said(&bench, &["verify", "out"]).starts_with("out: 24 rows, "));

    let empty = Bench::new(harness::COPY, "");
    assert_eq!(empty.run(&["--quiet"]).code, 0);
    insta::assert_snapshot!("proof_of_nothing", said(&empty, &["verify", "out"]));
}

/// Without the run's own name.
fn json_of(verdict: &Value) -> String {
    let mut verdict = verdict.clone();
    verdict["run_id"] = "[run]".into();
    format!("{verdict:#}")
}

#[test]
fn problems_are_told_with_a_next_step() {
    let (bench, ran) = busy(&[]);
    let out = Out(&ran.out);
    out.lines("fan/001.jsonl", |lines| lines.swap(1, 2));
    let ran = bench.invoke(&["verify", "out"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    insta::assert_snapshot!("problems", ran.stdout);
    let ran = bench.invoke(&["verify", "out", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    let verdict: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(verdict["proven"], false);
    insta::assert_snapshot!("problems_json", format!("{:#}", verdict["problems"]));
}

#[test]
fn a_run_that_is_not_at_its_end_says_so() {
    let (bench, ran) = busy(&[]);
    let out = Out(&ran.out);
    let mut told = String::new();
    let mut say = |name: &str, code: i32| {
        let ran = bench.invoke(&["verify", "out"]);
        assert_eq!(ran.code, code, "{name}: {}{}", ran.stdout, ran.stderr);
        told += &format!("# {name}\n{}{}\n", ran.stdout, ran.stderr);
    };
    fs::create_dir(out.path(".chainette/swap.json")).expect("a folder can be made");
    say("new outputs are being put in place", 1);
    fs::remove_dir(out.path(".chainette/swap.json")).expect("it is empty");
    let metadata = out.text("metadata.json");
    out.json("metadata.json", |metadata| metadata["state"] = "running".into());
    say("it was stopped", 1);
    let lock = fs::File::open(out.path(".chainette/lock")).expect("the lock file");
    lock.lock().expect("it can be locked");
    say("it is under way", 1);
    drop(lock);
    out.remove("metadata.json");
    say("there is no metadata yet", 1);
    out.write("metadata.json", metadata.replace("\"files\": 2", "\"files\": 1"));
    say("another version made it", 1);
    out.write("metadata.json", "[]");
    say("the metadata is something else", 2);
    fs::remove_dir_all(&ran.out).expect("OUT can be removed");
    say("there is nothing", 2);
    fs::create_dir(&ran.out).expect("a folder can be made");
    say("an empty folder", 2);
    fs::remove_dir(&ran.out).expect("it is empty");
    bench.write("out", "a file");
    say("a file", 2);
    insta::assert_snapshot!(told);
}

/// Whatever a run may be told to leave out, it is proven; and so it is at each `--limit` on its way.
#[test]
fn every_way_to_run_is_proven() {
    for format in ["jsonl", "parquet"] {
        for more in [&[][..], &["--no-flattened"]] {
            let bench = Bench::new(BUSY, busy_rows());
            let args = [&["--format", format, "--max-lines-per-file", "3"], more].concat();
            for limit in ["0", "1", "7", "20", "24", "100"] {
                let ran = bench.run(&[&args[..], &["--limit", limit]].concat());
                assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
                let verdict = proven(&ran.out).unwrap_or_else(|error| panic!("{args:?} {limit}: {error}"));
                assert_eq!(verdict.rows, limit.parse::<u64>().expect("a number").min(24));
            }
            let ran = bench.run(&args);
            assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
            assert_eq!(proven(&ran.out).expect("proven").rows, 24);
        }
    }
}

/// A condition of a group that cannot be evaluated, nested branches, a joined branch that leaves too much, Steps
/// that are nulled.
#[test]
fn failures_in_branches_are_followed() {
    let chain = json!({
        "name": "deep",
        "steps": [
            {"id": "first", "apply": {"jq": "if .n % 5 == 4 then (., {n: (.n + 1), t}) else . end"}},
            {"when": "n != 3 and (n != 6 or item.t < 1)", "parallel": [
                {"branch": "outer", "join": "outer", "steps": [
                    {"parallel": [
                        {"branch": "inner", "when": "n != 2 and (n != 8 or item.t < 1)", "steps": [
                            {"id": "odd", "apply": {"jq": "if .n % 2 == 1 then error(\"odd\") else (., .) end"}},
                            {"branch": "deeper", "when": "n != 9", "steps": [{"id": "low", "apply": {"jq": "{n}"}}]},
                        ]},
                        {"branch": "many", "join": "many", "steps": [
                            {"id": "copies", "apply": {"jq": "if .n == 7 then (., .) else . end"}},
                        ]},
                    ]},
                    {"id": "mid", "apply": {"jq": "{m: .n}"}},
                ]},
                {"branch": "all", "join": "all", "collect": true, "steps": [
                    {"id": "each", "apply": {"jq": "if .n == 1 then error(\"one\") else range(.n % 3) end"}},
                ]},
            ]},
            {"id": "end", "apply": {"jq": "."}},
        ],
    });
    let rows: String = (0..30)
        .map(|n| format!("{{\"n\":{},\"t\":\"a\"}}\n", n % 11))
        .collect();
    let bench = Bench::new(&chain.to_string(), rows);
    let ran = bench.run(&["--max-errors", "100%", "--batch-size", "4"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let verdict = proven(&ran.out).expect("the run is proven");
    let kinds: Vec<&str> = verdict.errors.keys().map(String::as_str).collect();
    for kind in ["template", "apply", "join_cardinality"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let outcomes = Out(&ran.out).text(".chainette/outcomes");
    for entry in ["g", "f", "s"] {
        let found = outcomes.lines().any(|line| {
            let line: Value = serde_json::from_str(line).expect("a line is JSON");
            let branches = line["branches"].as_object().expect("branches");
            branches
                .values()
                .any(|fates| fates.as_str().is_some_and(|fates| fates.contains(entry)))
        });
        assert!(found, "no entry {entry} in {outcomes}");
    }
}

/// A run whose files only their author can read has digests and counts.
#[test]
fn files_of_a_custom_sink_have_digests_and_counts() {
    let bench = Bench::new(BUSY, busy_rows());
    let path = |name: &str| bench.dir.path().join(name);
    let chain = chainette::chain::Chain::file(path("chain.yaml"))
        .build()
        .expect("the chain is sound");
    let mut job = chain.job(path("in.jsonl"), path("out")).sink(Ids);
    job.config.batch_size = 5;
    let stats = job.run().expect("it runs").into_result().expect("it ends");
    assert_eq!(stats.rows_in, 24);
    let verdict = proven(&path("out")).expect("the run is proven");
    assert_eq!((verdict.sink.as_deref(), verdict.lines), (Some("ids-1"), 6));
    let mut told = bench.invoke(&["verify", "out"]).stdout;
    let whole = Out(&path("out")).bytes("fan/000.ids");
    Out(&path("out")).write("fan/000.ids", "0\n");
    told += &bench.invoke(&["verify", "out"]).stdout;
    let dir = path("out");
    let out = Out(&dir);
    out.write("fan/000.ids", whole);
    out.lines(".chainette/outcomes", |lines| drop(lines.pop()));
    out.outcomes("", "");
    told += &bench.invoke(&["verify", "out"]).stdout;
    insta::assert_snapshot!(told);
}

/// A file of row ids.
struct Ids;

impl Sink for Ids {
    fn name(&self) -> &str {
        "ids-1"
    }

    fn extension(&self) -> &str {
        "ids"
    }

    fn write(
        &self,
        _shard: &Shard<'_>,
        rows: &mut Rows<'_>,
        out: &mut dyn Write,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        for row in rows {
            writeln!(out, "{}", row?.to_json()["row_id"])?;
        }
        Ok(())
    }
}

/// What is sealed is sealed for good: no key of the metadata that a kill may change stands where it should not, and
/// no secret stands anywhere.
#[test]
fn metadata_names_engines_and_no_secrets() {
    let server = echo();
    let mut chain = two_steps(&server);
    chain["engines"]["e"]["api_key_env"] = "VERIFY_KEY".into();
    let bench = Bench::new(&chain.to_string(), harness::rows(4));
    let mut command = bench.command(&["--quiet"]);
    let output = command.env("VERIFY_KEY", "hunter2").output().expect("it starts");
    let ran = bench.ran(&output);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let metadata = ran.metadata();
    assert!(!metadata.to_string().contains("hunter"), "{metadata:#}");
    assert_eq!(metadata["engines"]["e"]["model"], "m");
    let configuration = &metadata["timings"]["configuration"];
    assert_eq!(configuration["engines"]["e"]["concurrency"], 4);
    assert_eq!(configuration["engines"]["e"]["endpoint"], server.url());
    assert_eq!(configuration["batch_size"], 256);
    let verdict = proven(&ran.out).expect("the run is proven");
    assert_eq!(
        verdict.nodes["second"].completion_tokens,
        metadata["nodes"]["second"]["completion_tokens"]
    );
}
