//! `chainette verify`: every finished run is proven, and whatever is done to one is found.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use chainette::audit::{Verdict, verify};
use chainette::sink::{Rows, Shard, Sink};
use serde_json::{Value, json};

use crate::harness::{self, Bench, Ran, echo, everything, invoke, two_steps};

/// The verdict on a run that nobody touched; the error is what is wrong with it.
pub fn proven(out: &Path) -> Result<Verdict, String> {
    let verdict = verify(out).map_err(|error| error.to_string())?;
    let problems: Vec<String> = verdict.problems.iter().map(ToString::to_string).collect();
    if verdict.proven && problems.is_empty() {
        Ok(verdict)
    } else {
        Err(format!("not proven:\n{}", problems.join("\n")))
    }
}

/// Every kind of fate: bad input, fan-out, filtered, skipped and failed rows, branches of every kind.
const BUSY: &str = "\
name: busy
input_model: {n: integer}
steps:
  - id: fan
    apply: {jq: 'if .n == 5 then error(\"five\") elif .n % 4 == 3 then empty elif .n % 4 == 2 then ({n, k: 0}, {n, k: 1}) else {n, k: 0} end'}
    output_model: {n: integer, k: integer}
  - parallel:
      - branch: even
        join: even
        when: fan.n % 2 == 0
        steps:
          - {id: half, apply: {jq: '{half: (.n / 2)}'}, output_model: {half: number}}
          - {id: check, apply: {jq: 'if .half == 7 then error(\"seven\") else . end'}, yield_output: false}
      - branch: audit
        steps:
          - {id: note, apply: {jq: 'if .n == 8 then error(\"eight\") else {flag: true} end'}}
      - branch: list
        join: list
        collect: true
        steps:
          - {id: many, apply: {jq: 'range(.n % 3) | {i: .}'}}
  - {id: last, when: fan.n > 2, apply: {jq: '{text: \"number \\(.n)\"}'}}
";

/// Rows for [`BUSY`], of which two are bad.
fn busy_rows() -> String {
    let rows = (0..24).map(|n| match n {
        9 => "{\"n\":".to_owned(),
        10 => "{\"n\":\"ten\"}".to_owned(),
        n => format!("{{\"n\":{n}}}"),
    });
    rows.map(|row| row + "\n").collect()
}

/// A finished run of [`BUSY`].
fn busy(extra: &[&str]) -> (Bench, Ran) {
    let bench = Bench::new(BUSY, busy_rows());
    let args = ["--batch-size", "5", "--max-lines-per-file", "7", "--quiet"];
    let ran = bench.run(&[&args, extra].concat());
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    proven(&ran.out).expect("the run is proven");
    (bench, ran)
}

/// An OUT that is being tampered with.
struct Out<'a>(&'a Path);

