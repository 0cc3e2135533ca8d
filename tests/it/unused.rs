//! What a chain declares and nothing uses is told, and nothing else is.

use crate::chains::codes;

/// Tops of a chain and the rest of it; what is used only there.
const USED: [(&str, &str); 21] = [
    ("vars: {v: 1}", "{id: a, engine: e, user_prompt: '{{ vars.v }}'}"),
    (
        "vars: {v: 1}",
        "{id: a, engine: e, user_prompt: '{{ vars[\"v\"] }}'}",
    ),
    (
        "vars: {v: 1}",
        "{id: a, engine: e, user_prompt: '{{ vars[row_id] }}'}",
    ),
    (
        "vars: {v: 1}",
        "{id: a, engine: e, user_prompt: '{% set x = vars %}{{ x.v }}'}",
    ),
    (
        "vars: {v: 1}",
        "{id: a, engine: e, system_prompt: '{{ vars.v }}', user_prompt: hi}",
    ),
    ("vars: {v: 1}", "{id: a, apply: {jq: .}, when: vars.v == 1}"),
    (
        "vars: {v: 1}",
        "{when: vars.v == 1, parallel: [{branch: b, steps: [{id: a, apply: {jq: .}}]}]}",
    ),
    (
        "vars: {v: 1}",
        "{branch: b, steps: [{branch: c, when: vars.v == 1, steps: [{id: a, apply: {jq: .}}]}]}",
    ),
    ("vars: {v: 1}", "{id: a, apply: {jq: '{n: $vars.v}'}}"),
    ("vars: {v: 1}", "{id: a, apply: {jq: '{n: \"\\($vars.v)\"}'}}"),
    ("vars: {v: 1}", "{id: a, apply: {jq: '$vars | keys[] | {k: .}'}}"),
    ("vars: {v: 1}", "{id: a, apply: {jq: '{n: $vars[.k]}'}}"),
    ("vars: {v: 1}", "{id: a, apply: {jq: '{n: $row.vars}'}}"),
    ("vars: {v: 1}", "{id: a, apply: {command: [cat]}}"),
    (
        "models: {M: {a: string}}",
        "{id: a, apply: {jq: .}, output_model: M}",
    ),
    (
        "models: {M: {a: string}}\ninput_model: M",
        "{id: a, apply: {jq: .}}",
    ),
    (
        "models: {M: {a: string}}\ninput_model: {m: '[M]?'}",
        "{id: a, apply: {jq: .}}",
    ),
    (
        "models: {M: {a: string}, N: {type: object, properties: {m: {$ref: M}}}}",
        "{branch: b, steps: [{id: a, engine: e, user_prompt: hi, output_model: {n: {deep: N}}}]}",
    ),
    (
        "models: {M: &m {a: string}}",
        "{id: a, apply: {jq: .}, output_model: *m}",
    ),
    ("vars: {v: &v hi}", "{id: a, engine: e, user_prompt: *v}"),
    ("models:\nvars: {}", "{id: a, apply: {jq: .}}"),
];

/// What is not used there.
const UNUSED: [(&str, &str); 7] = [
    (
        "vars: {v: 1, w: 2}",
        "{id: a, engine: e, user_prompt: '{{ vars.w }}'}",
    ),
    ("vars: {v: 1}", "{id: a, apply: {jq: '{n: $row_id}'}}"),
    ("vars: {v: 1, vv: 2}", "{id: a, apply: {jq: '{n: $vars.vv}'}}"),
    (
        "models: {M: {a: string}}",
        "{id: a, apply: {jq: .}, output_model: {m: string}}",
    ),
    ("models: {M: {m: M?}}", "{id: a, apply: {jq: .}}"),
    (
        "engines: {x: {backend: openai, model: m, endpoint: 'http://h/v1'}}",
        "{id: a, apply: {jq: .}}",
    ),
    (
        "engines: {f: {backend: openai, model: m, endpoint: 'http://h/v1', price: {input: 1, output: 2}}}",
        "{id: a, apply: {jq: .}}",
    ),
];

#[test]
fn what_is_used_is_not_told() {
    let none: [&str; 0] = [];
    for (top, step) in USED {
        assert_eq!(
            codes(&format!("{top}\nsteps:\n  - {step}\n")),
            none,
            "{top} {step}"
        );
    }
}

#[test]
fn what_is_not_used_is_told_once() {
    for (top, step) in UNUSED {
        assert_eq!(
            codes(&format!("{top}\nsteps:\n  - {step}\n")),
            ["unused"],
            "{top} {step}"
        );
    }
}

#[test]
fn a_chain_with_errors_tells_these_first() {
    assert_eq!(
        codes("vars: {v: 1}\nsteps:\n  - {id: a, engine: e, user_prompt: '{{ vars.w }}'}\n"),
        ["undefined_name"]
    );
}
