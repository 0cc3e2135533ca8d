//! `--format parquet`: the same bytes however a run came to its end, whatever a kill left on disk.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Bench, copy, tree};
use crate::parquet::{PARQUET, jq, run, shards, types};
use crate::server::Dice;

/// Rows with late fields and misfits, of which some fail, some are filtered and some fan out.
pub fn busy(rows: usize) -> (String, String) {
    let mut input = String::new();
    for n in 0..rows {
        match n % 97 {
            96 => input.push_str("no json\n"),
            95 => writeln!(
                input,
                "{{\"n\":{n},\"late{}\":true,\"o\":{{\"x\":\"{n}\"}}}}",
                n / 4000
            )
            .expect("a string grows"),
            _ => writeln!(
                input,
                "{{\"n\":{n},\"text\":\"row {n}\",\"price\": 1.10,\"o\":{{\"x\":{n}}}}}"
            )
            .expect("a string grows"),
        }
    }
    let chain = json!({
        "name": "busy",
        "steps": [
            {"id": "keep", "apply": {"jq": "select(.n % 7 != 3)"}},
            {"id": "fan", "apply": {"jq": "range(.n % 4) as $i | . + {i: $i}"}},
            {"id": "odd", "apply": {"jq": "if .n % 50 == 1 then error(\"bad\") else {m: (.n + .i)} end"}},
        ],
    });
    (chain.to_string(), input)
}

#[test]
fn neither_batches_nor_limits_nor_kills_change_a_byte() {
    let (chain, input) = busy(14_000);
    let bench = Bench::new(&chain, input);
    let lines = ["--max-lines-per-file", "3000"];
    let whole = run(&bench, &[&lines[..], &["--batch-size", "501"]].concat());
    assert_eq!(whole.code, 3, "{}", whole.stderr);
    let expected = tree(&whole.out);
    assert!(expected.contains_key("fan/005.parquet"), "{:?}", expected.keys());
    fs::remove_dir_all(&whole.out).expect("OUT can be removed");

    // Growing limits: before and after the types are decided, at and off the ends of shards.
    for limit in ["0", "7", "2300", "4001", "9000", "13000"] {
        let ran = run(
            &bench,
            &[&lines[..], &["--limit", limit, "--batch-size", "64"]].concat(),
        );
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
        let again = run(&bench, &[&lines[..], &["--limit", limit]].concat());
        assert!(matches!(again.code, 0 | 3), "{}", again.stderr);
    }
    let ran = run(&bench, &lines);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    same(&tree(&ran.out), &expected, "growing limits");
    fs::remove_dir_all(&ran.out).expect("OUT can be removed");

    let mut dice = Dice::new(b"parquet kills");
    let mut killed = 0;
    for _ in 0..12 {
        let mut command = bench.command(&[&PARQUET[..], &lines, &["--batch-size", "64", "--quiet"]].concat());
        let mut child = command.spawn().expect("the command starts");
        std::thread::sleep(Duration::from_millis(dice.below(400)));
        let over = child.try_wait().expect("a child can be waited for").is_some();
        let _it_may_be_dead = child.kill();
        child.wait().expect("a killed child can be reaped");
        if over {
            break;
        }
        killed += 1;
    }
    let ran = run(&bench, &lines);
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
    same(&tree(&ran.out), &expected, &format!("{killed} kills"));
}

fn same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>, place: &str) {
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "{place}"
    );
    for (name, bytes) in expected {
        let found = &found[name];
        if name == "metadata.json" {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(text(found), text(bytes), "{place}");
        }
        assert!(found == bytes, "{place}: {name} differs");
    }
}

