//! What can be read: the same rows from every kind of input.

use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Decimal128Array, DictionaryArray, Float64Array, Int64Array, ListArray, MapBuilder,
    RecordBatch, StringArray, StringBuilder, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::array::{Date32Array, Int32Builder};
use arrow::datatypes::{DataType, Field, Fields, Int32Type};
use chainette::plan::{Closures, compile};
use chainette::run::{RunConfig, run_to_end};
use chainette::source::{Generated, Position, open_input};
use chainette::spec::ChainInput;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::{Bench, Ran, tree};

pub const COPY: &str = "name: copy\nsteps:\n  - {id: n, apply: {jq: .}}\n";

pub fn command(bench: &Bench, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chainette"));
    command.current_dir(bench.dir.path()).args(args);
    command.env_remove("RUST_BACKTRACE").env("NO_COLOR", "1");
    command
}

pub fn invoke(bench: &Bench, args: &[&str]) -> Ran {
    let mut command = command(bench, args);
    bench.ran(&command.stdin(Stdio::null()).output().expect("the command starts"))
}

/// Runs over `input` into a folder of that name, and gives the lines of `flattened/`.
fn flattened(bench: &Bench, input: &str, out: &str, extra: &[&str]) -> Vec<String> {
    let ran = invoke(bench, &[&["run", "chain.yaml", input, out], extra].concat());
    assert_eq!(ran.code, 0, "{input}: {}", ran.stderr);
    lines_of(&bench.dir.path().join(out).join("flattened"))
}

pub fn lines_of(folder: &Path) -> Vec<String> {
    let mut shards: Vec<_> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    shards.sort();
    let texts = shards
        .iter()
        .map(|path| fs::read_to_string(path).expect("a shard"));
    texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).expect("memory takes it");
    writer.finish().expect("memory takes it")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory takes it")
}

pub fn parquet(batches: &[RecordBatch], group: usize) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_compression(parquet::basic::Compression::ZSTD(
            parquet::basic::ZstdLevel::default(),
        ))
        .set_max_row_group_row_count(Some(group))
        .build();
    let mut writer =
        ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties)).expect("a schema");
    for batch in batches {
        writer.write(batch).expect("memory takes it");
    }
    writer.into_inner().expect("memory takes it")
}

pub fn arrow_file(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer =
        arrow::ipc::writer::FileWriter::try_new(Vec::new(), &batches[0].schema()).expect("a schema");
    batches
        .iter()
        .for_each(|batch| writer.write(batch).expect("memory takes it"));
    writer.into_inner().expect("memory takes it")
}

pub fn arrow_stream(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer =
        arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("a schema");
    batches
        .iter()
        .for_each(|batch| writer.write(batch).expect("memory takes it"));
    writer.into_inner().expect("memory takes it")
}

/// Rows of two texts.
type Texts = Vec<(String, String)>;

fn texts(n: usize) -> Texts {
    let nasty = [
        "plain",
        "a \"quote\"",
        "comma, tab\t",
        "two\nlines",
        "crlf\r\nhere",
        "",
        " ",
        "ünï😀",
        "\\",
        "\"",
    ];
    (0..n)
        .map(|at| (format!("{at}"), nasty[at % nasty.len()].to_owned()))
        .collect()
}

fn csv_text(rows: &Texts, separator: u8) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new()
        .delimiter(separator)
        .from_writer(Vec::new());
    writer.write_record(["id", "text"]).expect("memory takes it");
    for (id, text) in rows {
        writer.write_record([id, text]).expect("memory takes it");
    }
    writer.into_inner().expect("memory takes it")
}

