//! Chain files: every diagnostic as a fixture, every good chain as a tree, and the rules of models and scopes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chainette::expr::model::Model;
use chainette::plan::explain::{TreeOptions, dot, graph_json, mermaid, tree};
use chainette::plan::{Closures, Compiled, NodeKind, Report, Style, compile};
use chainette::spec::{ChainInput, Code};
use serde_json::{Value, json};

/// A fixture; `# engines: PATH` and `# set: K=V` lines stand for the flags.
fn fixture(path: &Path) -> ChainInput {
    let text = std::fs::read_to_string(path).expect("the fixture is there");
    let path = path
        .strip_prefix(std::fs::canonicalize(".").expect("a working directory"))
        .unwrap_or(path);
    let flags = |flag: &'static str| {
        text.lines()
            .filter_map(move |l| l.strip_prefix("# ")?.strip_prefix(flag)?.strip_prefix(": "))
    };
    ChainInput {
        path: path.to_path_buf(),
        text: None,
        engines: flags("engines").map(PathBuf::from).collect(),
        sets: flags("set").map(str::to_owned).collect(),
    }
}

fn report(input: &ChainInput) -> Report {
    match compile(input, &Closures::none()) {
        Ok(compiled) => compiled.warnings,
        Err(report) => report,
    }
}

#[test]
fn every_diagnostic() {
    let faults = std::cell::RefCell::new(Vec::new());
    insta::glob!("../chains", "err/*.yaml", |path| {
        let report = report(&fixture(path));
        let stem = path.file_stem().expect("a file").to_string_lossy();
        let code = stem.split("--").next().expect("a code");
        let problems = report.problems();
        if problems.is_empty() {
            faults.borrow_mut().push(format!("{stem} shows nothing"));
        }
        for problem in problems {
            if problem.code.as_str() != code {
                faults.borrow_mut().push(format!("{stem} shows {problem:?}"));
            }
            if problem.help.is_none() || (problem.span.is_none() && problem.code != Code::File) {
                faults
                    .borrow_mut()
                    .push(format!("{stem}: no place or no next step: {problem:?}"));
            }
        }
        insta::assert_snapshot!(report.render(Style::Plain));
        assert!(report.render(Style::Color).contains('\u{1b}'));
    });
    let faults = faults.into_inner();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_code_has_a_fixture() {
    let stems: BTreeSet<String> = std::fs::read_dir("tests/chains/err")
        .expect("the folder is there")
        .map(|e| e.expect("an entry").path())
        .filter(|p| p.extension().is_some_and(|e| e == "yaml"))
        .map(|p| p.file_stem().expect("a file").to_string_lossy().into_owned())
        .collect();
    for code in Code::ALL {
        assert!(stems.contains(code.as_str()), "no fixture for {}", code.as_str());
    }
}

#[test]
fn good_chains() {
    insta::glob!("../chains", "ok/*.yaml", |path| {
        let compiled = compile(&fixture(path), &Closures::none()).unwrap_or_else(|r| panic!("{r}"));
        assert!(compiled.warnings.is_empty(), "{}", compiled.warnings);
        let plan = &compiled.plan;
        let graph = graph_json(plan);
        for secret in [
            "127.0.0.1",
            "http://",
            "OPENAI_API_KEY",
            "batch_size",
            "concurrency",
        ] {
            assert!(!graph.to_string().contains(secret), "graph.json holds {secret}");
        }
        let nodes = graph["schemas"]["nodes"].as_object().expect("schemas");
        for schema in nodes.values().chain([&graph["schemas"]["flattened"]]) {
            Model::from_schema(schema.clone()).expect("a valid schema");
        }
        let plain = TreeOptions {
            no_icons: true,
            max_branches: Some(1),
            ..TreeOptions::default()
        };
        insta::assert_snapshot!(format!(
            "{}\n{}\n{}\n{}\n{}",
            tree(plan, TreeOptions::default()),
            tree(plan, plain),
            dot(plan),
            mermaid(plan),
            serde_json::to_string_pretty(&graph_json(plan)).expect("JSON")
        ));
    });
}

pub const ENGINES: &str = "engines: {e: {backend: openai, model: m, endpoint: 'http://h/v1'}}\n";

/// Compiles a chain, whose Steps may ask `e`.
pub fn chain(text: &str) -> Result<Compiled, Report> {
    let engines = if text.contains("engine: e") { ENGINES } else { "" };
    let input = ChainInput {
        path: "chain.yaml".into(),
        text: Some(format!("{engines}{text}")),
        ..ChainInput::default()
    };
    compile(&input, &Closures::none())
}

pub fn codes(text: &str) -> Vec<&'static str> {
    match chain(text) {
        Ok(compiled) => compiled.warnings,
        Err(report) => report,
    }
    .problems()
    .iter()
    .map(|p| p.code.as_str())
    .collect()
}

