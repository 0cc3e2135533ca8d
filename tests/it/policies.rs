//! How many failing rows a run bears: what it has written when it stops, what it says, and how it goes on.

use crate::harness::{Bench, PICKY, assert_stderr, rows, tree, tree_of};

/// 300 rows; every tenth from the 20th on fails.
fn input() -> String {
    let row = |n: usize| match n {
        20.. if n.is_multiple_of(10) => format!("{{\"bad\":{n}}}\n"),
        _ => format!("{{\"a\":{n}}}\n"),
    };
    (0..300).map(row).collect()
}

/// All files but the metadata, which tell of the last start.
fn shards(out: &std::path::Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut files = tree(out);
    files.remove("metadata.json").expect("metadata");
    files
}

/// Each stops where it must, says so, stops again when told the same, and goes on when it is allowed to; in the end the
/// files are those of a run that was never stopped.
#[test]
fn limits_of_failed_rows() {
    let bench = Bench::new(PICKY, input());
    let whole = tree_of(&bench, "whole", &[]);
    let mut said = String::new();
    for (limit, failed) in [
        (&["--fail-fast"][..], 1),
        (&["--max-errors", "0"], 1),
        (&["--max-errors", "3"], 4),
        (&["--max-errors", "5%"], 8),
        (&["--max-errors", "0%"], 8),
    ] {
        // One row at a time: it stops at the row that is too much.
        let run = |extra: &[&str]| bench.run(&[limit, &["--quiet", "--batch-size", "1"], extra].concat());
        let ran = run(&["--overwrite"]);
        assert_eq!(
            (ran.code, ran.errors().len()),
            (1, failed),
            "{limit:?}: {}",
            ran.stderr
        );
        assert_eq!(ran.metadata()["state"], "running");
        said += &format!("{}\n{}", limit.join(" "), ran.stderr);
        let before = shards(&ran.out);
        let again = run(&[]);
        assert_eq!((again.code, &again.stderr), (1, &ran.stderr), "{limit:?}");
        assert!(
            shards(&ran.out) == before,
            "{limit:?}: it does not go on row by row"
        );
        let ran = bench.run(&["--max-errors", "100%"]);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert!(tree(&ran.out) == whole, "{limit:?}");
    }
    assert_stderr!(said);
    for enough in ["28", "10%", "100%"] {
        let ran = bench.run(&["--overwrite", "--max-errors", enough]);
        assert_eq!(ran.code, 3, "{enough}: {}", ran.stderr);
        assert!(tree(&ran.out) == whole, "{enough}");
    }
}

/// Without a word about errors a run bears any number of them, unless the first 100 rows all fail.
#[test]
fn the_first_hundred() {
    let bad = |n: usize| "{\"bad\":1}\n".repeat(n);
    for (input, code) in [
        (bad(99) + &rows(1) + &bad(200), 3),
        (bad(100) + &rows(1), 1),
        (bad(99), 3),
        (rows(1) + &bad(300), 3),
    ] {
        let bench = Bench::new(PICKY, &input);
        for batch in ["1", "7", "256"] {
            let ran = bench.run(&["--overwrite", "--quiet", "--batch-size", batch]);
            assert_eq!(ran.code, code, "{}", ran.stderr);
        }
    }
}

/// Rows of a branch on its own, and lines that are no JSON, count too; `on_error: null` is no failure.
#[test]
fn what_counts_as_failed() {
    let bench = Bench::new(PICKY, "no json\n".to_owned() + &rows(5));
    let ran = bench.run(&["--fail-fast", "--batch-size", "1"]);
    assert_eq!((ran.code, ran.errors().len()), (1, 1), "{}", ran.stderr);
    let chain = "name: t\nengines:\n  e: {backend: openai, model: m, endpoint: \"http://127.0.0.1:9/v1\"}\nsteps:\n  \
                 - {id: ask, engine: e, user_prompt: '{{ missing }}', on_error: null}\n  - {id: n, apply: {jq: .}}\n";
    let bench = Bench::new(chain, rows(120));
    let ran = bench.run(&["--fail-fast"]);
    assert_eq!(
        (ran.code, ran.fates("ask").as_str()),
        (0, "120/0/0/0/120/0"),
        "{}",
        ran.stderr
    );
}
