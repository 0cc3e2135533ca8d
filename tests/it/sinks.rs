//! Sinks of the library's users: their files, their faults, and what a kill leaves.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use chainette::chain::{Chain, Job, Node};
use chainette::event::RunState;
use chainette::run::{Existing, RunError};
use chainette::sink::{Format, Rows, Shard, Sink, SinkError};
use serde_json::{Value, json};

use crate::custom_sink::{Csv, words};
use crate::harness::{rows, tree, until};

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;
type Body = dyn Fn(&Shard<'_>, &mut Rows<'_>, &mut dyn Write) -> Outcome + Send + Sync;

/// A sink made of a closure.
struct Closure {
    name: &'static str,
    extension: &'static str,
    write: Box<Body>,
}

impl Closure {
    fn new(
        write: impl Fn(&Shard<'_>, &mut Rows<'_>, &mut dyn Write) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: "lines-1",
            extension: "txt",
            write: Box::new(write),
        }
    }
}

impl Sink for Closure {
    fn name(&self) -> &str {
        self.name
    }

    fn extension(&self) -> &str {
        self.extension
    }

    fn write(&self, shard: &Shard<'_>, rows: &mut Rows<'_>, out: &mut dyn Write) -> Outcome {
        (self.write)(shard, rows, out)
    }
}

/// A line that says the shard, and the rows as they are.
fn plain(shard: &Shard<'_>, rows: &mut Rows<'_>, out: &mut dyn Write) -> Outcome {
    writeln!(out, "{} {}", shard.folder, shard.index)?;
    for row in rows {
        writeln!(out, "{}", row?.text())?;
    }
    Ok(())
}

fn input(dir: &Path, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join("in.jsonl");
    fs::write(&path, text).expect("the folder is writable");
    path
}

/// Passes rows on, and fails a few.
fn picky() -> Chain {
    let program = "if .a == 4 then error(\"no\") else . end";
    Chain::builder("picky")
        .node(Node::jq("n", program))
        .build()
        .expect("a good chain")
}

fn job<'a>(chain: &'a Chain, dir: &Path, out: &str) -> Job<'a> {
    let mut job = chain.job(dir.join("in.jsonl"), dir.join(out));
    job.config.max_rows = 3;
    job.config.batch_size = 2;
    job
}

fn text(files: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    let bytes = files
        .get(name)
        .unwrap_or_else(|| panic!("{name} is not in {:?}", files.keys()));
    String::from_utf8(bytes.clone()).expect("text")
}

#[test]
fn the_csv_example_writes_nodes_and_flattened_records() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    input(
        dir.path(),
        "{\"text\":\"one, \\\"two\\\"\",\"stars\":1}\n{\"text\":\"\"}\nno json\n{\"text\":\"x\\ny z\",\"stars\":3,\"price\": 1.10,\"a,b\":[null]}\n{\"text\":\"last\"}\n",
    );
    let chain = words().expect("the chain is good");
    let stats = job(&chain, dir.path(), "out")
        .sink(Csv)
        .run()
        .expect("it runs")
        .into_result()
        .expect("it ends");
    assert_eq!((stats.rows_out, stats.rows_failed), (4, 1));
    let files = tree(&dir.path().join("out"));
    insta::assert_debug_snapshot!(files.keys().collect::<Vec<_>>());
    insta::assert_snapshot!(text(&files, "flattened/000.csv"));
    insta::assert_snapshot!(text(&files, "words/001.csv"));
    let error: Value = serde_json::from_str(&text(&files, "errors/000.jsonl")).expect("JSON");
    assert_eq!(error["kind"], "invalid_input");
    let metadata: Value = serde_json::from_str(&text(&files, "metadata.json")).expect("JSON");
    assert_eq!(metadata["options"]["format"], "csv-1");
    for (folder, shards) in metadata["shards"].as_object().expect("folders") {
        let extension = if folder == "errors" { "jsonl" } else { "csv" };
        for (index, shard) in shards.as_array().expect("shards").iter().enumerate() {
            let bytes = &files[&format!("{folder}/{index:03}.{extension}")];
            assert_eq!(shard["bytes"], bytes.len());
            assert_eq!(shard["blake3"], blake3::hash(bytes).to_hex().to_string());
        }
    }

    // Without a row there is one shard, of flattened records.
    fs::write(dir.path().join("in.jsonl"), "").expect("the input can be written");
    job(&chain, dir.path(), "empty").sink(Csv).run().expect("it runs");
    let files = tree(&dir.path().join("empty"));
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["flattened/000.csv", "graph.json", "metadata.json"]
    );
    assert_eq!(
        text(&files, "flattened/000.csv"),
        "row_id,chain_input.text,chain_input.stars,words.first,words.words,_other\n"
    );
}

