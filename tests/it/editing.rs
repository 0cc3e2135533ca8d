//! Edit and run again: `--resume` with another chain or input asks only what was never asked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::{Bench, Ran, assert_same, assert_stderr, echo, rows, tree, tree_of, two_steps, until};
use crate::server::{Answer, TestServer};

/// A run that is edited again and again, its OUT compared with a fresh run each time.
struct Edited {
    server: TestServer,
    bench: Bench,
    chain: Value,
    fresh: usize,
}

impl Edited {
    fn new(input: &str) -> Self {
        let server = echo();
        let chain = two_steps(&server);
        let bench = Bench::new(&chain.to_string(), input);
        let edited = Self {
            server,
            bench,
            chain,
            fresh: 0,
        };
        assert_eq!(edited.bench.run(&[]).code, 0);
        edited
    }

    /// How many requests `--resume` sends; and what it says.
    fn asked(&mut self) -> (u64, String) {
        self.server.clear_log();
        self.bench.write("chain.yaml", self.chain.to_string());
        let ran = self.bench.run(&["--resume"]);
        assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
        let asked = self.server.stats().asked;
        self.fresh += 1;
        let fresh = tree_of(&self.bench, &format!("fresh{}", self.fresh), &[]);
        assert_same(&fresh, &tree(&ran.out));
        (asked, ran.stderr)
    }
}

/// Rows `{"a": n}` of these numbers.
fn numbered(numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(|n| format!("{{\"a\":{n}}}\n")).collect()
}

#[test]
fn rows_that_moved_are_not_asked_again() {
    let mut run = Edited::new(&rows(20));
    let inputs: [(Vec<usize>, u64); 6] = [
        // A row before all others, one in the middle gone, all turned round, some at the end.
        ((20..21).chain(0..20).collect(), 2),
        ((0..7).chain(8..21).collect(), 0),
        ((0..21).rev().collect(), 0),
        ((0..25).collect(), 8),
        // A row that is there once more is a row more.
        ((0..25).chain([3, 3]).collect(), 4),
        ([3].into_iter().chain(0..25).chain([3]).collect(), 0),
    ];
    for (input, asked) in inputs {
        run.bench.write("in.jsonl", numbered(input.iter().copied()));
        assert_eq!(run.asked().0, asked, "{input:?}");
    }
}

#[test]
fn only_a_new_request_or_another_engine_is_asked() {
    let mut run = Edited::new(&rows(20));
    // A Step of another name.
    run.chain["steps"][0]["id"] = "opening".into();
    run.chain["steps"][1]["user_prompt"] = "{{ vars.tone }}: {{ opening.text }}".into();
    assert_eq!(run.asked().0, 0);
    // Rows become children, and some go.
    let steps = run.chain["steps"].as_array_mut().expect("a list");
    steps.insert(
        0,
        json!({"id": "twice", "apply": {"jq": "select(.a != 4) | ., {a: (.a + 100)}"}}),
    );
    assert_eq!(run.asked().0, 2 * 19);
    // What comes after the Steps.
    let steps = run.chain["steps"].as_array_mut().expect("a list");
    steps.push(json!({"id": "size", "apply": {"jq": "{n: (.text | length)}"}}));
    let (asked, said) = run.asked();
    assert_eq!(asked, 0);
    assert_stderr!(said);
    // One character of one prompt.
    run.chain["steps"][2]["user_prompt"] = "{{ vars.tone }}; {{ opening.text }}".into();
    assert_eq!(run.asked().0, 2 * 19);
    // Sampling is part of a request.
    run.chain["steps"][2]["sampling"] = json!({"seed": 7});
    assert_eq!(run.asked().0, 2 * 19);
    // The same words for another model, or at another engine.
    run.chain["engines"]["e"]["model"] = "m2".into();
    assert_eq!(run.asked().0, 4 * 19);
    run.chain["engines"]["other"] = run.chain["engines"]["e"].clone();
    run.chain["steps"][2]["engine"] = "other".into();
    assert_eq!(run.asked().0, 2 * 19);
    // How fast it is asked, and where it is, decides no answer.
    run.chain["engines"]["e"]["concurrency"] = 1.into();
    assert_eq!(run.asked().0, 0);
}

