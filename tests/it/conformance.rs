//! What every adapter must do: what it takes real servers' replies for, whole, cut, broken and without end.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chainette::engine::client::adapter;
use chainette::engine::{CallError, Engine, Reply};
use chainette::spec::{Backend, EngineSpec, Timeouts};
use serde_json::json;

use crate::engine::{block_on, class, hello, spec};
use crate::raw::{Body, Raw, RawServer};

/// An engine as a user declares it.
pub fn declared(backend: Backend, url: &str) -> EngineSpec {
    EngineSpec {
        backend,
        model: "m".into(),
        timeout: Timeouts {
            first_byte: Duration::from_secs(60),
            between_bytes: Duration::from_secs(60),
            ..Timeouts::default()
        },
        ..spec(url)
    }
}

pub fn engine(backend: Backend, url: &str) -> Arc<dyn Engine> {
    adapter(&declared(backend, url)).expect("a good declaration")
}

pub fn nothing() -> Raw {
    Raw {
        status: 200,
        content_type: "application/json",
        body: Body::Whole(b"{}".to_vec()),
    }
}

/// The recorded replies of a backend, by name.
fn replies(backend: Backend) -> Vec<(String, Raw)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/replies")
        .join(backend.as_str());
    let mut found: Vec<_> = fs::read_dir(folder)
        .expect("every backend has replies")
        .map(|entry| entry.expect("a folder entry").path())
        .map(|path| {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let bytes = fs::read(&path).expect("readable");
            let (content_type, body) = match name.rsplit('.').next() {
                Some("json") => ("application/json", Body::Whole(bytes)),
                Some("sse") => ("text/event-stream; charset=utf-8", Body::Chunks(vec![bytes])),
                Some("ndjson") => ("application/x-ndjson", Body::Chunks(vec![bytes])),
                Some("html") => ("text/html", Body::Whole(bytes)),
                _ => ("text/plain; charset=utf-8", Body::Whole(bytes)),
            };
            let status = name[..3].parse().expect("the name starts with the status");
            let raw = Raw {
                status,
                content_type,
                body,
            };
            (name, raw)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn told(result: &Result<Reply, CallError>) -> String {
    match result {
        Err(error) => format!("{}: {error}", class(result)),
        Ok(reply) => {
            let thought = reply.reasoning.as_ref().map(|text| format!(", thought {text:?}"));
            let (asked, said) = (reply.usage.prompt_tokens, reply.usage.completion_tokens);
            let (finish, text) = (reply.finish, &reply.text);
            format!(
                "{finish:?}: {text:?}{}, {asked}+{said} tokens",
                thought.unwrap_or_default()
            )
        }
    }
}

#[test]
fn recorded_replies_are_understood() {
    for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
        let server = RawServer::start(nothing());
        let engine = engine(backend, &server.url);
        let thinking = EngineSpec {
            reasoning: Some(true),
            ..declared(backend, &server.url)
        };
        let thinking = adapter(&thinking).expect("a good declaration");
        let mut text = String::new();
        for (name, raw) in replies(backend) {
            server.set(raw);
            let (plain, thought) = block_on(async {
                let plain = engine.call(&hello(&*engine), 0).await;
                (plain, thinking.call(&hello(&*thinking), 0).await)
            });
            writeln!(text, "{name}\n  {}", told(&plain)).expect("a string grows");
            if told(&plain) != told(&thought) {
                writeln!(text, "  with reasoning: {}", told(&thought)).expect("a string grows");
            }
        }
        insta::assert_snapshot!(backend.as_str(), text);
    }
}

#[test]
fn a_stream_means_the_same_wherever_it_is_cut() {
    block_on(async {
        for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
            let server = RawServer::start(nothing());
            let engine = engine(backend, &server.url);
            let asked = hello(&*engine);
            let mut streams = 0;
            for (name, raw) in replies(backend) {
                let Body::Chunks(pieces) = &raw.body else { continue };
                streams += 1;
                let bytes = pieces.concat();
                server.set(raw.clone());
                let expected = told(&engine.call(&asked, 0).await);
                let cuts = (1..bytes.len()).map(|at| vec![bytes[..at].to_vec(), bytes[at..].to_vec()]);
                let singles = bytes.iter().map(|byte| vec![*byte]).collect();
                for pieces in cuts.chain([singles]) {
                    let at = pieces[0].len();
                    let body = Body::Chunks(pieces);
                    server.set(Raw { body, ..raw.clone() });
                    let found = told(&engine.call(&asked, 0).await);
                    assert_eq!(found, expected, "{name} cut at {at}");
                }
            }
            assert!(streams > 3, "{backend:?} has streams");
        }
    });
}

