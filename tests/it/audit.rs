//! A finished OUT, read again through the library.

use std::fs;
use std::path::Path;

use chainette::audit::{AuditError, Line, Outputs};
use chainette::row::RowId;
use serde_json::{Value, json};

use crate::harness::{Bench, COPY, rows};

fn open(bench: &Bench, out: &str) -> Outputs {
    Outputs::open(&bench.dir.path().join(out)).expect("a finished run")
}

fn lines(out: &Outputs, folder: &str) -> Vec<Line> {
    let lines = out.lines(folder).expect("a format of the house");
    lines.collect::<Result<_, _>>().expect("sound shards")
}

/// What is said of an OUT, without the folder it lies in.
fn said(bench: &Bench, error: &AuditError) -> String {
    let dir = bench.dir.path().display().to_string();
    format!("{error}\n").replace(&dir, "")
}

/// A value without the fields that are null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            fields.map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

#[test]
fn the_lines_are_those_of_the_shards() {
    let chain = "name: t\nsteps:\n  - {id: two, apply: {jq: 'range(.a) | {n: .}'}}\n  \
                 - {id: quiet, yield_output: false, apply: {jq: .}}\n  \
                 - {id: last, apply: {jq: 'if .n == 3 then error(\"three\") else . end'}}\n";
    let bench = Bench::new(chain, rows(13));
    let ran = bench.run(&["--max-lines-per-file", "7"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let out = open(&bench, "out");
    assert_eq!(out.folders(), ["two", "last", "flattened", "errors"]);
    assert_eq!(
        (out.rows.read, out.rows.errors, out.options.max_lines_per_file),
        (13, 9, 7)
    );
    for folder in out.folders() {
        let found = lines(&out, &folder);
        let raw: Vec<&str> = found.iter().map(|line| line.raw.as_str()).collect();
        assert_eq!(raw, ran.lines(&folder), "{folder}");
        assert!(found.is_sorted_by(|a, b| a.row_id < b.row_id), "{folder}");
    }
    let ninth = &lines(&out, "two")[8];
    assert_eq!((ninth.row_id.to_string().as_str(), ninth.line), ("4.2", 2));
    assert!(ninth.shard.ends_with("out/two/001.jsonl"), "{ninth:?}");
    assert_eq!(lines(&out, "no such folder").len(), 0);
}

#[test]
fn row_ids_are_in_the_order_of_the_outputs() {
    let ids = ["0", "2", "2.0", "2.0.7", "2.2", "2.10", "10"];
    let parsed: Vec<RowId> = ids.iter().map(|id| RowId::parse(id).expect("a row id")).collect();
    assert!(parsed.is_sorted());
    let printed: Vec<String> = parsed.iter().map(RowId::to_string).collect();
    assert_eq!(printed, ids);
    for text in [
        "",
        ".",
        "1.",
        ".1",
        "01",
        "1.02",
        "+1",
        "1.-2",
        "1 ",
        "a",
        "1.4294967296",
        "18446744073709551616",
    ] {
        assert_eq!(RowId::parse(text), None, "{text:?}");
    }
}

/// Typed, mixed, nested, rescued: what Parquet holds is read as the JSON it was made of.
#[test]
fn parquet_is_read_as_the_json_it_was() {
    let mut input = String::new();
    for n in 0..12_000_u64 {
        let mut row = json!({"n": n, "text": format!("a\"{n}\n"), "mixed": if n % 2 == 0 { json!(n) } else { json!("x") },
            "list": [1, null, {"b": [{"m": n % 3}, {"m": "t"}]}], "deep": {"never": null, "some": if n % 5 == 0 { json!(true) } else { Value::Null }},
            "_rescued": "mine", "row_id": n});
        if n == 11_000 {
            row = json!({"n": "no number", "late": {"x": [1.5, null, {"y": null}]}, "_rescued": [7], "text": null});
        }
        input += &format!("{row}\n");
    }
    let big = "{\"n\":12345678901234567890123,\"text\":\"big\"}\n";
    let bench = Bench::new(COPY, input + big);
    for (out, format) in [("a", "jsonl"), ("b", "parquet")] {
        let ran = bench.invoke(&[
            "run",
            "chain.yaml",
            "in.jsonl",
            out,
            "--format",
            format,
            "--max-lines-per-file",
            "5000",
        ]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    let (a, b) = (open(&bench, "a"), open(&bench, "b"));
    for folder in ["n", "flattened"] {
        let (a, b) = (lines(&a, folder), lines(&b, folder));
        assert_eq!((a.len(), b.len()), (12_001, 12_001));
        for (a, b) in a.iter().zip(&b) {
            assert_eq!((&a.row_id, a.line), (&b.row_id, b.line));
            let (jsonl, parquet) = (value(&a.raw), value(&b.raw));
            // What is rescued, or in a column of JSON text, is the text it came as, its nulls too.
            let jsonl = if a.ordinal() == 11_000 {
                without_null_columns(jsonl)
            } else {
                without_nulls(jsonl)
            };
            assert_eq!(jsonl, parquet, "{}", a.raw);
        }
        let last = &b[12_000].raw;
        assert!(last.contains("12345678901234567890123"), "{last}");
    }
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("a line is JSON")
}

/// Only fields of the line itself that are null are left out.
fn without_null_columns(line: Value) -> Value {
    match line {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        other => other,
    }
}

#[test]
fn what_is_no_finished_run() {
    let bench = Bench::new(COPY, rows(20));
    assert_eq!(bench.run(&["--max-lines-per-file", "8"]).code, 0);
    let path = |name: &str| bench.dir.path().join(name);
    let mut text = String::new();
    let mut refused = |name: &str| {
        let error = Outputs::open(&path(name)).expect_err(name);
        text += &said(&bench, &error);
    };
    refused("no/such/out");
    refused("chain.yaml");
    refused(".");
    let metadata = fs::read_to_string(path("out/metadata.json")).expect("metadata");
    let put = |text: &str| fs::write(path("out/metadata.json"), text).expect("OUT is writable");
    put(&metadata.replacen("\"finished\"", "\"running\"", 1));
    refused("out");
    put("{\n  \"run_id\": \"0123");
    refused("out");
    put("{\"name\": \"other\"}");
    refused("out");
    fs::remove_file(path("out/metadata.json")).expect("it can be removed");
    refused("out");
    put(&metadata.replacen("\"tokens\"", "\"coins\"", 1));
    refused("out");
    put(&metadata);
    fs::rename(path("out/graph.json"), path("graph.json")).expect("it can be moved");
    refused("out");
    fs::write(path("out/graph.json"), "[]").expect("OUT is writable");
    refused("out");
    insta::assert_snapshot!(text);
    fs::rename(path("graph.json"), path("out/graph.json")).expect("it can be moved");
    fs::remove_dir_all(path("out/.chainette")).expect("it can be removed");
    assert_eq!(lines(&open(&bench, "out"), "n").len(), 20);
}

/// What is done to a shard.
type Harm<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn shards_that_are_not_what_was_written() {
    let edit = |path: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).expect("a shard");
        assert!(text.contains(from) && from.len() == to.len());
        fs::write(path, text.replacen(from, to, 1)).expect("OUT is writable");
    };
    let harms: [Harm<'_>; 8] = [
        ("removed", &|path| fs::remove_file(path).expect("a shard")),
        ("cut", &|path| {
            let file = fs::File::options().write(true).open(path).expect("a shard");
            file.set_len(30).expect("it can be cut");
        }),
        ("no JSON", &|path| edit(path, "\"a\":9", "\"a\":]")),
        ("two objects", &|path| {
            edit(path, "8}\n{\"row_id\"", "8}, \"row_id\"");
        }),
        ("no row id", &|path| {
            edit(path, "\"row_id\":\"10\"", "\"how_id\":\"10\"");
        }),
        ("another row id", &|path| {
            edit(path, "\"row_id\":\"10\"", "\"row_id\":\"1x\"");
        }),
        ("a line less", &|path| {
            edit(
                path,
                "9}\n{\"row_id\":\"10\",\"a\":10}\n",
                &format!("9}}{}\n", " ".repeat(23)),
            );
        }),
        ("no end of line", &|path| {
            let text = fs::read_to_string(path).expect("a shard");
            fs::write(path, text.trim_end().to_owned() + " ").expect("OUT is writable");
        }),
    ];
    let mut text = String::new();
    for (what, harm) in harms {
        let bench = Bench::new(COPY, rows(20));
        assert_eq!(bench.run(&["--max-lines-per-file", "8"]).code, 0);
        harm(&bench.dir.path().join("out/n/001.jsonl"));
        let out = open(&bench, "out");
        let mut found = out.lines("n").expect("JSON lines");
        let error = found.find_map(Result::err).expect(what);
        assert!(found.next().is_none(), "{what}");
        let sizes = out.check_present().is_err();
        text += &format!("{what} (seen by its size: {sizes})\n{}", said(&bench, &error));
    }
    insta::assert_snapshot!(text);
    let bench = Bench::new(COPY, rows(20));
    assert_eq!(bench.run(&["--format", "parquet"]).code, 0);
    let path = bench.dir.path().join("out/n/000.parquet");
    let mut bytes = fs::read(&path).expect("a shard");
    bytes.iter_mut().skip(4).take(200).for_each(|byte| *byte = 0xaa);
    fs::write(&path, bytes).expect("OUT is writable");
    let error = open(&bench, "out")
        .lines("n")
        .expect("Parquet")
        .find_map(Result::err);
    let error = error.expect("what was overwritten cannot be read");
    let AuditError::Damaged { path, .. } = &error else {
        panic!("{error}")
    };
    assert!(path.ends_with("out/n/000.parquet"), "{error}");
}
