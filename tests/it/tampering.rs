//! Whatever is done to a finished OUT, `chainette verify` finds it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::{Bench, copy, everything, invoke};
use crate::verify::busy;

/// An OUT that is being tampered with.
pub struct Out<'a>(pub &'a Path);

impl Out<'_> {
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    pub fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    pub fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(file), content).expect("OUT is writable");
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path(file)).expect("the file was there");
    }

    /// Replaces the first place of a text that must be there.
    pub fn replace(&self, file: &str, old: &str, new: &str) {
        let text = self.text(file);
        assert!(text.contains(old), "{file} has no {old}: {text}");
        self.write(file, text.replacen(old, new, 1));
    }

    pub fn bytes(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).expect("the file is there")
    }

    pub fn lines(&self, file: &str, change: impl FnOnce(&mut Vec<String>)) {
        let mut lines: Vec<String> = self.text(file).lines().map(str::to_owned).collect();
        change(&mut lines);
        self.write(
            file,
            lines.iter().map(|line| format!("{line}\n")).collect::<String>(),
        );
    }

    pub fn json(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_str(&self.text(file)).expect("it is JSON");
        change(&mut value);
        self.write(file, format!("{value:#}\n"));
    }

    /// Makes everything that tells of the shards' bytes agree with them as they are now, and seals it.
    pub fn reseal(&self) {
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
    pub fn outcomes(&self, old: &str, new: &str) {
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
    pub fn seal(&self) {
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
        ("what is quoted is harmless", |out| {
            let long = "x".repeat(1000);
            out.replace(
                "errors/000.jsonl",
                "\"branch\":\"audit\"",
                &format!("\"branch\":\"\\u001b[2J\\u202e{long}\""),
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