#[test]
fn a_run_keeps_its_sink() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    input(dir.path(), rows(7));
    let chain = picky();
    let with = |name, extension, existing| {
        let mut job = job(&chain, dir.path(), "out").sink(Closure {
            name,
            extension,
            ..Closure::new(plain)
        });
        job.config.existing = existing;
        job
    };
    let outcome = with("lines-1", "txt", Existing::Same).run().expect("it runs");
    assert_eq!(outcome.stats.rows_out, 6);
    let refused = |job: Job<'_>| {
        let error = job.run().expect_err("it is refused");
        assert!(error.is_usage(), "{error}");
        error
            .to_string()
            .replace(&dir.path().display().to_string(), "[dir]")
    };
    let mut refusals = vec![
        refused(with("lines-2", "txt", Existing::Same)),
        refused(with("lines-1", "md", Existing::Same)),
        refused(job(&chain, dir.path(), "out")),
    ];
    let finished = with("lines-1", "txt", Existing::Same).run().expect("it is done");
    assert!(finished.already_finished);

    // Another one starts again, and leaves nothing of the first behind.
    let files = |job: Job<'_>| -> Vec<String> {
        assert_eq!(job.run().expect("it runs").stats.rows_out, 6);
        let files = tree(&dir.path().join("out"));
        let mut shards: Vec<String> = files.into_keys().filter(|name| name.contains('/')).collect();
        shards.retain(|name| !name.starts_with("errors"));
        shards
    };
    assert_eq!(
        files(with("lines-2", "md.gz", Existing::Overwrite)),
        [
            "flattened/000.md.gz",
            "flattened/001.md.gz",
            "n/000.md.gz",
            "n/001.md.gz"
        ]
    );
    let mut lines = job(&chain, dir.path(), "out");
    lines.config.existing = Existing::Keep;
    assert_eq!(
        files(lines),
        [
            "flattened/000.jsonl",
            "flattened/001.jsonl",
            "n/000.jsonl",
            "n/001.jsonl"
        ]
    );
    refusals.push(refused(with("lines-1", "txt", Existing::Same)));
    insta::assert_debug_snapshot!(refusals);
}

#[test]
fn names_and_extensions_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    input(dir.path(), rows(3));
    let chain = picky();
    let long = "abcdefghijklmnopq";
    let bad = [
        ("", "txt"),
        ("jsonl", "txt"),
        ("parquet", "txt"),
        ("My Sink", "txt"),
        ("a", ""),
        ("a", "../x"),
        ("a", ".txt"),
        ("a", "x.part"),
        ("a", long),
    ];
    let messages = bad.map(|(name, extension)| {
        let sink = Closure {
            name,
            extension,
            ..Closure::new(plain)
        };
        let error = job(&chain, dir.path(), "out")
            .sink(sink)
            .run()
            .expect_err("it is refused");
        assert!(error.is_usage(), "{error}");
        error.to_string()
    });
    insta::assert_debug_snapshot!(messages);
    assert!(!dir.path().join("out").exists(), "nothing is written");
}

