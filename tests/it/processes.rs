//! Applies in Python: what a function may return, what it sees, how it may misbehave.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::commands::answering;
use crate::harness::{Bench, Ran, tree};
use crate::server::{Answer, TestServer};

/// A chain with one Python Apply, `f` in `f.py`, and further options of it.
pub fn python(code: &str, input: impl AsRef<[u8]>, options: &str) -> Bench {
    let chain = format!(
        "name: t\nvars: {{tone: calm}}\nsteps:\n  - {{id: a, apply: {{python: \"f.py:f\"{options}}}}}\n"
    );
    let bench = Bench::new(&chain, input);
    bench.write("f.py", code);
    bench
}

/// A chain with one command, a Python program `p.py`.
pub fn command(code: &str, input: impl AsRef<[u8]>, options: &str) -> Bench {
    let chain = format!("name: t\nsteps:\n  - {{id: a, apply: {{command: [python3, p.py]{options}}}}}\n");
    let bench = Bench::new(&chain, input);
    bench.write("p.py", code);
    bench
}

pub fn rows(n: usize) -> String {
    (0..n).map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

/// `row_id: message` for each error.
pub fn messages(ran: &Ran) -> Vec<String> {
    let errors = ran.errors();
    let text = |error: &Value, key: &str| error[key].as_str().expect("a text").to_owned();
    assert!(errors.iter().all(|error| error["kind"] == "apply"), "{errors:?}");
    errors
        .iter()
        .map(|error| format!("{}: {}", text(error, "row_id"), text(error, "message")))
        .collect()
}

/// Row ids in a folder.
pub fn ids(ran: &Ran, folder: &str) -> Vec<String> {
    ran.values(folder)
        .iter()
        .map(|line| line["row_id"].as_str().expect("a text").to_owned())
        .collect()
}

/// Command lines of living processes that mention a folder.
pub fn living(dir: &Path) -> Vec<String> {
    let mark = dir.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is there").flatten() {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&mark) {
            found.push(
                line.chars()
                    .rev()
                    .take(200)
                    .collect::<String>()
                    .chars()
                    .rev()
                    .collect(),
            );
        }
    }
    found
}

#[test]
fn the_shipped_chains_with_processes_run() {
    for name in ["python", "command"] {
        let out = tempfile::tempdir().expect("a folder can be made");
        let ran = Command::new(env!("CARGO_BIN_EXE_chainette"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(["run", &format!("chains/{name}.yaml"), "examples/reviews.jsonl"])
            .arg(out.path().join("out"))
            .output()
            .expect("the command starts");
        let log = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(0), "{name}: {log}");
        let lines = fs::read_to_string(out.path().join("out/flattened/000.jsonl")).expect("there are rows");
        assert_eq!(lines.lines().count(), 10, "{name}: {lines}");
    }
}

#[test]
fn a_function_returns_none_a_dict_or_many() {
    let code = "def f(item):\n    n = item['n']\n    if n == 0: return None\n    if n == 1: return {'one': n}\n    \
                if n == 2: return [{'k': 0}, 7, None, [1]]\n    if n == 3: return ({'k': k} for k in range(2))\n    \
                if n == 4: return 'text'\n    if n == 5: return []\n    if n == 6: return map(str, [1])\n    \
                return ({'t': True},)\n";
    let ran = python(code, rows(8), "").run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.lines("a"),
        [
            r#"{"row_id":"1","one":1}"#,
            r#"{"row_id":"2.0","k":0}"#,
            r#"{"row_id":"2.1","value":7}"#,
            r#"{"row_id":"2.2","value":null}"#,
            r#"{"row_id":"2.3","value":[1]}"#,
            r#"{"row_id":"3.0","k":0}"#,
            r#"{"row_id":"3.1","k":1}"#,
            r#"{"row_id":"4","value":"text"}"#,
            r#"{"row_id":"6","value":"1"}"#,
            r#"{"row_id":"7","t":true}"#,
        ]
    );
    assert_eq!(ran.fates("a"), "8/6/2/0/0/0");
}

