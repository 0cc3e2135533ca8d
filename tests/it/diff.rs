//! `chainette diff`: two finished runs, side by side.

use std::fs;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{BINARY, Bench, COPY, Ran, echo, rows, two_steps};
use crate::server::{Answer, TestServer};

/// Runs a chain over an input into a folder.
fn run(bench: &Bench, chain: &str, input: &str, out: &str, extra: &[&str]) {
    let ran = bench.invoke(&[&["run", chain, input, out], extra].concat());
    assert!(matches!(ran.code, 0 | 3), "{}", ran.stderr);
}

/// Compares two folders, which nothing may change.
fn diff(bench: &Bench, args: &[&str]) -> Ran {
    let ran = bench.invoke(&[&["diff"], args].concat());
    let says_so = matches!((ran.code, ran.stderr.is_empty()), (0 | 1, true) | (2, false));
    assert!(says_so, "{}: {}", ran.code, ran.stderr);
    ran
}

fn json(bench: &Bench, args: &[&str]) -> Value {
    let ran = diff(bench, &[args, &["--json"]].concat());
    let value: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(ran.code == 0, value["same"] == true, "{}", ran.stdout);
    value
}

/// `only in A/only in B/equal/different` of a folder.
fn counts(diff: &Value, folder: &str) -> String {
    let folders = diff["folders"].as_array().expect("folders");
    let found = folders.iter().find(|found| found["folder"] == folder);
    let found = found.expect(folder);
    let names = ["only_a", "only_b", "equal", "different"];
    names.map(|name| found[name].to_string()).join("/")
}

