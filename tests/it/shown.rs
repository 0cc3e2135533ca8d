//! What `inspect` shows of a good chain: the tree, JSON, DOT, Mermaid.

use chainette::expr::model::Model;
use chainette::plan::Compiled;
use chainette::plan::explain::{TreeOptions, dot, edges, graph_json, mermaid, tree};
use serde_json::Value;

use crate::diagnostics::good;
use crate::harness::{Bench, COPY};

const SHOWN: &str = "name: shown \"quoted\"\ninput_model: {text: string, stars: integer?}\nmodels:\n  Sentiment: {label: positive | negative | neutral, score: number, why: {short: string, words: '[string]'}?}\nengines: {e: {backend: openai, model: 'a \"model\" [x] <b>', endpoint: 'http://h/v1'}}\nsteps:\n  - {id: node, engine: e, user_prompt: '{{ text }}', output_model: Sentiment, on_error: null}\n  - {id: edge, apply: {jq: '.'}, when: node and node.score > 0.25 and node.label == \"positive\"}\n  - parallel:\n      - {branch: fr, join: fr, when: stars, steps: [{id: end, engine: e, user_prompt: '{{ chain_input.text }}'}]}\n      - {branch: de, join: de, collect: true, steps: [{id: graph, apply: {jq: '.[]'}}]}\n";

fn shown() -> Compiled {
    good(&SHOWN.replace("words: '[string]'}?", "words: '[string]'}"))
}

#[test]
fn the_tree_says_types_and_nulls() {
    let plan = shown().plan;
    let full = tree(&plan, TreeOptions::default());
    insta::assert_snapshot!("tree", full);
    let narrow = TreeOptions {
        width: Some(60),
        ..TreeOptions::default()
    };
    let drawn = tree(&plan, narrow);
    for line in drawn.lines() {
        assert!(console::measure_text_width(line) <= 60, "{line}");
    }
    insta::assert_snapshot!("tree_60", drawn);
    let ascii = tree(
        &plan,
        TreeOptions {
            ascii: true,
            width: Some(60),
            max_branches: Some(1),
            ..TreeOptions::default()
        },
    );
    assert!(ascii.is_ascii(), "{ascii}");
    insta::assert_snapshot!("tree_ascii", ascii);
}

/// What a jq program leaves is shown where its text tells, and is `any` where it does not.
#[test]
fn types_go_through_jq() {
    const DOUBLED: &str = "{a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .} | {a: ., b: .}";
    let shown = |program: &str| {
        let plan = good(&format!(
            "input_model: {{text: string, tags: '[string]', n: integer?}}\nsteps: [{{id: x, apply: {{jq: '{program}'}}}}]\n"
        ))
        .plan;
        let drawn = tree(&plan, TreeOptions::default());
        let line = drawn
            .lines()
            .find(|l| l.contains(" x  "))
            .expect("the node")
            .to_owned();
        line.split_once("→ ").expect("a type").1.to_owned()
    };
    for (program, expected) in [
        (".", "{text: string, tags: [string], n: integer?}"),
        ("select(.n > 1)", "{text: string, tags: [string], n: integer?}"),
        (
            ". + {len: (.text | length), ok: (.n > 1)}",
            "{text: string, tags: [string], n: integer?, len: number, ok: boolean}",
        ),
        (
            "{text, first: .tags[], all: [.tags[]], what: .nope, how: (.tags | map(.))}",
            "{text: string, first: string, all: [string], what: any, how: any}",
        ),
        (".tags[]", "any"),
        ("{(.text): 1}", "any"),
        ("to_entries", "any"),
        // What may be null has no type of its own, and what doubles has an end.
        ("{n, o: .n}", "{n: any, o: any}"),
        (DOUBLED, "any"),
    ] {
        assert_eq!(shown(program), expected, "{program}");
    }
}

/// Two values of an `enum` make one that it does not list.
#[test]
fn a_sum_of_words_is_a_text() {
    let plan = good("input_model: {e: a | b}\nsteps: [{id: x, apply: {jq: '{e: (.e + .e)}'}}]\n").plan;
    let drawn = tree(&plan, TreeOptions::default());
    assert!(drawn.contains("{e: string}"), "{drawn}");
}

