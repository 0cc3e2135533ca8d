//! `--format parquet`: types, names and rescued values.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use arrow::json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Value, json};

use crate::harness::{Bench, Ran, tree};
use crate::parquet_resume::busy;
use crate::server::{Answer, TestServer};

pub const PARQUET: [&str; 2] = ["--format", "parquet"];

pub fn run(bench: &Bench, extra: &[&str]) -> Ran {
    let mut args = PARQUET.to_vec();
    args.extend(extra);
    bench.run(&args)
}

pub fn shards(out: &Path, folder: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(out.join(folder)) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a folder entry").path()).collect();
    found.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    found
}

pub fn batches(path: &Path) -> Vec<RecordBatch> {
    let file = fs::File::open(path).expect("a shard can be opened");
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a shard is Parquet");
    let reader = reader.build().expect("a shard can be read");
    reader.map(|batch| batch.expect("a batch")).collect()
}

/// The rows of all shards of a folder; null columns left out.
pub fn rows(out: &Path, folder: &str) -> Vec<Value> {
    let mut text = Vec::new();
    for shard in shards(out, folder) {
        let mut writer = LineDelimitedWriter::new(&mut text);
        for batch in batches(&shard) {
            writer.write(&batch).expect("a batch can be printed");
        }
        writer.finish().expect("batches can be printed");
    }
    let text = String::from_utf8(text).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// `name: type` of every column, the same in all shards of the folder.
pub fn types(out: &Path, folder: &str) -> Vec<String> {
    let mut all = shards(out, folder).into_iter().map(|path| {
        let file = fs::File::open(path).expect("a shard can be opened");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("a shard is Parquet");
        let fields = reader.schema().fields().clone();
        fields
            .iter()
            .map(|f| format!("{}: {}", f.name(), spell(f.data_type())))
            .collect::<Vec<_>>()
    });
    let first = all.next().expect("the folder has a shard");
    assert!(all.all(|other| other == first), "all shards have one schema");
    first
}

fn spell(kind: &DataType) -> String {
    match kind {
        DataType::List(item) => format!("[{}]", spell(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|f| format!("{}: {}", f.name(), spell(f.data_type())))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

pub fn warnings(ran: &Ran) -> Vec<String> {
    let lines = ran
        .stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["event"] == "warning")
        .map(|line| line["message"].as_str().expect("a message").to_owned())
        .collect()
}

pub fn jq(program: &str) -> String {
    json!({"name": "t", "steps": [{"id": "a", "apply": {"jq": program}}]}).to_string()
}

pub fn rescued(row: &Value) -> Value {
    serde_json::from_str(row["_rescued"].as_str().expect("something was rescued")).expect("JSON text")
}

#[test]
fn types_are_inferred() {
    let input = [
        r#"{"i":1,"f":1,"s":"a","b":true,"mixed":1,"none":null,"obj":{"x":1,"deep":{"y":[1,2]}},"list":[1,2.5],"objs":[{"k":"v"}],"empty":{},"big":12345678901234567890123,"wide":9007199254740993,"tags":[]}"#,
        r#"{"i":-9223372036854775808,"f":2.50,"s":"\u00e9\ud83d\ude00\n","b":null,"mixed":"two","none":null,"obj":{"x":2,"z":"new"},"list":[],"objs":[{"k":null},{"l":1.0}],"empty":{},"big":1,"wide":0.5,"tags":null}"#,
        r#"{"i":3}"#,
    ];
    let bench = Bench::new(&jq("{n: 1}"), input.join("\n"));
    let ran = run(&bench, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        types(&ran.out, "flattened"),
        [
            "row_id: Utf8",
            "chain_input.i: Int64",
            "chain_input.f: Float64",
            "chain_input.s: Utf8",
            "chain_input.b: Boolean",
            "chain_input.mixed: Utf8",
            "chain_input.none: Utf8",
            "chain_input.obj: {x: Int64, deep: {y: [Int64]}, z: Utf8}",
            "chain_input.list: [Float64]",
            "chain_input.objs: [{k: Utf8, l: Float64}]",
            "chain_input.empty: Utf8",
            "chain_input.big: Utf8",
            "chain_input.wide: Utf8",
            "chain_input.tags: [Utf8]",
            "a.n: Int64",
            "_rescued: Utf8",
        ]
    );
    let found = rows(&ran.out, "flattened");
    assert_eq!(
        found[0],
        json!({"row_id": "0", "chain_input.i": 1, "chain_input.f": 1.0, "chain_input.s": "a", "chain_input.b": true,
            "chain_input.mixed": "1", "chain_input.obj": {"x": 1, "deep": {"y": [1, 2]}}, "chain_input.list": [1.0, 2.5],
            "chain_input.objs": [{"k": "v"}], "chain_input.empty": "{}",
            "chain_input.big": "12345678901234567890123", "chain_input.wide": "9007199254740993",
            "chain_input.tags": [], "a.n": 1})
    );
    assert_eq!(
        found[1],
        json!({"row_id": "1", "chain_input.i": i64::MIN, "chain_input.f": 2.5, "chain_input.s": "é😀\n",
            "chain_input.mixed": "\"two\"", "chain_input.obj": {"x": 2, "z": "new"}, "chain_input.list": [],
            "chain_input.objs": [{}, {"l": 1.0}], "chain_input.empty": "{}", "chain_input.big": "1",
            "chain_input.wide": "0.5", "a.n": 1})
    );
    assert_eq!(found[2], json!({"row_id": "2", "chain_input.i": 3, "a.n": 1}));
}

#[test]
fn types_come_from_the_models_even_without_a_row() {
    let server = TestServer::start(|_| Answer::text("{}"));
    let chain = json!({
        "name": "t",
        "input_model": {"text": "string", "n": "integer?", "tags": ["string"], "any": "any", "free": "object"},
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url()}},
        "steps": [
            {"id": "plain", "engine": "e", "user_prompt": "{{ text }}"},
            {"id": "made", "engine": "e", "user_prompt": "{{ text }}", "output_model": {
                "type": "object", "required": ["label"], "additionalProperties": false,
                "properties": {
                    "label": {"enum": ["a", "b", null]}, "level": {"enum": [1, 2]}, "score": {"type": ["number", "null"]},
                    "either": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
                    "mixed": {"type": ["integer", "string"]},
                    "part": {"$ref": "#/$defs/part"}, "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}},
                    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "loop": {"$ref": "#/$defs/loop"},
                },
                "$defs": {
                    "part": {"type": "object", "properties": {"x": {"type": "boolean"}}, "additionalProperties": false},
                    "loop": {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/loop"}}},
                },
            }},
            {"branch": "side", "join": "notes", "collect": true, "steps": [
                {"id": "note", "apply": {"jq": "{m: 1}"}, "output_model": {"m": "integer"}},
            ]},
        ],
    });
    let bench = Bench::new(&chain.to_string(), "");
    let ran = run(&bench, &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        types(&ran.out, "flattened"),
        [
            "row_id: Utf8",
            "chain_input.text: Utf8",
            "chain_input.n: Int64",
            "chain_input.tags: [Utf8]",
            "chain_input.any: Utf8",
            "chain_input.free: Utf8",
            "plain.text: Utf8",
            "made.label: Utf8",
            "made.level: Int64",
            "made.score: Float64",
            "made.either: Float64",
            "made.mixed: Utf8",
            "made.part: {x: Boolean}",
            "made.parts: [{x: Boolean}]",
            "made.map: Utf8",
            "made.loop: {v: Int64, next: Utf8}",
            "notes: [{m: Int64}]",
            "_rescued: Utf8",
        ]
    );
    assert_eq!(rows(&ran.out, "flattened").len(), 0);
    let folders: Vec<String> = tree(&ran.out).into_keys().collect();
    assert_eq!(folders, ["flattened/000.parquet", "graph.json", "metadata.json"]);
    let shard = &ran.metadata()["shards"]["flattened"][0];
    let bytes = fs::read(ran.out.join("flattened/000.parquet")).expect("the shard is there");
    assert_eq!(shard["blake3"], blake3::hash(&bytes).to_hex().as_str());
    assert_eq!(shard["bytes"], bytes.len());
}

#[test]
fn the_columns_are_those_of_jsonl() {
    let server = TestServer::start(|asked| Answer::text(json!({"label": asked.user()}).to_string()));
    let chain = json!({
        "name": "t",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url()}},
        "steps": [
            {"id": "own", "apply": {"jq": "{row_id: .n, _rescued: 1, n: .n, same: .same}"}},
            {"id": "some", "when": "own.n % 2 == 0", "engine": "e", "user_prompt": "{{ own.n }}", "output_model": {"label": "string"}},
            {"id": "hidden", "yield_output": false, "apply": {"jq": "."}},
            {"parallel": [
                {"branch": "one", "join": "uno", "when": "own.n % 3 == 0", "steps": [{"id": "x", "apply": {"jq": "{v: [.n, null], o: {w: .n}}"}}]},
                {"branch": "all", "join": "many", "collect": true, "steps": [{"id": "y", "apply": {"jq": "range($chain_input.n % 3) as $k | {k: $k}"}}]},
            ]},
            {"id": "bad", "apply": {"jq": "if $chain_input.n == 4 then error(\"no\") else {last: true} end"}},
        ],
    });
    let mut input: String = (0..12).fold(String::new(), |mut text, n| {
        writeln!(
            text,
            "{{\"n\":{n},\"same\":{{\"k\":1,\"k\":{n}}},\"a\\u0062c\":\"\\u0041\"}}"
        )
        .expect("a string grows");
        text
    });
    input += "not json\n";
    let bench = Bench::new(&chain.to_string(), input);
    let parquet = run(&bench, &["--max-lines-per-file", "5"]);
    assert_eq!(parquet.code, 3, "{}", parquet.stderr);
    assert!(
        shards(&parquet.out, "errors")[0].ends_with("000.jsonl"),
        "errors/ is always JSON lines"
    );
    let kept: BTreeMap<_, _> = ["own", "some", "x", "y", "bad", "flattened"]
        .into_iter()
        .map(|folder| (folder, rows(&parquet.out, folder)))
        .collect();
    assert_eq!(shards(&parquet.out, "own").len(), 3);
    let jsonl = bench.run(&["--overwrite"]);
    for (folder, found) in kept {
        let expected: Vec<Value> = jsonl
            .values(folder)
            .into_iter()
            .map(|mut row| {
                let fields = row.as_object_mut().expect("an object");
                if let Some(value) = fields.shift_remove("_rescued") {
                    fields.insert(format!("{folder}._rescued"), value);
                }
                without_nulls(&row)
            })
            .collect();
        assert_eq!(
            found.iter().map(without_nulls).collect::<Vec<_>>(),
            expected,
            "{folder}"
        );
    }
}