macro_rules! assert_report {
    ($name:literal, $text:expr) => {
        insta::with_settings!({filters => vec![
            (r#""run_id": "[0-9a-f]{16}""#, r#""run_id": "[id]""#),
            (r"/tmp/\.tmp\w+", "[dir]"),
        ]}, { insta::assert_snapshot!($name, $text) })
    };
}

/// A Step that grades, an Apply that splits, one that fails and writes nothing.
fn graded(server: &TestServer, model: &str, prompt: &str, picky: &str, more: &Value) -> String {
    let mut steps = vec![
        json!({"id": "grade", "engine": "small", "user_prompt": prompt}),
        json!({"id": "parts", "apply": {"jq": "range(.text | length % 3 + 1) | {part: ., text: $row.grade.text}"}}),
        json!({"id": "picky", "yield_output": false, "apply": {"jq": picky}}),
    ];
    steps.extend(more.as_array().cloned().unwrap_or_default());
    json!({
        "name": "grades", "vars": {"tone": if model == "large" { "harsh" } else { "kind" }},
        "engines": {"small": {"backend": "openai", "model": model, "endpoint": server.url()}},
        "steps": steps,
    })
    .to_string()
}

/// Another prompt, another model, other failures, another node, more rows.
#[test]
fn what_a_changed_prompt_changed() {
    let server = TestServer::start(|asked| {
        Answer::text(
            asked
                .user()
                .replace("Grade", "I grade, and I take my time about it:"),
        )
    });
    let picky = r#"if $chain_input.a == 3 then error("three") else . end"#;
    let other = r#"if $chain_input.a == 5 then error("five\u001b[2J") else . end"#;
    let prompt =
        "Grade this: {{ a }}{{ \" and do say why, in as many words as you like\" if a > 7 else \"\" }}";
    let bench = Bench::new("", rows(12));
    bench.write(
        "a.yaml",
        graded(&server, "small", "Grade this: {{ a }}", picky, &json!([])),
    );
    let last = json!([{"id": "last", "apply": {"jq": "."}}]);
    bench.write("b.yaml", graded(&server, "large", prompt, other, &last));
    bench.write("more.jsonl", rows(14));
    run(&bench, "a.yaml", "in.jsonl", "a", &[]);
    run(
        &bench,
        "b.yaml",
        "more.jsonl",
        "b",
        &["--max-lines-per-file", "6"],
    );
    let ran = diff(&bench, &["a", "b", "--sample", "3"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.lines().all(|line| line.chars().count() <= 80),
        "{}",
        ran.stdout
    );
    assert_report!("diff_text", ran.stdout);
    let ran = diff(&bench, &["a", "b", "--sample", "1", "--json"]);
    assert_report!("diff_json", ran.stdout);
    // The other way round everything is the other way round.
    let (there, back) = (json(&bench, &["a", "b"]), json(&bench, &["b", "a"]));
    for folder in ["grade", "parts", "last", "flattened", "errors"] {
        let mut turned: Vec<String> = counts(&back, folder).split('/').map(str::to_owned).collect();
        turned.swap(0, 1);
        assert_eq!(counts(&there, folder), turned.join("/"), "{folder}");
    }
    assert_eq!(counts(&there, "last"), "0/17/0/0");
}

#[test]
fn runs_that_wrote_the_same() {
    let bench = Bench::new(COPY, rows(30));
    bench.write("b.yaml", format!("# another comment\n{COPY}"));
    run(&bench, "chain.yaml", "in.jsonl", "a", &[]);
    run(
        &bench,
        "chain.yaml",
        "in.jsonl",
        "again",
        &["--max-lines-per-file", "100000"],
    );
    run(
        &bench,
        "b.yaml",
        "in.jsonl",
        "b",
        &["--max-lines-per-file", "7", "--format", "parquet"],
    );
    let (again, b) = (diff(&bench, &["a", "again"]), diff(&bench, &["a", "b"]));
    assert_eq!((again.code, b.code), (0, 0));
    assert_report!("diff_same", again.stdout + "\n" + &b.stdout);
    assert_eq!(json(&bench, &["a", "a"])["made"]["input"], "same");
}

/// Chains, engines and inputs that differ without a row that does.
#[test]
fn how_the_runs_were_made() {
    let chain = |model: &str, when: &str, jq: &str| {
        format!(
            "name: t\ninput_model: {{a: {model}}}\nsteps:\n  - branch: side\n    when: {when}\n    steps: [{{id: one, apply: {{jq: '{jq}'}}}}]\n"
        )
    };
    let bench = Bench::new(&chain("integer", "a > 1", "."), rows(4));
    bench.write("b.yaml", chain("number", "a > 1", "."));
    bench.write("c.yaml", chain("integer", "a >= 2", ".+{}"));
    for (name, out) in [("chain.yaml", "a"), ("b.yaml", "b"), ("c.yaml", "c")] {
        run(&bench, name, "in.jsonl", out, &[]);
    }
    for out in ["piped", "piped-again"] {
        let mut command = Command::new(BINARY);
        let input = fs::File::open(bench.dir.path().join("in.jsonl")).expect("the input");
        command
            .current_dir(bench.dir.path())
            .args(["run", "chain.yaml", "-", out, "--quiet"]);
        let status = command.stdin(input).status().expect("the command starts");
        assert_eq!(status.code(), Some(0));
    }
    let found = json(&bench, &["a", "b"]);
    assert_eq!(
        (&found["made"]["chain"], &found["made"]["changed"]),
        (&json!(["input_model"]), &json!([]))
    );
    let said = diff(&bench, &["a", "b"]).stdout;
    assert!(
        said.contains("chain    the chain itself: input_model\n"),
        "{said}"
    );
    let server = echo();
    let asks = two_steps(&server).to_string();
    bench.write("asks.yaml", &asks);
    bench.write(
        "asks-another.yaml",
        asks.replace("\"model\":\"m\"", "\"model\":\"m2\""),
    );
    run(&bench, "asks.yaml", "in.jsonl", "asks", &[]);
    run(&bench, "asks-another.yaml", "in.jsonl", "asks-another", &[]);
    let said = diff(&bench, &["asks", "asks-another"]).stdout;
    let head = "chain    the same but for its engines\nengine   e.model: \"m\" → \"m2\"\n";
    assert!(said.contains(head), "{said}");
    let found = json(&bench, &["a", "c"]);
    let changed = json!([{"id": "one", "keys": ["apply"]}, {"id": "side", "keys": ["when"]}]);
    assert_eq!(
        (&found["same"], &found["made"]["changed"]),
        (&json!(true), &changed)
    );
    assert_eq!(
        json(&bench, &["piped", "piped-again"])["made"]["input"],
        "unknown"
    );
    let input = &json(&bench, &["a", "piped"])["made"]["input"]["different"];
    assert_eq!(input, "the input is another one or was changed");
}

/// The outputs in one of the two formats.
fn both_formats(bench: &Bench, input: &str, out: &str) {
    for (format, suffix) in [("jsonl", ""), ("parquet", ".p")] {
        let out = format!("{out}{suffix}");
        run(
            bench,
            "chain.yaml",
            input,
            &out,
            &["--format", format, "--max-lines-per-file", "4000"],
        );
    }
}

/// What is rescued, mixed, nested or null is the same in either format, and what differs is found in each.
#[test]
fn formats_can_be_mixed() {
    let mut input = String::new();
    for n in 0..11_000_u64 {
        input += &match n {
            10_500 => {
                "{\"n\": \"none\", \"late\": [1, {\"x\": null}], \"row_id\": 5, \"_rescued\": 1}\n".to_owned()
            }
            10_501 => "{\"n\": 12345678901234567890123, \"price\": 1e2, \"deep\": {\"new\": 1}}\n".to_owned(),
            _ => format!(
                "{{\"n\": {n}, \"price\": {n}.10, \"mixed\": {}, \"list\": [1.50, null, {{\"b\": null, \"c\": [{n}]}}], \
                 \"deep\": {{\"never\": null, \"e\": {{}}}}, \"text\": \"\\u0061\\\"{n}\"}}\n",
                if n % 2 == 0 { "[1]" } else { "\"x\"" }
            ),
        };
    }
    let bench = Bench::new(COPY, &input);
    bench.write("other.jsonl", input.replace("[7000]", "[7001]"));
    both_formats(&bench, "in.jsonl", "a");
    both_formats(&bench, "other.jsonl", "b");
    for (a, b) in [("a", "a.p"), ("a.p", "a"), ("b", "b.p"), ("a.p", "a.p")] {
        let found = json(&bench, &[a, b]);
        assert_eq!(counts(&found, "n"), "0/0/11000/0", "{a} {b}: {found:#}");
        assert_eq!(counts(&found, "flattened"), "0/0/11000/0", "{a} {b}");
        assert_eq!(found["same"], true);
    }
    for (a, b) in [("a", "b"), ("a", "b.p"), ("a.p", "b"), ("a.p", "b.p")] {
        let found = json(&bench, &[a, b]);
        assert_eq!(counts(&found, "n"), "0/0/10999/1", "{a} {b}: {found:#}");
        let sample = &found["folders"][0]["sample"]["different"][0];
        assert_eq!(
            (&sample["row_id"], &sample["fields"][0]["field"]),
            (&json!("7000"), &json!("list"))
        );
        assert!(found["made"]["input"]["different"].is_string(), "{found:#}");
    }
}

/// Pairs of values, and whether they are the same: in JSON lines, and where one side is Parquet.
#[test]
fn values_are_compared_as_json() {
    let pairs = [
        ("1.10", "1.1", true, true),
        ("1", "1.0", true, true),
        ("100", "1e2", true, true),
        ("1.5E+3", "1500", true, true),
        ("-0", "0.00", true, true),
        ("1e-400", "0.1E-399", true, true),
        (
            "12345678901234567890123",
            "1234567890123456789012.3e1",
            true,
            true,
        ),
        ("12345678901234567890123", "12345678901234567890124", false, false),
        ("9007199254740993", "9007199254740992", false, false),
        ("0.1", "0.10000000000000000001", false, true),
        ("1e400", "2e400", false, false),
        ("1e99999999999999999999", "2e99999999999999999999", false, false),
        ("1", "-1", false, false),
        ("1", "\"1\"", false, false),
        ("0", "false", false, false),
        ("1", "10", false, false),
        (
            "{\"a\":1,\"b\":[1.0,{}]}",
            "{ \"b\": [ 1, { } ], \"a\": 1 }",
            true,
            true,
        ),
        ("{\"a\":1}", "{\"b\":1}", false, false),
        ("[1,2]", "[2,1]", false, false),
        ("[1]", "[1,1]", false, false),
        ("{}", "[]", false, false),
        ("\"\\u0061\\/\"", "\"a/\"", true, true),
        ("\"a\"", "\"A\"", false, false),
        ("[null]", "[]", false, false),
        ("null", "0", false, false),
    ];
    // Objects hold each value: typed columns would be another test.
    let input = |side: fn(&(&'static str, &'static str, bool, bool)) -> &'static str| -> String {
        pairs
            .iter()
            .map(|pair| format!("{{\"v\": {}}}\n", side(pair)))
            .collect()
    };
    let bench = Bench::new(COPY, input(|pair| pair.0));
    bench.write("b.jsonl", input(|pair| pair.1));
    let plain = ["--no-flattened"];
    run(&bench, "chain.yaml", "in.jsonl", "a", &plain);
    run(&bench, "chain.yaml", "b.jsonl", "b", &plain);
    run(
        &bench,
        "chain.yaml",
        "b.jsonl",
        "p",
        &["--no-flattened", "--format", "parquet"],
    );
    // Not every reader of JSON takes 1e400.
    let differing = |b: &str| -> Vec<usize> {
        let text = diff(&bench, &["a", b, "--sample", "100", "--json"]).stdout;
        let ids = text.split("\"row_id\": \"").skip(1);
        let ids = ids.map(|rest| rest.split('"').next().expect("an id").parse());
        ids.collect::<Result<_, _>>().expect("ids are numbers")
    };
    let expected = |same: fn(&(&str, &str, bool, bool)) -> bool| -> Vec<usize> {
        let all = pairs.iter().enumerate();
        all.filter(|(_, pair)| !same(pair)).map(|(at, _)| at).collect()
    };
    assert_eq!(differing("b"), expected(|pair| pair.2));
    assert_eq!(differing("p"), expected(|pair| pair.3));
}

/// Decimal fractions in a typed column are doubles, and a field that is null is one that was left out.
#[test]
fn typed_columns_know_less() {
    let bench = Bench::new(
        COPY,
        "{\"v\":0.10000000000000000001,\"o\":{\"x\":1,\"y\":null},\"z\":null}\n{\"v\":3.5,\"o\":{\"x\":2}}\n",
    );
    bench.write(
        "b.jsonl",
        "{\"v\":0.1,\"o\":{\"x\":1}}\n{\"v\":3.5,\"o\":{\"x\":2,\"y\":null},\"z\":null}\n",
    );
    both_formats(&bench, "in.jsonl", "a");
    both_formats(&bench, "b.jsonl", "b");
    assert_eq!(counts(&json(&bench, &["a", "b"]), "n"), "0/0/0/2");
    for (a, b) in [("a", "b.p"), ("a.p", "b"), ("a.p", "b.p")] {
        assert_eq!(counts(&json(&bench, &[a, b]), "n"), "0/0/2/0", "{a} {b}");
    }
}

/// Rows that fail at several places, or elsewhere, or for another reason, or came from another file.
#[test]
fn failures_by_place_and_kind() {
    let chain = |one: &str, two: &str| {
        format!(
            "name: t\nsteps:\n  - parallel:\n      - branch: left\n        steps: [{{id: one, apply: {{jq: '{one}'}}}}]\n      \
             - branch: right\n        steps: [{{id: two, apply: {{jq: '{two}'}}}}]\n  - {{id: end, apply: {{jq: .}}}}\n"
        )
    };
    let fails = |when: &str, why: &str| format!("if {when} then error(\"{why}\") else . end");
    let input = rows(6) + "no json\n" + &rows(1) + "[]\n";
    let bench = Bench::new("", &input);
    bench.write("same.jsonl", &input);
    bench.write(
        "a.yaml",
        chain(&fails(".a < 4", "low"), &fails(".a == 2 or .a == 5", "no")),
    );
    bench.write(
        "b.yaml",
        chain(&fails(".a == 2 or .a == 3", "low"), &fails(".a > 1", "nope")),
    );
    run(&bench, "a.yaml", "in.jsonl", "a", &[]);
    run(&bench, "b.yaml", "same.jsonl", "b", &[]);
    let found = json(&bench, &["a", "b"]);
    assert_eq!(found["made"]["input"], "same");
    // Row 0, 1 and 7 are mended; 3 and 4 fail at `two` too; 2 and 5 fail there with other words.
    assert_eq!(counts(&found, "errors"), "3/2/4/2");
    assert_eq!(
        found["failures"],
        json!([
            {"node": null, "kind": "invalid_input", "only_a": 0, "only_b": 0, "both": 2},
            {"node": "one", "kind": "apply", "only_a": 3, "only_b": 0, "both": 2},
            {"node": "two", "kind": "apply", "only_a": 0, "only_b": 2, "both": 2},
        ])
    );
    assert_report!("diff_failures", diff(&bench, &["a", "b", "--sample", "2"]).stdout);
}

/// Folders that one side does not write, and an empty run beside a full one.
#[test]
fn folders_of_one_side() {
    let bench = Bench::new(COPY, rows(4));
    bench.write(
        "quiet.yaml",
        COPY.replace("{id: n,", "{id: n, yield_output: false,"),
    );
    bench.write("none.jsonl", "");
    run(&bench, "chain.yaml", "in.jsonl", "a", &["--no-flattened"]);
    run(&bench, "quiet.yaml", "in.jsonl", "b", &[]);
    run(&bench, "chain.yaml", "none.jsonl", "none", &[]);
    run(&bench, "chain.yaml", "in.jsonl", "two", &["--limit", "2"]);
    run(&bench, "chain.yaml", "in.jsonl", "all", &[]);
    let mut text = String::new();
    for (a, b) in [("a", "b"), ("none", "all"), ("two", "all")] {
        let ran = diff(&bench, &[a, b]);
        assert_eq!(ran.code, 1);
        text += &format!("{}\n---\n", ran.stdout);
    }
    assert_report!("diff_one_side", text);
}

/// Long values are shown where they differ, and nothing in them reaches the terminal as it is.
#[test]
fn values_that_are_hard_to_show() {
    let bench = Bench::new(COPY, "");
    let long = "word ".repeat(100);
    let row = |end: &str, wide: &str| {
        let many: String = (0..30).map(|n| format!(", \"field {n}\": \"{end}\"")).collect();
        format!(
            "{{\"long\": \"{long}{end}\", \"start\": \"{end}{long}\", \"evil\\u001b[2J\\u202e\": \"\u{9b}31m\u{202e}{end}\", \
             \"wide\": \"{}\"{many}}}\n",
            wide.repeat(60)
        )
    };
    bench.write("in.jsonl", row("one", "日"));
    bench.write("b.jsonl", row("two", "本"));
    run(&bench, "chain.yaml", "in.jsonl", "a", &["--no-flattened"]);
    run(&bench, "chain.yaml", "b.jsonl", "b", &["--no-flattened"]);
    let ran = diff(&bench, &["a", "b"]);
    let printable = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
    assert!(ran.stdout.chars().all(printable), "{:?}", ran.stdout);
    let wide: Vec<&str> = ran
        .stdout
        .lines()
        .filter(|line| console::measure_text_width(line) > 80)
        .collect();
    assert!(wide.is_empty(), "{wide:#?}");
    assert_report!("diff_values", ran.stdout);
    let coloured = diff(&bench, &["a", "b", "--color", "always"]).stdout;
    assert!(coloured.contains("\u{1b}[31m"), "{coloured}");
    assert_eq!(console::strip_ansi_codes(&coloured), ran.stdout);
}

/// What is done to an OUT.
type Harm<'a> = (&'a str, &'a dyn Fn(&Path));

#[test]
fn what_cannot_be_compared() {
    let bench = Bench::new(COPY, rows(20));
    let shards = ["--max-lines-per-file", "8"];
    run(&bench, "chain.yaml", "in.jsonl", "a", &shards);
    let path = |name: &str| -> PathBuf { bench.dir.path().join(name) };
    let edit = |path: &Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).expect("a file of OUT");
        assert!(text.contains(from), "{from}");
        fs::write(path, text.replacen(from, to, 1)).expect("OUT is writable");
    };
    let harms: [Harm<'_>; 9] = [
        ("b", &|out| fs::remove_dir_all(out).expect("OUT")),
        ("b", &|out| {
            edit(&out.join("metadata.json"), "\"jsonl\"", "\"tables\"");
        }),
        ("b", &|out| {
            edit(&out.join("metadata.json"), "\"finished\"", "\"running\"");
        }),
        ("b", &|out| {
            fs::remove_file(out.join("n/001.jsonl")).expect("a shard");
        }),
        ("b", &|out| {
            edit(&out.join("flattened/002.jsonl"), "\"19\"", "\"1\"")
        }),
        ("b", &|out| edit(&out.join("n/001.jsonl"), "\"a\":9", "\"a\"=9")),
        ("b", &|out| {
            edit(&out.join("n/001.jsonl"), "\"row_id\":\"11\"", "\"row_id\":\"10\"");
        }),
        ("b", &|out| {
            edit(&out.join("n/001.jsonl"), "\"row_id\":\"11\"", "\"row_id\":\"09\"");
        }),
        ("b", &|out| {
            edit(&out.join("n/002.jsonl"), "\"row_id\":\"16\"", "\"row_id\":\"12\"");
        }),
    ];
    let mut text = String::new();
    for (out, harm) in harms {
        run(&bench, "chain.yaml", "in.jsonl", out, &shards);
        harm(&path(out));
        for args in [["a", out], [out, "a"]] {
            let ran = diff(&bench, &args);
            assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}");
            if args[0] == "a" {
                text += &ran.stderr;
            }
        }
        if path(out).exists() {
            fs::remove_dir_all(path(out)).expect("OUT can be removed");
        }
    }
    assert_report!("diff_refused", text);
}

