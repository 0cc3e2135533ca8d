//! The reference interpreter against results written by hand.

use crate::generate::{
    Apply, Branch, Chain, From, Group, Item, Kind, Means, Model, Node, Prompt, Reply, Step, When,
};
use crate::reference::{Fates, Outcome, lines, run};

fn node(id: &str, kind: Kind) -> Node {
    Node {
        id: id.into(),
        when: None,
        yield_output: true,
        kind,
    }
}

fn apply(id: &str, apply: Apply) -> Item {
    Item::Node(node(id, Kind::Apply(apply, Means::Jq)))
}

fn step(prompt: Prompt, model: Model) -> Step {
    Step {
        prompt,
        model,
        on_error_null: false,
        retries_output: 1,
        max_tokens: 100,
    }
}

fn branch(id: &str, join: bool, items: Vec<Item>) -> Branch {
    Branch {
        id: id.into(),
        when: None,
        join: join.then(|| id.into()),
        collect: false,
        items,
    }
}

fn group(branches: Vec<Branch>) -> Item {
    Item::Group(Group {
        when: None,
        branches,
        lone: false,
    })
}

fn go(items: Vec<Item>, input: &str) -> Outcome {
    let chain = Chain {
        items,
        ..Chain::default()
    };
    run(
        &chain,
        &lines("in.jsonl", input.as_bytes()),
        2,
        &|system, user, again, limit| match user {
            "T cut" if limit == 100 => Reply::Cut("half".into()),
            "T long" => Reply::Cut("half".into()),
            "T bad" => Reply::Text("no".into()),
            "T second" if !again => Reply::Text("{".into()),
            _ => Reply::Text(format!(
                "{{\"text\":\"{system}|{user}\",\"label\":\"a\",\"score\":null}}"
            )),
        },
    )
}