/// Readers of Arrow leave null fields out.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields
                .map(|(key, value)| (key.clone(), without_nulls(value)))
                .collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[test]
fn what_comes_too_late_is_rescued_with_one_warning_per_column() {
    let mut input = String::new();
    for n in 0..10_000 {
        writeln!(input, "{{\"i\":{n},\"o\":{{\"x\":1,\"y\":[1]}}}}").expect("a string grows");
    }
    for late in [
        r#"{"i":"text","o":{"x":1,"y":[2]}}"#,
        r#"{"i":1.5,"o":{"x":1,"more":2}}"#,
        r#"{"i":2.0,"o":{"x":"1"}}"#,
        r#"{"i":9223372036854775808,"o":[]}"#,
        r#"{"i":null,"o":{"y":[1,"2"]},"new":{"a": 1.10}}"#,
        r#"{"i":7,"o":{"y":[3]},"new":2}"#,
    ] {
        input += late;
        input.push('\n');
    }
    let bench = Bench::new(&jq("."), input);
    let first = run(
        &bench,
        &["--limit", "10003", "--max-lines-per-file", "4000", "--json-logs"],
    );
    assert_eq!(first.code, 0, "{}", first.stderr);
    let second = run(&bench, &["--max-lines-per-file", "4000", "--json-logs"]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    let mut told = warnings(&first);
    told.extend(warnings(&second));
    told.sort();
    insta::assert_snapshot!(told.join("\n"), @"
    a/: the column `i` is an integer of 64 bits; what does not fit is in `_rescued` (first in row 10000)
    a/: the column `new` was unknown when the types were decided (models and first 10000 rows); it is in `_rescued` (first in row 10004)
    a/: the column `o` is an object; what does not fit is in `_rescued` (first in row 10001)
    flattened/: the column `a.i` is an integer of 64 bits; what does not fit is in `_rescued` (first in row 10000)
    flattened/: the column `a.new` was unknown when the types were decided (models and first 10000 rows); it is in `_rescued` (first in row 10004)
    flattened/: the column `a.o` is an object; what does not fit is in `_rescued` (first in row 10001)
    flattened/: the column `chain_input.i` is an integer of 64 bits; what does not fit is in `_rescued` (first in row 10000)
    flattened/: the column `chain_input.new` was unknown when the types were decided (models and first 10000 rows); it is in `_rescued` (first in row 10004)
    flattened/: the column `chain_input.o` is an object; what does not fit is in `_rescued` (first in row 10001)
    ");
    let found = rows(&second.out, "a");
    assert_eq!(found.len(), 10_006);
    assert!(found[..10_000].iter().all(|row| row.get("_rescued").is_none()));
    let late: Vec<Value> = found[10_000..]
        .iter()
        .map(|row| {
            let mut row = row.clone();
            if row.get("_rescued").is_some() {
                row["_rescued"] = rescued(&row);
            }
            row.as_object_mut().expect("an object").shift_remove("row_id");
            row
        })
        .collect();
    assert_eq!(
        late,
        [
            json!({"o": {"x": 1, "y": [2]}, "_rescued": {"i": "text"}}),
            json!({"_rescued": {"i": 1.5, "o": {"x": 1, "more": 2}}}),
            json!({"i": 2, "_rescued": {"o": {"x": "1"}}}),
            json!({"_rescued": {"i": 9_223_372_036_854_775_808_u64, "o": []}}),
            json!({"_rescued": {"o": {"y": [1, "2"]}, "new": {"a": 1.1}}}),
            json!({"i": 7, "o": {"y": [3]}, "_rescued": {"new": 2}}),
        ]
    );
    let raw = found[10_004]["_rescued"].as_str().expect("text");
    assert!(raw.contains("\"new\":{\"a\": 1.10}"), "as it came: {raw}");
}

#[test]
fn declared_types_hold_from_the_first_row() {
    let chain = json!({
        "name": "t",
        "input_model": {"n": "integer", "f": "number", "o": "object"},
        "steps": [{"id": "a", "apply": {"jq": "."}, "output_model": {"n": "integer"}}],
    });
    let input = [
        r#"{"n":1.0,"f":7,"o":{}}"#,
        r#"{"n":12345678901234567890123,"f":1e2,"o":{"k":1}}"#,
    ];
    let bench = Bench::new(&chain.to_string(), input.join("\n"));
    let ran = run(&bench, &["--json-logs"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let found = rows(&ran.out, "flattened");
    assert_eq!(found[0]["chain_input.n"], 1);
    assert_eq!(found[0]["chain_input.f"], 7.0);
    assert_eq!(
        found[1]["_rescued"],
        "{\"chain_input.n\":12345678901234567890123,\"a.n\":12345678901234567890123}"
    );
    assert_eq!(found[1]["chain_input.o"], json!({"k": 1}));
    assert_eq!(warnings(&ran).len(), 3, "{:?}", warnings(&ran));
}

#[test]
fn hostile_shapes_do_not_break_a_file() {
    let deep = format!("{{\"d\":{}1{}}}", "[".repeat(100), "]".repeat(100));
    let wide: Vec<String> = (0..3_000).map(|n| format!("\"k{n}\":{n}")).collect();
    let dictionary: Vec<String> = (0..400).map(|n| format!("\"k{n}\":{n}")).collect();
    let input = [
        deep,
        format!("{{\"dict\":{{{}}}}}", dictionary.join(",")),
        r#"{"_rescued":{"a":1},"A":1,"a":2,"a.b":3,"":4,"\u0000":5}"#.to_owned(),
        format!("{{{}}}", wide.join(",")),
        r#"{"huge":1e400,"d":null}"#.to_owned(),
    ];
    let bench = Bench::new(&jq("."), input.join("\n"));
    let ran = run(&bench, &["--json-logs"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let found = rows(&ran.out, "a");
    assert_eq!(found.len(), 5);
    assert_eq!(found[3]["k0"], 0);
    assert_eq!(rescued(&found[3])["k2999"], 2999);
    assert_eq!(found[2]["a._rescued"], json!({"a": 1}));
    let dictionary: Value =
        serde_json::from_str(found[1]["dict"].as_str().expect("JSON text")).expect("JSON");
    assert_eq!(dictionary["k399"], 399);
    let told = warnings(&ran);
    // 100 columns and the word that no more are named, for each of the two folders.
    assert_eq!(told.len(), 202, "{:?}", told.last());
}

#[test]
fn files_say_the_same_everywhere() {
    let (chain, input) = busy(50);
    let bench = Bench::new(&chain, input);
    let ran = run(&bench, &[]);
    let path = &shards(&ran.out, "flattened")[0];
    let reader =
        SerializedFileReader::new(fs::File::open(path).expect("the shard is there")).expect("Parquet");
    let file = reader.metadata().file_metadata();
    assert_eq!(file.created_by(), Some("chainette version 1"));
    let metadata = file.key_value_metadata().expect("there is metadata").iter();
    let metadata: Vec<String> = metadata
        .map(|kv| format!("{}={}", kv.key, kv.value.as_deref().unwrap_or_default()))
        .collect();
    assert_eq!(
        metadata,
        [
            "chainette.chain=busy",
            "chainette.folder=flattened",
            "chainette.json_text=[]"
        ]
    );
    let column = reader.metadata().row_group(0).column(0).compression().to_string();
    assert!(column.contains("ZSTD"), "{column}");
    let batch = &batches(path)[0];
    let ids = batch
        .column(0)
        .as_any()
        .downcast_ref::<StringArray>()
        .expect("text");
    assert_eq!((ids.null_count(), ids.value(0)), (0, "2.0"));
}
