//! Nulls: what is said at load and what happens at run agree.

use crate::chains::codes;
use crate::templates::render;

/// Templates over `fr`, which is null, and `de`, which is not; whether `fr` is read where it must not be null.
const CASES: [(&str, bool); 43] = [
    ("{{ fr | default('-') }}", true),
    ("{{ fr | d('-') }}", true),
    ("{{ fr | default('-', false) }}", true),
    ("{{ fr | default('-', true) }}", false),
    ("{{ fr | default('-') | upper }}", true),
    ("{{ fr | default('-', true) | upper }}", false),
    ("{{ fr.text | default('-', true) }}", true),
    ("{{ fr | default('-') | default('+', true) }}", false),
    ("{{ fr | default('-') | tojson }}", false),
    ("{% if fr | default('-') %}x{% endif %}", false),
    ("{{ fr | default('-') if fr else '+' }}", false),
    ("{{ fr | default('-') ~ '!' }}", true),
    ("{{ (fr | default('-')) | upper }}", true),
    ("{{ (fr) | upper }}", true),
    ("{{ (fr or none) | upper if fr else '-' }}", false),
    ("{{ (de.text ~ '!') | upper | replace('a', 'b') }}", false),
    ("{{ ((de).text | default('-')) | trim | length + 1 }}", false),
    ("{{ ((de | tojson) ~ fr) | length }}", true),
    ("{{ de | tojson | upper ~ (fr | tojson | upper) }}", false),
    ("{{ de.text[0:1] ~ de.text | upper }}", false),
    ("{{ (1 + 2) * (3 if de else 4) | abs }}", false),
    (
        "{{ 'x' if not (fr is none) and (fr.text | upper) == 'X' else '-' }}",
        false,
    ),
    ("{{ de.text in ['a', 'b'] or (de.text | upper) < 'z' }}", false),
    ("{% set x = fr %}{{ x }}", true),
    ("{% set x = fr %}{{ x.text }}", true),
    ("{% set x = fr %}{{ x.text | default('-') }}", true),
    ("{% set x = fr %}{{ x | default('-') }}", true),
    ("{% set x = fr %}{{ x | default('-', true) }}", false),
    ("{% set x = fr | default('-') %}{{ x }}", true),
    ("{% set x = fr | default('-', true) %}{{ x }}", false),
    ("{% set x = fr %}{% set y = x %}{{ y.text }}", true),
    ("{% set x = fr %}{% if x %}{{ x.text }}{% endif %}", false),
    (
        "{% set x = fr %}{% if x is not none %}{{ x.text }}{% endif %}",
        false,
    ),
    ("{% set x = fr %}{% if fr %}{{ x.text }}{% endif %}", false),
    (
        "{% set x = fr %}{% set y = x %}{% if y %}{{ x.text }}{% endif %}",
        false,
    ),
    ("{% set x = fr %}{{ x.text if x else '-' }}", false),
    ("{% set x = fr %}{% set x = de %}{{ x.text }}", false),
    (
        "{% set x = fr %}{% if x is none %}{% set x = de %}{% endif %}{{ x.text }}",
        false,
    ),
    (
        "{% if not fr %}{% set x = de %}{% else %}{% set x = fr %}{% endif %}{{ x.text }}",
        false,
    ),
    ("{% with x = fr %}{{ x.text }}{% endwith %}", true),
    ("{% with x = fr %}{{ x is none }}{% endwith %}", false),
    (
        "{% set x = fr %}{% for x in [de] %}{{ x.text }}{% endfor %}",
        false,
    ),
    ("{% set x = de %}{{ x.text }}{{ x.zz | default('-') }}", false),
];

#[test]
fn load_warns_of_what_fails_at_run() {
    for (template, fails) in CASES {
        let warned = codes(&format!(
            "steps:\n  - {{id: fr, engine: e, user_prompt: hi, on_error: 'null'}}\n  - {{id: de, engine: e, user_prompt: hi}}\n  - {{id: end, engine: e, user_prompt: \"{template}\"}}\n"
        ));
        let expected: &[&str] = if fails { &["unguarded_null"] } else { &[] };
        assert_eq!(warned, expected, "at load: {template}");
        match render(template) {
            Ok(text) => assert!(!fails, "{template} gave {text}"),
            Err(error) => {
                assert!(fails, "{template}: {error}");
                assert_eq!(
                    error, "`fr` is null here; guard it with {% if fr %}",
                    "{template}"
                );
            }
        }
    }
}
