//! What a broken chain says, whole invocations and hostile files.

use std::process::Command;

use chainette::expr::Visible;
use chainette::expr::jq::JqProgram;
use chainette::plan::{Closures, Compiled, Report, Style, compile};
use chainette::spec::{ChainInput, Code};
use serde_json::{Value, json};

use crate::harness::Bench;

pub const ENGINES: &str = "engines: {e: {backend: openai, model: m, endpoint: 'http://h/v1'}}\n";

pub fn compiled(text: &str) -> Result<Compiled, Report> {
    let input = ChainInput {
        path: "chain.yaml".into(),
        text: Some(text.to_owned()),
        ..ChainInput::default()
    };
    compile(&input, &Closures::none())
}

pub fn report(text: &str) -> Report {
    match compiled(text) {
        Ok(compiled) => compiled.warnings,
        Err(report) => report,
    }
}

pub fn good(text: &str) -> Compiled {
    compiled(text).unwrap_or_else(|report| panic!("{report}"))
}

/// README's table has each code once, in the order of `Code::ALL`, with the right severity.
#[test]
fn the_readme_lists_every_code() {
    let readme = std::fs::read_to_string("README.md").expect("the README is there");
    let section = readme
        .split("\n## ")
        .find(|s| s.starts_with("Diagnostics\n"))
        .expect("a section on diagnostics");
    let listed: Vec<(String, bool)> = section
        .lines()
        .filter_map(|l| l.strip_prefix("| `"))
        .map(|l| {
            let (code, rest) = l.split_once('`').expect("a code");
            (code.to_owned(), rest.contains("warning"))
        })
        .collect();
    let there: Vec<(String, bool)> = Code::ALL
        .iter()
        .map(|code| (code.as_str().to_owned(), code.is_warning()))
        .collect();
    assert_eq!(listed, there);
}

/// Every fixture belongs to a code, so that a renamed code leaves none behind.
#[test]
fn every_fixture_has_a_code() {
    for entry in std::fs::read_dir("tests/chains/err").expect("the folder is there") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let code = stem.split("--").next().expect("a code");
        assert!(Code::ALL.iter().any(|c| c.as_str() == code), "{stem}");
    }
}

/// The caret stands under the fault, however YAML writes the text.
#[test]
fn places_are_exact_in_every_style() {
    let styles = [
        "größe {{ x | uper }}",
        "größe\n      und 中文 {{ x | uper }} danach",
        "'it''s größe {{ x | uper }}'",
        "'größe\n\n      it''s\n      {{ x | uper }}'",
        "\"größe {{ x | uper }}\"",
        r#""gr\u00f6\xdfe \U0001F600 \ud83d\ude00 \t\n\"\\ {{ x | uper }} \n""#,
        "\"größe \\\n      {{ x |\\\n      \\ uper }}\"",
        "\"größe\n\n      {{ x | uper }}\"",
        "|\n      größe\n\n        中文 {{ x | uper }}\n",
        "|2-\n      größe\n        {{ x | uper }}\n",
        "|+ # a comment\n      größe {{ x | uper }}\n\n",
        ">\n      größe\n      und\n\n        mehr\n      {{ x | uper }}\n",
        ">-\n      größe {{ x | uper }}",
        "!!str größe {{ x | uper }}",
        "&name größe {{ x | uper }}",
    ];
    for style in styles {
        for text in [
            format!("{ENGINES}steps:\n  - id: a\n    engine: e\n    user_prompt: {style}\n"),
            format!("\u{feff}{ENGINES}steps:\n  - id: a\n    engine: e\n    user_prompt: {style}\n"),
            format!("{ENGINES}steps:\n  - id: a\n    engine: e\n    user_prompt: {style}\n")
                .replace('\n', "\r\n"),
        ] {
            let report = report(&text);
            let [problem] = report.problems() else {
                panic!("{text}\n{report}");
            };
            assert_eq!(problem.code, Code::TemplateSyntax, "{report}");
            let span = problem.span.expect("a place");
            assert_eq!(&text[span.start..span.end], "uper", "{report}");
        }
    }
}