#[track_caller]
fn check(outcome: &Outcome, expected: &[(&str, &str)]) {
    let found: Vec<_> = outcome
        .files
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn fan_out_filter_and_shards() {
    let outcome = go(
        vec![apply("fan", Apply::Fan(From::Item)), apply("id", Apply::RowId)],
        "{\"n\": 2, \"x\" : 1.10}\n\n{\"n\":3}\r\n{\"n\":1}\nbad\n{\"n\":null}",
    );
    check(
        &outcome,
        &[
            (
                "errors/000.jsonl",
                "{\"row_id\":\"3\",\"kind\":\"invalid_input\",\"message\":\"*\",\"file\":\"in.jsonl\",\"line\":5,\"chain_input\":null,\"raw\":\"bad\"}\n\
         {\"row_id\":\"4\",\"node\":\"fan\",\"kind\":\"apply\",\"message\":\"*\",\"file\":\"in.jsonl\",\"line\":6,\"chain_input\":{\"n\":null}}\n",
            ),
            (
                "fan/000.jsonl",
                "{\"row_id\":\"0.0\",\"n\":2,\"x\":1.10,\"i\":0}\n{\"row_id\":\"0.1\",\"n\":2,\"x\":1.10,\"i\":1}\n",
            ),
            ("fan/001.jsonl", "{\"row_id\":\"2\",\"n\":1,\"i\":0}\n"),
            (
                "flattened/000.jsonl",
                "{\"row_id\":\"0.0\",\"chain_input.n\":2,\"chain_input.x\":1.10,\"fan.n\":2,\"fan.x\":1.10,\"fan.i\":0,\"id.row_id\":\"0.0\",\"id.text\":null}\n\
         {\"row_id\":\"0.1\",\"chain_input.n\":2,\"chain_input.x\":1.10,\"fan.n\":2,\"fan.x\":1.10,\"fan.i\":1,\"id.row_id\":\"0.1\",\"id.text\":null}\n",
            ),
            (
                "flattened/001.jsonl",
                "{\"row_id\":\"2\",\"chain_input.n\":1,\"fan.n\":1,\"fan.i\":0,\"id.row_id\":\"2\",\"id.text\":null}\n",
            ),
            (
                "id/000.jsonl",
                "{\"row_id\":\"0.0\",\"id.row_id\":\"0.0\",\"text\":null}\n{\"row_id\":\"0.1\",\"id.row_id\":\"0.1\",\"text\":null}\n",
            ),
            (
                "id/001.jsonl",
                "{\"row_id\":\"2\",\"id.row_id\":\"2\",\"text\":null}\n",
            ),
        ],
    );
    let fan = Fates {
        emitted: 2,
        filtered: 1,
        failed: 1,
        children: 3,
        ..Fates::default()
    };
    assert_eq!((outcome.errors, outcome.fates["fan"]), (2, fan));
}

#[test]
fn joins_aliases_and_the_one_failure_of_a_row() {
    let fr = vec![apply("pick", Apply::Pick(From::Input))];
    let two = vec![
        apply("fan", Apply::Fan(From::Input)),
        apply("odd", Apply::Bad(From::Input)),
    ];
    let audit = vec![apply("late", Apply::BadLate(From::Input))];
    let line = vec![group(vec![
        branch("fr", true, fr),
        branch("two", true, two),
        branch("audit", false, audit),
    ])];
    let outcome = go(line, "{\"n\":1}\n{\"n\":5}\n{\"n\":4}\n{\"n\":3}\n");
    check(
        &outcome,
        &[
            (
                "errors/000.jsonl",
                "{\"row_id\":\"1\",\"node\":\"odd\",\"kind\":\"apply\",\"message\":\"*\",\"file\":\"in.jsonl\",\"line\":2,\"child\":\"1.0\",\"chain_input\":{\"n\":5}}\n\
         {\"row_id\":\"2\",\"node\":\"late\",\"branch\":\"audit\",\"kind\":\"apply\",\"message\":\"*\",\"file\":\"in.jsonl\",\"line\":3,\"chain_input\":{\"n\":4}}\n",
            ),
            (
                "fan/000.jsonl",
                "{\"row_id\":\"0\",\"n\":1,\"i\":0}\n{\"row_id\":\"1.0\",\"n\":5,\"i\":0}\n",
            ),
            (
                "fan/001.jsonl",
                "{\"row_id\":\"1.1\",\"n\":5,\"i\":1}\n{\"row_id\":\"2\",\"n\":4,\"i\":0}\n",
            ),
            (
                "flattened/000.jsonl",
                "{\"row_id\":\"0\",\"chain_input.n\":1,\"fr.a\":1,\"two.n\":1,\"two.i\":0}\n\
         {\"row_id\":\"2\",\"chain_input.n\":4,\"fr.a\":4,\"two.n\":4,\"two.i\":0}\n",
            ),
            (
                "flattened/001.jsonl",
                "{\"row_id\":\"3\",\"chain_input.n\":3,\"fr.a\":3}\n",
            ),
            (
                "late/000.jsonl",
                "{\"row_id\":\"0\",\"n\":1}\n{\"row_id\":\"1\",\"n\":5}\n",
            ),
            ("late/001.jsonl", "{\"row_id\":\"3\",\"n\":3}\n"),
            (
                "odd/000.jsonl",
                "{\"row_id\":\"0\",\"n\":1,\"i\":0}\n{\"row_id\":\"2\",\"n\":4,\"i\":0}\n",
            ),
            (
                "pick/000.jsonl",
                "{\"row_id\":\"0\",\"a\":1}\n{\"row_id\":\"1\",\"a\":5}\n",
            ),
            (
                "pick/001.jsonl",
                "{\"row_id\":\"2\",\"a\":4}\n{\"row_id\":\"3\",\"a\":3}\n",
            ),
        ],
    );
    assert_eq!(
        outcome.fates["odd"],
        Fates {
            emitted: 2,
            failed: 2,
            children: 2,
            ..Fates::default()
        }
    );
}

#[test]
fn collect_cardinality_and_conditions() {
    let fan = |id: &str| vec![apply(id, Apply::Fan(From::Input))];
    let collect = Branch {
        collect: true,
        ..branch("all", true, fan("f"))
    };
    let outcome = go(vec![group(vec![collect])], "{\"n\":2}\n{\"n\":0}\n");
    assert_eq!(
        outcome.files["flattened/000.jsonl"],
        "{\"row_id\":\"0\",\"chain_input.n\":2,\"all\":[{\"n\":2,\"i\":0},{\"n\":2,\"i\":1}]}\n\
        {\"row_id\":\"1\",\"chain_input.n\":0,\"all\":[]}\n"
    );

    let when = Branch {
        when: Some(When::Above(1)),
        ..branch("one", true, fan("f"))
    };
    let outcome = go(vec![group(vec![when])], "{\"n\":2}\n{\"n\":1}\n{}\n");
    check(
        &outcome,
        &[
            (
                "errors/000.jsonl",
                "{\"row_id\":\"0\",\"node\":\"one\",\"kind\":\"join_cardinality\",\"message\":\"*\",\"file\":\"in.jsonl\",\"line\":1,\"chain_input\":{\"n\":2}}\n\
         {\"row_id\":\"2\",\"node\":\"one\",\"kind\":\"template\",\"message\":\"*\",\"file\":\"in.jsonl\",\"line\":3,\"chain_input\":{}}\n",
            ),
            (
                "f/000.jsonl",
                "{\"row_id\":\"0.0\",\"n\":2,\"i\":0}\n{\"row_id\":\"0.1\",\"n\":2,\"i\":1}\n",
            ),
            ("flattened/000.jsonl", "{\"row_id\":\"1\",\"chain_input.n\":1}\n"),
        ],
    );
}

#[test]
fn the_step_loop() {
    let label = step(Prompt::Text, Model::Label);
    let quiet = Step {
        on_error_null: true,
        ..step(Prompt::NameText("s".into()), Model::Free)
    };
    let line = vec![
        Item::Node(node("s", Kind::Step(label))),
        Item::Node(node("q", Kind::Step(quiet))),
    ];
    let outcome = go(
        line,
        "{\"text\":\"ok\"}\n{\"text\":\"cut\"}\n{\"text\":\"long\"}\n{\"text\":\"bad\"}\n{\"text\":\"second\"}\n{}\n",
    );
    let place = |n: usize| format!("\"file\":\"in.jsonl\",\"line\":{n}");
    let errors = format!(
        "{{\"row_id\":\"2\",\"node\":\"s\",\"kind\":\"truncated\",\"message\":\"*\",\"attempts\":2,{},\"chain_input\":{{\"text\":\"long\"}},\"reply\":\"half\"}}\n\
         {{\"row_id\":\"3\",\"node\":\"s\",\"kind\":\"invalid_output\",\"message\":\"*\",\"attempts\":2,{},\"chain_input\":{{\"text\":\"bad\"}},\"reply\":\"no\"}}\n",
        place(3),
        place(4)
    );
    assert_eq!(outcome.files["errors/000.jsonl"], errors);
    assert_eq!(
        outcome.files["s/000.jsonl"],
        "{\"row_id\":\"0\",\"text\":\"s Label calm|T ok\",\"label\":\"a\"}\n{\"row_id\":\"1\",\"text\":\"s Label calm|T cut\",\"label\":\"a\"}\n"
    );
    assert_eq!(
        outcome.files["s/001.jsonl"],
        "{\"row_id\":\"4\",\"text\":\"s Label calm|T second\",\"label\":\"a\"}\n"
    );
    assert_eq!(
        outcome.fates["s"],
        Fates {
            emitted: 3,
            failed: 3,
            children: 3,
            ..Fates::default()
        }
    );
    assert!(
        outcome.files["errors/001.jsonl"].contains("\"row_id\":\"5\",\"node\":\"s\",\"kind\":\"template\"")
    );
}