/// The same rows in every kind, by file name.
fn every_kind(rows: &Texts) -> Vec<(&'static str, Vec<u8>)> {
    let jsonl: String = rows
        .iter()
        .map(|(id, text)| json!({"id": id, "text": text}).to_string() + "\n")
        .collect();
    let batches: Vec<RecordBatch> = rows
        .chunks(7)
        .map(|rows| {
            let ids: StringArray = rows.iter().map(|(id, _)| Some(id.as_str())).collect();
            let texts: StringArray = rows.iter().map(|(_, text)| Some(text.as_str())).collect();
            RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef), ("text", Arc::new(texts))])
                .expect("columns of one length")
        })
        .collect();
    let (first, second) = jsonl.as_bytes().split_at(jsonl.len() / 2);
    let (csv, tsv) = (csv_text(rows, b','), csv_text(rows, b'\t'));
    vec![
        ("in.jsonl", jsonl.clone().into()),
        ("in.NDJSON", jsonl.replace('\n', "\r\n").into()),
        (
            "mark.jsonl",
            [b"\xef\xbb\xbf", jsonl.trim_end().as_bytes()].concat(),
        ),
        ("in.csv", csv.clone()),
        ("mark.csv", [b"\xef\xbb\xbf", csv.as_slice()].concat()),
        ("in.tsv", tsv.clone()),
        // Several members, or frames, in one file.
        ("in.jsonl.gz", [gzip(first), gzip(b""), gzip(second)].concat()),
        ("in.jsonl.zst", [zstd(first), zstd(b""), zstd(second)].concat()),
        ("in.csv.gz", gzip(&csv)),
        ("in.tsv.zst", zstd(&tsv)),
        ("in.parquet", parquet(&batches, 10)),
        ("in.arrow", arrow_file(&batches)),
        ("stream.arrow", arrow_stream(&batches)),
    ]
}

