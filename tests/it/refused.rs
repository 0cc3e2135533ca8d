//! An OUT that the same command cannot go on with: more is done than is wanted, or not all of it is there any more.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::{Bench, PICKY, assert_stderr, echo, everything, rows, tree, tree_of, two_steps};

/// A limit below what is done is refused; `--resume` keeps the answers and writes the rows that are wanted.
#[test]
fn a_smaller_limit() {
    let server = echo();
    let bench = Bench::new(&two_steps(&server).to_string(), rows(20));
    assert_eq!(bench.run(&["--limit", "12"]).code, 0);
    let before = everything(&bench.dir.path().join("out"));
    let mut said = String::new();
    for limit in ["0", "11"] {
        let ran = bench.run(&["--limit", limit]);
        assert_eq!(ran.code, 2, "{}", ran.stderr);
        assert_eq!(everything(&ran.out), before);
        said += &ran.stderr;
    }
    assert_stderr!(said);
    assert_eq!(bench.run(&["--limit", "12"]).code, 0);
    assert_eq!(everything(&bench.dir.path().join("out")), before);
    server.clear_log();
    let ran = bench.run(&["--limit", "5", "--resume"]);
    assert_eq!((ran.code, server.stats().asked), (0, 0), "{}", ran.stderr);
    assert_eq!(ran.lines("flattened").len(), 5);
    let ran = bench.run(&[]);
    assert_eq!((ran.code, server.stats().asked), (0, 2 * 8), "{}", ran.stderr);
    assert_eq!(tree(&ran.out), tree_of(&bench, "whole", &[]));
}

/// A limit beyond the end of the input is none.
#[test]
fn a_limit_beyond_the_input() {
    let bench = Bench::new(PICKY, rows(5));
    for (limit, code) in [("50", 0), ("30", 0), ("5", 0), ("4", 2)] {
        let ran = bench.run(&["--limit", limit]);
        assert_eq!(ran.code, code, "--limit {limit}: {}", ran.stderr);
    }
}

/// A format, a file of OUT and what is done to it.
type Harm<'a> = (&'a str, &'a str, &'a dyn Fn(&Path));

/// A finished OUT that lost something is not called finished; `--resume` makes it whole without asking.
#[test]
fn a_finished_out_that_is_not_whole() {
    let server = echo();
    let chain = two_steps(&server).to_string();
    let remove = |path: &Path| fs::remove_file(path).expect("the shard can be removed");
    let cut = |path: &Path| {
        let file = fs::File::options().write(true).open(path).expect("the shard");
        file.set_len(1).expect("the shard can be cut");
    };
    let grow = |path: &Path| {
        let mut text = fs::read(path).expect("the shard");
        text.push(b'\n');
        fs::write(path, text).expect("the shard can be written");
    };
    let remove_folder = |path: &Path| fs::remove_dir_all(path).expect("the folder can be removed");
    let harms: [Harm<'_>; 6] = [
        ("jsonl", "first/001.jsonl", &remove),
        ("jsonl", "flattened/002.jsonl", &cut),
        ("jsonl", "errors/000.jsonl", &grow),
        ("jsonl", "second", &remove_folder),
        ("parquet", "second/000.parquet", &cut),
        ("parquet", "errors/000.jsonl", &remove),
    ];
    let mut said = String::new();
    let bench = Bench::new(&chain, rows(10) + "no json\n" + &rows(10));
    for (format, name, harm) in harms {
        let shards = ["--max-lines-per-file", "7", "--format", format];
        let whole = bench.run(&[&shards[..], &["--overwrite"]].concat());
        assert_eq!(whole.code, 3, "{}", whole.stderr);
        let before = tree(&whole.out);
        server.clear_log();
        harm(&whole.out.join(name));
        let harmed = everything(&whole.out);
        for extra in [&[][..], &["--limit", "1000"]] {
            let ran = bench.run(&[&shards[..], extra].concat());
            assert_eq!(ran.code, 2, "{}", ran.stderr);
            assert_eq!(everything(&ran.out), harmed);
            // A Parquet file is as large as its encoder makes it.
            if extra.is_empty() && format == "jsonl" {
                said += &format!("{name}\n{}", ran.stderr);
            }
        }
        let ran = bench.run(&[&shards[..], &["--resume"]].concat());
        assert_eq!((ran.code, server.stats().asked), (3, 0), "{}", ran.stderr);
        assert_eq!(tree(&ran.out), before);
    }
    assert_stderr!(said);
}

/// A kill between the last checkpoint and the last file: the run that writes it tells how it ended.
#[test]
fn a_run_that_was_killed_at_its_very_end() {
    let bench = Bench::new(PICKY, rows(5) + "{\"bad\": 1}\n");
    assert_eq!(bench.run(&[]).code, 3);
    let out = bench.dir.path().join("out");
    let whole = tree(&out);
    let mut metadata = bench.opened().metadata();
    metadata["state"] = json!("running");
    fs::write(out.join("metadata.json"), metadata.to_string()).expect("OUT is writable");
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(tree(&out), whole);
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("is finished already"), "{}", ran.stderr);
}

/// An engines file is no part of the chain file, and what decides the replies is part of the run all the same.
#[test]
fn what_an_engine_replies_by() {
    let server = echo();
    let engine = |fields: &str| {
        format!(
            "engines:\n  e: {{backend: openai, model: m, endpoint: \"{}\"{fields}}}\n",
            server.url()
        )
    };
    let bench = Bench::new(
        "name: t\nsteps:\n  - {id: ask, engine: e, user_prompt: \"say {{ a }}\"}\n",
        rows(4),
    );
    let run = |extra: &[&str]| bench.run(&[&["--engines", "engines.yaml"], extra].concat());
    bench.write("engines.yaml", engine(""));
    assert_eq!(run(&[]).code, 0);
    // Where it is and how fast it is asked decides no reply.
    bench.write("engines.yaml", engine(", concurrency: 3, engine_wait: 20s"));
    assert_eq!(run(&[]).code, 0);
    bench.write("engines.yaml", engine(", reasoning: true"));
    let ran = run(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert_stderr!(ran.stderr);
    assert_eq!(server.stats().asked, 4);
    // `openai` is sent nothing about it, but thoughts are now taken out of the replies.
    assert_eq!(run(&["--resume"]).code, 0);
    assert_eq!(server.stats().asked, 8);
}