#[test]
fn a_stream_that_breaks_is_a_reply_only_if_it_was_finished() {
    block_on(async {
        for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
            let server = RawServer::start(nothing());
            let engine = engine(backend, &server.url);
            let asked = hello(&*engine);
            let (name, raw) = replies(backend)
                .into_iter()
                .find(|(name, _)| name.starts_with("200-stream."))
                .expect("every backend has a stream");
            let Body::Chunks(pieces) = &raw.body else {
                panic!("{name} is a stream")
            };
            let bytes = pieces.concat();
            server.set(raw.clone());
            let whole = engine.call(&asked, 0).await.expect("a good stream");
            let mut faults = 0;
            for at in 1..bytes.len() {
                let body = Body::Broken(vec![bytes[..at].to_vec()]);
                server.set(Raw { body, ..raw.clone() });
                match engine.call(&asked, 0).await {
                    Ok(reply) => assert_eq!(
                        (reply.text, reply.reasoning, reply.finish),
                        (whole.text.clone(), whole.reasoning.clone(), whole.finish),
                        "{backend:?} broken at {at}"
                    ),
                    result => {
                        assert_eq!(class(&result), "fault http", "{backend:?} broken at {at}");
                        faults += 1;
                    }
                }
            }
            assert!(
                faults > bytes.len() / 2,
                "{backend:?}: {faults} of {}",
                bytes.len()
            );
        }
    });
}

/// An event that adds text, and one that adds thoughts.
fn event(backend: Backend, text: &str, thoughts: &str) -> Vec<u8> {
    match backend {
        Backend::Ollama => {
            let line = json!({"message": {"role": "assistant", "content": text, "thinking": thoughts}, "done": false});
            format!("{line}\n").into_bytes()
        }
        _ => {
            let usage = json!({"prompt_tokens": 3, "completion_tokens": 4});
            let delta = json!({"content": text, "reasoning_content": thoughts});
            let chunk = json!({"choices": [{"index": 0, "delta": delta}], "usage": usage});
            format!("data: {chunk}\n\n").into_bytes()
        }
    }
}

fn stream_of(backend: Backend) -> &'static str {
    if backend == Backend::Ollama {
        "application/x-ndjson"
    } else {
        "text/event-stream"
    }
}