/// One fault is one problem, however much depends on it.
#[test]
fn a_fault_has_no_echo() {
    let cases = [
        // An item that cannot be read, and those that read it.
        "steps:\n  - {id: a, engine: e}\n  - {id: b, engine: e, user_prompt: '{{ a.text }} {{ text }}'}\n  - {id: c, engine: e, user_prompt: '{{ a.text }}', when: a}\n",
        // A branch that cannot be read, and its alias.
        "steps:\n  - parallel:\n      - {branch: fr, join: fr}\n  - {id: c, engine: e, user_prompt: '{{ fr.text }}'}\n",
        // Models of the wrong type, and who names them.
        "models: [a]\nsteps:\n  - {id: a, engine: e, user_prompt: hi, output_model: Review}\n  - {id: b, engine: e, user_prompt: '{{ a.x }}', output_model: {r: Review}}\n",
        // A faulty model that three use.
        "models: {A: {x: strng}, B: {a: A}, C: {b: B}}\nsteps:\n  - {id: a, engine: e, user_prompt: hi, output_model: A}\n  - {id: b, engine: e, user_prompt: '{{ a.y }}', output_model: C}\n",
        "models: {A: {type: object, properties: {x: {type: strng}}}, B: {a: A}, C: {b: '[B]'}}\nsteps:\n  - {id: a, engine: e, user_prompt: hi, output_model: A}\n  - {id: b, engine: e, user_prompt: hi, output_model: C}\n",
        // An anchor with a fault that is used twice.
        "steps:\n  - {id: a, engine: e, user_prompt: hi, sampling: &s {temperature: -1}}\n  - {id: b, engine: e, user_prompt: hi, sampling: *s}\n",
        // A program that does not compile in a joined branch.
        "steps:\n  - {branch: b, join: b, steps: [{id: x, apply: {jq: 'nosuch'}}]}\n  - {id: c, engine: e, user_prompt: '{{ b.y }}'}\n",
        // Twice the same name, and readers of it.
        "steps:\n  - {id: a, engine: e, user_prompt: hi}\n  - {id: a, engine: e, user_prompt: hi}\n  - {id: c, engine: e, user_prompt: '{{ a.text }}'}\n",
        // A misspelt key that must be there, and a program that knows its fields.
        "steps:\n  - parallel:\n      - {brunch: fr, steps: [{id: x, apply: {jq: '.'}}]}\n",
        "steps:\n  - {id: a, engine: e, usr_prompt: hi}\n",
        "steps:\n  - {id: x, apply: {jq: '{words: 1} + {n: .n}'}}\n  - {id: a, engine: e, user_prompt: '{{ words }} {{ x.wrods }} {{ x.n }}'}\n",
        // Variables that cannot be read.
        "vars: x\nsteps:\n  - {id: a, engine: e, user_prompt: '{{ vars.tone }}'}\n",
    ];
    for case in cases {
        let report = report(&format!("{ENGINES}{case}"));
        assert_eq!(report.problems().len(), 1, "{case}\n{report}");
    }
    let engine = report(
        "engines: {e: {backend: openai, endpoint: 'http://h/v1'}}\nsteps:\n  - {id: a, engine: e, user_prompt: hi}\n  - {id: b, engine: e, user_prompt: hi}\n",
    );
    assert_eq!(engine.problems().len(), 1, "{engine}");
}

/// Only what a program cannot leave is an error.
#[test]
fn a_program_that_may_leave_a_field_is_believed() {
    for program in [
        "{a: 1} + .",
        ". + {a: 1}",
        "{a: 1}, {b: 2}",
        "{a: 1} | if .a > 1 then . else {b: 1} end",
        "{a: 1} // {b: 1}",
        "{a: 1} | .b = 2",
        "{a: 1} * {b: 1}",
        "def f: {a: 1}; f",
        "{(.k): 1}",
        "[{a: 1}]",
        "{a: 1} | to_entries",
        "try {a: 1} catch {b: .}",
        "{a: 1} as {a: $x} | {b: $x}",
        "{a: .x.y} | .a",
    ] {
        let report = report(&format!(
            "{ENGINES}steps:\n  - {{id: x, apply: {{jq: '{program}'}}}}\n  - {{id: a, engine: e, user_prompt: '{{{{ b }}}} {{{{ x.b }}}}'}}\n"
        ));
        assert!(report.problems().is_empty(), "{program}\n{report}");
    }
}

#[test]
fn problems_stand_in_the_order_of_the_file() {
    let report = report(&format!(
        "{ENGINES}steps:\n  - {{id: a, engine: x, user_prompt: '{{{{ zz }}}}', bad: 1}}\n  - {{id: B, apply: {{jq: nosuch}}}}\n  - {{id: c, engine: y, user_prompt: '{{{{'}}\n"
    ));
    let places: Vec<_> = report.problems().iter().map(|p| p.span).collect();
    let mut sorted = places.clone();
    sorted.sort();
    assert_eq!(places, sorted);
    assert_eq!(places.len(), 6, "{report}");
}

