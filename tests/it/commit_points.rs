//! A kill at every commit point, without luck: what a kill would have left on disk is put there, then the run is resumed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, copy, tree};
use crate::server::{Answer, TestServer};

const ROWS: usize = 60;
const LINES: u64 = 7;
/// Rows that are committed at the kill.
const COMMITTED: [usize; 7] = [1, 5, 13, 28, 29, 59, 60];

/// How far the files are ahead of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ahead {
    /// Every later line is written, every full shard has its name.
    Renamed,
    /// Everything is written, nothing that the checkpoint does not know has its name.
    Unnamed,
    /// Every other shard has its name.
    Mixed,
    /// Nothing was written after the checkpoint.
    Exact,
    /// Half a line was written after it, and the next shard was made.
    Torn,
}

const AHEAD: [Ahead; 5] = [
    Ahead::Renamed,
    Ahead::Unnamed,
    Ahead::Mixed,
    Ahead::Exact,
    Ahead::Torn,
];

fn input() -> String {
    let row = |n: usize| match n % 11 {
        10 => "no json\n".to_owned(),
        _ => format!("{{\"n\":{n},\"text\":\"row {n}\"}}\n"),
    };
    (0..ROWS).map(row).collect()
}

fn chain(server: &TestServer) -> String {
    json!({
        "name": "points",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 4}},
        "steps": [
            {"id": "first", "engine": "e", "user_prompt": "{{ text }}", "output_model": {"g": "integer"}, "retries": {"output": 1}},
            {"id": "fan", "apply": {"jq": "range(.g % 4) as $i | {i: $i}"}},
            {"id": "second", "engine": "e", "user_prompt": "{{ row_id }}", "output_model": {"g": "integer"}},
        ],
    })
    .to_string()
}

fn checkpoint(out: &Path) -> PathBuf {
    out.join(".chainette/checkpoint.json")
}

/// The checkpoint of a run that ended at a `--limit`, as it would have been on the way past it.
fn underway(out: &Path) -> Value {
    let bytes = fs::read(checkpoint(out)).expect("there is a checkpoint");
    let mut found: Value = serde_json::from_slice(&bytes).expect("it is JSON");
    found["finished"] = false.into();
    found["limit"] = Value::Null;
    for state in found["sinks"].as_object_mut().expect("folders").values_mut() {
        let rolled = state["rolled"].as_array_mut().expect("a list");
        if let Some(last) = rolled.pop_if(|last| last["rows"].as_u64() < Some(LINES)) {
            (state["rows"], state["bytes"]) = (last["rows"].clone(), last["bytes"].clone());
        }
    }
    found
}

/// Takes a folder of shards from the end of the run back to what a kill left.
fn rewind(dir: &Path, state: &Value, ahead: Ahead) {
    let open = state["rolled"].as_array().map_or(0, Vec::len);
    let bytes = state["bytes"].as_u64().unwrap_or(0);
    for index in open.. {
        let name = dir.join(format!("{index:03}.jsonl"));
        let part = dir.join(format!("{index:03}.jsonl.part"));
        if !name.exists() {
            break;
        }
        match ahead {
            Ahead::Renamed => {}
            Ahead::Mixed if index % 2 == 0 => {}
            Ahead::Mixed | Ahead::Unnamed => fs::rename(&name, &part).expect("a shard can be renamed"),
            Ahead::Exact | Ahead::Torn => {
                let mut text = fs::read(&name).expect("a shard can be read");
                fs::remove_file(&name).expect("a shard can be removed");
                let keep = if index == open { bytes as usize } else { 0 };
                text.truncate(keep + if ahead == Ahead::Torn { 9 } else { 0 });
                if !text.is_empty() || (ahead == Ahead::Torn && index == open + 1) {
                    fs::write(&part, text).expect("a shard can be written");
                }
            }
        }
    }
}

/// Offsets at which the ledger's frames end.
fn frames(ledger: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some(head) = ledger.get(at..at + 4) {
        at += 12 + u32::from_le_bytes(head.try_into().expect("four bytes")) as usize;
        ends.push(at);
    }
    assert_eq!(at, ledger.len());
    ends
}

struct Finished {
    bench: Bench,
    server: TestServer,
    whole: std::collections::BTreeMap<String, Vec<u8>>,
    /// By how many rows were committed.
    checkpoints: Vec<Value>,
}

impl Finished {
    fn new() -> Self {
        let server = TestServer::start(|asked| {
            let n: usize = asked.user().bytes().map(usize::from).sum();
            match n % 9 {
                0 if asked.tries() == 0 => Answer::text("what?"),
                1 => Answer::text("never"),
                _ => Answer::text(json!({"g": n}).to_string()),
            }
        });
        let bench = Bench::new(&chain(&server), input());
        let run = |limit: Option<usize>| -> Ran {
            let limit = limit.map(|n| n.to_string());
            let mut args = vec!["--max-lines-per-file", "7", "--batch-size", "5"];
            args.extend(limit.as_deref().into_iter().flat_map(|n| ["--limit", n]));
            let ran = bench.run(&args);
            assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
            ran
        };
        let out = run(None).out;
        let whole = tree(&out);
        fs::remove_dir_all(&out).expect("OUT can be removed");
        let checkpoints = COMMITTED.iter().map(|n| {
            run(Some(*n));
            underway(&out)
        });
        let checkpoints = checkpoints.collect();
        run(None);
        assert!(tree(&out) == whole, "a run in steps leaves the same files");
        fs::rename(&out, out.with_file_name("finished")).expect("OUT can be renamed");
        server.clear_log();
        Self {
            bench,
            server,
            whole,
            checkpoints,
        }
    }

