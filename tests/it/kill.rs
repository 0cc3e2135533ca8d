//! `kill -9` again and again: the run goes on where it was, asks only what was in flight, and leaves the same files.
//!
//! `CHAINETTE_SOAK=1 cargo test --release --test it kill -- --nocapture` is the full size, 30,000 rows and 1,000
//! kills for each format; `CHAINETTE_SOAK=3000x100` is any other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::judge::{Judge, settle};
use crate::server::{Answer, Asked, Dice, TestServer};
use crate::{cli, harness};

/// Requests in flight at most.
const CONCURRENCY: usize = 16;

/// A reply that the server handed to the socket this long before the kill may not have reached the ledger.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// What `CHAINETTE_SOAK` asks for; none where the tests are to be short.
fn soak() -> Option<String> {
    std::env::var("CHAINETTE_SOAK").ok().filter(|v| v != "0")
}

/// Rows and kills.
fn size() -> (usize, usize) {
    match soak().as_deref() {
        None => (800, 16),
        Some("1") => (30_000, 1_000),
        Some(size) => {
            let (rows, kills) = size.split_once('x').expect("CHAINETTE_SOAK is 1 or ROWSxKILLS");
            let number = |text: &str| text.parse().expect("a number");
            (number(rows), number(kills))
        }
    }
}

fn write_input(dir: &Path, rows: usize) {
    let mut input = String::new();
    for n in 0..rows {
        match n % 97 {
            96 => input.push_str("not json\n"),
            _ => {
                writeln!(input, "{{\"text\":\"row {n}\",\"n\":{n},\"price\": 1.10}}").expect("a string grows")
            }
        }
    }
    fs::write(dir.join("in.jsonl"), input).expect("the input can be written");
}

/// Three Steps: on the main line, in a joined branch, and behind a fan-out in a branch of its own; with a
/// filter, conditions, and Applies that fail. No two requests are the same.
fn chain(endpoint: &str) -> Value {
    let engine = json!({"backend": "openai", "model": "m", "endpoint": endpoint, "concurrency": CONCURRENCY});
    json!({
        "name": "kills",
        "models": {"Graded": {"text": "string", "grade": "integer"}},
        "engines": {"e": engine},
        "steps": [
            {"id": "first", "engine": "e", "user_prompt": "{{ text }}", "output_model": "Graded",
             "retries": {"transport": 1}},
            {"id": "keep", "apply": {"jq":
                "if $chain_input.n % 101 == 7 then error(\"bad\") else select(.grade != 4) end"}},
            {"parallel": [
                {"branch": "side", "join": "side", "when": "first.grade < 8", "steps": [
                    {"id": "second", "engine": "e", "user_prompt": "side {{ row_id }}: {{ first.text }}",
                     "output_model": "Graded", "retries": {"output": 1, "transport": 1}},
                ]},
                {"branch": "audit", "when": "first.grade != 5", "steps": [
                    {"id": "parts", "apply": {"jq":
                        "if $chain_input.n % 103 == 5 then error(\"worse\") \
                         else range(.grade % 4) as $i | {i: $i, of: .text} end"}},
                    {"id": "third", "engine": "e", "user_prompt": "audit {{ row_id }}: {{ i }} of {{ of }}",
                     "output_model": "Graded", "retries": {"output": 1, "transport": 1}, "on_error": "null"},
                ]},
            ]},
            {"id": "fan", "apply": {"jq":
                "range($chain_input.n % 3) as $i | {i: $i, side: $row.side.grade, price: $chain_input.price}"}},
        ],
    })
}