/// Samples: many rows ask the same and get different answers. Moved, each keeps one of its own.
#[test]
fn equal_requests_share_no_answer() {
    let count = AtomicUsize::new(0);
    let server =
        TestServer::start(move |_| Answer::text(format!("sample {}", count.fetch_add(1, Ordering::SeqCst))));
    let chain = json!({
        "name": "samples",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 4}},
        "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}"}],
    });
    let bench = Bench::new(&chain.to_string(), numbered([1; 200]));
    let samples = |ran: &Ran| {
        let values = ran.values("ask");
        let mut all: Vec<String> = values
            .iter()
            .map(|value| value["text"].as_str().expect("a text").to_owned())
            .collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    assert_eq!(samples(&bench.run(&[])), 200);
    bench.write("in.jsonl", numbered([2].into_iter().chain([1; 200])));
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, samples(&ran), server.stats().asked), (0, 201, 201));
    bench.write("in.jsonl", numbered([2, 2].into_iter().chain([1; 150])));
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, samples(&ran), server.stats().asked), (0, 152, 202));
}

/// Killed on its way through moved rows, it goes on with the answers that it took.
#[test]
fn a_killed_edit_takes_the_same_answers() {
    let held = Arc::new(AtomicBool::new(false));
    let hold = held.clone();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = heard.clone();
    let server = TestServer::start(move |asked| {
        if hold.load(Ordering::SeqCst) && asked.user().starts_with("say 10") {
            return Answer::Hang;
        }
        let mut heard = list.lock().expect("a list");
        heard.push(asked.user().to_owned());
        Answer::text(format!("{} to {}", heard.len(), asked.user()))
    });
    let bench = Bench::new(&two_steps(&server).to_string(), rows(100));
    let small = ["--batch-size", "5"];
    assert_eq!(bench.run(&small).code, 0);
    let first = bench.opened().values("second");
    // All rows are one further on, and the new ones stand in their midst.
    bench.write(
        "in.jsonl",
        numbered([1000].into_iter().chain(0..60).chain([1001]).chain(60..100)),
    );
    held.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let mut child = bench.spawn(&["--resume", "--batch-size", "5"]);
        until("request", || server.stats().in_flight > 0);
        child.kill().expect("a child can be killed");
        let _reaped = child.wait();
        until("end of it", || server.stats().in_flight == 0);
    }
    held.store(false, Ordering::SeqCst);
    let ran = bench.run(&small);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let texts =
        |values: &[Value]| -> Vec<String> { values.iter().map(|value| value["text"].to_string()).collect() };
    let mut now = texts(&ran.values("second"));
    now.remove(61);
    now.remove(0);
    assert_eq!(now, texts(&first), "each old row has its old answer");
    let heard = heard.lock().expect("a list").len();
    assert_eq!(heard, 204, "each request was answered once");
}

/// How many rows were done when a run went on.
fn done_before(ran: &Ran) -> Option<u64> {
    let events = crate::logs::events(&ran.stderr);
    let resumed = events.iter().find(|event| event["event"] == "resumed")?;
    resumed["rows"].as_u64()
}

