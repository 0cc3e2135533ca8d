//! Models in this process that think before they answer: the model of `examples/models` with another head.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, Value as Said, write};
use chainette::engine::Message;
use chainette::engine::embedded::{
    Ending, Generate, Generated, GgufText, Loader as _, PoolConfig, Pools, TextGenerator,
};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::embedded::block_on;
use crate::harness::Bench;
use crate::server::{Answer, TestServer};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/reviews.gguf");
/// A switch, as Qwen3 has it.
const SWITCH: &str = "{% if not enable_thinking %}<think></think>{% endif %}";
/// A model that always thinks, as DeepSeek-R1.
const ALWAYS: &str = "<think>\n";

/// Writes a model whose prompts end with `opening`, and in which a token has another text.
fn model(path: &Path, opening: &str, renamed: Option<(&str, &str, i32)>) {
    let mut file = File::open(MODEL).expect("the model is there");
    let mut content = Content::read(&mut file).expect("a head");
    let template = "tokenizer.chat_template";
    let Some(Said::String(was)) = content.metadata.get(template) else {
        panic!("it has a template");
    };
    let end = "<|assistant|>{% endif %}";
    let is = was.replace(end, &format!("<|assistant|>{opening}{{% endif %}}"));
    assert_ne!(*was, is);
    content.metadata.insert(template.to_owned(), Said::String(is));
    let mut list = |key: &str, change: &dyn Fn(usize, &mut Said)| {
        let Some(Said::Array(values)) = content.metadata.get_mut(&format!("tokenizer.ggml.{key}")) else {
            panic!("it has {key}");
        };
        values
            .iter_mut()
            .enumerate()
            .for_each(|(at, value)| change(at, value));
    };
    if let Some((was, is, sort)) = renamed {
        let at = std::cell::Cell::new(usize::MAX);
        list("tokens", &|n, value| {
            if let Said::String(text) = value
                && text == was
            {
                at.set(n);
                *text = is.to_owned();
            }
        });
        list("token_type", &|n, value| {
            if n == at.get() {
                *value = Said::I32(sort);
            }
        });
        assert_ne!(at.get(), usize::MAX, "{was} is a token");
        let merges = content.metadata.get_mut("tokenizer.ggml.merges");
        let Some(Said::Array(merges)) = merges else {
            panic!("it has merges");
        };
        merges.retain(|merge| {
            let Said::String(pair) = merge else { return true };
            let (left, right) = pair.split_once(' ').expect("a pair");
            ![left, right, &format!("{left}{right}")].contains(&was)
        });
    }
    let mut names: Vec<&String> = content.tensor_infos.keys().collect();
    names.sort();
    let tensors: Vec<(&String, QTensor)> = names
        .into_iter()
        .map(|name| {
            (
                name,
                content.tensor(&mut file, name, &Device::Cpu).expect("a tensor"),
            )
        })
        .collect();
    let tensors: Vec<(&str, &QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor))
        .collect();
    let head: Vec<(&str, &Said)> = content
        .metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let mut out = File::create(path).expect("a file can be made");
    write(&mut out, &head, &tensors).expect("it is written");
}

/// The types of tokens in a GGUF file.
const CONTROL: i32 = 3;
const DEFINED: i32 = 4;

fn schema() -> Arc<Value> {
    Arc::new(json!({
        "type": "object", "additionalProperties": false, "required": ["topic"],
        "properties": {"topic": {"enum": ["price", "quality"]}},
    }))
}

fn asked(schema: Option<Arc<Value>>) -> Generate {
    Generate {
        messages: vec![
            Message::system("Grade the product review."),
            Message::user("Review: It broke after two days."),
        ],
        schema,
        max_tokens: Some(200),
        ..Generate::default()
    }
}

fn answers(model: GgufText, asked: Vec<Generate>) -> Vec<Generated> {
    block_on(async {
        let pools = Pools::new();
        let pool = pools.add::<TextGenerator>(PoolConfig::new("thinker"), Arc::new(model));
        pools.start();
        let answers = join_all(asked.into_iter().map(|it| pool.ask(it))).await;
        pools.shutdown().await;
        answers.into_iter().map(|it| it.expect("an answer")).collect()
    })
}

/// Thinks, and then answers by the schema.
fn check(answer: &Generated, thoughts: bool) {
    let value: Value = serde_json::from_str(&answer.text).expect(&answer.text);
    let validator = jsonschema::validator_for(&schema()).expect("a schema");
    assert!(validator.is_valid(&value), "{answer:?}");
    assert_eq!(answer.ending, Ending::Done, "{answer:?}");
    assert_eq!(answer.reasoning.is_some(), thoughts, "{answer:?}");
}

