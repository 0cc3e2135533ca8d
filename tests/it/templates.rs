//! Templates and conditions: what they print, what they refuse, what they cannot reach.

use crate::chains::chain;
use chainette::expr::template::Template;
use chainette::expr::when::When;
use chainette::expr::{Scope, Vars, Visible};
use chainette::row::{Named, Record, RowId};
use serde_json::json;

/// Renders with an item, with `fr` null and `de` a record.
pub fn render(template: &str) -> Result<String, String> {
    let (visible, names) = names();
    let template = Template::compile(template, &visible).map_err(|e| format!("compile: {e}"))?;
    with_scope(&names, |scope| template.render(scope))
}

fn eval(when: &str) -> Result<bool, String> {
    let (visible, names) = names();
    let when = When::compile(when, &visible).map_err(|e| format!("compile: {e}"))?;
    with_scope(&names, |scope| when.eval(scope))
}

fn names() -> (Visible, Vec<Named>) {
    // Only a plan gives out places in the table of names.
    let plan = chain(
        "steps:\n  - {id: fr, engine: e, user_prompt: hi}\n  - {id: de, engine: e, user_prompt: hi}\n  - {id: list, engine: e, user_prompt: hi}\n  - {id: end, engine: e, user_prompt: hi}\n",
    )
    .unwrap_or_else(|r| panic!("{r}"))
    .plan;
    let record = |text| Record::parse(text).expect("a record");
    let mut names = vec![Named::Unset; plan.names.len()];
    let at = |name: &str| plan.names.iter().position(|n| n == name).expect("a name");
    names[at("fr")] = Named::Null;
    names[at("de")] = Named::Record(record(r#"{"text": "gut", "opt": null}"#));
    names[at("list")] = Named::List(vec![record(r#"{"w": 1}"#), record(r#"{"w": 2}"#)].into());
    names[at("de_reasoning")] = Named::Text("because".into());
    (plan.nodes[3].visible.clone(), names)
}

fn with_scope<T>(names: &[Named], run: impl FnOnce(&Scope<'_>) -> T) -> T {
    let item = Record::parse(
        r#"{"text": "a <b> & 'c'", "big": 12345678901234567890123, "huge": 1234567890123456789012345678901234567890123, "x": 1.10, "ok": true, "no": null, "in": {"deep": [1, "two", {"k": null}], "k": 1, "k": 2}, "de": "hidden"}"#,
    )
    .expect("a record");
    let json = json!({"tone": "dry", "n": 3})
        .as_object()
        .expect("an object")
        .clone();
    let vars = Vars {
        json,
        ..Vars::default()
    };
    run(&Scope {
        row_id: &RowId::root(17).child(2),
        item: &item,
        chain_input: &item,
        vars: &vars,
        names,
    })
}

fn ok(template: &str) -> String {
    render(template).unwrap_or_else(|e| panic!("{template}: {e}"))
}

fn err(template: &str) -> String {
    render(template).expect_err(template)
}

#[test]
fn templates_print_values() {
    assert_eq!(ok("{{ text }}"), "a <b> & 'c'");
    assert_eq!(
        ok("{{ big }} {{ huge }}"),
        "12345678901234567890123 1234567890123456789012345678901234567890123"
    );
    assert_eq!(
        ok("{{ row_id }} {{ vars.tone }} {{ vars['n'] + 1 }}"),
        "17.2 dry 4"
    );
    assert_eq!(
        ok("{{ de.text }} {{ item.de }} {{ de_reasoning }}"),
        "gut hidden because"
    );
    assert_eq!(ok("{{ item['in'].deep[1] }} {{ item['in'].k }}"), "two 2");
    assert_eq!(
        ok("{% for w in list %}{{ w.w }},{% endfor %}{{ list | length }}"),
        "1,2,2"
    );
    assert_eq!(
        ok("{{ chain_input['in'] | tojson }}"),
        r#"{"deep": [1, "two", {"k": null}], "k": 1, "k": 2}"#
    );
    assert_eq!(
        ok("{{ {'a': [1, text]} | tojson }}"),
        r#"{"a": [1, "a <b> & 'c'"]}"#
    );
    assert_eq!(
        ok("{{ de | tojson(indent=1) }}"),
        "{\n \"text\": \"gut\",\n \"opt\": null\n}"
    );
    assert_eq!(
        ok("{% macro m(a) %}<{{ a }}>{% endmacro %}{{ m(text | upper) }}"),
        "<A <B> & 'C'>"
    );
    assert_eq!(
        ok("{% set t = text %}{{ t | length }} {{ range(3) | join('-') }}"),
        "11 0-1-2"
    );
}

#[test]
fn nulls_are_errors_unless_guarded() {
    assert_eq!(err("{{ fr }}"), "`fr` is null here; guard it with {% if fr %}");
    assert_eq!(
        err("{{ fr.text }}"),
        "`fr` is null here; guard it with {% if fr %}"
    );
    assert_eq!(
        err("{{ fr.text | default('-') }}"),
        "`fr` is null here; guard it with {% if fr %}"
    );
    assert_eq!(
        err("{{ 'a' ~ fr }}"),
        "`fr` is null here; guard it with {% if fr %}"
    );
    assert_eq!(
        err("{{ fr | upper }}"),
        "`fr` is null here; guard it with {% if fr %}"
    );
    assert_eq!(err("{{ no }}"), "`no` is null here; guard it with {% if no %}");
    assert_eq!(
        err("{{ de.opt }}"),
        "`de.opt` is null here; guard it with {% if de.opt %}"
    );
    assert_eq!(
        err("{{ de.opt.x }}"),
        "`de.opt` is null here; guard it with {% if de.opt %}"
    );
    assert_eq!(
        err("{{ fr_reasoning }}"),
        "`fr_reasoning` is null here; guard it with {% if fr_reasoning %}"
    );
    assert_eq!(
        err("{% if fr.text %}x{% endif %}"),
        "`fr` is null here; guard it with {% if fr %}"
    );
    assert_eq!(
        err("{% for x in fr %}{% endfor %}"),
        "`fr` is null here; guard it with {% if fr %}"
    );
    // The third part of a path, what filters hand on and brackets are no way around.
    for null in [
        "item['in'].deep[2].k",
        "(item['in'].deep[2]).k",
        "(item['in'].deep | last).k",
    ] {
        for template in [
            "{{ NULL | upper }}",
            "{{ 'a' ~ (NULL) }}",
            "{{ (NULL) | tojson ~ NULL }}",
        ] {
            let template = template.replace("NULL", null);
            assert!(err(&template).contains("is null"), "{template}");
        }
    }
    assert_eq!(ok("{% if fr %}{{ fr.text }}{% else %}none{% endif %}"), "none");
    assert_eq!(
        ok("{{ fr.text if fr else '-' }}{{ fr and fr.text or '+' }}"),
        "-+"
    );
    assert_eq!(
        ok("{{ fr is none }} {{ fr == none }} {{ fr is defined }}"),
        "True True True"
    );
    assert_eq!(ok("{{ fr | tojson }} {{ fr | default('x', true) }}"), "null x");
}

#[test]
fn undefined_names_are_errors() {
    assert_eq!(err("{{ txet }}"), "`txet` is undefined; did you mean `text`?");
    assert_eq!(
        err("{{ de.zzzz }}"),
        "`de.zzzz` is undefined; `de` has `text`, `opt`"
    );
    assert_eq!(err("{{ text.x }}"), "`text.x` is undefined; `text` is a string");
    assert_eq!(
        err("{% if texts %}{% endif %}"),
        "`texts` is undefined; did you mean `text`?"
    );
    assert_eq!(
        ok("{{ nope | default('-') }} {{ de.zz | default('+') }} {{ nope is defined }}"),
        "- + False"
    );
    assert_eq!(
        err("{{ vars.nope }}"),
        "`vars.nope` is undefined; `vars` has `tone`, `n`"
    );
}

#[test]
fn templates_cannot_reach_out() {
    for template in [
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% from 'x' import y %}",
    ] {
        assert_eq!(err(template), "compile: a template cannot read other templates");
    }
    assert_eq!(err("{{ debug() }}"), "compile: there is no function `debug`");
    assert_eq!(
        err("{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"),
        "the template runs too long"
    );
}

#[test]
fn texts_and_numbers_have_no_order() {
    let message = |path: &str, own: &str, other: &str, help: &str| {
        Err(format!(
            "`{path}` is a {own} and cannot be compared with a {other}{help}"
        ))
    };
    assert_eq!(
        eval("text > 1"),
        message(
            "text",
            "string",
            "number",
            "; convert it: `text|int` or `text|float`"
        )
    );
    assert_eq!(
        eval("1 <= de.text"),
        message(
            "de.text",
            "string",
            "number",
            "; convert it: `de.text|int` or `de.text|float`"
        )
    );
    assert_eq!(
        eval("x < 'a'"),
        message("x", "number", "string", "; convert it: `x|string`")
    );
    assert_eq!(eval("ok > 0"), message("ok", "bool", "number", ""));
    assert_eq!(
        eval("x >= item['in'].deep"),
        message("x", "number", "sequence", "")
    );
    assert_eq!(
        eval("item['text'] < vars.n"),
        message(
            "item['text']",
            "string",
            "number",
            "; convert it: `item['text']|int` or `item['text']|float`"
        )
    );
    assert!(err("{{ 'less' if text < 1 }}").contains("cannot be compared"));
    assert_eq!(eval("text > 'a' and x > 1 and 0 < x < big"), Ok(true));
    assert_eq!(eval("text|length > 5 and x + 1 > 2 and vars.n >= x"), Ok(true));
    // Equality needs no order.
    assert_eq!(eval("text == 1 or x != 'a'"), Ok(true));
}

#[test]
fn conditions() {
    assert_eq!(eval("fr"), Ok(false));
    assert_eq!(eval("not fr"), Ok(true));
    assert_eq!(eval("de.text == 'gut' and x > 1"), Ok(true));
    assert_eq!(eval("'}' in text or '%}' in text"), Ok(false));
    assert_eq!(eval("list"), Ok(true));
    assert_eq!(eval("no is none and no == none"), Ok(true));
    assert_eq!(
        eval("de.opt < 1"),
        Err("`de.opt` is null here; guard it: `de.opt is not none and ...`".into())
    );
    assert_eq!(
        eval("de.opt == 'a'"),
        Err("`de.opt` is null here; guard it: `de.opt is not none and ...`".into())
    );
    assert_eq!(
        eval("fr.text == 'a'"),
        Err("`fr` is null here; guard it: `fr is not none and ...`".into())
    );
    for deep in [
        "item['in'].deep[2].k < 1",
        "item['in'].deep[2]['k'] == 1",
        "1 > chain_input['in'].deep[2].k|first",
    ] {
        assert!(eval(deep).is_err_and(|e| e.contains("null here")), "{deep}");
    }
    assert_eq!(
        eval("[none][0] == 1"),
        Err("the value is null here; guard it: `NAME is not none and ...`".into())
    );
    assert_eq!(eval("fr is not none and fr.text == 'a'"), Ok(false));
    assert!(eval("nope").is_err_and(|e| e.starts_with("`nope` is undefined")));
    assert!(eval("a b").is_err_and(|e| e.starts_with("compile: ")));
    assert!(eval("fr) %}1{% endif %}{% if (fr").is_err_and(|e| e.starts_with("compile: ")));
    assert_eq!(eval("(x + 1) * 2 > 3 and (x or fr) >= 1"), Ok(true));
}

/// A name that is set on some ways only comes from outside on the others.
#[test]
fn what_is_set_on_some_ways_only_is_still_read() {
    assert_eq!(
        ok("{% if no %}{% set text = 'cut' %}{% endif %}say {{ text }}"),
        "say a <b> & 'c'"
    );
    assert_eq!(
        ok("{% if ok %}{% set text = 'cut' %}{% endif %}say {{ text }}"),
        "say cut"
    );
    assert_eq!(
        ok("{% if ok %}{% set a = 1 %}{% else %}{% set a = 2 %}{% endif %}{{ a }}"),
        "1"
    );
    assert_eq!(
        ok("{% if no %}{% set text = 1 %}{% elif fr %}{% set text = 2 %}{% endif %}{{ text | length }}"),
        "11"
    );
    assert_eq!(
        err("{% if no %}{% set gone = 1 %}{% endif %}{{ gone }}")
            .split(';')
            .next(),
        Some("`gone` is undefined")
    );
}

#[test]
fn with_and_macros_bind_in_order() {
    assert_eq!(
        ok("{% with a = text, b = a %}{{ b }}{% endwith %}"),
        "a <b> & 'c'"
    );
    assert_eq!(ok("{% macro f(x=y, y=1) %}{{ x }}{% endmacro %}{{ f() }}"), "1");
}

#[test]
fn deep_templates_are_refused() {
    let (many, some) = (20_000, 70);
    for count in [many, some] {
        let all = [
            format!("{{{{ {}text{} }}}}", "(".repeat(count), ")".repeat(count)),
            format!("{{{{ a{} }}}}", ".b".repeat(count)),
            format!("{{{{ x{} }}}}", " and x".repeat(count)),
            format!("{{{{ x{} }}}}", "+x".repeat(count)),
            format!("{{{{ text{} }}}}", "|upper".repeat(count)),
            format!("{{{{ {}x }}}}", "-".repeat(count)),
            format!("{{% if x %}}1{}{{% endif %}}", "{% elif x %}2".repeat(count)),
        ];
        for template in all {
            let start: String = template.chars().take(20).collect();
            let compiled = Template::compile(&template, &names().0);
            assert!(count == some || compiled.is_err(), "{start}");
        }
        let conditions = [
            format!("{}x{}", "(".repeat(count), ")".repeat(count)),
            format!("x{}", " and x".repeat(count)),
        ];
        for condition in conditions {
            let compiled = When::compile(&condition, &names().0);
            assert!(count == some || compiled.is_err());
        }
    }
    let chained = format!("{{{{ x{} }}}}", "+x".repeat(many));
    assert!(err(&chained).contains("more than 150 operators"));
    let fits = format!("{{{{ 0{} }}}}", "+1".repeat(150));
    assert_eq!(ok(&fits), "150");
    // What stands beside one another is not deep.
    let list = format!(
        "{{{{ [1{}]|length }}}}{}",
        ",1".repeat(5_000),
        "{{ x + 1 }}".repeat(500)
    );
    assert!(ok(&list).starts_with("5001"));
}