/// A reader that goes away is no error, a full disk is one.
#[test]
fn stdout_that_takes_nothing() {
    let bench = Bench::new(COPY, rows(3));
    run(&bench, "chain.yaml", "in.jsonl", "a", &[]);
    let full = fs::File::create("/dev/full").expect("/dev/full is there");
    let mut command = Command::new(BINARY);
    command
        .current_dir(bench.dir.path())
        .args(["diff", "a", "a"])
        .stdout(full);
    let output = command.output().expect("the command starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("error: cannot write to stdout"), "{said}");
    assert_eq!(output.status.code(), Some(2), "1 says that the outputs differ");
}

/// 180 MB on either side, in a fraction of that.
#[test]
fn memory_does_not_grow_with_the_rows() {
    let chain = "name: fat\nsteps:\n  - {id: n, apply: {jq: '{t: (\"x\" * 3000), n: .a}'}}\n";
    let bench = Bench::new(chain, rows(60_000));
    run(&bench, "chain.yaml", "in.jsonl", "a", &["--no-flattened"]);
    let other = bench.dir.path().join("b");
    fs::create_dir_all(other.join("n")).expect("a folder can be made");
    let in_a = |name: &str| bench.dir.path().join("a").join(name);
    for name in ["metadata.json", "graph.json"] {
        fs::copy(in_a(name), other.join(name)).expect("a file can be copied");
    }
    let mut lines = BufReader::new(fs::File::open(in_a("n/000.jsonl")).expect("the shard"));
    let shard = fs::File::create(other.join("n/000.jsonl")).expect("OUT is writable");
    let mut shard = BufWriter::new(shard);
    let mut line = String::new();
    for n in 0..60_000 {
        line.clear();
        lines.read_line(&mut line).expect("the shard is text");
        if n % 2 == 1 {
            line = line.replacen("xx", "xy", 1);
        }
        shard.write_all(line.as_bytes()).expect("OUT is writable");
    }
    shard.flush().expect("OUT is writable");
    // The stack of the working thread alone takes 64 MiB of these addresses.
    let limited = "ulimit -v 250000 && exec \"$0\" diff a b --json --sample 2";
    let mut command = Command::new("bash");
    command
        .current_dir(bench.dir.path())
        .args(["-c", limited, BINARY]);
    let output = command.output().expect("bash is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(counts(&found, "n"), "0/0/30000/30000");
    let ids = [0, 1].map(|at| &found["folders"][0]["sample"]["different"][at]["row_id"]);
    assert_eq!(ids, ["1", "3"]);
}