/// `no` and `on` are texts in YAML 1.2, as an enum value and as a field's name.
#[test]
fn norway_is_no_boolean() {
    let plan = good(&format!(
        "{ENGINES}steps:\n  - {{id: a, engine: e, user_prompt: hi, output_model: {{country: no | se | dk, on: yes | off}}}}\n  - {{id: b, engine: e, user_prompt: hi, output_model: {{type: object, properties: {{country: {{enum: [no, se]}}}}}}}}\n"
    ))
    .plan;
    let schema = |at: usize| plan.nodes[at].model.as_ref().expect("a model").schema().clone();
    assert_eq!(
        schema(0)["properties"]["country"]["enum"],
        json!(["no", "se", "dk"])
    );
    assert_eq!(schema(0)["properties"]["on"]["enum"], json!(["yes", "off"]));
    assert_eq!(schema(1)["properties"]["country"]["enum"], json!(["no", "se"]));
}

/// Files that are no chain: exit 2, one message with a next step, nothing written.
#[test]
fn files_that_are_no_chain() {
    let cases: [(&str, &[u8], &str); 7] = [
        (
            "latin-1",
            b"name: gr\xf6\xdfe\nsteps: []\n",
            "not valid UTF-8 at line 1 (byte 8)",
        ),
        ("empty", b"", "this chain is empty"),
        ("a bom only", b"\xef\xbb\xbf", "this chain is empty"),
        ("a list", b"- a\n- b\n", "a chain must be a mapping, found a list"),
        (
            "text",
            b"hello",
            "a chain must be a mapping, found the text `hello`",
        ),
        ("utf-16", b"\xff\xfes\x00t\x00", "not valid UTF-8"),
        ("zero bytes", b"\x00\x00\x00", "yaml_syntax"),
    ];
    for (what, bytes, expected) in cases {
        let bench = Bench::new("", "{}\n");
        bench.write("chain.yaml", bytes);
        let ran = bench.run(&[]);
        assert_eq!(ran.code, 2, "{what}: {}", ran.stderr);
        assert!(ran.stderr.contains(expected), "{what}: {}", ran.stderr);
        assert!(ran.stderr.contains("help: "), "{what}: {}", ran.stderr);
        assert!(!ran.out.exists(), "{what}: something was written");
    }
    let bench = Bench::new("", "{}\n");
    std::fs::create_dir(bench.dir.path().join("folder.yaml")).expect("a folder");
    for (chain, expected) in [
        ("folder.yaml", "folder.yaml: this is a directory"),
        ("chian.yaml", "did you mean `chain.yaml`?"),
        ("", "no such file"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_chainette"))
            .current_dir(bench.dir.path())
            .args(["inspect", chain])
            .output()
            .expect("the command starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        if chain.is_empty() {
            assert_eq!(output.status.code(), Some(2), "{stderr}");
        } else {
            assert!(stderr.contains(expected), "{stderr}");
        }
    }
}

/// Hostile YAML ends in a report, in bounded time and memory.
#[test]
fn hostile_files_are_bounded() {
    let nested = |open: &str, close: &str| {
        format!(
            "vars: {}{}\nsteps: []\n",
            open.repeat(20_000),
            close.repeat(20_000)
        )
    };
    let bomb = {
        let mut text = "vars:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..30 {
            let refs = vec![format!("*a{}", n - 1); 10].join(", ");
            text.push_str(&format!("  a{n}: &a{n} [{refs}]\n"));
        }
        text + "steps: []\n"
    };
    let keys: String = (0..10_000).map(|n| format!("k{n}: 1\n")).collect();
    let steps: String = (0..3000)
        .map(|n| format!("  - {{id: s{n}, engine: nope, bad{n}: 1}}\n"))
        .collect();
    let long_name = format!("steps: [{{id: a, engine: {}}}]\n", "x".repeat(200_000));
    let long_key = format!("{}: 1\nsteps: []\n", "k".repeat(100_000));
    let dashes = format!("steps:\n{}x\n", "- ".repeat(20_000));
    let same: String = (0..10_000).map(|_| "k: 1\n").collect();
    for text in [
        nested("[", "]"),
        nested("{a: ", "}"),
        nested("[", ""),
        bomb,
        keys.clone() + "steps: []\n",
        format!("vars:\n{}steps: []\n", keys.replace("k", "  k")),
        format!("steps:\n{steps}"),
        long_name,
        long_key,
        dashes,
        same,
    ] {
        let report = report(&text);
        assert!(!report.is_empty());
        let drawn = report.render(Style::Plain);
        assert!(drawn.len() < 40 * 1024 * 1024, "{} bytes", drawn.len());
        assert!(
            drawn.matches("\n\n").count() < 1000,
            "too many problems are drawn"
        );
    }
}