#[test]
fn a_schema_holds_from_after_the_thoughts() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    for opening in [SWITCH, ALWAYS] {
        model(&path, opening, None);
        let thinker = || GgufText::new(&path).with_thinking(true);
        // This one would end its reply and never says that it has thought enough.
        let both = answers(thinker(), vec![asked(Some(schema())), asked(None)]);
        check(&both[0], true);
        assert_eq!(both[0].reasoning, both[1].reasoning, "thoughts are free");
        assert_eq!(both[1].text, both[1].text.trim_start());
        let thoughts = both[0].reasoning.clone().expect("thoughts");
        assert!(!thoughts.contains("think>"), "{thoughts}");
        // What ends a reply does not end a thought, and what is cut in one has no answer.
        let first: String = thoughts.chars().take(3).collect();
        let more = vec![
            Generate {
                stop: vec![first],
                ..asked(Some(schema()))
            },
            Generate {
                max_tokens: Some(2),
                ..asked(Some(schema()))
            },
        ];
        let more = answers(thinker(), more);
        assert_eq!(more[0].reasoning, both[0].reasoning);
        assert_eq!((more[1].text.as_str(), more[1].ending), ("", Ending::Cut));
        let begun = more[1].reasoning.as_deref().expect("a thought");
        assert!(
            thoughts.starts_with(begun) && more[1].reply_tokens == 2,
            "{begun}"
        );
        // And without thoughts, also where the template always opens them.
        for answer in answers(GgufText::new(&path), vec![asked(Some(schema()))]) {
            check(&answer, false);
        }
    }
}

#[test]
fn thoughts_end_with_their_mark() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    model(&path, SWITCH, None);
    let whole = answers(GgufText::new(&path).with_thinking(true), vec![asked(None)]);
    let whole = whole[0].reasoning.clone().expect("thoughts");
    let (before, _) = whole.split_once("quality").expect("it thinks of that");
    // A word of its thoughts is the mark, as a text of its own or as a sign without any.
    for sort in [DEFINED, CONTROL] {
        model(&path, SWITCH, Some(("quality", "</think>", sort)));
        let thinker = GgufText::new(&path).with_thinking(true);
        let words = Arc::new(json!({"type": "object", "additionalProperties": false, "properties": {}}));
        let both = answers(thinker, vec![asked(Some(words)), asked(None)]);
        assert_eq!(
            (both[0].reasoning.as_deref(), both[0].text.as_str()),
            (Some(before), "{}")
        );
        assert_eq!(both[1].reasoning.as_deref(), Some(before));
        assert!(!both[1].text.contains("think>"), "{}", both[1].text);
    }
}

#[test]
fn a_model_that_cannot_think_is_told_of_at_once() {
    let error = GgufText::new(MODEL)
        .with_thinking(true)
        .size()
        .expect_err("it cannot");
    let text = error.to_string().replace(MODEL, "reviews.gguf");
    insta::assert_snapshot!("embedded_cannot_think", text);
    let chain = chain(Path::new(MODEL), &json!(true), "http://127.0.0.1:9");
    let ran = Bench::new(&chain.to_string(), "{}\n").run(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("knows nothing of thinking"), "{}", ran.stderr);
    assert!(!ran.out.exists());
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/vectors/bert");
    let embeds = json!({
        "name": "embeds",
        "engines": {"own": {"backend": "embedded", "model": vectors, "reasoning": true}},
        "steps": [{"id": "place", "engine": "own", "task": "embed", "input": "x"}],
    });
    let ran = Bench::new(&embeds.to_string(), "{}\n").run(&[]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("do not think"), "{}", ran.stderr);
}

/// A Step that thinks, and one that is told the thoughts.
fn chain(model: &Path, reasoning: &Value, url: &str) -> Value {
    json!({
        "name": "thinks",
        "engines": {
            "own": {"backend": "embedded", "model": model, "reasoning": reasoning},
            "far": {"backend": "openai", "model": "m", "endpoint": url},
        },
        "steps": [
            {
                "id": "grade", "engine": "own", "user_prompt": "Review: It broke after two days.",
                "output_model": {"topic": "price | quality"}, "sampling": {"max_tokens": 200},
            },
            {"id": "told", "engine": "far", "user_prompt": "thoughts: {{ grade_reasoning or 'none' }}"},
        ],
    })
}

#[test]
fn a_chain_reads_the_thoughts() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("m.gguf");
    model(&path, SWITCH, None);
    let server = TestServer::start(|asked| Answer::text(asked.user()));
    let bench = Bench::new("", "{}\n");
    let told = |reasoning: bool| {
        bench.write(
            "chain.yaml",
            chain(&path, &json!(reasoning), &server.url()).to_string(),
        );
        let ran = bench.run(&["--resume"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.values("told")[0]["text"].as_str().expect("a text").to_owned()
    };
    let thoughts = told(true);
    assert!(thoughts.len() > "thoughts: none".len(), "{thoughts}");
    // It is another engine then: its answers on file are not those of this one.
    assert_eq!(told(false), "thoughts: none");
    assert_eq!(told(true), thoughts);
}
