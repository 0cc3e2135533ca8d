//! A process that dies, is told to stop, or meets a full disk at every named place of its way: the same command then leaves
//! the same files as if nothing had been, and asks nothing again but what was in flight.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use chainette::failpoint::POINTS;
use serde_json::json;

use crate::failpoints_answers;
use crate::harness::{Bench, copy, ends_within, listing, rows, stderr_of, tree, until};
use crate::server::{Answer, Asked, TestServer};

/// Requests in flight at most.
const CONCURRENCY: u64 = 4;
const ROWS: usize = 24;

/// Lines that are no JSON among rows; `keep` decides what is filtered.
pub fn input() -> String {
    let row = |n: usize| match n % 9 {
        8 => "no json\n".to_owned(),
        _ => format!("{{\"n\":{n},\"text\":\"row {n}\"}}\n"),
    };
    (0..ROWS).map(row).collect()
}

/// Steps, a filter, a fan-out, a joined and an unjoined branch, and rows that fail in each of them.
pub fn chain(server: &TestServer, tone: &str) -> String {
    let grade = json!({"g": "integer"});
    json!({
        "name": "points",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": CONCURRENCY}},
        "steps": [
            {"id": "first", "engine": "e", "user_prompt": "{{ text }}", "output_model": grade, "retries": {"output": 1}},
            {"id": "fan", "apply": {"jq": "if .g % 5 == 4 then empty else range(1 + .g % 3) as $i | {i: $i} end"}},
            {"parallel": [
                {"branch": "side", "join": "side", "when": "i == 0", "steps": [
                    {"id": "note", "engine": "e", "user_prompt": "note {{ row_id }}", "output_model": grade,
                     "retries": {"output": 0}},
                ]},
                {"branch": "aside", "steps": [
                    {"id": "odd", "apply": {"jq": "if $chain_input.n % 4 == 1 then error(\"odd\") else {ok: true} end"}},
                ]},
            ]},
            {"id": "second", "engine": "e", "user_prompt": format!("{tone} {{{{ row_id }}}}"), "output_model": grade,
             "retries": {"output": 0}, "on_error": null},
        ],
    })
    .to_string()
}

/// A function of what was asked: some replies are bad at first, some always.
pub fn answer(asked: &Asked) -> Answer {
    let n: usize = asked.user().bytes().map(usize::from).sum();
    match n % 9 {
        0 if asked.tries() == 0 => Answer::text("what?"),
        1 => Answer::text("never"),
        _ => Answer::text(json!({"g": n}).to_string()),
    }
}

/// A way to run, and what stands in OUT before.
pub struct Scenario {
    bench: Bench,
    server: TestServer,
    args: Vec<&'static str>,
    /// What OUT holds at first; none if it is not there.
    before: Option<PathBuf>,
    /// Lets the server forget what it heard.
    forget: Box<dyn Fn()>,
    /// Requests that take longer than a signal gives them.
    late: u64,
    /// Requests may only be repeated when they were in flight.
    counts: bool,
    whole: BTreeMap<String, Vec<u8>>,
    private: BTreeSet<String>,
    pub asked: u64,
    /// Set for every run.
    env: Vec<(&'static str, &'static str)>,
    /// How often each place is hit, in the order of the first hits.
    hits: Vec<(String, usize)>,
}