/// Replies are a function of the request: some are bad at first, some always. Transport faults are a
/// function of request and attempt: some pass, some stay. One request in eleven meets something.
fn answer(asked: &Asked) -> Answer {
    let mut dice = Dice::new(asked.user().as_bytes());
    let class = dice.below(100);
    let good = json!({"text": dice.words(5), "grade": dice.below(10)}).to_string();
    match class {
        4 | 5 if asked.attempt == 0 => return Answer::status(500, "boom"),
        6 if asked.attempt == 0 => return Answer::Close,
        7 if asked.attempt == 0 => return Answer::CloseMidBody,
        8 => return Answer::status(502, "always"),
        _ => {}
    }
    Answer::text(match class {
        0 => "never any JSON".to_owned(),
        1..=3 if asked.tries() == 0 => "{\"text\": 1}".to_owned(),
        _ => good,
    })
    .after(Duration::from_millis(1 + dice.below(8)))
}

/// The files of a finished OUT by name; of the metadata what no kill may change.
type Files = BTreeMap<String, Vec<u8>>;

/// The files in folders: what does not tell of the chain's text.
fn shards(files: Files) -> Files {
    files.into_iter().filter(|(name, _)| name.contains('/')).collect()
}

/// Panics with the place where files differ first.
fn same_files(whole: &Files, out: &Files) {
    assert!(
        whole.keys().eq(out.keys()),
        "other files: {:?} and {:?}",
        whole.keys(),
        out.keys()
    );
    for (name, expected) in whole {
        let found = &out[name];
        let at = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
        let near = |bytes: &[u8]| {
            let around = &bytes[at.saturating_sub(200).min(bytes.len())..(at + 200).min(bytes.len())];
            String::from_utf8_lossy(around).into_owned()
        };
        assert!(
            expected == found,
            "{name} differs at byte {at}\nexpected …{}…\nfound    …{}…",
            near(expected),
            near(found)
        );
    }
}

fn arguments<'a>(format: &'a str, out: &'a str, batch: &'a str, lines: &'a str) -> Vec<&'a str> {
    let mut args = vec!["run", "chain.yaml", "in.jsonl", out, "--format", format];
    args.extend(["--batch-size", batch, "--max-lines-per-file", lines, "--quiet"]);
    args
}

/// Writes all outputs again from the answers on file, as for an edited chain: whatever the kills did, every
/// answer is there.
fn nothing_was_lost(dir: &Path, server: &TestServer, args: &[&str], expected: &Files) {
    let chain = fs::read_to_string(dir.join("chain.yaml")).expect("the chain can be read");
    let edited = chain.replace("else select(", "else  select(");
    assert_ne!(chain, edited);
    fs::write(dir.join("chain.yaml"), edited).expect("the chain can be written");
    let ran = cli::run(dir, &[args, &["--resume"]].concat());
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert_eq!(server.traffic(), (0, 0), "answers were lost, and asked for again");
    same_files(expected, &shards(harness::tree(&dir.join("out"))));
}

