//! The ledger on disk: segments, compressed ones, damage, and giving it back.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{
    Bench, Ran, assert_same, assert_stderr, everything, listing, rows, tree, tree_of, two_steps,
};
use crate::server::{Answer, Dice, TestServer};

const ROWS: usize = 800;
/// Of a reply, so that all of them are more than three segments.
const BYTES: usize = 4_500;
/// Of a segment; 4 MiB take long to fill.
const SEGMENT: u64 = 1 << 20;

/// An engine whose replies are long.
fn wordy() -> TestServer {
    TestServer::start(|asked| {
        let mut dice = Dice::new(asked.user().as_bytes());
        let mut text = String::new();
        while text.len() < BYTES {
            text += &format!("{} {} ", dice.below(1_000_000), dice.words(5));
        }
        Answer::text(text)
    })
}

struct Long {
    server: TestServer,
    bench: Bench,
    edits: usize,
}

impl Long {
    fn new() -> Self {
        let server = wordy();
        let bench = Bench::new("", rows(ROWS));
        let long = Self {
            server,
            bench,
            edits: 0,
        };
        long.chain();
        assert_eq!(long.run(&[]).code, 0);
        assert_eq!(long.server.stats().asked, ROWS as u64);
        long
    }

    fn run(&self, extra: &[&str]) -> Ran {
        let mut command = self.bench.command(extra);
        command.arg("--no-flattened");
        let output = command
            .env("CHAINETTE_SEGMENT_BYTES", SEGMENT.to_string())
            .output();
        self.bench.ran(&output.expect("the command starts"))
    }

    fn chain(&self) {
        let chain = json!({
            "name": "long",
            "engines": {"e": {"backend": "openai", "model": "m", "endpoint": self.server.url(), "concurrency": 8}},
            "steps": [
                {"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "yield_output": false},
                {"id": "size", "apply": {"jq": format!("{{n: (.text | length), edit: {}}}", self.edits)}},
            ],
        });
        self.bench.write("chain.yaml", chain.to_string());
    }

    fn answers(&self) -> PathBuf {
        self.bench.dir.path().join("out/.chainette/answers")
    }

    /// How many are asked after an edit behind the Step.
    fn asked(&mut self) -> u64 {
        self.server.clear_log();
        self.edits += 1;
        self.chain();
        let ran = self.run(&["--resume"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.lines("size").len(), ROWS);
        self.server.stats().asked
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").len()
}

#[test]
fn full_segments_are_compressed_and_still_serve() {
    let mut long = Long::new();
    let answers = long.answers();
    let names: Vec<String> = listing(&answers).into_iter().collect();
    assert_eq!(names, ["000000.zst", "000001.zst", "000002.zst", "000003.log"]);
    let sealed = size(&answers.join("000000.zst"));
    assert!(sealed * 2 < SEGMENT, "{sealed} bytes of {SEGMENT}");
    assert_eq!(long.asked(), 0);
    let answered_by = |asked: u64, segment: &str| {
        assert!(
            (1..=ROWS as u64 / 3).contains(&asked),
            "{segment}: {asked} asked again"
        );
    };

    // A block that the disk damaged costs its answers, not those of other blocks.
    let path = answers.join("000001.zst");
    let mut bytes = fs::read(&path).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&path, &bytes).expect("a segment can be written");
    answered_by(long.asked(), "a damaged block");
    assert_eq!(long.asked(), 0, "they are on file again");

    // A damaged table costs nothing: the answers are read one by one.
    let path = answers.join("000002.zst");
    let mut bytes = fs::read(&path).expect("a segment");
    let last = bytes.len() - 60;
    bytes[last] ^= 0xff;
    fs::write(&path, &bytes).expect("a segment can be written");
    assert_eq!(long.asked(), 0);
    let short = bytes.len() - 20;
    bytes.truncate(short);
    fs::write(&path, &bytes).expect("a segment can be written");
    assert_eq!(long.asked(), 0);

    // Killed while a segment was compressed, and just after.
    fs::write(answers.join("000002.tmp"), "half").expect("a file can be written");
    fs::write(answers.join("000000.log"), "what was left to remove").expect("a file can be written");
    assert_eq!(long.asked(), 0);
    let names = listing(&answers);
    assert!(
        !names.contains("000002.tmp") && !names.contains("000000.log"),
        "{names:?}"
    );

    // One that is gone.
    fs::remove_file(answers.join("000000.zst")).expect("a segment can be removed");
    answered_by(long.asked(), "a segment that is gone");
    let ran = long.bench.opened();
    assert_same(
        &tree_of(&long.bench, "fresh", &["--no-flattened"]),
        &tree(&ran.out),
    );
}

fn cleaned(bench: &Bench) -> Ran {
    bench.invoke(&["clean", "out"])
}

#[test]
fn answers_are_given_back() {
    let server = TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())));
    let bench = Bench::new(&two_steps(&server).to_string(), rows(30));
    let mut said = String::new();
    let ran = cleaned(&bench);
    assert_eq!(ran.code, 2);
    said += &ran.stderr;
    // One that is under way keeps them.
    assert_eq!(bench.run(&["--fail-fast"]).code, 0);
    fs::remove_dir_all(bench.dir.path().join("out")).expect("OUT can be removed");
    bench.write("in.jsonl", rows(30) + "no json\n" + &rows(30));
    assert_eq!(bench.run(&["--fail-fast", "--batch-size", "10"]).code, 1);
    let before = everything(&bench.dir.path().join("out"));
    let ran = cleaned(&bench);
    assert_eq!(ran.code, 2);
    said += &ran.stderr;
    assert_same(&before, &everything(&ran.out));
    assert_eq!(bench.run(&[]).code, 3);
    let before = tree(&ran.out);
    let ran = cleaned(&bench);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    said += &ran.stderr;
    assert_same(&before, &tree(&ran.out));
    assert!(!ran.out.join(".chainette/answers").exists());
    let ran = cleaned(&bench);
    assert_eq!(ran.code, 0);
    said += &ran.stderr;
    insta::with_settings!({filters => vec![(r"[\d.]+ kB", "[size]")]}, {
        assert_stderr!(said);
    });
    // It is finished as before.
    server.clear_log();
    let ran = bench.run(&[]);
    assert_eq!((ran.code, server.stats().asked), (0, 0), "{}", ran.stderr);
    // A changed chain would ask everything again.
    let ran = bench.run(&["--resume", "--set", "tone=harsh"]);
    assert_eq!((ran.code, server.stats().asked), (2, 0), "{}", ran.stderr);
    assert_same(&before, &tree(&ran.out));
}