fn output_schema(model: &str) -> Value {
    let text = format!("steps: [{{id: a, engine: e, user_prompt: hi, output_model: {model}}}]");
    let compiled = chain(&text).unwrap_or_else(|r| panic!("{r}"));
    let model = compiled.plan.nodes[0].model.as_ref().expect("a model");
    model.schema().clone()
}

#[test]
fn shorthand() {
    assert_eq!(
        output_schema(
            "{a: string, b: integer?, c: [number], d: x | y | z, e: any, f: {g: 'boolean?'}, h: '[object]?'}"
        ),
        json!({
            "type": "object",
            "properties": {
                "a": {"type": "string"},
                "b": {"type": "integer"},
                "c": {"type": "array", "items": {"type": "number"}},
                "d": {"type": "string", "enum": ["x", "y", "z"]},
                "e": {},
                "f": {
                    "type": "object",
                    "properties": {"g": {"type": "boolean"}},
                    "required": [],
                    "additionalProperties": false,
                },
                "h": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["a", "c", "d", "e", "f"],
            "additionalProperties": false,
        })
    );
}

#[test]
fn input_models_and_applies_are_open() {
    let compiled = chain(
        "models: {M: {a: string, b: {c: string}}}\ninput_model: M\nsteps:\n  - {id: x, apply: {jq: .}, output_model: M}\n  - {id: y, engine: e, user_prompt: hi, output_model: M}\n",
    )
    .unwrap_or_else(|r| panic!("{r}"));
    let plan = compiled.plan;
    let extra = json!({"a": "", "b": {"c": "", "z": 1}, "z": 1});
    assert!(plan.input_model.expect("a model").validate(&extra).is_ok());
    assert!(
        plan.nodes[0]
            .model
            .as_ref()
            .expect("a model")
            .validate(&extra)
            .is_ok()
    );
    let closed = plan.nodes[1].model.as_ref().expect("a model");
    assert_eq!(
        closed.validate(&extra).expect_err("closed"),
        "$.b: Additional properties are not allowed ('z' was unexpected)"
    );
    assert_eq!(
        closed
            .validate(&json!({"a": 1, "b": {"c": ""}}))
            .expect_err("a number"),
        "$.a: 1 is not of type \"string\""
    );
}

#[test]
fn a_step_without_a_model_is_free_text() {
    let plan = chain("steps: [{id: a, engine: e, user_prompt: hi}]")
        .unwrap_or_else(|r| panic!("{r}"))
        .plan;
    let NodeKind::Step(step) = &plan.nodes[0].kind else {
        panic!("a Step");
    };
    assert!(step.free_text);
    let model = plan.nodes[0].model.as_ref().expect("a model");
    assert!(model.validate(&json!({"text": "x"})).is_ok());
    assert!(model.validate(&json!({"text": 1})).is_err());
    assert_eq!(plan.name, "chain");
}

#[test]
fn recursive_models_validate() {
    let compiled = compile(
        &fixture(Path::new("tests/chains/ok/tree_ref.yaml")),
        &Closures::none(),
    )
    .unwrap_or_else(|r| panic!("{r}"));
    let node = compiled.plan.nodes[0].model.as_ref().expect("a model");
    let leaf = json!({"name": "a", "kind": "leaf"});
    assert!(
        node.validate(&json!({"name": "r", "kind": "branch", "children": [leaf]}))
            .is_ok()
    );
    assert!(
        node.validate(&json!({"name": "r", "kind": "branch", "children": [{"name": 1}]}))
            .is_err()
    );
    let doc = compiled.plan.nodes[1].model.as_ref().expect("a model");
    assert!(
        doc.validate(&json!({"title": "t", "parts": [{"title": "u", "parts": []}]}))
            .is_ok()
    );
    assert!(
        doc.validate(&json!({"title": "t", "parts": [{"parts": []}]}))
            .is_err()
    );
}

#[test]
fn scopes() {
    let fork = |a: &str, b: &str, after: &str| {
        codes(&format!(
            "input_model: {{t: string}}\nsteps:\n  - {{id: before, engine: e, user_prompt: hi}}\n  - parallel:\n      - {{branch: l, join: left, steps: [{{id: l1, engine: e, user_prompt: '{a}'}}, {{id: l2, engine: e, user_prompt: hi}}]}}\n      - {{branch: r, steps: [{{id: r1, engine: e, user_prompt: '{b}'}}]}}\n  - {{id: after, engine: e, user_prompt: '{after}'}}\n"
        ))
    };
    let none: [&str; 0] = [];
    assert_eq!(
        fork(
            "{{ before.text }}",
            "{{ before.text }}",
            "{{ left.text }} {{ before.text }}"
        ),
        none
    );
    assert_eq!(fork("hi", "{{ l1.text }}", "hi"), ["not_visible"]);
    assert_eq!(fork("hi", "{{ left.text }}", "hi"), ["not_visible"]);
    assert_eq!(fork("hi", "hi", "{{ l1.text }}"), ["not_visible"]);
    assert_eq!(fork("hi", "hi", "{{ r.text }}"), ["not_visible"]);
    assert_eq!(
        fork("{{ l2.text }}", "hi", "{{ left.txt }}"),
        ["not_visible", "undefined_name"]
    );
    // A group leaves the current item as it was.
    assert_eq!(fork("hi", "hi", "{{ text }}"), none);
}

#[test]
fn conditions_guard_what_stands_behind_them() {
    let none: [&str; 0] = [];
    let steps = |when: &str| {
        codes(&format!(
            "steps:\n  - {{id: a, engine: e, user_prompt: hi, on_error: null}}\n  - {{id: b, engine: e, when: '{when}', user_prompt: '{{{{ a.text }}}}'}}\n"
        ))
    };
    assert_eq!(steps("a"), none);
    assert_eq!(steps("a is not none"), none);
    assert_eq!(steps("a and a.text != \"\""), none);
    assert_eq!(steps("not a"), ["unguarded_null"]);
    assert_eq!(steps("row_id"), ["unguarded_null"]);
}

#[test]
fn set_is_read_as_yaml() {
    let set = |value: &str| {
        let input = ChainInput {
            path: "chain.yaml".into(),
            text: Some(format!(
                "{ENGINES}vars: {{tone: neutral}}\nsteps: [{{id: a, engine: e, user_prompt: hi}}]"
            )),
            sets: vec![format!("tone={value}")],
            ..ChainInput::default()
        };
        let compiled = compile(&input, &Closures::none()).unwrap_or_else(|r| panic!("{r}"));
        compiled.plan.vars.json["tone"].clone()
    };
    assert_eq!(set("harsh"), json!("harsh"));
    assert_eq!(set("5"), json!(5));
    assert_eq!(set("'5'"), json!("5"));
    assert_eq!(set("[a, 1.5, null]"), json!(["a", 1.5, null]));
    assert_eq!(set("a=b"), json!("a=b"));
    assert_eq!(set("007"), json!(7));
    assert_eq!(set("1.2.3"), json!("1.2.3"));
}

#[test]
fn json_with_tabs_and_a_byte_order_mark() {
    let text = "\u{feff}{\n\t\"engines\": {\"e\": {\"backend\": \"openai\", \"model\": \"m\", \"endpoint\": \"http://h/v1\"}},\n\t\"steps\": [\n\t\t{\"id\": \"a\", \"engine\": \"e\", \"user_prompt\": \"\\u00e9 \\n \\/ {{ x }}\"}\n\t]\n}\n";
    let input = ChainInput {
        path: "chain.json".into(),
        text: Some(text.to_owned()),
        ..ChainInput::default()
    };
    let plan = compile(&input, &Closures::none())
        .unwrap_or_else(|r| panic!("{r}"))
        .plan;
    let NodeKind::Step(step) = &plan.nodes[0].kind else {
        panic!("a Step");
    };
    assert_eq!(step.user.source(), "é \n / {{ x }}");
}

#[test]
fn a_node_may_be_named_like_the_field_it_reads() {
    let none: [&str; 0] = [];
    assert_eq!(
        codes("steps: [{id: text, engine: e, user_prompt: '{{ text }}'}]"),
        none
    );
}

#[test]
fn an_engine_that_is_not_served_matters_only_where_it_is_used() {
    let text = "engines: {e: {backend: openai, model: m, endpoint: 'http://h/v1'}, v: {backend: openai, model: m, endpoint: 'http://h/v1', price: {input: 1, output: 2}}}\nsteps: [{id: a, engine: ENGINE, user_prompt: hi}]";
    let compiled = |engine: &str| {
        let input = ChainInput {
            path: "chain.yaml".into(),
            text: Some(text.replace("ENGINE", engine)),
            ..ChainInput::default()
        };
        compile(&input, &Closures::none()).is_ok()
    };
    assert!(compiled("e"));
    assert!(!compiled("v"));
}

/// A chain that is cut, or has a byte changed, is reported and never a crash.
#[test]
fn broken_chains_are_reported() {
    for path in [
        "tests/chains/ok/reviews.yaml",
        "tests/chains/err/undefined_name.yaml",
    ] {
        let text = std::fs::read_to_string(path).expect("the fixture is there");
        for (at, _) in text.char_indices().step_by(3) {
            let (before, after) = text.split_at(at);
            let rest: String = after.chars().skip(1).collect();
            for broken in [
                before.to_owned(),
                format!("{before}é{rest}"),
                format!("{before}{{{rest}"),
            ] {
                let input = ChainInput {
                    path: path.into(),
                    text: Some(broken),
                    ..ChainInput::default()
                };
                assert!(!report(&input).render(Style::Plain).is_empty());
            }
        }
    }
}

#[test]
fn closures() {
    let text = format!("{ENGINES}steps: [{{id: a, apply: {{closure: twice}}}}]");
    let input = ChainInput {
        path: "chain.yaml".into(),
        text: Some(text),
        ..ChainInput::default()
    };
    let closures = Closures::none().with("twice", |r| Ok(vec![r.clone(), r.clone()]));
    assert!(compile(&input, &closures).is_ok());
    assert!(compile(&input, &Closures::none()).is_err());
}