#[test]
fn a_runaway_is_cut_at_the_same_place_however_it_comes() {
    block_on(async {
        for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
            let server = RawServer::start(nothing());
            let engine = engine(backend, &server.url);
            let asked = hello(&*engine);
            let mut cut = Vec::new();
            // Whole words, single characters and lumps: the text is one and the same.
            for again in ["ab ", "ab ab ab ", &"ab ".repeat(700)] {
                let first = vec![event(backend, "{\"a\": \"é", "")];
                let body = Body::Endless(first, event(backend, again, ""));
                server.set(Raw {
                    status: 200,
                    content_type: stream_of(backend),
                    body,
                });
                cut.push(engine.call(&asked, 0).await.expect("a cut reply"));
            }
            let whole = format!("{{\"a\": \"é{}", "ab ".repeat(5000));
            let body = match backend {
                Backend::Ollama => {
                    json!({"message": {"content": whole}, "done": true, "done_reason": "stop"})
                }
                _ => json!({"choices": [{"message": {"content": whole}, "finish_reason": "stop"}]}),
            };
            server.set(Raw {
                body: Body::Whole(body.to_string().into_bytes()),
                ..nothing()
            });
            cut.push(engine.call(&asked, 0).await.expect("a reply"));
            for reply in &cut {
                assert_eq!(
                    told(&Ok(Reply {
                        usage: cut[0].usage,
                        ..reply.clone()
                    })),
                    told(&Ok(cut[0].clone()))
                );
            }
            assert_eq!(format!("{:?}", cut[0].finish), "Runaway");
            assert!(
                (2048..2600).contains(&cut[0].text.chars().count()),
                "{}",
                cut[0].text.len()
            );
            if backend != Backend::Ollama {
                assert_eq!(
                    cut[0].usage.completion_tokens, 4,
                    "what the server had said so far"
                );
            }

            // Thoughts run away as well, and white space sooner.
            let body = Body::Endless(Vec::new(), event(backend, "", " \n"));
            server.set(Raw {
                status: 200,
                content_type: stream_of(backend),
                body,
            });
            let reply = engine.call(&asked, 0).await.expect("a cut reply");
            assert_eq!(
                (format!("{:?}", reply.finish).as_str(), reply.text.as_str()),
                ("Runaway", "")
            );
            let thoughts = reply.reasoning.expect("thoughts");
            assert_eq!(thoughts.chars().count(), 256);

            // The server sees each of them go. Nothing else ends these replies.
            let start = std::time::Instant::now();
            while server.left() < 4 {
                assert!(
                    start.elapsed() < Duration::from_secs(60),
                    "{backend:?}: {} left",
                    server.left()
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}

#[test]
fn long_repetitions_in_good_replies_are_kept() {
    block_on(async {
        let server = RawServer::start(nothing());
        let engine = engine(Backend::OpenAi, &server.url);
        let table = format!("| a |{}| b |\n{}\n", " ".repeat(200), "-".repeat(1000)).repeat(5);
        let body = json!({"choices": [{"message": {"content": table}, "finish_reason": "stop"}]});
        server.set(Raw {
            body: Body::Whole(body.to_string().into_bytes()),
            ..nothing()
        });
        let reply = engine.call(&hello(&*engine), 0).await.expect("a reply");
        assert_eq!(reply.text, table);
        assert_eq!(
            told(&Ok(Reply {
                text: String::new(),
                ..reply
            })),
            "Stop: \"\", 0+0 tokens"
        );
    });
}

#[test]
fn streams_are_bounded() {
    block_on(async {
        for backend in Backend::ALL.into_iter().filter(|it| *it != Backend::Embedded) {
            let server = RawServer::start(nothing());
            let mut bounded = declared(backend, &server.url);
            bounded.max_reply = 10_000;
            let engine = adapter(&bounded).expect("a good declaration");
            let asked = hello(&*engine);
            // Much text; one line that never ends; one event that never ends.
            let words: String = (0..100).map(|n| format!("{n} ")).collect();
            let text = event(backend, &words, "");
            for again in [text, b"data: xxxx".repeat(10_000), b"data: xx\n".repeat(1000)] {
                server.set(Raw {
                    status: 200,
                    content_type: stream_of(backend),
                    body: Body::Endless(Vec::new(), again.clone()),
                });
                let result = engine.call(&asked, 0).await;
                let class = class(&result);
                // Ollama's lines are not JSON there, which is seen first.
                assert!(
                    matches!(class.as_str(), "refused http" | "fault http"),
                    "{backend:?}: {result:?}"
                );
            }
            // Silence after the head, and after a first event.
            bounded.timeout.first_byte = Duration::from_millis(200);
            bounded.timeout.between_bytes = Duration::from_millis(100);
            let engine = adapter(&bounded).expect("a good declaration");
            let slow = crate::raw::silent(stream_of(backend), &event(backend, "a", ""));
            let mut silent = declared(backend, &slow);
            silent.timeout = bounded.timeout;
            let engine_2 = adapter(&silent).expect("a good declaration");
            drop(engine);
            assert_eq!(
                class(&engine_2.call(&asked, 0).await),
                "fault timeout",
                "{backend:?}"
            );
        }
    });
}