/// A run that ended at a limit goes on after its answers were given back.
#[test]
fn a_limit_goes_on_without_answers() {
    let server = TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())));
    for format in ["jsonl", "parquet"] {
        let bench = Bench::new(&two_steps(&server).to_string(), rows(30));
        let options = ["--format", format, "--max-lines-per-file", "8"];
        assert_eq!(bench.run(&[&options[..], &["--limit", "20"]].concat()).code, 0);
        assert_eq!(cleaned(&bench).code, 0);
        server.clear_log();
        let ran = bench.run(&options);
        assert_eq!((ran.code, server.stats().asked), (0, 20), "{}", ran.stderr);
        assert_same(&tree_of(&bench, "fresh", &options), &tree(&ran.out));
    }
}

/// What is done to a segment.
type Harm<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Whatever is damaged in a segment that is written to costs its own answers.
#[test]
fn a_damaged_frame_hides_no_other() {
    let server = TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())));
    let mut chain = two_steps(&server);
    let bench = Bench::new(&chain.to_string(), rows(50));
    assert_eq!(bench.run(&[]).code, 0);
    let path = bench.dir.path().join("out/.chainette/answers/000000.log");
    let whole = fs::read(&path).expect("a segment");
    let len = whole.len();
    // A length, a checksum, a body, a sector of zeros, bytes between frames, the end.
    let harms: [(Harm<'_>, u64); 6] = [
        (&|bytes| bytes[0] ^= 1, 1),
        (&|bytes| bytes[5] ^= 1, 1),
        (&|bytes| bytes[len / 2] ^= 0x40, 1),
        (&|bytes| bytes[2048..2560].fill(0), 8),
        (&|bytes| bytes.splice(0..0, [7; 100]).for_each(drop), 0),
        (&|bytes| bytes.truncate(len - 3), 1),
    ];
    for (k, (harm, most)) in harms.into_iter().enumerate() {
        let mut bytes = whole.clone();
        harm(&mut bytes);
        fs::write(&path, bytes).expect("a segment can be written");
        server.clear_log();
        chain["vars"][format!("edit{k}")] = k.into();
        bench.write("chain.yaml", chain.to_string());
        let ran = bench.run(&["--resume"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let asked = server.stats().asked;
        assert!(
            (most.min(1)..=most).contains(&asked),
            "harm {k}: {asked} asked again"
        );
    }
}

/// Private files that do not say what OUT is: nothing is asked again, and no answer is removed.
#[test]
fn answers_that_are_not_understood_are_kept() {
    let server = TestServer::start(|asked| Answer::text(format!("heard {}", asked.user())));
    let bench = Bench::new(&two_steps(&server).to_string(), rows(5));
    assert_eq!(bench.run(&[]).code, 0);
    let path = bench.dir.path().join("out/.chainette/run.json");
    let mut identity: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
    identity["version"] = 99.into();
    fs::write(&path, identity.to_string()).expect("it can be written");
    let mut said = String::new();
    server.clear_log();
    for gone in [false, true] {
        if gone {
            fs::remove_file(&path).expect("it can be removed");
        }
        let before = everything(&bench.dir.path().join("out"));
        for extra in [&[][..], &["--resume"], &["--retry-errors"]] {
            let ran = bench.run(extra);
            assert_eq!((ran.code, server.stats().asked), (2, 0), "{}", ran.stderr);
            assert_same(&before, &everything(&ran.out));
            said += &ran.stderr;
        }
    }
    assert_stderr!(said);
}