impl Out<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(file), content).expect("OUT is writable");
    }

    fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).expect("the file was there");
    }

    /// Replaces the first place of a text that must be there.
    fn replace(&self, file: &str, old: &str, new: &str) {
        let text = self.text(file);
        assert!(text.contains(old), "{file} has no {old}: {text}");
        self.write(file, text.replacen(old, new, 1));
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).expect("the file is there")
    }

    fn lines(&self, file: &str, change: impl FnOnce(&mut Vec<String>)) {
        let mut lines: Vec<String> = self.text(file).lines().map(str::to_owned).collect();
        change(&mut lines);
        self.write(
            file,
            lines.iter().map(|line| format!("{line}\n")).collect::<String>(),
        );
    }

    fn json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_str(&self.text(file)).expect("it is JSON");
        change(&mut value);
        self.write(file, format!("{value:#}\n"));
    }

    /// Makes everything that tells of the shards' bytes agree with them as they are now, and seals it.
    fn reseal(&self) {
        let mut shards = json!({});
        self.json("metadata.json", |metadata| {
            shards = metadata["shards"].clone();
            let extension = metadata["options"]["format"]
                .as_str()
                .expect("a format")
                .to_owned();
            for (folder, all) in shards.as_object_mut().expect("shards by folder") {
                let extension = if folder == "errors" { "jsonl" } else { &extension };
                for (at, shard) in all.as_array_mut().expect("a list").iter_mut().enumerate() {
                    let bytes =
                        fs::read(self.path(&format!("{folder}/{at:03}.{extension}"))).expect("a shard");
                    shard["bytes"] = bytes.len().into();
                    shard["blake3"] = hex(&bytes).into();
                    if extension == "jsonl" {
                        shard["rows"] = bytes.iter().filter(|byte| **byte == b'\n').count().into();
                    }
                }
            }
            metadata["shards"] = shards.clone();
        });
        self.json(".chainette/checkpoint.json", |checkpoint| {
            for (folder, shards) in shards.as_object().expect("shards by folder") {
                checkpoint["sinks"][folder]["rolled"] = shards.clone();
            }
        });
        self.seal();
    }

    /// Changes the outcomes, and makes their digest fit.
    fn outcomes(&self, old: &str, new: &str) {
        self.replace(".chainette/outcomes", old, new);
        let text = self.text(".chainette/outcomes");
        let mut rows = 0;
        let mut places: BTreeMap<String, Vec<(String, u64)>> = BTreeMap::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("a line is JSON");
            rows += line["rows"].as_u64().expect("rows");
            let mut add = |place: String, fates: &Value| {
                let all = places.entry(place).or_default();
                for (fate, n) in runs(fates.as_str().expect("fates are text")) {
                    match all.last_mut() {
                        Some((last, count)) if *last == fate => *count += n,
                        _ => all.push((fate, n)),
                    }
                }
            };
            add("input".into(), &line["input"]);
            for (kind, key) in [("node", "nodes"), ("branch", "branches")] {
                for (id, fates) in line[key].as_object().into_iter().flatten() {
                    add(format!("{kind} {id}"), fates);
                }
            }
        }
        let digests = places.iter().map(|(place, runs)| {
            let runs: String = runs.iter().map(|(fate, n)| format!("{n}{fate};")).collect();
            format!("{place} {}\n", hex(runs.as_bytes()))
        });
        let digest = hex(digests.collect::<String>().as_bytes());
        self.json(".chainette/checkpoint.json", |checkpoint| {
            checkpoint["outcomes"] = text.len().into()
        });
        self.json("metadata.json", |metadata| {
            metadata["outcomes"] = json!({"rows": rows, "blake3": digest});
        });
        self.seal();
    }

    /// Seals `metadata.json` as the run does.
    fn seal(&self) {
        self.json("metadata.json", |metadata| {
            let object = metadata.as_object_mut().expect("an object");
            object.shift_remove("seal");
            object["timings"]
                .as_object_mut()
                .expect("timings")
                .shift_remove("seal");
            let mut content = object.clone();
            for changing in ["run_id", "versions", "timings"] {
                content.shift_remove(changing).expect(changing);
            }
            let content = hex(Value::Object(content).to_string().as_bytes());
            let whole = hex(format!("{content} {}", Value::Object(object.clone())).as_bytes());
            metadata["timings"]["seal"] = whole.into();
            metadata["seal"] = content.into();
        });
    }
}

/// The runs of a text of fates: each fate with the rows it left, and how often.
fn runs(text: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).expect("a letter");
        let n = rest[..digits].parse().unwrap_or(1);
        let letter = &rest[digits..=digits];
        rest = &rest[digits + 1..];
        let mut left = "1";
        if let Some(more) = rest.strip_prefix(':') {
            (left, rest) = more.split_once(',').expect("it is ended");
        }
        found.push((format!("{letter}{left}"), n));
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// What is done to an OUT.
type Tamper = fn(&Out<'_>);

/// Does each to a copy of a run's OUT, and shows what is said: exit code and stdout.
fn told(bench: &Bench, cases: &[(&str, Tamper)]) -> String {
    let whole = bench.dir.path().join("out");
    let mut told = String::new();
    for (name, tamper) in cases {
        let dir = tempfile::tempdir().expect("a folder can be made");
        let out = dir.path().join("out");
        copy(&whole, &out);
        tamper(&Out(&out));
        let before = everything(&out);
        let (code, stdout, stderr) = invoke(dir.path(), &["verify", "out"]);
        assert_eq!((code, stderr.as_str()), (1, ""), "{name}: {stdout}");
        assert!(before == everything(&out), "{name}: verify writes nothing");
        let (head, tail) = stdout.split_once("\n\n").expect("what to do stands at the end");
        assert!(!tail.is_empty(), "{name}");
        told += &format!("# {name}\n{head}\n\n");
    }
    told
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a file can be copied");
        }
    }
}

