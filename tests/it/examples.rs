//! The examples run, and leave what they promise.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::BINARY;

/// An example run in a folder; its stdout. `cargo test` builds them, `cargo test --test it` alone does not.
fn example(dir: &Path, name: &str, args: &[&str]) -> String {
    let path = Path::new(BINARY).with_file_name("examples").join(name);
    let output = Command::new(&path).args(args).current_dir(dir).output();
    let output =
        output.unwrap_or_else(|error| panic!("{} (cargo build --examples): {error}", path.display()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn square() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let numbers = "{\"n\": 3}\n{\"n\": 4}\n{\"m\": 5}\n{\"n\": 9223372036854775807}\n";
    fs::write(dir.path().join("numbers.jsonl"), numbers).expect("a file can be written");
    let said = example(dir.path(), "square", &["numbers.jsonl", "out"]);
    assert_eq!(said, "4 rows in, 1 out, 2 failed\n");
    assert_eq!(
        lines(&dir.path().join("out/even/000.jsonl")),
        [json!({"row_id": "1", "n": 4, "square": 16})]
    );
    let errors = lines(&dir.path().join("out/errors/000.jsonl"));
    assert!(
        errors[0]["message"].as_str().expect("a message").contains('n'),
        "{errors:?}"
    );
    assert_eq!(errors[1]["message"], "the square is too large");
}

#[test]
fn custom_engine() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let reviews = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/reviews.jsonl");
    let said = example(dir.path(), "custom_engine", &[reviews, "out"]);
    assert_eq!(said, "10 rows in, 10 out\n");
    let grades = lines(&dir.path().join("out/grade/000.jsonl"));
    assert_eq!(grades.len(), 10);
    assert_eq!(
        grades[1],
        json!({"row_id": "1", "label": "negative", "evidence": 2})
    );
}

#[test]
fn custom_sink() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let reviews = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/reviews.jsonl");
    let said = example(dir.path(), "custom_sink", &[reviews, "out"]);
    assert_eq!(said, "10 rows in, 10 out\n");
    let words = fs::read_to_string(dir.path().join("out/words/000.csv")).expect("the CSV file is there");
    assert!(
        words.starts_with("row_id,first,words,_other\n0,Arrived,13,\n"),
        "{words}"
    );
    assert_eq!(words.lines().count(), 11);
}

#[test]
fn huge_batch_demo() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    for _again in 0..2 {
        let said = example(dir.path(), "huge_batch_demo", &["out", "30000"]);
        assert!(said.starts_with("30000 rows in, 30000 out, "), "{said}");
        let digest = lines(&dir.path().join("out/digest/000.jsonl"));
        let last = digest.last().cloned();
        let expected = json!({"row_id": "29999", "n": 29999, "square": 29999_u64 * 29999, "parity": "odd"});
        assert_eq!((digest.len(), last), (30_000, Some(expected)));
    }
}