#[test]
fn every_kind_gives_the_same_rows() {
    let bench = Bench::new(COPY, "");
    let whole: Vec<String> = {
        bench.write("whole.jsonl", &every_kind(&texts(50))[0].1);
        flattened(&bench, "whole.jsonl", "whole", &[])
    };
    assert_eq!(whole.len(), 50);
    for (name, bytes) in every_kind(&texts(50)) {
        bench.write(name, bytes);
        assert_eq!(
            flattened(&bench, name, &format!("out-{name}"), &[]),
            whole,
            "{name}"
        );
        let slow = flattened(&bench, name, &format!("slow-{name}"), &["--batch-size", "1"]);
        assert_eq!(slow, whole, "{name} row by row");
        // Stopped in the middle of batches, row groups and members, and taken up again.
        let parts = format!("parts-{name}");
        for limit in ["0", "1", "3", "7", "19", "20", "33", "50"] {
            flattened(&bench, name, &parts, &["--limit", limit, "--batch-size", "4"]);
        }
        assert_eq!(flattened(&bench, name, &parts, &[]), whole, "{name} in parts");
        assert_eq!(
            tree(&bench.dir.path().join(parts)),
            tree(&bench.dir.path().join(format!("out-{name}"))),
            "{name}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any texts, in any kind.
    #[test]
    fn any_texts_in_any_kind(rows in proptest::collection::vec((".{0,9}", "[a\",\t\r\n é]{0,9}"), 1..40)) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let rows: Texts = rows.iter().map(|(a, b)| (a.clone(), format!("x{b}"))).collect();
        for (name, bytes) in every_kind(&rows) {
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("the folder is writable");
            let read = read(&path, 3);
            let read: Texts = read
                .iter()
                .map(|row| {
                    let row = row.as_ref().expect("a good row");
                    let field = |name: &str| row[name].as_str().expect("a text").to_owned();
                    (field("id"), field("text"))
                })
                .collect();
            prop_assert_eq!(&read, &rows, "{}", name);
        }
    }

    /// Any text as CSV reads as the `csv` crate reads it.
    #[test]
    fn any_csv(text in "[ab\",\r\n ]{0,60}") {
        let text = format!("a,b\n{}", text.replace('\r', "\r\n"));
        // The crate does not say whether an empty value was quoted, and so stands on no blank line.
        prop_assume!(!text.lines().any(|line| line.contains('"') && line.trim_matches(['"', ' ']).is_empty()));
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("in.csv");
        fs::write(&path, &text).expect("the folder is writable");
        let mut expected = Vec::new();
        let reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
        for record in reader.into_records() {
            let record = record.expect("text is UTF-8");
            let blank = record.len() == 1 && record[0].trim().is_empty();
            match record.len() {
                1 if blank => {}
                2 => expected.push(Some(json!({"a": record[0], "b": record[1]}))),
                _ => expected.push(None),
            }
        }
        let read = read(&path, 1000);
        let unclosed = read.last().is_some_and(|row| row.as_ref().is_err_and(|why| why.contains("never closed")));
        // The crate takes what is there of such a row; we say what is wrong.
        let whole = read.len() - usize::from(unclosed);
        let read: Vec<Option<Value>> = read.into_iter().map(Result::ok).collect();
        prop_assert_eq!(&read[..whole], &expected[..expected.len().min(whole)]);
        prop_assert!(unclosed || expected.len() == whole);
    }
}

/// The rows of a file, read by the library in chunks, starting again at every chunk's end.
fn read(path: &Path, rows: usize) -> Vec<Result<Value, String>> {
    let input = open_input(path, Path::new("/nowhere")).expect("an input").input;
    let mut found = Vec::new();
    let mut at = Position::default();
    loop {
        let mut source = input.open(at, None).expect("it opens again");
        let Some(chunk) = source.next_chunk(rows, 1 << 20).expect("it can be read") else {
            return found;
        };
        for row in &chunk.rows {
            let text = &chunk.data[row.span.clone()];
            found.push(match &row.problem {
                None => Ok(serde_json::from_slice(text).expect("JSON")),
                Some(problem) => Err(problem.to_string()),
            });
        }
        at = chunk.end;
    }
}

// ---- values of columnar files ----

#[test]
fn columnar_values_lose_nothing() {
    let struct_fields = Fields::from(vec![
        Field::new("x", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]);
    let point = StructArray::new(
        struct_fields,
        vec![
            Arc::new(Int64Array::from(vec![Some(1), None])),
            Arc::new(StringArray::from(vec![Some("a\"b"), Some("é")])),
        ],
        Some(vec![true, false].into()),
    );
    let mut map = MapBuilder::new(None, Int32Builder::new(), StringBuilder::new());
    map.keys().append_value(7);
    map.values().append_value("seven");
    map.append(true).expect("keys and values match");
    map.append(false).expect("keys and values match");
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), Some(vec![])]);
    let decimals = Decimal128Array::from(vec![Some(12_345_678_901_234_567_890_123), Some(-1)])
        .with_precision_and_scale(38, 10)
        .expect("a decimal");
    let kind: DictionaryArray<Int32Type> = vec!["on", "off"].into_iter().collect();
    let times = || vec![Some(1_700_000_000_000_001), None];
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("big", Arc::new(UInt64Array::from(vec![u64::MAX, 0]))),
        ("int", Arc::new(Int64Array::from(vec![Some(i64::MIN), None]))),
        ("float", Arc::new(Float64Array::from(vec![0.1, f64::NAN]))),
        ("far", Arc::new(Float64Array::from(vec![f64::INFINITY, -0.0]))),
        ("decimal", Arc::new(decimals)),
        (
            "bytes",
            Arc::new(BinaryArray::from(vec![b"\xff\x00a".as_slice(), b""])),
        ),
        ("list", Arc::new(list)),
        ("point", Arc::new(point)),
        ("map", Arc::new(map.finish())),
        (
            "day",
            Arc::new(Date32Array::from(vec![Some(19_675), Some(i32::MAX)])),
        ),
        ("local", Arc::new(TimestampMicrosecondArray::from(times()))),
        (
            "utc",
            Arc::new(TimestampMicrosecondArray::from(times()).with_timezone("UTC")),
        ),
        (
            "berlin",
            Arc::new(TimestampMicrosecondArray::from(times()).with_timezone("Europe/Berlin")),
        ),
        ("kind", Arc::new(kind)),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let bench = Bench::new(COPY, "");
    let said: Vec<String> = [
        ("in.parquet", parquet(std::slice::from_ref(&batch), 1)),
        ("in.arrow", arrow_file(std::slice::from_ref(&batch))),
        ("stream.arrow", arrow_stream(&[batch])),
    ]
    .into_iter()
    .map(|(name, bytes)| {
        bench.write(name, bytes);
        let ran = invoke(&bench, &["run", "chain.yaml", name, &format!("out-{name}")]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        lines_of(&bench.dir.path().join(format!("out-{name}/n"))).join("\n")
    })
    .collect();
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0], said[2]);
    insta::assert_snapshot!(said[0]);
}