#[test]
fn whatever_is_done_to_a_run_is_found() {
    let (bench, _ran) = busy(&[]);
    let cases: &[(&str, Tamper)] = &[
        ("a byte of a shard is flipped", |out| {
            out.replace("last/000.jsonl", "number 4", "number 5");
        }),
        ("a line is deleted", |out| {
            out.lines("last/000.jsonl", |lines| drop(lines.remove(3)));
        }),
        ("a line stands twice", |out| {
            out.lines("fan/001.jsonl", |lines| lines.insert(2, lines[2].clone()));
        }),
        ("two lines are swapped", |out| {
            out.lines("fan/001.jsonl", |lines| lines.swap(1, 2));
        }),
        ("a shard is removed", |out| out.remove("fan/001.jsonl")),
        ("the last shard is removed", |out| out.remove("fan/002.jsonl")),
        ("a shard is emptied", |out| out.write("fan/001.jsonl", "")),
        ("a shard too many", |out| {
            out.write("last/099.jsonl", out.text("last/000.jsonl"))
        }),
        ("an open shard was left", |out| {
            out.write("last/002.jsonl.part", "{")
        }),
        ("a file of somebody else lies in a folder", |out| {
            out.write("last/notes.txt", "see above")
        }),
        ("a file in the place of a folder", |out| {
            fs::remove_dir_all(out.path("note")).expect("it was there");
            out.write("note", "gone");
        }),
        ("a folder in the place of a shard", |out| {
            out.remove("note/001.jsonl");
            fs::create_dir(out.path("note/001.jsonl")).expect("a folder can be made");
        }),
        ("a folder of shards that is none of the run", |out| {
            fs::create_dir(out.path("other")).expect("a folder can be made");
            out.write("other/000.jsonl", "{\"row_id\":\"0\"}\n");
        }),
        ("a row id is changed", |out| {
            out.replace("flattened/000.jsonl", "\"row_id\":\"0\"", "\"row_id\":\"1\"");
        }),
        ("a digit of a count is changed", |out| {
            out.json("metadata.json", |metadata| {
                metadata["nodes"]["fan"]["filtered"] = 7.into()
            });
        }),
        ("the timings are changed", |out| {
            out.json("metadata.json", |metadata| {
                metadata["timings"]["run_seconds"] = 1.into()
            });
        }),
        ("a digest and its seal are changed", |out| {
            out.json("metadata.json", |metadata| {
                metadata["shards"]["last"][0]["blake3"] = "00".into()
            });
            out.seal();
        }),
        ("counts and seals are changed", |out| {
            out.json("metadata.json", |metadata| {
                metadata["nodes"]["fan"]["filtered"] = 7.into();
                metadata["errors"]["apply"] = 1.into();
                metadata["errors"]["http"] = 2.into();
                metadata["branches"]["even"]["skipped"] = 0.into();
                metadata["rows"]["out"] = 1.into();
            });
            out.seal();
        }),
        ("metadata.json is cut", |out| {
            let text = out.text("metadata.json");
            out.write("metadata.json", &text[..100]);
        }),
        ("graph.json is edited", |out| {
            out.replace("graph.json", "\"yield_output\": true", "\"yield_output\": false");
        }),
        ("graph.json is reformatted", |out| {
            out.write("graph.json", out.text("graph.json").replace("\n", ""));
        }),
        ("graph.json is removed", |out| out.remove("graph.json")),
        ("run.json is edited", |out| {
            out.json(".chainette/run.json", |run| run["vars"] = json!({"a": 1}));
        }),
        ("checkpoint.json is edited", |out| {
            out.json(".chainette/checkpoint.json", |checkpoint| {
                checkpoint["counts"]["rows_in"] = 23.into();
            });
        }),
        ("the private files are removed", |out| {
            fs::remove_dir_all(out.path(".chainette")).expect("it was there");
        }),
        ("the outcomes are removed", |out| {
            out.remove(".chainette/outcomes")
        }),
        (
            "the outcomes are removed, and two shards are not what they were",
            |out| {
                out.remove(".chainette/outcomes");
                out.remove("fan/000.jsonl");
                out.replace("fan/001.jsonl", "\"k\":0", "\"k\":1");
                out.replace("fan/002.jsonl", "\"k\":0", "\"k\":9.5");
            },
        ),
        ("the outcomes are cut within a line", |out| {
            let text = out.text(".chainette/outcomes");
            out.write(".chainette/outcomes", &text[..text.len() - 30]);
        }),
        ("the outcomes are cut between lines", |out| {
            out.lines(".chainette/outcomes", |lines| drop(lines.pop()));
        }),
        ("a line of the outcomes is gone", |out| {
            out.lines(".chainette/outcomes", |lines| drop(lines.remove(2)));
        }),
        ("a fate is dropped", |out| {
            out.replace(".chainette/outcomes", "\"fan\":\"2e", "\"fan\":\"e");
        }),
        ("a fate is another", |out| {
            out.replace(".chainette/outcomes", "\"list\":\"", "\"list\":\"f");
        }),
        ("outcomes that are none", |out| {
            out.replace(".chainette/outcomes", "\"fan\":\"2e", "\"fan\":\"2q");
        }),
        ("a line of errors/ is removed", |out| {
            out.lines("errors/000.jsonl", |lines| drop(lines.remove(1)));
        }),
        ("errors/ is removed", |out| {
            fs::remove_dir_all(out.path("errors")).expect("it was there");
        }),
    ];
    insta::assert_snapshot!(told(&bench, cases));
}

