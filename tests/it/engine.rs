//! Engines: what goes over the wire, and what comes back.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chainette::engine::client::openai::OpenAi;
use chainette::engine::{CallError, Chat, Engine, Finish, Message, Rendered, Reply, Request, Role};
use chainette::spec::{Backend, Concurrency, EngineSpec, Sampling, Timeouts};
use serde_json::{Value, json};

use crate::server::{Answer, TestServer};

/// An engine at an address.
pub fn spec(url: &str) -> EngineSpec {
    EngineSpec {
        endpoint: Some(url.into()),
        concurrency: Concurrency::Fixed(4),
        timeout: Timeouts {
            first_byte: Duration::from_secs(60),
            between_bytes: Duration::from_secs(60),
            ..Timeouts::default()
        },
        max_reply: 1 << 20,
        engine_wait: Duration::from_secs(60),
        ..EngineSpec::new("small", Backend::OpenAi, "test")
    }
}

/// A runtime for one test.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

/// One small request.
pub fn hello(engine: &dyn Engine) -> Rendered {
    let messages = [Message {
        role: Role::User,
        content: "hello".into(),
    }];
    engine.render(&Request::Chat(Chat {
        messages: &messages,
        schema: None,
        sampling: &Sampling::default(),
        stream: false,
    }))
}

fn call(spec: &EngineSpec) -> Result<Reply, CallError> {
    let engine = OpenAi::new(spec).expect("a good declaration");
    block_on(async { engine.call(&hello(&engine), 3).await })
}

fn answer(answer: Answer) -> Result<Reply, CallError> {
    let server = TestServer::start(move |_| answer.clone());
    call(&spec(&server.url()))
}

fn raw(body: Value) -> Result<Reply, CallError> {
    answer(Answer::Raw(body.to_string().into()))
}

fn body(code: u16, body: Value) -> Result<Reply, CallError> {
    answer(Answer::Status {
        code,
        headers: Vec::new(),
        body: body.to_string(),
    })
}

/// What an answer was taken for, in a word or two.
pub fn class(result: &Result<Reply, CallError>) -> String {
    match result {
        Ok(reply) => format!("{:?}", reply.finish),
        Err(CallError::Engine { pressure, .. }) => format!("{pressure:?}"),
        Err(CallError::Transport { kind, .. }) => format!("fault {kind}"),
        Err(CallError::Refused { kind, .. }) => format!("refused {kind}"),
        Err(CallError::Fatal { .. }) => "fatal".into(),
    }
}

#[test]
fn every_status_has_its_class() {
    for (code, expected) in [
        (301, "fatal"),
        (400, "refused http"),
        (401, "fatal"),
        (403, "fatal"),
        (404, "fatal"),
        (408, "fault timeout"),
        (409, "refused http"),
        (413, "refused context_length"),
        (422, "refused http"),
        (429, "Busy"),
        (500, "fault http"),
        (502, "fault http"),
        (503, "Overloaded"),
        (504, "fault timeout"),
        (529, "Overloaded"),
    ] {
        assert_eq!(class(&answer(Answer::status(code, "no"))), expected, "{code}");
    }
    assert_eq!(class(&answer(Answer::status(503, "Loading model"))), "Down");
    let server = TestServer::start(|_| Answer::Hang);
    let mut impatient = spec(&server.url());
    impatient.timeout.first_byte = Duration::from_millis(300);
    assert_eq!(class(&call(&impatient)), "fault timeout");
    assert_eq!(class(&answer(Answer::Close)), "fault http");
    assert_eq!(class(&answer(Answer::CloseMidBody)), "fault http");
    assert_eq!(class(&answer(Answer::Raw("not json".into()))), "fault http");
    assert_eq!(class(&raw(json!({"choices": []}))), "fault http");
    assert_eq!(class(&call(&spec("http://127.0.0.1:1/v1"))), "Down");
}

#[test]
fn too_long_is_recognised_in_every_dialect() {
    let openai = json!({"error": {"message": "long", "type": "invalid_request_error", "code": "context_length_exceeded"}});
    let llama = json!({"error": {"code": 400, "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error", "n_prompt_tokens": 3000, "n_ctx": 2048}});
    let vllm = json!({"error": {"message": "This model's maximum context length is 1024 tokens. However, you requested 2000", "type": "BadRequestError", "code": 400}});
    let old_vllm = json!({"object": "error", "message": "The decoder prompt (length 2000) is longer than the maximum model length of 1024", "code": 400});
    let tgi = json!({"error": "Input validation error: `inputs` must have less than 1000 tokens. Given: 2000", "error_type": "validation"});
    for (code, text) in [
        (400, openai),
        (400, llama),
        (400, vllm),
        (400, old_vllm),
        (422, tgi),
    ] {
        assert_eq!(
            class(&body(code, text.clone())),
            "refused context_length",
            "{text}"
        );
    }
    let model = json!({"error": {"message": "The model `x` does not exist", "code": "model_not_found"}});
    assert_eq!(class(&body(400, model)), "fatal");
}

#[test]
fn an_unparsable_output_of_llama_cpp_is_a_bad_reply() {
    let text = "The model produced output that does not match the expected peg-native format";
    let reply = answer(Answer::status(500, text)).expect("a reply");
    assert_eq!((reply.finish, reply.text.as_str()), (Finish::Rejected, text));
}

#[test]
fn messages_are_one_line_cut_and_without_address() {
    let long = format!("two\nlines {}", "x".repeat(2000));
    let Err(error) = answer(Answer::status(500, &long)) else {
        panic!("a 500 is an error")
    };
    let text = error.to_string();
    assert!(
        !text.contains('\n') && text.chars().count() < 560 && text.ends_with('…'),
        "{text}"
    );
    let Err(error) = call(&spec("http://127.0.0.1:1/v1")) else {
        panic!("nobody listens there")
    };
    assert_eq!(error.to_string(), "connection refused");
}

