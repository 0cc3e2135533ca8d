//! Whole invocations of `chainette run`: exit codes, what stands on stderr, odd inputs.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::harness::{BINARY, Bench, COPY, PICKY, assert_stderr, everything, rows, run, tree};

#[test]
fn all_rows_done_is_0() {
    let (_bench, ran) = run(COPY, rows(3));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    assert_stderr!(ran.stderr);
}

#[test]
fn failed_rows_are_3() {
    let (_bench, ran) = run(PICKY, "{\"a\":1}\n{\"bad\":true}\nno json\n");
    assert_eq!(ran.code, 3);
    assert_stderr!(ran.stderr);
}

#[test]
fn a_run_that_stops_is_1() {
    let bench = Bench::new(PICKY, rows(300).replace("\"a\"", "\"bad\""));
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 1);
    assert_stderr!(ran.stderr);
    // Again: it does not sneak past the limit chunk by chunk.
    for _ in 0..3 {
        let again = bench.run(&[]);
        assert_eq!(
            (again.code, again.metadata()["state"].clone()),
            (1, json!("running")),
            "{}",
            again.stderr
        );
    }
    assert_eq!(bench.run(&["--max-errors", "100%"]).code, 3);
}

#[test]
fn nothing_is_written_on_exit_2() {
    let bench = Bench::new(COPY, rows(3));
    let dir = bench.dir.path();
    bench.write("bad.yaml", "name: t\nsteps:\n  - {id: n, appply: {jq: .}}\n");
    bench.write("in.txt", "");
    bench.write("file", "");
    bench.write("other.jsonl", "{}\n");
    fs::create_dir_all(dir.join("folder.jsonl")).expect("a folder can be made");
    fs::create_dir_all(dir.join("foreign/000")).expect("a folder can be made");
    bench.write("foreign/000/000.jsonl", "mine");
    assert_eq!(bench.run(&[]).code, 0);
    let before = everything(dir);
    let mut said = String::new();
    for args in [
        "bad.yaml in.jsonl new",
        "none.yaml in.jsonl new",
        "chain.yaml none.jsonl new",
        "chain.yaml folder.jsonl new",
        "chain.yaml in.txt new",
        "chain.yaml in.jsonl foreign",
        "chain.yaml in.jsonl foreign --overwrite",
        "chain.yaml in.jsonl foreign --resume",
        "chain.yaml in.jsonl file",
        "chain.yaml in.jsonl file/below",
        "chain.yaml in.jsonl new --set tone=x",
        "chain.yaml other.jsonl out",
        "chain.yaml in.jsonl new --max-errors many",
        "chain.yaml in.jsonl new --max-lines-per-file 0",
        "chain.yaml in.jsonl new --overwrite --resume",
        "chain.yaml in.jsonl",
    ] {
        let ran = bench.invoke(&["run"].into_iter().chain(args.split(' ')).collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args}: {}", ran.stderr);
        assert_eq!(everything(dir), before, "{args}");
        said += &format!("$ {args}\n{}\n", ran.stderr);
    }
    assert_stderr!(said);
}

#[test]
fn an_input_without_rows() {
    for input in ["", "\n", "\n  \r\n\t\n", "\u{feff}"] {
        let (bench, ran) = run(COPY, input);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let files: Vec<String> = tree(&ran.out).into_keys().collect();
        assert_eq!(
            files,
            ["flattened/000.jsonl", "graph.json", "metadata.json"],
            "{input:?}"
        );
        assert_eq!(ran.metadata()["state"], "finished");
        assert_eq!(bench.run(&[]).code, 0);
    }
}

#[test]
fn the_last_line_has_no_end() {
    let (bench, ran) = run(COPY, rows(3));
    let whole = ran.lines("flattened");
    bench.write("in.jsonl", rows(3).trim_end());
    let ran = bench.run(&["--overwrite"]);
    assert_eq!((ran.code, ran.lines("flattened")), (0, whole));
}

/// Also: no more files are open at once than a process may have.
#[test]
fn three_thousand_shards() {
    let bench = Bench::new(COPY, rows(3000));
    let mut shell = Command::new("sh");
    let line =
        "ulimit -n 256; exec \"$0\" run chain.yaml in.jsonl out --max-lines-per-file 1 --batch-size 100000";
    let output = shell
        .args(["-c", line, BINARY])
        .current_dir(bench.dir.path())
        .output()
        .expect("sh starts");
    let ran = bench.ran(&output);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.lines("n").len(), 3000);
    assert_eq!(
        fs::read_to_string(ran.out.join("flattened/2999.jsonl")).expect("the last shard"),
        "{\"row_id\":\"2999\",\"chain_input.a\":2999,\"n.a\":2999}\n"
    );
    assert_eq!(
        ran.metadata()["shards"]["n"].as_array().expect("shards").len(),
        3000
    );
}

#[test]
fn a_chain_begins_with_a_group() {
    let chain = "name: t\nsteps:\n  - parallel:\n      - {branch: l, join: l, steps: [{id: x, apply: {jq: '{v: .a}'}}]}\n      \
        - {branch: r, steps: [{id: y, apply: {jq: '{v: (.a + 1)}'}}]}\n  - {id: z, apply: {jq: '{a, l: $row.l.v}'}}\n";
    let (_bench, ran) = run(chain, "{\"a\":1}\n");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("flattened"),
        [r#"{"row_id":"0","chain_input.a":1,"l.v":1,"z.a":1,"z.l":1}"#]
    );
    assert_eq!(ran.lines("y"), [r#"{"row_id":"0","v":2}"#]);
}

#[test]
fn a_line_of_fifty_megabytes_is_a_row() {
    let mut input = b"{\"n\":1,\"text\":\"".to_vec();
    input.resize(50_000_000, b'x');
    input.extend_from_slice(b"\"}\n{\"n\":2}");
    let ran = Bench::new(COPY, input).run(&["--no-flattened"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lens: Vec<usize> = ran.lines("n").iter().map(String::len).collect();
    assert_eq!(lens, [50_000_015, "{\"row_id\":\"1\",\"n\":2}".len()]);
}