/// Digests and seals are made to fit: only who follows every row finds these.
#[test]
fn what_only_the_rows_tell_is_found() {
    let (bench, _ran) = busy(&[]);
    let cases: &[(&str, Tamper)] = &[
        ("a value breaks its schema", |out| {
            out.replace("fan/000.jsonl", "\"k\":0", "\"k\":\"0\"");
            out.reseal();
        }),
        ("a field too many", |out| {
            out.replace("errors/000.jsonl", "\"kind\"", "\"oops\":1,\"kind\"");
            out.reseal();
        }),
        ("a value of flattened/ breaks its schema", |out| {
            out.replace("flattened/000.jsonl", "\"fan.n\":0", "\"fan.n\":0.5");
            out.reseal();
        }),
        ("a line is no JSON", |out| {
            out.lines("note/000.jsonl", |lines| lines[1] = "{\"row_id\":\"1\",".into());
            out.reseal();
        }),
        ("a line does not begin with its row id", |out| {
            out.lines("note/000.jsonl", |lines| {
                lines[1] = "{\"flag\":true,\"row_id\":\"1\"}".into()
            });
            out.reseal();
        }),
        ("a row id that is none", |out| {
            out.replace("note/000.jsonl", "\"row_id\":\"1\"", "\"row_id\":\"01\"");
            out.reseal();
        }),
        ("the last line has no end", |out| {
            let text = out.text("note/000.jsonl");
            out.write("note/000.jsonl", text.trim_end());
            out.reseal();
        }),
        ("a row is missing", |out| {
            out.lines("many/000.jsonl", |lines| drop(lines.remove(2)));
            out.reseal();
        }),
        ("the last row is missing", |out| {
            out.lines("last/001.jsonl", |lines| drop(lines.pop()));
            out.reseal();
        }),
        ("a row stands twice", |out| {
            out.lines("last/001.jsonl", |lines| lines.insert(1, lines[1].clone()));
            out.reseal();
        }),
        ("two rows are swapped", |out| {
            out.lines("last/000.jsonl", |lines| lines.swap(2, 3));
            out.reseal();
        }),
        ("a row has another id", |out| {
            out.replace("half/000.jsonl", "\"row_id\":\"2.1\"", "\"row_id\":\"2.2\"");
            out.reseal();
        }),
        ("a row is added", |out| {
            out.lines("many/000.jsonl", |lines| {
                lines.push("{\"row_id\":\"99\",\"i\":0}".into())
            });
            out.reseal();
        }),
        ("two shards are swapped", |out| {
            let (a, b) = (out.text("fan/000.jsonl"), out.text("fan/001.jsonl"));
            out.write("fan/000.jsonl", b);
            out.write("fan/001.jsonl", a);
            out.reseal();
        }),
        ("a failure is missing", |out| {
            out.lines("errors/000.jsonl", |lines| drop(lines.remove(0)));
            out.reseal();
        }),
        ("a failure is said to be of another node", |out| {
            out.replace("errors/000.jsonl", "\"node\":\"note\"", "\"node\":\"half\"");
            out.reseal();
        }),
        ("a failure is said to be of no branch", |out| {
            out.replace("errors/000.jsonl", "\"branch\":\"audit\",", "");
            out.reseal();
        }),
        ("a failure is of a kind that cannot be", |out| {
            out.replace(
                "errors/000.jsonl",
                "\"kind\":\"apply\"",
                "\"kind\":\"join_cardinality\"",
            );
            out.reseal();
        }),
        ("a failure is of another kind", |out| {
            out.replace("errors/000.jsonl", "\"kind\":\"apply\"", "\"kind\":\"template\"");
            out.reseal();
        }),
        ("a fate is dropped", |out| {
            out.outcomes("\"fan\":\"2e", "\"fan\":\"e");
        }),
        ("a fate is added", |out| {
            out.outcomes("\"last\":\"", "\"last\":\"s");
        }),
        ("a row is said to have been filtered", |out| {
            out.outcomes("\"last\":\"4s", "\"last\":\"3sx");
        }),
        ("a fan-out is said to have been larger", |out| {
            out.outcomes("e:2,", "e:3,")
        }),
        ("a fate that cannot be", |out| {
            out.outcomes("\"fan\":\"2e", "\"fan\":\"sn")
        }),
        ("a row is said to have failed", |out| {
            out.outcomes("\"input\":\"5o", "\"input\":\"4of");
        }),
        ("a condition is said to have failed", |out| {
            out.outcomes("\"list\":\"5r", "\"list\":\"4rf");
        }),
        ("the outcomes are of other nodes", |out| {
            out.outcomes("\"fan\"", "\"fun\"")
        }),
        (
            "commits are cut otherwise, which changes nothing, and a row is missing",
            |out| {
                out.outcomes("\"fan\":\"2e", "\"fan\":\"ee");
                out.lines("many/000.jsonl", |lines| drop(lines.remove(2)));
                out.reseal();
            },
        ),
        ("the last rows are gone everywhere", |out| {
            out.lines(".chainette/outcomes", |lines| drop(lines.pop()));
            out.outcomes("", "");
        }),
    ];
    insta::assert_snapshot!(told(&bench, cases));
}