const WARNS: &str = "steps:\n  - {id: a, apply: {jq: '.'}, when: text == \"x\"}\n  - {id: b, apply: {jq: '.'}, when: a.text}\n";

/// Warnings stop nothing and are shown once: as text, not at all with `--quiet`, as events.
#[test]
fn warnings_are_shown_once() {
    let bench = Bench::new(WARNS, "{\"text\": \"x\"}\n");
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("unguarded_null").count(), 1, "{}", ran.stderr);
    let ran = bench.run(&["--overwrite", "--quiet"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for flags in [
        vec!["--overwrite", "--json-logs"],
        vec!["--overwrite", "--json-logs", "--quiet"],
    ] {
        let ran = bench.run(&flags);
        assert_eq!(ran.code, 0);
        let warnings: Vec<Value> = ran
            .stderr
            .lines()
            .map(|l| serde_json::from_str(l).expect("a JSON line"))
            .filter(|v: &Value| v["event"] == "warning")
            .collect();
        let [warning] = warnings.as_slice() else {
            panic!("{}", ran.stderr);
        };
        assert_eq!(warning["code"], "unguarded_null");
        assert_eq!((&warning["line"], &warning["column"]), (&json!(3), &json!(37)));
        assert_eq!(warning["help"], "guard it: `a is not none and a.text`");
    }
}

/// With `--json-logs` each problem of a bad chain is an event with its place.
#[test]
fn problems_are_events() {
    let bench = Bench::new("steps:\n  - {id: A, apply: {jq: nosuch}}\n", "{}\n");
    let ran = bench.run(&["--json-logs"]);
    assert_eq!(ran.code, 2);
    let lines: Vec<Value> = ran
        .stderr
        .lines()
        .map(|l| serde_json::from_str(l).expect("a JSON line"))
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|v| (v["event"].as_str(), v["code"].as_str(), v["line"].as_u64()))
        .collect();
    assert_eq!(
        told,
        [
            (Some("error"), Some("bad_name"), Some(2)),
            (Some("error"), Some("jq_syntax"), Some(2))
        ]
    );
    assert!(!ran.out.exists());
}

/// What jq programs can emit, as far as it shows.
#[test]
fn jq_outputs_are_counted() {
    let visible: Visible = Vec::new().into();
    let counted = |program: &str| {
        let outputs = JqProgram::compile(program, &visible)
            .unwrap_or_else(|e| panic!("{program}: {e}"))
            .outputs();
        (outputs.none, outputs.many)
    };
    for program in [
        ".",
        ".a.b",
        "{a: .b, c: [.d[]]}",
        ". + {len: (.text | length)}",
        "[.[] | select(.x)]",
        "map(.a)",
        "reduce .[] as $x (0; . + $x)",
        "if .a then .b else .c end",
        "del(.a[])",
        ".a |= map(. + 1)",
        ".a[1:3]",
        "[.[] , 1] | length",
        "def f: .a; f",
        "\"\\(.a) and \\(.b)\"",
        ".a // \"none\"",
        "[range(10)]",
        "-(.a)",
        "to_entries",
        "any(.a[]; . > 1)",
        ".a as $x | $x",
        "label $out | 1",
    ] {
        assert_eq!(counted(program), (false, false), "{program}");
    }
    for program in [
        "select(.a)",
        "empty",
        ".a.b?",
        "first(.[])",
        "if .a then empty else . end",
        "label $f | break $f",
        "strings",
        "limit(1; .[])",
    ] {
        assert_eq!(counted(program), (true, false), "{program}");
    }
    for program in [
        ".[]",
        ".a[].b",
        "..",
        "range(3)",
        ".a[] | {x: .}",
        "{a: .b[]}",
        "paths",
        ".a, .b",
        "def f: .[]; f",
        "limit(2; .[])",
        "foreach .[] as $x (0; . + $x)",
        ".a[] as $x | {x: $x}",
        "\"\\(.a[])\"",
        "recurse(.a)",
    ] {
        assert!(counted(program).1, "{program}");
    }
}