/// Every node, branch and engine of the JSON stands in the tree, and the other way round.
#[test]
fn json_and_tree_say_the_same() {
    let plan = shown().plan;
    let graph: Value = serde_json::from_str(&graph_json(&plan).to_string()).expect("JSON");
    let drawn = tree(
        &plan,
        TreeOptions {
            no_icons: true,
            ..TreeOptions::default()
        },
    );
    let id_of = |v: &Value| v["id"].as_str().expect("an id").to_owned();
    for node in graph["nodes"].as_array().expect("nodes") {
        let id = id_of(node);
        let line = drawn
            .lines()
            .find(|l| l.contains(&format!("─ {id}  ")))
            .unwrap_or_else(|| panic!("{id}: {drawn}"));
        assert_eq!(
            line.contains(" or null ("),
            !node["can_be_null"].is_null(),
            "{line}"
        );
        Model::from_schema(graph["schemas"]["nodes"][&id].clone()).expect("a schema");
    }
    for branch in graph["branches"].as_array().expect("branches") {
        assert!(drawn.contains(&format!("─ branch {}", id_of(branch))), "{drawn}");
    }
    let entries = drawn.lines().filter(|l| l.contains("── ")).count();
    assert_eq!(entries, 4 + 1 + 2 + 1, "{drawn}");
}

/// A small parser of the part of Graphviz' language that is written: statements of quoted ids.
#[test]
fn dot_is_valid() {
    let plan = shown().plan;
    let text = dot(&plan);
    let mut ids = Vec::new();
    let mut rest = text.strip_prefix("digraph ").expect("a digraph");
    let quoted = |rest: &mut &str| -> Option<String> {
        let inner = rest.strip_prefix('"')?;
        let mut out = String::new();
        let mut chars = inner.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    *rest = &inner[at + 1..];
                    return Some(out);
                }
                '\\' => out.push(chars.next()?.1),
                '\n' => return None,
                c => out.push(c),
            }
        }
        None
    };
    assert_eq!(quoted(&mut rest).as_deref(), Some("shown \"quoted\""));
    let body = rest
        .strip_prefix(" {\n")
        .and_then(|r| r.strip_suffix("}\n"))
        .expect("a body");
    let mut arrows = 0;
    for line in body.lines() {
        let mut rest = line.trim().strip_suffix(';').expect("a statement ends in ;");
        if rest == "rankdir=LR" {
            continue;
        }
        let from = quoted(&mut rest).expect("a quoted id");
        if let Some(mut to) = rest.strip_prefix(" -> ") {
            assert!(ids.contains(&from) && ids.contains(&quoted(&mut to).expect("an id")));
            assert_eq!(to, "");
            arrows += 1;
        } else {
            let attributes = rest
                .strip_prefix(" [")
                .and_then(|r| r.strip_suffix(']'))
                .expect("attributes");
            let (shape, mut label) = attributes.split_once(", label=").expect("a shape and a label");
            assert!(["shape=box", "shape=ellipse"].contains(&shape));
            assert!(quoted(&mut label).is_some_and(|l| l.starts_with(from.as_str())));
            assert_eq!(label, "");
            ids.push(from);
        }
    }
    assert_eq!(ids, ["node", "edge", "end", "graph"]);
    assert_eq!(arrows, edges(&plan).len());
}

#[test]
fn mermaid_escapes_what_it_would_read() {
    let text = mermaid(&shown().plan);
    for line in text.lines().filter(|l| l.contains('"')) {
        assert_eq!(line.matches('"').count(), 2, "{line}");
        let label = line.split('"').nth(1).expect("a label").replace("<br/>", "");
        assert!(
            !label.contains(['[', ']', '<', '>', '{', '}', '|', '`']),
            "{line}"
        );
    }
    assert!(
        text.contains("n_end[\"end<br/>e: a #34;model#34; #91;x#93; #60;b#62;\"]"),
        "{text}"
    );
}

#[test]
fn inspect_draws_and_checks() {
    let bench = Bench::new(COPY, "");
    for (format, starts) in [
        ("tree", "copy\n"),
        ("json", "{\n  \"name\": \"copy\""),
        ("dot", "digraph \"copy\""),
        ("mermaid", "flowchart"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_chainette"))
            .current_dir(bench.dir.path())
            .args(["inspect", "chain.yaml", "--format", format])
            .output()
            .expect("the command starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.starts_with(starts),
            "{format}: {text}"
        );
    }
}