#[test]
fn parquet_shards_are_read_too() {
    let (bench, _ran) = busy(&["--format", "parquet"]);
    let cases: &[(&str, Tamper)] = &[
        ("a shard of another run", |out| {
            out.write("note/000.parquet", out.bytes("many/000.parquet"));
        }),
        ("a shard of another folder, and digests that fit", |out| {
            out.write("note/000.parquet", out.bytes("last/000.parquet"));
            out.reseal();
        }),
        ("a shard of another place, and digests that fit", |out| {
            out.write("half/000.parquet", out.bytes("half/001.parquet"));
            out.reseal();
        }),
        ("a shard that breaks the schema, and digests that fit", |out| {
            out.write("half/000.parquet", out.bytes("fan/000.parquet"));
            out.reseal();
        }),
        ("a shard is cut", |out| {
            let bytes = out.bytes("last/000.parquet");
            out.write("last/000.parquet", &bytes[..bytes.len() / 2]);
        }),
        ("a shard is no Parquet, and digests that fit", |out| {
            out.write("last/000.parquet", "PAR1 and so on");
            out.reseal();
        }),
        ("a line of errors/ is removed", |out| {
            out.lines("errors/000.jsonl", |lines| drop(lines.remove(1)));
        }),
    ];
    insta::assert_snapshot!(told(&bench, cases));
}

