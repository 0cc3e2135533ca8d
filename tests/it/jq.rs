//! jq programs: what they can read, what they cannot reach, and that they end.

use chainette::expr::jq::JqProgram;
use chainette::expr::{Scope, Vars, Visible};
use chainette::row::{Record, RowId};
use serde_json::{Value, json};

use crate::harness::Bench;

fn run(program: &str, item: &str) -> Result<Vec<String>, String> {
    let visible: Visible = [].into();
    let program = JqProgram::compile(program, &visible).map_err(|e| format!("{e} at {:?}", e.span))?;
    let item = Record::parse(item).expect("the test's item is an object");
    let scope = Scope {
        row_id: &RowId::root(17),
        item: &item,
        chain_input: &item,
        vars: &Vars::default(),
        names: &[],
    };
    let mut out = Vec::new();
    program.run(&scope, &mut out)?;
    Ok(out.iter().map(|record| record.text().to_owned()).collect())
}

fn one(program: &str, item: &str) -> String {
    run(program, item).expect("the program runs").join(" ")
}

#[test]
fn untouched_values_keep_their_spelling() {
    let item = r#"{"z":1.10,"a":12345678901234567890123,"e":1E5,"s":"é\u00e9\n"}"#;
    assert_eq!(one(".", item), item);
    assert_eq!(
        one("{z, a, e}", item),
        r#"{"z":1.10,"a":12345678901234567890123,"e":1E5}"#
    );
    assert_eq!(one("{s}", item), r#"{"s":"éé\n"}"#);
    assert_eq!(
        one(". + {n: 1}", item),
        item.replace(r"é\u00e9", "éé").replace('}', r#","n":1}"#)
    );
}

#[test]
fn outputs_become_rows() {
    assert_eq!(run("empty", "{}"), Ok(vec![]));
    assert_eq!(
        one("(1, [2], null)", "{}"),
        r#"{"value":1} {"value":[2]} {"value":null}"#
    );
    assert_eq!(
        one("{id: $row_id, n: $chain_input.n}", r#"{"n":1.0}"#),
        r#"{"id":"17","n":1.0}"#
    );
    assert_eq!(
        one("{nan: nan, inf: infinite}", "{}"),
        r#"{"nan":null,"inf":1.7976931348623157e308}"#
    );
    assert_eq!(run(r#"1, error("bad")"#, "{}"), Err("bad".into()));
    assert_eq!(run(". + 1", "{}"), Err("cannot calculate {} + 1".into()));
}

#[test]
fn the_library_works_under_checks() {
    assert_eq!(one("[paths]", r#"{"a":[1]}"#), r#"{"value":[["a"],["a",0]]}"#);
    assert_eq!(
        one(
            "walk(if type == \"number\" then . + 1 else . end)",
            r#"{"a":[1]}"#
        ),
        r#"{"a":[2]}"#
    );
    assert_eq!(one("del(.a, .b[0])", r#"{"a":1,"b":[1,2]}"#), r#"{"b":[2]}"#);
    assert_eq!(
        one("1 | [recurse(if . < 3 then . + 1 else empty end)]", "{}"),
        r#"{"value":[1,2,3]}"#
    );
    assert_eq!(one("[limit(3; repeat(1))] | add", "{}"), r#"{"value":3}"#);
    assert_eq!(one("last(range(100000))", "{}"), r#"{"value":99999}"#);
    assert_eq!(one("0 | until(. >= 100000; . + 1)", "{}"), r#"{"value":100000}"#);
    assert_eq!(one("reduce range(5) as $i (0; . + $i)", "{}"), r#"{"value":10}"#);
    assert_eq!(
        one("[foreach range(3) as $i (0; . + $i; [$i, .])]", "{}"),
        r#"{"value":[[0,0],[1,1],[2,3]]}"#
    );
    assert_eq!(
        one(r#""a,b" | [splits(",")] | join("-")"#, "{}"),
        r#"{"value":"a-b"}"#
    );
    assert_eq!(
        one("setpath([\"a\"]; 1) | getpath([\"a\"])", "{}"),
        r#"{"value":1}"#
    );
    assert_eq!(
        one("def f($x): if $x > 0 then f($x - 1) else 7 end; f(1000)", "{}"),
        r#"{"value":7}"#
    );
}

#[test]
fn what_is_no_number_is_an_error_and_never_nothing() {
    assert_eq!(
        one("[.[] | tonumber]", r#"{"a":"-1.10","b":2,"c":" 3e2 "}"#),
        r#"{"value":[-1.10,2,3e2]}"#
    );
    assert_eq!(one(".a |= toboolean", r#"{"a":"true"}"#), r#"{"a":true}"#);
    for text in [r#""""#, r#"" ""#, r#""1 2""#, r#""[1]""#, r#""true""#] {
        let item = format!("{{\"a\":{text}}}");
        let refused = |what| Err(format!("{text} cannot be parsed as a {what}"));
        assert_eq!(run(".a |= tonumber", &item), refused("number"), "{text}");
        if text != r#""true""# {
            assert_eq!(run(".a | toboolean", &item), refused("boolean"), "{text}");
        }
    }
    for other in ["null", "true", "[1]", "{}", r#""x""#] {
        run(".a | tonumber", &format!("{{\"a\":{other}}}")).expect_err(other);
    }
}

#[test]
fn a_program_cannot_reach_out_of_its_row() {
    for program in [
        "env",
        "$ENV",
        "input",
        "inputs",
        "debug",
        "stderr",
        "halt",
        "halt_error",
        "now",
        "localtime",
    ] {
        let error = run(program, "{}").expect_err(program);
        assert!(error.starts_with("undefined"), "{program}: {error}");
    }
    assert!(run(r#"include "x"; ."#, "{}").is_err());
}

#[test]
fn deep_recursion_fails_the_row_not_the_process() {
    let error = run("def f: 1 + f; f", "{}").expect_err("this never ends");
    assert_eq!(error, "the program recurses too deep for one row");
}

#[test]
fn syntax_errors_point_into_the_program() {
    assert_eq!(
        run(". | foo", "{}"),
        Err("undefined filter `foo` at Some(4..7)".into())
    );
    assert_eq!(
        run("{a: }", "{}"),
        Err("expected term, found `}` at Some(4..5)".into())
    );
    assert_eq!(
        run(". |", "{}"),
        Err("expected term, found the end of the program at Some(3..3)".into())
    );
    assert_eq!(
        run("1 2", "{}"),
        Err("expected nothing, found `2` at Some(2..3)".into())
    );
}

#[test]
fn deep_programs_are_refused() {
    let nest =
        |count: usize, open: &str, close: &str| format!("{}1{}", open.repeat(count), close.repeat(count));
    for program in [
        format!("{}.", ".|".repeat(50_000)),
        format!("1{}", "+1".repeat(100_000)),
        format!("1{}", ",1".repeat(100_000)),
        nest(3_000, "[", "]"),
        nest(20_000, "(", ")"),
        nest(20_000, "{a: ", "}"),
        nest(20_000, "\"\\(", ")\""),
        "[".repeat(100_000),
        format!("# [\\\n\" \n{}", "[".repeat(100_000)),
        "-".repeat(100_000),
        format!("{}1", "- ".repeat(50_000)),
        format!("{}1", "try ".repeat(50_000)),
        format!("{} 1", "if ".repeat(50_000)),
        format!("{}1", "def f: ".repeat(50_000)),
    ] {
        let start: String = program.chars().take(20).collect();

        run(&program, "{}").expect_err(&start);
    }
    let message = |program: &str| run(program, "{}").expect_err(program);
    assert!(message(&nest(51, "[", "]")).starts_with("the program nests more than 50 brackets"));
    assert!(
        message(&format!("1{}", "+1".repeat(4001)))
            .starts_with("the program chains more than 4000 operators")
    );
    // At the limits, on a test's stack.
    for program in [
        format!("{}.", ".|".repeat(250)),
        format!("1{}", "+1".repeat(250)),
        format!("[1{}]", ",1".repeat(240)),
        nest(50, "[", "]"),
        nest(50, "(", ")"),
        nest(24, "{a: ", "}"),
        nest(24, "\"\\(", ")\""),
        format!("{}1", "try ".repeat(250)),
        format!("{}1{}", "(".repeat(50), ")?".repeat(50)),
        format!("1{}", "?".repeat(250)),
        format!("1{}", "//1".repeat(250)),
        format!("{}1", "1 as $x|".repeat(120)),
        format!("{}1{}", "if 1 then ".repeat(200), " else 1 end".repeat(200)),
        format!("{}f", "def f: 1 + 1; ".repeat(100)),
    ] {
        run(&program, "{}").expect("the program runs");
    }
    // Large ones have a larger stack, also where they run.
    let large = [
        format!("{}.", ".|".repeat(3990)),
        format!("{{a: (1{})}}", "+1".repeat(3990)),
        format!("{{a: [1{}]}}", ",1".repeat(3990)),
        format!("{{a: ({}1)}}", "try ".repeat(3990)),
        format!(
            "{{{}}}",
            (0..3900)
                .map(|n| format!("f{n}: .n"))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    ];
    let steps: Vec<Value> = large
        .iter()
        .enumerate()
        .map(|(n, program)| json!({"id": format!("n{n}"), "apply": {"jq": program}}))
        .collect();
    let chain = json!({"name": "large", "steps": steps}).to_string();
    let bench = Bench::new(&chain, "{\"n\":1}\n");
    assert_eq!(bench.run(&["--dry-run"]).code, 0);
    let checked = bench.invoke(&["inspect", "chain.yaml", "--input", "in.jsonl"]);
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    let ran = bench.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(ran.values("n1")[0]["a"], 3991);
    // Fields nest when they are made; what is in them does not add up.
    let fields: Vec<String> = (0..240).map(|n| format!("f{n}: (.a | . + {n})")).collect();
    run(&format!("{{{}}}", fields.join(", ")), r#"{"a":1}"#).expect("an object has many fields");
    run("\"[[[\" + \"((\" # ((((\n", "{}").expect("texts and comments have no brackets");
}

#[test]
fn a_program_that_may_emit_nothing_says_so() {
    let outputs = |program: &str| {
        let program = JqProgram::compile(program, &[].into()).unwrap_or_else(|e| panic!("{program}: {e}"));
        (program.outputs().none, program.outputs().many)
    };
    for program in [
        "def f: if .n > 0 then .n -= 1 | f else {x: .n} end; f",
        "{x: first(.xs[], 1)}",
        "{x: limit(3; .n)}",
        "{x: .n?}",
        "{x: (try .n)}",
        "def f(g): [g]; {x: f(.xs[])}",
        "def f(g): first(g); {x: f(1, 2)}",
        "label $o | {x: .n}",
    ] {
        assert_eq!(outputs(program), (false, false), "{program}");
    }
    for program in [
        "empty",
        "select(.n)",
        "first(.xs[])",
        "limit(1; .xs[])",
        "{x: .a.b?}",
        "{x: (.n | tonumber)?}",
    ] {
        assert!(outputs(program).0, "{program}");
    }
    for program in [".xs[]", "1, 2", "range(3)", "recurse", "limit(2; .xs[])"] {
        assert!(outputs(program).1, "{program}");
    }
}
