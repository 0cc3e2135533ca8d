//! `kill -9` again and again: the run goes on where it was, asks only what was in flight, and leaves the same files.
//!
//! `CHAINETTE_SOAK=1 cargo test --release --test it kill -- --nocapture` is the full size: 20,000 rows, 100 kills.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli;
use crate::server::{Answer, Asked, Dice, Digest, Logged, TestServer};

/// Requests in flight at most.
const CONCURRENCY: usize = 16;

/// A reply that the server handed to the socket this long before the kill may not have reached the ledger.
const ON_ITS_WAY: Duration = Duration::from_millis(250);

/// Just before and just after a kill.
type Killed = (Instant, Instant);

fn soak() -> bool {
    std::env::var_os("CHAINETTE_SOAK").is_some_and(|v| v != "0")
}

/// Rows and kills.
fn size() -> (usize, usize) {
    if soak() { (20_000, 100) } else { (2_000, 12) }
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

/// Replies are a function of the request: some are bad at first, some always. Transport faults are a
/// function of request and attempt: some pass, some stay.
fn answer(asked: &Asked) -> Answer {
    let mut dice = Dice::new(format!("{}\0{}", asked.system(), asked.user()).as_bytes());
    let class = dice.below(100);
    let good = json!({"text": dice.words(5), "grade": dice.below(10)}).to_string();
    match class {
        3 if asked.attempt == 0 => return Answer::status(500, "boom"),
        4 if asked.attempt == 0 => return Answer::Close,
        5 if dice.below(4) == 0 => return Answer::status(502, "always"),
        _ => {}
    }
    Answer::text(match class {
        0 => "never any JSON".to_owned(),
        1 | 2 if asked.tries() == 0 => "{\"text\": 1}".to_owned(),
        _ => good,
    })
    .after(Duration::from_millis(1 + dice.below(8)))
}

/// What the log says about the kills.
#[derive(Debug, Default)]
struct Verdict {
    asked_again: usize,
    /// Of these, answered just before the kill.
    answered: usize,
    /// How long before it at most.
    longest: Duration,
    /// Asked again after one kill, at most.
    most: usize,
}

fn judge(log: &[Logged], kills: &[Killed]) -> Verdict {
    let mut last: HashMap<(Digest, u32), &Logged> = HashMap::new();
    let mut verdict = Verdict::default();
    let mut per_kill = vec![0; kills.len()];
    for line in log {
        let Some(before) = last.insert((line.digest, line.attempt), line) else {
            continue;
        };
        let kill = kills
            .iter()
            .position(|(from, to)| before.start <= *to && *from <= line.start);
        let kill = kill.expect("asked again though nothing was killed in between");
        per_kill[kill] += 1;
        verdict.asked_again += 1;
        if let Some(at) = before.answered {
            verdict.answered += 1;
            verdict.longest = verdict.longest.max(kills[kill].0.saturating_duration_since(at));
        }
    }
    verdict.most = per_kill.into_iter().max().unwrap_or(0);
    verdict
}

#[test]
fn killed_runs_go_on_and_ask_only_what_was_in_flight() {
    let (rows, kills_wanted) = size();
    let dir = tempfile::tempdir().expect("a folder can be made");
    let dir = dir.path();
    let server = TestServer::start(answer);
    write_input(dir, rows);
    let chain = json!({
        "name": "kills",
        "models": {"Graded": {"text": "string", "grade": "integer"}},
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": CONCURRENCY}},
        "steps": [
            {"id": "first", "engine": "e", "user_prompt": "{{ text }}", "output_model": "Graded",
             "retries": {"transport": 1}},
            {"id": "second", "engine": "e", "user_prompt": "{{ row_id }}: {{ first.text }}", "output_model": "Graded",
             "retries": {"output": 1, "transport": 1}},
        ],
    });
    fs::write(dir.join("chain.yaml"), chain.to_string()).expect("the chain can be written");
    let args = [
        "run",
        "chain.yaml",
        "in.jsonl",
        "out",
        "--batch-size",
        "64",
        "--max-lines-per-file",
        "700",
    ];

    let mut dice = Dice::new(b"kills");
    let mut kills = Vec::new();
    while kills.len() < kills_wanted {
        let target = server.answered() + 50 + dice.below(451);
        let mut child = cli::spawn(dir, &args);
        if !cli::progress(&mut child, || server.answered() >= target) {
            break;
        }
        let before = Instant::now();
        cli::kill(&mut child);
        // What the dead process had sent may still be on its way to the server: the kill is over when
        // nothing has arrived or been in flight for a while.
        let (mut arrived, mut quiet) = (server.log().len(), Instant::now());
        while quiet.elapsed() < Duration::from_millis(25) {
            std::thread::sleep(Duration::from_millis(2));
            let now = server.log().len();
            if server.stats().in_flight > 0 || now != arrived {
                (arrived, quiet) = (now, Instant::now());
            }
        }
        kills.push((before, Instant::now()));
    }
    let ran = cli::run(dir, &args);
    assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
    let log = server.log();
    server.clear_log();

    let whole = [
        "run",
        "chain.yaml",
        "in.jsonl",
        "whole",
        "--batch-size",
        "501",
        "--max-lines-per-file",
        "700",
    ];
    let ran = cli::run(dir, &whole);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    let unkilled = server.log();
    let difference = cli::difference(&cli::tree(&dir.join("whole")), &cli::tree(&dir.join("out")));
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());

    let verdict = judge(&log, &kills);
    eprintln!(
        "{rows} rows, {} kills: {} requests (unkilled {}); after the kills {verdict:?}",
        kills.len(),
        log.len(),
        unkilled.len(),
    );
    let repeated = judge(&unkilled, &[(Instant::now(), Instant::now())]).asked_again;
    assert_eq!(
        repeated, 0,
        "prompts are unique, so each is asked once per attempt"
    );
    assert_eq!(log.len(), unkilled.len() + verdict.asked_again);
    assert!(
        verdict.most <= CONCURRENCY,
        "more were asked again after one kill than were in flight"
    );
    assert!(
        verdict.longest < ON_ITS_WAY,
        "an answer was lost that came in well before the kill"
    );
    assert!(
        kills.len() >= kills_wanted / 2,
        "the run ended after {} kills",
        kills.len()
    );
}

#[test]
fn killed_jq_runs_leave_the_same_files() {
    let (rows, kills_wanted) = size();
    let rows = rows * 5;
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
