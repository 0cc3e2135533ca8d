//! What every adapter sends: the requests of a fixed set of questions, in each backend's form.

use std::fmt::Write as _;

use chainette::engine::client::{adapter, address};
use chainette::engine::{Chat, Message, Request, Role};
use chainette::spec::{Backend, EngineSpec, Sampling};
use serde_json::{Value, json};

use crate::conformance::{declared, engine, nothing};
use crate::engine::block_on;
use crate::raw::RawServer;

/// Title, conversation, schema, sampling, and whether a stream is asked for.
type Question = (&'static str, Vec<Message>, Option<Value>, Sampling, bool);

/// The questions whose requests are kept as snapshots.
fn questions() -> Vec<Question> {
    let user = |text: &str| Message {
        role: Role::User,
        content: text.to_owned(),
    };
    let hi = || vec![user("hi")];
    let short = || Sampling {
        max_tokens: Some(100),
        ..Sampling::default()
    };
    let mut full = Sampling {
        temperature: Some(0.0),
        max_tokens: Some(200),
        top_p: Some(1.0),
        stop: vec!["END".into()],
        seed: Some(-7),
        ..Sampling::default()
    };
    full.extra.insert("top_k".into(), 40.into());
    full.extra.insert("stream".into(), true.into());
    full.extra.insert("keep_alive".into(), "10m".into());
    let schema = json!({
        "type": "object", "required": ["label", "n", "tree"],
        "properties": {
            "label": {"enum": ["a", "b"], "description": "which"},
            "n": {"type": "integer", "minimum": 1, "maximum": 5, "multipleOf": 1},
            "name": {"type": "string", "minLength": 2, "maxLength": 9, "pattern": "^[a-z]+$", "format": "email"},
            "loose": {"type": "string", "pattern": "[a-z]", "maxLength": 5000},
            "tree": {"$ref": "#/definitions/the tree"},
        },
        "definitions": {"the tree": {"type": "object", "required": ["v"], "properties": {
            "v": {"type": "number", "exclusiveMinimum": 0},
            "kids": {"type": "array", "maxItems": 3, "items": {"$ref": "#/definitions/the tree"}}}}},
    });
    let either = json!({"oneOf": [
        {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]},
        {"type": "object", "properties": {"k": {"const": 2}, "more": {"type": "boolean"}}, "required": ["k"]}]});
    let open = json!({"type": "object", "additionalProperties": {"type": "number"}});
    let patterns = json!({"type": "object", "patternProperties": {"^x": {"type": "number"}}, "additionalProperties": false});
    let again = vec![
        Message {
            role: Role::System,
            content: "be \"brief\"".into(),
        },
        user("hi"),
        Message {
            role: Role::Assistant,
            content: "no".into(),
        },
        user("Your reply was not valid."),
    ];
    let mut named = Sampling::default();
    named.extra.insert("max_completion_tokens".into(), 300.into());
    vec![
        ("free text of any length", hi(), None, Sampling::default(), false),
        ("free text, short", hi(), None, short(), false),
        ("free text, short, after a runaway", hi(), None, short(), true),
        ("all of sampling", hi(), None, full, false),
        ("the limit under its other name", hi(), None, named, false),
        (
            "a schema with optionals, references and enums",
            hi(),
            Some(schema),
            short(),
            false,
        ),
        (
            "a schema whose root is no object",
            hi(),
            Some(either),
            short(),
            false,
        ),
        ("a schema with any fields", hi(), Some(open), short(), false),
        (
            "a schema with patterns of names",
            hi(),
            Some(patterns),
            short(),
            false,
        ),
        ("asked again", again, None, short(), false),
    ]
}

