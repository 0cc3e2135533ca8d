//! Nulls: what is said at load and what happens at run agree.

use crate::chains::codes;
use crate::templates::render;

/// Templates over `fr`, which is null, and `de`, which is not; whether `fr` is read where it must not be null.
const CASES: [(&str, bool); 31] = [
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