#[test]
fn a_sink_that_fails_stops_the_run_which_goes_on_there() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    input(dir.path(), rows(40));
    let chain = picky();
    job(&chain, dir.path(), "whole")
        .sink(Closure::new(plain))
        .run()
        .expect("it runs");
    let expected = tree(&dir.path().join("whole"));

    /// Fails at one shard in a way of its own; half of the shard is written.
    fn failing(how: usize) -> Closure {
        Closure::new(move |shard, rows, out| {
            if (shard.folder, shard.index) != ("flattened", 2) {
                return plain(shard, rows, out);
            }
            writeln!(out, "half a sh")?;
            match how {
                0 => Err("the database is away".into()),
                1 => Err(Box::new(serde_json::from_str::<Value>("{").expect_err("no JSON"))),
                2 => Err(Box::new(std::io::Error::new(
                    std::io::ErrorKind::PermissionDenied,
                    RunError::Bug {
                        message: "inner".into(),
                    },
                ))),
                _ => panic!("on purpose"),
            }
        })
    }
    let mut messages = Vec::new();
    for how in 0..4 {
        let outcome = job(&chain, dir.path(), "out")
            .sink(failing(how))
            .run()
            .expect("it starts");
        assert_eq!(outcome.stats.state, RunState::Stopped);
        let stopped = outcome.stopped.expect("it stopped");
        assert!(
            matches!(&stopped, RunError::Sink(SinkError::Custom { sink, .. }) if sink == "lines-1"),
            "{stopped:?}"
        );
        messages.push(stopped.to_string());
        assert!(!dir.path().join("out/flattened/002.txt").exists());
    }
    insta::assert_debug_snapshot!(messages);
    let outcome = job(&chain, dir.path(), "out")
        .sink(Closure::new(plain))
        .run()
        .expect("it starts");
    assert_eq!(outcome.stats.state, RunState::Finished);
    assert_eq!(tree(&dir.path().join("out")), expected);
}

#[test]
fn rows_end_with_an_error_when_the_run_stops() {
    const ROWS: usize = 20_000;
    let dir = tempfile::tempdir().expect("a temporary folder");
    input(dir.path(), rows(2 * ROWS));
    let (reads, fails) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (seen, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    // Once a shard has failed, more rows come.
    let failed = fails.clone();
    let pass = Node::apply("n", move |row| {
        if row.get("a").is_some_and(|n| n.parse() == Ok(ROWS + 9)) {
            until("failure", || failed.load(Ordering::SeqCst));
        }
        Ok(vec![row.clone()])
    });
    let chain = Chain::builder("copy").node(pass).build().expect("a good chain");
    let sink = {
        let (seen, ended) = (seen.clone(), ended.clone());
        Closure::new(move |shard, rows, _out| {
            if shard.folder == "flattened" {
                until("reader", || reads.load(Ordering::SeqCst));
                fails.store(true, Ordering::SeqCst);
                return Err("on purpose".into());
            }
            reads.store(true, Ordering::SeqCst);
            until("failure", || fails.load(Ordering::SeqCst));
            // Far more rows than the run takes to stop.
            for row in rows {
                std::thread::sleep(std::time::Duration::from_millis(1));
                ended.store(row.is_err(), Ordering::SeqCst);
                seen.fetch_add(1, Ordering::SeqCst);
            }
            // What it says no longer matters.
            Ok(())
        })
    };
    let mut job = job(&chain, dir.path(), "out").sink(sink);
    job.config.max_rows = ROWS as u64;
    job.config.batch_size = 100;
    let stopped = job.run().expect("it starts").stopped.expect("it stopped");
    assert!(stopped.to_string().contains("on purpose"), "{stopped}");
    assert!(ended.load(Ordering::SeqCst), "the last row is an error");
    assert!(seen.load(Ordering::SeqCst) < ROWS);
    assert!(!dir.path().join("out/n/000.txt").exists());
}

#[test]
fn a_sink_hands_rows_to_a_store_at_least_once() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    input(dir.path(), rows(20));
    let chain = picky();
    let store: Arc<Mutex<BTreeMap<(String, String), Value>>> = Arc::default();
    let schemas: Arc<Mutex<BTreeMap<String, Value>>> = Arc::default();
    for limit in [Some(4), Some(4), Some(11), None, None] {
        let (store, schemas) = (store.clone(), schemas.clone());
        let sink = Closure::new(move |shard, rows, out| {
            schemas
                .lock()
                .expect("unpoisoned")
                .insert(shard.folder.to_owned(), shard.schema.clone());
            // A sink may leave rows unread: those of `n` go nowhere.
            if shard.folder == "n" {
                return Ok(());
            }
            for row in rows {
                let row = row?.to_json();
                let id = row["row_id"].as_str().expect("every row has one").to_owned();
                writeln!(out, "{id}")?;
                store
                    .lock()
                    .expect("unpoisoned")
                    .insert((shard.folder.to_owned(), id), row);
            }
            Ok(())
        });
        let mut job = job(&chain, dir.path(), "out").sink(sink);
        job.config.limit = limit;
        let outcome = job.run().expect("it starts");
        assert_eq!(outcome.stats.state, RunState::Finished);
    }
    let store = store.lock().expect("unpoisoned");
    assert_eq!(store.len(), 19);
    for ((folder, id), row) in store.iter() {
        assert_eq!(folder, "flattened");
        assert_eq!(row["n.a"].to_string(), *id);
    }
    // Both what it wrote and its own order: shards that were extended are whole.
    let files = tree(&dir.path().join("out"));
    assert_eq!(text(&files, "flattened/001.txt"), "3\n5\n6\n");
    assert_eq!(text(&files, "flattened/006.txt"), "19\n");
    assert_eq!(text(&files, "n/006.txt"), "");
    let graph: Value = serde_json::from_str(&text(&files, "graph.json")).expect("JSON");
    let schemas = schemas.lock().expect("unpoisoned");
    assert_eq!(schemas["flattened"], graph["schemas"]["flattened"]);
    assert_eq!(schemas.len(), 2);
}