/// A number beyond a double keeps its text where nobody computes with it; jq and models see the largest double.
#[test]
fn numbers_beyond_a_double() {
    let chain = "input_model: {x: number, y: number?}\nsteps:\n  - {id: same, apply: {jq: '.'}, output_model: {x: number}}\n  - {id: computed, apply: {jq: '{more: (.x + 1), less: (-.x - 1)}'}}\n  - {id: asked, apply: {jq: '{ok: true}'}, when: chain_input.x|string == '1e999'}\n";
    let bench = Bench::new(
        chain,
        "{\"x\": 1e999}\n{\"x\": -1e999, \"y\": \"no\"}\n{\"x\": {\"deep\": [1e999]}}\n",
    );
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 3, "{}", ran.stderr);
    let read = |path: &str| std::fs::read_to_string(ran.out.join(path)).expect("a file");
    assert!(
        read("same/000.jsonl").contains("\"x\": 1e999"),
        "{}",
        read("same/000.jsonl")
    );
    let computed = read("computed/000.jsonl");
    let row: Value = serde_json::from_str(computed.lines().next().expect("a row")).expect("finite numbers");
    assert_eq!((&row["more"], &row["less"]), (&json!(f64::MAX), &json!(f64::MIN)));
    assert!(read("asked/000.jsonl").contains("\"ok\":true"));
    let errors = read("errors/000.jsonl");
    assert!(
        errors.contains("$.y: \\\"no\\\" is not of type \\\"number\\\""),
        "{errors}"
    );
    assert!(errors.contains("$.x: "), "{errors}");
    assert_eq!(errors.lines().count(), 2, "{errors}");
}

/// A chain of many nodes compiles, and reading all names at every node stays affordable.
#[test]
fn a_long_chain_compiles() {
    let mut text = format!("{ENGINES}models: {{R: {{label: a | b, score: number}}}}\nsteps:\n");
    for n in 0..300 {
        let before = n.max(1) - 1;
        text.push_str(&match n % 3 {
            0 => format!("  - {{id: s{n}, apply: {{jq: '. + {{n: {n}}}'}}, output_model: R}}\n"),
            _ => format!(
                "  - {{id: s{n}, engine: e, user_prompt: 'a {{{{ s{before}.score }}}}', output_model: R}}\n"
            ),
        });
    }
    let plan = good(&text).plan;
    assert_eq!(plan.nodes.len(), 300);
}

/// Nothing is called undefined that a row may have.
#[test]
fn what_may_be_there_is_not_undefined() {
    let chain = |model: &str, program: &str, template: &str| {
        format!(
            "input_model: {model}\n{ENGINES}steps:\n  - {{id: x, apply: {{jq: '{program}'}}}}\n  - {{id: y, engine: e, user_prompt: \"{template}\"}}\n"
        )
    };
    let closed = |properties: &str, required: &str| {
        format!(
            "{{type: object, required: [{required}], additionalProperties: false, properties: {{{properties}}}}}"
        )
    };
    let cfg = closed(&format!("cfg: {}", closed("b: {type: string}", "b")), "");
    let pair = closed(
        &format!(
            "xs: {{type: array, prefixItems: [{}], items: {}}}",
            closed("a: {type: string}", "a"),
            closed("b: {type: string}", "b")
        ),
        "xs",
    );
    let either = closed(
        "v: {type: [object, string], properties: {q: {type: string}}, additionalProperties: false}",
        "v",
    );
    let optional = closed(&format!("oo: {}", closed("q: {type: string}", "q")), "");
    for (model, program, template) in [
        (cfg.as_str(), "{cfg: {a: 1}} + .", "{{ item.cfg.a }}"),
        (&pair, ".xs[]", "{{ item.a }}"),
        (&either, ".v", "{{ item.value }}"),
        (&optional, ".oo", "{{ item.value | tojson }}"),
        (
            "{text: string}",
            "{text}",
            "{% if zz is defined %}{{ zz }}{% endif %}",
        ),
        ("{text: string}", "{text}", "{{ zz if zz is defined else text }}"),
        (
            "{text: string}",
            "{text}",
            "{% if zz is undefined or zz == 1 %}-{% else %}{{ zz.q }}{% endif %}",
        ),
        (
            "{text: string}",
            "{text}",
            "{% with a = text, b = a %}{{ b }}{% endwith %}",
        ),
    ] {
        let text = chain(model, program, template);
        if let Err(report) = compiled(&text) {
            panic!("{text}\n{report}");
        }
    }
    for (model, program, template) in [
        (
            "{text: string}",
            "{text}",
            "{% if text is defined %}{{ zz }}{% endif %}",
        ),
        ("{text: string}", "{text} + {a: 1}", "{{ item.b }}"),
    ] {
        let text = chain(model, program, template);
        compiled(&text).expect_err("an undefined name");
    }
}