#[test]
fn appended_rows_leave_the_others_alone() {
    let server = echo();
    let chain = two_steps(&server).to_string();
    let asked = |bench: &Bench, extra: &[&str]| {
        server.clear_log();
        let ran = bench.run(&[extra, &["--resume", "--json-logs"]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_same(
            &tree_of(bench, "fresh", &[extra, &["--overwrite"]].concat()),
            &tree(&ran.out),
        );
        let asked = crate::logs::events(&ran.stderr).last().expect("events")["rows_in"].as_u64();
        (done_before(&ran).unwrap_or(0), asked.expect("a number"))
    };
    let small = ["--max-lines-per-file", "6"];
    let bench = Bench::new(&chain, rows(20));
    assert_eq!(bench.run(&small).code, 0);
    bench.write("in.jsonl", rows(25));
    assert_eq!(asked(&bench, &small), (20, 25));
    // Blank lines are no rows.
    bench.write("in.jsonl", rows(25) + "\n\n");
    assert_eq!(asked(&bench, &small), (25, 25));
    // A last line without an end is another line once something follows it.
    let open = rows(25) + "\n\n{\"a\":25}";
    bench.write("in.jsonl", &open);
    assert_eq!(asked(&bench, &small), (25, 26));
    bench.write("in.jsonl", open + "\n{\"a\":26}\n");
    assert_eq!(asked(&bench, &small), (0, 27));
    // The old rows are not what they were.
    bench.write("in.jsonl", rows(30).replace("\"a\":3}", "\"a\":4}"));
    assert_eq!(asked(&bench, &small), (0, 30));
    // Parquet shards are closed for good; those of a run up to a limit, or of one that was stopped, are not.
    let parquet = ["--format", "parquet", "--max-lines-per-file", "6"];
    let bench = Bench::new(&chain, rows(20));
    assert_eq!(bench.run(&parquet).code, 0);
    bench.write("in.jsonl", rows(25));
    assert_eq!(asked(&bench, &parquet), (0, 25));
    assert_eq!(
        bench
            .run(&[&parquet[..], &["--overwrite", "--limit", "20"]].concat())
            .code,
        0
    );
    bench.write("in.jsonl", rows(35));
    assert_eq!(asked(&bench, &parquet), (20, 35));
}

#[test]
fn new_files_at_the_end_leave_the_others_alone() {
    let server = echo();
    let bench = Bench::new(&two_steps(&server).to_string(), "");
    let folder = bench.dir.path().join("rows");
    std::fs::create_dir(&folder).expect("a folder can be made");
    let run = |out: &str| {
        server.clear_log();
        let ran = bench.invoke(&["run", "chain.yaml", "rows", out, "--resume", "--json-logs"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        (done_before(&ran).unwrap_or(0), server.stats().asked)
    };
    let files = [
        ("a.csv", "a\n1\n2\n", (0, 4)),
        ("b.jsonl", "{\"a\":3}\n{\"a\":4}\n", (2, 4)),
        ("b.jsonl", "{\"a\":3}\n{\"a\":4}\n{\"a\":5}\n", (4, 2)),
        ("c.jsonl", "{\"a\":6}\n", (5, 2)),
        // Before those that are done.
        ("0.jsonl", "{\"a\":7}\n", (0, 2)),
        ("a.csv", "a\n1\n2\n8\n", (0, 2)),
    ];
    for (name, text, expected) in files {
        bench.write(&format!("rows/{name}"), text);
        assert_eq!(run("out"), expected, "{name}");
        let fresh = bench.invoke(&["run", "chain.yaml", "rows", "fresh", "--overwrite"]);
        assert_eq!(fresh.code, 0, "{}", fresh.stderr);
        let dir = bench.dir.path();
        assert_same(&tree(&dir.join("fresh")), &tree(&dir.join("out")));
    }
}

/// A row whose answer another row took asks for one of its own.
#[test]
fn a_taken_answer_is_not_shared() {
    let count = AtomicUsize::new(0);
    let server =
        TestServer::start(move |_| Answer::text(format!("sample {}", count.fetch_add(1, Ordering::SeqCst))));
    let chain = json!({
        "name": "samples",
        "engines": {"e": {"backend": "openai", "model": "m", "endpoint": server.url(), "concurrency": 1}},
        "steps": [{"id": "ask", "engine": "e", "user_prompt": "say {{ a }}"}],
    });
    let bench = Bench::new(&chain.to_string(), numbered([1, 2]));
    assert_eq!(bench.run(&["--batch-size", "1"]).code, 0);
    bench.write("in.jsonl", numbered([2, 2]));
    let ran = bench.run(&["--resume", "--batch-size", "1"]);
    let values = ran.values("ask");
    assert_eq!((ran.code, server.stats().asked), (0, 3), "{}", ran.stderr);
    assert_ne!(values[0]["text"], values[1]["text"]);
}

/// A limit may lie before rows that are on file, moved or not: what comes after it is still found.
#[test]
fn an_edit_that_stopped_at_a_limit_goes_on_with_what_it_has() {
    let server = echo();
    let mut chain = two_steps(&server);
    let bench = Bench::new(&chain.to_string(), rows(20));
    assert_eq!(bench.run(&[]).code, 0);
    chain["steps"][0]["id"] = "opening".into();
    chain["steps"][1]["user_prompt"] = "{{ vars.tone }}: {{ opening.text }}".into();
    bench.write("chain.yaml", chain.to_string());
    assert_eq!(bench.run(&["--resume", "--limit", "5"]).code, 0);
    bench.write("in.jsonl", rows(21));
    server.clear_log();
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, server.stats().asked), (0, 2), "{}", ran.stderr);
    assert_same(&tree_of(&bench, "fresh", &[]), &tree(&ran.out));
}

/// A file that grows while it is read ends in half a line then; that line is not taken for a row that is done.
#[test]
fn half_a_line_at_the_end_is_no_row_that_is_done() {
    let server = echo();
    let bench = Bench::new(&two_steps(&server).to_string(), rows(20) + "{\"a\":2");
    assert_eq!(bench.run(&[]).code, 3);
    bench.write("in.jsonl", rows(20) + "{\"a\":20}\n");
    let ran = bench.run(&["--resume"]);
    assert_eq!((ran.code, ran.lines("second").len()), (0, 21), "{}", ran.stderr);
    assert_same(&tree_of(&bench, "fresh", &[]), &tree(&ran.out));
}

/// A schema has a name on the wire; it is not the Step's.
#[test]
fn a_renamed_step_asks_the_same() {
    for backend in ["openai", "vllm", "llamacpp", "ollama", "tgi"] {
        let server = TestServer::start(crate::server::answer_from_schema);
        let chain = |id: &str| {
            json!({
                "name": "renamed",
                "engines": {"e": {"backend": backend, "model": "m", "endpoint": server.url()}},
                "steps": [{"id": id, "engine": "e", "user_prompt": "say {{ a }}", "output_model": {"label": "a | b"},
                           "sampling": {"max_tokens": 50}}],
            })
        };
        let bench = Bench::new(&chain("one").to_string(), rows(5));
        let ran = bench.run(&[]);
        assert_eq!(
            (ran.code, server.stats().asked),
            (0, 5),
            "{backend}: {}",
            ran.stderr
        );
        bench.write("chain.yaml", chain("other").to_string());
        let ran = bench.run(&["--resume"]);
        assert_eq!(
            (ran.code, server.stats().asked),
            (0, 5),
            "{backend}: {}",
            ran.stderr
        );
        assert_eq!(ran.lines("other").len(), 5);
    }
}

/// Damage that no name and size tells is found before anything is asked, and `--resume` mends it.
#[test]
fn what_was_altered_while_it_stood_still_is_found() {
    let server = echo();
    let bench = Bench::new(
        &two_steps(&server).to_string(),
        rows(50) + "no json\n" + &rows(50),
    );
    let stopped = ["--fail-fast", "--batch-size", "10"];
    let flips: [(&str, &[&str]); 3] = [
        ("first/000.jsonl.part", &stopped),
        (".chainette/outcomes", &stopped),
        (".chainette/outcomes", &[]),
    ];
    for (name, extra) in flips {
        let ran = bench.run(&[extra, &["--overwrite"]].concat());
        assert!(matches!(ran.code, 1 | 3), "{}", ran.stderr);
        let path = ran.out.join(name);
        let mut bytes = std::fs::read(&path).expect("the file is there");
        // Of a number.
        let at = bytes.len() / 2
            + bytes[bytes.len() / 2..]
                .iter()
                .position(u8::is_ascii_digit)
                .expect("a digit");
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("the file can be written");
        server.clear_log();
        let ran = bench.run(&[]);
        assert_eq!((ran.code, server.stats().asked), (2, 0), "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("--resume"), "{}", ran.stderr);
        let done = bench.run(&["--resume"]);
        assert_eq!(done.code, 3, "{name}: {}", done.stderr);
        assert_same(&tree_of(&bench, "fresh", &["--overwrite"]), &tree(&done.out));
    }
}