/// Set for the process that is killed.
const OUT: &str = "CHAINETTE_TEST_SINK";
const MANY: usize = 600;

/// A job that waits, where it is told to, in the middle of a run and then in the middle of a shard.
fn waiting(dir: &Path, waits: bool) -> (Chain, Closure) {
    let (checkpoint, reached) = (dir.join("out/.chainette/checkpoint.json"), dir.join("reached"));
    let pass = Node::apply("n", move |row| {
        if waits && row.get("a") == Some("300") {
            until("checkpoint", || checkpoint.exists());
        }
        Ok(vec![row.clone()])
    });
    let chain = Chain::builder("slow").node(pass).build().expect("a good chain");
    let sink = Closure::new(move |shard, rows, out| {
        if !waits || shard.index < 3 * MANY / 4 / 3 {
            return plain(shard, rows, out);
        }
        writeln!(out, "half a sh")?;
        out.flush()?;
        fs::write(&reached, "")?;
        loop {
            std::thread::park();
        }
    });
    (chain, sink)
}

#[test]
fn a_killed_job_goes_on() {
    if let Some(dir) = std::env::var_os(OUT) {
        let dir = PathBuf::from(dir);
        let (chain, sink) = waiting(&dir, true);
        let _never_ends = job(&chain, &dir, "out").sink(sink).run();
        panic!("it was to be killed");
    }
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let dir = temporary.path();
    input(dir, rows(MANY));
    let (chain, sink) = waiting(dir, false);
    job(&chain, dir, "whole").sink(sink).run().expect("it runs");
    let expected = tree(&dir.join("whole"));

    // This very test, in a process of its own.
    let binary = std::env::current_exe().expect("a test has a binary");
    let mut child = Command::new(binary)
        .args(["--exact", "sinks::a_killed_job_goes_on"])
        .env(OUT, dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("the test starts");
    until("shard", || {
        let over = child.try_wait().expect("a child can be waited for");
        assert!(over.is_none(), "it ended by itself: {over:?}");
        dir.join("reached").exists()
    });
    child.kill().expect("it can be killed");
    child.wait().expect("a killed child can be reaped");

    let (chain, sink) = waiting(dir, false);
    let outcome = job(&chain, dir, "out").sink(sink).run().expect("it starts");
    assert!(outcome.stats.rows_resumed > 0, "there was a checkpoint");
    assert_eq!(outcome.stats.state, RunState::Finished);
    assert_eq!(tree(&dir.join("out")), expected);
}

#[test]
fn a_format_says_what_it_is() {
    let sink = Format::Custom(Arc::new(Closure::new(plain)));
    assert_eq!((sink.name(), sink.extension()), ("lines-1", "txt"));
    assert_eq!(format!("{sink:?}"), "Custom(Sink(lines-1))");
    let built_in = [Format::Jsonl, Format::Parquet];
    assert_eq!(
        built_in.map(|format| format.extension().to_owned()),
        ["jsonl", "parquet"]
    );
    assert_eq!(json!(Format::default().name()), "jsonl");
}