impl Scenario {
    pub fn new(
        server: TestServer,
        bench: Bench,
        args: &[&'static str],
        env: &[(&'static str, &'static str)],
        prepare: impl FnOnce(&Bench, &[&str]),
    ) -> Self {
        let out = bench.dir.path().join("out");
        prepare(&bench, args);
        let before = out.exists().then(|| {
            let kept = out.with_file_name("before");
            fs::rename(&out, &kept).expect("OUT can be renamed");
            kept
        });
        let mut scenario = Self {
            bench,
            server,
            args: args.to_vec(),
            before,
            forget: Box::new(|| ()),
            late: 0,
            counts: true,
            whole: BTreeMap::new(),
            private: BTreeSet::new(),
            asked: 0,
            env: env.to_vec(),
            hits: Vec::new(),
        };
        scenario.reset();
        let log = out.with_file_name("hits");
        let output = scenario.run(&[("CHAINETTE_FAILPOINT_LOG", "hits")]);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        scenario.whole = tree(&out);
        scenario.private = listing(&out.join(".chainette"));
        scenario.asked = scenario.server.stats().asked;
        for place in fs::read_to_string(log).expect("places were hit").lines() {
            assert!(POINTS.contains(&place), "{place} is not in the list");
            match scenario.hits.iter_mut().find(|(known, _)| known == place) {
                Some((_, times)) => *times += 1,
                None => scenario.hits.push((place.to_owned(), 1)),
            }
        }
        scenario
    }

    fn reset(&self) {
        let out = self.bench.dir.path().join("out");
        let _absent = fs::remove_dir_all(&out);
        if let Some(before) = &self.before {
            copy(before, &out);
        }
        self.server.clear_log();
        (self.forget)();
    }

    fn run(&self, env: &[(&str, &str)]) -> Output {
        let mut command = self.bench.command(&self.args);
        command.arg("--quiet").env("CHAINETTE_CHECKPOINT_EVERY", "5");
        command
            .envs(self.env.iter().chain(env).copied())
            .output()
            .expect("the command starts")
    }

    /// Fails at a place, goes on, and compares; how the first run ended, none if it did not get there.
    fn fails(&self, place: &str, nth: usize, action: &str) -> Option<Output> {
        self.reset();
        let at = format!("{place}:{nth}={action}");
        let output = self.run(&[("CHAINETTE_FAILPOINT", &at)]);
        let (code, signal) = (output.status.code(), output.status.signal());
        // How often a place is hit depends on the clock, that it is hit does not.
        let passed = nth > 1 && code == Some(3);
        match action {
            _ if passed => return None,
            "kill" => assert_eq!(signal, Some(9), "{at}: {}", said(&output)),
            // What was done when the signal came is done.
            "term" => assert!(matches!(code, Some(130 | 3)), "{at}: {code:?} {}", said(&output)),
            // An engine that cannot be read costs a try; a segment that cannot be compressed stays as it is.
            _ if place == "engine.awaited" || place.starts_with("seal.") => {
                assert_eq!(code, Some(3), "{at}: {}", said(&output))
            }
            _ => assert_eq!(code, Some(1), "{at}: {}", said(&output)),
        }
        let again = self.run(&[]);
        let code = again.status.code();
        assert!(matches!(code, Some(0 | 3)), "{at}: {}", said(&again));
        let out = self.bench.dir.path().join("out");
        let found = tree(&out);
        for (name, bytes) in &self.whole {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let found = found.get(name).map(|bytes| text(bytes));
            assert_eq!(found, Some(text(bytes)), "{at}: {name}");
        }
        assert_eq!(found.len(), self.whole.len(), "{at}: {:?}", found.keys());
        assert_eq!(listing(&out.join(".chainette")), self.private, "{at}");
        if self.counts {
            let again = self.server.stats().asked - self.asked;
            // A signal gives what is in flight its time.
            let most = if action == "term" { self.late } else { CONCURRENCY };
            assert!(again <= most, "{at}: {again} requests were repeated");
        }
        Some(output)
    }

    /// Goes through places, all of which must be hit; what was said where the disk was full.
    pub fn at_every(&self, places: &[&str]) -> String {
        let mut told = String::new();
        for place in places {
            let times = self.hits.iter().find(|(hit, _)| hit == place);
            let times = times.map(|(_, times)| *times).expect(place);
            self.fails(place, 1, "kill");
            if times > 3 {
                self.fails(place, times / 2 + 1, "kill");
            }
            self.fails(place, 1, "term");
            if let Some(full) = self.fails(place, 1, "enospc") {
                told += &format!("{place}: {}", said(&full));
            }
        }
        told
    }
}

/// What is said at a place, without which shard it was.
macro_rules! assert_told {
    ($text:expr) => {
        insta::with_settings!({filters => vec![
            (r"out/\w+/\d+\.\w+(\.part)?", "[shard]"),
            (r"out/\.chainette/spool/\w+/\d+\.jsonl", "[lines]"),
            (r"out/(\.chainette/spool/)?(first|fan|note|odd|second|flattened|errors)\b", "[folder]"),
        ]}, { insta::assert_snapshot!($text) })
    };
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub const ARGS: [&str; 4] = ["--max-lines-per-file", "13", "--batch-size", "6"];
const PARQUET: [&str; 6] = [
    "--max-lines-per-file",
    "13",
    "--batch-size",
    "6",
    "--format",
    "parquet",
];

fn base(prepare: impl FnOnce(&Bench, &[&str]), args: &[&'static str]) -> Scenario {
    let server = TestServer::start(answer);
    let bench = Bench::new(&chain(&server, "grade"), input());
    Scenario::new(server, bench, args, &[], prepare)
}

/// A run that ended at a `--limit`.
fn limited(bench: &Bench, args: &[&str]) {
    let ran = bench.run(&[args, &["--limit", "10"]].concat());
    assert_eq!(ran.code, 3, "{}", ran.stderr);
}

/// A finished run.
pub fn finished(bench: &Bench, args: &[&str]) {
    let ran = bench.run(args);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
}

/// A run that was killed with shards on disk that no checkpoint names.
fn killed(bench: &Bench, args: &[&str]) {
    let mut command = bench.command(args);
    command.env("CHAINETTE_FAILPOINT", "sync.dirs_synced:2=kill");
    let output = command.env("CHAINETTE_CHECKPOINT_EVERY", "5").output();
    let output = output.expect("the command starts");
    assert_eq!(output.status.signal(), Some(9), "{}", said(&output));
}

/// What the tests below go through; together, every place there is.
const FRESH: &[&str] = &[
    "lock.taken",
    "outdir.forgetting",
    "run.written",
    "run.synced",
    "run.renamed",
    "run.dir_synced",
    "graph.written",
    "graph.synced",
    "graph.renamed",
    "graph.dir_synced",
    "metadata.written",
    "metadata.synced",
    "metadata.renamed",
    "metadata.dir_synced",
    "engine.awaited",
    "shard.created",
    "shard.appended",
    "shard.full",
    "commit.begun",
    "commit.appended",
    "commit.outcomes_written",
    "commit.limit_checked",
    "commit.finishing",
    "commit.finished",
    "sync.begun",
    "sync.open_synced",
    "sync.shard_synced",
    "sync.shard_renamed",
    "sync.dirs_synced",
    "sync.outcomes_synced",
    "checkpoint.written",
    "checkpoint.synced",
    "checkpoint.renamed",
    "checkpoint.dir_synced",
    "session.ended",
];
const FRESH_PARQUET: &[&str] = &[
    "spool.created",
    "spool.appended",
    "spool.full",
    "spool.decided",
    "spool.converting",
    "spool.converted",
    "spool.taken_over",
    "commit.finished",
    "sync.closed_synced",
    "sync.shard_renamed",
    "sync.dirs_synced",
    "checkpoint.renamed",
    "spent.removing",
    "spent.removed",
];
const LARGER_LIMIT: &[&str] = &[
    "checkpoint.written",
    "checkpoint.renamed",
    "shard.unnamed",
    "shard.reopened",
    "graph.renamed",
    "sync.shard_renamed",
];
const LARGER_LIMIT_PARQUET: &[&str] = &["checkpoint.renamed", "spool.reopened", "spool.converted"];
const KILLED_BEFORE: &[&str] = &["shard.removing", "shard.reopened", "sync.shard_renamed"];
const AFRESH: &[&str] = &["outdir.forgetting", "run.written", "run.renamed", "commit.begun"];
const PARKED: &[&str] = &["parking.parked", "commit.begun", "checkpoint.renamed"];

/// Engines that are loaded in turns.
const TURNS: &[&str] = &[
    "spill.created",
    "spill.written",
    "spill.read",
    "stage.switched",
    "ledger.written",
    "commit.begun",
    "checkpoint.renamed",
];

#[test]
fn every_place_is_gone_through() {
    let all = [
        FRESH,
        FRESH_PARQUET,
        LARGER_LIMIT,
        LARGER_LIMIT_PARQUET,
        KILLED_BEFORE,
        AFRESH,
        PARKED,
        TURNS,
        failpoints_answers::SEGMENTS,
        failpoints_answers::EDITED,
        failpoints_answers::RETRIED,
        failpoints_answers::RETRIED_TO_A_LIMIT,
    ];
    let tested: BTreeSet<&str> = all.into_iter().flatten().copied().collect();
    let known: BTreeSet<&str> = POINTS.iter().copied().collect();
    assert_eq!(tested, known);
    assert_eq!(known.len(), POINTS.len(), "each once");
}

#[test]
fn a_fresh_run() {
    let told = base(|_, _| (), &ARGS).at_every(FRESH);
    assert_told!(told);
}

#[test]
fn a_fresh_run_to_parquet() {
    let told = base(|_, _| (), &PARQUET).at_every(FRESH_PARQUET);
    assert_told!(told);
}

#[test]
fn a_larger_limit() {
    base(limited, &ARGS).at_every(LARGER_LIMIT);
}

#[test]
fn a_larger_limit_with_parquet() {
    base(limited, &PARQUET).at_every(LARGER_LIMIT_PARQUET);
}

#[test]
fn a_run_that_was_killed_before() {
    base(killed, &ARGS).at_every(KILLED_BEFORE);
}

/// Starting again may be interrupted too. What was forgotten is asked again, and no more than that.
#[test]
fn a_run_that_starts_again() {
    let mut scenario = base(finished, &[&ARGS[..], &["--overwrite"]].concat());
    scenario.counts = false;
    scenario.at_every(AFRESH);
}

/// `--resume` with a changed prompt: the answers of the Steps that did not change are kept through any end.
#[test]
fn a_run_that_keeps_what_fits() {
    let server = TestServer::start(answer);
    let bench = Bench::new(&chain(&server, "grade"), input());
    let changed = chain(&server, "rate");
    let args = [&ARGS[..], &["--resume"]].concat();
    let prepare = |bench: &Bench, args: &[&str]| {
        finished(bench, args);
        bench.write("chain.yaml", changed);
    };
    let scenario = Scenario::new(server, bench, &args, &[], prepare);
    assert!(scenario.asked < 40, "only `second` asks: {}", scenario.asked);
    scenario.at_every(AFRESH);
}

/// The first row comes last: those behind it wait on disk.
#[test]
fn rows_that_wait_on_disk() {
    let (others, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let again = (others.clone(), heard.clone());
    let server = TestServer::start(move |asked| {
        let long: String = (0..100_000).map(|n| format!("{n} ")).collect();
        let answer = Answer::text(format!("{} {long}", asked.user()));
        if asked.user() == "say 0" {
            return Answer::Once(others.clone(), Box::new(answer));
        }
        if heard.fetch_add(1, Ordering::SeqCst) == 22 {
            others.store(true, Ordering::SeqCst);
        }
        answer
    });
    let chain = json!({
        "name": "parked",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": CONCURRENCY}},
        "steps": [
            {"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "sampling": {"max_tokens": 9}},
            {"id": "bad", "apply": {"jq": "if $row_id == \"3\" then error(\"no\") else {n: (.text | length)} end"}},
        ],
    });
    let bench = Bench::new(&chain.to_string(), rows(24));
    let mut scenario = Scenario::new(server, bench, &["--batch-size", "1"], &[], |_, _| ());
    scenario.late = 1;
    scenario.forget = Box::new(move || {
        again.0.store(false, Ordering::SeqCst);
        again.1.store(0, Ordering::SeqCst);
    });
    scenario.at_every(PARKED);
}

/// Rows wait on disk for an engine that does not fit beside another.
#[test]
fn engines_that_are_loaded_in_turns() {
    let server = TestServer::start(answer);
    let mut chain: serde_json::Value = serde_json::from_str(&chain(&server, "grade")).expect("JSON");
    chain["engines"]["f"] = chain["engines"]["e"].clone();
    chain["steps"][2]["parallel"][0]["steps"][0]["engine"] = "f".into();
    let bench = Bench::new(&chain.to_string(), input());
    let env = [("CHAINETTE_SETS", "e;f"), ("CHAINETTE_SPILL", "100000")];
    let told = Scenario::new(server, bench, &ARGS, &env, |_, _| ()).at_every(TURNS);
    assert_told!(told);
}

/// A run that stops cuts its connections. A row that sees its own go is given up; the ledger hears of no fault.
#[test]
fn a_connection_that_we_cut_is_no_fault() {
    let server = TestServer::start(|asked| match asked.user() {
        "say 1" if asked.seen == 0 => Answer::Drip {
            content: "slowly".into(),
            bytes: 20,
            every: Duration::from_millis(100),
        },
        heard => Answer::text(heard),
    });
    let chain = json!({
        "name": "cut",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 1}},
        "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}", "retries": {"transport": 0},
                   "sampling": {"max_tokens": 9}}],
    });
    let bench = Bench::new(&chain.to_string(), rows(20));
    // A row waits for its reply, on a thread, while the disk is full for another: the run ends.
    let points = "engine.awaited:5=wait:go;commit.begun:1=wait:go.here;commit.outcomes_written=enospc;\
                  session.ended=wait:end";
    let mut command = bench.command(&["--batch-size", "1"]);
    command.env("CHAINETTE_FAILPOINT", points).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let dir = bench.dir.path();
    until("row that waits", || dir.join("go.here").exists());
    // Long enough for the end of a run that would not wait for its rows.
    std::thread::sleep(Duration::from_millis(500));
    bench.write("go", "");
    until("end of the session", || dir.join("end.here").exists());
    std::thread::sleep(Duration::from_millis(200));
    bench.write("end", "");
    let code = ends_within(&mut child, Duration::from_secs(60));
    let said = stderr_of(&mut child);
    assert_eq!(code, 1, "{said}");
    let ran = bench.run(&[]);
    assert_eq!((ran.code, ran.lines("ask").len()), (0, 20), "{}", ran.stderr);
}

/// An answer that cannot be written stops its row's other children too; the run still says why.
#[test]
fn a_cause_is_not_lost_among_what_it_stops() {
    let server = TestServer::start(|asked| match (asked.user(), asked.tries()) {
        ("say 0.0", 0) => Answer::text("what?"),
        _ => Answer::text(r#"{"label":"a"}"#),
    });
    let chain = json!({
        "name": "cause",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 1}},
        "steps": [
            {"id": "fan", "apply": {"jq": "range(3) | {i: .}"}},
            {"id": "ask", "engine": "e", "user_prompt": "say {{ row_id }}", "output_model": {"label": "string"}},
        ],
    });
    let bench = Bench::new(&chain.to_string(), rows(1));
    // The first child asks again and waits behind the second, whose answer meets a full disk.
    let mut command = bench.command(&["--quiet"]);
    command.env("CHAINETTE_FAILPOINT", "ledger.written:2=enospc");
    let output = command.output().expect("the command starts");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("the run's ledger: No space left"),
        "{}",
        said(&output)
    );
    let ran = bench.run(&[]);
    assert_eq!((ran.code, ran.lines("ask").len()), (0, 3), "{}", ran.stderr);
}