#[test]
fn values_that_a_function_passes_on_keep_their_spelling() {
    let long = "9".repeat(5000);
    let input = format!(
        "{{\"p\":1.10,\"big\":12345678901234567890123,\"e\":[1E5,{{\"x\":-0.0}}],\"s\":\"é\\n\",\"l\":{long},\"f\":0.1234567890123456789012}}\n"
    );
    let code = "def f(item):\n    return {**item, 'sum': item['p'] + 1, 'moved': [item['p']]}\n";
    let ran = python(code, &input, "").run(&[]);
    let expected = input
        .trim_end()
        .trim_end_matches('}')
        .trim_start_matches('{')
        .to_owned();
    assert_eq!(
        ran.lines("a"),
        [format!(
            "{{\"row_id\":\"0\",{expected},\"sum\":2.1,\"moved\":[1.10]}}"
        )],
        "{}",
        ran.stderr
    );
}

#[test]
fn bad_results_and_exceptions_are_the_rows_errors() {
    let code = r#"
import datetime, sys

class Odd(Exception):
    def __str__(self): raise ValueError("no")

def inner(n):
    raise KeyError("deep")

def f(item):
    n = item["n"]
    if n == 0: return {"a": {"b": [1.0, float("nan")]}}
    if n == 1: return {"inf": float("inf")}
    if n == 2: return {"at": datetime.datetime(2026, 1, 1)}
    if n == 3: return {"m": {1: "x"}}
    if n == 4: raise ValueError("bad\nvalue at 0x7f0012345678")
    if n == 5:
        try: inner(n)
        except KeyError as error: raise RuntimeError("outer") from error
    if n == 6: sys.exit(3)
    if n == 7: return {"s": "\ud800"}
    if n == 8: return iter(int, 1)
    if n == 9: raise Odd()
    if n == 10: return {"s": {1, 2}}
    if n == 11:
        deep = []
        for _ in range(500): deep = [deep]
        return {"deep": deep}
    if n == 12:
        loop = []
        loop.append(loop)
        return loop
    if n == 13: return 1 / 0
    return {"ok": n}
"#;
    let ran = python(code, rows(15), "").run(&["--max-errors", "100"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(ids(&ran, "a"), ["14"]);
    insta::assert_snapshot!(messages(&ran).join("\n"));
}

#[test]
fn a_function_sees_the_row_if_it_takes_it() {
    let see = "{'id': row['row_id'], 'tone': row['vars']['tone'], 'in': row['chain_input'], 'first': row['first'], 'names': sorted(row)}";
    for parameters in ["item, row", "item, *, row", "item, row=None"] {
        let chain = "name: t\nvars: {tone: calm}\nsteps:\n  - {id: first, apply: {jq: '{m: .n}'}}\n  - {id: later, when: 'false', apply: {jq: .}}\n  \
                     - {id: a, apply: {python: \"f.py:f\"}}\n";
        let bench = Bench::new(chain, "{ \"n\":1.50 }\n");
        bench.write("f.py", format!("def f({parameters}):\n    return {see}\n"));
        let ran = bench.run(&[]);
        assert_eq!(
            ran.lines("a"),
            [
                r#"{"row_id":"0","id":"0","tone":"calm","in":{"n":1.50},"first":{"m":1.50},"names":["chain_input","first","later","row_id","vars"]}"#
            ],
            "{}",
            ran.stderr
        );
    }
    // The first parameter is the item's, whatever its name.
    let ran = python("def f(row):\n    return {'n': row['n'] + 1}\n", rows(1), "").run(&[]);
    assert_eq!(ran.lines("a"), [r#"{"row_id":"0","n":1}"#], "{}", ran.stderr);
    let ran = python(
        "def f(item, **more):\n    return {'k': sorted(more)}\n",
        rows(1),
        "",
    )
    .run(&[]);
    assert_eq!(
        ran.lines("a"),
        [r#"{"row_id":"0","k":["row"]}"#],
        "{}",
        ran.stderr
    );
}

#[test]
fn what_a_function_prints_goes_to_the_log() {
    let code = "import os, subprocess, sys\nprint('while loading')\ndef f(item):\n    print('[\"printed\"]')\n    \
                os.write(1, b'[{\"x\":1}]\\n')\n    subprocess.run(['echo', '[2]'])\n    print('to stderr', file=sys.stderr)\n    \
                return {'stdin': sys.stdin.read(), 'closed': os.closerange(50, 60)}\n";
    let bench = python(code, rows(3), "");
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let line = |n| format!("{{\"row_id\":\"{n}\",\"stdin\":\"\",\"closed\":null}}");
    assert_eq!(ran.lines("a"), [line(0), line(1), line(2)]);
    assert!(!ran.stderr.contains("printed"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    let output = bench
        .command(&["--overwrite"])
        .env("CHAINETTE_LOG", "worker=info")
        .output();
    let ran = bench.ran(&output.expect("the command starts"));
    for said in [
        "while loading",
        "[\"printed\"]",
        "[{\"x\":1}]",
        "[2]",
        "to stderr",
    ] {
        assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr);
    }
}

#[test]
fn modules_beside_the_chain_and_beside_the_file_are_importable() {
    let chain = "name: t\nsteps:\n  - {id: a, apply: {python: \"sub/json.py:f\"}}\n";
    let bench = Bench::new(chain, rows(1));
    fs::create_dir(bench.dir.path().join("sub")).expect("a folder can be made");
    bench.write("beside_chain.py", "x = 1\n");
    bench.write("sub/beside_file.py", "y = 2\n");
    // Named like a module of the standard library, which stays what it is.
    bench.write(
        "sub/json.py",
        "import beside_chain, beside_file, os\ndef f(item):\n    return {'x': beside_chain.x, 'y': beside_file.y, 'cwd': os.path.exists('chain.yaml')}\n",
    );
    let ran = bench.run(&[]);
    assert_eq!(
        ran.lines("a"),
        [r#"{"row_id":"0","x":1,"y":2,"cwd":true}"#],
        "{}",
        ran.stderr
    );
}

#[test]
fn a_function_that_cannot_be_loaded_is_bad_usage() {
    let mut said = Vec::new();
    for code in [
        "def g(item): return item\ndef ff(item): return item\n",
        "f = 3\n",
        "import no_such_module_for_chainette\ndef f(item): return item\n",
        "def f(item)\n    return item\n",
        "async def f(item): return item\n",
        "raise SystemExit(7)\n",
        "import os\nos._exit(9)\n",
    ] {
        let bench = python(code, rows(2), "");
        let ran = bench.run(&[]);
        assert_eq!(ran.code, 2, "{code}: {}", ran.stderr);
        assert!(!ran.out.exists(), "nothing is written");
        let python = ran.stderr.find("error: ").expect("an error is told");
        said.push(ran.stderr[python..].trim_end().to_owned());
    }
    let mut settings = insta::Settings::clone_current();
    settings.add_filter("`/[^`]*python3?`", "`PYTHON`");
    settings.add_filter("SyntaxError: .*", "SyntaxError: …");
    settings.bind(|| insta::assert_snapshot!(said.join("\n")));
    let bench = command("import sys\nsys.exit('no licence')\n", rows(2), "");
    let ran = bench.run(&[]);
    // On a machine so slow that it lives through its first look, it is its rows that tell.
    match ran.code {
        2 => assert!(
            !ran.out.exists() && ran.stderr.contains("no licence"),
            "{}",
            ran.stderr
        ),
        1 => assert!(ran.stderr.contains("no licence"), "{}", ran.stderr),
        3 => assert_eq!(ran.errors().len(), 2, "{}", ran.stderr),
        code => panic!("exit code {code}: {}", ran.stderr),
    }
}

#[test]
fn the_interpreter_is_named_or_the_active_environments() {
    let bench = python(
        "import os\ndef f(item): return {'by': os.environ.get('BY')}\n",
        rows(1),
        "",
    );
    let script = "#!/bin/sh\nBY=NAME exec python3 \"$@\"\n";
    fs::create_dir_all(bench.dir.path().join("env/bin")).expect("a folder can be made");
    for (file, name) in [("env/bin/python", "env"), ("own", "own")] {
        bench.write(file, script.replace("NAME", name));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(bench.dir.path().join(file), mode).expect("the mode can be set");
    }
    let mut command = bench.command(&[]);
    command.env("VIRTUAL_ENV", bench.dir.path().join("env"));
    let ran = bench.ran(&command.output().expect("the command starts"));
    assert_eq!(ran.lines("a"), [r#"{"row_id":"0","by":"env"}"#], "{}", ran.stderr);
    let chain = "name: t\nsteps:\n  - {id: a, apply: {python: \"f.py:f\", interpreter: ./own}}\n";
    bench.write("chain.yaml", chain);
    let mut command = bench.command(&["--overwrite"]);
    command.env("VIRTUAL_ENV", bench.dir.path().join("env"));
    let ran = bench.ran(&command.output().expect("the command starts"));
    assert_eq!(ran.lines("a"), [r#"{"row_id":"0","by":"own"}"#], "{}", ran.stderr);
}

#[test]
fn a_row_that_kills_its_worker_harms_no_other() {
    let code = "import os, signal\ndef f(item):\n    n = item['n']\n    if n == 700: os._exit(5)\n    \
                if n in (701, 1500): os.kill(os.getpid(), signal.SIGSEGV)\n    if n == 1999: os.abort()\n    \
                return {'m': n * 2}\n";
    for options in ["", ", workers: 3"] {
        let ran = python(code, rows(2000), options).run(&[]);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert_eq!(
            messages(&ran),
            [
                "700: the worker exited with status 5 on this row",
                "701: the worker was killed by signal 11 (SIGSEGV) on this row",
                "1500: the worker was killed by signal 11 (SIGSEGV) on this row",
                "1999: the worker was killed by signal 6 (SIGABRT) on this row",
            ]
        );
        assert_eq!(ran.fates("a"), "2000/1996/0/0/0/4");
        assert!(ran.stderr.contains("another takes its place"), "{}", ran.stderr);
    }
}

#[test]
fn a_row_that_takes_too_long_is_given_up() {
    let code = "import time\ndef f(item):\n    if item['n'] == 5: time.sleep(1000)\n    return item\n";
    let ran = python(code, rows(40), ", timeout: 6500ms").run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(
        messages(&ran),
        ["5: the worker gave no answer within 6500 ms on this row"]
    );
    assert_eq!(ran.fates("a"), "40/39/0/0/0/1");
}

/// Rows that wait in the queue, or behind others in a worker's hand, take no time of their own: the times of all
/// rows add up to what the workers had, and no more.
#[test]
fn a_rows_time_is_its_own() {
    let code = "import time\ndef f(item):\n    time.sleep(0.01)\n    return item\n";
    let ran = python(code, rows(400), ", workers: 2").run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let timings = &ran.metadata()["timings"];
    let number = |value: &Value| value.as_f64().expect("a number");
    let node = &timings["nodes"]["a"];
    let (measured, mean) = (number(&node["measured"]), number(&node["mean"]));
    assert_eq!(measured, 400.0, "{timings}");
    let spent = measured * mean;
    assert!(spent > 400.0 * 0.01 * 0.9, "{timings}");
    assert!(spent <= 2.0 * number(&timings["seconds"]), "{timings}");
}

#[test]
fn workers_that_cannot_live_stop_the_run() {
    // It loads once; after its first death never again.
    let code = "import os\nif os.path.exists('dead'): raise ImportError('the GPU is gone')\ndef f(item):\n    \
                if item['n'] == 3:\n        open('dead', 'w').close()\n        os._exit(1)\n    return item\n";
    let bench = python(code, rows(2000), "");
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("error: `a` ImportError: the GPU is gone (f.py:2 in <module>)"),
        "{}",
        ran.stderr
    );
    // Mended, the same command goes on.
    let lines = code.replace("'n'] == 3", "'n'] < 0");
    fs::remove_file(bench.dir.path().join("dead")).expect("the file is there");
    bench.write("f.py", lines);
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 2, "the function was changed: {}", ran.stderr);
    let ran = bench.run(&["--resume"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.fates("a"), "2000/2000/0/0/0/0");

    let ran = python("import os\ndef f(item): os._exit(1)\n", rows(2000), "").run(&["--max-errors", "5000"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let cause = "error: `a` lost a worker on each of 20 rows in a row; the last exited with status 1";
    assert!(ran.stderr.contains(cause), "{}", ran.stderr);
}

#[test]
fn batches_and_workers_change_no_byte() {
    let code = "import random, time\ndef f(item):\n    n = item['n']\n    if n % 50 == 0: time.sleep(0.005)\n    \
                if n % 7 == 3: raise ValueError(n)\n    return [{'n': n, 'i': i, 's': list({'x', 'y', str(n)})} for i in range(n % 4)]\n";
    let mut first = None;
    for (options, batch) in [("", "256"), (", workers: 2", "1"), (", workers: 3", "999")] {
        let bench = python(code, rows(1000), options);
        let ran = bench.run(&["--batch-size", batch, "--max-lines-per-file", "300"]);
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        let mut files = tree(&ran.out);
        files.remove("metadata.json");
        assert_eq!(first.get_or_insert_with(|| files.clone()), &files, "{options}");
    }
}

#[test]
fn processes_stand_beside_steps_and_in_branches() {
    let server = TestServer::start(|asked| Answer::text(json!({"text": asked.user()}).to_string()));
    let chain = format!(
        "name: t\nengines: {{e: {{backend: openai, model: m, endpoint: \"{}\", concurrency: 8}}}}\nsteps:\n  \
         - {{id: fan, apply: {{python: \"f.py:f\"}}}}\n  - {{id: ask, engine: e, user_prompt: \"{{{{ n }}}}-{{{{ i }}}}\", output_model: {{text: string}}}}\n  \
         - branch: side\n    join: side\n    collect: true\n    steps:\n      - {{id: up, apply: {{command: [python3, p.py]}}}}\n  \
         - {{id: end, apply: {{python: \"f.py:g\", workers: 2}}, output_model: {{t: string, u: string}}}}\n",
        server.url()
    );
    let bench = Bench::new(&chain, rows(60));
    bench.write(
        "f.py",
        "def f(item): return [{'n': item['n'], 'i': i} for i in range(item['n'] % 3)]\n\
         def g(item, row): return {'t': item['text'], 'u': row['side'][0]['up'] if item['text'] != '4-0' else 7}\n",
    );
    bench.write(
        "p.py",
        answering("").replace(
            "id, n = row['row_id'], row['item']['n']",
            "say(row_id=row['row_id'], outputs=[{'up': row['item']['text'] + '!'}])",
        ),
    );
    let ran = bench.run(&["--batch-size", "16"]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    assert_eq!(ran.error()["kind"], "invalid_output");
    let got: Vec<String> = ran
        .values("end")
        .iter()
        .map(|line| format!("{} {}", line["row_id"], line["u"]))
        .collect();
    let expected: Vec<String> = (0..60)
        .flat_map(|n| (0..n % 3).map(move |i| (n, i)))
        .filter(|(n, _)| *n != 4)
        .map(|(n, i)| {
            let id = if n % 3 == 1 {
                format!("{n}")
            } else {
                format!("{n}.{i}")
            };
            format!("\"{id}\" \"{n}-{i}!\"")
        })
        .collect();
    assert_eq!(got, expected);
}