fn kill_and_go_on(format: &str) {
    let (rows, kills) = size();
    let lines = (rows / 12).to_string();
    let dir = tempfile::tempdir().expect("a folder can be made");
    let dir = dir.path();
    let server = TestServer::start(answer);
    write_input(dir, rows);
    fs::write(dir.join("chain.yaml"), chain(&server.url()).to_string()).expect("the chain can be written");

    let start = Instant::now();
    let ran = cli::run(dir, &arguments(format, "whole", "501", &lines));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    settle(&server);
    let mut unkilled = Judge::default();
    unkilled.take(&server.take_log());
    eprintln!(
        "{format}: {rows} rows without kills: {} requests, {:.1?}",
        unkilled.requests,
        start.elapsed()
    );

    let start = Instant::now();
    let args = arguments(format, "out", "64", &lines);
    let mut dice = Dice::new(format!("kills {format}").as_bytes());
    let mut judge = Judge::default();
    // The last process has something left to do, however late a kill comes.
    let until_last = unkilled.good * 19 / 20;
    for left in (1..=kills as u64).rev() {
        // What is left to ask, shared among the kills that are left: all of them happen.
        let share = until_last.saturating_sub(judge.good) * 3 / (left + 1) / 2;
        let target = server.answered() + dice.below(share + 1);
        // Some processes die young: while they read their own files, or before that.
        let young = (dice.below(16) == 0).then(|| Duration::from_micros(dice.below(150_000)));
        let spawned = Instant::now();
        let mut child = cli::spawn(dir, &args);
        let goes_on = cli::progress(&mut child, || {
            server.answered() >= target || young.is_some_and(|young| spawned.elapsed() >= young)
        });
        if !goes_on {
            let ran = cli::wait(dir, &mut child);
            panic!("it ended with {left} kills to go: {ran:?}");
        }
        let at = Instant::now();
        cli::kill(&mut child);
        settle(&server);
        judge.kill(at, &server.take_log());
    }
    let ran = cli::run(dir, &args);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    settle(&server);
    judge.take(&server.take_log());
    let (whole, out) = (harness::tree(&dir.join("whole")), harness::tree(&dir.join("out")));
    same_files(&whole, &out);
    nothing_was_lost(dir, &server, &args, &shards(out));

    eprintln!(
        "{format}: {rows} rows, {kills} kills: {} requests, {:.1?}; asked again {}, at most {} after one kill; \
         of these {} had been answered, at most {:.1?} before the kill",
        judge.requests,
        start.elapsed(),
        judge.asked_again(),
        judge.most(),
        judge.answered,
        judge.longest
    );
    assert_eq!(judge.requests, unkilled.requests + judge.asked_again());
    assert!(
        judge.most() <= CONCURRENCY,
        "more were asked again after one kill than were in flight"
    );
    assert!(
        judge.longest < ON_ITS_WAY,
        "an answer was lost that came in well before the kill"
    );
    assert!(judge.asked_again() > 0, "no kill ever hit a request in flight");
}

#[test]
fn killed_runs_go_on_and_ask_only_what_was_in_flight() {
    kill_and_go_on("jsonl");
}

#[test]
fn killed_parquet_runs_go_on_and_ask_only_what_was_in_flight() {
    kill_and_go_on("parquet");
}

#[test]
fn killed_jq_runs_leave_the_same_files() {
    let (rows, kills_wanted) = if soak().is_some() {
        (100_000, 100)
    } else {
        (10_000, 12)
    };
    let dir = tempfile::tempdir().expect("a folder can be made");
    let dir = dir.path();
    write_input(dir, rows);
    let chain = json!({
        "name": "kills",
        "steps": [
            {"id": "keep", "apply": {"jq": "select(.n % 7 != 3)"}},
            {"id": "fan", "apply": {"jq": "range(.n % 4) as $i | . + {i: $i}"}},
            {"id": "odd", "apply": {"jq": "if .n % 50 == 1 then error(\"bad\") else {m: (.n + .i)} end"}},
        ],
    });
    fs::write(dir.join("chain.yaml"), chain.to_string()).expect("the chain can be written");
    let args = |out: &'static str, batch: &'static str| {
        [
            "run",
            "chain.yaml",
            "in.jsonl",
            out,
            "--batch-size",
            batch,
            "--max-lines-per-file",
            "3000",
        ]
    };
    let start = Instant::now();
    let ran = cli::run(dir, &args("whole", "501"));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let each = start.elapsed().as_micros() as u64 / kills_wanted as u64;

    let mut dice = Dice::new(b"jq kills");
    let mut killed = 0;
    for _ in 0..kills_wanted {
        let mut child = cli::spawn(dir, &args("out", "64"));
        // Starting takes its time too: up to thrice the share, so that some kills fall into every phase.
        std::thread::sleep(Duration::from_micros(2_000 + dice.below(each * 3)));
        if child.try_wait().expect("a child can be waited for").is_some() {
            break;
        }
        cli::kill(&mut child);
        killed += 1;
    }
    let ran = cli::run(dir, &args("out", "64"));
    assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
    let difference = cli::difference(&cli::tree(&dir.join("whole")), &cli::tree(&dir.join("out")));
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    eprintln!("{rows} rows, {killed} kills: the same files");
}
