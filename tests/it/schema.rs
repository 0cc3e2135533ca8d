//! Schemas: rewritten to the strict subset, and the rewriting undone on replies.

use chainette::engine::client::schema::{rewrite, strict};
use chainette::engine::client::subset::{LLAMA, OUTLINES, XGRAMMAR};
use serde_json::{Value, json};

/// A schema, what is sent, and replies with what becomes of them.
type Case = (Value, Value, &'static [(&'static str, &'static str)]);

#[test]
fn schemas_are_rewritten_and_undone() {
    let object = |properties: Value, required: Value| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let string = json!({"type": "string"});
    let cases: Vec<Case> = vec![
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "minLength": 3}, "b": {"type": "integer"}}, "required": ["a"]}),
            object(
                json!({"a": string, "b": {"type": ["integer", "null"]}}),
                json!(["a", "b"]),
            ),
            &[
                (r#"{"a":"x","b":null}"#, r#"{"a":"x"}"#),
                (
                    r#"{"b":12345678901234567890123,"a":null}"#,
                    r#"{"b":12345678901234567890123,"a":null}"#,
                ),
            ],
        ),
        // A null that the user allows stays one.
        (
            object(
                json!({"a": {"type": ["string", "null"]}, "n": {"enum": [1, 2]}}),
                json!([]),
            ),
            object(
                json!({"a": {"type": ["string", "null"]}, "n": {"type": ["integer", "null"], "enum": [1, 2, null]}}),
                json!(["a", "n"]),
            ),
            &[(r#"{"a":null,"n":null}"#, r#"{"a":null}"#)],
        ),
        // Definitions, also ones that contain themselves.
        (
            json!({"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}}, "required": ["t"],
            "$defs": {"T": {"type": "object", "properties": {"v": {"type": "number"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/T"}}}, "required": ["v"]}}}),
            json!({"type": "object", "properties": {"t": {"$ref": "#/$defs/T"}}, "required": ["t"], "additionalProperties": false,
            "$defs": {"T": object(json!({"v": {"type": "number"}, "kids": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/T"}}, {"type": "null"}]}}), json!(["v", "kids"]))}}),
            &[(
                r#"{"t":{"v":1.10,"kids":[{"v":2,"kids":null}]}}"#,
                r#"{"t":{"v":1.10,"kids":[{"v":2}]}}"#,
            )],
        ),
        // A root of alternatives is wrapped; fields and constants tell them apart.
        (
            json!({"oneOf": [
                {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "string"}}, "required": ["kind"]},
                {"type": "object", "properties": {"kind": {"const": "b"}, "x": {"type": ["string", "null"]}}, "required": ["kind"]}]}),
            object(
                json!({"value": {"anyOf": [
                object(json!({"kind": {"type": "string", "enum": ["a"]}, "x": {"type": ["string", "null"]}}), json!(["kind", "x"])),
                object(json!({"kind": {"type": "string", "enum": ["b"]}, "x": {"type": ["string", "null"]}}), json!(["kind", "x"]))]}}),
                json!(["value"]),
            ),
            &[
                (r#"{"value":{"kind":"a","x":null}}"#, r#"{"kind":"a"}"#),
                (r#"{"value":{"kind":"b","x":null}}"#, r#"{"kind":"b","x":null}"#),
                (r#"{"kind":"a","x":null}"#, r#"{"kind":"a"}"#),
            ],
        ),
        // `allOf` of objects becomes one.
        (
            json!({"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"$ref": "#/$defs/B"}], "$defs": {"B": {"properties": {"b": {"type": "boolean"}}}}}),
            object(
                json!({"a": string, "b": {"type": ["boolean", "null"]}}),
                json!(["a", "b"]),
            ),
            &[(r#"{"a":"","b":null}"#, r#"{"a":""}"#)],
        ),
        // Escaped keys are found.
        (
            object(
                json!({"é\"": {"type": "object", "properties": {}, "additionalProperties": false}}),
                json!([]),
            ),
            object(
                json!({"é\"": {"anyOf": [object(json!({}), json!([])), {"type": "null"}]}}),
                json!(["é\""]),
            ),
            &[(r#"{"\u00e9\"":null}"#, "{}")],
        ),
    ];
    for (schema, sent, replies) in cases {
        let wire = strict(&schema);
        assert!(wire.strict, "{schema}");
        assert_eq!(wire.schema, sent, "{schema}");
        for (reply, restored) in replies {
            assert_eq!(&wire.restore(reply), restored, "{schema}");
        }
    }
}

#[test]
fn what_strict_form_cannot_say_goes_out_as_it_is() {
    for schema in [
        json!({"type": "object"}),
        json!({"type": "object", "additionalProperties": {"type": "string"}}),
        json!({"type": "object", "properties": {"a": {}}}),
        json!({"type": "object", "properties": {"a": {"type": "object"}}}),
        json!({"type": "object", "patternProperties": {"^x": {"type": "string"}}, "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
            "patternProperties": {"^x": {"type": "string"}}, "additionalProperties": false}),
        json!({"type": "object", "properties": {"a": {"type": "array"}}}),
        json!({"type": "object", "properties": {"a": {"type": "array", "prefixItems": [{"type": "string"}]}}}),
        json!({"type": "object", "properties": {"a": {"enum": [{"b": 1}]}}}),
        json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}),
        json!({"$ref": "#/$defs/L", "$defs": {"L": {"allOf": [{"$ref": "#/$defs/L"}]}}}),
    ] {
        let wire = strict(&schema);
        assert!(!wire.strict && !wire.wrapped, "{schema}");
        assert_eq!(wire.schema, schema);
        assert_eq!(wire.restore(r#"{"a":null}"#), r#"{"a":null}"#);
    }
}

#[test]
fn other_backends_take_more() {
    let schema = json!({"type": "object", "required": ["any", "map"], "properties": {
        "any": {},
        "map": {"type": "object", "additionalProperties": {"type": "integer", "multipleOf": 2, "minimum": 1}},
        "list": {"type": "array", "minItems": 5000},
        "name": {"type": "string", "minLength": 2, "maxLength": 5000, "format": "email"},
    }});
    let sent = |map: Value, list: Value, name: Value| {
        json!({"type": "object", "properties": {
            "any": {},
            "map": {"type": "object", "properties": {}, "required": [], "additionalProperties": map},
            "list": {"anyOf": [list, {"type": "null"}]},
            "name": name,
        }, "required": ["any", "map", "list", "name"], "additionalProperties": false})
    };
    let number = json!({"type": "integer", "minimum": 1});
    let string = json!({"type": ["string", "null"], "minLength": 2});
    let wire = rewrite(&schema, &LLAMA);
    assert_eq!(
        wire.schema,
        sent(number.clone(), json!({"type": "array", "items": {}}), string)
    );
    // Fields that only the open map knows are left alone.
    let reply = r#"{"any":null,"map":{"name":null,"é":3},"list":null,"name":null}"#;
    assert_eq!(wire.restore(reply), r#"{"any":null,"map":{"name":null,"é":3}}"#);
    let string = json!({"type": ["string", "null"], "format": "email", "minLength": 2, "maxLength": 5000});
    let list = json!({"type": "array", "minItems": 5000, "items": {}});
    assert_eq!(rewrite(&schema, &XGRAMMAR).schema, sent(number, list, string));
    assert!(!rewrite(&schema, &OUTLINES).strict);
    // A map whose values would have to be undone is sent as it is.
    let inner = json!({"type": "object", "additionalProperties":
        {"type": "object", "properties": {"a": {"type": "string"}}, "required": []}});
    assert_eq!(rewrite(&inner, &LLAMA).schema, inner);
}
