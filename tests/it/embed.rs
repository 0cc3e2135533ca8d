//! Vectors over HTTP: what goes out, what comes back in which form, and what is no vector.

use std::fmt::Write as _;

use chainette::engine::client::{adapter, address, embeddings_address};
use chainette::engine::vector::{print, read};
use chainette::engine::{CallError, Finish, Rendered, Reply, Request};
use chainette::spec::{Backend, EngineSpec, Task};
use serde_json::{Value, json};

use crate::conformance::{declared, engine, nothing};
use crate::diagnostics::report;
use crate::engine::{block_on, class, hello};
use crate::raw::{Body, Raw, RawServer};

fn embed(engine: &dyn chainette::engine::Engine) -> Rendered {
    engine.render(&Request::Embed { input: "é \"x\"" })
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Raw {
    Raw {
        status,
        content_type: "application/json",
        body: Body::Whole(body.into()),
    }
}

/// What an engine makes of an answer to a text.
fn answered(backend: Backend, status: u16, body: impl Into<Vec<u8>>) -> Result<Reply, CallError> {
    let server = RawServer::start(answer(status, body));
    let engine = engine(backend, &server.url);
    block_on(engine.call(&embed(&*engine), 0))
}

/// An answer in the form of a backend around one vector's JSON.
fn around(backend: Backend, vector: &str) -> String {
    match backend {
        Backend::Ollama => format!("{{\"embeddings\":[{vector}],\"prompt_eval_count\":3}}"),
        _ => format!(
            "{{\"data\":[{{\"index\":0,\"embedding\":{vector}}}],\"usage\":{{\"prompt_tokens\":3,\"total_tokens\":3}}}}"
        ),
    }
}

#[test]
fn requests_go_out_in_each_backends_form() {
    let mut text = String::new();
    for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
        let server = RawServer::start(nothing());
        let spec = EngineSpec {
            context: Some(512),
            reasoning: Some(true),
            ..declared(backend, &server.url)
        };
        let engine = adapter(&spec).expect("a good declaration");
        let rendered = embed(&*engine);
        assert_eq!(
            (rendered.task, hello(&*engine).task),
            (Task::Embed, Task::Generate)
        );
        assert_eq!(rendered.digest, embed(&*engine).digest, "rendering is pure");
        assert_ne!(rendered.digest, hello(&*engine).digest);
        let _whatever = block_on(engine.call(&rendered, 0));
        let heard = server.heard().pop().expect("a request");
        writeln!(text, "{}: {}\n{}", backend.as_str(), heard.line, heard.body).expect("a string grows");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn endpoints_are_completed() {
    let cases = [
        (Backend::OpenAi, "http://h:1", "http://h:1/v1/embeddings"),
        (
            Backend::OpenAi,
            "https://h/openai/v2/",
            "https://h/openai/v2/embeddings",
        ),
        (
            Backend::OpenAi,
            "http://h/v1/chat/completions",
            "http://h/v1/embeddings",
        ),
        (
            Backend::OpenAi,
            "http://h/v1/embeddings",
            "http://h/v1/embeddings",
        ),
        (
            Backend::OpenAi,
            "http://h/v1?api-version=2",
            "http://h/v1/embeddings?api-version=2",
        ),
        (Backend::Vllm, "http://h:8000", "http://h:8000/v1/embeddings"),
        (Backend::LlamaCpp, "http://h/llm/", "http://h/llm/v1/embeddings"),
        (
            Backend::LlamaCpp,
            "http://h/v1/embeddings",
            "http://h/v1/embeddings",
        ),
        (Backend::Ollama, "http://h:11434", "http://h:11434/api/embed"),
        (Backend::Ollama, "http://h:11434/v1/", "http://h:11434/api/embed"),
        (Backend::Ollama, "http://h/api/embed", "http://h/api/embed"),
        (
            Backend::Ollama,
            "http://h/ollama/api/chat",
            "http://h/ollama/api/embed",
        ),
    ];
    for (backend, endpoint, url) in cases {
        assert_eq!(
            embeddings_address(&declared(backend, endpoint)),
            url,
            "{backend:?} {endpoint}"
        );
    }
    // A Step that talks is asked beside it.
    let at = declared(Backend::OpenAi, "http://h/v1");
    assert_eq!(address(&at), "http://h/v1/chat/completions");
}

#[test]
fn a_number_has_one_text_however_it_comes() {
    let vector = [
        0.1_f32,
        -1.0,
        0.0,
        -0.0,
        1e-7,
        16_777_216.0,
        f32::MIN_POSITIVE,
        f32::MAX,
        1e-45,
    ];
    let expected = r#"{"embedding":[0.1,-1.0,0.0,-0.0,1e-7,16777216.0,1.1754944e-38,3.4028235e+38,1e-45]}"#;
    assert_eq!(Reply::embedding(&vector, 3).text, expected);
    let wide: Vec<f64> = vector.iter().copied().map(f64::from).collect();
    let wide = Value::from(wide).to_string();
    assert!(wide.contains("0.10000000149011612"), "{wide}");
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    let forms = [
        wide,
        "[ 1e-1 ,-1,0,-0, 1.0E-7,16777216,1.1754944e-38,3.4028235e+38,1e-45]".to_owned(),
    ];
    for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
        for form in &forms {
            let reply = answered(backend, 200, around(backend, form)).expect("a reply");
            assert_eq!(
                (reply.finish, reply.text.as_str()),
                (Finish::Stop, expected),
                "{backend:?} {form}"
            );
            assert_eq!((reply.usage.prompt_tokens, reply.usage.completion_tokens), (3, 0));
        }
        if backend != Backend::Ollama {
            let form = format!("\"{}\"", base64(&bytes));
            let reply = answered(backend, 200, around(backend, &form)).expect("a reply");
            assert_eq!(reply.text, expected);
        }
    }
    let bad = answered(Backend::Vllm, 200, around(Backend::Vllm, "[null]")).expect("a reply");
    assert_eq!(
        (bad.finish, bad.usage.prompt_tokens),
        (Finish::Rejected, 3),
        "its tokens are paid too"
    );
    assert_eq!(
        read(expected).map(|vector| print(&vector)).as_deref(),
        Ok(expected)
    );
}

/// RFC 4648 §4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[test]
fn what_holds_no_vector_is_told_by_its_fault() {
    let mut text = String::new();
    let mut tell = |backend: Backend, body: &str| {
        let told = match answered(backend, 200, body) {
            Ok(reply) => format!("{:?}: {}", reply.finish, reply.text),
            Err(error) => format!("{}: {error}", class(&Err(error.clone()))),
        };
        let shown: String = body.chars().take(90).collect();
        writeln!(text, "{shown}\n  {told}").expect("a string grows");
    };
    for vector in [
        "[]",
        "[ ]",
        "[1,null]",
        "[1,\"2\"]",
        "[1,[2]]",
        "[[1,2],[3,4]]",
        "[1,{\"a\":1}]",
        "[true]",
        "[1e39]",
        "[-1e400]",
        "null",
        "7",
        "{\"0\":1}",
        "\"AACAPw==\"",
        "\"\"",
        "\"AACAP\"",
        "\"AACAPwA=\"",
        "\"no base64!\"",
        "\"AADAfw==\"",
        "\"AACAfw==\"",
        "[NaN,1]",
        "[1,-Infinity]",
    ] {
        tell(Backend::OpenAi, &around(Backend::OpenAi, vector));
    }
    for body in [
        "{\"data\":[]}",
        "{\"data\":[{\"index\":0,\"embedding\":[1]},{\"index\":1,\"embedding\":[2]}]}",
        "{\"data\":[{\"index\":3,\"embedding\":[1]}]}",
        "{\"data\":[{\"index\":\"0\",\"embedding\":[1]}]}",
        "{\"data\":[{\"index\":0}]}",
        "{\"data\":[[1,2]]}",
        "{\"data\":[7]}",
        "{\"data\":{\"embedding\":[1]}}",
        "{\"data\":null}",
        "{\"error\":{\"message\":\"the GPU is on fire\"}}",
        "{\"embeddings\":[[1]]}",
        "{\"choices\":[]}",
        "[{\"index\":0,\"embedding\":[[1,2]]}]",
        "[]",
        "",
        "not json",
        "{\"data\":[{\"embedding\":[1",
        // These hold one.
        "{\"data\":[{\"embedding\":[1]}],\"usage\":{\"prompt_tokens\":\"many\"}}",
        "{\"data\":[{\"index\":0,\"embedding\":[0.5],\"x\":1}],\"usage\":7}",
    ] {
        tell(Backend::Vllm, body);
    }
    for body in [
        "{\"embeddings\":[]}",
        "{\"embeddings\":[[1],[2]]}",
        "{\"embeddings\":[1]}",
        "{\"embeddings\":[\"AACAPw==\"]}",
        "{\"embeddings\":[[1,null]]}",
        "{\"embedding\":[1]}",
        "{\"error\":\"out of memory\"}",
    ] {
        tell(Backend::Ollama, body);
    }
    insta::assert_snapshot!(text);
}

#[test]
fn what_an_error_says_of_embedding_is_understood() {
    let mut text = String::new();
    for (backend, status, body) in [
        (
            Backend::LlamaCpp,
            501,
            json!({"error": {"code": 501, "message": "This server does not support embeddings. Start it with `--embeddings`", "type": "not_supported_error"}}),
        ),
        (
            Backend::LlamaCpp,
            400,
            json!({"error": {"code": 400, "message": "Pooling type 'none' is not OAI compatible. Please use a different pooling type", "type": "invalid_request_error"}}),
        ),
        (
            Backend::LlamaCpp,
            500,
            json!({"error": {"code": 500, "message": "input (1026 tokens) is too large to process. increase the physical batch size (current batch size: 512)", "type": "server_error"}}),
        ),
        (
            Backend::LlamaCpp,
            400,
            json!({"error": {"code": 400, "message": "input content cannot be empty", "type": "invalid_request_error"}}),
        ),
        (
            Backend::LlamaCpp,
            503,
            json!({"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}),
        ),
        (
            Backend::Vllm,
            400,
            json!({"object": "error", "message": "The model does not support Embeddings API", "type": "BadRequestError", "code": 400}),
        ),
        (Backend::Vllm, 404, json!({"detail": "Not Found"})),
        (
            Backend::Vllm,
            400,
            json!({"error": {"message": "This model's maximum context length is 512 tokens. However, you requested 600 tokens in the input for embedding generation.", "type": "BadRequestError", "code": 400}}),
        ),
        (
            Backend::OpenAi,
            404,
            json!({"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}),
        ),
        (
            Backend::OpenAi,
            413,
            json!({"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 600", "error_type": "Validation"}),
        ),
        (Backend::OpenAi, 501, json!({"error": "no"})),
        (Backend::OpenAi, 401, json!({"error": {"message": "no key"}})),
        (Backend::OpenAi, 429, json!({"error": {"message": "slow down"}})),
        (Backend::OpenAi, 500, json!({"error": {"message": "boom"}})),
        (
            Backend::Ollama,
            404,
            json!({"error": "model \"m\" not found, try pulling it first"}),
        ),
        (
            Backend::Ollama,
            400,
            json!({"error": "the input length exceeds the context length"}),
        ),
        (
            Backend::Ollama,
            500,
            json!({"error": "input length exceeds maximum context length"}),
        ),
        (
            Backend::Ollama,
            501,
            json!({"error": "this model does not support embeddings"}),
        ),
    ] {
        let result = answered(backend, status, body.to_string());
        let error = result.as_ref().expect_err("no vector came");
        writeln!(
            text,
            "{} {status} {}\n  {}: {error}",
            backend.as_str(),
            body,
            class(&result)
        )
        .expect("a string grows");
    }
    insta::assert_snapshot!(text);

    // The other way round: a conversation with a server that only embeds.
    let only = json!({"error": {"code": 501, "message": "This server does not support completions. Start it without `--embeddings`", "type": "not_supported_error"}});
    let server = RawServer::start(answer(501, only.to_string()));
    let engine = engine(Backend::LlamaCpp, &server.url);
    let result = block_on(engine.call(&hello(&*engine), 0));
    assert_eq!(class(&result), "fatal", "{result:?}");
    // A conversation is not too long because a text to embed would be.
    server.set(answer(
        500,
        json!({"error": {"message": "input is too large to process"}}).to_string(),
    ));
    assert_eq!(class(&block_on(engine.call(&hello(&*engine), 0))), "fault http");
}

#[test]
fn a_server_that_is_started_must_be_one_that_embeds() {
    let chain = |more: &str| {
        let engine = format!("{{backend: llamacpp, model: ./m.gguf{more}}}");
        report(&format!(
            "engines: {{e: {engine}}}\nsteps: [{{id: v, engine: e, task: embed, input: x}}]\n"
        ))
        .problems()
        .len()
    };
    assert_eq!(chain(""), 1);
    assert_eq!(chain(", flags: [--metrics, --embed]"), 1);
    for more in [
        ", flags: [--embeddings]",
        ", flags: [-t, 1, --embedding, --pooling, mean]",
        ", env: {LLAMA_ARG_EMBEDDINGS: 1}",
        ", endpoint: 'http://h'",
    ] {
        assert_eq!(chain(more), 0, "{more}");
    }
}

#[test]
fn answers_are_bounded() {
    let server = RawServer::start(answer(
        200,
        around(Backend::OpenAi, &format!("[{}1]", "1,".repeat(5000))),
    ));
    let mut spec = declared(Backend::OpenAi, &server.url);
    spec.max_reply = 1000;
    let engine = adapter(&spec).expect("a good declaration");
    assert_eq!(class(&block_on(engine.call(&embed(&*engine), 0))), "refused http");
}

#[test]
fn a_reply_of_the_users_own_is_read_strictly() {
    for (text, problem) in [
        ("[0.5]", "the reply is no `{\"embedding\": [...]}`"),
        ("{}", "missing field"),
        ("{\"embedding\":[0.5],\"model\":\"m\"}", "unknown field"),
        ("{\"embedding\":[0.5]} thanks", "trailing characters"),
        (
            "{\"embedding\":[null]}",
            "the vector's value 1 is null, not a number",
        ),
        ("no", "the reply is no `{\"embedding\": [...]}`"),
        ("", "the reply is no `{\"embedding\": [...]}`"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.contains(problem), "{text}: {error}");
    }
    let nan = Reply::embedding(&[1.0, f32::NAN], 0).text;
    assert_eq!(
        read(&nan),
        Err("the vector's value 2 is null, not a number".to_owned())
    );
}