/// A Parquet null stands for a null and for a field that was left out.
#[test]
fn nulls_of_parquet_are_taken_for_what_they_were() {
    let chain = "\
name: nulls
models:
  Maybe:
    type: object
    required: [a, deep, list]
    additionalProperties: false
    properties:
      a: {type: [integer, \"null\"]}
      b: {type: integer}
      deep: {type: object, required: [x], properties: {x: {type: [string, \"null\"]}, y: {type: string}}}
      list: {type: array, items: {type: object, required: [x], properties: {x: {type: [boolean, \"null\"]}}}}
      either: {anyOf: [{type: object, required: [z], properties: {z: {type: [string, \"null\"]}}}, {type: integer}]}
steps:
  - {id: n, apply: {jq: .}, output_model: Maybe}
";
    let rows = [
        json!({"a": 1, "b": 2, "deep": {"x": "x", "y": "y"}, "list": [{"x": true}], "either": 3}),
        json!({"a": null, "deep": {"x": null}, "list": [{"x": null}, {"x": false}], "either": {"z": null}}),
        json!({"a": 3, "deep": {"x": null, "y": "y"}, "list": []}),
    ];
    let bench = Bench::new(chain, rows.map(|row| format!("{row}\n")).concat());
    let ran = bench.run(&["--format", "parquet"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let verdict = proven(&ran.out).expect("the run is proven");
    assert_eq!((verdict.rows, verdict.lines, verdict.shards), (3, 6, 2));
}

#[test]
fn what_is_proven_is_said() {
    let (bench, _ran) = busy(&[]);
    let said = |bench: &Bench, args: &[&str]| {
        let ran = bench.invoke(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
        ran.stdout
    };
    insta::assert_snapshot!("proof", said(&bench, &["verify", "out/"]));
    let verdict: Value = serde_json::from_str(&said(&bench, &["verify", "out", "--json"])).expect("JSON");
    assert_eq!(verdict["proven"], true);
    insta::assert_snapshot!("proof_json", json_of(&verdict));

    // The answers may be given back.
    let _none = fs::remove_dir_all(bench.dir.path().join("out/.chainette/answers"));
    assert!(said(&bench, &["verify", "out"]).starts_with("out: 24 rows, "));

    let empty = Bench::new(harness::COPY, "");
    assert_eq!(empty.run(&["--quiet"]).code, 0);
    insta::assert_snapshot!("proof_of_nothing", said(&empty, &["verify", "out"]));
}

/// Without the run's own name.
fn json_of(verdict: &Value) -> String {
    let mut verdict = verdict.clone();
    verdict["run_id"] = "[run]".into();
    format!("{verdict:#}")
}

#[test]
fn problems_are_told_with_a_next_step() {
    let (bench, ran) = busy(&[]);
    let out = Out(&ran.out);
    out.lines("fan/001.jsonl", |lines| lines.swap(1, 2));
    let ran = bench.invoke(&["verify", "out"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    insta::assert_snapshot!("problems", ran.stdout);
    let ran = bench.invoke(&["verify", "out", "--json"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    let verdict: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(verdict["proven"], false);
    insta::assert_snapshot!("problems_json", format!("{:#}", verdict["problems"]));
}

#[test]
fn a_run_that_is_not_at_its_end_says_so() {
    let (bench, ran) = busy(&[]);
    let out = Out(&ran.out);
    let mut told = String::new();
    let mut say = |name: &str, code: i32| {
        let ran = bench.invoke(&["verify", "out"]);
        assert_eq!(ran.code, code, "{name}: {}{}", ran.stdout, ran.stderr);
        told += &format!("# {name}\n{}{}\n", ran.stdout, ran.stderr);
    };
    fs::create_dir(out.path(".chainette/swap.json")).expect("a folder can be made");
    say("new outputs are being put in place", 1);
    fs::remove_dir(out.path(".chainette/swap.json")).expect("it is empty");
    let metadata = out.text("metadata.json");
    out.json("metadata.json", |metadata| metadata["state"] = "running".into());
    say("it was stopped", 1);
    let lock = fs::File::open(out.path(".chainette/lock")).expect("the lock file");
    lock.lock().expect("it can be locked");
    say("it is under way", 1);
    drop(lock);
    out.remove("metadata.json");
    say("there is no metadata yet", 1);
    out.write("metadata.json", metadata.replace("\"files\": 2", "\"files\": 1"));
    say("another version made it", 1);
    out.write("metadata.json", "[]");
    say("the metadata is something else", 2);
    fs::remove_dir_all(&ran.out).expect("OUT can be removed");
    say("there is nothing", 2);
    fs::create_dir(&ran.out).expect("a folder can be made");
    say("an empty folder", 2);
    fs::remove_dir(&ran.out).expect("it is empty");
    bench.write("out", "a file");
    say("a file", 2);
    insta::assert_snapshot!(told);
}

/// Whatever a run may be told to leave out, it is proven; and so it is at each `--limit` on its way.
#[test]
fn every_way_to_run_is_proven() {
    for format in ["jsonl", "parquet"] {
        for more in [&[][..], &["--no-flattened"]] {
            let bench = Bench::new(BUSY, busy_rows());
            let args = [&["--format", format, "--max-lines-per-file", "3"], more].concat();
            for limit in ["0", "1", "7", "20", "24", "100"] {
                let ran = bench.run(&[&args[..], &["--limit", limit]].concat());
                assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
                let verdict = proven(&ran.out).unwrap_or_else(|error| panic!("{args:?} {limit}: {error}"));
                assert_eq!(verdict.rows, limit.parse::<u64>().expect("a number").min(24));
            }
            let ran = bench.run(&args);
            assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
            assert_eq!(proven(&ran.out).expect("proven").rows, 24);
        }
    }
}

/// A condition of a group that cannot be evaluated, nested branches, a joined branch that leaves too much, Steps
/// that are nulled.
#[test]
fn failures_in_branches_are_followed() {
    let chain = json!({
        "name": "deep",
        "steps": [
            {"id": "first", "apply": {"jq": "if .n % 5 == 4 then (., {n: (.n + 1), t}) else . end"}},
            {"when": "n != 3 and (n != 6 or item.t < 1)", "parallel": [
                {"branch": "outer", "join": "outer", "steps": [
                    {"parallel": [
                        {"branch": "inner", "when": "n != 2 and (n != 8 or item.t < 1)", "steps": [
                            {"id": "odd", "apply": {"jq": "if .n % 2 == 1 then error(\"odd\") else (., .) end"}},
                            {"branch": "deeper", "when": "n != 9", "steps": [{"id": "low", "apply": {"jq": "{n}"}}]},
                        ]},
                        {"branch": "many", "join": "many", "steps": [
                            {"id": "copies", "apply": {"jq": "if .n == 7 then (., .) else . end"}},
                        ]},
                    ]},
                    {"id": "mid", "apply": {"jq": "{m: .n}"}},
                ]},
                {"branch": "all", "join": "all", "collect": true, "steps": [
                    {"id": "each", "apply": {"jq": "if .n == 1 then error(\"one\") else range(.n % 3) end"}},
                ]},
            ]},
            {"id": "end", "apply": {"jq": "."}},
        ],
    });
    let rows: String = (0..30)
        .map(|n| format!("{{\"n\":{},\"t\":\"a\"}}\n", n % 11))
        .collect();
    let bench = Bench::new(&chain.to_string(), rows);
    let ran = bench.run(&["--max-errors", "100%", "--batch-size", "4"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let verdict = proven(&ran.out).expect("the run is proven");
    let kinds: Vec<&str> = verdict.errors.keys().map(String::as_str).collect();
    for kind in ["template", "apply", "join_cardinality"] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    let outcomes = Out(&ran.out).text(".chainette/outcomes");
    for entry in ["g", "f", "s"] {
        let found = outcomes.lines().any(|line| {
            let line: Value = serde_json::from_str(line).expect("a line is JSON");
            let branches = line["branches"].as_object().expect("branches");
            branches
                .values()
                .any(|fates| fates.as_str().is_some_and(|fates| fates.contains(entry)))
        });
        assert!(found, "no entry {entry} in {outcomes}");
    }
}

/// A run whose files only their author can read has digests and counts.
#[test]
fn files_of_a_custom_sink_have_digests_and_counts() {
    let bench = Bench::new(BUSY, busy_rows());
    let path = |name: &str| bench.dir.path().join(name);
    let chain = chainette::chain::Chain::file(path("chain.yaml"))
        .build()
        .expect("the chain is sound");
    let mut job = chain.job(path("in.jsonl"), path("out")).sink(Ids);
    job.config.batch_size = 5;
    let stats = job.run().expect("it runs").into_result().expect("it ends");
    assert_eq!(stats.rows_in, 24);
    let verdict = proven(&path("out")).expect("the run is proven");
    assert_eq!((verdict.sink.as_deref(), verdict.lines), (Some("ids-1"), 6));
    let mut told = bench.invoke(&["verify", "out"]).stdout;
    let whole = Out(&path("out")).bytes("fan/000.ids");
    Out(&path("out")).write("fan/000.ids", "0\n");
    told += &bench.invoke(&["verify", "out"]).stdout;
    let dir = path("out");
    let out = Out(&dir);
    out.write("fan/000.ids", whole);
    out.lines(".chainette/outcomes", |lines| drop(lines.pop()));
    out.outcomes("", "");
    told += &bench.invoke(&["verify", "out"]).stdout;
    insta::assert_snapshot!(told);
}

/// A file of row ids.
struct Ids;

impl Sink for Ids {
    fn name(&self) -> &str {
        "ids-1"
    }

    fn extension(&self) -> &str {
        "ids"
    }

    fn write(
        &self,
        _shard: &Shard<'_>,
        rows: &mut Rows<'_>,
        out: &mut dyn Write,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        for row in rows {
            writeln!(out, "{}", row?.to_json()["row_id"])?;
        }
        Ok(())
    }
}

/// What is sealed is sealed for good: no key of the metadata that a kill may change stands where it should not, and
/// no secret stands anywhere.
#[test]
fn metadata_names_engines_and_no_secrets() {
    let server = echo();
    let mut chain = two_steps(&server);
    chain["engines"]["e"]["api_key_env"] = "VERIFY_KEY".into();
    let bench = Bench::new(&chain.to_string(), harness::rows(4));
    let mut command = bench.command(&["--quiet"]);
    let output = command.env("VERIFY_KEY", "hunter2").output().expect("it starts");
    let ran = bench.ran(&output);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let metadata = ran.metadata();
    assert!(!metadata.to_string().contains("hunter"), "{metadata:#}");
    assert_eq!(metadata["engines"]["e"]["model"], "m");
    let configuration = &metadata["timings"]["configuration"];
    assert_eq!(configuration["engines"]["e"]["concurrency"], 4);
    assert_eq!(configuration["engines"]["e"]["endpoint"], server.url());
    assert_eq!(configuration["batch_size"], 256);
    let verdict = proven(&ran.out).expect("the run is proven");
    assert_eq!(
        verdict.nodes["second"].completion_tokens,
        metadata["nodes"]["second"]["completion_tokens"]
    );
}