    /// Resumes what a kill left; how many requests that took.
    fn resumed(&self, at: Option<usize>, ahead: Ahead, spoil: impl FnOnce(&Path)) -> u64 {
        let out = self.bench.dir.path().join("out");
        let _absent = fs::remove_dir_all(&out);
        copy(&out.with_file_name("finished"), &out);
        let none = json!({"outcomes": 0, "sinks": {}});
        let state = at.map_or(&none, |at| &self.checkpoints[at]);
        for folder in ["first", "fan", "second", "flattened", "errors"] {
            rewind(&out.join(folder), &state["sinks"][folder], ahead);
        }
        match at {
            None => fs::remove_file(checkpoint(&out)),
            Some(_) => fs::write(checkpoint(&out), state.to_string()),
        }
        .expect("the checkpoint can be changed");
        if matches!(ahead, Ahead::Exact | Ahead::Torn) {
            let path = out.join(".chainette/outcomes");
            let mut outcomes = fs::read(&path).expect("there are outcomes");
            outcomes.truncate(state["outcomes"].as_u64().expect("a number") as usize);
            if ahead == Ahead::Torn {
                outcomes.extend_from_slice(b"{\"row\":");
            }
            fs::write(&path, outcomes).expect("the outcomes can be written");
        }
        let metadata = out.join("metadata.json");
        match ahead {
            Ahead::Mixed => fs::remove_file(&metadata),
            _ => fs::write(&metadata, "{\"state\": \"running\"}"),
        }
        .expect("the metadata can be changed");
        for name in [
            "checkpoint.json.tmp",
            "metadata.json.tmp",
            "graph.json.tmp",
            "parked",
        ] {
            fs::write(out.join(".chainette").join(name), "{\"ha").expect("a file can be written");
        }
        spoil(&out.join(".chainette/answers"));
        let before = self.server.stats().asked;
        let ran = self
            .bench
            .run(&["--max-lines-per-file", "7", "--batch-size", "4"]);
        let place = format!("{:?} rows committed, {ahead:?}", at.map(|at| COMMITTED[at]));
        assert_eq!(ran.code, 3, "{place}: {}", ran.stderr);
        let found = tree(&ran.out);
        for (name, bytes) in &self.whole {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(
                found.get(name).map(|b| text(b)),
                Some(text(bytes)),
                "{place}: {name}"
            );
        }
        assert_eq!(found.len(), self.whole.len(), "{place}: {:?}", found.keys());
        self.server.stats().asked - before
    }
}

#[test]
fn every_state_of_the_files_resumes_to_the_same_files() {
    let run = Finished::new();
    let points = (0..COMMITTED.len()).map(Some).chain([None]);
    for at in points {
        for ahead in AHEAD {
            let asked = run.resumed(at, ahead, |_| ());
            assert_eq!(asked, 0, "every answer is on file");
        }
    }
}

#[test]
fn every_state_of_the_ledger_asks_only_what_is_missing() {
    let run = Finished::new();
    let log = |dir: &Path| dir.join("000000.log");
    let read = |dir: &Path| fs::read(log(dir)).expect("there is a ledger");
    let write = |path: PathBuf, bytes: &[u8]| fs::write(path, bytes).expect("the ledger can be written");
    let ledger = read(&run.bench.dir.path().join("finished/.chainette/answers"));
    let ends = frames(&ledger);
    let last = ends[ends.len() - 2];
    for at in [None, Some(2)] {
        // A torn last frame, at any byte of it.
        for cut in [last, last + 1, last + 11, last + 12, last + 13, ledger.len() - 1] {
            let asked = run.resumed(at, Ahead::Unnamed, |dir| write(log(dir), &ledger[..cut]));
            assert_eq!(asked, 1, "the last answer was lost");
        }
        // A crash of the machine may leave zeros, or anything.
        for junk in [&[0; 100][..], &[0xff; 100], &[0x10, 0, 0, 0, 1, 2, 3]] {
            let asked = run.resumed(at, Ahead::Torn, |dir| write(log(dir), &[&ledger, junk].concat()));
            assert_eq!(asked, 0);
        }
        // Over several segments, the last one just made.
        for end in [ends[0], ends[ends.len() / 2], last, ledger.len()] {
            let asked = run.resumed(at, Ahead::Mixed, |dir| {
                write(log(dir), &ledger[..end]);
                write(dir.join("000001.log"), &ledger[end..]);
            });
            assert_eq!(asked, 0, "split at {end}");
        }
    }
    // A frame in the middle that the disk lost costs its own answer only.
    let from = ends[ends.len() / 2];
    let mut spoilt = ledger.clone();
    spoilt[from + 20] ^= 1;
    let asked = run.resumed(None, Ahead::Exact, |dir| write(log(dir), &spoilt));
    assert_eq!(asked, 1, "one answer was damaged");
}