#[test]
fn requests_go_out_in_each_backends_form() {
    for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
        let server = RawServer::start(nothing());
        let plain = declared(backend, &server.url);
        let thinking = EngineSpec {
            reasoning: Some(true),
            context: Some(8192),
            ..plain.clone()
        };
        let quick = EngineSpec {
            reasoning: Some(false),
            ..plain.clone()
        };
        let mut text = String::new();
        let mut ask = |spec: &EngineSpec,
                       title: &str,
                       messages: &[Message],
                       schema: Option<&Value>,
                       sampling: &Sampling,
                       stream: bool| {
            let engine = adapter(spec).expect("a good declaration");
            let schema = schema.map(|schema| engine.prepare("step", schema));
            let request = |stream| {
                engine.render(&Request::Chat(Chat {
                    messages,
                    schema: schema.as_ref(),
                    sampling,
                    stream,
                }))
            };
            let rendered = request(stream);
            assert_eq!(
                rendered.digest,
                request(true).digest,
                "a stream is no other question"
            );
            let _whatever = block_on(engine.call(&rendered, 0));
            let heard = server.heard().pop().expect("a request");
            let sent: Value = serde_json::from_slice(&rendered.body).expect("JSON");
            assert_eq!(heard.body, sent);
            writeln!(text, "{title}\n{}\n{:#}\n", heard.line, heard.body).expect("a string grows");
        };
        for (title, messages, schema, sampling, stream) in questions() {
            ask(&plain, title, &messages, schema.as_ref(), &sampling, stream);
        }
        let short = Sampling {
            max_tokens: Some(100),
            ..Sampling::default()
        };
        let hi = [Message {
            role: Role::User,
            content: "hi".into(),
        }];
        ask(
            &thinking,
            "reasoning: true, context: 8192",
            &hi,
            None,
            &short,
            false,
        );
        ask(&quick, "reasoning: false", &hi, None, &short, false);
        insta::assert_snapshot!(backend.as_str(), text);
    }
}

#[test]
fn stream_options_can_be_left_out_or_changed() {
    for (given, sent) in [
        (json!(null), json!(null)),
        (json!({"include_usage": false}), json!({"include_usage": false})),
    ] {
        let mut sampling = Sampling::default();
        sampling.extra.insert("stream_options".into(), given);
        let engine = engine(Backend::OpenAi, "http://127.0.0.1:1/v1");
        let rendered = engine.render(&Request::Chat(Chat {
            messages: &[],
            schema: None,
            sampling: &sampling,
            stream: false,
        }));
        let body: Value = serde_json::from_slice(&rendered.body).expect("JSON");
        assert_eq!((&body["stream"], &body["stream_options"]), (&json!(true), &sent));
        let plain = engine.render(&Request::Chat(Chat {
            messages: &[],
            schema: None,
            sampling: &Sampling::default(),
            stream: false,
        }));
        assert_eq!(
            rendered.digest, plain.digest,
            "how a stream is sent is no other question"
        );
    }
}

#[test]
fn endpoints_are_completed() {
    let cases = [
        (Backend::OpenAi, "http://h:1", "http://h:1/v1/chat/completions"),
        (
            Backend::OpenAi,
            "http://h:1/v1/",
            "http://h:1/v1/chat/completions",
        ),
        (
            Backend::OpenAi,
            "https://h/openai/v2",
            "https://h/openai/v2/chat/completions",
        ),
        (
            Backend::OpenAi,
            "https://h/v1/chat/completions",
            "https://h/v1/chat/completions",
        ),
        (
            Backend::Vllm,
            "http://h:8000",
            "http://h:8000/v1/chat/completions",
        ),
        (
            Backend::Vllm,
            "http://h:8000/v1",
            "http://h:8000/v1/chat/completions",
        ),
        (
            Backend::LlamaCpp,
            "http://h/llm/",
            "http://h/llm/v1/chat/completions",
        ),
        (Backend::Tgi, "http://h:3000", "http://h:3000/v1/chat/completions"),
        (Backend::Ollama, "http://h:11434", "http://h:11434/api/chat"),
        (Backend::Ollama, "http://h:11434/v1", "http://h:11434/api/chat"),
        (Backend::Ollama, "http://h:11434/v1/", "http://h:11434/api/chat"),
        (Backend::Ollama, "http://h:11434/api", "http://h:11434/api/chat"),
        (
            Backend::Ollama,
            "http://h:11434/api/chat",
            "http://h:11434/api/chat",
        ),
        (
            Backend::Ollama,
            "http://h/v1/chat/completions",
            "http://h/api/chat",
        ),
        (Backend::Ollama, "https://h/ollama", "https://h/ollama/api/chat"),
    ];
    for (backend, endpoint, url) in cases {
        assert_eq!(
            address(&declared(backend, endpoint)),
            url,
            "{backend:?} {endpoint}"
        );
    }
}