#[test]
fn retry_after_is_read() {
    let wait = |value: &str| {
        let answered = answer(Answer::Status {
            code: 429,
            headers: vec![("retry-after", value.to_owned())],
            body: String::new(),
        });
        match answered {
            Err(CallError::Engine { retry_after, .. }) => retry_after,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(wait("7"), Some(Duration::from_secs(7)));
    assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
    let far = wait("Fri, 31 Dec 9999 23:59:59 GMT");
    assert_eq!(far, Some(Duration::from_secs(86_400)));
    assert_eq!(wait("soon"), None);
}

#[test]
fn replies_are_read_in_every_shape() {
    let reply = raw(json!({
        "choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "reasoning_content": "hm"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": null},
    }))
    .expect("a reply");
    assert_eq!(reply.text, "ab");
    assert_eq!(reply.reasoning.as_deref(), Some("hm"));
    assert_eq!(reply.finish, Finish::Length);
    assert_eq!((reply.usage.prompt_tokens, reply.usage.completion_tokens), (3, 4));
    let reply =
        raw(json!({"choices": [{"message": {"content": null, "refusal": "I will not"}}]})).expect("a reply");
    assert_eq!(
        (reply.text.as_str(), reply.finish),
        ("I will not", Finish::Rejected)
    );
}

#[test]
fn a_reply_larger_than_allowed_is_refused() {
    let server = TestServer::start(|_| Answer::text("x".repeat(5000)));
    let mut spec = spec(&server.url());
    spec.max_reply = 1000;
    assert_eq!(class(&call(&spec)), "refused http");
}

#[test]
fn the_whole_request_goes_out() {
    let asked = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&asked);
    let server = TestServer::start(move |asked| {
        *seen.lock().expect("no panic") = Some(asked.clone());
        Answer::text("ok")
    });
    let mut spec = spec(&server.url());
    // The one variable that is surely set.
    spec.api_key_env = Some("PATH".into());
    spec.headers = vec![("x-team".into(), "secret-team".into())];
    let engine = OpenAi::new(&spec).expect("a good declaration");
    let schema = engine.prepare(
        "step",
        &json!({"type": "object", "properties": {"a": {"type": "string"}}}),
    );
    let messages = [
        Message {
            role: Role::System,
            content: "s".into(),
        },
        Message {
            role: Role::User,
            content: "u".into(),
        },
    ];
    let mut sampling = Sampling {
        temperature: Some(0.0),
        max_tokens: Some(20),
        top_p: Some(0.5),
        stop: vec!["END".into()],
        seed: Some(7),
        ..Sampling::default()
    };
    sampling.extra.insert("top_k".into(), 40.into());
    sampling.extra.insert("stream".into(), true.into());
    let request = Request::Chat(Chat {
        messages: &messages,
        schema: Some(&schema),
        sampling: &sampling,
        stream: false,
    });
    let rendered = engine.render(&request);
    assert_eq!(
        engine.render(&request).digest,
        rendered.digest,
        "rendering is pure"
    );
    block_on(async { engine.call(&rendered, 3).await }).expect("a reply");
    let asked = asked.lock().expect("no panic").clone().expect("one request");
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.headers["x-chainette-attempt"], "3");
    assert_eq!(asked.headers["x-team"], "secret-team");
    let key = std::env::var("PATH").expect("PATH is set");
    assert_eq!(asked.headers["authorization"], format!("Bearer {key}"));
    let format = json!({"type": "json_schema", "json_schema": {"name": "step", "strict": true, "schema": {
        "type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"],
        "additionalProperties": false}}});
    let expected = json!({
        "model": "test",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "temperature": 0.0, "max_tokens": 20, "top_p": 0.5, "stop": ["END"], "seed": 7,
        "response_format": format, "top_k": 40,
    });
    assert_eq!(asked.body, expected);
    assert_eq!(
        asked.raw.as_ref(),
        expected.to_string().as_bytes(),
        "in a fixed order"
    );
    assert!(!format!("{engine:?}").contains("secret-team"));

    // Another model is another question, another address is not.
    let digest = |spec: &EngineSpec| hello(&OpenAi::new(spec).expect("a good declaration")).digest;
    let mut other = spec.clone();
    other.endpoint = Some("http://127.0.0.1:9/v1".into());
    assert_eq!(digest(&spec), digest(&other));
    other.model = "other".into();
    assert_ne!(digest(&spec), digest(&other));
}

#[test]
fn secrets_are_taken_out_of_what_servers_say() {
    let key = std::env::var("PATH").expect("PATH is set");
    let said = format!("Incorrect API key provided: {key}.");
    let server = TestServer::start(move |_| Answer::status(401, &said));
    let mut spec = spec(&server.url());
    spec.api_key_env = Some("PATH".into());
    let Err(error) = call(&spec) else {
        panic!("a 401 is an error")
    };
    let text = error.to_string();
    assert!(
        text.contains("provided: ***.") && text.contains("check the API key in PATH"),
        "{text}"
    );
}

#[test]
fn bad_declarations_are_named() {
    let error = |spec: &EngineSpec| OpenAi::new(spec).expect_err("a bad declaration").to_string();
    let mut bad = spec("127.0.0.1:8000");
    assert!(error(&bad).contains("`endpoint` must be"), "{}", error(&bad));
    bad = spec("http://127.0.0.1:1/v1");
    bad.api_key_env = Some("CHAINETTE_NO_SUCH_KEY".into());
    assert!(error(&bad).contains("CHAINETTE_NO_SUCH_KEY"), "{}", error(&bad));
}