// ---- folders and globs ----

#[test]
fn a_folder_is_read_in_byte_order() {
    let bench = Bench::new(COPY, "");
    let dir = bench.dir.path().join("data");
    fs::create_dir_all(dir.join("b/deep")).expect("a folder can be made");
    fs::create_dir_all(dir.join("_temporary")).expect("a folder can be made");
    for (name, text) in [
        ("data/b.jsonl", "{\"f\":\"b.jsonl\"}\n"),
        ("data/b/deep/x.csv", "f\nb/deep/x.csv\n"),
        ("data/a.csv", "f\na.csv\n"),
        ("data/B.jsonl", "{\"f\":\"B.jsonl\"}"),
        ("data/empty.jsonl", "\n \n"),
        ("data/empty.csv", ""),
        ("data/header.csv", "f\n"),
        ("data/notes.txt", "no rows"),
        ("data/.hidden.jsonl", "{\"f\":1}\n"),
        ("data/_SUCCESS", ""),
        ("data/_temporary/x.jsonl", "{\"f\":1}\n"),
    ] {
        bench.write(name, text);
    }
    std::os::unix::fs::symlink("b.jsonl", dir.join("link.jsonl")).expect("a link can be made");
    std::os::unix::fs::symlink("..", dir.join("loop")).expect("a link can be made");
    // The outputs lie in the folder, too.
    let ran = invoke(&bench, &["run", "chain.yaml", "data", "data/out"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("not read, as their kind is unknown: data/loop, data/notes.txt\n"),
        "{}",
        ran.stderr
    );
    let found = lines_of(&dir.join("out/flattened"));
    let files: Vec<String> = ["B.jsonl", "a.csv", "b.jsonl", "b/deep/x.csv", "b.jsonl"]
        .iter()
        .enumerate()
        .map(|(row, file)| {
            format!("{{\"row_id\":\"{row}\",\"chain_input.f\":\"{file}\",\"n.f\":\"{file}\"}}")
        })
        .collect();
    assert_eq!(found, files);
    // The same again; then with a new file, and one less.
    assert_eq!(invoke(&bench, &["run", "chain.yaml", "data", "data/out"]).code, 0);
    bench.write("data/c.jsonl", "{}\n");
    fs::remove_file(dir.join("a.csv")).expect("it can be removed");
    let ran = invoke(&bench, &["run", "chain.yaml", "data", "data/out"]);
    assert_eq!(ran.code, 2);
    assert!(
        ran.stderr.contains("data/c.jsonl is new, data/a.csv is gone"),
        "{}",
        ran.stderr
    );
    // The outputs of one run are the input of another.
    assert_eq!(flattened(&bench, "data/out/flattened", "next", &[]).len(), 5);
}

#[test]
fn a_glob_and_names_that_look_like_one() {
    let bench = Bench::new(COPY, "");
    fs::create_dir_all(bench.dir.path().join("d/e.jsonl")).expect("a folder can be made");
    for name in [
        "d/1.jsonl",
        "d/2.jsonl.gz",
        "d/[x]*.jsonl",
        "d/x.jsonl",
        "d/y.txt",
    ] {
        let row = format!("{{\"f\":\"{name}\"}}\n");
        bench.write(
            name,
            if name.ends_with("gz") {
                gzip(row.as_bytes())
            } else {
                row.into()
            },
        );
    }
    let ran = invoke(&bench, &["run", "chain.yaml", "d/*", "out"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("unknown: d/e.jsonl, d/y.txt\n"),
        "{}",
        ran.stderr
    );
    assert_eq!(ran.lines("n").len(), 4);
    assert_eq!(flattened(&bench, "d/?.jsonl", "two", &[]).len(), 2);
    assert_eq!(flattened(&bench, "**/x.jsonl", "one", &[]).len(), 1);
    let literal = flattened(&bench, "d/[x]*.jsonl", "literal", &[]);
    assert_eq!(literal.len(), 1);
    assert!(literal[0].contains("d/[x]*.jsonl"), "{literal:?}");
}

#[test]
fn a_path_that_is_not_utf8() {
    let bench = Bench::new(COPY, "");
    let name = std::ffi::OsStr::from_bytes(b"\xff.jsonl");
    fs::write(bench.dir.path().join(name), "{\"a\":1}\nbad\n").expect("it can be written");
    // The second time it is finished already.
    for code in [3, 0] {
        let output = command(&bench, &["run", "chain.yaml"])
            .arg(name)
            .arg("out")
            .output();
        let ran = bench.ran(&output.expect("the command starts"));
        assert_eq!(ran.code, code, "{}", ran.stderr);
        assert_eq!(ran.error()["file"], "\u{fffd}.jsonl");
    }
}

// ---- totals ----

/// Every total that a run told, in order.
fn totals(ran: &Ran) -> Vec<Value> {
    let events = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    events
        .filter(|event| event["event"] == "run_started" || event["event"] == "step_total")
        .map(|event| event["total"].clone())
        .collect()
}

#[test]
fn totals_are_exact() {
    let bench = Bench::new(COPY, "");
    for (name, bytes) in every_kind(&texts(50)) {
        bench.write(name, &bytes);
        let out = format!("out-{name}");
        let run = |extra: &[&str]| {
            let ran = invoke(
                &bench,
                &[&["run", "chain.yaml", name, &out, "--json-logs"], extra].concat(),
            );
            assert_eq!(ran.code, 0, "{}", ran.stderr);
            totals(&ran)
        };
        let limited = run(&["--limit", "20"]);
        assert_eq!(limited.first(), Some(&json!(20)), "{name}");
        let packed = name.ends_with("gz") || name.ends_with("zst");
        let found = run(&[]);
        assert_eq!(
            found.first(),
            Some(&if packed { Value::Null } else { json!(50) }),
            "{name}"
        );
        assert_eq!(found.last(), Some(&json!(50)), "{name}");
    }
}

/// Blank lines, CRLF, a mark, no last line end, and buffers that end anywhere.
#[test]
fn large_inputs_are_counted_beside_the_run() {
    let line = format!("{{\"a\":\"{}\"}}\r\n \n\n", "x".repeat(700));
    let text = "\u{feff}".to_owned() + &line.repeat(12_345) + "{\"last\":1}";
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("in.jsonl");
    fs::write(&path, text).expect("the folder is writable");
    let csv = dir.path().join("in.csv");
    fs::write(
        &csv,
        "a,b\n".to_owned() + &format!("\"{}\n\"\"\",2\n\n", "y".repeat(700)).repeat(12_345),
    )
    .expect("the folder is writable");
    let go_on = std::sync::atomic::AtomicBool::new(false);
    let stop = std::sync::atomic::AtomicBool::new(true);
    for (path, rows) in [(path, 12_346), (csv, 12_345)] {
        let input = open_input(&path, Path::new("/nowhere")).expect("an input").input;
        assert_eq!(input.total(), None, "over 8 MiB the run does not wait for it");
        assert_eq!(input.count(&go_on), Some(rows));
        assert_eq!(input.count(&stop), None);
    }
}

// ---- the library ----

#[test]
fn a_library_user_makes_the_rows() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let chain = ChainInput {
        text: Some(COPY.into()),
        ..ChainInput::file("copy.yaml")
    };
    let run = |limit: Option<u64>, name: &'static str| {
        let compiled = compile(&chain, &Closures::none()).expect("a chain");
        let input = Generated::new(name, || Box::new((0..100).map(|n| format!("{{\"n\":{n}}}"))));
        let config = RunConfig {
            input: Arc::new(input),
            limit,
            batch_size: 7,
            ..RunConfig::new(compiled.plan, "", dir.path().join("out"))
        };
        run_to_end(config)
    };
    assert_eq!(run(Some(10), "numbers").expect("it runs").stats.rows_in, 10);
    let outcome = run(None, "numbers").expect("it goes on");
    assert_eq!((outcome.stats.rows_in, outcome.stats.rows_resumed), (100, 10));
    let lines = lines_of(&dir.path().join("out/n"));
    assert_eq!(lines.last().expect("a line"), "{\"row_id\":\"99\",\"n\":99}");
    assert!(run(None, "others").is_err());
}