/// What a kill leaves between two steps of a shard's way is put on disk, then the run is resumed.
#[test]
fn every_state_between_lines_and_shard_is_repaired() {
    let rows = 60;
    let (chain, input) = busy(rows);
    let bench = Bench::new(&chain, input);
    let lines = ["--max-lines-per-file", "7", "--batch-size", "5"];
    let out = run(&bench, &lines).out;
    let expected = tree(&out);
    let finished = out.with_file_name("finished");
    fs::rename(&out, &finished).expect("OUT can be renamed");
    let folders = ["keep", "fan", "odd", "flattened"];
    for limit in ["3", "21", "59"] {
        let base = out.with_file_name("base");
        let _absent = fs::remove_dir_all(&base);
        let ran = run(&bench, &[&lines[..], &["--limit", limit]].concat());
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
        fs::rename(&out, &base).expect("OUT can be renamed");
        for state in 0..7 {
            copy(&base, &out);
            underway(&out, &folders);
            for folder in folders {
                let (dir, spool) = (out.join(folder), out.join(".chainette/spool").join(folder));
                let spooled = shards(&out.join(".chainette/spool"), folder);
                fs::create_dir_all(&dir).expect("a folder can be made");
                match state {
                    // Lines behind the checkpoint, whole and torn.
                    0 => append(spooled.last(), b"{\"row_id\":\"99\"}\n{\"row"),
                    // The next shards of lines were begun.
                    1 => (0..3).for_each(|n| {
                        let path = spool.join(format!("{:03}.jsonl", spooled.len() + n + 5));
                        fs::create_dir_all(&spool).expect("a folder can be made");
                        fs::write(path, "{}\n").expect("a file can be written");
                    }),
                    // Conversions were under way.
                    2 => (0..4).for_each(|n| {
                        fs::write(dir.join(format!("{n:03}.parquet.part")), "PAR1")
                            .expect("a file can be written");
                    }),
                    // Shards have their names and the checkpoint does not know them: other bytes than the final ones.
                    3 => (0..3).for_each(|n| {
                        fs::write(dir.join(format!("{n:03}.parquet")), "PAR1")
                            .expect("a file can be written");
                    }),
                    // Or the final ones.
                    4 => copy(&finished.join(folder), &dir),
                    // The folder of shards was never made.
                    5 => fs::remove_dir_all(&dir).expect("a folder can be removed"),
                    _ => {}
                }
            }
            let ran = run(&bench, &lines);
            assert_eq!(ran.code, 3, "limit {limit}, state {state}: {}", ran.stderr);
            same(
                &tree(&ran.out),
                &expected,
                &format!("limit {limit}, state {state}"),
            );
            fs::remove_dir_all(&out).expect("OUT can be removed");
        }
        // No checkpoint at all: killed within the first second.
        copy(&base, &out);
        fs::remove_file(out.join(".chainette/checkpoint.json")).expect("there is a checkpoint");
        let ran = run(&bench, &lines);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        same(&tree(&ran.out), &expected, "no checkpoint");
        fs::remove_dir_all(&out).expect("OUT can be removed");
    }
}

/// Makes the checkpoint of a run that ended at a limit the one it had before it ended.
fn underway(out: &Path, folders: &[&str]) {
    let path = out.join(".chainette/checkpoint.json");
    let mut found: Value =
        serde_json::from_slice(&fs::read(&path).expect("there is a checkpoint")).expect("JSON");
    found["finished"] = false.into();
    found["limit"] = Value::Null;
    for folder in folders {
        let state = &mut found["sinks"][folder];
        let before = state["spool"]["resumable"].take();
        let complete = before["rolled"].as_u64().expect("a number") as usize;
        state["rolled"].as_array_mut().expect("a list").truncate(complete);
        (state["rows"], state["bytes"]) = (before["rows"].clone(), before["bytes"].clone());
        let mut spool = json!({});
        for key in ["closed", "layout"] {
            if let Some(value) = before.get(key) {
                spool[key] = value.clone();
            }
        }
        state["spool"] = spool;
    }
    fs::write(&path, found.to_string()).expect("the checkpoint can be written");
}

fn append(path: Option<&PathBuf>, bytes: &[u8]) {
    use std::io::Write as _;
    if let Some(path) = path {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(path)
            .expect("the file is there");
        file.write_all(bytes).expect("the file can be written");
    }
}

#[test]
fn the_lines_are_given_back() {
    let (chain, input) = busy(200);
    let bench = Bench::new(&chain, input);
    let ran = run(&bench, &["--max-lines-per-file", "30"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    for folder in ["keep", "fan", "odd", "flattened"] {
        assert_eq!(
            shards(&ran.out.join(".chainette/spool"), folder),
            Vec::<PathBuf>::new()
        );
    }
    // Another chain, the same OUT: nothing of the old lines is left over.
    bench.write("chain.yaml", jq("{other: .n}"));
    let refused = run(&bench, &["--max-lines-per-file", "30"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let ran = run(&bench, &["--max-lines-per-file", "30", "--resume"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(
        types(&ran.out, "a"),
        ["row_id: Utf8", "other: Int64", "_rescued: Utf8"]
    );
    assert!(!ran.out.join("keep").exists());
    let other = bench.run(&["--max-lines-per-file", "30"]);
    assert_eq!(other.code, 2);
    assert!(other.stderr.contains("--format differs"), "{}", other.stderr);
}

#[test]
fn what_was_changed_meanwhile_is_said() {
    let (chain, input) = busy(100);
    let bench = Bench::new(&chain, input);
    let ran = run(&bench, &["--limit", "20", "--max-lines-per-file", "7"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let lines = ran.out.join(".chainette/spool/keep/001.jsonl");
    fs::remove_file(&lines).expect("the lines of a run with a limit are kept");
    let ran = run(&bench, &["--max-lines-per-file", "7"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    insta::assert_snapshot!(ran.stderr.lines().find(|line| line.contains("spool")).unwrap_or_default(), @"error: out/.chainette/spool/keep/001.jsonl was changed or removed since the run stopped (it is missing); restore it, or use --resume to write all outputs again from the answers on file");
}
