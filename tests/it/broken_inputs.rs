//! Inputs that cannot be read, or not to their end.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field};
use serde_json::Value;

use crate::harness::{Bench, tree};
use crate::inputs::{COPY, arrow_file, arrow_stream, gzip, invoke, lines_of, parquet, zstd};

#[test]
fn what_cannot_be_read_is_exit_2() {
    let bench = Bench::new(COPY, "");
    let batch = |names: [&str; 2]| {
        let column = Arc::new(Int64Array::from(vec![1])) as ArrayRef;
        let fields = names.map(|name| Field::new(name, DataType::Int64, true)).to_vec();
        let schema = Arc::new(arrow::datatypes::Schema::new(fields));
        RecordBatch::try_new(schema, vec![column.clone(), column]).expect("columns of one length")
    };
    let rows = b"{\"a\":1}\n{\"a\":2}\n";
    let good = parquet(&[batch(["a", "b"])], 10);
    fs::create_dir_all(bench.dir.path().join("nothing/inside")).expect("a folder can be made");
    fs::create_dir_all(bench.dir.path().join("run/.chainette")).expect("a folder can be made");
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("no.jsonl.gz", rows.to_vec()),
        ("empty.jsonl.gz", vec![]),
        ("no.csv.zst", rows.to_vec()),
        ("no.parquet", rows.to_vec()),
        ("empty.parquet", vec![]),
        ("cut.parquet", good[..good.len() - 5].to_vec()),
        ("twice.parquet", parquet(&[batch(["a", "a"])], 10)),
        ("no.arrow", rows.to_vec()),
        ("cut.arrow", arrow_file(&[batch(["a", "b"])])[..300].to_vec()),
        ("feather.arrow", b"FEA1\x00\x00\x00\x00".to_vec()),
        ("really.jsonl", gzip(rows)),
        ("really.csv", good),
        ("utf16.jsonl", b"\xff\xfe{\0}\0".to_vec()),
        ("twice.csv", b"a,b,a\n1,2,3\n".to_vec()),
        ("unnamed.csv", b"a,,b\n1,2,3\n".to_vec()),
        ("latin.csv", b"caf\xe9,b\n1,2\n".to_vec()),
        ("mac.csv", b"a,b\r1,2\r".to_vec()),
        ("open.csv", b"\"a,b\n1,2\n".to_vec()),
        ("in.parquet.gz", gzip(rows)),
        ("in.json", rows.to_vec()),
        ("name", rows.to_vec()),
    ];
    for (name, bytes) in &files {
        bench.write(name, bytes);
    }
    let names = files.iter().map(|(name, _)| *name);
    let mut said = String::new();
    for name in names.chain([
        "gone.csv",
        "nothing",
        "run",
        "*.xml",
        "*.json",
        "a[",
        "/dev/null",
        "/proc/self/mem.jsonl",
    ]) {
        let ran = invoke(&bench, &["run", "chain.yaml", name, "out"]);
        assert_eq!(ran.code, 2, "{name}: {}", ran.stderr);
        assert!(!ran.out.exists(), "{name} wrote something");
        said += &format!("$ {name}\n{}\n", ran.stderr);
    }
    insta::assert_snapshot!(said);
}

#[test]
fn bad_rows_of_csv_are_errors_with_their_line() {
    let text = b"a,b\r\n1,2\r\n\r\n  \r\nonly one\r\n\"two\nlines\",\"x\"\r\n1,2,3\r\n\"caf\xe9\",1\r\n4,\"5\"\r\n\"never,\r\nclosed,1\r\n";
    let bench = Bench::new(COPY, "");
    bench.write("in.csv", text);
    let ran = invoke(&bench, &["run", "chain.yaml", "in.csv", "out"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let mut said = ran.lines("n").join("\n");
    for line in ran.lines("errors") {
        said += &format!("\n{line}");
    }
    insta::assert_snapshot!(said);
    let before = tree(&ran.out);
    let ran = invoke(
        &bench,
        &[
            "run",
            "chain.yaml",
            "in.csv",
            "out",
            "--overwrite",
            "--batch-size",
            "1",
        ],
    );
    assert_eq!((ran.code, tree(&ran.out)), (3, before));
}

#[test]
fn rows_before_damage_are_kept() {
    let rows: String = (0..5000)
        .map(|n| format!("{{\"a\":{n},\"r\":{}}}\n", n * 7919 % 10007))
        .collect();
    let numbers: Vec<i64> = (0..5000).map(|n| n * 7919 % 10007).collect();
    let column = Arc::new(Int64Array::from(numbers)) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("a", column)]).expect("a column");
    let mut columnar = parquet(std::slice::from_ref(&batch), 1000);
    // Without checksums only damage to the heads of pages can be seen: a quarter holds the beginning of a
    // row group.
    let quarter = columnar.len() / 4;
    columnar[2 * quarter..3 * quarter].fill(0xa5);
    let batches: Vec<RecordBatch> = (0..5).map(|at| batch.slice(at * 1000, 1000)).collect();
    let stream = arrow_stream(&batches);
    let frames: Vec<u8> = rows.as_bytes().chunks(10_000).flat_map(zstd).collect();
    let mut broken_gzip = gzip(rows.as_bytes());
    let end = broken_gzip.len();
    broken_gzip[end - 6] ^= 1;
    let bench = Bench::new(COPY, "");
    for (name, bytes, whole, says) in [
        (
            "cut.jsonl.gz",
            gzip(rows.as_bytes())[..10_000].to_vec(),
            gzip(rows.as_bytes()),
            "ends in the middle",
        ),
        (
            "cut.jsonl.zst",
            frames[..frames.len() / 2].to_vec(),
            frames.clone(),
            "ends in the middle",
        ),
        ("sum.jsonl.gz", broken_gzip, gzip(rows.as_bytes()), "is damaged"),
        (
            "page.parquet",
            columnar,
            parquet(std::slice::from_ref(&batch), 1000),
            "rows before that are kept",
        ),
        (
            "cut.arrow",
            stream[..stream.len() / 2].to_vec(),
            stream.clone(),
            "rows before that are kept",
        ),
    ] {
        bench.write(name, bytes);
        let out = format!("out-{name}");
        let args = ["run", "chain.yaml", name, &out, "--batch-size", "10"];
        for _ in 0..2 {
            let ran = invoke(&bench, &args);
            assert_eq!(ran.code, 1, "{name}: {}", ran.stderr);
            assert!(ran.stderr.contains(says), "{name}: {}", ran.stderr);
        }
        let checkpoint = fs::read(bench.dir.path().join(&out).join(".chainette/checkpoint.json"));
        let checkpoint: Value = serde_json::from_slice(&checkpoint.expect("a checkpoint")).expect("JSON");
        let kept = checkpoint["position"]["ordinal"].as_u64().expect("rows");
        assert!(kept >= 500, "{name} kept {kept} rows");
        bench.write(name, whole);
        assert_eq!(invoke(&bench, &args).code, 2, "{name} is another file now");
        let ran = invoke(&bench, &[&args[..], &["--resume"]].concat());
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        assert_eq!(
            lines_of(&bench.dir.path().join(&out).join("n")).len(),
            5000,
            "{name}"
        );
    }
}
